"""Does StrSR's recipe do what its terms are for? The bundled pixel model distilled on a processor, three seeds, Set5 and Set14.

python benchmarks/experiments/strsr.py --data DIR --out RUNS [--seeds 0 1 2] [--steps 300] [--more 150]
    [--json FILE] [--picture FILE]

Recipe `one_step_distill` from the same weights, with the same patches, in two stages as published: stage 1 with L1 alone, or with
L1 + RaGAN (and its R1 penalty); stage 2 goes on from stage 1's checkpoint, optimisers included, as it was, with the FDL, or with
our grid loss in its place. LPIPS is off, and critic and FDL look through our own lite-x4 (see strsr.toml).

Per training, at its last step: PSNR-Y, LR-PSNR, the energy of detail finer than the input can hold as a share of the ground
truth's (1 is the right amount), the log-spectral distance of the radial spectra, and the periodic-energy score (strsr.md, check
24) over the ground truth's: above 1, the detail is partly a grid of 8 or 16 pixels, the patch of this model and its double.

DIR holds bsds500/, set5/ and set14/. Finished trainings in RUNS are found again; an interrupted one goes on.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import SCALE, file_name, table, test_pairs, trained, training_folders
from torch import Tensor

from alignsr.core.backbones import load_backbone
from alignsr.core.images import quantize_8bit
from alignsr.core.metrics import lr_psnr, psnr
from alignsr.core.restore import restore
from alignsr.core.spectral import high_frequency_ratio, log_spectral_distance, periodic_energy_score, radial_spectrum
from alignsr.core.weights import write_atomic

CONFIG = Path(__file__).with_name("strsr.toml")
START = "pixel-x4, the start"
FIGURES = {
    "psnr_y": "PSNR-Y (dB)",
    "lr_psnr": "LR-PSNR (dB)",
    "detail": "detail / gt",
    "lsd": "LSD (dB)",
    "grid": "grid / gt",
}
L1, GAN, FDL, GRID = "L1", "L1 + GAN", "L1 + GAN + FDL", "L1 + GAN + grid loss"
STAGE_1 = {L1: [], GAN: ["losses.ragan.weight=1.0"]}
STAGE_2 = {
    L1: (L1, []),
    GAN: (GAN, []),
    FDL: (
        GAN,
        [
            "losses.fdl.weight=0.05",
            "losses.fdl.projections=64",
            'losses.fdl.features.kind="network"',
            'losses.fdl.features.weights="lite-x4"',
        ],
    ),
    GRID: (GAN, ["losses.grid.weight=0.3", "losses.grid.period_px=8"]),
}
BINS = 24


def run(name: str, sets: Sequence[str], options: argparse.Namespace, start: Path | None) -> Path:
    """Weights of one training; what is there already is used."""
    has_critic = any("ragan" in item for item in sets)
    values = [
        f'name="{name}"',
        f"data.folders={training_folders(options.data)}",
        *([] if has_critic else ["losses.ragan.weight=0.0"]),
        *([] if start is None else [f"start_from={json.dumps(str(start))}"]),
        *sets,
        *options.set,
    ]
    return trained(CONFIG, values, options.out / name)


def train(seed: int, options: argparse.Namespace) -> dict[str, Path]:
    """Method -> weights after both stages."""
    seeded = [f"run.seed={seed}"]
    first: dict[str, Path] = {}
    for method, sets in STAGE_1.items():
        if any(STAGE_2[wanted][0] == method for wanted in options.methods):
            first[method] = run(file_name("stage1", method, seed), [*sets, *seeded, f"run.steps={options.steps}"], options, None)
    last: dict[str, Path] = {}
    for method in options.methods:
        base, added = STAGE_2[method]
        sets = [*STAGE_1[base], *added, *seeded, f"run.steps={options.more}"]
        last[method] = run(file_name("stage2", method, seed), sets, options, first[base].parent)
    return last


def measure(weights: str | Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Means of every figure over the pictures, and the mean radial spectrum over the ground truth's (`spectrum`, in dB)."""
    backbone = load_backbone(weights)
    rows: list[tuple[float, ...]] = []
    spectra: list[list[float]] = []
    for gt, lq in pairs:
        with torch.inference_mode():
            sr = quantize_8bit(restore(backbone, lq, scale=SCALE).sr)
            rows.append(
                (
                    float(psnr(sr, gt, crop=SCALE)),
                    float(lr_psnr(sr, lq, scale=SCALE)),
                    float(high_frequency_ratio(sr, gt, scale=SCALE)),
                    float(log_spectral_distance(sr, gt)),
                    float(periodic_energy_score(sr)) / float(periodic_energy_score(gt)),
                )
            )
            spectra.append(relative_spectrum(sr, gt))
    figures = {name: statistics.fmean(column) for name, column in zip(FIGURES, zip(*rows, strict=True), strict=True)}
    return figures | {"spectrum": [statistics.fmean(column) for column in zip(*spectra, strict=True)]}


