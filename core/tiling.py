"""Cut an image into overlapping tiles, run any function on them, and blend the results.

`plan` splits each side evenly, so all tiles are equal and can be batched; `plan_snapped` is the released StrSR scheme for parity.
Both give a `TilePlan`; `blend` runs a plan. The weight of a tile is a product of a row and a column ramp, and the tiles form a
grid, so the weights are normalised once per side and no sum of weights is ever stored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .checks import check_positive_int


class Box(NamedTuple):
    """Where one tile lies: batch index `sample`, then rows [top, top + height) and columns [left, left + width) of the input."""

    sample: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Side:
    """The tiles along one side of an image.

    Attributes:
        length: pixels of the side.
        tile_px: pixels of every tile, <= length.
        starts: first pixel of every tile, increasing; the last tile ends at `length`.
        ramps: for each pair of neighbours the pixels over which the weight goes from 0 to 1 (and from 1 to 0).
        is_closed: ramps take the values k/(r-1), which include 0 and 1 (StrSR), instead of (k+1/2)/r, which do not.
    """

    length: int
    tile_px: int
    starts: tuple[int, ...]
    ramps: tuple[int, ...]
    is_closed: bool = False

    def weights(self, scale: int = 1) -> Tensor:
        """Weight of each tile at each of its pixels, [tiles, tile_px * scale] float64; they sum to one all along the side."""
        size = self.tile_px * scale
        weights = torch.ones(len(self.starts), size, dtype=torch.float64)
        for i, ramp_px in enumerate(self.ramps):
            ramp = _ramp(ramp_px * scale, self.is_closed)
            weights[i, size - ramp.numel() :] *= ramp.flip(0)
            weights[i + 1, : ramp.numel()] *= ramp
        total = torch.zeros(self.length * scale, dtype=torch.float64)
        for start, row in zip(self.starts, weights, strict=True):
            total[start * scale : start * scale + size] += row
        for start, row in zip(self.starts, weights, strict=True):
            row /= total[start * scale : start * scale + size]
        return weights


@dataclass(frozen=True)
class TilePlan:
    """A grid of equal tiles that covers an image: every row start with every column start."""

    rows: Side
    columns: Side

    @property
    def height(self) -> int:
        """Image height in pixels."""
        return self.rows.length

    @property
    def width(self) -> int:
        """Image width in pixels."""
        return self.columns.length

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of every tile in pixels."""
        return self.rows.tile_px, self.columns.tile_px

    @property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """(top, left) of every tile, row by row."""
        return tuple((top, left) for top in self.rows.starts for left in self.columns.starts)

    @property
    def pixel_factor(self) -> float:
        """Pixels of all tiles divided by pixels of the image: the work of tiling, 1 for a single tile."""
        return len(self.starts) * math.prod(self.tile_size) / (self.height * self.width)


