"""The two processes: hand-worked states, round trips, distributions of times, diffusers' scheduler beside ours."""

import math

import pytest
import torch
from torch import Tensor

from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.diffusion import FlowProcess, MultiStepBackbone, VariancePreserving, as_multi_step, scaled_linear

PROCESSES = {"flow": FlowProcess(), "vp": VariancePreserving()}


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(count, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean, noise


@pytest.mark.parametrize("name", PROCESSES)
class TestEveryProcess:
    def test_the_target_leads_back_to_both_ends(self, name: str) -> None:
        process = PROCESSES[name]
        clean, noise = batch()
        time = process.draw_times(4, generator=torch.Generator().manual_seed(1))
        noisy, target = process.add_noise(clean, noise, time), process.target(clean, noise)
        assert torch.allclose(process.clean(noisy, target, time), clean, atol=1e-6)
        assert torch.allclose(process.noise(noisy, target, time), noise, atol=1e-6)

    def test_keeps_the_dtype(self, name: str) -> None:
        process = PROCESSES[name]
        clean, noise = (x.bfloat16() for x in batch())
        time = process.draw_times(4, generator=torch.Generator().manual_seed(1))
        assert process.add_noise(clean, noise, time).dtype == torch.bfloat16

    def test_same_generator_same_times(self, name: str) -> None:
        first, second = (PROCESSES[name].draw_times(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)

    def test_other_shapes_are_named(self, name: str) -> None:
        clean, noise = batch()
        time = PROCESSES[name].draw_times(4, generator=torch.Generator().manual_seed(1))
        with pytest.raises(ValueError, match=r"clean.*noise"):
            PROCESSES[name].add_noise(clean, noise[:, :1], time)


class TestFlow:
    def test_times_are_logit_normal(self) -> None:
        times = FlowProcess().draw_times(20_000, generator=torch.Generator().manual_seed(0))
        logits = torch.logit(times)
        assert bool(((times > 0) & (times < 1)).all())
        assert abs(float(logits.mean())) < 0.03
        assert abs(float(logits.std()) - 1) < 0.03

    def test_bad_distribution_is_named(self) -> None:
        with pytest.raises(ValueError, match="std above 0"):
            FlowProcess(std=0)


class TestVariancePreserving:
    def test_by_hand(self) -> None:
        process = VariancePreserving(torch.tensor([1.0, 0.64]))
        clean, noise, time = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1])
        assert torch.allclose(process.add_noise(clean, noise, time), torch.tensor([[1.0], [0.8 + 1.2]]))
        assert torch.allclose(process.clean(torch.tensor([[2.0], [2.0]]), noise, time), torch.tensor([[2.0], [1.0]]))

    def test_variance_is_preserved(self) -> None:
        signal, spread = VariancePreserving().scales(torch.arange(1000), torch.zeros(1000, 1))
        assert torch.allclose(signal.square() + spread.square(), torch.ones(1000, 1), atol=1e-6)

    def test_is_the_scheduler_of_stable_diffusion(self) -> None:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
        assert torch.allclose(scheduler.alphas_cumprod.double(), scaled_linear(), atol=1e-6)
        clean, noise = (x.float() for x in batch())
        time = torch.tensor([0, 250, 500, 999])
        expected = scheduler.add_noise(clean, noise, time)
        assert torch.allclose(VariancePreserving().add_noise(clean, noise, time), expected, atol=1e-5)

    def test_times_cover_the_range_evenly(self) -> None:
        times = VariancePreserving().draw_times(20_000, generator=torch.Generator().manual_seed(0))
        assert times.dtype == torch.int64
        assert (int(times.min()), int(times.max())) == (0, 999)
        assert abs(float(times.double().mean()) - 499.5) < 4 * 1000 / math.sqrt(12 * 20_000)

    def test_a_sigma_is_refused(self) -> None:
        clean, noise = batch()
        with pytest.raises(ValueError, match="a sigma belongs to a flow"):
            VariancePreserving().add_noise(clean, noise, torch.full((4,), 0.5))

    @pytest.mark.parametrize("values", [[], [[0.5]], [0.5, 0.6], [0.0], [1.5]])
    def test_bad_schedule_is_named(self, values: list[float]) -> None:
        with pytest.raises(ValueError, match="alphas_cumprod"):
            VariancePreserving(torch.tensor(values))


def test_pixel_is_a_multi_step_backbone() -> None:
    backbone = PixelBackbone({"width": 16, "heads": 2, "layers": 1})
    assert isinstance(backbone, MultiStepBackbone)
    assert as_multi_step(backbone) is backbone
    z = torch.rand(1, 3, 16, 16)
    time = torch.tensor([0.3])
    assert torch.equal(backbone.predict(z, time, z), backbone.velocity(z, time, z))
    assert torch.equal(backbone.encode_lq(z), z)


def test_others_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="expected a model that is sampled in many steps"):
        as_multi_step(object())
