"""Colour transfer: keep the detail of the restored image, take colour and light from the upscaled input.

All functions work in float32, do not clamp (the caller clamps once, at the end) and accept images of any size from 1x1 up.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_positive_int, check_same_shape

ADAIN_EPS = 1e-5


def wavelet_decompose(x: Tensor, levels: int = 5) -> tuple[Tensor, Tensor]:
    """Split an image into detail and low band with an a-trous (undecimated) wavelet.

        low_0 = x,  low_{i+1} = k_d * low_i with d = 2^i,  high = sum_i (low_i - low_{i+1}) = x - low

    k_d is [1 2 1] x [1 2 1] / 16 with its taps d pixels apart; borders are replicated, also where d exceeds the image.

    Args:
        x: [B, C, H, W] float, any range.
        levels: number of blurs, >= 1; 5 gives dilations 1, 2, 4, 8, 16.

    Returns:
        (high, low), each like x; high + low = x up to rounding.

    Source:
        StrSR, arXiv:2603.06275v1, jkwang28/StrSR@4a5c99e HYPIR/utils/common.py; the same in DP2O-SR's wavelet_color_fix.py.

    Example:
        >>> high, low = wavelet_decompose(torch.full((1, 3, 4, 4), 0.5))
        >>> high.abs().max().item(), low.mean().item()
        (0.0, 0.5)
    """
    check_positive_int(levels, "levels")
    low = x
    for level in range(levels):
        low = _blur(_blur(low, 2**level, dim=-2), 2**level, dim=-1)
    return x - low, low


def wavelet_transfer(content: Tensor, style: Tensor, levels: int = 5) -> Tensor:
    """Detail band of `content` on the low band of `style`.

        out = high(content) + low(style) = content + (low(style) - low(content))

    The second form is the one computed, so that wavelet_transfer(x, x) is x bit for bit.

    Args:
        content: restored image, [B, C, H, W] float, usually [0, 1].
        style: image to take colours from, same shape.
        levels: see `wavelet_decompose`.

    Returns:
        [B, C, H, W] float32, not clamped.

    Raises:
        ValueError: shapes differ.

    Source:
        As `wavelet_decompose`; official function wavelet_reconstruction.
    """
    check_same_shape(content, style, "content", "style")
    content, style = content.float(), style.float()
    return content + (wavelet_decompose(style, levels)[1] - wavelet_decompose(content, levels)[1])


def adain_transfer(content: Tensor, style: Tensor) -> Tensor:
    """Impose the mean and standard deviation of `style` on `content`, per sample and channel over the whole image.

        out = (content - mean_c) / std_c * std_s + mean_s,   std = sqrt(var + 1e-5), var unbiased (0 for a single pixel)

    Args:
        content: restored image, [B, C, H, W] float, usually [0, 1].
        style: image to take the statistics from, same shape.

    Returns:
        [B, C, H, W] float32, not clamped.

    Raises:
        ValueError: shapes differ.

    Source:
        DP2O-SR, cswry/DP2O-SR@bc216ec utils_self/wavelet_color_fix.py, adaptive_instance_normalization.
    """
    check_same_shape(content, style, "content", "style")
    content, style = content.float(), style.float()
    content_mean, content_std = _mean_and_std(content)
    style_mean, style_std = _mean_and_std(style)
    return (content - content_mean) / content_std * style_std + style_mean


def keep_colors(content: Tensor, style: Tensor) -> Tensor:
    """Return `content` as it is, in float32; the choice "none"."""
    check_same_shape(content, style, "content", "style")
    return content.float()


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet_transfer,
    "adain": adain_transfer,
    "none": keep_colors,
}


def apply_color_fix(sr: Tensor, lq_up: Tensor, method: str) -> Tensor:
    """Correct the colours of a restored image by those of the upscaled input.

    Args:
        sr: restored image, [B, C, H, W] float, range [0, 1].
        lq_up: input resized to the size of sr, same shape and range.
        method: a key of COLOR_FIXES: "wavelet", "adain" or "none".

    Returns:
        [B, C, H, W] float32, not clamped.

    Raises:
        ValueError: unknown method, or shapes differ.

    Example:
        >>> x = torch.rand(1, 3, 8, 8)
        >>> torch.equal(apply_color_fix(x, x, "wavelet"), x)
        True
    """
    if method not in COLOR_FIXES:
        raise ValueError(f"method: expected one of {', '.join(COLOR_FIXES)}, got {method!r}; choose a colour fix from that list")
    check_same_shape(sr, lq_up, "sr", "lq_up")
    return COLOR_FIXES[method](sr, lq_up)


def _blur(x: Tensor, dilation: int, dim: int) -> Tensor:
    """[1 2 1] / 4 along one side. Plain sums instead of a convolution: exact float32 on every device, no TF32."""
    size = x.shape[dim]
    padding = (0, 0, dilation, dilation) if dim == -2 else (dilation, dilation, 0, 0)
    padded = F.pad(x, padding, mode="replicate")
    return 0.25 * (padded.narrow(dim, 0, size) + padded.narrow(dim, 2 * dilation, size)) + 0.5 * x


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    correction = min(1, x.shape[-2] * x.shape[-1] - 1)
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return mean, (variance + ADAIN_EPS).sqrt()
