"""One rule for the arithmetic of every loss: at least float32, averaged per sample."""

from torch import Tensor

from ..checks import check_image, check_same_shape


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is widened to float32, float64 stays: losses are sums over many pixels."""
    return x if x.element_size() >= 4 else x.float()


def per_sample(x: Tensor) -> Tensor:
    """Mean over everything but the batch, [B, ...] -> [B]."""
    return at_least_float32(x).reshape(x.shape[0], -1).mean(1)


def check_pair(sr: Tensor, gt: Tensor, channels: tuple[int, ...] = (1, 3, 4)) -> tuple[Tensor, Tensor]:
    """Check two batches of images of one shape and widen them.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: not [B, C, H, W] with C in `channels`, or different shapes.
    """
    check_image(sr, "sr", channels)
    check_image(gt, "gt", channels)
    check_same_shape(sr, gt, "sr", "gt")
    return at_least_float32(sr), at_least_float32(gt)
