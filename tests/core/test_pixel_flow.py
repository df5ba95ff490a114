"""The pixel backbone sampled from noise: what is known untrained, the way from a one-step model, times and steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignsr.core import flow
from alignsr.core.backbones import load_backbone
from alignsr.core.backbones.pixel import PixelBackbone, flow_from_one_step
from alignsr.core.diffusion import FlowProcess
from alignsr.core.sampling import default_shift, restore_multi_step
from alignsr.core.weights import save_weights

TAU = 0.3
SIZES: dict[str, Any] = {"patch_px": 4, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 1.0, "conditioning_dim": 4}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(*shape: int, number: int) -> Tensor:
    return torch.randn(shape, generator=seed(number))


def model(**options: Any) -> PixelBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = PixelBackbone({**SIZES, **options})
    backbone.network.eval().requires_grad_(False)
    return backbone


@pytest.mark.parametrize("level", [0.02, 0.2, 0.5, 0.95])
def test_an_untrained_network_answers_with_the_best_linear_estimate(level: float) -> None:
    """Pictures of deviation TAU around the input: the velocity is the regression of noise - clean on the state."""
    z_lq = normal(1, 3, 8, 8, number=1).clamp(-1, 1).expand(512, -1, -1, -1)
    clean = z_lq + TAU * normal(512, 3, 8, 8, number=2)
    noise = normal(512, 3, 8, 8, number=3)
    sigma = torch.full((512,), level)
    backbone = model(residual_std=TAU)
    z = flow.add_noise(clean, noise, sigma)
    target = flow.velocity_target(clean, noise)
    answer = backbone.predict(z, sigma, z_lq)
    rest, state = target - answer, z - (1 - level) * z_lq
    assert abs(float((rest * state).mean())) < 0.01  # nothing linear is left
    expected = TAU**2 / ((1 - level) ** 2 * TAU**2 + level**2)
    assert float(rest.square().mean()) == pytest.approx(expected, rel=0.03)


def test_an_untrained_model_samples_noise_of_that_deviation() -> None:
    lq = torch.full((1, 3, 8, 8), 0.5)
    backbone = model(residual_std=TAU, sampling_steps=200, sampling_shift=0.3)
    restored = restore_multi_step(backbone, lq, scale=4, seeds=(0, 1), color_fix="none")
    assert restored.z is not None
    assert float(restored.z.std()) == pytest.approx(TAU, rel=0.05)
    assert float(restored.z.mean()) == pytest.approx(0.0, abs=0.02)
    assert not torch.equal(restored.sr[0], restored.sr[1])


def test_a_flow_starts_where_a_one_step_model_has_arrived() -> None:
    one = model(start_sigma=0.8)
    for parameter in one.network.parameters():
        parameter.copy_(0.1 * normal(*parameter.shape, number=parameter.numel()))
    many = model(residual_std=TAU)
    many.network.load_state_dict(flow_from_one_step(dict(one.network.state_dict()), 0.8, TAU))
    z_lq, noise = normal(2, 3, 16, 16, number=4).clamp(-1, 1), normal(2, 3, 16, 16, number=5)
    sigma = torch.ones(2)
    first_guess = many.process.clean(noise, many.predict(noise, sigma, z_lq), sigma)
    arrived = z_lq - 0.8 * one.velocity(z_lq, sigma, z_lq)
    torch.testing.assert_close(first_guess, arrived, rtol=1e-4, atol=1e-5)
    other = many.process.clean(-noise, many.predict(-noise, sigma, z_lq), sigma)
    torch.testing.assert_close(other, first_guess, rtol=1e-4, atol=1e-5)


def test_options_are_told_to_process_and_sampler_and_survive_a_file(tmp_path: Path) -> None:
    options = {**SIZES, "residual_std": TAU, "time_mean": -0.7, "time_std": 1.2, "sampling_steps": 7, "sampling_shift": 0.4}
    backbone = model(**options)
    info = {"backbone": "pixel", "architecture": "pixel", "options": backbone.options, "name": "flow"}
    save_weights(tmp_path / "flow.safetensors", dict(backbone.network.state_dict()), info)
    opened: Any = load_backbone(tmp_path / "flow.safetensors")
    for one in (backbone, opened):
        process = one.process
        assert isinstance(process, FlowProcess)
        assert (process.mean, process.std) == (-0.7, 1.2)
        assert one.spec.sampling is not None
        assert (one.spec.sampling.steps, default_shift(one, 64, 64)) == (7, 0.4)
    plain = model()
    assert plain.spec.sampling is None
    assert default_shift(plain, 64, 64) == 1.0
    restored = restore_multi_step(opened, torch.rand(1, 3, 8, 8, generator=seed(6)), scale=4)
    assert (restored.info["steps"], restored.info["shift"]) == (7, 0.4)


def test_half_precision_comes_out_close_to_single_precision() -> None:
    backbone = model(residual_std=TAU)
    for parameter in backbone.network.parameters():
        parameter.copy_(0.2 * normal(*parameter.shape, number=parameter.numel()))
    z, z_lq, sigma = normal(1, 3, 16, 16, number=7), normal(1, 3, 16, 16, number=8).clamp(-1, 1), torch.tensor([0.05])
    exact = backbone.predict(z, sigma, z_lq)
    backbone.network.bfloat16()
    rough = backbone.predict(z.bfloat16(), sigma, z_lq.bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("value", [-0.1, 3.0, float("nan")])
def test_a_deviation_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="residual_std: expected"):
        PixelBackbone({**SIZES, "residual_std": value})
