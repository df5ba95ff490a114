"""What a study found: TopK of every method with intervals, as table, data and picture, beside what papers print."""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from ..metrics.comparison import MEASURED, PUBLISHED, fitted
from ..metrics.published import PublishedRow, published_rows, published_set, published_sets
from ..metrics.table import escape, markdown_lines
from ..plots import bars
from .votes import Share, Votes, share

FEW_GROUPS = 10


@dataclass(frozen=True)
class StudyReport:
    """A study counted.

    Attributes:
        votes: all ballots.
        dataset: a set of user studies with published numbers, or "".
        seed: of the intervals over groups.
    """

    votes: Votes
    dataset: str = ""
    seed: int = 0

    @cached_property
    def shares(self) -> dict[str, dict[int, Share]]:
        """Method -> k -> share, the most preferred method first. TopK at the number of methods, always 1, is left out."""
        votes = self.votes
        places = [k for k in votes.places if k < len(votes.methods)]
        found = {method: {k: share(votes, method, k, seed=self.seed) for k in places} for method in votes.methods}
        return dict(sorted(found.items(), key=lambda item: [-each.value for each in item[1].values()]))

    @property
    def published(self) -> tuple[PublishedRow, ...]:
        """What a paper prints."""
        return published_rows(self.dataset, ["top1"]) if self.dataset else ()

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: percent, Wilson's interval in brackets, the one over groups in parentheses, where it is from."""
        places = list(next(iter(self.shares.values())))
        header = ["method", *(f"Top-{k}, % [95 %] (groups)" for k in places), "source"]
        count = len(self.votes.ballots)
        rows = [[method, *(_text(each[k]) for k in places), f"{MEASURED}, {count} votes"] for method, each in self.shares.items()]
        for row in self.published:
            rows.append([row.method, row.scores["top1"].text, *[""] * (len(places) - 1), f"{PUBLISHED}, {row.source}"])
        return header, rows

    def notes(self) -> list[str]:
        """How to read the numbers, and what is missing."""
        votes = self.votes
        answered = Counter(ballot.group for ballot in votes.ballots)
        lines = [
            f"{len(votes.voters)} voters, {len(answered)} of {len(votes.groups)} groups, {len(votes.methods)} methods; "
            f"by chance Top-k is {100 / len(votes.methods):.1f} k %",
            "[95 %]: Wilson, all votes independent; (groups): groups drawn anew, each with all of its votes",
        ]
        if len(answered) < FEW_GROUPS:
            lines.append(f"fewer than {FEW_GROUPS} groups: the interval over groups is too narrow, with one it says nothing")
        missing = [group for group in votes.groups if group not in answered]
        if missing:
            lines.append(f"no votes on {len(missing)} of {len(votes.groups)} groups: {', '.join(missing[:5])}")
        elif len(set(answered.values())) > 1:
            lines.append(f"between {min(answered.values())} and {max(answered.values())} votes per group: not everybody finished")
        if self.dataset:
            facts = published_set(self.dataset)
            lines += [f"published: {note}" for note in facts.notes]
            lines.append(f"published: {facts.name}, as printed in {facts.source}; not measured here")
        return lines

    def to_text(self, width: int = 0) -> str:
        """The table for a terminal, notes below; `width` as in Comparison.to_text."""
        header, rows = self.cells()
        body: list[str] = []
        for lines, rule in fitted([header, *rows], width):
            cut = 2 + len(self.shares)
            body += [*([""] if body else []), *lines[:cut], *([rule, *lines[cut:]] if self.published else [])]
        return "\n".join([*body, *self.notes()]) + "\n"

    def to_markdown(self) -> str:
        """A Markdown table, published methods in italics, notes as a list below."""
        header, rows = self.cells()
        ours = len(self.shares)
        marked = [[f"*{cell}*" if cell else "" for cell in row] if place >= ours else row for place, row in enumerate(rows)]
        return "\n".join(markdown_lines([header, *([escape(cell) for cell in row] for row in marked)], self.notes())) + "\n"

    def to_csv(self) -> str:
        """A line per method and k, shares in 0..1."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "k", "share", "low", "high", "group_low", "group_high", "votes"])
        for method, each in self.shares.items():
            for k, found in each.items():
                writer.writerow([method, k, *(f"{value:.6g}" for value in found), len(self.votes.ballots)])
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        votes = self.votes
        return {
            "mode": votes.mode,
            "voters": list(votes.voters),
            "groups": len(votes.groups),
            "votes": len(votes.ballots),
            "top_k": {method: {str(k): found._asdict() for k, found in each.items()} for method, each in self.shares.items()},
            "published": {row.method: row.scores["top1"].value for row in self.published},
            "notes": self.notes(),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text, two-space indent, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def picture(self) -> Image.Image:
        """Bars of TopK with Wilson's interval (thick) and that over groups (thin), and what chance gives."""
        votes = self.votes
        places = [k for k in next(iter(self.shares.values())) if k <= 3]
        series = {f"Top-{k}": {method: _bar(each[k]) for method, each in self.shares.items()} for k in places}
        title = f"{len(votes.voters)} voters, {len(votes.ballots)} votes"
        chance = {f"Top-{k}": 100 * k / len(votes.methods) for k in places}
        return bars(series, y_label="share of the votes, %", title=title, marks=chance, top=103)


def find_study(name: str) -> str:
    """A published user study by its name.

    Raises:
        ValueError: an unknown set, or one without votes.
    """
    facts = published_set(name)
    if "top1" not in facts.metrics:
        known = ", ".join(each for each in published_sets() if "top1" in published_set(each).metrics)
        raise ValueError(f"published: expected a user study, got {facts.name}; there are {known}")
    return facts.name


def _bar(found: Share) -> tuple[float, list[tuple[float, float]]]:
    value, low, high, group_low, group_high = (100 * each for each in found)
    return value, [(low, high), (group_low, group_high)]


def _text(found: Share) -> str:
    value, low, high, group_low, group_high = (100 * each for each in found)
    return f"{value:.1f} [{low:.1f}, {high:.1f}] ({group_low:.1f}, {group_high:.1f})"
