"""ASASR's directions on a real model and real pictures: preferences on pixel-flow-x4, three seeds, Set5 and Set14.

python benchmarks/experiments/asasr_pixel.py --data DIR --out RUNS [--gan WEIGHTS] [--seeds 0 1 2] [--methods ...]
    [--steps 100] [--adversary-steps 300]
    [--set KEY=VALUE --label NAME] [--json FILE] [--picture FILE]

Per seed: an adversary (recipe `flow_sft` on artefacts, an adapter on pixel-flow-x4) learns to restore as ESRGAN, RealSR-JPEG and
BSRGAN did RealSRSet's pictures and, with --gan, as a GAN-trained model of ours does BSDS500's; then policies are trained with the
recipe `sobolev_dpo` from the same model, the same patches and the same noise, and differ in what their names say.

The experiments of asasr.md 6.2: E1, order 1.5 against 0 with the adversary's negatives (L = 64, the side of the patches, and
L = 2 pi); E2, the adversary's negatives against the enlarged input as loser; E4, a sweep of s. Beside them: negatives in closed
form, raw beta, and pairs weighed by how far apart they are (HPO's idea inside AS-DPO).

Measured on the middle 192 px of each picture under the training degradation, sampled from one noise with the model's own steps:
PSNR-Y, squared error by band of the DCT (times 1000; low below a quarter, high above half of the largest index), log-spectral
distance, and the energy of detail over the ground truth's.

DIR holds bsds500/, set5/, set14/ and realsrset/. Finished trainings in RUNS are found again; an interrupted one goes on.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import SCALE, file_name, table, test_pairs, trained, training_folders
from torch import Tensor

from alignsr.core.backbones import load_backbone
from alignsr.core.degradation import degrade
from alignsr.core.diffusion import as_multi_step
from alignsr.core.image_files import list_images, read_image, write_image
from alignsr.core.images import quantize_8bit, to_rgb
from alignsr.core.metrics import psnr
from alignsr.core.restore import restore
from alignsr.core.sampling import restore_multi_step
from alignsr.core.sobolev import SobolevNorm
from alignsr.core.spectral import high_frequency_ratio, log_spectral_distance
from alignsr.core.weights import write_atomic

HERE = Path(__file__).parent
MODEL, DEGRADATION, SIDE = "pixel-flow-x4", "mild", 192
START = "pixel-flow-x4, the start"
LQ, CLOSED = ['adversary.mode="lq"', 'adversary.adapter=""'], ['adversary.mode="closed_form"', 'adversary.adapter=""']
METHODS: dict[str, list[str]] = {
    "AS-DPO, s = 1.5, L = 64": [],
    "AS-DPO, s = 1.5, L = 2 pi": ["preference.length_scale=6.2831853"],
    "AS-DPO, s = 0": ["preference.order=0.0"],
    "LQ as loser, s = 1.5": LQ,
    "LQ as loser, s = 0": [*LQ, "preference.order=0.0"],
    "closed form, s = 1.5": CLOSED,
    "AS-DPO, s = 0.5": ["preference.order=0.5"],
    "AS-DPO, s = 3": ["preference.order=3.0"],
    "AS-DPO, s = 1.5, raw beta": ['preference.beta_mode="raw"'],
    "AS-DPO, s = 1.5, weighed by gap": ['preference.weighting="gap"'],
}
FIGURES = {
    "psnr_y": "PSNR-Y (dB)",
    "low": "error low",
    "mid": "error mid",
    "high": "error high",
    "lsd": "LSD (dB)",
    "detail": "detail / gt",
}
UP = {"psnr_y"}  # higher is better; of the others except detail, lower
FULL, TWO_PI, EUCLID, LQ_15, LQ_0 = (list(METHODS)[i] for i in range(5))
CLAIMS: tuple[tuple[str, str, str, str], ...] = (  # experiment, figure, better, worse
    ("E1", "mid", FULL, EUCLID),
    ("E1", "high", FULL, EUCLID),
    ("E1", "psnr_y", FULL, EUCLID),
    ("E1", "lsd", FULL, EUCLID),
    ("E1 (L = 2 pi)", "mid", TWO_PI, EUCLID),
    ("E1 (L = 2 pi)", "high", TWO_PI, EUCLID),
    ("E1 (L = 2 pi)", "psnr_y", TWO_PI, EUCLID),
    ("E1 (L = 2 pi)", "lsd", TWO_PI, EUCLID),
    ("E1, not below the start", "psnr_y", FULL, START),
    ("E1, Euclidean falls below the start", "psnr_y", START, EUCLID),
    ("E2", "psnr_y", FULL, LQ_15),
    ("E2", "lsd", FULL, LQ_15),
    ("E2, s = 0", "psnr_y", EUCLID, LQ_0),
    ("E2, s = 0", "lsd", EUCLID, LQ_0),
)


def artefacts(data: Path, out: Path, gan: Path | None, pictures: int = 60) -> list[str]:
    """Folders of artefacts: RealSRSet's, and with a model of ours what it made of BSDS500's pictures, written once."""
    folders = [str(data / "realsrset")]
    if gan is None:
        return folders
    root = out / "own-gan"
    if not (root / "done").is_file():
        model = load_backbone(gan)
        for path in list_images(data / "bsds500" / "train")[:pictures]:
            gt = to_rgb(read_image(path).pixels)[..., :320, :320]
            gt = gt[..., : gt.shape[-2] // 32 * 32, : gt.shape[-1] // 32 * 32]
            lq = quantize_8bit(degrade(gt, DEGRADATION, seeds=[0], scale=SCALE).lq)
            with torch.inference_mode():
                sr = restore(model, lq, scale=SCALE).sr
            for part, image in (("lq", lq), ("own_gan", sr)):
                write_image(root / part / f"{path.stem}.png", image)
        (root / "done").write_text("all pictures are here\n", encoding="utf-8")
    return [*folders, str(root)]


def pairs_to_measure(data: Path, sets: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """(gt, lq): the middle of every benchmark picture, degraded as in training with a seed of its own."""
    found: list[tuple[Tensor, Tensor]] = []
    for index, (gt, _) in enumerate(test_pairs(data, sets)):
        sides = [min(SIDE, length // 32 * 32) for length in gt.shape[-2:]]
        top, left = ((length - side) // 2 for length, side in zip(gt.shape[-2:], sides, strict=True))
        gt = gt[..., top : top + sides[0], left : left + sides[1]]
        found.append((gt, degrade(gt, DEGRADATION, seeds=[index], scale=SCALE).lq))
    return found


def measure(weights: str | Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means of every figure over the pictures."""
    backbone = as_multi_step(load_backbone(weights))

    def restored(index: int, lq: Tensor) -> Tensor:
        return restore_multi_step(backbone, lq, scale=SCALE, seeds=index, color_fix="none").sr

    return mean_figures(restored, pairs)


