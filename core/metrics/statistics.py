"""A no-reference statistic that needs no weights: how strong and coherent edges are."""

import math

import torch
from torch import Tensor

from ..checks import check_image
from ..images import rgb_to_y

PATCH_PX = 8
SIGNIFICANCE = 0.001  # chance that white noise passes for an edge
POWER_FLOOR = 1e-12


def content_q(x: Tensor) -> Tensor:
    """Sharpness of what is no noise: mean gradient strength across the edges of a picture, over its 8x8 blocks.

        s1 >= s2: singular values of the 64 x 2 matrix of a block's gradients;   R = (s1 - s2) / (s1 + s2)
        Q = 255 / 8 * mean over blocks of  s1 R  where R > tau, else 0
        tau = sqrt( (1 - a^(1/63)) / (1 + a^(1/63)) ),  a = 0.001

    A block of white noise has R below tau with probability 1 - a. So blur lowers Q, and noise does too, since it makes edges less
    coherent, where plain gradient energy would praise it.

    Args:
        x: [B, 1 or 3, H, W] float, range [0, 1], sides >= 10.

    Returns:
        [B] float64, at least 0, in grey levels per pixel; higher is better.

    Raises:
        ValueError: not an image, or a side below 10.

    Source:
        Zhu and Milanfar 2010, IEEE TIP 19(12), metric Q. Ours averages over all blocks, the incoherent ones as 0, so that
        pictures of one scene can be compared; gradients are central differences of Y.

    Example:
        >>> stripes = (torch.arange(32) % 8 < 4).float().expand(1, 1, 32, 32)
        >>> bool(content_q(stripes) > content_q(0.5 + 0.5 * (stripes - 0.5)))
        True
    """
    check_image(x, "x", channels=(1, 3))
    if min(x.shape[-2:]) < PATCH_PX + 2:
        raise ValueError(f"x: expected sides of at least {PATCH_PX + 2} pixels, got {tuple(x.shape[-2:])}; use a larger image")
    luma = rgb_to_y(x.double())
    down = (luma[..., 2:, 1:-1] - luma[..., :-2, 1:-1]) / 2
    right = (luma[..., 1:-1, 2:] - luma[..., 1:-1, :-2]) / 2
    xx, yy, xy = (_block_sums(product) for product in (right * right, down * down, right * down))
    # eigenvalues of the 2x2 matrix of sums are the squares of the singular values
    mean, half = (xx + yy) / 2, (((xx - yy) / 2).square() + xy.square()).sqrt()
    s1, s2 = (mean + half).clamp_min(0).sqrt(), (mean - half).clamp_min(0).sqrt()
    coherence = (s1 - s2) / (s1 + s2).clamp_min(POWER_FLOOR)
    root = SIGNIFICANCE ** (1 / (PATCH_PX**2 - 1))
    threshold = math.sqrt((1 - root) / (1 + root))
    return 255 / PATCH_PX * torch.where(coherence > threshold, s1 * coherence, torch.zeros_like(s1)).flatten(1).mean(1)


def _block_sums(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x, PATCH_PX) * PATCH_PX**2
