"""Resampling: antialiased bicubic for pictures, MATLAB's `imresize` in both of its forms for benchmarks and training pairs."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_image, describe
from .images import to_float64


def bicubic(x: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Bicubic resize to an exact size (Keys, a = -0.5 with antialiasing; torch's a = -0.75 without).

    Args:
        x: [B, C, H, W] float; any range. Not clamped: bicubic overshoots at edges.
        size: (height, width) of the result.
        antialias: widen the kernel when shrinking. Without it this is the plain interpolation of the released StrSR scripts.

    Returns:
        [B, C, height, width], dtype of the input.
    """
    if min(size) < 1:
        raise ValueError(f"size: expected at least 1x1, got {size[0]}x{size[1]}; choose a larger size or scale")
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return F.interpolate(x.float(), size=size, mode="bicubic", antialias=antialias, align_corners=False).to(x.dtype)
    return F.interpolate(x, size=size, mode="bicubic", antialias=antialias, align_corners=False)


def cubic_kernel(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5: 1.5|x|^3 - 2.5|x|^2 + 1 up to 1, -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2 up to 2, else 0."""
    a = x.abs()
    near = (1.5 * a - 2.5) * a * a + 1
    far = ((-0.5 * a + 2.5) * a - 4) * a + 2
    return torch.where(a <= 1, near, torch.where(a <= 2, far, torch.zeros_like(a)))


def output_size(length: int, scale: float) -> int:
    """ceil(length * scale), MATLAB's rule, with float noise such as 37 * (1/3) * 3 taken out."""
    return max(1, math.ceil(round(length * scale, 9)))


@lru_cache(maxsize=256)
def _taps(n_in: int, n_out: int, scale: float) -> tuple[Tensor, Tensor]:
    """Weights [n_out, K] (float64, rows sum to 1) and unclamped 0-based source indices [n_out, K].

    Output i (1-based) sits at u = i / s + 0.5 (1 - 1 / s); when shrinking, the kernel is stretched by 1 / s.
    """
    stretch = min(scale, 1.0)
    support = 4.0 / stretch
    u = torch.arange(1, n_out + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    left = torch.floor(u - support / 2)
    index = left[:, None] + torch.arange(math.ceil(support) + 2, dtype=torch.float64)
    weights = stretch * cubic_kernel(stretch * (u[:, None] - index))
    weights = weights / weights.sum(1, keepdim=True)
    used = (weights != 0).any(0)
    return weights[:, used], index[:, used].long() - 1


def _matrix(n_in: int, n_out: int, scale: float, border: str) -> Tensor:
    """The same as a dense [n_out, n_in] matrix, with indices outside mirrored (edge repeated) or replicated."""
    weights, index = _taps(n_in, n_out, scale)
    if border == "mirror":
        index = index % (2 * n_in)
        index = torch.where(index < n_in, index, 2 * n_in - 1 - index)
    else:
        index = index.clamp(0, n_in - 1)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    return matrix.scatter_add_(1, index, weights)


def _sizes(x: Tensor, scale: float, size: tuple[int, int] | None) -> tuple[int, int]:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a positive finite number, got {scale!r}; 0.25 shrinks and 4 enlarges four times")
    return size or (output_size(x.shape[-2], scale), output_size(x.shape[-1], scale))


def imresize(x: Tensor, scale: float, size: tuple[int, int] | None = None) -> Tensor:
    """MATLAB's `imresize(x, scale, 'bicubic')` on doubles: antialiased, mirrored borders, rows first, nothing rounded or clamped.

    Args:
        x: [B, C, H, W] float; computed in float64, returned in the input's dtype. Differentiable.
        scale: factor, e.g. 0.25.
        size: (height, width) of the result; default ceil(H * scale), ceil(W * scale).

    Returns:
        [B, C, height, width].

    Source:
        Specification aesop.md section 5 (MATLAB bicubic, the `matlab` form).
    """
    check_image(x, "x", channels=tuple(range(1, x.shape[1] + 1)) if x.ndim == 4 else (1, 3, 4))
    height, width = _sizes(x, scale, size)
    wide = to_float64(x)
    rows = _matrix(x.shape[-2], height, scale, "mirror").to(wide.device)
    columns = _matrix(x.shape[-1], width, scale, "mirror").to(wide.device)
    return (rows @ wide @ columns.T).to(x)


def imresize_uint8(x: Tensor, scale: float) -> Tensor:
    """MATLAB's `imresize` on 8-bit images: replicated borders, rounded to 8 bits after each of the two passes, rows first.

    Reproduces the low-resolution files of the public benchmarks (Set5, Set14) without a single different value.

    Args:
        x: [..., H, W] uint8.
        scale: factor, e.g. 0.25.

    Returns:
        [..., ceil(H * scale), ceil(W * scale)] uint8, on the input's device; computed on the CPU.

    Raises:
        TypeError: not uint8.
        ValueError: no pixels.

    Source:
        Specification aesop.md section 5 (the `matlab_uint8` form).
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"x: expected a uint8 image, got {describe(x)}; use imresize for floating point")
    if x.numel() == 0:
        raise ValueError(f"x: expected at least one pixel, got {tuple(x.shape)}; check how it was cut")
    height, width = _sizes(x, scale, None)
    rows = _matrix(x.shape[-2], height, scale, "replicate")
    columns = _matrix(x.shape[-1], width, scale, "replicate")

    def to_8bit(values: Tensor) -> Tensor:
        # floor(v + 0.5) is MATLAB's rounding for non-negative values; the small shift keeps exact halves from falling below
        # by float noise
        return torch.floor(values + (0.5 + 1e-9)).clamp(0, 255)

    return to_8bit(to_8bit(rows @ x.cpu().double()) @ columns.T).to(x)
