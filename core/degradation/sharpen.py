"""Unsharp masking of the target, as Real-ESRGAN and its relatives sharpen their ground truth."""

import torch
from torch import Tensor

from ..checks import check_image
from .blur import filter_separable, gaussian_taps


def sharpen(gt: Tensor, *, weight: float = 0.5, threshold_255: float = 10.0) -> Tensor:
    """Sharpen where an image differs from its blur by more than a threshold (USM).

        B = G * gt,   M = G * [ |gt - B| > threshold / 255 ],   out = M clip(gt + weight (gt - B), 0, 1) + (1 - M) gt

    G is the 51 x 51 Gaussian of sigma 8.0 (OpenCV's choice for that size), borders mirrored.

    Args:
        gt: [B, C, H, W] float, range [0, 1].
        weight: strength, 0 leaves the image as it is.
        threshold_255: smallest difference in grey levels that is sharpened.

    Returns:
        The same shape and range. A constant image comes back unchanged.

    Source:
        StrSR specification 2.1 and AESOP specification 4.2; golden case c06_strsr/usm.
    """
    check_image(gt, "gt")
    taps = gaussian_taps(51, 8.0)
    out: list[Tensor] = []
    # One image at a time stays in a CPU's cache.
    parts = [gt[b : b + 1] for b in range(gt.shape[0])] if gt.device.type == "cpu" else [gt]
    for image in parts:
        residual = image - filter_separable(image, taps)
        mask = residual.detach().abs().gt_(threshold_255 / 255)
        sharp = torch.add(image, residual, alpha=weight).clamp(0, 1)
        out.append(torch.lerp(image, sharp, filter_separable(mask, taps)))
    return torch.cat(out)
