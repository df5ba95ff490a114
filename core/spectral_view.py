"""Spectra of several methods beside their reference: curves, distances and energies by band, of a batch or of whole folders."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .checks import check_same_shape
from .images import quantize_8bit
from .metrics.table import aligned
from .pairs import Pair, load_pair
from .pictures import table
from .plots import spectra
from .spectral import periodic_energy_score, radial_spectrum

REFERENCE = "reference"
BANDS = ((0.0, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2))  # cycles per pixel; the first is what a x4 input can hold
BAND_NAMES = ("below 1/8", "1/8 to 1/4", "above 1/4")
LEAST_SIDE_PX = 4
GRID_SIDE_PX = 64  # smaller pictures are too short for a grid of 16 px to show


@dataclass(frozen=True)
class MethodSpectrum:
    """What the pictures of one method are like beside their reference, on the mean.

    Attributes:
        curve: (frequency in cycles per pixel, power in dB).
        distance: log-spectral distance in dB; nan for the reference.
        bands: energy less that of the reference, dB, per band of BANDS; nan where no picture reaches it, 0 for the reference.
        grid: how much a grid of 8 or 16 px repeats, about 1 without one; nan where all pictures are too small.
        count: pictures.
    """

    curve: tuple[tuple[float, float], ...]
    distance: float
    bands: tuple[float, ...]
    grid: float
    count: int


class SpectralComparison:
    """Means over pictures, taken one after the other; sizes may differ.

    Every method must see the same references. Spectra of pictures whose square has the same side are averaged as they are; those
    of other sides are put on the frequencies of the largest by linear interpolation.

    Example:
        >>> gt = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> seen = SpectralComparison()
        >>> seen.add("half", 0.5 * gt, gt)
        >>> seen.methods["half"].distance, seen.methods["half"].bands[0]  # rounding to 8 bit apart, 6.02 dB
        (6.0..., -6.0...)
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._scores: dict[str, list[tuple[float, ...]]] = {}
        self._grids: dict[str, list[float]] = {}

    def add(self, method: str, sr: Tensor, gt: Tensor) -> None:
        """Look at pictures of a method.

        Args:
            method: its name.
            sr: restored, [B, 1 or 3, H, W] float in [0, 1], sides of at least 4.
            gt: reference of the same shape. Both are rounded to 8 bit first, as scores are.

        Raises:
            ValueError: shapes differ, a thin picture, or a method called "reference".
        """
        if method == REFERENCE:
            raise ValueError(f"method: expected another name, got {method!r}, which is the ground truth's; rename it")
        check_same_shape(sr, gt, "sr", "gt")
        ours, theirs = (radial_spectrum(quantize_8bit(pixels)).double() for pixels in (sr, gt))
        self._put(method, sr, ours)
        side = min(sr.shape[-2:])
        frequencies = (torch.arange(ours.shape[1]) + 1) / side
        apart = ours - theirs
        for row in apart:
            in_bands = [row[(frequencies >= low) & (frequencies < high)] for low, high in BANDS]
            means = [float(part.mean()) if len(part) else math.nan for part in in_bands]
            self._scores.setdefault(method, []).append((math.sqrt(float(row.square().mean())), *means))
        if method == next(iter(self._sums)):  # the others see the same references
            self._put(REFERENCE, gt, theirs)

    def _put(self, name: str, pixels: Tensor, levels: Tensor) -> None:
        side = min(pixels.shape[-2:])
        sums, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
        total = levels.sum(0)
        sums[side] = sums[side] + total if side in sums else total
        counts[side] = counts.get(side, 0) + len(levels)
        if side >= GRID_SIDE_PX:
            scores: list[float] = [float(score) for score in periodic_energy_score(pixels)]
            self._grids.setdefault(name, []).extend(scores)

    def _number(self, name: str) -> int:
        return sum(self._counts[name].values())

    @property
    def methods(self) -> dict[str, MethodSpectrum]:
        """Reference first, then the methods in the order in which they came."""
        names = [REFERENCE, *(name for name in self._sums if name != REFERENCE)]
        return {name: self._summary(name) for name in names if name in self._sums}

    def _summary(self, name: str) -> MethodSpectrum:
        side = max(self._sums[name])
        frequencies = [(r + 1) / side for r in range(len(self._sums[name][side]))]
        total = torch.zeros(len(frequencies), dtype=torch.float64)
        for other, levels in self._sums[name].items():
            count = self._counts[name][other]
            total += levels if other == side else count * _interpolated(levels / count, other, side)
        levels = total / self._number(name)
        scores = self._scores.get(name, [])
        columns = list(zip(*scores, strict=True)) if scores else [()] * (1 + len(BANDS))
        distance, *bands = (_mean(column) for column in columns)
        if name == REFERENCE:
            bands = [0.0] * len(BANDS)
        curve = tuple((frequency, float(level)) for frequency, level in zip(frequencies, levels, strict=True))
        return MethodSpectrum(curve, distance, tuple(bands), _mean(self._grids.get(name, ())), self._number(name))

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, the reference last."""
        found = self.methods
        header = ["method", "LSD, dB v", *(f"{name}, dB" for name in BAND_NAMES), "grid"]
        rows: list[list[str]] = []
        for name in [*(name for name in found if name != REFERENCE), REFERENCE]:
            each = found[name]
            bands = [f"{value:+.2f}" if name != REFERENCE and math.isfinite(value) else "" for value in each.bands]
            rows.append([name, _digits(each.distance), *bands, _digits(each.grid)])
        return header, rows

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the least distance, and of the band energies nearest the reference's."""
        found = [each for name, each in self.methods.items() if name != REFERENCE]
        values = [[each.distance, *map(abs, each.bands)] for each in found]
        places: set[tuple[int, int]] = set()
        for column in range(1 + len(BANDS)):
            known = [row[column] for row in values if math.isfinite(row[column])]
            if len(set(known)) > 1:
                places |= {(index, column + 1) for index, row in enumerate(values) if row[column] == min(known)}
        return places

    def notes(self) -> list[str]:
        """How to read the table."""
        count = self.methods[REFERENCE].count
        return [
            f"mean over {count} picture{'' if count == 1 else 's'}; LSD: root mean square distance of the log spectra",
            "bands in cycles per pixel: energy less the reference's; below 0 too soft, above 0 too much detail or noise",
            "grid: 1 without a pattern that repeats every 8 or 16 px, more with one",
        ]

    def to_text(self) -> str:
        """The table for a terminal, notes below."""
        header, rows = self.cells()
        lines, _ = aligned([header, *rows])
        return "\n".join([*lines, *self.notes()]) + "\n"

    def to_csv(self) -> str:
        """A line per method and frequency: the curves."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "cycles_per_pixel", "power_db"])
        for name, each in self.methods.items():
            writer.writerows([name, f"{frequency:.6g}", f"{power:.6g}"] for frequency, power in each.curve)
        return out.getvalue()

    def picture(self, title: str = "Radial power spectra") -> Image.Image:
        """The curves, and with more than one method below them their distance from the reference by frequency."""
        found = self.methods
        distances = {name: each.distance for name, each in found.items() if name != REFERENCE}
        curves = {name: each.curve for name, each in found.items()}
        return spectra(curves, distances=distances, title=title, has_difference=len(distances) > 1)

    def table_picture(self) -> Image.Image:
        """The table, the best cells marked."""
        header, rows = self.cells()
        header = [title.replace(" v", " \u2193") for title in header]
        return table(header, rows, title="Spectra", notes=self.notes(), marked=self.best(), ruled=(len(rows) - 1,))


def _interpolated(levels: Tensor, side: int, wanted: int) -> Tensor:
    """A spectrum of a square with one side at the frequencies of another one's; constant beyond its ends."""
    own = (torch.arange(len(levels), dtype=torch.float64) + 1) / side
    new = (torch.arange(wanted // 2 - 1, dtype=torch.float64) + 1) / wanted
    place = ((new - own[0]) * side).clamp(0, len(levels) - 1)
    low = place.floor().long().clamp_max(max(0, len(levels) - 2))
    high = (low + 1).clamp_max(len(levels) - 1)
    return torch.lerp(levels[low], levels[high], place - low)


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _digits(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""


def compare_spectra(
    methods: Mapping[str, Iterable[Pair]], *, progress: Callable[[int, str], None] | None = None
) -> SpectralComparison:
    """Spectra of folders, one image in memory at a time.

    Args:
        methods: name -> pairs with a reference each.
        progress: called after each picture with (number done over all methods, name).

    Raises:
        ValueError: a pair without reference, sizes that differ, or a thin picture.
    """
    seen = SpectralComparison()
    done = 0
    for method, pairs in methods.items():
        for pair in pairs:
            sr, gt, _ = load_pair(pair)
            if gt is None:
                raise ValueError(f"gt: expected a reference for {pair.name}, got none; give the folder of ground truth")
            seen.add(method, sr, gt)
            done += 1
            if progress is not None:
                progress(done, pair.name)
    return seen
