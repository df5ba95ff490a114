"""Does AESOP's loss leave texture alone where a pixel loss removes it? Trained on a processor, three seeds, Set5 and Set14.

python benchmarks/experiments/aesop.py --data DIR --out RUNS [--seeds 0 1 2] [--steps 600] [--json FILE] [--picture FILE]

Six ways to go on training the bundled lite-x4 on BSDS500, all by the recipe `perceptual_gan`, from the same weights, with the
same discriminator, patches and number of steps: pixel L1 alone; pixel L1 (weight 0.01), low-pass L1 (0.01) and AESOP (1.0), each
with the same adversarial loss (0.005); and the pixel loss and AESOP with ten times as much of it. No VGG weights are at hand, so
there is no perceptual loss.

For every run at a third, two thirds and all of its steps: PSNR-Y, AE-PSNR, LR-PSNR (does the result still explain its input?),
the energy of detail finer than the input can hold as a share of the ground truth's (1 is the right amount), the log-spectral
distance, and the periodic-energy score over the ground truth's (above 1: the detail is a grid of 8 or 16 pixels or a part).
The paper's claim is read at equal texture energy: on the line through a method's points, at the energy that all reach.

DIR holds bsds500/, set5/ and set14/. Finished runs in RUNS are found again; an interrupted one goes on.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import SCALE, file_name, mean_and_spread, test_pairs, trained, training_folders
from torch import Tensor

from alignsr.core.backbones import load_backbone
from alignsr.core.images import quantize_8bit
from alignsr.core.metrics import lr_psnr, psnr
from alignsr.core.metrics.autoencoded import project
from alignsr.core.metrics.distortion import psnr_of_raw
from alignsr.core.networks.autoencoder import AutoEncoder, load_autoencoder
from alignsr.core.restore import restore
from alignsr.core.spectral import high_frequency_ratio, log_spectral_distance, periodic_energy_score
from alignsr.core.weights import write_atomic

CONFIG = Path(__file__).with_name("aesop.toml")
FIGURES = ("psnr_y", "ae_psnr", "lr_psnr", "detail", "lsd", "grid")
L1, L1_STRONG = "L1 x 0.01 + GAN", "L1 x 0.01 + GAN x 10"
LOW_PASS = "low-pass L1 + GAN"
AESOP, AESOP_STRONG = "AESOP + GAN", "AESOP + GAN x 10"
METHODS: dict[str, dict[str, Any]] = {
    "L1": {"pixel": {"weight": 1.0}},
    L1: {"pixel": {"weight": 0.01}, "adversarial": {"weight": 0.005}},
    L1_STRONG: {"pixel": {"weight": 0.01}, "adversarial": {"weight": 0.05}},
    LOW_PASS: {"low_pass": {"weight": 0.01}, "adversarial": {"weight": 0.005}},
    AESOP: {"aesop": {"weight": 1.0}, "adversarial": {"weight": 0.005}},
    AESOP_STRONG: {"aesop": {"weight": 1.0}, "adversarial": {"weight": 0.05}},
}


class TestSet:
    """Set5 and Set14 with what does not depend on the method.

    Attributes:
        pairs: (gt, lq, AE(gt)) per picture.
    """

    def __init__(self, data: Path, autoencoder: AutoEncoder) -> None:
        self.autoencoder = autoencoder
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        for gt, lq in test_pairs(data):
            self.pairs.append((gt, lq, project(gt, autoencoder)))

    def measure(self, weights: str | Path) -> dict[str, float]:
        """Means of every figure over the pictures."""
        backbone = load_backbone(weights)
        rows: list[tuple[float, ...]] = []
        for gt, lq, kept in self.pairs:
            with torch.inference_mode():
                sr = quantize_8bit(restore(backbone, lq, scale=SCALE).sr)
                rows.append(
                    (
                        float(psnr(sr, gt, crop=SCALE)),
                        float(psnr_of_raw(project(sr, self.autoencoder), kept, crop=SCALE)),
                        float(lr_psnr(sr, lq, scale=SCALE)),
                        float(high_frequency_ratio(sr, gt, scale=SCALE)),
                        float(log_spectral_distance(sr, gt)),
                        float(periodic_energy_score(sr)) / float(periodic_energy_score(gt)),
                    )
                )
        return {name: statistics.fmean(column) for name, column in zip(FIGURES, zip(*rows, strict=True), strict=True)}


def train(method: str, seed: int, options: argparse.Namespace) -> dict[int, Path]:
    """Step -> weights of one run; what is there already is used."""
    losses = {name: dict(table) for name, table in METHODS[method].items()}
    if "aesop" in losses:
        losses["aesop"]["autoencoder"] = str(options.autoencoder)
    name = file_name(method, seed)
    every = max(1, options.steps // 3)
    sets = [
        f'name="{name}"',
        f"run.steps={options.steps}",
        f"run.seed={seed}",
        f"run.export_every={every}",
        f"data.folders={training_folders(options.data)}",
        *(f"losses.{loss}.{key}={json.dumps(value)}" for loss, table in losses.items() for key, value in table.items()),
        *options.set,
    ]
    folder = options.out / name
    last = trained(CONFIG, sets, folder)
    exports = {int(path.stem.rsplit("-", 1)[1]): path for path in sorted((folder / "exports").glob("*.safetensors"))}
    return {step: path for step, path in exports.items() if step < options.steps} | {options.steps: last}


def at_energy(points: Sequence[dict[str, float]], energy: float) -> dict[str, float] | None:
    """The figures of a method where its detail crosses `energy`, by straight lines between its points; None if it never does."""
    for before, after in itertools.pairwise(points):
        low, high = before["detail"], after["detail"]
        if min(low, high) <= energy <= max(low, high) and low != high:
            share = (energy - low) / (high - low)
            return {name: before[name] + share * (after[name] - before[name]) for name in FIGURES}
    return None


def table(rows: list[dict[str, Any]], last: int) -> str:
    """The figures at the last step, mean and standard deviation over seeds, as Markdown."""
    titles = {
        "psnr_y": "PSNR-Y (dB)",
        "ae_psnr": "AE-PSNR (dB)",
        "lr_psnr": "LR-PSNR (dB)",
        "detail": "detail / gt",
        "lsd": "LSD (dB)",
        "grid": "grid / gt",
    }
    lines = ["| training | " + " | ".join(titles[name] for name in FIGURES) + " |", "| --- " * (len(FIGURES) + 1) + "|"]
    for method in ("lite-x4, the start", *METHODS):
        of_method = [row for row in rows if row["method"] == method and row["step"] in (0, last)]
        if of_method:
            lines.append(
                f"| {method} | " + " | ".join(mean_and_spread([row[name] for row in of_method]) for name in FIGURES) + " |"
            )
    return "\n".join(lines)


def verdict(rows: list[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Per seed and method that gains detail: AESOP's figures minus its, at the largest energy that both reach."""
    start = next(row for row in rows if row["step"] == 0)

    def line(method: str, seed: int) -> list[dict[str, Any]]:
        return [start, *(row for row in rows if row["method"] == method and row["seed"] == seed)]

    found: list[dict[str, Any]] = []
    for seed, other in itertools.product(seeds, (L1, L1_STRONG, LOW_PASS)):
        # the same adversarial pressure where that is possible
        theirs, mine = line(other, seed), line(AESOP_STRONG if other == L1_STRONG else AESOP, seed)
        energy = min(max(point["detail"] for point in points) for points in (theirs, mine))
        if energy < start["detail"] + 0.02:
            continue
        ours, others = at_energy(mine, energy), at_energy(theirs, energy)
        if ours is not None and others is not None:
            gains = {name: ours[name] - others[name] for name in ("psnr_y", "ae_psnr", "lr_psnr")}
            found.append({"seed": seed, "against": other, "detail": energy, **gains})
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR, AE-PSNR and LR-PSNR over the energy of detail: one line per method and seed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(14, 4.6), dpi=100)
    start = next(row for row in rows if row["step"] == 0)
    titles = (("psnr_y", "PSNR-Y"), ("ae_psnr", "AE-PSNR"), ("lr_psnr", "LR-PSNR"))
    for axes, (name, title) in zip(panels, titles, strict=True):
        for index, method in enumerate(METHODS):
            for seed in sorted({row["seed"] for row in rows if row["method"] == method}):
                line = [start, *(row for row in rows if row["method"] == method and row["seed"] == seed)]
                label = method if seed == min(row["seed"] for row in rows if row["method"] == method) else None
                axes.plot(
                    [p["detail"] for p in line], [p[name] for p in line], "o-", color=f"C{index}", label=label, ms=4, lw=1.3
                )
        axes.plot(start["detail"], start[name], "k*", ms=12, label="lite-x4, the start")
        axes.axvline(1, color="0.6", lw=1, ls="--")
        axes.set_xlabel("energy of detail / ground truth's")
        axes.set_ylabel(f"{title} (dB)")
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.suptitle("Set5 and Set14, one line per seed, points at a third, two thirds and all of the steps")
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/ and set14/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--autoencoder", default="autoencoder-tiny-x4", help="bundled name or file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="only these")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config of every run")
    parser.add_argument("--train-only", action="store_true", help="leave the measuring to a later call")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--picture", type=Path, help="also draw the figures here, as PNG")
    options = parser.parse_args(argv)
    runs = {(method, seed): train(method, seed, options) for seed in options.seeds for method in options.methods}
    if options.train_only:
        return 0
    tests = TestSet(options.data, load_autoencoder(options.autoencoder))
    rows: list[dict[str, Any]] = [{"method": "lite-x4, the start", "seed": 0, "step": 0, **tests.measure("lite-x4")}]
    for (method, seed), exports in runs.items():
        rows += [{"method": method, "seed": seed, "step": step, **tests.measure(path)} for step, path in exports.items()]
    print(table(rows, options.steps))
    comparison = verdict(rows, options.seeds) if set(options.methods) == set(METHODS) else []
    for line in comparison:
        gains = ", ".join(f"{name} {line[name]:+.2f} dB" for name in ("psnr_y", "ae_psnr", "lr_psnr"))
        print(f"seed {line['seed']}, detail {line['detail']:.2f}: AESOP against {line['against']}: {gains}")
    if options.json:
        report = json.dumps({"rows": rows, "at_equal_energy": comparison}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    if options.picture:
        draw(rows, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
