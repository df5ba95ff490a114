"""The only file that knows layouts and ranges: BHWC or BCHW, [0, 1] or [-1, 1], padding, cropping, 8-bit rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_image, check_positive_int, describe


def bhwc_to_bchw(x: Tensor) -> Tensor:
    """ComfyUI's IMAGE [B, H, W, C] -> the core's [B, C, H, W], contiguous float32.

    Raises:
        ValueError: rank is not 4 or C is not 1, 3 or 4.
    """
    if x.ndim != 4 or x.shape[3] not in (1, 3, 4):
        raise ValueError(f"image: expected [B, H, W, 1|3|4] float, got {describe(x)}; pass grey, RGB or RGBA images")
    return check_image(x.movedim(-1, 1).to(torch.float32).contiguous(), "image")


def bchw_to_bhwc(x: Tensor) -> Tensor:
    """The core's [B, C, H, W] -> ComfyUI's IMAGE [B, H, W, C], contiguous float32 on the CPU."""
    return check_image(x, "image").movedim(1, -1).to("cpu", torch.float32).contiguous()


def to_model_range(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return x * 2 - 1


def from_model_range(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], not clamped."""
    return (x + 1) / 2


def quantize_8bit(x: Tensor) -> Tensor:
    """Clamp to [0, 1] and round (half to even) to the grid of 1/255, as saving and reading an 8-bit file does."""
    return (x.clamp(0, 1) * 255).round() / 255


def truncate_8bit(x: Tensor) -> Tensor:
    """Clamp to [0, 1] and round down to the grid of 1/255, as a conversion to bytes does that only cuts off the rest."""
    return (x.clamp(0, 1) * 255).floor() / 255


def to_float64(x: Tensor) -> Tensor:
    """The same values in float64, on the CPU where the device knows no float64 (Apple's GPUs)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def to_rgb(x: Tensor) -> Tensor:
    """Grey [B, 1, H, W] is repeated to RGB, RGB passes, RGBA loses its alpha."""
    check_image(x, "image")
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]


def split_alpha(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """RGBA [B, 4, H, W] -> (RGB, alpha [B, 1, H, W]); grey and RGB -> (x, None)."""
    return (x[:, :3], x[:, 3:4]) if x.shape[1] == 4 else (x, None)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad right and bottom to a multiple of `multiple`, by reflection, by edge replication where a side is too short.

    Args:
        x: [B, C, H, W].
        multiple: >= 1.

    Returns:
        The padded images and the original (H, W), to crop back with `x[..., :H, :W]`.
    """
    check_positive_int(multiple, "multiple")
    height, width = x.shape[-2:]
    for dim, side in ((-2, height), (-1, width)):
        extra = -side % multiple
        if extra:
            pad = (0, extra, 0, 0) if dim == -1 else (0, 0, 0, extra)
            x = F.pad(x, pad, mode="reflect" if extra < side else "replicate")
    return x, (height, width)


def crop_border(x: Tensor, px: int) -> Tensor:
    """Remove `px` pixels on every side.

    Raises:
        ValueError: nothing would remain.
    """
    check_positive_int(px, "px", low=0)
    height, width = x.shape[-2:]
    if 2 * px >= min(height, width):
        raise ValueError(f"crop: expected a border below half of the short side, got {px} for {height}x{width}; crop less")
    return x[..., px : height - px, px : width - px]


def crop_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Cut right and bottom so that both sides are multiples of `multiple` (benchmarks call it mod-crop)."""
    height, width = x.shape[-2:]
    if min(height, width) < multiple:
        raise ValueError(f"image: expected sides of at least {multiple} px, got {height}x{width}; use a larger image")
    return x[..., : height - height % multiple, : width - width % multiple]


def rgb_to_y(x: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in studio range, the Y of the super-resolution literature.

    Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255, with R, G, B in [0, 1], so Y lies in [16/255, 235/255].

    Args:
        x: [B, 3, H, W], or [B, 1, H, W] taken as R = G = B.

    Returns:
        [B, 1, H, W] of the input's dtype.

    Source:
        Lee et al. 2025 (AESOP), arXiv:2412.00124, evaluation protocol; specification aesop.md section 5.
    """
    check_image(x, "image", channels=(1, 3))
    if x.shape[1] == 1:
        return (x * 219.0 + 16.0) / 255.0
    weights = x.new_tensor((65.481, 128.553, 24.966)).view(1, 3, 1, 1)
    return ((x * weights).sum(1, keepdim=True) + 16.0) / 255.0
