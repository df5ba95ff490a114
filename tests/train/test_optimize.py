"""The optimiser at both numbers of bits: the same steps, a quarter of the memory."""

from pathlib import Path

import pytest
import torch

from alignsr.train.config import OptimizerConfig
from alignsr.train.optimize import make_optimizer
from alignsr.train.state import TrainState


def trained(bits: int, weight_decay: float) -> tuple[torch.Tensor, int]:
    """Thirty steps towards a target, from zero; the weights and the bytes of the optimiser's state."""
    target = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))  # 8 bits are for 4096 values and more
    weight = torch.nn.Parameter(torch.zeros(64, 512))
    optimizer = make_optimizer([weight], OptimizerConfig(learning_rate=0.01, weight_decay=weight_decay, bits=bits))
    for _ in range(30):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    state = optimizer.state[weight].values()
    return weight.detach(), sum(value.nbytes for value in state if isinstance(value, torch.Tensor) and value.numel() > 1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_eight_bits_make_the_same_steps_in_a_quarter_of_the_memory(weight_decay: float) -> None:
    (exact, full), (small, quarter) = (trained(bits, weight_decay) for bits in (32, 8))
    assert exact.abs().mean() > 0.2, "it went somewhere"
    assert float((small - exact).abs().mean() / exact.abs().mean()) < 0.06
    assert full == 2 * 4 * exact.numel() and quarter < 0.3 * full


@pytest.mark.parametrize("here", [8, 32])
@pytest.mark.parametrize("there", [8, 32])
def test_an_optimiser_that_has_not_stepped_yet_has_no_number_of_bits(
    there: int, here: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = torch.nn.Linear(64, 64)

    def state(bits: int) -> TrainState:
        return TrainState({"layer": layer}, {}, {"layer": make_optimizer(list(layer.parameters()), OptimizerConfig(bits=bits))})

    first, second = state(there), state(here)
    first.extra["samples"] = 1
    path = first.save(tmp_path, "hash", 1)
    if there == here:
        second.load(path, ("hash",))
    second.adopt(path)
    assert not caplog.records
    layer(torch.ones(1, 64)).sum().backward()
    second.optimizers["layer"].step()
    assert len(second.optimizers["layer"].state_dict()["state"]) == 2
