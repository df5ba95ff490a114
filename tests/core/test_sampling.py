"""Sampling from noise: exact on known models, one state for all tiles, one generator per picture, steps that can be cancelled."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from multi_step_helpers import VP, Known, picture
from torch import Generator, Tensor

from alignsr.core.backbones.base import Sampling
from alignsr.core.compat import import_third_party
from alignsr.core.diffusion import FlowProcess, MultiStepBackbone, Process
from alignsr.core.flow import flux_shift
from alignsr.core.records import Conditioning
from alignsr.core.sampling import Step, default_shift, draw_noise, restore_multi_step, sample, seeded
from alignsr.core.schedules import SAMPLERS, make_schedule, resolve_sampler


def test_the_models_of_the_test_follow_the_protocol() -> None:
    assert isinstance(Known(), MultiStepBackbone)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_ends_at_what_a_perfect_model_says(sampler: str) -> None:
    model = Known(FlowProcess() if SAMPLERS[sampler] == "velocity" else VP)
    z_lq = model.encode(picture(32, 32))
    generators = seeded([3])
    z = sample(model, z_lq, noise=draw_noise(z_lq.shape[1:], generators), steps=12, sampler=sampler, generators=generators)
    assert torch.allclose(z, z_lq, atol=0.15 if sampler == "ddim" else 1e-4)  # Stable Diffusion's DDIM keeps the noise of level 0


def test_noise_levels_equal_those_of_the_flux_pipeline() -> None:
    schedulers = import_third_party("diffusers.schedulers")
    numpy = import_third_party("numpy")
    theirs = schedulers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=numpy.linspace(1.0, 1 / 28, 28), mu=0.63)  # mu at 1024 tokens, dp2o-sr.md 3.3
    ours = make_schedule("euler", FlowProcess(), 28, flux_shift(1024))
    assert torch.allclose(ours.times, theirs.sigmas[:-1], atol=1e-6)


def test_steps_equal_those_of_diffusers_run_by_hand() -> None:
    schedulers = import_third_party("diffusers.schedulers")
    theirs = schedulers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
    )  # fmt: skip
    theirs.set_timesteps(50)
    ours = make_schedule("ddpm", VP, 50)
    assert ours.times.tolist() == theirs.timesteps.tolist() == list(range(981, 0, -20))
    z, answer = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    found = ours.advance(7, z, answer, seeded([1, 2]))
    wanted = [theirs.step(answer[i : i + 1], theirs.timesteps[7], z[i : i + 1], generator=seeded([i + 1])[0]) for i in (0, 1)]
    assert torch.allclose(found, torch.cat([one.prev_sample for one in wanted]), atol=1e-5)


def test_shift_follows_the_tokens_of_a_tile_and_is_none_without_tokens() -> None:
    assert default_shift(Known(), 512, 512) == flux_shift(1024)
    assert default_shift(Known(token_px=0), 512, 512) == 1.0


def test_guidance_asks_twice_and_follows_its_formula() -> None:
    model = Known(VP)
    z_lq = model.encode(picture(16, 16))
    told, not_told = (Conditioning(torch.full((1, 1, 2), value)) for value in (0.25, -0.5))
    noise = draw_noise(z_lq.shape[1:], seeded([0]))
    options: dict[str, Any] = {"noise": noise, "steps": 3, "sampler": "dpm", "conditioning": told}
    sample(model, z_lq, **options, negative=not_told)
    assert len(model.told) == 3  # guidance 1: the negative prompt is not asked for
    z = sample(model, z_lq, **options, negative=not_told, guidance=3.5)
    assert [told is not_told for told in model.told[3:]] == [False, True] * 3
    assert torch.allclose(z, z_lq + (-0.5 + 3.5 * 0.75), atol=1e-4)


@pytest.mark.parametrize("process", [FlowProcess(), VP], ids=["flow", "vp"])
def test_a_picture_depends_on_its_seed_and_on_nothing_else_in_the_batch(process: Process) -> None:
    model, lq = Known(process, spread=0.1), picture(12, 20, batch=3)
    options: dict[str, Any] = {"steps": 4, "color_fix": "none"}
    together = restore_multi_step(model, lq, seeds=[5, 6, 7], **options).sr
    turned = restore_multi_step(model, lq.flip(0), seeds=[7, 6, 5], **options).sr
    alone = restore_multi_step(model, lq[1:2], seeds=6, **options).sr
    assert torch.equal(together, turned.flip(0)) and torch.equal(together[1:2], alone)
    several = restore_multi_step(model, lq[1:2], seeds=[6, 6, 8], **options).sr
    assert torch.equal(several[0], several[1]) and torch.equal(several[:1], alone)
    assert not torch.equal(several[2], several[0])


@pytest.mark.parametrize("sampler", ["euler", "ddpm"])
def test_tiles_share_one_state(sampler: str) -> None:
    """A model that looks at one latent at a time cannot tell tiles from the whole, fresh noise of every step included."""
    model, lq = Known(FlowProcess() if sampler == "euler" else VP), picture(25, 40)
    options: dict[str, Any] = {"steps": 5, "sampler": sampler, "seeds": 4, "shift": 1.0, "color_fix": "none"}
    whole, tiled = (restore_multi_step(model, lq, tile_px=tile, overlap_px=32, **options) for tile in (256, 64))
    assert (whole.info["tiles"], tiled.info["tiles"]) == (1, 12)
    assert whole.z is not None and tiled.z is not None
    assert torch.allclose(whole.z, tiled.z, atol=1e-4) and torch.allclose(whole.sr, tiled.sr, atol=1e-5)
    apart = Known(model.process, spread=0.5)
    assert not torch.allclose(restore_multi_step(apart, lq, tile_px=64, **options).sr, whole.sr, atol=1e-3)


class Hinted(Known):
    """Takes the picture itself as condition, or a coarser one: `factor` condition elements per latent."""

    factor = 8.0

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        return F.interpolate(image, scale_factor=self.factor / 8, mode="area")

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        assert z_lq.shape[-2:] == (z.shape[-2] * self.factor, z.shape[-1] * self.factor)
        goal = F.interpolate(z_lq.mean(1, keepdim=True), z.shape[-2:], mode="area").expand(z.shape)
        return super().predict(z, time, goal, conditioning)


@pytest.mark.parametrize("factor", [8.0, 0.5])
def test_conditions_of_other_sizes_are_cut_to_the_tiles(factor: float) -> None:
    model = Hinted(size_multiple=32)
    model.factor = factor
    options: dict[str, Any] = {"steps": 2, "scale": 2, "shift": 1.0}
    whole, tiled = (restore_multi_step(model, picture(40, 64), tile_px=t, overlap_px=32, **options) for t in (256, 96))
    assert tiled.info["tiles"] == 2 and torch.allclose(whole.sr, tiled.sr, atol=1e-4)


def test_colour_fix_and_facts() -> None:
    model, lq = Known(sampling=Sampling(steps=3)), picture(8, 8)
    dark = Conditioning(torch.full((1, 1, 2), -0.3))
    fixed, plain = (restore_multi_step(model, lq, conditioning=dark, color_fix=fix) for fix in ("adain", "none"))
    assert abs(float(fixed.sr.mean() - fixed.lq_up.mean())) < 2e-3 < float(plain.lq_up.mean() - plain.sr.mean())
    assert fixed.info | {"shift": 0} == {
        "backbone": "known", "scale": 4, "size": [32, 32], "tile_px": 256, "overlap_px": 32, "tiles": 1, "steps": 3,
        "sampler": "euler", "shift": 0, "seeds": [0], "guidance": None, "control_scale": None, "color_fix": "adain",
        "device": "cpu", "dtype": "float32",
    }  # fmt: skip


def test_each_picture_and_tile_gets_its_own_rows() -> None:
    model = Known()
    told = Conditioning(torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 1, 2), pooled=torch.tensor([[5.0], [6.0]]))
    restore_multi_step(model, picture(16, 16, batch=2), steps=1, conditioning=told, batch_size=2)
    (found,) = model.told
    assert found is not None and found.pooled is not None
    assert found.embeddings[:, 0, 0].tolist() == [0, 1] and found.pooled.flatten().tolist() == [5, 6]


def test_progress_counts_every_pass_and_steps_show_the_clean_picture() -> None:
    model, passes, steps = Known(), list[tuple[int, int]](), list[Step]()
    lq = picture(24, 40)
    restored = restore_multi_step(
        model, lq, steps=3, tile_px=96, batch_size=4, on_tile=lambda done, total: passes.append((done, total)),
        on_step=steps.append,
    )  # fmt: skip
    assert passes == [(done, 10) for done in range(2, 11, 2)]
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(torch.allclose(step.clean, model.encode(restored.lq_up * 2 - 1), atol=1e-4) for step in steps)


class StopError(Exception):
    """Stands in for a host's cancel."""


