"""Sliced Wasserstein distance between two spectra, from the stored halves: chunked, sorted in place, gradient with the value.

A real map's spectrum repeats itself: M(-k) = parity M(k), with parity +1 for amplitude and -1 for phase. A filter W of odd side
splits into its point-symmetric and its antisymmetric part, and with k + d, k - d for the two ends of a tap

    S(k) = sum_d (W(d) + W(-d)) / 2 (M(k + d) + M(k - d)),   D(k) = sum_d (W(d) - W(-d)) / 2 (M(k + d) - M(k - d))

over half of the taps, the window at k projects to S + D and the window at -k to parity (S - D). So half of the windows and two
products of half the length give every projection: half the arithmetic of a convolution over the whole spectrum.

The distance is a number per image, so its gradient is formed while the sorted projections are at hand and kept instead of
them: only `chunk` projections of both images exist at any time, and nothing of them afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .matching import CHUNK_ELEMENTS, match_sorted

BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**27}  # gathered taps: the cache's size on a CPU, enough to fill a GPU


@dataclass(frozen=True)
class Windows:
    """Where the windows of a half spectrum lie.

    Attributes:
        height: rows of the spectrum.
        width: columns of the whole spectrum; the half has width // 2 + 1.
        radius: windows are 2 radius + 1 on a side.
    """

    height: int
    width: int
    radius: int

    @property
    def rows(self) -> int:
        """Rows of centres: radius .. height - radius; the last one serves the mirrored windows alone."""
        return self.height - 2 * self.radius + 1

    @property
    def columns(self) -> int:
        """Columns of centres: radius .. width // 2."""
        return self.width // 2 - self.radius + 1

    @property
    def mirrored_columns(self) -> int:
        """Columns of windows beyond width // 2."""
        return self.width - self.width // 2 - 1 - self.radius

    @property
    def count(self) -> int:
        """All windows that lie inside the spectrum."""
        return (self.height - 2 * self.radius) * (self.width - 2 * self.radius)

    def views(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[P, count] -> views of the direct [P, H - 2r, columns] and of the mirrored values [P, H - 2r, mirrored columns]."""
        rows = self.rows - 1
        direct = values[:, : rows * self.columns].view(len(values), rows, self.columns)
        return direct, values[:, rows * self.columns :].view(len(values), rows, self.mirrored_columns)

    def blocks(self, values_per_row: int, element_bytes: int, device: str) -> Iterator[tuple[int, int]]:
        """Ranges of rows of centres whose gathered taps fit the block size."""
        budget = BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"])
        step = max(1, budget // (values_per_row * element_bytes))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def split_filters(filters: Tensor) -> tuple[Tensor, Tensor]:
    """[P, C, k, k] -> point-symmetric [P, (T + 1) C] and antisymmetric [P, T C] parts over half of the taps, T = (k^2 - 1) / 2.

    Taps in row-major order from the one after the centre; the centre itself comes last in the symmetric part.
    """
    count = filters.shape[-1] ** 2
    taps = filters.flatten(2).movedim(2, 1)  # [P, k * k, C]
    middle = count // 2
    after, before = taps[:, middle + 1 :], taps[:, :middle].flip(1)
    symmetric = torch.cat([(after + before) / 2, taps[:, middle : middle + 1]], 1)
    return symmetric.flatten(1).contiguous(), ((after - before) / 2).flatten(1).contiguous()


def extend(half: Tensor, windows: Windows, parity: int) -> Tensor:
    """[C, H, W // 2 + 1] -> [C, H + 1, W // 2 + 1 + radius]: the first row again below, the half's neighbours to the right."""
    first = windows.width - windows.width // 2 - windows.radius
    right = parity * half[:, :, first : first + windows.radius].flip(1, 2).roll(1, 1)
    if parity < 0:
        right.masked_fill_(right == -math.pi, math.pi)  # the mirror image of half a turn
    wide = torch.cat([half, right], 2)
    return torch.cat([wide, wide[:, :1]], 1)


def half_turns(half: Tensor, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Channel, row and column, in the whole spectrum, of the phases of exactly pi that mirrored windows can reach."""
    first = windows.width // 2 - windows.radius + 1
    turned = half == math.pi
    mirrored = turned[:, :, 1 : windows.width - windows.width // 2].flip(1, 2).roll(1, 1)
    channel, row, column = torch.cat([turned[:, :, first:], mirrored], 2).nonzero().unbind(1)  # a GPU is waited for here, once
    return channel, row, column + first


def fold(wide: Tensor, windows: Windows, parity: int) -> Tensor:
    """The adjoint of `extend`."""
    wide[:, 0] += wide[:, -1]
    half = wide[:, :-1, : windows.width // 2 + 1].contiguous()
    right = wide[:, :-1, windows.width // 2 + 1 :].roll(-1, 1).flip(1, 2)
    first = windows.width - windows.width // 2 - windows.radius
    half[:, :, first : first + windows.radius] += parity * right
    return half


def tap_pairs(wide: Tensor, radius: int, start: int, stop: int, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of `wide` at k + d and k - d for centres of the rows start..stop, one pair per tap d after the centre."""
    side = 2 * radius + 1
    for tap in range(side * side // 2 + 1, side * side):
        y, x = tap // side, tap % side
        back_y, back_x = side - 1 - y, side - 1 - x
        yield (
            wide[:, start + y : stop + y, x : x + columns],
            wide[:, start + back_y : stop + back_y, back_x : back_x + columns],
        )


class Projector:
    """Projects the windows of one half spectrum, a range of filters at a time, and carries gradients back.

    Args:
        half: [C, H, W // 2 + 1].
        windows: its geometry.
        parity: +1 for an even map (amplitude), -1 for an odd one (phase).
    """

    def __init__(self, half: Tensor, windows: Windows, parity: int) -> None:
        self.windows, self.parity = windows, parity
        self.wide = extend(half, windows, parity)
        self.half_turns = half_turns(half, windows) if parity < 0 else None
        self.gradient: Tensor | None = None
        channels, taps = half.shape[0], (2 * windows.radius + 1) ** 2 // 2
        self.blocks = list(windows.blocks((2 * taps + 1) * channels * windows.columns, half.element_size(), half.device.type))
        rows = max(stop - start for start, stop in self.blocks)
        self.even = half.new_empty((taps + 1) * channels * rows * windows.columns)
        self.odd = half.new_empty(taps * channels * rows * windows.columns)

    def _buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        channels, taps = self.wide.shape[0], (2 * self.windows.radius + 1) ** 2 // 2
        shape = (channels, rows, self.windows.columns)
        size = math.prod(shape)
        return self.even[: (taps + 1) * size].view(-1, *shape), self.odd[: taps * size].view(-1, *shape)

    def project(self, symmetric: Tensor, antisymmetric: Tensor, filters: Tensor, out: Tensor) -> None:
        """Write the projections of every window by P filters to `out` [P, count]."""
        windows, radius = self.windows, self.windows.radius
        direct, mirrored = windows.views(out)
        for start, stop in self.blocks:
            even, odd = self._buffers(stop - start)
            for tap, (ahead, behind) in enumerate(tap_pairs(self.wide, radius, start, stop, windows.columns)):
                torch.add(ahead, behind, out=even[tap])
                torch.sub(ahead, behind, out=odd[tap])
            even[-1] = self.wide[:, start + radius : stop + radius, radius : radius + windows.columns]
            total = (symmetric @ even.flatten(0, 1).flatten(1)).view(-1, stop - start, windows.columns)
            swing = (antisymmetric @ odd.flatten(0, 1).flatten(1)).view(-1, stop - start, windows.columns)
            last = min(stop, windows.rows - 1)
            torch.add(total[:, : last - start], swing[:, : last - start], out=direct[:, start:last])
            first = max(start, 1)
            kept = slice(1, 1 + windows.mirrored_columns)
            torch.sub(total[:, first - start :, kept], swing[:, first - start :, kept], out=mirrored[:, first - 1 : stop - 1])
        if self.parity < 0:
            mirrored.neg_()
            self._correct_half_turns(filters, out[:, direct[0].numel() :])

    def _correct_half_turns(self, filters: Tensor, mirrored: Tensor) -> None:
        """Add what oddness misses: a phase of pi is pi in the mirror image too, so the mirrored windows took -pi for it."""
        radius, height, width = self.windows.radius, self.windows.height, self.windows.width
        assert self.half_turns is not None
        channel, row, column = self.half_turns
        if not len(channel):
            return
        for tap in range((2 * radius + 1) ** 2):
            y, x = tap // (2 * radius + 1), tap % (2 * radius + 1)
            centre_row, centre_column = row - y + radius, column - x + radius
            inside = (centre_row >= radius) & (centre_row < height - radius)
            inside &= (centre_column > width // 2) & (centre_column < width - radius)
            place = (height - centre_row - radius - 1) * self.windows.mirrored_columns + (width - centre_column - radius - 1)
            place = place.where(inside, 0)  # those outside add nothing there: to leave them out, a GPU would have to count them
            taps = 2 * math.pi * filters[:, :, y, x]
            step = max(1, CHUNK_ELEMENTS // (8 * len(filters)))
            for places, channels, counts in zip(
                *(cast(tuple[Tensor, ...], values.split(step)) for values in (place, channel, inside)), strict=True
            ):
                mirrored.index_add_(1, places, taps[:, channels] * counts)

    def accumulate(self, symmetric: Tensor, antisymmetric: Tensor, gradient: Tensor) -> None:
        """Add the adjoint of `project` applied to `gradient` [P, count]."""
        windows, radius = self.windows, self.windows.radius
        if self.gradient is None:
            self.gradient = torch.zeros_like(self.wide)
        direct, mirrored = windows.views(gradient)
        for start, stop in self.blocks:
            last, first = min(stop, windows.rows - 1), max(start, 1)
            total = gradient.new_zeros(gradient.shape[0], stop - start, windows.columns)
            total[:, : last - start] = direct[:, start:last]
            swing = total.clone()
            kept = slice(1, 1 + windows.mirrored_columns)
            block = mirrored[:, first - 1 : stop - 1]
            total[:, first - start :, kept].add_(block, alpha=self.parity)
            swing[:, first - start :, kept].sub_(block, alpha=self.parity)
            even, odd = self._buffers(stop - start)
            torch.mm(symmetric.mT, total.flatten(1), out=even.flatten(0, 1).flatten(1))
            torch.mm(antisymmetric.mT, swing.flatten(1), out=odd.flatten(0, 1).flatten(1))
            for tap, (ahead, behind) in enumerate(tap_pairs(self.gradient, radius, start, stop, windows.columns)):
                ahead += even[tap]
                ahead += odd[tap]
                behind += even[tap]
                behind -= odd[tap]
            self.gradient[:, start + radius : stop + radius, radius : radius + windows.columns] += even[-1]

    def half_gradient(self) -> Tensor:
        """Gradient with respect to the half spectrum, [C, H, W // 2 + 1]."""
        assert self.gradient is not None
        return fold(self.gradient, self.windows, self.parity)


class _SlicedDistance(torch.autograd.Function):
    """mean over filters and windows of |sort(projections of x) - sort(projections of y)|, for two half spectra of one image.

    Arguments of `apply`: x [C, H, W // 2 + 1], y likewise, filters [P, C, k, k], width, parity, chunk (filters at a time).
    Returns a number. The gradient is exact almost everywhere and computed with the value, so it cannot be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, filters: Tensor, width: int, parity: int, chunk: int) -> Tensor:
        """Value; the gradients wait in `ctx`."""
        windows = Windows(x.shape[1], width, filters.shape[-1] // 2)
        needs_x, needs_y = ctx.needs_input_grad[:2]
        projectors = [Projector(half.detach(), windows, parity) for half in (x, y)]
        scratch = [x.new_empty(min(chunk, len(filters)), windows.count) for _ in range(2)]
        sums: list[Tensor] = []
        for part in cast(tuple[Tensor, ...], filters.split(chunk)):
            symmetric, antisymmetric = split_filters(part)
            values = [space[: len(part)] for space in scratch]
            for projector, space in zip(projectors, values, strict=True):
                projector.project(symmetric, antisymmetric, part, space)
            sums.append(match_sorted(values[0], values[1], needs_x, needs_y))
            for projector, space, needed in zip(projectors, values, (needs_x, needs_y), strict=True):
                if needed:
                    projector.accumulate(symmetric, antisymmetric, space)
        scale = 1 / (len(filters) * windows.count)
        ctx.gradients = [
            projector.half_gradient().mul_(scale) if needed else None
            for projector, needed in zip(projectors, (needs_x, needs_y), strict=True)
        ]
        return (torch.stack(sums).sum() * scale).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scale the stored gradients."""
        stored = cast(list[Tensor | None], ctx.gradients)
        return (*(None if part is None else part * gradient for part in stored), None, None, None, None)


def sliced_distance(x: Tensor, y: Tensor, filters: Tensor, width: int, parity: int, chunk: int) -> Tensor:
    """Sliced Wasserstein distance of the windows of two spectra, from their halves.

        mean over filters and windows of |sort(filters * M_x) - sort(filters * M_y)|

    Args:
        x: stored half of one image's map, [C, H, W // 2 + 1] float32 or float64; C, H and W of any parity, H, W >= k.
        y: the same shape.
        filters: [P, C, k, k], k odd.
        width: W of the whole spectrum.
        parity: +1 for maps with M(-k) = M(k); -1 for phases: M(-k) = -M(k), but pi where M(k) = pi.
        chunk: filters at a time.

    Returns:
        A number, with a gradient for x and y that is exact almost everywhere; not twice differentiable.
    """
    return cast(Tensor, _SlicedDistance.apply(x, y, filters, width, parity, chunk))
