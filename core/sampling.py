"""From noise to picture in many steps: one batch of states, and whole pictures in tiles that share one state.

Every sample draws from a generator of its own, so neither its place in a batch nor its neighbours change its result. Large
pictures have one state, and so one field of noise, for the whole picture: at each step the network's answers on overlapping tiles
are blended, and the sampler moves the whole state. Tiles therefore never drift apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .backbones.base import Adjustable, Sampling
from .canvas import Canvas, Predict, Progress, guided
from .checks import check_image, check_positive_int, check_range, check_same_shape, check_unit_range
from .color import apply_color_fix
from .diffusion import MultiStepBackbone
from .flow import flux_shift
from .images import pad_to_multiple
from .records import Conditioning, Restored
from .resize import bicubic
from .restore import fitting_overlap, parameters_like
from .schedules import AUTO, Schedule, make_schedule, resolve_sampler
from .staged import Conditioner, looks, progress_of, rows_of
from .tiling import plan

_OVERSHOOT = 0.5  # of an interpolated input


@dataclass(frozen=True)
class Step:
    """What `on_step` is told.

    Attributes:
        done: network steps that are done, 1 .. total.
        total: of the run.
        time: of the state that the network saw: sigma, or a timestep.
        z: the new state, [B, C, h, w] float32.
        clean: the clean picture's latents as the network sees them now, like z: decode or project them for a preview.
    """

    done: int
    total: int
    time: float
    z: Tensor
    clean: Tensor


OnStep = Callable[[Step], None]


def seeded(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator per seed: those of (picture, seed index) are `seeded([seed + index])`, whatever the picture.

    Raises:
        ValueError: a seed outside 0 .. 2^64 - 1.
    """
    for seed in seeds:
        check_positive_int(seed, "seeds", low=0, high=2**64 - 1)
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(shape: Sequence[int], generators: Sequence[Generator]) -> Tensor:
    """Standard normal noise, one field per generator: [len(generators), *shape] float32 on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def default_shift(backbone: MultiStepBackbone, height: int, width: int) -> float:
    """The time shift for a tile of that size in pixels: the model's own, else FLUX's where it has tokens, none elsewhere."""
    if own := _own(backbone).shift:
        return own
    tokens = backbone.spec.tokens(height, width)
    return flux_shift(tokens) if tokens else 1.0


def sample(
    backbone: MultiStepBackbone,
    z_lq: Tensor,
    *,
    noise: Tensor,
    steps: int,
    sampler: str = AUTO,
    shift: float | None = None,
    conditioning: Conditioning | None = None,
    guidance: float = 1.0,
    negative: Conditioning | None = None,
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a batch, each state seen whole by the network.

    Args:
        backbone: predicts velocity or epsilon.
        z_lq: what its `encode_lq` gave, for these samples.
        noise: first state, [B, C, h, w] standard normal: `draw_noise`.
        steps: network steps.
        sampler: a key of SAMPLERS that fits the model, or `auto`.
        shift: of Euler's noise levels; None: `default_shift`.
        conditioning: what the model is told.
        guidance: true classifier-free guidance: negative + guidance (conditioned - negative). 1 asks the network once per step.
            Guidance that a model takes as an input belongs to the backbone (`Adjustable.adjusted`).
        negative: what the model is told for the second answer; None: nothing.
        generators: one per sample, needed by samplers that draw noise.
        on_step: called after each step; may raise to cancel.

    Returns:
        The final state, like noise, float32. Without gradient tracking unless the caller's mode tracks it.

    Raises:
        ValueError: shapes, numbers or names that do not fit.
        FloatingPointError: NaN or infinity; the message names step and sample.
    """
    name = resolve_sampler(sampler, backbone.process, _own(backbone).sampler)
    stride = backbone.spec.latent_stride
    level = default_shift(backbone, noise.shape[-2] * stride, noise.shape[-1] * stride) if shift is None else shift
    schedule = make_schedule(name, backbone.process, steps, level)
    if name == "ddpm" and (generators is None or len(generators) != noise.shape[0]):
        count = "none" if generators is None else len(generators)
        raise ValueError(f"generators: expected {noise.shape[0]}, one per sample, since ddpm draws noise, got {count}; pass them")
    answer = guided(backbone, guidance, conditioning, negative)

    def predict(z: Tensor, time: Tensor, where: str) -> Tensor:
        found = answer(z, time, z_lq)
        finite = torch.isfinite(found)
        if not bool(finite.all()):
            row = int((~finite).flatten(1).any(1).nonzero()[0])
            raise FloatingPointError(
                f"z: {backbone.spec.name} produced NaN or infinity {where}, in sample {row}; use another precision"
            )
        return found

    return run(backbone, predict, schedule, noise, generators or (), on_step)


