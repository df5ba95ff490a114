"""Score folders or lists of restored images against their references, one image in memory at a time."""

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checks import check_image, check_positive_int
from .image_files import list_images, read_image
from .images import to_rgb
from .metrics import METRICS, MissingWeightsError, Scorer, SetDistance, spec_of
from .metrics.table import Row, Table

Picture = Path | str | Tensor
Progress = Callable[[int, int | None, str], None]
DEFAULT_SCALE = 4


@dataclass(frozen=True)
class Pair:
    """One restored image and what it is compared with.

    Attributes:
        name: row title.
        sr: restored image: a file, read when its turn comes, or [1, C, H, W] float in [0, 1].
        gt: reference of the same size, or None.
        lq: low-resolution input, or None.
    """

    name: str
    sr: Picture
    gt: Picture | None = None
    lq: Picture | None = None


def pairs_from_folders(sr: Path | str, gt: Path | str | None = None, lq: Path | str | None = None) -> list[Pair]:
    """Match the images of two or three folders by file name.

    A restored file belongs to the reference with the same stem, else to the one with the longest stem that its own starts with
    before an underscore (`baby_x4.png` to `baby.png`).

    Args:
        sr: folder of restored images.
        gt: folder of references, or None for metrics that need none.
        lq: folder of low-resolution inputs, or None.

    Returns:
        One pair per restored image, in the order of the names; nothing is read yet.

    Raises:
        FileNotFoundError: a folder is absent.
        ValueError: a folder without images, a restored image without its partner, or a reference without a restored image.
    """
    restored = _images_of(sr, "sr")
    partners: dict[str, dict[str, Path]] = {}
    for side, folder in (("gt", gt), ("lq", lq)):
        if folder is not None:
            partners[side] = _match(restored, _images_of(folder, side), side, Path(folder))
    return [
        Pair(stem, path, partners.get("gt", {}).get(stem), partners.get("lq", {}).get(stem)) for stem, path in restored.items()
    ]


