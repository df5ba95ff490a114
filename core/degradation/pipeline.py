"""From a clean image to a degraded one: draw per sample, then apply, one sample at a time on a CPU and all together on a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_image, check_unit_range, describe, did_you_mean
from .draw import draw_steps
from .jpeg import round_straight
from .parallel import side_by_side
from .presets import DegradationConfig, find_config
from .sharpen import sharpen
from .steps import JPEG_FORMS, apply_steps, check_steps

_OVERSHOOT = 0.5  # of an interpolated input; [0, 255] and [-1, 1] lie beyond it

JpegForm = Literal["codec", "differentiable", "diffjpeg"]


@dataclass(frozen=True)
class Degraded:
    """A training pair and how it was made."""

    lq: Tensor
    """Degraded image, [B, 3, h, w], range [0, 1]."""
    gt: Tensor
    """Target, [B, 3, H, W], range [0, 1]: the input, sharpened where the configuration says so."""
    params: list[dict[str, Any]]
    """One plain record per sample, see `replay`; `json.dumps` takes it."""
    lq_up: Tensor | None = None
    """`lq` enlarged to the target's size (bicubic, 8 bit) where the configuration says so, [B, 3, H, W]."""


def lq_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The size of the degraded image: each side divided by `scale`, rounded half up, at least 1.

    Example:
        >>> lq_size(257, 510, 4)
        (64, 128)
    """
    return max(1, math.floor(height / scale + 0.5)), max(1, math.floor(width / scale + 0.5))


def degrade(
    gt: Tensor,
    config: DegradationConfig | str,
    *,
    seeds: Sequence[int],
    scale: float = 4,
    jpeg: JpegForm = "codec",
    sharpen_target: bool | None = None,
) -> Degraded:
    """Degrade each image with parameters of its own.

    Everything random about sample b comes from a generator seeded with seeds[b]: on a CPU the same seed gives the same bits
    whatever else is in the batch; other devices differ by float rounding. (The official chains share the resize factor and mode,
    the noise family, the second blur and the order of the last step among a batch, and mix batches in a pool instead.)

    Args:
        gt: clean images, [B, 3, H, W] float, range [0, 1], any device.
        config: a preset's name (see `PRESETS`) or a configuration.
        seeds: B integers in -2^63..2^64-1.
        scale: shrinking factor >= 1, not necessarily whole; the result has the size `lq_size(H, W, scale)`.
        jpeg: "codec" (libjpeg, no gradient), "differentiable" (its model; gradients flow from lq to gt) or "diffjpeg" (what the
            official training code simulates).
        sharpen_target: whether `Degraded.gt` is sharpened; None leaves it to the configuration.

    Returns:
        Degraded with lq of gt's dtype and device.

    Raises:
        ValueError: unknown preset, bad shape, NaN, values far outside [0, 1], scale or number of seeds.
        TypeError: seeds that are not integers.

    Source:
        Wang et al. 2021, arXiv:2107.10833, section 3; specifications strsr 2.2, aesop 4.2, asasr 4.2, dp2o-sr 5.22.

    Example:
        >>> pair = degrade(torch.rand(1, 3, 64, 48), "realesrgan", seeds=[7])
        >>> tuple(pair.lq.shape), pair.params[0]["steps"][3]["op"]
        ((1, 3, 16, 12), 'jpeg')
    """
    _check_gt(gt)
    chosen = find_config(config)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale >= 1):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"scale: expected a finite number >= 1, got {scale!r}; 4 makes the image four times smaller")
    if len(seeds) != gt.shape[0]:
        raise ValueError(
            f"seeds: expected one per image ({gt.shape[0]}), got {len(seeds)}; pass a list of {gt.shape[0]} integers"
        )
    gt_size = (gt.shape[-2], gt.shape[-1])
    params: list[dict[str, Any]] = []
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"seeds: expected integers, got {describe(seed)}; convert them with int()")
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"seeds: expected integers in -2^63..2^64-1, got {seed}; take the remainder by 2^64")
        generator = torch.Generator().manual_seed(seed)
        small = lq_size(*gt_size, scale)
        params.append(
            {
                "config": chosen.name,
                "seed": seed,
                "scale": float(scale),
                "gt_size": list(gt_size),
                "lq_size": list(small),
                "sharpen_input": chosen.sharpen_input,
                "sharpen_target": chosen.sharpen_target if sharpen_target is None else sharpen_target,
                "round_lq": chosen.round_lq,
                "resize_back": chosen.resize_back,
                "steps": draw_steps(chosen, gt_size, small, scale, generator=generator),
            }
        )
    return _run(gt, params, jpeg)


def replay(gt: Tensor, params: Sequence[dict[str, Any]], *, jpeg: JpegForm = "codec") -> Degraded:
    """Apply recorded parameters without drawing anything.

    Args:
        gt: clean images, [B, 3, H, W] float, range [0, 1], any device.
        params: B records as `degrade` returns them. Needed in each: `steps` (see `draw.draw_steps`); taken if present:
            `sharpen_input`, `sharpen_target`, `resize_back` (default False) and `round_lq` (default True).
        jpeg: as in `degrade`.

    Returns:
        Degraded with the same records; with the image and records of `degrade` the same result bit for bit on a CPU.

    Raises:
        ValueError: number of records, unknown step or form of JPEG, samples that end in different sizes.
    """
    _check_gt(gt)
    if len(params) != gt.shape[0]:
        raise ValueError(
            f"params: expected one record per image ({gt.shape[0]}), got {len(params)}; pass the records of this batch"
        )
    return _run(gt, params, jpeg)


def _check_gt(gt: Tensor) -> None:
    check_image(gt, "gt", channels=(3,))
    # The extremes show NaN, infinity and another range in one pass; the slow check then words the message.
    low, high = gt.detach().aminmax()
    if not (float(low) >= -_OVERSHOOT and float(high) <= 1 + _OVERSHOOT):
        check_unit_range(gt.detach(), "gt", tolerance=_OVERSHOOT)


def _run(gt: Tensor, params: Sequence[dict[str, Any]], jpeg: JpegForm) -> Degraded:
    if jpeg not in JPEG_FORMS:
        raise ValueError(
            f"jpeg: expected one of {', '.join(JPEG_FORMS)}, got {jpeg!r}; {did_you_mean(str(jpeg), list(JPEG_FORMS))}"
        )
    steps = [check_steps(p) for p in params]

    def some(members: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """(target, degraded image) of these samples."""
        own = [params[b] for b in members]
        clean = gt[members[0] : members[-1] + 1]
        sharpened = sharpen(clean) if any(p.get("sharpen_input") or p.get("sharpen_target") for p in own) else clean
        start = [(sharpened if p.get("sharpen_input") else clean)[k] for k, p in enumerate(own)]
        targets = [(sharpened if p.get("sharpen_target") else clean)[k] for k, p in enumerate(own)]
        return list(zip(targets, apply_steps(start, [steps[b] for b in members], jpeg), strict=True))

    everyone = range(gt.shape[0])
    pairs = some(everyone) if gt.device.type != "cpu" else [pair for [pair] in side_by_side(lambda b: some([b]), len(everyone))]
    target, small = torch.stack([pair[0] for pair in pairs]), [pair[1] for pair in pairs]
    sizes = sorted({tuple(image.shape[-2:]) for image in small})
    if len(sizes) > 1:
        raise ValueError(f"params: expected samples that end in one size, got {sizes}; degrade them apart")
    rounds = [bool(p.get("round_lq", True)) for p in params]
    finished = [_to_8bit(image) if rounded else image.clamp(0, 1) for image, rounded in zip(small, rounds, strict=True)]
    lq = torch.stack(finished).to(gt.dtype)
    lq_up = None
    if any(p.get("resize_back") for p in params):
        lq_up = _to_8bit(F.interpolate(lq, size=gt.shape[-2:], mode="bicubic"))
    return Degraded(lq, target, [dict(p) for p in params], lq_up)


def _to_8bit(x: Tensor) -> Tensor:
    return round_straight(x.clamp(0, 1) * 255.0) / 255.0
