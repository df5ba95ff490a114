"""Losses on pixels: absolute and squared error, PSNR, and the absolute error that is left after a low-pass filter."""

from torch import Tensor

from ..images import rgb_to_y
from ..resize import imresize
from .precision import at_least_float32, check_pair, per_sample


def l1_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean absolute error per sample.

        L_i = mean_{c,y,x} |sr_i - gt_i|

    Args:
        sr: [B, C, H, W], range [0, 1], not clamped.
        gt: the same shape.

    Returns:
        [B] float32, 0 iff sr == gt.

    Example:
        >>> import torch
        >>> l1_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.25))
        tensor([0.2500, 0.2500])
    """
    return per_sample((at_least_float32(sr) - at_least_float32(gt)).abs())


def mse_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean squared error per sample.

        L_i = mean_{c,y,x} (sr_i - gt_i)^2

    Args:
        sr: [B, C, H, W], range [0, 1], not clamped.
        gt: the same shape.

    Returns:
        [B] float32, 0 iff sr == gt.
    """
    return per_sample((at_least_float32(sr) - at_least_float32(gt)).square())


def psnr_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """Negative peak signal-to-noise ratio per sample, in dB.

        L_i = 10 log10(mean_{c,y,x} (sr_i - gt_i)^2 + 1e-8)

    Its gradient is that of the squared error divided by the sample's own error, so that a flat, lightly degraded sample counts as
    much as a textured one under heavy noise: what the mean PSNR of a test set rewards.

    Args:
        sr: [B, C, H, W], range [0, 1], not clamped.
        gt: the same shape.

    Returns:
        [B] float32, from -80 (sr == gt) up.
    """
    return 10 * (mse_loss(sr, gt) + 1e-8).log10()


def psnr_y_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """Negative PSNR per sample, half of it on luma alone, in dB.

        L_i = ( psnr_loss(sr_i, gt_i) + psnr_loss(Y(sr_i), Y(gt_i)) ) / 2,   Y of BT.601

    A small network has to choose what it is good at; benchmarks, and eyes, look at luma first. The half on RGB keeps colours.

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped.
        gt: the same shape.

    Returns:
        [B] float32, from -80 (sr == gt) up.
    """
    return (psnr_loss(sr, gt) + psnr_loss(rgb_to_y(at_least_float32(sr)), rgb_to_y(at_least_float32(gt)))) / 2


def low_pass_l1_loss(sr: Tensor, gt: Tensor, scale: int = 4) -> Tensor:
    """Mean absolute error after shrinking both images: the low-pass baseline against which AESOP is compared.

        L_i = mean_{c,y,x} |down(sr_i) - down(gt_i)|,   down = MATLAB bicubic by 1 / scale

    Args:
        sr: [B, C, H, W], range [0, 1], not clamped.
        gt: the same shape.
        scale: shrinking factor, whole and at least 2.

    Returns:
        [B] float32, 0 iff both images shrink to the same one: texture that disappears at 1 / scale costs nothing.

    Raises:
        ValueError: shapes differ, or a scale below 2.

    Source:
        Lee et al. 2025, arXiv:2412.00124, Tab. 5 (b). The authors' unpublished layer is torch's bicubic without antialias, which
        aliases; ours is MATLAB's (specification aesop.md section 7).
    """
    wide_sr, wide_gt = check_pair(sr, gt)
    if scale < 2:
        raise ValueError(f"scale: expected at least 2, got {scale}; use l1_loss for the error of every pixel")
    return per_sample(imresize(wide_sr - wide_gt, 1 / scale).abs())  # shrinking is linear: once for the difference
