"""Losses on frequencies: the Frequency Distribution Loss, and one aimed at the patch grid of diffusion transformers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..checks import check_positive_int, check_range, check_same_shape, describe
from ..images import to_model_range
from ..spectral import periodic_pattern
from .matching import CHUNK_ELEMENTS
from .perceptual import VGG19Features
from .precision import at_least_float32, check_pair, per_sample
from .sliced import Windows, sliced_distance

FDL_LAYERS = ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4")
FDL_CHANNELS = (64, 128, 256, 512, 512)
FDL_PROJECTIONS = 256
FDL_PATCH = 5
GRID_VISIBLE = 0.005

Levels = Callable[[Tensor], Sequence[Tensor]]  # images [B, 3, H, W] in [0, 1] -> feature maps, one per level


class FrequencyDistances(NamedTuple):
    """Sliced Wasserstein distances of two batches of feature maps, [B] each.

    Attributes:
        amplitude: between the amplitude spectra; blind to shifts.
        phase: between the phase spectra, in radians times a filter of unit norm.
    """

    amplitude: Tensor
    phase: Tensor


def make_projections(
    channels: Sequence[int] = FDL_CHANNELS, count: int = FDL_PROJECTIONS, patch: int = FDL_PATCH, *, generator: Generator
) -> list[Tensor]:
    """Random filters for `fdl_loss`: Gaussian, each scaled to unit L2 norm; the same generator state gives the same filters.

    Args:
        channels: channels of each level's feature maps.
        count: filters per level.
        patch: side of a filter in frequency bins, odd.
        generator: on the CPU, seeded from the configuration, so that every process and every resumed run draws the same.

    Returns:
        One [count, C, patch, patch] float32 tensor per level, on the CPU.

    Source:
        strsr.md section 2.5 item 3 and 5.7; Ni et al. 2024 (FDL), arXiv:2402.18192.

    Example:
        >>> filters = make_projections([3], 4, generator=torch.Generator().manual_seed(0))
        >>> filters[0].flatten(1).norm(dim=1).round(decimals=4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    check_positive_int(count, "count")
    _check_patch(patch)
    drawn = [torch.randn(count, check_positive_int(c, "channels"), patch, patch, generator=generator) for c in channels]
    return [weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for weight in drawn]


def relu_levels(vgg: VGG19Features) -> Levels:
    """The five levels of the published loss from our VGG19: relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4.

    Args:
        vgg: frozen, in eval mode; it normalises [0, 1] images by ImageNet's mean and standard deviation.
    """

    def levels(images: Tensor) -> Sequence[Tensor]:
        return [F.relu(level) for level in vgg(images, FDL_LAYERS).values()]

    return levels


def frequency_distances(
    x: Tensor, y: Tensor, filters: Tensor, *, use_phase: bool = True, chunk: int | None = None
) -> FrequencyDistances:
    """Distance of two feature maps' distributions of windows in the amplitude and in the phase spectrum.

        Z = DFT(x) per channel, un-normalised;   A = |Z|,   P = angle(Z) in (-pi, pi]
        amplitude = mean over filters w and positions of |sort(w * A_x) - sort(w * A_y)|,   phase likewise with P

    * is the correlation with 5x5xC windows inside the unshifted spectrum (no padding, stride 1). Bins that are real but for
    rounding have phase 0 or +pi, never -pi; bins that are empty but for rounding have phase 0, without gradient.

    Args:
        x: [B, C, h, w] float, any range, sides at least the filters' side; with gradient.
        y: the same shape.
        filters: [P, C, k, k], k odd, of unit norm.
        use_phase: without it `phase` is zero and costs nothing.
        chunk: filters at a time; memory is 2 chunk h w values, the result does not depend on it. Default: at most 2 x 134 MB.

    Returns:
        [B] each, float32 (float64 for float64 input), 0 if x == y.

    Raises:
        ValueError: shapes differ, maps smaller than a filter, or filters of other channels.

    Source:
        Ni et al. 2024 (FDL), arXiv:2402.18192; strsr.md section 2.5 (fdl-pytorch 1.0, which transforms, projects and sorts
        everything at once; equal to 1e-5, except where rounding alone decides there: +pi or -pi, the phase of an empty bin).
    """
    check_same_shape(x, y, "x", "y")
    _check_filters(x, filters)
    with torch.autocast(x.device.type, enabled=False):
        x, y = at_least_float32(x), at_least_float32(y)
        filters = filters.to(x)
        windows = Windows(x.shape[2], x.shape[3], filters.shape[-1] // 2)
        step = chunk or max(1, min(len(filters), CHUNK_ELEMENTS // windows.count))
        results: list[list[Tensor]] = [[], []]
        for one_x, one_y in zip(x, y, strict=True):
            spectrum_x, spectrum_y = _spectrum(one_x), _spectrum(one_y)
            amplitude_x, amplitude_y = spectrum_x.abs(), spectrum_y.abs()
            results[0].append(sliced_distance(amplitude_x, amplitude_y, filters, windows.width, 1, step))
            del amplitude_x, amplitude_y
            if use_phase:
                phase_x, phase_y = _phase(spectrum_x, _rounding(one_x)), _phase(spectrum_y, _rounding(one_y))
                results[1].append(sliced_distance(phase_x, phase_y, filters, windows.width, -1, step))
        amplitude = torch.stack(results[0])
        return FrequencyDistances(amplitude, torch.stack(results[1]) if use_phase else torch.zeros_like(amplitude))


def fdl_loss(
    sr: Tensor,
    gt: Tensor,
    levels: Levels,
    filters: Sequence[Tensor],
    *,
    phase_weight: float = 1.0,
    model_range: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Frequency Distribution Loss: do features of two images have equally distributed spectra?

        L_i = sum over levels l of amplitude_l(phi_l(sr_i), phi_l(gt_i)) + lambda phase_l(phi_l(sr_i), phi_l(gt_i))

    Args:
        sr: [B, 3, H, W], range [0, 1]; at least 80 px a side for VGG19's five levels.
        gt: the same shape; no gradient goes here.
        levels: images to feature maps: `relu_levels(load_vgg19(...))` as published, or any callable.
        filters: one tensor per level, from `make_projections`.
        phase_weight: lambda; 0 leaves phase out.
        model_range: feed images in [-1, 1], as StrSR's training code did; the published loss and the features want [0, 1].
        chunk: filters at a time, see `frequency_distances`.

    Returns:
        [B] float32, not negative, 0 if sr == gt.

    Raises:
        ValueError: shapes differ, not as many filters as levels, or maps smaller than a filter.

    Source:
        Ni et al. 2024 (FDL), arXiv:2402.18192; StrSR, arXiv:2603.06275v1, stage 2; strsr.md sections 2.5, 5.6 and 5.7.

    Example:
        >>> filters = make_projections([3], 8, generator=torch.Generator().manual_seed(0))
        >>> x = torch.rand(2, 3, 16, 16)
        >>> fdl_loss(x, x, lambda image: [image], filters)
        tensor([0., 0.])
    """
    wide_sr, wide_gt = check_pair(sr, gt)
    check_range(phase_weight, "phase_weight", 0.0, 1e6)
    if model_range:
        wide_sr, wide_gt = to_model_range(wide_sr), to_model_range(wide_gt)
    with torch.no_grad():
        wanted = levels(wide_gt)
    found = levels(wide_sr)
    if len(found) != len(filters):
        raise ValueError(f"filters: expected one tensor for each of {len(found)} levels, got {len(filters)}; draw one per level")
    total = wide_sr.new_zeros(len(sr))
    for x, y, weight in zip(found, wanted, filters, strict=True):
        parts = frequency_distances(x, y, weight, use_phase=phase_weight > 0, chunk=chunk)
        total = total + parts.amplitude + phase_weight * parts.phase
    return total


def grid_loss(sr: Tensor, gt: Tensor, *, period: int = 16, visible: float = GRID_VISIBLE) -> Tensor:
    """Loss for a grid that the restored image has and the ground truth has not: log-amplitude at the harmonics of a period.

        m = periodic_pattern(sr - gt, p)   the best linear estimate of what repeats every p pixels, [C, p, p]
        L_i = 1/2 ln(1 + mean_{c,y,x} m^2 / visible^2)

    By Parseval mean m^2 is the energy at all spatial frequencies (u / p, v / p) but (0, 0): the harmonics of the patch, in both
    directions. The pattern is an average over all tiles of the image, so what does not repeat with the period (noise, texture,
    edges) falls with the number of tiles, while a grid keeps its amplitude. The logarithm keeps a gross error from drowning the
    rest: the gradient is largest where the grid is as strong as `visible`. It is no measure of likeness: use it beside one.

    Args:
        sr: [B, 1 or 3, H, W], range [0, 1], sides at least 2 * period; cut right and bottom to a multiple of the period.
        gt: the same shape; no gradient goes here.
        period: of the grid in pixels: patch x stride of the autoencoder, 16 for FLUX.2 and Z-Image.
        visible: RMS of a grid that is just visible; well below it the loss is quadratic.

    Returns:
        [B] float32, not negative, 0 if sr == gt; 0.35 for a grid of RMS `visible`.

    Raises:
        ValueError: shapes differ, or a side below two periods.

    Source:
        Ours, for the purpose that strsr.md section 6.2 item 5 states. It is not part of the paper and off in its configurations.

    Example:
        >>> gt = torch.full((1, 3, 128, 128), 0.5)
        >>> grid = 0.01 * torch.tensor([1.0, -1.0]).repeat_interleave(8).repeat(8)
        >>> noise = 0.01 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))
        >>> bool(grid_loss(gt + grid, gt) > 5 * grid_loss(gt + noise, gt))
        True
    """
    wide_sr, wide_gt = check_pair(sr, gt)
    check_range(visible, "visible", 1e-6, 1.0)
    with torch.autocast(sr.device.type, enabled=False):
        pattern = periodic_pattern(wide_sr - wide_gt.detach(), period)
        return 0.5 * torch.log1p(per_sample(pattern.square()) / visible**2)


def _spectrum(x: Tensor) -> Tensor:
    return cast(Tensor, torch.fft.rfft2(x))  # pyright: ignore[reportUnknownMemberType]  # has no stub


def _phase(spectrum: Tensor, rounding: Tensor) -> Tensor:
    """Angles in (-pi, pi]: 0 without gradient in bins that are empty but for rounding, and pi in negative ones that are real."""
    phase = torch.angle(spectrum)
    with torch.no_grad():
        phase.masked_fill_((spectrum.real < 0) & (spectrum.imag.abs() <= rounding), math.pi)
        is_empty = spectrum.abs() <= rounding
    return phase.masked_fill(is_empty, 0.0)


def _rounding(x: Tensor) -> Tensor:
    """Size of what rounding leaves in a bin, per channel, [C, 1, 1]: that of the whole map's energy in one bin, times eps."""
    energy = x.detach().square().sum(dim=(1, 2), keepdim=True)
    return 8 * torch.finfo(x.dtype).eps * energy.sqrt()


def _check_patch(patch: int) -> None:
    if check_positive_int(patch, "patch") % 2 == 0:
        raise ValueError(f"patch: expected an odd side, got {patch}; use 5 as published")


def _check_filters(x: Tensor, filters: Tensor) -> None:
    if x.ndim != 4 or filters.ndim != 4 or filters.shape[1] != x.shape[1] or filters.shape[2] != filters.shape[3]:
        raise ValueError(
            f"filters: expected [P, C, k, k] for maps [B, C, h, w], got {describe(filters)} for {describe(x)}; "
            "draw them with make_projections for these channels"
        )
    _check_patch(filters.shape[2])
    if min(x.shape[2:]) < filters.shape[2]:
        raise ValueError(
            f"x: expected maps of at least {filters.shape[2]}x{filters.shape[2]}, got {describe(x)}; "
            "use larger images or fewer levels"
        )
