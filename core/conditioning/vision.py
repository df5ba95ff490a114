"""How a picture reaches Qwen3-VL's vision tower: the size it is given, 8 bits, and the rows of patches."""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_ASPECT = 200


class Rounding(NamedTuple):
    """A rule for image sides: multiples of `factor`, between `low` and `high` pixels in all."""

    factor: int
    low: int
    high: int


UTILITY_ROUNDING = Rounding(28, 4 * 28 * 28, 16384 * 28 * 28)  # qwen-vl-utils 0.0.8
PROCESSOR_ROUNDING = Rounding(32, 65_536, 16_777_216)  # the processor of Qwen3-VL


def round_size(height: int, width: int, rule: Rounding) -> tuple[int, int]:
    """The size to which Qwen's preprocessing resizes an image.

        h' = round(h / f) f, at least f, likewise w';  beyond the limits both are scaled by sqrt(limit / (h w)) first and then
        rounded down (too large) or up (too small)

    Halves are rounded to even, as Python does.

    Raises:
        ValueError: a side 200 times the other.

    Source:
        strsr.md section 1.3; qwen-vl-utils 0.0.8 and transformers 4.57.0 (smart_resize).

    Example:
        >>> round_size(1080, 1920, UTILITY_ROUNDING), round_size(1092, 1932, PROCESSOR_ROUNDING)
        ((1092, 1932), (1088, 1920))
    """
    factor, low, high = rule
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"lq: expected sides within 1 : {MAX_ASPECT}, got {height}x{width}; crop the image")
    rounded = tuple(max(factor, round(side / factor) * factor) for side in (height, width))
    if math.prod(rounded) > high:
        shrink = math.sqrt(height * width / high)
        rounded = tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif math.prod(rounded) < low:
        grow = math.sqrt(low / (height * width))
        rounded = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return rounded[0], rounded[1]


def vision_sizes(height: int, width: int, *, parity: bool, factor: int = PROCESSOR_ROUNDING.factor) -> list[tuple[int, int]]:
    """Sizes through which an image goes: multiples of 28 and then of 32 as released (`parity`), or of 32 at once.

    Example:
        >>> vision_sizes(339, 510, parity=True), vision_sizes(339, 510, parity=False)
        ([(336, 504), (320, 512)], [(352, 512)])
    """
    last = PROCESSOR_ROUNDING._replace(factor=factor)
    if not parity:
        return [round_size(height, width, last)]
    first = round_size(height, width, UTILITY_ROUNDING)
    return [first, round_size(*first, last)]


def vision_pixels(image: Tensor, *, parity: bool, factor: int = PROCESSOR_ROUNDING.factor) -> Tensor:
    """One image as the vision tower sees it: 8 bits, resized with Pillow's bicubic filter, (x - 0.5) / 0.5.

    Pictures of 8 bits stay what they are either way; degraded ones, in training, lie between the levels.

    Args:
        image: [3, h, w], range [0, 1].
        parity: resize twice and cut the 8 bits off, as released; otherwise once, rounded.
        factor: patch times merge of the vision tower.

    Returns:
        [3, H, W] float32 in [-1, 1].

    Source:
        strsr.md sections 1.3 and 2.1 item 4.
    """
    picture = Image.fromarray(to_uint8(image, parity=parity).permute(1, 2, 0).numpy())
    for height, width in vision_sizes(*image.shape[1:], parity=parity, factor=factor):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Cut an image into the rows that Qwen's vision tower reads: patches of one merge group follow one another.

    Args:
        pixels: [3, H, W], sides multiples of patch * merge.
        patch: side of a patch.
        merge: patches per side that become one token.
        frames: a still image is shown that many times.

    Returns:
        [H / patch * W / patch, 3 * frames * patch * patch].

    Source:
        transformers 4.57.0, Qwen2VLImageProcessor.
    """
    rows, columns = pixels.shape[1] // (patch * merge), pixels.shape[2] // (patch * merge)
    grid = pixels.reshape(3, rows, merge, patch, columns, merge, patch)
    patches = grid.permute(1, 4, 2, 5, 0, 3, 6)  # rows, columns, merge, merge, colour, patch, patch
    shown = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return shown.reshape(rows * columns * merge * merge, 3 * frames * patch * patch)


def to_uint8(image: Tensor, *, parity: bool = False) -> Tensor:
    """[..] in [0, 1] -> 8 bits on the CPU, clamped; rounded, or cut off in parity."""
    levels = image.detach().float().clamp(0, 1) * 255
    return (levels if parity else levels.round()).to(torch.uint8).cpu()