def run(
    backbone: MultiStepBackbone,
    predict: Predict,
    schedule: Schedule,
    noise: Tensor,
    generators: Sequence[Generator],
    on_step: OnStep | None = None,
) -> Tensor:
    """The loop over the steps of a schedule.

        p = predict(z, t);   z = advance(z, p)

    Args:
        backbone: knows what a prediction says about the clean picture.
        predict: see `Predict`.
        schedule: fresh.
        noise: first state.
        generators: one per sample.
        on_step: see `sample`.
    """
    process, z, total = backbone.process, noise.float(), len(schedule.times)
    for index in range(total):
        time = schedule.times[index]
        times = time.expand(z.shape[0]).to(z.device)
        found = predict(z, times, f"in step {index + 1} of {total} ({_named(time)})").float()
        check_same_shape(found, z, "prediction", "z")
        before, z = z, schedule.advance(index, z, found, generators)
        if on_step is not None:
            on_step(Step(index + 1, total, float(time), z, process.clean(before, found, times)))
    return z


def _named(time: Tensor) -> str:
    return f"sigma {float(time):.3g}" if time.is_floating_point() else f"timestep {int(time)}"


def _own(backbone: MultiStepBackbone) -> Sampling:
    return backbone.spec.sampling or Sampling(sampler="")


