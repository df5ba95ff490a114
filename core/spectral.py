"""Frequencies: the orthonormal DCT, radial spectra and their distance, and a score for repeating grids.

Everything is computed in float32 at least, also under autocast.
"""

import math
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_image, check_positive_int, check_same_shape
from .images import rgb_to_y

POWER_FLOOR = 1e-12
SMOOTH_RMS = 0.01
VISIBLE_RMS = 0.005


def dct_matrix(size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """The orthonormal DCT-II as a matrix.

        D[k, n] = c_k sqrt(2 / N) cos(pi (n + 1/2) k / N),  c_0 = 1 / sqrt(2), else 1;   D D^T = I

    Built in float64 and rounded once.

    Args:
        size: N >= 1.
        dtype: of the result, float32 or float64.
        device: of the result.

    Returns:
        [N, N]; row k is a cosine with k half cycles over N samples, that is k / (2 N) cycles per sample.

    Raises:
        ValueError: a 16-bit type, at which energies would be wrong in the third digit.

    Source:
        ASASR specification, asasr.md section 2.9 (the paper names the DCT without its normalisation).
    """
    check_positive_int(size, "size")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {str(dtype).removeprefix('torch.')}; widen the input instead")
    k = torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi / size * torch.outer(k, k + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype).to(device)


def dct2(x: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II over the last two dimensions: D_h x D_w^T.

    Keeps the sum of squares (Parseval), so energies need no factors.

    Args:
        x: [..., H, W] float, any range.

    Returns:
        [..., H, W], float32 (float64 for float64 input); [0, 0] is sqrt(H W) times the mean.

    Source:
        ASASR specification, asasr.md section 2.9.

    Example:
        >>> dct2(torch.full((2, 2), 0.5)).round(decimals=4).abs().tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    return _transform(x, is_inverse=False)


def idct2(x: Tensor) -> Tensor:
    """Inverse of `dct2` (DCT-III): D_h^T x D_w.

    Args:
        x: [..., H, W] float coefficients.

    Returns:
        [..., H, W], float32 (float64 for float64 input).
    """
    return _transform(x, is_inverse=True)


def radial_spectrum(x: Tensor) -> Tensor:
    """Power of the luma by spatial frequency, averaged over directions.

        S(r) = 10 log10( mean over round(|k|) = r of |DFT(Y)(k)|^2 / N^2 + 1e-12 ),   r = 1 .. N/2 - 1

    on the central N x N square, N = min(H, W), no window. r counts cycles over N pixels, so r / N is in cycles per pixel.

    Args:
        x: [B, 1 or 3, H, W] float, range [0, 1], sides >= 4.

    Returns:
        [B, N // 2 - 1] float32 in dB.

    Raises:
        ValueError: not an image, or a side below 4.

    Source:
        asasr.md section 2.9: Y of BT.601 (studio range), integer radii, crop to square, no window.
    """
    check_image(x, "x", channels=(1, 3))
    size = min(x.shape[-2:])
    if size < 4:
        raise ValueError(f"x: expected sides of at least 4 pixels, got {tuple(x.shape)}; a spectrum needs a larger image")
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    luma = rgb_to_y(_wide(x[..., top : top + size, left : left + size]))[:, 0]
    spectrum = cast(Tensor, torch.fft.fft2(luma, norm="ortho"))  # pyright: ignore[reportUnknownMemberType]  # has no stub
    power = spectrum.abs().square().flatten(1)
    frequency = ((torch.arange(size, device=x.device) + size // 2) % size - size // 2).float()
    radius = torch.hypot(frequency[:, None], frequency[None]).round().long().flatten()
    bins = int(1.5 * size)
    total = power.new_zeros(power.shape[0], bins).index_add(1, radius, power)
    count = torch.bincount(radius, minlength=bins)
    mean = total[:, 1 : size // 2] / count[1 : size // 2]
    return (10 * torch.log10(mean + POWER_FLOOR)).float()


def log_spectral_distance(sr: Tensor, gt: Tensor) -> Tensor:
    """Root mean square difference of two radial spectra, in dB.

        LSD = sqrt( mean_r (S_sr(r) - S_gt(r))^2 ),   S of `radial_spectrum`, r = 1 .. N/2 - 1

    Args:
        sr: restored image, [B, 1 or 3, H, W] float, range [0, 1].
        gt: reference image, same shape and range.

    Returns:
        [B] float32 in dB, lower is better, 0 where the spectra agree. LSD(x, a x) = |20 log10 a|. Differentiable everywhere:
        where the spectra agree, and a square root would have an infinite slope, the gradient is 0, the smallest subgradient of a
        norm; no eps is added.

    Raises:
        ValueError: shapes differ, not an image, or a side below 4.

    Source:
        asasr.md section 2.9. ASASR uses the LSD (Fig. 6) without defining it, so this definition is ours.

    Example:
        >>> x = torch.rand(1, 3, 32, 32)
        >>> round(log_spectral_distance(x, 0.5 * x).item(), 3)
        6.021
    """
    check_same_shape(sr, gt, "sr", "gt")
    difference = radial_spectrum(sr) - radial_spectrum(gt)
    norm = cast(Tensor, torch.linalg.vector_norm(difference, dim=1))  # pyright: ignore[reportUnknownMemberType]  # has no stub
    return norm / math.sqrt(difference.shape[1])


def high_frequency_ratio(sr: Tensor, gt: Tensor, *, scale: int) -> Tensor:
    """Energy of detail finer than the low-resolution picture can hold, as a share of the reference's.

        ratio = sum_{u, v in F} |DCT(Y_sr)(u, v)|^2 / sum_{u, v in F} |DCT(Y_gt)(u, v)|^2,   F: u >= H / scale or v >= W / scale

    The DCT, because its even continuation puts no false energy at the border. It counts energy, wherever it stands: 1 is the
    right amount of texture, 0 none, and says nothing about whether it is the right texture.

    Args:
        sr: restored image, [B, 1 or 3, H, W] float, range [0, 1].
        gt: reference image, same shape and range.
        scale: upscaling factor, at least 2.

    Returns:
        [B] float32, at least 0.

    Raises:
        ValueError: shapes differ, not an image, or a scale below 2.

    Source:
        Ours; the "texture energy" of aesop.md 8.5 and 9.2.

    Example:
        >>> x = torch.rand(1, 3, 32, 32)
        >>> round(high_frequency_ratio(0.5 * x, x, scale=4).item(), 4)
        0.25
    """
    check_same_shape(sr, gt, "sr", "gt")
    if scale < 2:
        raise ValueError(f"scale: expected at least 2, got {scale}; without upscaling no detail is finer than the input's")
    height, width = sr.shape[-2:]

    def energy(x: Tensor) -> Tensor:
        # without the offset of 16 of BT.601's Y: a constant has no detail, but the offset would not scale with x
        power = dct2(rgb_to_y(_wide(x)) - 16 / 255).square()
        return power.sum(dim=(1, 2, 3)) - power[..., : math.ceil(height / scale), : math.ceil(width / scale)].sum(dim=(1, 2, 3))

    return (energy(sr).clamp_min(0) / energy(gt).clamp_min(POWER_FLOOR)).float()


def periodic_pattern(x: Tensor, period: int) -> Tensor:
    """The pattern that repeats every `period` pixels, as the best linear unbiased estimate from all tiles of an image.

        r = x - box(x);   w = 1 / (box(r^2) + 0.01^2);   m(i, j) = sum_t w r / sum_t w   over all tiles t at tile pixel (i, j)

    less its mean; box = mean over period x period pixels inside the image. That mean is zero for every zero-mean pattern of the
    period, so a grid keeps its amplitude. A weight is the inverse of the local variance: smooth areas, where a grid is seen,
    count, and textures and edges, where it is hidden and would be noise here, hardly do.

    Args:
        x: [B, C, H, W] float, sides >= 2 * period; cut right and bottom to a multiple of the period.
        period: > 1, pixels.

    Returns:
        [B, C, period, period], float32 at least; its RMS is that of the grid in x plus a remainder of the content.
    """
    check_positive_int(period, "period", low=2)
    rows, columns = x.shape[-2] // period, x.shape[-1] // period
    if min(rows, columns) < 2:
        raise ValueError(f"x: expected sides of at least {2 * period} pixels, got {tuple(x.shape)}; use a larger image")
    x = _wide(x[..., : rows * period, : columns * period])
    detail = x - _box(x, period)
    weight = 1 / (_box(detail.square(), period) + SMOOTH_RMS**2)
    pattern = _sum_tiles(weight * detail, period) / _sum_tiles(weight, period)
    return pattern - pattern.mean(dim=(-2, -1), keepdim=True)


def periodic_energy_score(x: Tensor, periods: tuple[int, ...] = (8, 16)) -> Tensor:
    """How much a grid repeats in an image: energy at a period over that at the periods beside it.

        E(p) = mean over channels and tile pixels of periodic_pattern(x, p)^2
        score = max over p of (E(p) + 0.005^2) / ((E(p-) + E(p+)) / 2 + 0.005^2)

    E(p) is the spectrum's energy at all multiples of 1/p cycles per pixel, in both directions and their combinations, as seen in
    smooth areas. p- and p+ are the nearest periods at least 1/8 below and above p that share no factor with p (7 and 9 for 8; 13
    and 19 for 16): their harmonics lie between those of p and measure what the content alone gives. The constant is the
    amplitude of a barely visible grid; it keeps the score of grid-free images near 1.

    Measured on Set5 and Set14: 0.997 to 1.037 for the 19 originals; the same enlarged again from a quarter (bicubic), sharpened,
    or with noise of RMS 0.03 score 0.96 to 1.11 times their original, 0.99 to 1.02 on the mean of a set. A grid of RMS 0.01 at 8
    or 16 pixels, added to the enlarged image and clamped, gives 3.5 to 4.8 times on the mean of a set, at least 1.4 times on each
    image (the least on a white page, where clamping removes most of the grid).

    A grid of RMS a adds up to (a / 0.005)^2 to the score; 1.1 stands for a = 0.0016. Shifting the grid changes the score by the
    cross term with the content's own remainder: under 1 % on weak content, some per cent on a photograph of 512 x 512, more on
    small and busy ones (for lines of RMS 0.01 at 16 pixels on small images 1 to 20 %, 2 % on their mean), so compare means over
    a set. Seams whose sign changes from tile to tile do not add up and are not seen.

    Args:
        x: [B, C, H, W] float, range [0, 1], sides >= 64.
        periods: in pixels, each at most a quarter of the shorter side.

    Returns:
        [B] float32, about 1 without a grid, more with one; lower is better.

    Raises:
        ValueError: not an image, a side below 64, or a period that is too long.

    Source:
        In the spirit of strsr.md check 24 (harmonic peaks over the local median); the formula is ours. The patch grid of
        diffusion transformers is described by StrSR, arXiv:2603.06275v1.

    Example:
        >>> grid = 0.01 * torch.tensor([1.0, -1.0]).repeat_interleave(8).repeat(8).expand(1, 3, 128, 128)
        >>> periodic_energy_score(0.5 + grid).item() > 3
        True
    """
    check_image(x, "x")
    shortest = min(x.shape[-2:])
    if shortest < 64:
        raise ValueError(f"x: expected sides of at least 64 pixels, got {tuple(x.shape)}; use a larger image")
    if not periods or min(periods) < 4 or 4 * max(periods) > shortest:
        raise ValueError(f"periods: expected values in 4..{shortest // 4} for this image, got {periods}; use shorter periods")
    ratios = [_periodic_ratio(x, period) for period in periods]
    return torch.stack(ratios).amax(0).float()


def _periodic_ratio(x: Tensor, period: int) -> Tensor:
    below = next(p for p in range(period - max(1, period // 8), 1, -1) if math.gcd(p, period) == 1)
    above = next(p for p in range(period + max(1, period // 8), 2 * period) if math.gcd(p, period) == 1)
    at, low, high = (periodic_pattern(x, p).square().mean(dim=(-3, -2, -1)) for p in (period, below, above))
    return (at + VISIBLE_RMS**2) / ((low + high) / 2 + VISIBLE_RMS**2)


def _transform(x: Tensor, is_inverse: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        wide = _wide(x)
        rows, columns = (_matrix(size, wide.dtype, x.device) for size in x.shape[-2:])
        return rows.mT @ wide @ columns if is_inverse else rows @ wide @ columns.mT


@lru_cache(maxsize=32)
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once; outside inference mode, so that training may use what a preview has made."""
    with torch.inference_mode(False), torch.no_grad():
        return dct_matrix(size, dtype=dtype, device=device)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _box(x: Tensor, size: int) -> Tensor:
    """Mean over the size x size pixels around each pixel, near a border over the nearest window that lies inside.

    Only whole windows: at the border too the mean of a pattern with this period is the same everywhere.
    """
    before, after = size // 2, size - 1 - size // 2
    means = F.avg_pool2d(F.avg_pool2d(x, (size, 1), stride=1), (1, size), stride=1)
    return F.pad(means, (before, after, before, after), mode="replicate")


def _sum_tiles(x: Tensor, period: int) -> Tensor:
    rows, columns = x.shape[-2] // period, x.shape[-1] // period
    return x.reshape(*x.shape[:-2], rows, period, columns, period).sum(dim=(-4, -2))
