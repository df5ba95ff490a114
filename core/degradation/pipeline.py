"""From a clean image to a degraded one: draw per sample, then apply, one sample at a time on a CPU and all together on a GPU."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_finite, check_image, describe, did_you_mean
from ..resize import imresize
from .blur import filter_images, sinc_kernel, smooth_kernel
from .draw import Step, draw_steps
from .jpeg import jpeg_codec, jpeg_differentiable, jpeg_diffjpeg, round_straight
from .noise import gaussian_field, poisson_counts, poisson_field, random_bits
from .presets import DegradationConfig, find_config
from .sharpen import sharpen

JpegForm = Literal["codec", "differentiable", "diffjpeg"]
_JPEG_FORMS: dict[str, Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]] = {
    "codec": jpeg_codec,
    "differentiable": jpeg_differentiable,
    "diffjpeg": jpeg_diffjpeg,
}
_LUMA = (0.2989, 0.587, 0.114)


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
        ValueError: unknown preset, bad shape, NaN, scale or number of seeds.
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
    # A sum shows NaN and infinity ten times faster than looking at every value; the slow check then words the message.
    if not math.isfinite(float(gt.detach().sum())):
        check_finite(gt, "gt")


def _run(gt: Tensor, params: Sequence[dict[str, Any]], jpeg: JpegForm) -> Degraded:
    if jpeg not in _JPEG_FORMS:
        raise ValueError(
            f"jpeg: expected one of {', '.join(_JPEG_FORMS)}, got {jpeg!r}; {did_you_mean(str(jpeg), list(_JPEG_FORMS))}"
        )
    sharpened = gt
    wants_sharp = [bool(p.get("sharpen_input") or p.get("sharpen_target")) for p in params]
    if any(wants_sharp):
        sharpened = sharpen(gt)
    start = [(sharpened if p.get("sharpen_input") else gt)[b] for b, p in enumerate(params)]
    target = torch.stack([(sharpened if p.get("sharpen_target") else gt)[b] for b, p in enumerate(params)])
    steps = [_check_steps(p) for p in params]
    if gt.device.type == "cpu":
        small = [_apply_steps([image], [own], jpeg)[0] for image, own in zip(start, steps, strict=True)]
    else:
        small = _apply_steps(start, steps, jpeg)
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


def _apply_steps(images: list[Tensor], steps: list[list[Step]], jpeg: str) -> list[Tensor]:
    """Advance all samples one step at a time; samples whose next steps are of one kind are done together."""
    current = [image.float() for image in images]
    for position in range(max(len(own) for own in steps)):
        groups: dict[str, list[int]] = {}
        for b, own in enumerate(steps):
            if position < len(own):
                groups.setdefault(str(own[position]["op"]), []).append(b)
        for op, members in groups.items():
            done = _apply_op(op, [current[b] for b in members], [steps[b][position] for b in members], jpeg)
            for b, image in zip(members, done, strict=True):
                current[b] = image
    return current


_NEEDED = {
    "blur": ("kernel",),
    "resize": ("mode", "size"),
    "noise": ("kind", "grey", "key"),
    "jpeg": ("quality",),
    "bicubic": ("size",),
}


def _check_steps(record: dict[str, Any]) -> list[Step]:
    if "steps" not in record:
        raise ValueError(
            f"params: expected a record with 'steps', got the keys {sorted(record)}; pass records that degrade returned"
        )
    for step in record["steps"]:
        op = str(step.get("op"))
        if op not in _NEEDED:
            hint = did_you_mean(op, list(_NEEDED))
            raise ValueError(f"params: expected steps whose op is one of {', '.join(_NEEDED)}, got {op!r}; {hint}")
        for key in _NEEDED[op]:
            if key not in step:
                raise ValueError(f"params: expected {key!r} in a {op} step, got the keys {sorted(step)}; see draw.draw_steps")
    return list(record["steps"])


def _apply_op(op: str, images: list[Tensor], steps: list[Step], jpeg: str) -> list[Tensor]:
    if op == "blur":
        return _blur(images, [step["kernel"] for step in steps])
    if op == "resize":
        return [resize(image, step["mode"], step["size"], step.get("factor")) for image, step in zip(images, steps, strict=True)]
    if op == "noise":
        return _add_noise(images, steps)
    if op == "jpeg":
        return _JPEG_FORMS[jpeg](images, [step["quality"] for step in steps])
    return [_shrink(image, step["size"]) for image, step in zip(images, steps, strict=True)]


def make_kernel(record: dict[str, Any], *, pad_to: int | None = None) -> Tensor:
    """Build the kernel of a blur step's record.

    Args:
        record: {"kind", "size", "sigma_x", ...} with the arguments of `smooth_kernel`, or {"kind": "sinc", "size", "cutoff"}.
        pad_to: zero-pad to this odd side.

    Returns:
        [size, size] (or [pad_to, pad_to]) float64, sum 1.
    """
    numbers = {name: value for name, value in record.items() if name not in ("kind", "size")}
    if record["kind"] == "sinc":
        return sinc_kernel(record["size"], numbers["cutoff"], pad_to=pad_to)
    return smooth_kernel(record["kind"], record["size"], pad_to=pad_to, **numbers)


def _blur(images: list[Tensor], records: list[dict[str, Any] | None]) -> list[Tensor]:
    chosen = [b for b, record in enumerate(records) if record is not None]
    out = list(images)
    if chosen:
        kernels = [make_kernel(record) for record in records if record is not None]
        for b, image in zip(chosen, filter_images([images[b] for b in chosen], kernels), strict=True):
            out[b] = image
    return out


def resize(image: Tensor, mode: str, size: Sequence[int], factor: float | None = None) -> Tensor:
    """Interpolate without antialiasing, as the official chains do.

    Args:
        image: [C, H, W] float.
        mode: one of presets.RESIZE_MODES.
        size: (height, width) of the result.
        factor: where given, sample positions follow this factor, not the ratio of sizes; needs `size` = int(side * factor).

    Returns:
        [C, *size]. Bicubic (a = -0.75) overshoots; not clamped.

    Source:
        Golden case c08_degradation/resize.
    """
    height, width = image.shape[-2:]
    wanted = (int(size[0]), int(size[1]))
    if wanted == (height, width) and factor in (None, 1.0):
        return image
    if factor is not None and mode != "area" and wanted == (int(height * factor), int(width * factor)):
        return F.interpolate(image[None], scale_factor=factor, mode=mode)[0]
    return F.interpolate(image[None], size=wanted, mode=mode)[0]


def _shrink(image: Tensor, size: Sequence[int]) -> Tensor:
    wanted = (int(size[0]), int(size[1]))
    if wanted == tuple(image.shape[-2:]):
        return image
    return imresize(image[None], wanted[0] / image.shape[-2], wanted)[0]


def _add_noise(images: list[Tensor], steps: list[Step]) -> list[Tensor]:
    """Add each sample's noise and clamp to [0, 1]; the noise itself is a constant for the gradient."""
    out = list(images)
    groups: dict[tuple[str, bool], list[int]] = {}
    for b, step in enumerate(steps):
        groups.setdefault((step["kind"], bool(step["grey"])), []).append(b)
    for (kind, grey), members in groups.items():
        clean = [images[b].detach() for b in members]
        height, width = max(i.shape[-2] for i in clean), max(i.shape[-1] for i in clean)
        device = clean[0].device
        bits = random_bits([tuple(steps[b]["key"]) for b in members], 1 if grey else 3, height, width, device)
        if kind == "gaussian":
            field = gaussian_field(bits)
            strength = [steps[b]["std_255"] / 255.0 for b in members]
        else:
            levels = [_levels(image, grey) for image in clean]
            counts = [poisson_counts(level[None])[0] for level in levels]
            canvas = torch.stack([F.pad(level, (0, width - level.shape[-1], 0, height - level.shape[-2])) for level in levels])
            field = poisson_field(canvas, bits, counts)
            strength = [steps[b]["scale"] for b in members]
        for k, b in enumerate(members):
            own = field[k, :, : images[b].shape[-2], : images[b].shape[-1]]
            out[b] = torch.add(images[b], own, alpha=strength[k]).clamp(0, 1)
    return out


def _levels(image: Tensor, grey: bool) -> Tensor:
    """The 8-bit levels of an image, or of its luma, as int32 [C, H, W]."""
    if grey:
        image = (image * torch.tensor(_LUMA, dtype=image.dtype, device=image.device)[:, None, None]).sum(0, keepdim=True)
    return (image * 255.0).round().clamp(0, 255).to(torch.int32)
