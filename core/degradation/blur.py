"""Blur kernels of the Real-ESRGAN family and the filter that applies one kernel per sample."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 64

# Kernels are built in numpy: on a few hundred values a call of torch costs several times the arithmetic.
Kernel = np.ndarray[Any, np.dtype[np.float64]]


# The stubs of torch leave these three untyped.
_bessel_j1 = cast(Callable[[Tensor], Tensor], torch.special.bessel_j1)  # pyright: ignore[reportUnknownMemberType]
_rfft2 = cast(Callable[[Tensor, tuple[int, int]], Tensor], torch.fft.rfft2)  # pyright: ignore[reportUnknownMemberType]
_irfft2 = cast(Callable[[Tensor, tuple[int, int]], Tensor], torch.fft.irfft2)  # pyright: ignore[reportUnknownMemberType]


def _finished(kernel: Kernel, pad_to: int | None) -> Tensor:
    kernel = kernel / kernel.sum()
    margin = 0 if pad_to is None else (pad_to - kernel.shape[-1]) // 2
    return torch.from_numpy(np.pad(kernel, margin) if margin else kernel)


def smooth_kernel(
    kind: str,
    size: int,
    *,
    sigma_x: float,
    sigma_y: float | None = None,
    rotation: float = 0.0,
    beta: float = 1.0,
    pad_to: int | None = None,
) -> Tensor:
    """Build a Gaussian, generalised Gaussian or plateau kernel.

        q(p) = p^T Sigma^-1 p,   Sigma = R(rotation) diag(sigma_x^2, sigma_y^2) R(rotation)^T
        gaussian: exp(-q / 2)    generalized: exp(-q^beta / 2)    plateau: 1 / (1 + q^beta)      then divided by the sum

    Args:
        kind: one of presets.KERNEL_KINDS; the `iso` ones use sigma_x for both axes and no rotation.
        size: odd side in px.
        sigma_x: standard deviation along the first axis in px, > 0.
        sigma_y: the same for the second axis; None takes sigma_x.
        rotation: angle in radians.
        beta: exponent, > 0; ignored by the Gaussian kinds.
        pad_to: zero-pad to this odd side.

    Returns:
        [size, size] (or [pad_to, pad_to]) float64, sum 1, on the CPU.

    Source:
        Wang et al. 2021, arXiv:2107.10833, section 3.1; golden case c08_degradation/kernel.

    Example:
        >>> round(float(smooth_kernel("iso", 7, sigma_x=1.0).sum()), 9)
        1.0
    """
    axis = np.arange(size, dtype=np.float64) - (size - 1) // 2
    y, x = axis[:, None], axis[None, :]
    if kind.endswith("aniso"):
        cos, sin = math.cos(rotation), math.sin(rotation)
        q = ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / (sigma_y or sigma_x)) ** 2
    else:
        q = (x * x + y * y) / sigma_x**2
    if kind.startswith("plateau"):
        kernel = 1.0 / (1.0 + q**beta)
    elif kind.startswith("generalized"):
        kernel = np.exp(-0.5 * q**beta)
    else:
        kernel = np.exp(-0.5 * q)
    return _finished(kernel, pad_to)


def gaussian_taps(size: int, sigma: float) -> Tensor:
    """Sample a Gaussian at `size` (odd) whole positions around 0; [size] float64, sum 1."""
    axis = np.arange(size, dtype=np.float64) - (size - 1) // 2
    taps = np.exp(-0.5 * (axis / sigma) ** 2)
    return torch.from_numpy(taps / taps.sum())


def sinc_kernel(size: int, cutoff: float, *, pad_to: int | None = None) -> Tensor:
    """Build the circular low-pass kernel that leaves ringing.

        k(r) = cutoff J_1(cutoff r) / (2 pi r),   k(0) = cutoff^2 / (4 pi),   then divided by the sum

    Args:
        size: odd side in px.
        cutoff: cut-off frequency in radians per px, in (0, pi].
        pad_to: zero-pad to this odd side.

    Returns:
        [size, size] (or [pad_to, pad_to]) float64, sum 1, on the CPU.

    Source:
        Wang et al. 2021, arXiv:2107.10833, Eq. (6); golden case c08_degradation/kernel/sinc_*.

    Example:
        >>> tuple(sinc_kernel(13, 2.4, pad_to=21).shape)
        (21, 21)
    """
    axis = np.arange(size, dtype=np.float64) - (size - 1) // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    middle = (size - 1) // 2
    radius[middle, middle] = 1.0
    bessel = _bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel: Kernel = cutoff * bessel / (2 * math.pi * radius)
    kernel[middle, middle] = cutoff**2 / (4 * math.pi)
    return _finished(kernel, pad_to)


def reflect_pad(x: Tensor, pad: int) -> Tensor:
    """Mirror `pad` px around each border without repeating the edge; also for sides shorter than `pad`, where it mirrors again.

    Args:
        x: [..., H, W].
        pad: px on each side, >= 0.

    Returns:
        [..., H + 2 pad, W + 2 pad].
    """
    height, width = x.shape[-2:]
    if pad < min(height, width):
        return F.pad(x, (pad,) * 4, mode="reflect")
    return x.index_select(-2, _mirrored(height, pad, x.device)).index_select(-1, _mirrored(width, pad, x.device))


def _mirrored(length: int, pad: int, device: torch.device) -> Tensor:
    if length == 1:
        return torch.zeros(1 + 2 * pad, dtype=torch.long, device=device)
    position = torch.arange(-pad, length + pad, device=device).remainder(2 * (length - 1))
    return torch.minimum(position, 2 * (length - 1) - position)


def fast_fft_size(length: int) -> int:
    """The smallest multiple of 16 from `length` on that has no prime factor above 5: the sizes the FFT is quick at."""
    size = -(-length // 16) * 16
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 16


def filter_images(images: Sequence[Tensor], kernels: Sequence[Tensor]) -> list[Tensor]:
    """Correlate each image with its own kernel, borders mirrored, all of them in one batched FFT.

        out[c, y, x] = sum_ij kernel[i, j] image[c, y + i - r, x + j - r],   r = (side - 1) / 2

    Args:
        images: B images [C, H_b, W_b]; sizes may differ, C, dtype and device may not.
        kernels: B square kernels of odd side, any float dtype and device.

    Returns:
        B images of the sizes that came in. Not clamped. Differs from a direct sum by float rounding (about 1e-7).

    Source:
        Golden case c08_degradation/filter2d; a transform takes a tenth of the time of a direct 21 x 21 sum on a CPU.
    """
    radius = max(kernel.shape[-1] for kernel in kernels) // 2
    size_y = fast_fft_size(max(image.shape[-2] for image in images) + 2 * radius)
    size_x = fast_fft_size(max(image.shape[-1] for image in images) + 2 * radius)
    shape = (size_y, size_x)
    taps = torch.stack([F.pad(kernel, (radius - kernel.shape[-1] // 2,) * 4) for kernel in kernels])
    if len({image.shape for image in images}) == 1:
        batch = reflect_pad(torch.stack(list(images)), radius)
    else:
        mirrored = [reflect_pad(image[None], radius) for image in images]
        batch = torch.cat([F.pad(image, (0, size_x - image.shape[-1], 0, size_y - image.shape[-2])) for image in mirrored])
    response = _rfft2(taps.to(batch), shape).conj_physical()[:, None]
    out = _irfft2(_rfft2(batch, shape) * response, shape)
    return [out[b, :, : image.shape[-2], : image.shape[-1]] for b, image in enumerate(images)]


def _band(taps: Tensor) -> Tensor:
    """Matrix [block + side - 1, block] whose column j holds the taps from row j on."""
    # A row one longer than the matrix is wide, repeated without a break, moves on by one in every row.
    line = F.pad(taps, (0, _BLOCK))
    rows = _BLOCK + taps.numel() - 1
    return line.repeat(_BLOCK)[: _BLOCK * rows].view(_BLOCK, rows).mT.contiguous()


def filter_separable(x: Tensor, taps: Tensor) -> Tensor:
    """Correlate along rows and along columns with the same taps, borders mirrored.

    Each block of 64 outputs is one product with a band matrix, which takes a third of the time of a one-dimensional convolution.

    Args:
        x: [..., H, W] float.
        taps: an odd number of weights, float, any device.

    Returns:
        [..., H, W].
    """
    height, width = x.shape[-2:]
    margin = taps.numel() - 1
    band = _band(taps.to(x))
    out = reflect_pad(x, margin // 2)
    columns = [out[..., start : min(start + _BLOCK, width) + margin] for start in range(0, width, _BLOCK)]
    out = torch.cat([part @ band[: part.shape[-1], : part.shape[-1] - margin] for part in columns], -1)
    rows = [out[..., start : min(start + _BLOCK, height) + margin, :] for start in range(0, height, _BLOCK)]
    return torch.cat([band[: part.shape[-2], : part.shape[-2] - margin].mT @ part for part in rows], -2)