def test_cancel_comes_through_within_a_step() -> None:
    model = Known()

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise StopError

    with pytest.raises(StopError):
        restore_multi_step(model, picture(24, 40), steps=3, tile_px=64, overlap_px=16, on_tile=stop)
    assert 0 < len(model.told) < 8


@pytest.mark.parametrize(("part", "where"), [("predict", r"in step 2 of 3 \(sigma 0.\d+\)"), ("decode", "when decoding")])
def test_nan_names_step_tile_and_sample(part: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Known(), []
    real = getattr(model, part)

    def broken(*given: Any) -> Tensor:
        calls.append(1)
        return real(*given) * (float("nan") if len(calls) == (16 if part == "predict" else 4) else 1)

    monkeypatch.setattr(model, part, broken)
    tile = f"row 32, column 32 of sample {1 if part == 'predict' else 0}"
    with pytest.raises(FloatingPointError, match=rf"known produced NaN or infinity {where}, in the tile at {tile}"):
        restore_multi_step(model, picture(24, 24, batch=2), steps=3, tile_px=64)
    if part == "predict":
        del calls[7:]
        z_lq = model.encode(picture(16, 16))
        with pytest.raises(FloatingPointError, match=r"in step 9 of 10 \(sigma 0.\d+\), in sample 0; use another precision"):
            sample(model, z_lq, noise=torch.zeros_like(z_lq), steps=10)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "ddim"}, "sampler: expected euler for a model that predicts velocity, got 'ddim'; use auto"),
    ({"sampler": "eular"}, "sampler: expected one of auto, euler.*did you mean 'euler'"),
    ({"steps": -1}, "steps: expected an integer in 1..1000, got -1"),
    ({"steps": 2.5}, "steps: expected an integer in 1..1000, got float 2.5"),
    ({"seeds": [1, 2]}, "seeds: expected one, or one for each of 3 pictures, got 2"),
    ({"seeds": -1}, "seeds: expected an integer in 0..18446744073709551615, got -1"),
    ({"guidance": -1.0}, r"guidance: expected a number in \[0, 100\], got -1.0"),
    ({"control_scale": 0.5}, "control_scale: expected 1, since known has no control branch, got 0.5"),
    ({"tile_px": 8}, "tile_px: expected at least 16"),
    ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
    ({"color_fix": "blue"}, "expected one of wavelet, adain, none, got 'blue'"),
    ({"scale": 0}, "scale: expected an integer in 1..16"),
    ({"shift": 0.0}, "shift: expected a number above 0"),
    ({"conditioning": Conditioning(torch.zeros(2, 1, 2))}, "conditioning: expected 1 or 3 entries"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(row[0])) + str(i) for i, row in enumerate(BAD)])
def test_bad_input_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        restore_multi_step(Known(), picture(8, 8, batch=3), **options)


def test_bad_pictures_and_missing_generators() -> None:
    with pytest.raises(ValueError, match="lq: expected finite values"):
        restore_multi_step(Known(), picture(8, 8) * float("nan"))
    z_lq = Known().encode(picture(16, 16))
    with pytest.raises(ValueError, match="generators: expected 1, one per sample, since ddpm draws noise, got none; pass them"):
        sample(Known(VP), z_lq, noise=torch.zeros_like(z_lq), steps=2)
    with pytest.raises(ValueError, match=r"steps: expected an integer in 1..999, got 1000"):
        make_schedule("ddim", VP, 1000)
    assert resolve_sampler("auto", VP) == "ddpm" and resolve_sampler("auto", VP, "ddim") == "ddim"


def test_any_size_from_one_pixel() -> None:
    for size in ((1, 1), (1, 9), (17, 5)):
        for scale in (1, 4):
            assert restore_multi_step(Known(), picture(*size), scale=scale, steps=1).sr.shape[-2:] == tuple(
                s * scale for s in size
            )
