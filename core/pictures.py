"""Pictures for people: curves, spectra, side-by-sides, tables. Everything returns a PIL image; nothing is written here."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .checks import check_same_shape
from .drawing import (
    GOOD,
    MARKS,
    MUTED,
    PAPER,
    RULE,
    SHADE,
    Box,
    as_picture,
    colour_map,
    fit,
    frame,
    paste_rows,
    shorten,
    text_width,
    write,
)
from .plots import Points, curves, scatter, spectra

__all__ = ["Points", "contact_sheet", "curves", "difference", "scatter", "side_by_side", "spectra", "table", "thumbnail"]

_GAP, _MARGIN, _LABEL = 12, 16, 17


def side_by_side(
    images: Mapping[str, Tensor | Image.Image],
    *,
    crops: int | Sequence[tuple[int, int]] = 2,
    crop_px: int = 0,
    panel_px: int = 400,
    title: str = "",
) -> Image.Image:
    """Show the same scene in labelled panels and, below each, zoomed crops whose places are framed in the panels.

    Args:
        images: label -> PIL image or [B, C, H, W] in [0, 1] (the first sample is shown). The last one sets the size; others are
            resized to it (bicubic), so a low-resolution input may be given as it is.
        crops: how many places to look for (the most detailed ones that do not overlap), or their centres (x, y) in pixels.
        crop_px: side of a crop in pixels of the last image; 0: about a sixth of its short side, 24..96.
        panel_px: width of a column.
        title: above the picture.

    Returns:
        RGB picture. Crops are enlarged by repeating pixels, by a whole factor, so nothing is smoothed.

    Raises:
        ValueError: no image, or a crop centre outside the picture.
    """
    if not images:
        raise ValueError("images: expected at least one, got none; pass label -> image")
    pictures = {label: as_picture(image, label) for label, image in images.items()}
    size = list(pictures.values())[-1].size
    pictures = {k: p if p.size == size else p.resize(size, Image.Resampling.BICUBIC) for k, p in pictures.items()}
    # by default as large as an enlargement by a whole factor lets a crop fill its column
    wished = max(24, min(96, min(size) // 6))
    side = min(crop_px or (panel_px - 8) // max(1, round((panel_px - 8) / wished)), *size)
    boxes = _crop_boxes(list(pictures.values())[-1], crops, side)
    columns = [_column(label, picture, boxes, panel_px) for label, picture in pictures.items()]
    body = Image.new("RGB", (len(columns) * (panel_px + _GAP) - _GAP, columns[0].height), PAPER)
    for index, column in enumerate(columns):
        body.paste(column, (index * (panel_px + _GAP), 0))
    return _page(body, title)


def _crop_boxes(picture: Image.Image, crops: int | Sequence[tuple[int, int]], side: int) -> list[Box]:
    width, height = picture.size
    if isinstance(crops, int):
        return _busiest(picture, min(crops, len(MARKS)), side)
    for x, y in crops:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"crops: expected centres inside {width}x{height}, got ({x}, {y}); give x,y in pixels of the result")
    corners = [(min(max(x - side // 2, 0), width - side), min(max(y - side // 2, 0), height - side)) for x, y in crops]
    return [(left, top, left + side, top + side) for left, top in corners]


def _busiest(picture: Image.Image, count: int, side: int) -> list[Box]:
    """Up to `count` squares of most detail (mean absolute gradient of luma) that keep one side between them."""
    luma = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32))
    energy = torch.zeros_like(luma)
    energy[:, 1:] += luma.diff(dim=1).abs()
    energy[1:] += luma.diff(dim=0).abs()
    means = torch.nn.functional.avg_pool2d(energy[None, None], side, stride=max(1, side // 8))[0, 0]
    step = max(1, side // 8)
    boxes: list[Box] = []
    apart = 2 * side
    for place in means.flatten().argsort(descending=True):
        if len(boxes) >= count:
            break
        row, column = divmod(int(place), means.shape[1])
        top, left = row * step, column * step
        if all(abs(left - box[0]) >= apart or abs(top - box[1]) >= apart for box in boxes):
            boxes.append((left, top, left + side, top + side))
    return boxes


def _column(label: str, picture: Image.Image, boxes: Sequence[Box], width: int) -> Image.Image:
    """Label, whole picture with frames, crops."""
    whole = fit(picture, width, 2 * width)
    across, down = whole.width / picture.width, whole.height / picture.height
    for box, colour in zip(boxes, MARKS, strict=False):
        left, top, right, bottom = box
        frame(whole, (round(left * across), round(top * down), round(right * across), round(bottom * down)), colour, 2)
    head = Image.new("RGB", (width, _LABEL + 12), PAPER)
    write(head, width // 2, 4, shorten(label, _LABEL, width, bold=True), _LABEL, bold=True, anchor="ma")
    panel = Image.new("RGB", (width, whole.height), PAPER)
    panel.paste(whole, ((width - whole.width) // 2, 0))
    rows = [head, panel]
    for box, colour in zip(boxes, MARKS, strict=False):
        factor = max(1, (width - 8) // (box[2] - box[0]))
        crop = picture.crop(box)
        zoomed = crop.resize((crop.width * factor, crop.height * factor), Image.Resampling.NEAREST)
        cell = Image.new("RGB", (width, zoomed.height + 8), PAPER)
        left = (width - zoomed.width) // 2
        cell.paste(zoomed, (left, 4))
        frame(cell, (left, 4, left + zoomed.width, 4 + zoomed.height), colour, 3)
        rows.append(cell)
    return paste_rows(rows, _GAP // 2)


def _page(body: Image.Image, title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Margins, an optional title above and notes below."""
    above = 34 if title else 0
    lines = [part for note in notes for part in _wrapped(note, body.width)]
    below = 20 * len(lines) + (8 if lines else 0)
    page = Image.new("RGB", (body.width + 2 * _MARGIN, body.height + 2 * _MARGIN + above + below), PAPER)
    if title:
        write(page, _MARGIN, _MARGIN, shorten(title, 20, body.width, bold=True), 20, bold=True)
    page.paste(body, (_MARGIN, _MARGIN + above))
    for index, line in enumerate(lines):
        write(page, _MARGIN, _MARGIN + above + body.height + 10 + 20 * index, line, 14, colour=MUTED)
    return page


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, 14) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [shorten(line, 14, width) for line in lines]


