"""Unsharp masking of the target, as Real-ESRGAN and its relatives sharpen their ground truth."""

import torch
from torch import Tensor

from ..checks import check_image
from .blur import filter_images


def _gaussian_51(sigma: float) -> Tensor:
    axis = torch.arange(51, dtype=torch.float64) - 25
    line = torch.exp(-0.5 * (axis / sigma) ** 2)
    line = line / line.sum()
    return line[:, None] * line[None, :]


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
    kernel = _gaussian_51(8.0)
    out: list[Tensor] = []
    for image in gt.unbind(0) if gt.device.type == "cpu" else [gt.flatten(0, 1)]:
        residual = image - filter_images([image], [kernel])[0]
        mask = (residual.abs() * 255 > threshold_255).to(image.dtype)
        soft = filter_images([mask], [kernel])[0]
        sharp = (image + weight * residual).clamp(0, 1)
        out.append(image + soft * (sharp - image))
    return torch.stack(out) if gt.device.type == "cpu" else out[0].view_as(gt)
