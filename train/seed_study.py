"""Before and after: runs of candidates on the same pictures, compared seed by seed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from ..core.metrics.seeds import SeedTable, seed_table
from ..core.pictures import contact_sheet
from ..core.weights import write_atomic
from .candidates.score import SCORES, read_scores
from .candidates.store import CandidateStore
from .sources import DataError

SHOWN_PICTURES, SHOWN_SEEDS = 3, 4


def compare_runs(runs: Mapping[str, Path]) -> SeedTable:
    """Mean and deviation over seeds of the metrics that all runs have.

    Args:
        runs: name -> run folder of `alignsr candidates` with scores.

    Raises:
        DataError: a run without scores, runs of different pictures, or runs that share no metric.
        ValueError: see `seed_table`.
    """
    stores = {name: CandidateStore(folder) for name, folder in runs.items()}
    found = {name: read_scores(folder / SCORES) for name, folder in runs.items()}
    first, *others = stores
    for name in others:
        mine, there = stores[name], stores[first]
        if mine.names != there.names or any(
            mine.entry(index).pixels[-2:] != there.entry(index).pixels[-2:] for index in range(len(there.names))
        ):
            raise DataError(
                f"{name}: expected the pictures of {first} ({len(there.names)}), cut and degraded alike, got others "
                f"({len(mine.names)}); sample both with the same data and seed"
            )
    metrics = [name for name in found[first].metrics if all(name in scores.metrics for scores in found.values())]
    if not metrics:
        raise DataError("runs: expected a metric that all have, got none; score them with the same metrics")
    columns = {name: [scores.metrics.index(metric) for metric in metrics] for name, scores in found.items()}
    return seed_table({name: [group[:, columns[name]] for group in scores.groups] for name, scores in found.items()}, metrics)


def seed_sheet(runs: Mapping[str, Path]) -> Image.Image:
    """The first pictures: ground truth, then the first seeds of each run, a row per run."""
    pictures: dict[str, torch.Tensor] = {}
    stores = {name: CandidateStore(folder) for name, folder in runs.items()}
    first = next(iter(stores.values()))
    seeds = min(SHOWN_SEEDS, *(store.candidates for store in stores.values()))
    for index in range(min(SHOWN_PICTURES, len(first.names))):
        for name, store in stores.items():
            entry = store.entry(index)
            pictures[f"{index} {name}: ground truth"] = store.picture(entry, "gt")[None].float() / 255
            for k in range(seeds):
                pictures[f"{index} {name}: seed {k}"] = store.picture(entry, f"{k:02d}.png")[None].float() / 255
    return contact_sheet(pictures, columns=1 + seeds, cell_px=180)


def write_comparison(table: SeedTable, runs: Mapping[str, Path], folder: Path) -> Path:
    """`seeds.csv`, `seeds.md`, `seeds.png` and `sheet.png` in a folder, which is returned."""
    for name, text in (("seeds.csv", table.to_csv()), ("seeds.md", table.to_markdown())):
        write_atomic(folder / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    for name, picture in (("seeds.png", table.picture()), ("sheet.png", seed_sheet(runs))):
        write_atomic(folder / name, lambda part, picture=picture: picture.save(part, format="PNG"))
    return folder
