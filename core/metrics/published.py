"""Numbers that papers print, to stand beside ours: read from published.json, which lies in this folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class PublishedScore:
    """One printed number.

    Attributes:
        value: the number.
        decimals: digits after the point in print.
        table: where it stands, such as "Tab. 1".
    """

    value: float
    decimals: int
    table: str


@dataclass(frozen=True)
class PublishedRow:
    """What a paper says of one method on one set.

    Attributes:
        method: its name, with network and training patch where the paper has several.
        scores: metric name -> number.
    """

    method: str
    scores: dict[str, PublishedScore] = field(default_factory=dict[str, PublishedScore])

    @property
    def source(self) -> str:
        """The tables that the numbers come from, such as "Tab. 1, Tab. 9"."""
        return ", ".join(dict.fromkeys(score.table for score in self.scores.values()))


@lru_cache(maxsize=1)
def published_data() -> dict[str, Any]:
    """The file as it is.

    Returns:
        {"source", "notes", "autoencoder": that of AE-PSNR, "images": {set: number}, "tables": [{"table", "metric", "decimals",
        "methods", "values": {set: [...]}}]}.
    """
    data: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return data


def published_sets() -> list[str]:
    """Names of the test sets with published numbers, in the papers' order."""
    return list(dict.fromkeys(name for table in published_data()["tables"] for name in table["values"]))


def find_set(name: str) -> str:
    """The set as the papers spell it; capitals and hyphens do not matter.

    Raises:
        ValueError: no numbers for it, with the sets that have some.

    Example:
        >>> find_set("div2k_val")
        'DIV2K-val'
    """
    known = {_plain(known): known for known in published_sets()}
    if _plain(name) not in known:
        raise ValueError(
            f"published: expected a set with published numbers, got {name!r}; there are {', '.join(published_sets())}"
        )
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def published_rows(dataset: str, metrics: Sequence[str]) -> tuple[PublishedRow, ...]:
    """Every method with a published number for one of the metrics on a set.

    Args:
        dataset: as `find_set` takes it.
        metrics: keys of METRICS.

    Returns:
        A row per method, in the papers' order; where two tables print the same number, the first, which has more digits, counts.
    """
    name = find_set(dataset)
    rows: dict[str, PublishedRow] = {}
    for table in published_data()["tables"]:
        metric: str = table["metric"]
        if metric in metrics and name in table["values"]:
            for method, value in zip(table["methods"], table["values"][name], strict=True):
                if value is not None:
                    row = rows.setdefault(method, PublishedRow(method))
                    row.scores.setdefault(metric, PublishedScore(value, table["decimals"], table["table"]))
    return tuple(rows.values())
