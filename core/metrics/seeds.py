"""How much scores depend on the seed: mean and deviation over seeds of every metric, for several models side by side."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .scoring import spec_of
from .table import aligned, markdown_lines

NOTES = (
    "value +- deviation over the seeds of a picture (ddof 1), both averaged over pictures",
    "in brackets: deviation over seeds of the mean over pictures",
)


@dataclass(frozen=True)
class SeedScore:
    """One metric of one model.

    Attributes:
        mean: over pictures and seeds.
        within: standard deviation over the seeds of a picture (ddof 1), mean over pictures.
        of_means: standard deviation over seeds (ddof 1) of the mean over pictures.
    """

    mean: float
    within: float
    of_means: float


@dataclass(frozen=True)
class SeedTable:
    """Models by metrics.

    Attributes:
        metrics: names.
        scores: model -> metric -> score.
        pictures: how many.
        seeds: of each.
    """

    metrics: tuple[str, ...]
    scores: Mapping[str, Mapping[str, SeedScore]]
    pictures: int
    seeds: int

    def cells(self) -> list[list[str]]:
        """Header and one row per metric; after the models, how the last one's deviation relates to the first one's."""
        names = list(self.scores)
        has_ratio = len(names) > 1
        header = ["metric", *names, *(["deviation, last / first"] if has_ratio else [])]
        rows: list[list[str]] = []
        for metric in self.metrics:
            spec = spec_of(metric)
            arrow = "higher is better" if spec.higher_is_better else "lower is better"
            found = [self.scores[name][metric] for name in names]
            ratio = [f"{found[-1].within / found[0].within:.2f}" if found[0].within else "-"] if has_ratio else []
            rows.append([f"{spec.title} ({arrow})", *map(_text, found), *ratio])
        return [header, *rows]

    def title(self) -> str:
        """What was measured."""
        return f"{self.seeds} seeds of {self.pictures} pictures"

    def to_text(self) -> str:
        """For a terminal."""
        lines, _ = aligned(self.cells())
        return "\n".join([self.title(), *lines, *NOTES]) + "\n"

    def to_markdown(self) -> str:
        """For a report."""
        return "\n".join(markdown_lines(self.cells(), [self.title(), *NOTES])) + "\n"

    def to_csv(self) -> str:
        """One line per model and metric."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "metric", "mean", "deviation_within", "deviation_of_means"])
        for name, scores in self.scores.items():
            writer.writerows([name, metric, *(f"{x:.6g}" for x in _values(scores[metric]))] for metric in self.metrics)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {
            name: {
                metric: dict(zip(("mean", "within", "of_means"), _values(scores[metric]), strict=True)) for metric in self.metrics
            }
            for name, scores in self.scores.items()
        }
        return {"pictures": self.pictures, "seeds": self.seeds, "scores": plain}

    def picture(self) -> Image.Image:
        """The table; the better mean of each metric on a green ground."""
        from ..pictures import table

        header, *rows = self.cells()
        names, marked = list(self.scores), set[tuple[int, int]]()
        for row, metric in enumerate(self.metrics):
            sign = 1 if spec_of(metric).higher_is_better else -1
            best = max(range(len(names)), key=lambda column, m=metric, s=sign: s * self.scores[names[column]][m].mean)
            marked.add((row, best + 1))
        return table(header, rows, title=self.title(), notes=NOTES, marked=marked)


def seed_table(models: Mapping[str, Sequence[Tensor]], metrics: Sequence[str]) -> SeedTable:
    """Mean and deviation over seeds.

    Args:
        models: name -> per picture [S, K] raw scores, the same pictures in the same order and as many seeds for each; a seed with
            a score that is not finite is left out of its picture.
        metrics: K names.

    Raises:
        ValueError: no model, different numbers of pictures or seeds, or fewer than two seeds.

    Source:
        DP2O-SR, arXiv:2510.18851v1, Table 2 (specification 4.2), which does not say over what its deviations are; those within
        pictures are of their size, those of the means would be several times smaller.

    Example:
        >>> found = seed_table({"a": [torch.tensor([[20.0], [22.0]]), torch.tensor([[30.0], [34.0]])]}, ["psnr_y"])
        >>> round(found.scores["a"]["psnr_y"].mean, 2), round(found.scores["a"]["psnr_y"].within, 2)
        (26.5, 2.12)
    """
    if not models:
        raise ValueError("models: expected at least one, got none; score candidates first")
    sizes = {name: (len(groups), tuple(len(group) for group in groups)) for name, groups in models.items()}
    first_name, first = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != first:
            raise ValueError(
                f"models: expected {first[0]} pictures with {min(first[1])} seeds as {first_name}, got {size[0]} with "
                f"{min(size[1], default=0)} of {name}; sample the same pictures with as many seeds"
            )
    if min(first[1], default=0) < 2:
        raise ValueError(f"models: expected at least 2 seeds of each picture, got {min(first[1], default=0)}; sample more")
    scores = {name: {metric: _score(groups, k) for k, metric in enumerate(metrics)} for name, groups in models.items()}
    return SeedTable(tuple(metrics), scores, first[0], min(first[1]))


def _score(groups: Sequence[Tensor], column: int) -> SeedScore:
    values = [group[:, column].double() for group in groups]
    kept = [value[torch.isfinite(value)] for value in values]
    usable = [value for value in kept if len(value) > 1]
    if not usable:
        return SeedScore(math.nan, math.nan, math.nan)
    within = torch.stack([value.std() for value in usable]).mean()
    mean = torch.stack([value.mean() for value in usable]).mean()
    whole = [value for value in values if bool(torch.isfinite(value).all())]
    of_means = torch.stack(whole).mean(0).std() if whole else torch.tensor(math.nan)
    return SeedScore(float(mean), float(within), float(of_means))


def _values(score: SeedScore) -> tuple[float, float, float]:
    return score.mean, score.within, score.of_means


def _text(score: SeedScore) -> str:
    digits = 2 if abs(score.mean) > 20 else 4
    return f"{score.mean:.{digits}f} +- {score.within:.{digits}f} ({score.of_means:.{digits}f})"
