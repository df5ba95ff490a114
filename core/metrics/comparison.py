"""Several methods on the same images in one table, with published numbers beside them, always marked as such."""

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from .published import PublishedRow, find_set, published_rows, published_set
from .quantities import column_of
from .spec import MetricSpec
from .table import Table, aligned, csv_number, escape, markdown_lines, plain_number

MEASURED, PUBLISHED = "measured", "published"


class Point(NamedTuple):
    """A method in a perception-distortion plane: x = distortion metric, y = perceptual metric."""

    method: str
    x: float
    y: float
    is_published: bool


@dataclass(frozen=True)
class Comparison:
    """Mean scores of several methods.

    Attributes:
        tables: one per method, its title being the method's name; at least one.
        published: what papers print for the same set.
        dataset: name of that set, "" without published numbers.
        aside: titles of tables that are no methods, such as the ground truth's, and never count as the best.
    """

    tables: tuple[Table, ...]
    published: tuple[PublishedRow, ...] = ()
    dataset: str = ""
    aside: tuple[str, ...] = ()

    @classmethod
    def of(cls, tables: list[Table], dataset: str = "", aside: tuple[str, ...] = ()) -> "Comparison":
        """Put published numbers of a set beside measured tables.

        Args:
            tables: one per method.
            dataset: a set of `published_sets`, or "" for none.
            aside: titles of tables that are no methods.

        Raises:
            ValueError: no table, two methods of one name, or an unknown set.
        """
        names = [table.title for table in tables]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"tables: expected methods of different names, got {names}; name them apart")
        metrics = [name for table in tables for name in table.metrics]
        published = published_rows(dataset, metrics) if dataset else ()
        return cls(tuple(tables), published, find_set(dataset) if dataset else "", aside)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics asked for, missing ones included."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.metrics))

    @property
    def columns(self) -> tuple[MetricSpec, ...]:
        """Metrics with a number: measured for at least one method, or published."""
        found = {name for table in self.tables for name in table.mean()} | {n for row in self.published for n in row.scores}
        return tuple(column_of(name) for name in self.metrics if name in found)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: method, a cell per column ("missing" where a metric could not run), where the numbers are from."""
        header = ["method", *(f"{spec.title} {spec.arrow}" for spec in self.columns), "source"]
        rows: list[list[str]] = []
        for table in self.tables:
            mean = table.mean()
            values = [score_text(spec, mean[spec.name]) if spec.name in mean else "missing" for spec in self.columns]
            count = f"{len(table.rows)} image{'' if len(table.rows) == 1 else 's'}"
            rows.append([table.title, *values, f"{MEASURED}, {count}"])
        for row in self.published:
            scores = [row.scores.get(spec.name) for spec in self.columns]
            values = [score.text if score else "" for score in scores]
            rows.append([row.method, *values, f"{PUBLISHED}, {row.source}"])
        return header, rows

    def best(self) -> set[tuple[int, int]]:
        """(row, column) in `cells` of the best measured score per column, where methods differ."""
        places: set[tuple[int, int]] = set()
        means = [{} if table.title in self.aside else table.mean() for table in self.tables]
        for column, spec in enumerate(self.columns, start=1):
            values = [mean.get(spec.name) for mean in means]
            known = [value for value in values if value is not None]
            if len(set(known)) > 1:
                top = max(known) if spec.higher_is_better else min(known)
                places |= {(row, column) for row, value in enumerate(values) if value == top}
        return places

    def notes(self) -> list[str]:
        """What a reader must know: notes of each method (shared ones once), where published numbers come from."""
        each = [table.notes() for table in self.tables]
        shared = [line for line in each[0] if all(line in lines for lines in each)]
        result = list(shared)
        for table, lines in zip(self.tables, each, strict=True):
            result += [f"{table.title}: {line}" for line in lines if line not in shared]
        counts = {len(table.rows) for table in self.tables}
        if len(counts) > 1:
            result.append("methods were scored on different numbers of images: their means do not compare")
        if self.dataset:
            if not self.published:
                result.append(f"published: nothing on {self.dataset} for these metrics")
            result += self._doubts()
            result.append(f"published: {self.dataset}, as printed in {published_set(self.dataset).source}; not measured here")
        return result

    def _doubts(self) -> list[str]:
        """Why the published rows may not be comparable with the measured ones."""
        facts = published_set(self.dataset)
        lines = [f"published: {note}" for note in facts.notes]
        if facts.input:
            sizes = list(dict.fromkeys(size for table in self.tables for size in table.sizes))
            more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
            lines.append(f"published: {facts.input}" + (f"; scored here: {', '.join(sizes[:3])}{more}" if sizes else ""))
        other = [f"{table.title} was scored on {len(table.rows)}" for table in self.tables if len(table.rows) != facts.images]
        if facts.images is not None and other:
            lines.append(
                f"published: {self.dataset} has {facts.images} images, {', '.join(other)}: measured and published scores do not "
                "compare"
            )
        if any("ae_psnr" in table.mean() for table in self.tables) and any("ae_psnr" in row.scores for row in self.published):
            lines.append(f"published: AE-PSNR with {facts.autoencoder}; with another one it does not compare")
        return lines

    def points(self, x: str = "psnr_y", y: str | None = None) -> list[Point]:
        """Methods with both scores.

        Args:
            x: distortion metric.
            y: perceptual metric; None = `perceptual_metric()`.
        """
        vertical = y or self.perceptual_metric()
        if vertical is None:
            return []
        means = [(table.title, table.mean()) for table in self.tables]
        found = [Point(name, mean[x], mean[vertical], False) for name, mean in means if x in mean and vertical in mean]
        for row in self.published:
            if x in row.scores and vertical in row.scores:
                found.append(Point(row.method, row.scores[x].value, row.scores[vertical].value, True))
        return found

    def perceptual_metric(self) -> str | None:
        """The metric for the vertical axis: LPIPS if measured, else the first other learned one of single images, else LSD."""
        measured = {name for table in self.tables for name in table.mean()}
        learned = [name for name in self.metrics if column_of(name).kind == "learned"]
        return next((name for name in ("lpips", *learned, "lsd") if name in measured), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every method's table, the published rows, and all images in one list as Save Report takes it."""
        single = len(self.tables) == 1
        return {
            "dataset": self.dataset,
            "metrics": {name: entry for table in self.tables for name, entry in table.to_dict()["metrics"].items()},
            "methods": [table.to_dict() for table in self.tables],
            "published": [
                {
                    "method": row.method,
                    "scores": {name: {"value": score.value, "table": score.table} for name, score in row.scores.items()},
                }
                for row in self.published
            ],
            "published_source": published_set(self.dataset).source if self.dataset else None,
            "images": [
                {
                    "name": row.name if single else f"{table.title}: {row.name}",
                    "scores": {name: plain_number(value) for name, value in row.values.items()},
                }
                for table in self.tables
                for row in table.rows
            ],
            "mean": self.tables[0].to_dict()["mean"] if single else {},
            "notes": self.notes(),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text, two-space indent, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line per method and image, one with the image "mean" per method, one per published method; gaps are empty fields.

        Images that have no score of their own, where the set has one, have no line.

        Measured scores have six digits (`to_json` keeps all), published ones those that are printed.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "source", "image", *self.metrics])
        for table in self.tables:
            scored = ((row.name, row.values) for row in table.rows if row.values or not table.sets)
            for name, values in [*scored, ("mean", table.mean())]:
                fields = [csv_number(values[metric]) if metric in values else "" for metric in self.metrics]
                writer.writerow([table.title, MEASURED, name, *fields])
        for row in self.published:
            scores = [row.scores.get(metric) for metric in self.metrics]
            fields = [f"{score.value:.{score.decimals}f}" if score else "" for score in scores]
            writer.writerow([row.method, f"{PUBLISHED}: {row.source}", "mean", *fields])
        return out.getvalue()

    def to_markdown(self) -> str:
        """A Markdown table of the means, published methods in italics, notes as a list below."""
        header, rows = self.cells()
        ours = [
            [f"**{cell}**" if place in self.best() else cell for place, cell in _placed(row, i)] for i, row in enumerate(rows)
        ]
        ours[len(self.tables) :] = [[f"*{cell}*" if cell else "" for cell in row] for row in rows[len(self.tables) :]]
        title = [f"### {escape(self.dataset)}", ""] if self.dataset else []
        return "\n".join([*title, *markdown_lines([header, *ours], self.notes())]) + "\n"

    def to_text(self, width: int = 0) -> str:
        """The table for a terminal, a rule between measured and published rows, notes below.

        Args:
            width: characters per line; a wider table is cut into several, each with the column of methods. 0: never.
        """
        header, rows = self.cells()
        body: list[str] = []
        for lines, rule in fitted([header, *rows], width):
            cut = 2 + len(self.tables)
            body += [*([""] if body else []), *lines[:cut], *([rule, *lines[cut:]] if self.published else [])]
        return "\n".join([*([self.dataset] if self.dataset else []), *body, *self.notes()]) + "\n"