def restore_multi_step(
    backbone: MultiStepBackbone,
    lq: Tensor,
    *,
    scale: int = 4,
    steps: int = 0,
    sampler: str = AUTO,
    shift: float | None = None,
    seeds: int | Sequence[int] = 0,
    guidance: float | None = None,
    control_scale: float | None = None,
    color_fix: str = "adain",
    conditioning: Conditioning | Conditioner | None = None,
    negative: Conditioning | Conditioner | None = None,
    tile_px: int = 0,
    overlap_px: int = -1,
    batch_size: int = 1,
    on_tile: Progress | None = None,
    on_step: OnStep | None = None,
) -> Restored:
    """Restore and upscale pictures by sampling from noise, conditioned on the bicubically enlarged input.

    Args:
        backbone: predicts velocity or epsilon; its parameters say device and dtype.
        lq: [B, 3, h, w] float32 in [0, 1], any device; the result comes back there.
        scale: upscaling factor, an integer in 1..16; 1 for inputs that are enlarged already.
        steps: network steps; 0: the model's own.
        sampler: a key of SAMPLERS that fits the model, or `auto`: the model's own.
        shift: of Euler's noise levels; None: `default_shift` of a tile.
        seeds: one for all pictures (each starts from the same noise, so its place in the batch does not matter), or one per
            picture; several for a single picture give as many results.
        guidance: the model's input, or true classifier-free guidance, as the model has it; None: its own.
        control_scale: weight of a control branch; None: 1.
        color_fix: `adain`, `wavelet` or `none`, against the enlarged input.
        conditioning: one entry per picture, one for all, or a conditioner for every tile.
        negative: the same for the negative prompt; only with classifier-free guidance.
        tile_px: largest tile that the network sees, in pixels of the result; 0: the backbone's own.
        overlap_px: overlap of tiles; -1: the backbone's own.
        batch_size: tiles per forward pass.
        on_tile: called as on_tile(done, total) after each forward pass of network, autoencoder and conditioner; may raise to
            cancel.
        on_step: called after each step with the whole pictures' states; may raise to cancel.

    Returns:
        `Restored` with the final latents, clamped to [0, 1] once at the end; one sample per picture or seed.

    Raises:
        TypeError, ValueError: not images, NaN, values far outside [0, 1], numbers or names that do not fit.
        FloatingPointError: NaN or infinity; the message names step, tile and sample.

    Source:
        ASASR, arXiv:2605.23264, specification asasr.md 3.4; DP2O-SR, arXiv:2510.18851v1, specification dp2o-sr.md 3.3 and 5.21.
        Differs from the released scripts, which restore whole pictures of 512 px with one generator for a run of many.
    """
    check_unit_range(check_image(lq, "lq", channels=(3,)).detach(), "lq", tolerance=_OVERSHOOT)
    check_positive_int(scale, "scale", high=16)
    spec, own, numbers = backbone.spec, _own(backbone), _seeds(seeds, lq.shape[0])
    if len(numbers) > lq.shape[0]:
        lq = lq.expand(len(numbers), -1, -1, -1)
    strength = check_range(own.guidance if guidance is None else guidance, "guidance", 0.0, 100.0)
    if isinstance(backbone, Adjustable):
        backbone = backbone.adjusted(guidance=strength, control_scale=1.0 if control_scale is None else control_scale)
    elif control_scale not in (None, 1.0):
        raise ValueError(f"control_scale: expected 1, since {spec.name} has no control branch, got {control_scale}; leave it out")
    true_guidance = strength if own.guidance_kind == "classifier_free" else 1.0
    size = (lq.shape[-2] * scale, lq.shape[-1] * scale)
    lq_up = bicubic(lq, size, antialias=spec.is_antialiased).clamp(0, 1)
    padded, _ = pad_to_multiple(lq_up, spec.size_multiple)
    tile = tile_px or spec.tile_px
    overlap = min(spec.overlap_px, fitting_overlap(backbone, tile)) if overlap_px < 0 else overlap_px
    tiles = plan(padded.shape[-2], padded.shape[-1], tile, overlap, spec.size_multiple)
    name = resolve_sampler(sampler, backbone.process, own.sampler)
    level = default_shift(backbone, *tiles.tile_size) if shift is None else shift
    schedule = make_schedule(name, backbone.process, steps or own.steps, level)
    canvas = Canvas(backbone, tiles, batch_size, padded.shape[0], len(schedule.times), true_guidance)
    tells = (conditioning, negative)
    *looking, canvas.on_tile = progress_of(on_tile, *(looks(told, lq.shape[0], tiles) for told in tells), canvas.total)
    rows = [
        rows_of(told, lq.shape[0], tiles, scale, backbone=backbone, on_tile=seen)
        for told, seen in zip(tells, looking, strict=True)
    ]
    z_lq, generators = canvas.encode(padded), seeded(numbers)
    noise = draw_noise((spec.latent_channels, canvas.grid.height, canvas.grid.width), generators).to(lq.device)
    z = run(backbone, canvas.predictor(z_lq, rows[0], rows[1]), schedule, noise, generators, on_step)
    sr = canvas.decode(z)[..., : size[0], : size[1]].to(lq.device)
    like = parameters_like(backbone)
    info = {
        "backbone": spec.name,
        "scale": scale,
        "size": [size[1], size[0]],
        "tile_px": tile,
        "overlap_px": overlap,
        "tiles": padded.shape[0] * len(tiles.starts),
        "steps": len(schedule.times),
        "sampler": name,
        **({"shift": level} if name == "euler" else {}),
        "seeds": numbers,
        "guidance": strength if own.guidance_kind != "none" else None,
        "control_scale": control_scale,
        "color_fix": color_fix,
        "device": str(like.device),
        "dtype": str(like.dtype).removeprefix("torch."),
    }
    return Restored(apply_color_fix(sr, lq_up, color_fix).clamp(0, 1), lq_up, info, z)


def _seeds(seeds: int | Sequence[int], batch: int) -> list[int]:
    numbers = [seeds] * batch if isinstance(seeds, int) else list(seeds)
    if not numbers or (len(numbers) != batch and batch != 1):
        raise ValueError(f"seeds: expected one, or one for each of {batch} pictures, got {len(numbers)}; pass as many")
    return numbers
