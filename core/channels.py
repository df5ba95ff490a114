"""Grey, RGB and RGBA through functions that take RGB: what goes in, what is kept aside, and how it comes back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .images import split_alpha, to_rgb
from .resize import bicubic

LUMA = (0.299, 0.587, 0.114)  # BT.601, full range


@dataclass(frozen=True)
class Channels:
    """A picture of any kind as RGB, with what its result has to have again.

    Attributes:
        rgb: [B, 3, H, W] in [0, 1].
        alpha: [B, 1, H, W] or None.
        is_grey: the picture had one channel.
    """

    rgb: Tensor
    alpha: Tensor | None
    is_grey: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.shape[-2], self.rgb.shape[-1]


def split_channels(pixels: Tensor) -> Channels:
    """Take a picture apart.

    Args:
        pixels: [B, C, H, W] in [0, 1], C = 1, 3 or 4.

    Returns:
        Grey repeated to RGB, RGB as it is, RGBA as RGB and alpha.
    """
    colour, alpha = split_alpha(pixels)
    return Channels(to_rgb(colour), alpha, pixels.shape[1] == 1)


def join_channels(rgb: Tensor, like: Channels) -> Tensor:
    """Give a result, of any size, the kind of the picture that it was made from.

        grey: 0.299 R + 0.587 G + 0.114 B;   RGBA: alpha resized by antialiased bicubic to the result's size, clamped

    Args:
        rgb: [B, 3, H2, W2] in [0, 1].
        like: what `split_channels` gave.

    Returns:
        [B, 1, 3 or 4, H2, W2], clamped to [0, 1].
    """
    rgb = rgb.clamp(0, 1)
    if like.is_grey:
        return (rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)
    if like.alpha is None:
        return rgb
    alpha = bicubic(like.alpha, (rgb.shape[-2], rgb.shape[-1])).clamp(0, 1)
    return torch.cat((rgb, alpha.to(rgb)), 1)
