"""Scores by picture: what was scored once, in this run or another one that shares the folder, is not scored again.

A folder per metric (and its settings and weight files) holds Parquet files with the columns picture, reference, score. They are
written whole and never changed, so that any number of processes may add to them and a kill leaves nothing half-done.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...core.metrics import spec_of
from ...core.metrics.files import find
from .tables import read_table, write_table

Key = tuple[str, str]
"""(SHA-256 of the picture's pixels, SHA-256 of what it is compared with)."""
COLUMNS = ("picture", "reference", "score")


def metric_key(name: str, scale: int, precision: str) -> str:
    """Folder name of a metric's scores: changes with what can change a score.

    Weight files count by name and size: files of the same size that differ would need their content read each time.
    """
    spec = spec_of(name)
    files = [find(file) for file in spec.weights]
    facts = {
        "options": dict(spec.options),
        "files": [(path.name, path.stat().st_size) for path in files if path is not None],
        "scale": scale if spec.kind != "learned" else 0,
        "precision": precision if spec.kind == "learned" else "",
    }
    return f"{name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}"


class ScoreCache:
    """The scores of one metric.

    Args:
        folder: shared by all metrics.
        key: `metric_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        self._scores: dict[bytes, float] = {}  # short keys: a published run has two million scores per metric
        for path in sorted(self.folder.glob("[!.]*.parquet")) if self.folder.is_dir() else ():  # no half-written ones
            columns, _ = read_table(path, COLUMNS)
            pictures, references = (columns[name].tolist() for name in COLUMNS[:2])
            keys = map(_short, zip(pictures, references, strict=True))
            self._scores.update(zip(keys, columns["score"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._scores)

    def find(self, keys: Sequence[Key]) -> list[float] | None:
        """Their scores, or None where one is missing: a batch is scored whole, so that its scores do not depend on the cache."""
        found = [self._scores.get(_short(key)) for key in keys]
        return None if any(score is None for score in found) else [score for score in found if score is not None]

    def add(self, scores: Mapping[Key, float]) -> None:
        """Remember scores, on disk too."""
        if not scores:
            return
        pictures, references = zip(*scores, strict=True)
        values = list(scores.values())
        name = hashlib.sha256(repr(sorted(scores.items())).encode()).hexdigest()[:24]
        columns = dict(zip(COLUMNS, (list(pictures), list(references), values), strict=True))
        write_table(self.folder / f"{name}.parquet", columns, {"kind": "score cache"})
        self._scores.update((_short(key), score) for key, score in scores.items())


def _short(key: Key) -> bytes:
    """Half of each checksum: 256 bits in all."""
    return bytes.fromhex(key[0][:32] + key[1][:32])
