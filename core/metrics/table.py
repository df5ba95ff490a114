"""The result of an evaluation as data and as text: JSON, CSV, Markdown, terminal."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .quantities import column_of
from .spec import MetricSpec


@dataclass(frozen=True)
class Row:
    """Scores of one image.

    Attributes:
        name: the image.
        values: metric name -> score; a metric that could not score this image is absent.
    """

    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Scores of many images by several metrics.

    Attributes:
        metrics: names in the order asked for, missing ones included.
        rows: one per image.
        sets: scores of the whole set (FID), metric name -> score.
        missing: metric name -> why it has no score at all.
        problems: one sentence per score or image that is not as it should be.
        remarks: how scores were made where there is a choice.
        sizes: width x height of the images, each size once, in the order in which they came.
        scale: upscale factor.
        crop: border left out by PSNR and SSIM, in pixels.
        title: name of the run.
        complete: False when the run was stopped before its end.
    """

    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    sets: Mapping[str, float] = field(default_factory=dict[str, float])
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    scale: int = 4
    crop: int = 4
    title: str = ""
    complete: bool = True

    @property
    def columns(self) -> tuple[MetricSpec, ...]:
        """Facts of the metrics that have scores."""
        return tuple(column_of(name) for name in self.metrics if name not in self.missing)

    def mean(self) -> dict[str, float]:
        """Mean per metric over its finite scores (whole sets: their one score); a metric without a finite score is absent."""
        result: dict[str, float] = {}
        for spec in self.columns:
            if spec.name in self.sets:
                result[spec.name] = self.sets[spec.name]
                continue
            finite = [row.values[spec.name] for row in self.rows if math.isfinite(row.values.get(spec.name, math.nan))]
            if finite:
                result[spec.name] = math.fsum(finite) / len(finite)
        return result

    def notes(self) -> list[str]:
        """What a reader must know besides the numbers: missing metrics, problems, choices made, an early stop."""
        lines = [f"missing: {name}: {reason}" for name, reason in self.missing.items()]
        for row in self.rows:
            bad = [f"{name} = {value}" for name, value in row.values.items() if not math.isfinite(value)]
            if bad:
                lines.append(f"not finite (left out of the mean): {row.name}: {', '.join(bad)}")
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"note: {remark}" for remark in self.remarks]
        if not self.complete:
            lines.append(f"stopped after {len(self.rows)} images")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data; scores that are not finite become None (JSON has no NaN) and are named in "notes"."""
        return {
            "title": self.title,
            "scale": self.scale,
            "crop": self.crop,
            "complete": self.complete,
            "metrics": {
                name: {
                    "title": column_of(name).title,
                    "higher_is_better": column_of(name).higher_is_better,
                    "missing": self.missing.get(name),
                }
                for name in self.metrics
            },
            "mean": {name: plain_number(value) for name, value in self.mean().items()},
            "images": [
                {"name": row.name, "scores": {name: plain_number(x) for name, x in row.values.items()}} for row in self.rows
            ],
            "notes": self.notes(),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text, two-space indent, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Header, a line per image, a last line "mean"; six digits; what is absent or missing is an empty field."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["name", *self.metrics])
        for name, values in [*((row.name, row.values) for row in self.rows), ("mean", self.mean())]:
            writer.writerow([name, *(csv_number(values[metric]) if metric in values else "" for metric in self.metrics)])
        return out.getvalue()

    def _cells(self) -> list[list[str]]:
        lines = [["image", *(f"{spec.title} {spec.arrow}" for spec in self.columns)]]
        for name, values in [*((row.name, row.values) for row in self.rows), ("mean", self.mean())]:
            lines.append([name, *(_text(spec, values.get(spec.name)) for spec in self.columns)])
        return lines

    def to_markdown(self) -> str:
        """A Markdown table (`^` higher is better, `v` lower is better), the mean in bold, notes as a list below."""
        header, *body = self._cells()
        body[-1] = [f"**{cell}**" if cell else "" for cell in body[-1]]
        lines = [f"### {escape(self.title)}", ""] if self.title else []
        return "\n".join([*lines, *markdown_lines([header, *body], self.notes())]) + "\n"

    def to_text(self, *, notes: bool = True) -> str:
        """The table for a terminal: aligned columns, plain ASCII rules, notes below.

        Args:
            notes: False leaves them out, for a table above another one that has them.
        """
        lines, rule = aligned(self._cells())
        below = self.notes() if notes else []
        return "\n".join([*([self.title] if self.title else []), *lines[:-1], rule, lines[-1], *below]) + "\n"


def aligned(cells: list[list[str]]) -> tuple[list[str], str]:
    """Lines of a text table, its first column left-aligned, the others right-aligned, a rule below the header; and the rule."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines: list[str] = []
    for first, *rest in cells:
        parts = [first.ljust(widths[0]), *(part.rjust(width) for part, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(parts).rstrip())
    return [lines[0], rule, *lines[1:]], rule


def markdown_lines(cells: list[list[str]], notes: list[str]) -> list[str]:
    """Lines of a Markdown table, the first row of cells being the header, and the notes as a list below."""
    header, *body = cells
    lines = [_markdown_row(header), "|---|" + "---:|" * (len(header) - 1), *map(_markdown_row, body)]
    return [*lines, *(["", *(f"- {escape(note)}" for note in notes)] if notes else [])]


def plain_number(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None


def csv_number(value: float) -> str:
    """Six significant digits, more than any score means; the JSON forms keep every digit.

    Example:
        >>> csv_number(33.40859322103779), csv_number(80.0), csv_number(0.00012345678)
        ('33.4086', '80', '0.000123457')
    """
    return f"{value:.6g}"


def _text(spec: MetricSpec, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if spec.range[1] > 20 else f"{value:.4f}"


def escape(text: str) -> str:
    """Text for one cell or list entry of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"
