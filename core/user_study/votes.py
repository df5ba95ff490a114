"""Votes of a study: read back with its key, and counted as TopK(m, k)."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ..checks import check_positive_int
from .pages import KEY_FORMAT, VERSION

VOTES_FORMAT = "alignsr-study-votes"
CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the two-sided 95 %
DRAWS = 2000


@dataclass(frozen=True)
class Ballot:
    """What one person said of one group.

    Attributes:
        voter: who.
        group: which, as in the page.
        ranking: methods from best to worst; in a top-1 study the best alone.
    """

    voter: str
    group: str
    ranking: tuple[str, ...]


@dataclass(frozen=True)
class Votes:
    """All ballots of a study.

    Attributes:
        mode: "rank" or "top1".
        methods: names, in the order of the key.
        groups: ids of all groups of the study.
        ballots: of all voters.
    """

    mode: str
    methods: tuple[str, ...]
    groups: tuple[str, ...]
    ballots: tuple[Ballot, ...]

    @property
    def voters(self) -> tuple[str, ...]:
        """Who voted."""
        return tuple(dict.fromkeys(ballot.voter for ballot in self.ballots))

    @property
    def places(self) -> tuple[int, ...]:
        """The k that TopK is known for."""
        return tuple(range(1, len(self.methods) + 1)) if self.mode == "rank" else (1,)


class Share(NamedTuple):
    """A share of the ballots with two 95 % intervals, all in 0..1.

    Attributes:
        value: TopK(m, k).
        low: lower end of Wilson's interval, which takes all ballots as independent.
        high: its upper end.
        group_low: lower end over resampled groups, each with all of its ballots.
        group_high: its upper end.
    """

    value: float
    low: float
    high: float
    group_low: float
    group_high: float


def read_votes(key: str | Path, files: Iterable[str | Path]) -> Votes:
    """Read the votes that voters have saved, and put methods in place of letters.

    Args:
        key: key.json of the study.
        files: vote files, or folders with them.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: no key, no votes, votes of another study, a voter twice, or a ranking that does not fit its group; the message
            names the file.
    """
    facts = _read(Path(key), KEY_FORMAT, "key")
    groups: dict[str, dict[str, str]] = {group["id"]: group["methods"] for group in facts["groups"]}
    paths = list(_vote_files(files))
    if not paths:
        raise ValueError("votes: expected files that voters saved (votes-....json), got none; name them or their folder")
    ballots: list[Ballot] = []
    seen: dict[str, Path] = {}
    for path in paths:
        record = _read(path, VOTES_FORMAT, "votes")
        if record.get("study") != facts["study"]:
            raise ValueError(
                f"votes: expected votes of study {facts['study']}, got {path} of study {record.get('study')}; leave it out"
            )
        voter = str(record.get("voter", "")).strip()
        if voter in seen:
            raise ValueError(f"votes: expected one file per voter, got {seen[voter]} and {path} by {voter!r}; keep one")
        seen[voter] = path
        said: Any = record.get("votes")
        if not isinstance(said, dict) or not said:
            raise ValueError(f"votes: expected at least one comparison in {path}, got none; leave it out")
        for group, letters in cast(dict[str, Any], said).items():
            ballots.append(Ballot(voter, group, _ranking(letters, groups.get(group), facts["mode"], f"{path}, {group}")))
    return Votes(facts["mode"], tuple(facts["methods"]), tuple(groups), tuple(ballots))


def _vote_files(files: Iterable[str | Path]) -> Iterable[Path]:
    for item in files:
        path = Path(item)
        if path.is_dir():
            yield from sorted(path.glob("*.json"))
        else:
            yield path


def _read(path: Path, kind: str, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected a file at {path}, found none; check the path")
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON in {path}, got something else ({error}); check the file") from error
    found = cast(dict[str, Any], record).get("format") if isinstance(record, dict) else None
    if found != kind:
        raise ValueError(f"{name}: expected a file of the kind {kind}, got {path} of the kind {found}; check which file it is")
    if record.get("version") != VERSION:
        raise ValueError(
            f"{name}: expected version {VERSION}, got {record.get('version')} in {path}; use the version that made it"
        )
    return cast(dict[str, Any], record)


def _ranking(letters: Any, methods: Mapping[str, str] | None, mode: str, where: str) -> tuple[str, ...]:
    if methods is None:
        raise ValueError(f"votes: expected groups of the study, got another in {where}; leave the file out")
    wanted = len(methods) if mode == "rank" else 1
    named = cast(list[Any], letters) if isinstance(letters, list) else []
    known = [letter for letter in named if isinstance(letter, str) and letter in methods]
    if len(named) != wanted or len(set(known)) != wanted:
        contract = f"all of {', '.join(methods)} once" if mode == "rank" else f"one of {', '.join(methods)}"
        raise ValueError(f"votes: expected {contract} in {where}, got {letters!r}; the file was changed, ask for it again")
    return tuple(methods[letter] for letter in known)


def top_k(votes: Votes, method: str, k: int) -> float:
    """Share of the ballots that put a method among the best k.

        TopK(m, k) = (1 / N) sum_i 1[r_i(m) <= k],   r_i(m) = rank of m in ballot i, 1 = best

    Args:
        votes: of one study.
        method: name.
        k: >= 1; in a top-1 study 1 alone.

    Returns:
        In 0..1; TopK(m, 1) is the share of votes, and TopK grows with k up to 1 at the number of methods.

    Raises:
        ValueError: an unknown method, or a k that the study does not tell.

    Source:
        ASASR, Eq. (47), asasr.md 2.8. N counts ballots, one per person and group; the paper writes groups.
    """
    return _mean(_hits(votes, method, k))


def _hits(votes: Votes, method: str, k: int) -> dict[str, list[bool]]:
    """Per group, for every ballot: is the method among the best k?"""
    check_positive_int(k, "k")
    if method not in votes.methods:
        raise ValueError(f"method: expected one of {', '.join(votes.methods)}, got {method!r}; check the name")
    if k not in votes.places:
        known = "1, since voters chose the best alone" if votes.mode == "top1" else f"1..{len(votes.methods)}"
        raise ValueError(f"k: expected {known}, got {k}; choose another")
    hits: dict[str, list[bool]] = {}
    for ballot in votes.ballots:
        hits.setdefault(ballot.group, []).append(method in ballot.ranking[:k])
    return hits


def _mean(hits: Mapping[str, Sequence[bool]]) -> float:
    flat = [hit for group in hits.values() for hit in group]
    return sum(flat) / len(flat)


def share(votes: Votes, method: str, k: int, *, seed: int = 0, draws: int = DRAWS) -> Share:
    """TopK with two 95 % intervals.

    Ballots on one group are not independent: everybody sees the same pictures. Wilson's interval does not know that and is too
    narrow where groups differ much; the other interval draws groups with replacement (percentiles of `draws` means).

    Args:
        votes: of one study.
        method: name.
        k: as in `top_k`.
        seed: of the draws.
        draws: how many.

    Raises:
        ValueError: as in `top_k`.

    Source:
        Wilson 1927; Efron 1979. The paper reports shares without intervals.
    """
    hits = _hits(votes, method, k)
    value = _mean(hits)
    low, high = wilson(sum(sum(group) for group in hits.values()), sum(len(group) for group in hits.values()))
    counts = torch.tensor([[sum(group), len(group)] for group in hits.values()], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = counts[torch.randint(len(counts), (draws, len(counts)), generator=generator)].sum(1)
    ends = torch.quantile(drawn[:, 0] / drawn[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Share(value, low, high, float(ends[0]), float(ends[1]))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = hits / n, z = 1.96

    Args:
        hits: how many of them, 0..count.
        count: n >= 1.

    Example:
        >>> low, high = wilson(9, 10)
        >>> round(low, 4), round(high, 4)
        (0.5958, 0.9821)
    """
    check_positive_int(count, "count")
    p, z2 = hits / count, _Z**2
    middle = p + z2 / (2 * count)
    reach = _Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return max(0.0, (middle - reach) / (1 + z2 / count)), min(1.0, (middle + reach) / (1 + z2 / count))