def plan(height: int, width: int, tile_px: int, overlap_px: int, multiple: int = 1) -> TilePlan:
    """Split an image evenly into equal tiles.

        n = ceil((L - o) / (T - o)),  t = ceil((L + (n - 1) o) / n),  start_i = floor(i (L - t) / (n - 1))

    per side of length L, in units of `multiple` pixels, with T = tile_px rounded down and o = overlap_px rounded up to the unit.
    Neighbours overlap by at least overlap_px, and by at most `multiple` pixels more than the even share.

    Args:
        height: image height in pixels, a multiple of `multiple`.
        width: image width in pixels, a multiple of `multiple`.
        tile_px: largest allowed side of a tile, >= multiple.
        overlap_px: smallest overlap of neighbours, 0 <= overlap_px < tile_px.
        multiple: tile sides and starts are multiples of this (16 for a patch of 2 on a latent of stride 8).

    Returns:
        The plan. A side that fits in one tile is one tile of its own length.

    Raises:
        ValueError: overlap_px >= tile_px, a size below 1, or an image that is not padded to `multiple`.

    Source:
        The released StrSR code snaps its last tile to the edge and does up to 2.26 times the work; see `plan_snapped`.

    Example:
        >>> even = plan(2048, 2048, tile_px=1152, overlap_px=64, multiple=16)
        >>> even.tile_size, len(even.starts), round(even.pixel_factor, 3)
        ((1056, 1056), 4, 1.063)
    """
    _check_sizes(height, width, tile_px, overlap_px)
    check_positive_int(multiple, "multiple")
    for name, length in (("height", height), ("width", width)):
        if length % multiple:
            raise ValueError(f"{name}: expected a multiple of {multiple}, got {length}; use images.pad_to_multiple first")
    if tile_px < multiple:
        raise ValueError(f"tile_px: expected at least {multiple}, of which sides are multiples, got {tile_px}; use a larger tile")
    if -(-overlap_px // multiple) >= tile_px // multiple:
        raise ValueError(
            f"overlap_px: expected less than tile_px after rounding both to multiples of {multiple}, "
            f"got overlap_px {overlap_px} and tile_px {tile_px}; use a larger tile or a smaller overlap"
        )
    return TilePlan(_even_side(height, tile_px, overlap_px, multiple), _even_side(width, tile_px, overlap_px, multiple))


def plan_snapped(height: int, width: int, tile_px: int, overlap_px: int) -> TilePlan:
    """Tiles at a fixed stride of tile_px - overlap_px, the last one snapped to the far edge, as the released StrSR code does.

    The ramps take k / (overlap_px - 1), k = 0 .. overlap_px - 1, on sides that touch another tile; weights are then normalised.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        tile_px: side of a tile.
        overlap_px: tile_px minus the stride, 0 <= overlap_px < tile_px.

    Returns:
        The plan, for `blend`.

    Raises:
        ValueError: overlap_px >= tile_px or a size below 1.

    Source:
        StrSR, jkwang28/StrSR@4a5c99e test_flux.py, tile_coords and infer_tiled. Differs in that overlap_px 0 works here.

    Example:
        >>> plan_snapped(1360, 2048, tile_px=1024, overlap_px=64).starts
        ((0, 0), (0, 960), (0, 1024), (336, 0), (336, 960), (336, 1024))
    """
    _check_sizes(height, width, tile_px, overlap_px)
    return TilePlan(_snapped_side(height, tile_px, overlap_px), _snapped_side(width, tile_px, overlap_px))


def crop_tiles(image: Tensor, boxes: Sequence[Box], scale: int = 1) -> Tensor:
    """Cut the boxes out of an image that is `scale` times the size the boxes refer to.

    Args:
        image: [B, C, H * scale, W * scale], any dtype.
        boxes: N boxes in pixels of the H x W image.
        scale: >= 1.

    Returns:
        [N, C, h * scale, w * scale], a copy.
    """
    pieces = [
        image[box.sample, :, box.top * scale : (box.top + box.height) * scale, box.left * scale : (box.left + box.width) * scale]
        for box in boxes
    ]
    return torch.stack(pieces)


def blend(
    fn: Callable[[Tensor, Sequence[Box]], Tensor],
    image: Tensor,
    plan: TilePlan,
    *,
    scale: int = 1,
    batch_size: int = 1,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run `fn` on the tiles of an image and blend the results.

        out(p) = sum_i w_i(p) fn(tile_i)(p),   sum_i w_i(p) = 1 at every output pixel p

    Args:
        fn: called as fn(tiles, boxes): tiles [N, C, h, w] and their N boxes, N <= batch_size; returns
            [N, C2, h * scale, w * scale]. The boxes say which sample and place each tile is, for conditions
            (`crop_tiles` cuts a second image alike).
        image: [B, C, H, W], any float dtype, range and device.
        plan: made for H x W.
        scale: output pixels per input pixel, >= 1.
        batch_size: tiles per call of fn, over all samples.
        on_tile: called as on_tile(done, total) after each batch; may raise to cancel.

    Returns:
        [B, C2, H * scale, W * scale] float32 (float64 if fn returns that) on the image's device. Differentiable where fn is.

    Raises:
        ValueError: the plan is for another size, or fn returns another shape.

    Example:
        >>> picture = torch.rand(1, 3, 40, 50)
        >>> out = blend(lambda tiles, boxes: 1 - tiles, picture, plan(40, 50, tile_px=24, overlap_px=8), batch_size=4)
        >>> torch.allclose(out, 1 - picture, atol=1e-6)
        True
    """
    check_positive_int(scale, "scale")
    check_positive_int(batch_size, "batch_size")
    _check_plan(image, plan)
    weight_of = _weight_maps(plan, scale)
    boxes = iter([Box(sample, *start, *plan.tile_size) for sample in range(image.shape[0]) for start in plan.starts])
    done, total = 0, image.shape[0] * len(plan.starts)
    out: Tensor | None = None
    for batch in _batches(boxes, batch_size):
        tiles = fn(crop_tiles(image, batch), batch)
        _check_tiles(tiles, batch, scale)
        tiles = tiles.to(image.device, torch.promote_types(tiles.dtype, torch.float32))
        if out is None:
            out = tiles.new_zeros(image.shape[0], tiles.shape[1], plan.height * scale, plan.width * scale)
        for box, tile in zip(batch, tiles, strict=True):
            top, left = box.top * scale, box.left * scale
            out[box.sample, :, top : top + tile.shape[-2], left : left + tile.shape[-1]] += tile * weight_of(box, out)
        done += len(batch)
        if on_tile is not None:
            on_tile(done, total)
    assert out is not None
    return out


def _weight_maps(plan: TilePlan, scale: int) -> Callable[[Box, Tensor], Tensor]:
    """(box, like) -> weights [h, w] of a tile with the dtype and device of `like`.

    Tiles with the same ramps share a map. Of any number of tiles along a side only the first, the last and the few kinds between
    them (whose overlaps differ by rounding) are made, once each.
    """
    rows, columns = _kinds(plan.rows, scale), _kinds(plan.columns, scale)
    made: dict[tuple[int, int], Tensor] = {}

    def weight_of(box: Box, like: Tensor) -> Tensor:
        (row, down), (column, across) = rows[box.top], columns[box.left]
        if (row, column) not in made:  # the product in float64 and so on the CPU: Apple's GPUs have no float64
            made[row, column] = torch.outer(down, across).to(like.dtype).to(like.device)
        return made[row, column]

    return weight_of


def _kinds(side: Side, scale: int) -> dict[int, tuple[int, Tensor]]:
    """Start of a tile -> a number that tiles of equal weights share, and those weights."""
    different, numbers = cast(tuple[Tensor, Tensor], torch.unique(side.weights(scale), dim=0, return_inverse=True))
    return {start: (number, different[number]) for start, number in zip(side.starts, map(int, numbers), strict=True)}


def _even_side(length: int, tile_px: int, overlap_px: int, multiple: int) -> Side:
    if length <= tile_px:
        return Side(length, length, (0,), ())
    units, largest, overlap = length // multiple, tile_px // multiple, -(-overlap_px // multiple)
    count = -(-(units - overlap) // (largest - overlap))
    tile = -(-(units + (count - 1) * overlap) // count)
    starts = tuple(i * (units - tile) // (count - 1) * multiple for i in range(count))
    ramps = tuple(tile * multiple - (after - before) for before, after in pairwise(starts))
    return Side(length, tile * multiple, starts, ramps)


def _snapped_side(length: int, tile_px: int, overlap_px: int) -> Side:
    if length <= tile_px:
        return Side(length, length, (0,), (), is_closed=True)
    starts = list(range(0, length - tile_px + 1, tile_px - overlap_px))
    if starts[-1] != length - tile_px:
        starts.append(length - tile_px)
    return Side(length, tile_px, tuple(starts), (overlap_px,) * (len(starts) - 1), is_closed=True)


def _ramp(size: int, is_closed: bool) -> Tensor:
    steps = torch.arange(size, dtype=torch.float64)
    if is_closed and size > 1:
        return steps / (size - 1)
    return (steps + 0.5) / max(size, 1)


def _batches(boxes: Iterator[Box], batch_size: int) -> Iterator[list[Box]]:
    while batch := list(islice(boxes, batch_size)):
        yield batch


def _check_sizes(height: int, width: int, tile_px: int, overlap_px: int) -> None:
    for value, name in ((height, "height"), (width, "width"), (tile_px, "tile_px")):
        check_positive_int(value, name)
    if not 0 <= overlap_px < tile_px:
        raise ValueError(f"overlap_px: expected 0 <= overlap_px < tile_px ({tile_px}), got {overlap_px}; use a smaller overlap")


def _check_plan(image: Tensor, plan: TilePlan) -> None:
    if image.ndim != 4 or image.shape[0] == 0 or tuple(image.shape[-2:]) != (plan.height, plan.width):
        raise ValueError(
            f"image: expected [B, C, {plan.height}, {plan.width}] as the plan says, got {tuple(image.shape)}; "
            "make the plan from the padded image"
        )


def _check_tiles(tiles: Tensor, boxes: Sequence[Box], scale: int) -> None:
    height, width = boxes[0].height * scale, boxes[0].width * scale
    if tiles.ndim != 4 or tiles.shape[0] != len(boxes) or tuple(tiles.shape[-2:]) != (height, width):
        raise ValueError(
            f"fn: expected to return [{len(boxes)}, C, {height}, {width}], got {tuple(tiles.shape)}; "
            f"check that scale={scale} is that of the function"
        )