def difference(a: Tensor, b: Tensor, *, top_255: float = 0.0, title: str = "") -> Image.Image:
    """Where two images differ: mean absolute difference over the channels as a heat map with a scale in grey levels.

    Args:
        a: [B, C, H, W] in [0, 1]; the first sample is shown.
        b: the same shape.
        top_255: grey levels at the bright end of the scale; 0: the 99.5th percentile, at least 4 levels.
        title: above the picture.

    Returns:
        RGB picture, the heat map at the images' own size or enlarged by a whole factor up to
        320 pixels wide and 1600 high.
    """
    check_same_shape(a, b, "a", "b")
    gap = (a[:1].float() - b[:1].float()).abs().mean(1)[0] * 255
    top = top_255 or max(4.0, float(np.percentile(gap.detach().cpu().numpy(), 99.5)))
    heat = colour_map(gap / top)
    factor = max(1, min(320 // heat.width, 1600 // heat.height))
    heat = heat.resize((heat.width * factor, heat.height * factor), Image.Resampling.NEAREST)
    tall = max(heat.height, 120)
    body = Image.new("RGB", (heat.width + 110, tall), PAPER)
    body.paste(heat, (0, (tall - heat.height) // 2))
    bar = colour_map(torch.linspace(1, 0, tall)[:, None].expand(tall, 18))
    body.paste(bar, (heat.width + 14, 0))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round((1 - share) * (tall - 1))
        anchor = "lt" if share == 1 else "ls" if share == 0 else "lm"
        write(body, heat.width + 38, y, f"{top * share:.3g}", 14, anchor=anchor)
    note = f"mean |difference| {float(gap.mean()):.2f}, largest {float(gap.max()):.1f} of 255 grey levels"
    return _page(body, title, [note])


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    marked: Collection[tuple[int, int]] = (),
    ruled: Collection[int] = (),
    has_summary: bool = False,
) -> Image.Image:
    """A table as a picture: first column left-aligned, the others right-aligned, every second row shaded.

    Args:
        header: column titles.
        rows: cells, each row as long as the header.
        title: above the table.
        notes: lines below it.
        marked: (row, column) of cells on a green ground, the best ones, say.
        ruled: rows with a line above them, where another kind of row begins.
        has_summary: the last row is set apart in bold.

    Raises:
        ValueError: no column, or a row of another length.
    """
    if not header or any(len(row) != len(header) for row in rows):
        found = sorted({len(row) for row in rows})
        raise ValueError(f"rows: expected {len(header)} cells in every row, got {found}; fill the gaps with ''")
    size, tall, pad = 15, 30, 14
    cells = [list(header), *map(list, rows)]
    widths = [min(420, max(text_width(line[c], size, bold=True) for line in cells)) + 2 * pad for c in range(len(header))]
    body = Image.new("RGB", (max(sum(widths), 240), tall * len(cells) + 4), PAPER)
    draw = ImageDraw.Draw(body)
    for index, line in enumerate(cells):
        top, is_last = tall * index + (4 if index else 0), has_summary and index == len(cells) - 1
        if index and index % 2 == 0 and not is_last:
            draw.rectangle((0, top, sum(widths) - 1, top + tall - 1), fill=SHADE)
        left = 0
        for column, text in enumerate(line):
            if (index - 1, column) in marked:
                draw.rectangle((left + 3, top + 3, left + widths[column] - 4, top + tall - 4), fill=GOOD)
            bold = index == 0 or is_last
            shown = shorten(text, size, widths[column] - 2 * pad, bold)
            if column == 0:
                write(body, left + pad, top + tall // 2, shown, size, bold=bold, anchor="lm")
            else:
                write(body, left + widths[column] - pad, top + tall // 2, shown, size, bold=bold, anchor="rm")
            left += widths[column]
        if index == 0 or index - 1 in ruled or (is_last and index > 1):
            y = tall + 1 if index == 0 else top
            draw.line((0, y, sum(widths) - 1, y), fill=RULE, width=2)
    return _page(body, title, notes)


def contact_sheet(
    images: Mapping[str, Tensor | Image.Image], *, columns: int = 4, cell_px: int = 240, title: str = ""
) -> Image.Image:
    """Small labelled views of many pictures in a grid.

    Args:
        images: label -> image as in `side_by_side`; at least one.
        columns: cells per row.
        cell_px: largest side of a view.
        title: above the picture.
    """
    if not images:
        raise ValueError("images: expected at least one, got none; pass label -> image")
    columns = min(columns, len(images))
    views = {label: fit(as_picture(image, label), cell_px, cell_px) for label, image in images.items()}
    tall = max(view.height for view in views.values()) + 26
    lines = -(-len(views) // columns)
    body = Image.new("RGB", (columns * (cell_px + _GAP) - _GAP, lines * (tall + _GAP) - _GAP), PAPER)
    for index, (label, view) in enumerate(views.items()):
        left, top = index % columns * (cell_px + _GAP), index // columns * (tall + _GAP)
        body.paste(view, (left + (cell_px - view.width) // 2, top))
        write(body, left + cell_px // 2, top + view.height + 6, shorten(label, 14, cell_px), 14, anchor="ma")
    return _page(body, title)


def thumbnail(image: Tensor | Image.Image, width: int = 480, height: int = 320) -> Image.Image:
    """Fill exactly width x height with the middle of a picture."""
    picture = as_picture(image)
    ratio = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * ratio)), max(height, round(picture.height * ratio)))
    scaled = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled.crop((left, top, left + width, top + height))