def relative_spectrum(sr: Tensor, gt: Tensor) -> list[float]:
    """Radial spectrum less the ground truth's, in dB: means over `BINS` equal bands up to half a cycle per pixel."""
    difference = (radial_spectrum(sr) - radial_spectrum(gt))[0]
    band = torch.arange(len(difference)) * BINS // len(difference)
    sums = difference.new_zeros(BINS).index_add(0, band, difference)
    return (sums / torch.bincount(band, minlength=BINS)).tolist()


def differences(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Per seed: what a term changed against the same training without it."""
    found: list[dict[str, Any]] = []
    by = {(row["method"], row["seed"]): row for row in rows}
    for seed in seeds:
        for method, without in ((GAN, L1), (FDL, GAN), (GRID, GAN)):
            if (method, seed) in by and (without, seed) in by:
                changes = {name: by[method, seed][name] - by[without, seed][name] for name in FIGURES}
                found.append({"seed": seed, "method": method, "without": without, **changes})
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Radial spectra over the ground truth's, one line per method and seed, and the periodic energy beside the detail."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), dpi=100)
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        of_method = [row for row in rows if row["method"] == method]
        color = "k" if method == START else f"C{index}"
        for number, row in enumerate(of_method):
            label = method if number == 0 else None
            frequencies = [(bin_ + 0.5) / (2 * BINS) for bin_ in range(BINS)]
            left.plot(frequencies, row["spectrum"], color=color, lw=1.3, label=label)
            right.plot(row["detail"], row["grid"], "*" if method == START else "o", color=color, ms=9, label=label)
    left.axhline(0, color="0.6", lw=1, ls="--")
    left.set_xlabel("cycles per pixel")
    left.set_ylabel("radial power / ground truth's (dB)")
    right.axhline(1, color="0.6", lw=1, ls="--")
    right.set_xlabel("energy of detail / ground truth's")
    right.set_ylabel("periodic energy / ground truth's")
    right.set_yscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.suptitle("Set5 and Set14, one line or point per seed")
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/ and set14/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of stage 1")
    parser.add_argument("--more", type=int, default=150, help="steps of stage 2")
    parser.add_argument("--methods", nargs="+", choices=list(STAGE_2), default=list(STAGE_2), help="only these")
    parser.add_argument("--sets", nargs="+", default=["set5", "set14"], help="what is measured on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config of every training")
    parser.add_argument("--train-only", action="store_true", help="leave the measuring to a later call")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--picture", type=Path, help="also draw the figures here, as PNG")
    options = parser.parse_args(argv)
    runs = {(method, seed): path for seed in options.seeds for method, path in train(seed, options).items()}
    if options.train_only:
        return 0
    pairs = test_pairs(options.data, options.sets)
    rows: list[dict[str, Any]] = [{"method": START, "seed": 0, **measure("pixel-x4", pairs)}]
    for method in options.methods:
        rows += [{"method": method, "seed": seed, **measure(runs[method, seed], pairs)} for seed in options.seeds]
    print(table(rows, FIGURES))
    changes = differences(rows, options.seeds)
    for line in changes:
        gains = ", ".join(f"{title} {line[name]:+.3f}" for name, title in FIGURES.items())
        print(f"seed {line['seed']}: {line['method']} less {line['without']}: {gains}")
    if options.json:
        report = json.dumps({"rows": rows, "differences": changes}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    if options.picture:
        draw(rows, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