def _images_of(folder: Path | str, name: str) -> dict[str, Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder of images at {folder}, found none; check the path")
    result: dict[str, Path] = {}
    for path in list_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in result:
            raise ValueError(
                f"{name}: expected one file per name, got {result[stem].name} and {path.name} in {folder}; remove one"
            )
        result[stem] = path
    if not result:
        raise ValueError(f"{name}: expected images in {folder}, got none; check the path")
    return result


def _match(restored: dict[str, Path], partners: dict[str, Path], side: str, folder: Path) -> dict[str, Path]:
    chosen: dict[str, str] = {}
    for stem in restored:
        candidates = [other for other in partners if stem == other or stem.startswith(other + "_")]
        if not candidates:
            raise ValueError(f"{side}: expected a partner of {restored[stem].name} in {folder}, got none; names must agree")
        chosen[stem] = max(candidates, key=len)
    unused = sorted(set(partners) - set(chosen.values()))
    if unused:
        first = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        raise ValueError(
            f"sr: expected a restored image for every file in {folder}, got none for {first}; restore them or remove them"
        )
    return {stem: partners[other] for stem, other in chosen.items()}


def _read(picture: Picture | None, name: str) -> Tensor | None:
    if picture is None:
        return None
    if isinstance(picture, Tensor):
        check_image(picture, name)
        if len(picture) != 1:
            raise ValueError(f"{name}: expected one image [1, C, H, W], got a batch of {len(picture)}; make one pair per image")
        return to_rgb(picture)
    return to_rgb(read_image(picture).pixels)


def _label(picture: Picture | None, name: str) -> str:
    return name if picture is None or isinstance(picture, Tensor) else str(picture)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _load(pair: Pair) -> tuple[Tensor, Tensor | None, Tensor | None]:
    sr, gt, lq = _read(pair.sr, "sr"), _read(pair.gt, "gt"), _read(pair.lq, "lq")
    assert sr is not None
    if gt is not None and sr.shape[-2:] != gt.shape[-2:]:
        raise ValueError(
            f"{pair.name}: expected images of one size, got {_size(sr)} for {_label(pair.sr, 'sr')} and {_size(gt)} for "
            f"{_label(pair.gt, 'gt')}; restore at the right scale or crop one of them"
        )
    return sr, gt, lq


def _lacks(name: str, gt: Tensor | None, lq: Tensor | None) -> str:
    spec = METRICS[name]
    if spec.needs_reference and gt is None:
        return "needs a reference image (gt), which was not given"
    if spec.needs_input and lq is None:
        return "needs the low-resolution input (lq), which was not given"
    return ""


class _Judges:
    """All metrics of a run, loaded once, and what they could not do."""

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self.scorers: dict[str, Scorer] = {}
        self.distances: dict[str, SetDistance] = {}
        self.missing: dict[str, str] = {}
        self.lacks: dict[str, list[str]] = {}  # metric -> one reason per image it had to pass over
        self.problems: list[str] = []
        for name in dict.fromkeys(names):
            spec = spec_of(name)
            try:
                if spec.kind == "set":
                    self.distances[name] = SetDistance.load(spec, device)
                else:
                    self.scorers[name] = Scorer(name, device)
            except MissingWeightsError as error:
                self.missing[name] = "; ".join(error.missing)

    def score(self, pair: Pair, scale: int, crop: int) -> Row:
        """Scores of one pair; what cannot be computed is noted."""
        sr, gt, lq = _load(pair)
        values: dict[str, float] = {}
        for name in (*self.scorers, *self.distances):
            reason = _lacks(name, gt, lq)
            if reason:
                self.lacks.setdefault(name, []).append(reason)
                continue
            try:
                if name in self.scorers:
                    values[name] = float(self.scorers[name](sr, gt, lq=lq, scale=scale, crop=crop))
                elif gt is not None:
                    self.distances[name].update(sr, gt)
            except ValueError as error:  # an image that this metric cannot take, for example a small one
                self.problems.append(f"{pair.name}, {name}: {error}")
        return Row(pair.name, values)

    def finish(self, images: int) -> dict[str, float]:
        """Scores of whole sets; afterwards every metric that never scored has its reason in `missing`."""
        sets: dict[str, float] = {}
        for name, reasons in self.lacks.items():
            if len(reasons) == images:
                self.missing[name] = reasons[0]
            else:
                self.problems.append(f"{name}: {reasons[0]} for {len(reasons)} of {images} images")
        for name, distance in self.distances.items():
            if name not in self.missing:
                try:
                    sets[name] = distance.result()
                except ValueError as error:
                    self.missing[name] = str(error)
        return sets


def evaluate_pairs(
    pairs: Iterable[Pair],
    metrics: Sequence[str] = ("psnr_y", "ssim_y"),
    *,
    scale: int = DEFAULT_SCALE,
    crop: int | None = None,
    device: torch.device | str = "cpu",
    title: str = "",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Table:
    """Score every pair with every metric; images are rounded to 8 bit first, grey counts as RGB, alpha is left out.

    Args:
        pairs: may be a generator; one image (with its partners) is in memory at a time.
        metrics: keys of METRICS. All of them stay loaded during the run; a metric whose files are not on disk is listed in
            `Table.missing` with the reason, and the others go on.
        scale: upscale factor: the border that PSNR and SSIM leave out, and the factor of LR-PSNR.
        crop: border in pixels instead of `scale`.
        device: where learned metrics run.
        title: name of the run for the table.
        progress: called after each pair with (number done, number in all or None, name).
        should_stop: asked before each pair; True ends the run and the table keeps what was done, with `complete` False.

    Returns:
        A row per pair, the mean over its finite scores, scores of whole sets (FID), missing metrics with reasons, and named
        problems (scores that are not finite, images that a metric cannot take).

    Raises:
        ValueError: unknown metric, sizes of a pair differ (both files are named), or an image file that is not one.
        FileNotFoundError: an image file is gone.
    """
    check_positive_int(scale, "scale")
    border = scale if crop is None else check_positive_int(crop, "crop", low=0)
    judges = _Judges(metrics, device)
    total = len(pairs) if isinstance(pairs, Sized) else None
    rows: list[Row] = []
    complete = True
    for pair in pairs:
        if should_stop is not None and should_stop():
            complete = False
            break
        rows.append(judges.score(pair, scale, border))
        if progress is not None:
            progress(len(rows), total, pair.name)
    sets = judges.finish(len(rows)) if rows else {}
    return Table(
        metrics=tuple(dict.fromkeys(metrics)),
        rows=tuple(rows),
        sets=sets,
        missing=judges.missing,
        problems=tuple(judges.problems),
        scale=scale,
        crop=border,
        title=title,
        complete=complete,
    )
