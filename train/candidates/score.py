"""Stage 2 of pipeline A: scores of every candidate by every metric, one metric in memory at a time, as one Parquet table."""

import gc
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.metrics import Scorer, require_available, spec_of
from ...core.metrics.spec import MetricSpec
from .cache import Key, ScoreCache, metric_key
from .config import ScoringConfig
from .processes import SilentWatch, Team, Watch
from .store import CandidateStore, GroupEntry
from .tables import read_table, write_table

LOGGER = logging.getLogger("alignsr")
SCORES = "scores.parquet"
CACHE = "score-cache"
CHUNK = 16  # groups between two writes: what a kill can lose of one metric
AHEAD = 2  # groups whose pictures are decoded while one is scored


@dataclass(frozen=True)
class Scores:
    """The table [group, candidate, metric] of a run.

    Attributes:
        metrics: names, in the order of the columns.
        groups: per group [M, K] float64, NaN where a metric gave no number.
    """

    metrics: tuple[str, ...]
    groups: tuple[Tensor, ...]


def score_candidates(config: ScoringConfig, store: CandidateStore, *, team: Team, watch: Watch | None = None) -> Path:
    """Score whatever has no score yet, and write the table.

    Args:
        config: metrics and batches.
        store: finished candidates.
        team: the processes.
        watch: the host.

    Returns:
        The table's path, inside the run folder.

    Raises:
        MissingWeightsError: before anything is scored, naming all files of all metrics.
        DataError: damaged or differing pictures.
    """
    watch = watch or SilentWatch()
    store.require_finished()
    require_available(config.metrics)
    folder = Path(config.cache).expanduser() if config.cache else store.folder / CACHE
    if team.is_main and not config.cache:  # a shared folder may be in use by others
        for stale in folder.glob("*/.*.parquet"):
            stale.unlink(missing_ok=True)
    team.meet()
    chunks = [range(start, min(start + CHUNK, len(store.names))) for start in range(0, len(store.names), CHUNK)]
    for name in config.metrics:
        _score_metric(name, config, store, folder, team.share(chunks), team, watch)
    team.meet()
    if team.is_main:
        write_scores(config, store, folder)
    team.meet()
    return store.folder / SCORES


def _score_metric(
    name: str, config: ScoringConfig, store: CandidateStore, folder: Path, chunks: Sequence[range], team: Team, watch: Watch
) -> None:
    """One metric over this process's share of the groups; its weights are read when the first missing score turns up."""
    spec, total, done = spec_of(name), len(store.names), 0
    cache = ScoreCache(folder, metric_key(name, store.scale, config.precision))
    scorer: Scorer | None = None
    with ThreadPoolExecutor(max(1, config.workers)) as pool:
        for chunk in chunks:
            todo = [index for index in chunk if _missing(store.entry(index), spec, cache, config.batch_size)]
            if todo and scorer is None:
                scorer = Scorer(name, team.device)
            found: dict[Key, float] = {}
            for entry, loaded in _ahead(pool, store, todo, spec, cache, config.batch_size):
                assert scorer is not None
                with matmul_precision(config.precision):
                    found |= _score_group(scorer, store, entry, loaded)
                watch.progress(name, min((done + 1) * team.size, total), total)
                done += 1
            cache.add(found)
            done += len(chunk) - len(todo)
    watch.progress(name, total, total)
    del scorer
    if spec.kind == "learned":
        gc.collect()
        if team.device.type == "cuda":
            torch.cuda.empty_cache()


def keys_of(pixels: Sequence[str], spec: MetricSpec) -> list[Key]:
    """The cache keys of a group's candidates, from its `GroupEntry.pixels`."""
    *pictures, gt, lq = pixels
    used = [*([gt] if spec.needs_reference else []), *([lq] if spec.needs_input else [])]
    reference = hashlib.sha256("".join(used).encode()).hexdigest() if used else ""
    return [(picture, reference) for picture in pictures]


def batches_of(entry: GroupEntry, size: int) -> list[range]:
    """Candidates that are scored together, whatever is known of some of them."""
    return [range(start, min(start + size, entry.candidates)) for start in range(0, entry.candidates, size)]


def _missing(entry: GroupEntry, spec: MetricSpec, cache: ScoreCache, size: int) -> list[range]:
    keys = keys_of(entry.pixels, spec)
    return [batch for batch in batches_of(entry, size) if cache.find([keys[i] for i in batch]) is None]


@dataclass(frozen=True)
class _Loaded:
    batches: list[tuple[range, Tensor]]
    gt: Tensor | None
    lq: Tensor | None
    keys: list[Key]


