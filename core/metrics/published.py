"""Numbers that papers print, to stand beside ours: read from the published-*.json files, which lie in this folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILES = tuple(
    Path(__file__).with_name(f"published-{paper}.json") for paper in ("aesop", "asasr", "dp2o-sr", "strsr")
)  # the names of AESOP's sets stand without the paper's, so it comes first


@dataclass(frozen=True)
class PublishedScore:
    """One printed number.

    Attributes:
        value: the number.
        decimals: digits after the point in print.
        table: where it stands, such as "Tab. 1".
        spread: the standard deviation that is printed with it, or None.
    """

    value: float
    decimals: int
    table: str
    spread: float | None = None

    @property
    def text(self) -> str:
        """As it is printed: `0.416 +- 0.018`."""
        said = f"{self.value:.{self.decimals}f}"
        return said if self.spread is None else f"{said} +- {self.spread:.{self.decimals}f}"


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


@dataclass(frozen=True)
class PublishedSet:
    """A test set, or a question such as an ablation, that a paper prints numbers for.

    Attributes:
        name: the paper and its name of the set, such as "ASASR DIV2K-Val"; AESOP's sets stand by themselves ("Set14").
        paper: short name of the paper.
        source: authors, year, where.
        metrics: everything that has a number, in the paper's order: keys of quantities.COLUMNS.
        protocol: the key of PROTOCOLS that measures as the paper does, "" where nothing is measured on restored images.
        task: the downstream task (`alignsr evaluate-task`), or "".
        images: how many there are, None where the paper does not say.
        quarters: metrics that see each image cut in four.
        input: scale and sizes, where the paper leaves doubts about them.
        autoencoder: that of AE-PSNR.
        notes: misprints, gaps and doubts.
    """

    name: str
    paper: str
    source: str
    metrics: tuple[str, ...]
    protocol: str = ""
    task: str = ""
    images: int | None = None
    quarters: tuple[str, ...] = ()
    input: str = ""
    autoencoder: str = ""
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def published_papers() -> dict[str, dict[str, Any]]:
    """The files as they are, by the short name of the paper.

    Returns:
        {paper: {"paper", "prefix": before the names of its sets, "source", "notes", "autoencoder": that of AE-PSNR (AESOP),
        "sets": {set: facts as in PublishedSet}, "tables": [{"table", "metric", "decimals", "methods", "values": {set: [...]},
        "spreads": likewise, where they are printed}]}}.
    """
    files = [json.loads(path.read_text(encoding="utf-8")) for path in _FILES]
    return {data["paper"]: data for data in files}


def _named(data: dict[str, Any], name: str) -> str:
    return f"{data['prefix']} {name}".strip()


@lru_cache(maxsize=1)
def _places() -> dict[str, tuple[str, str]]:
    """Name of a set -> (paper, its key there)."""
    return {_named(data, key): (paper, key) for paper, data in published_papers().items() for key in data["sets"]}


def published_sets(*, is_measured: bool = False) -> list[str]:
    """Names of the sets with published numbers, in the papers' order.

    Args:
        is_measured: only those on which restored images are scored.
    """
    return [name for name in _places() if not is_measured or published_set(name).protocol]


def published_set(name: str) -> PublishedSet:
    """The facts of a set.

    Args:
        name: as `find_set` takes it.

    Example:
        >>> published_set("asasr drealsr").protocol
        'asasr'
    """
    found = find_set(name)
    paper, key = _places()[found]
    data = published_papers()[paper]
    facts = data["sets"][key]
    metrics = dict.fromkeys(table["metric"] for table in data["tables"] if key in table["values"])
    return PublishedSet(
        name=found,
        paper=paper,
        source=data["source"],
        metrics=tuple(metrics),
        protocol=facts.get("protocol", ""),
        task=facts.get("task", ""),
        images=facts.get("images"),
        quarters=tuple(facts.get("quarters", ())),
        input=facts.get("input", ""),
        autoencoder=data.get("autoencoder", ""),
        notes=tuple(facts.get("notes", ())),
    )


def find_set(name: str) -> str:
    """The set as it is listed; capitals, spaces and hyphens do not matter, nor does the paper where one alone has such a set.

    Raises:
        ValueError: no numbers for it, or numbers in several papers, with the names to choose from.

    Example:
        >>> find_set("div2k_val"), find_set("asasr-div2k-val"), find_set("old films")
        ('DIV2K-val', 'ASASR DIV2K-Val', 'ASASR old films')
    """
    known = {_plain(known): known for known in _places()}
    if _plain(name) in known:
        return known[_plain(name)]
    same = [full for full, (_, key) in _places().items() if _plain(key) == _plain(name)]
    if len(same) == 1:
        return same[0]
    if same:
        raise ValueError(f"published: expected the paper with the set, got {name!r}; there are {', '.join(same)}")
    raise ValueError(f"published: expected a set with published numbers, got {name!r}; there are {', '.join(published_sets())}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def published_rows(dataset: str, metrics: Sequence[str] | None = None) -> tuple[PublishedRow, ...]:
    """Every method with a published number for one of the metrics on a set.

    Args:
        dataset: as `find_set` takes it.
        metrics: keys of quantities.COLUMNS; None: all that the set has.

    Returns:
        A row per method, in the papers' order; where two tables print the same number, the first, which has more digits, counts.
    """
    paper, key = _places()[find_set(dataset)]
    rows: dict[str, PublishedRow] = {}
    for table in published_papers()[paper]["tables"]:
        metric: str = table["metric"]
        if (metrics is None or metric in metrics) and key in table["values"]:
            values = table["values"][key]
            spreads = table.get("spreads", {}).get(key, [None] * len(values))
            for method, value, spread in zip(table["methods"], values, spreads, strict=True):
                row = rows.setdefault(method, PublishedRow(method))
                if value is not None:
                    row.scores.setdefault(metric, PublishedScore(value, table["decimals"], table["table"], spread))
    return tuple(row for row in rows.values() if row.scores)