def mean_figures(restored: Callable[[int, Tensor], Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means of every figure over the pictures, of what `restored(number, lq)` makes of them."""
    flat, rows = SobolevNorm(0.0), list[tuple[float, ...]]()
    for index, (gt, lq) in enumerate(pairs):
        with torch.no_grad():
            sr = quantize_8bit(restored(index, lq))
            bands = 1000 * flat.band_energies(sr - gt)[0]
            others = (psnr(sr, gt, crop=SCALE), *bands, log_spectral_distance(sr, gt), high_frequency_ratio(sr, gt, scale=SCALE))
            rows.append(tuple(float(value) for value in others))
    return dict(zip(FIGURES, map(statistics.fmean, zip(*rows, strict=True)), strict=True))


def train(seed: int, options: argparse.Namespace, folders: Sequence[str]) -> dict[str, Path]:
    """Method -> weights."""
    seeded = [f"run.seed={seed}", f"run.steps={options.steps}", *options.set]
    name = f"adversary-{seed}"
    adversary = trained(
        HERE / "asasr_adversary.toml",
        [
            f'name="{name}"',
            f"artefacts.folders={json.dumps(list(folders))}",
            f"run.seed={seed}",
            f"run.steps={options.adversary_steps}",
        ],
        options.out / name,
    )
    file = json.dumps(str(adversary.with_name(f"{adversary.stem}-adapter.safetensors")))
    found: dict[str, Path] = {}
    for method in options.methods:
        name = file_name(method, *filter(None, [options.label]), seed)
        sets = [f'name="{name}"', f"data.folders={training_folders(options.data)}", f"adversary.adapter={file}"]
        found[method] = trained(HERE / "asasr_pixel.toml", [*sets, *METHODS[method], *seeded], options.out / name)
    return found


def verdict_rows(rows: Sequence[dict[str, Any]], claims: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """Each stated direction: the 3-seed mean's difference, and in how many seeds it has that sign."""
    lines: list[str] = []
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["method"], []).append(row)
    for experiment, figure, better, worse in claims:
        if better in by and worse in by:
            ones, others = ([row[figure] for row in by[method]] for method in (better, worse))
            count = max(len(ones), len(others))
            ones, others = ones * (count // len(ones)), others * (count // len(others))
            sign = 1 if figure in UP else -1
            gains = [sign * (one - other) for one, other in zip(ones, others, strict=True)]
            holds = "yes" if statistics.fmean(gains) > 0 else "no"
            agree = sum(gain > 0 for gain in gains)
            lines.append(
                f"| {experiment} | {FIGURES[figure]} | {better} | {worse} | {sign * statistics.fmean(gains):+.3f} | {holds}, "
                f"{agree} of {count} |"
            )
    return ["| experiment | figure | better | worse | difference | holds |", "| --- | --- | --- | --- | --- | --- |", *lines]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Change against the start, per method: PSNR, mid- and high-band error, LSD; one point per seed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    start = next(row for row in rows if row["method"] == START)
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != START]
    figure, axes = plt.subplots(1, 4, figsize=(14, 0.42 * len(methods) + 1.6), dpi=100, sharey=True)
    for axis, name in zip(axes, ("psnr_y", "mid", "high", "lsd"), strict=True):
        for place, method in enumerate(methods):
            values = [row[name] - start[name] for row in rows if row["method"] == method]
            axis.plot(values, [place] * len(values), "o", color=f"C{place % 10}", ms=5, alpha=0.7)
            axis.plot(statistics.fmean(values), place, "|", color="k", ms=14)
        axis.axvline(0, color="0.6", lw=1, ls="--")
        better = "right" if name in UP else "left"
        axis.set_title(f"{FIGURES[name]}, change ({better} is better)", fontsize=9)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.25)
    axes[0].set_yticks(range(len(methods)), methods, fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle("pixel-flow-x4 after preferences, Set5 and Set14, one point per seed", fontsize=10)
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/, set14/ and realsrset/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--gan", type=Path, help="a GAN-trained model of ours, as strsr.py makes: stage1-l1-gan-0.safetensors")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="of each policy")
    parser.add_argument("--adversary-steps", type=int, default=300)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="only these")
    parser.add_argument("--sets", nargs="+", default=["set5", "set14"], help="what is measured on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config of every policy")
    parser.add_argument("--label", default="", help="in the names of the policies' runs, where --steps or --set differ")
    parser.add_argument("--train-only", action="store_true", help="leave the measuring to a later call")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--picture", type=Path, help="also draw the figures here, as PNG")
    options = parser.parse_args(argv)
    folders = artefacts(options.data, options.out, options.gan)
    runs = {(method, seed): path for seed in options.seeds for method, path in train(seed, options, folders).items()}
    if options.train_only:
        return 0
    pairs = pairs_to_measure(options.data, options.sets)
    rows: list[dict[str, Any]] = [{"method": START, "seed": 0, **measure(MODEL, pairs)}]
    for method in options.methods:
        rows += [{"method": method, "seed": seed, **measure(runs[method, seed], pairs)} for seed in options.seeds]
    print(table(rows, FIGURES), "", *verdict_rows(rows, CLAIMS), sep="\n")
    if options.json:
        report = json.dumps({"rows": rows}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    if options.picture:
        draw(rows, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
