"""What the experiments of this folder share: test pictures, progress lines, names of runs, numbers in tables."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from alignsr.core.image_files import list_images, read_image
from alignsr.core.images import crop_to_multiple, to_rgb
from alignsr.train.loop import SilentHooks
from alignsr.train.origins import learned_from
from alignsr.train.recipes import load_config
from alignsr.train.session import finished_weights

SCALE = 4


class Progress(SilentHooks):
    """One line every fifty steps."""

    def __init__(self, title: str) -> None:
        self.title = title

    def progress(self, step: int, total: int, logs: Any) -> None:
        if step % 50 == 0:
            print(f"{self.title}: step {step} of {total}, {logs.get('seconds', 0):.0f} s", file=sys.stderr, flush=True)


def trained(toml: Path, sets: Sequence[str], folder: Path) -> Path:
    """Weights of one training in `folder`: found again if it is finished, gone on with if it was interrupted.

    Raises:
        WeightsError: the folder holds a training of another config, or from other weights; the message names the keys.
    """
    recipe, config = load_config(toml, sets)
    weights = finished_weights(folder, config, learned_from(config))
    return weights or recipe.train(config, folder, Progress(config.name), resume=True).weights


def test_pairs(data: Path, sets: Sequence[str] = ("set5", "set14")) -> list[tuple[Tensor, Tensor]]:
    """(gt, lq) of every picture of the benchmark sets, x4, RGB."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for name in sets:
        for path in list_images(data / name / "hr"):
            gt = crop_to_multiple(to_rgb(read_image(path).pixels), SCALE)
            pairs.append((gt, to_rgb(read_image(data / name / f"lr_x{SCALE}" / path.name).pixels)))
    return pairs


def training_folders(data: Path) -> str:
    """The training photographs as a value of `--set data.folders=`."""
    return json.dumps([str(data / "bsds500" / part) for part in ("train", "test")])


def file_name(*parts: object) -> str:
    """Letters and digits of the parts, for a run's folder."""
    text = "-".join(str(part) for part in parts).lower()
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text).split())


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.fmean(values):.{digits}f} +- {spread:.{digits}f}"


def table(rows: Sequence[dict[str, Any]], figures: Mapping[str, str]) -> str:
    """Figures (key -> title) of rows by `method`, mean and standard deviation over seeds, as Markdown."""
    lines = ["| training | " + " | ".join(figures.values()) + " |", "| --- " * (len(figures) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [mean_and_spread([row[name] for row in rows if row["method"] == method]) for name in figures]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