def _load(store: CandidateStore, entry: GroupEntry, spec: MetricSpec, cache: ScoreCache, size: int) -> _Loaded:
    batches = [
        (batch, torch.stack([store.picture(entry, f"{i:02d}.png") for i in batch]))
        for batch in _missing(entry, spec, cache, size)
    ]
    gt = store.picture(entry, "gt") if spec.needs_reference else None
    lq = store.picture(entry, "lq") if spec.needs_input else None
    return _Loaded(batches, gt, lq, keys_of(entry.pixels, spec))


def _ahead(
    pool: ThreadPoolExecutor, store: CandidateStore, todo: Sequence[int], spec: MetricSpec, cache: ScoreCache, size: int
) -> Iterator[tuple[GroupEntry, _Loaded]]:
    """Groups with their decoded pictures, some being decoded while one is scored."""
    entries = [store.entry(index) for index in todo]
    pending = [pool.submit(_load, store, entry, spec, cache, size) for entry in entries[: AHEAD + 1]]
    for number, entry in enumerate(entries):
        loaded = pending.pop(0).result()
        following = number + AHEAD + 1
        if following < len(entries):
            pending.append(pool.submit(_load, store, entries[following], spec, cache, size))
        yield entry, loaded


def _score_group(scorer: Scorer, store: CandidateStore, entry: GroupEntry, loaded: _Loaded) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for batch, pictures in loaded.batches:
        sr = pictures.float() / 255
        gt, lq = (None if x is None else (x.float() / 255).expand(len(sr), -1, -1, -1) for x in (loaded.gt, loaded.lq))
        values = scorer(sr, gt, lq=lq, scale=store.scale).tolist()
        found |= dict(zip([loaded.keys[i] for i in batch], values, strict=True))
    return found


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """TensorFloat-32 matrix products on a GPU inside the block, where asked for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before or name == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def write_scores(config: ScoringConfig, store: CandidateStore, folder: Path) -> Path:
    """Put the cached scores together: rows by group, candidate, metric."""
    columns: list[list[list[float]]] = []  # metric -> group -> candidates
    pixels = [store.entry(index).pixels for index in range(len(store.names))]
    for name in config.metrics:
        spec = spec_of(name)
        cache = ScoreCache(folder, metric_key(name, store.scale, config.precision))
        found = [cache.find(keys_of(hashes, spec)) for hashes in pixels]
        assert all(values is not None for values in found), name
        columns.append([values for values in found if values is not None])
    counts, kinds = np.array([len(hashes) - 2 for hashes in pixels]), len(config.metrics)
    groups = np.repeat(np.arange(len(pixels)), counts)
    candidates = np.concatenate([np.arange(count) for count in counts])
    values = np.stack([np.concatenate([np.asarray(group) for group in metric]) for metric in columns], 1)
    table = {
        "group": np.repeat(groups, kinds).astype(np.int32),
        "candidate": np.repeat(candidates, kinds).astype(np.int32),
        "metric": list(config.metrics) * len(groups),
        "score": values.reshape(-1),
    }
    info = {"kind": "scores", "metrics": list(config.metrics), "sampling": store.manifest["hash"], "scale": store.scale}
    return write_table(store.folder / SCORES, table, info)


def read_scores(path: Path) -> Scores:
    """The table as one [M, K] tensor per group.

    Raises:
        DataError: not a table of scores, or one with holes.
    """
    from ..sources import DataError

    columns, info = read_table(path, ("group", "candidate", "metric", "score"))
    metrics = tuple(info.get("metrics", ())) or tuple(dict.fromkeys(columns["metric"].tolist()))
    kinds = len(metrics)
    groups, scores = columns["group"], columns["score"].astype(np.float64)
    is_whole = kinds > 0 and len(scores) > 0 and len(scores) % kinds == 0
    if not is_whole or not (columns["metric"].reshape(-1, kinds) == np.array(metrics, dtype=object)).all():
        raise DataError(
            f"{path}: expected every candidate with the metrics {', '.join(metrics)} in this order, got another layout; "
            "score the candidates again"
        )
    rows, owner = scores.reshape(-1, kinds), groups[::kinds]
    bounds = np.flatnonzero(np.diff(owner)) + 1
    parts = [torch.from_numpy(part.copy()) for part in np.split(rows, bounds)]
    for part in parts:
        part[~torch.isfinite(part)] = math.nan
    return Scores(metrics, tuple(parts))
