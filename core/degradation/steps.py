"""The steps of a chain, each applied to a list of images of any sizes with a record of its own for every image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import did_you_mean
from ..resize import imresize
from .blur import filter_images, filter_separable, gaussian_taps, sinc_kernel, smooth_kernel
from .draw import Step
from .jpeg import jpeg_codec, jpeg_differentiable, jpeg_diffjpeg
from .noise import gaussian_field, poisson_counts, poisson_field, random_bits

JPEG_FORMS: dict[str, Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]] = {
    "codec": jpeg_codec,
    "differentiable": jpeg_differentiable,
    "diffjpeg": jpeg_diffjpeg,
}
_LUMA = (0.2989, 0.587, 0.114)


def apply_steps(images: list[Tensor], steps: list[list[Step]], jpeg: str) -> list[Tensor]:
    """Advance all samples one step at a time; samples whose next steps are of one kind are done together.

    Args:
        images: B images [3, H_b, W_b], range [0, 1], on one device.
        steps: B lists of steps, see `draw.draw_steps`.
        jpeg: one of JPEG_FORMS.

    Returns:
        B images; rounding and the last clamp are left to the caller.
    """
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


def check_steps(record: dict[str, Any]) -> list[Step]:
    """Return the steps of a record after looking for what `apply_steps` needs.

    Raises:
        ValueError: no steps, an unknown step or a step without one of its entries.
    """
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
        return JPEG_FORMS[jpeg](images, [step["quality"] for step in steps])
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
    out = list(images)
    through_fft: list[int] = []
    for b, record in enumerate(records):
        if record is None:
            continue
        if record["kind"] == "iso" and images[b].device.type == "cpu":
            out[b] = filter_separable(
                images[b], gaussian_taps(record["size"], record["sigma_x"])
            )  # half the time of the transform
        else:
            through_fft.append(b)
    if through_fft:
        kernels = [make_kernel(record) for b, record in enumerate(records) if record is not None and b in through_fft]
        for b, image in zip(through_fft, filter_images([images[b] for b in through_fft], kernels), strict=True):
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
        canvas = _canvas([images[b].detach() for b in members])
        bits = random_bits(
            [tuple(steps[b]["key"]) for b in members], 1 if grey else 3, canvas.shape[-2], canvas.shape[-1], canvas.device
        )
        if kind == "gaussian":
            field = gaussian_field(bits)
            strength = [steps[b]["std_255"] / 255.0 for b in members]
        else:
            levels = _levels(canvas, grey)
            field = poisson_field(levels, bits, poisson_counts(levels))
            strength = [steps[b]["scale"] for b in members]
        for k, b in enumerate(members):
            own = field[k, :, : images[b].shape[-2], : images[b].shape[-1]]
            out[b] = torch.add(images[b], own, alpha=strength[k]).clamp(0, 1)
    return out


def _canvas(images: list[Tensor]) -> Tensor:
    """Stack images of different sizes, filled up by their last row and column, which adds no new value to any of them."""
    height, width = max(i.shape[-2] for i in images), max(i.shape[-1] for i in images)
    filled = [image[None] for image in images]
    margins = [(0, width - image.shape[-1], 0, height - image.shape[-2]) for image in images]
    return torch.cat([F.pad(i, m, mode="replicate") if any(m) else i for i, m in zip(filled, margins, strict=True)])


def _levels(images: Tensor, grey: bool) -> Tensor:
    """The 8-bit levels of images [B, 3, H, W], or of their luma, as int32 [B, 3 or 1, H, W]."""
    if grey:
        weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)[:, None, None]
        images = (images * weights).sum(1, keepdim=True)
    return images.mul(255.0).round_().clamp_(0, 255).to(torch.int32)
