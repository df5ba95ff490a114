"""What a metric accepts as a picture: one rule for all of them."""

from torch import Tensor

from ..checks import check_image, check_unit_range

OVERSHOOT = 0.5


def check_picture(image: Tensor, name: str) -> Tensor:
    """Check a batch of pictures in [0, 1] and return it.

    Networks overshoot the range a little and files would be clamped, so values in [-0.5, 1.5] pass (and count as clamped, where
    a metric rounds to 8 bit). What lies farther out is no overshoot but another scale: [0, 255] or [-1, 1].

    Args:
        image: [B, C, H, W] float, C in (1, 3, 4).
        name: the argument's name for the message.

    Raises:
        TypeError: not a floating tensor.
        ValueError: wrong rank or channels, NaN, or values outside [-0.5, 1.5].
    """
    return check_unit_range(check_image(image, name), name, tolerance=OVERSHOOT)
