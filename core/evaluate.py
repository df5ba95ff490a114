"""Score folders or lists of restored images against their references, one image in memory at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from .checks import check_positive_int
from .images import crop_to_multiple
from .metrics import METRICS, MissingWeightsError, Scorer, SetDistance, reference_input, spec_of
from .metrics.autoencoded import ImageAutoEncoder
from .metrics.table import Row, Table
from .pairs import Pair, load_pair, pairs_from_folders

__all__ = ["DEFAULT_SCALE", "Pair", "Progress", "evaluate_methods", "evaluate_pairs", "pairs_from_folders", "quarters"]

Progress = Callable[[int, int | None, str], None]
DEFAULT_SCALE = 4
REDUCED = "LR-PSNR: compared with the MATLAB reduction of the ground truth, since no low-resolution images were given"


def quarters(image: Tensor) -> list[Tensor]:
    """Cut an image in four at its middle; with an odd side the lower or right parts are one pixel larger.

    Args:
        image: [B, C, H, W], H and W >= 2.

    Returns:
        Top left, top right, bottom left, bottom right; views.
    Source:
        AESOP cuts the images of DRealSR in four for CLIP-IQA (specification, section 5); where and what becomes of odd sides is
        our choice.
    """
    height, width = image.shape[-2:]
    if min(height, width) < 2:
        raise ValueError(f"image: expected at least 2x2 pixels to cut in four, got {height}x{width}; use a larger image")
    rows = (slice(None, height // 2), slice(height // 2, None))
    columns = (slice(None, width // 2), slice(width // 2, None))
    return [image[..., row, column] for row in rows for column in columns]


def _lacks(name: str, gt: Tensor | None, lq: Tensor | None) -> str:
    spec = METRICS[name]
    if spec.needs_reference and gt is None:
        return "needs a reference image (gt), which was not given"
    if spec.needs_input and gt is None and lq is None:
        return "needs the low-resolution input (lq), which was not given"
    return ""


class _Judges:
    """All metrics of a run, loaded once, and what they could not do."""

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device | str,
        autoencoder: ImageAutoEncoder | None,
        autoencoder_name: str,
        in_quarters: Sequence[str],
    ) -> None:
        self.scorers: dict[str, Scorer] = {}
        self.distances: dict[str, SetDistance] = {}
        self.missing: dict[str, str] = {}
        self.lacks: dict[str, list[str]] = {}  # metric -> one reason per image it had to pass over
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self.sizes: dict[str, None] = {}
        self.in_quarters = in_quarters
        for name in dict.fromkeys(names):
            spec = spec_of(name)
            try:
                if spec.kind == "set":
                    self.distances[name] = SetDistance.load(spec, device)
                else:
                    self.scorers[name] = Scorer(name, device, autoencoder=autoencoder)
            except MissingWeightsError as error:
                self.missing[name] = "; ".join(error.missing)
        cut = [name for name in self.scorers if name in in_quarters]
        if cut:
            self.remarks.append(f"{', '.join(cut)}: mean over the four quarters of each image")
        if "ae_psnr" in self.scorers and autoencoder_name:
            self.remarks.append(f"AE-PSNR: with the auto-encoder {autoencoder_name}")

    def score(self, pair: Pair, scale: int, crop: int) -> Row:
        """Scores of one pair; what cannot be computed is noted."""
        sr, gt, lq = load_pair(pair)
        self.sizes[f"{sr.shape[-1]}x{sr.shape[-2]}"] = None
        values: dict[str, float] = {}
        for name in (*self.scorers, *self.distances):
            reason = _lacks(name, gt, lq)
            if reason:
                self.lacks.setdefault(name, []).append(reason)
                continue
            try:
                if name in self.scorers:
                    values[name] = self._score(self.scorers[name], sr, gt, lq, scale, crop)
                elif gt is not None:
                    self.distances[name].update(sr, gt)
            except ValueError as error:  # an image that this metric cannot take, for example a small one
                self.problems.append(f"{pair.name}, {name}: {error}")
        return Row(pair.name, values)

    def _score(self, scorer: Scorer, sr: Tensor, gt: Tensor | None, lq: Tensor | None, scale: int, crop: int) -> float:
        if scorer.spec.name in self.in_quarters:
            return sum(float(scorer(part)) for part in quarters(sr)) / 4
        if scorer.spec.needs_input and lq is None and gt is not None:
            lq, sr = reference_input(gt, scale), crop_to_multiple(sr, scale)
            if REDUCED not in self.remarks:
                self.remarks.append(REDUCED)
        return float(scorer(sr, gt, lq=lq, scale=scale, crop=crop))

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


def _check_quarters(names: Sequence[str]) -> None:
    for name in names:
        spec = spec_of(name)
        if spec.kind != "learned" or spec.needs_reference:
            raise ValueError(f"in_quarters: expected metrics without reference, got {name!r}; clipiqa is the paper's case")


def evaluate_pairs(
    pairs: Iterable[Pair],
    metrics: Sequence[str] = ("psnr_y", "ssim_y"),
    *,
    scale: int = DEFAULT_SCALE,
    crop: int | None = None,
    device: torch.device | str = "cpu",
    autoencoder: ImageAutoEncoder | None = None,
    autoencoder_name: str = "",
    in_quarters: Sequence[str] = (),
    remarks: Sequence[str] = (),
    title: str = "",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Table:
    """Score every pair with every metric; images are rounded to 8 bit first, grey counts as RGB, alpha is left out.

    Args:
        pairs: may be a generator; one image (with its partners) is in memory at a time.
        metrics: keys of METRICS. All of them stay loaded during the run; a metric whose files are not on disk is listed in
            `Table.missing` with the reason, and the others go on.
        scale: upscale factor: the border that PSNR, SSIM and AE-PSNR leave out, and the factor of LR-PSNR, which takes the
            ground truth's own reduction where a pair has no `lq`.
        crop: border in pixels instead of `scale`.
        device: where learned metrics run.
        autoencoder: for AE-PSNR, frozen, on the device where it is to run; without it AE-PSNR counts as missing.
        autoencoder_name: what to call it in `Table.remarks`, since AE-PSNR by different auto-encoders do not compare.
        in_quarters: metrics without reference that score the four quarters of each image instead of the whole; their mean counts.
        remarks: what a reader should know of the protocol, for `Table.remarks`.
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
    _check_quarters(in_quarters)
    judges = _Judges(metrics, device, autoencoder, autoencoder_name, in_quarters)
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
        remarks=(*remarks, *judges.remarks),
        sizes=tuple(judges.sizes),
        scale=scale,
        crop=border,
        title=title,
        complete=complete,
    )


def evaluate_methods(
    methods: Mapping[str, Iterable[Pair]],
    metrics: Sequence[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[Table]:
    """Score several methods one after the other.

    Args:
        methods: name -> pairs, which may be a generator.
        metrics: keys of METRICS.
        progress: called after each pair with (number done over all methods, None, name).
        options: of `evaluate_pairs`.

    Returns:
        A table per method, its title being the method's name. A stop leaves out the methods that were not begun.
    """
    tables: list[Table] = []
    for name, pairs in methods.items():
        before = sum(len(table.rows) for table in tables)

        def report(done: int, _total: int | None, image: str, before: int = before) -> None:
            if progress is not None:
                progress(before + done, None, image)

        tables.append(evaluate_pairs(pairs, metrics, title=name, progress=report, **options))
        if not tables[-1].complete:
            break
    return tables
