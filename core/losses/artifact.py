"""The artifact loss of LDL: pixel error weighted by how much worse and how much noisier the network is than its own average."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_same_shape
from .precision import at_least_float32, check_pair, per_sample

_TINY = 1e-12  # added to the variance before its fifth root, whose slope at 0 is infinite


def _box_mean(x: Tensor, size: int) -> Tensor:
    """Mean over every size x size window, rows then columns; sides shrink by size - 1."""
    return F.avg_pool2d(F.avg_pool2d(x, (size, 1), stride=1), (1, size), stride=1)


def local_variance(x: Tensor, window_px: int = 7) -> Tensor:
    """Unbiased variance over a window around each pixel, borders mirrored, as two box filters.

        v = n / (n - 1) (mean(x^2) - mean(x)^2),   n = window_px^2

    Args:
        x: [B, 1, H, W] float; sides longer than window_px // 2. Computed on x minus its mean per sample, which changes no
            variance but keeps the difference of the two means from cancelling.
        window_px: odd side of the window.

    Returns:
        [B, 1, H, W], never negative.
    """
    centred = x - x.detach().mean((1, 2, 3), keepdim=True)
    padded = F.pad(centred, (window_px // 2,) * 4, mode="reflect")
    mean, mean_square = _box_mean(torch.cat([padded, padded.square()], 1), window_px).chunk(2, 1)
    count = window_px * window_px
    return (mean_square - mean.square()).clamp(min=0) * (count / (count - 1))


def artifact_map(sr: Tensor, gt: Tensor, sr_ema: Tensor, window_px: int = 7) -> Tensor:
    """Where the network restores worse than its own moving average, and how restless its error is there.

        R = sum_c |gt - sr|,   R_ema = sum_c |gt - sr_ema|
        g = (var over the sample of R + 1e-12)^(1/5),   v = var of R over window_px x window_px, mirrored
        M = g v where R >= R_ema, else 0

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped.
        gt: the same shape.
        sr_ema: the moving average's result for the same input; no gradient flows into it.
        window_px: odd side of the window; the images must be larger than half of it.

    Returns:
        [B, 1, H, W] float32, >= 0, differentiable with respect to sr (the official code does not detach it).

    Raises:
        ValueError: shapes differ, not RGB, an even window, or images smaller than half a window.

    Source:
        Liang et al. 2022 (LDL), arXiv:2203.09195, Eq. (4)-(7); specification aesop.md section 2.4. Differs from the official code
        in the 1e-12, without which the gradient at sr == gt is NaN, and in computing the windows by box filters, not `unfold`.
    """
    wide_sr, wide_gt = check_pair(sr, gt, channels=(3,))
    check_same_shape(sr_ema, gt, "sr_ema", "gt")
    if window_px < 3 or window_px % 2 == 0:
        raise ValueError(f"window_px: expected an odd number of at least 3, got {window_px}; the paper uses 7")
    if min(sr.shape[-2:]) <= window_px // 2:
        raise ValueError(
            f"sr: expected sides longer than {window_px // 2} px for a window of {window_px}, got {tuple(sr.shape)}; "
            "use larger patches or a smaller window"
        )
    with torch.autocast(sr.device.type, enabled=False):  # differences of squares: half precision would leave nothing of them
        residual = (wide_gt - wide_sr).abs().sum(1, keepdim=True)
        residual_ema = (wide_gt - at_least_float32(sr_ema.detach())).abs().sum(1, keepdim=True)
        whole = (residual.var((1, 2, 3), keepdim=True) + _TINY) ** 0.2
        return torch.where(residual < residual_ema, 0.0, whole * local_variance(residual, window_px))


def artifact_loss(sr: Tensor, gt: Tensor, sr_ema: Tensor, detach_map: bool = False, window_px: int = 7) -> Tensor:
    """Absolute error weighted by the artifact map.

        L_i = mean_{c,y,x} |M_i sr_i - M_i gt_i| = mean_{c,y,x} M_i |sr_i - gt_i|

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped.
        gt: the same shape.
        sr_ema: the moving average's result for the same input; no gradient flows into it.
        detach_map: hold M constant. Off as in the released training, where the full gradient is several times larger and points
            elsewhere (specification aesop.md section 2.4).
        window_px: see `artifact_map`.

    Returns:
        [B] float32, 0 where sr is everywhere closer to gt than sr_ema, so also at sr == gt.

    Raises:
        ValueError: see `artifact_map`.

    Source:
        See `artifact_map`. M >= 0, so it moves out of the absolute value.
    """
    weight = artifact_map(sr, gt, sr_ema, window_px)
    error = (at_least_float32(sr) - at_least_float32(gt)).abs()
    return per_sample((weight.detach() if detach_map else weight) * error)