def fitted(cells: list[list[str]], width: int = 0) -> list[tuple[list[str], str]]:
    """A text table as one or, where it is wider than `width` characters, several below one another: (lines, rule) of each."""
    return [aligned([[line[column] for column in (0, *columns)] for line in cells]) for columns in _parts(cells, width)]


def _parts(cells: list[list[str]], width: int) -> list[list[int]]:
    """Columns after the first in as few groups as fit into a width beside the first one, at least one column per group."""
    first, *widths = (2 + max(len(line[column]) for line in cells) for column in range(len(cells[0])))
    groups: list[list[int]] = [[]]
    for column, needed in enumerate(widths, start=1):
        filled = first - 2 + sum(widths[other - 1] for other in groups[-1])
        if width and groups[-1] and filled + needed > width:
            groups.append([])
        groups[-1].append(column)
    return groups


def _placed(row: list[str], index: int) -> list[tuple[tuple[int, int], str]]:
    return [((index, column), cell) for column, cell in enumerate(row)]


def score_text(spec: MetricSpec, value: float) -> str:
    """A mean with the digits that the papers print: three for dB and FID, two for percent of a task, four for the rest."""
    if not math.isfinite(value):
        return str(value)
    if spec.kind == "downstream":
        return f"{value:.2f}"
    return f"{value:.3f}" if spec.range[1] > 20 and spec.kind != "learned" else f"{value:.4f}"
