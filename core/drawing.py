"""Small drawing tools that `pictures` is made of: fonts, colours, panels. PIL only; matplotlib lends its font and colour maps."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .checks import check_image
from .image_files import to_pil

INK = (28, 31, 36)
MUTED = (104, 110, 120)
PAPER = (255, 255, 255)
SHADE = (243, 245, 248)
RULE = (206, 211, 218)
GOOD = (219, 242, 223)
MARKS = ((230, 57, 53), (21, 101, 192), (46, 160, 67), (245, 158, 11))  # frames of zoomed crops, in order
Box = tuple[int, int, int, int]


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans in a size in pixels (it comes with matplotlib and has arrows and Greek)."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)


def text_width(text: str, size: int, bold: bool = False) -> int:
    """Width of a line in pixels, rounded up."""
    return int(font(size, bold).getlength(text) + 0.999)


def shorten(text: str, size: int, width: int, bold: bool = False) -> str:
    """The text, cut with an ellipsis in the middle if it is wider than `width` pixels."""
    if text_width(text, size, bold) <= width:
        return text
    keep = len(text)
    while keep > 2 and text_width(_middle_cut(text, keep), size, bold) > width:
        keep -= 1
    return _middle_cut(text, keep)


def _middle_cut(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return text[:head] + "\u2026" + text[len(text) - (keep - head) :]


def write(
    canvas: Image.Image, x: int, y: int, text: str, size: int, *, bold: bool = False, colour: Any = INK, anchor: str = "la"
) -> None:
    """Draw one line of text; `anchor` as in Pillow (la: left top, ra: right top, ma: centre top)."""
    ImageDraw.Draw(canvas).text((x, y), text, fill=colour, font=font(size, bold), anchor=anchor)


def frame(canvas: Image.Image, box: Box, colour: Any, width: int) -> None:
    """A rectangle of `width` pixels just outside the box (left, top, right, bottom), kept on the canvas."""
    draw = ImageDraw.Draw(canvas)
    for grow in range(width):
        left, top = max(0, box[0] - 1 - grow), max(0, box[1] - 1 - grow)
        right, bottom = min(canvas.width - 1, box[2] + grow), min(canvas.height - 1, box[3] + grow)
        draw.rectangle((left, top, right, bottom), outline=colour)


def as_picture(image: Tensor | Image.Image, name: str = "image") -> Image.Image:
    """An RGB picture of a PIL image or of the first sample of [B, C, H, W] in [0, 1]; alpha shows a chequerboard behind."""
    if isinstance(image, Tensor):
        image = to_pil(check_image(image, name)[:1])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        board = Image.fromarray(_chequerboard(rgba.height, rgba.width))
        return Image.alpha_composite(board.convert("RGBA"), rgba).convert("RGB")
    return image.convert("RGB")


def _chequerboard(height: int, width: int, cell: int = 8) -> Any:
    rows, columns = np.ogrid[:height, :width]
    light = ((rows // cell + columns // cell) % 2).astype(np.uint8)
    return np.repeat((208 + 32 * light)[..., None].astype(np.uint8), 3, axis=2)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale into width x height, keeping the shape: shrinking is smooth, enlarging repeats pixels by a whole factor."""
    ratio = min(width / image.width, height / image.height)
    if ratio >= 2:
        factor = int(ratio)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def colour_map(values: Tensor, name: str = "inferno") -> Image.Image:
    """[H, W] in [0, 1] -> a colour picture."""
    import matplotlib

    table = np.asarray(matplotlib.colormaps[name](np.linspace(0, 1, 256)))[:, :3]
    lookup = (table * 255).round().astype(np.uint8)
    index = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(lookup[index])


def paste_rows(rows: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures below one another on white paper, left-aligned."""
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows) + gap * (len(rows) - 1)), PAPER)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + gap
    return canvas
