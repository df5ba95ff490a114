"""Does ASASR's preference training do what it is for? The specification's synthetic experiments E1 to E4, three seeds, on a CPU.

python benchmarks/experiments/asasr_synthetic.py --out RUNS [--seeds 3 11 12] [--json FILE] [--picture FILE] [--look FILE]

The set-up of asasr.md 6.2 (see asasr_toy.py). Per seed: a supervised model (3000 steps), an adversary that goes on from it to
imitate artefacts (600 steps, every weight), and policies that go on from it by preferences (300 steps of 32 pairs, every weight,
rate 1e-4, warm-up 20, beta 2000), all sampled from the same noise for the same 256 held-out inputs.

E1: Sobolev against Euclidean AS-DPO.  E2: the adversary's negatives against the enlarged input as negative.  E3: the closed form
of proposition 4.1, and what networks find instead of it, with and without a look at the target.  E4: the order s of the norm.

Each direction that 6.2 states is printed with the mean over seeds and each seed's value, beside the reference of 6.3. Trainings
that have finished in RUNS are found again.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from asasr_propositions import PROPOSITION_STEPS, e3_table, mean_rows, propositions
from asasr_toy import (
    BATCH,
    HELD_OUT,
    SIZE,
    HeldOut,
    ToyBackbone,
    UNet,
    adversary,
    clone,
    degrade,
    pictures,
    stream,
    supervised,
    trained,
)
from common import file_name, mean_and_spread
from torch import Generator, Tensor

from alignsr.core.coupled import coupled_pair, foreseen
from alignsr.core.images import from_model_range
from alignsr.core.losses.preference import PairEnergies, preference_figures, preference_terms
from alignsr.core.plots import panels
from alignsr.core.sobolev import SobolevNorm, logit_scale
from alignsr.core.weights import write_atomic

TWO_PI = 2 * math.pi
STEPS, WARM_UP, RATE, BETA = 300, 20, 1e-4, 2000.0


@dataclass(frozen=True)
class Setting:
    """One way to train a policy.

    Attributes:
        s: order of the norm; 0 is Euclidean.
        length: its length scale in pixels.
        loser: whose picture is the negative.
        raw: the paper's beta on energies that are not divided by the mean weight.
    """

    s: float = 1.5
    length: float = SIZE
    loser: str = "adversary"
    raw: bool = False


SFT, ADVERSARY = "supervised", "the adversary itself"
EUCLIDEAN, RADIANS, CYCLES = "s = 0", "s = 1.5, L = 2 pi", "s = 1.5, L = N"
LQ_EUCLIDEAN, LQ_RADIANS = "input as negative, s = 0", "input as negative, s = 1.5, L = 2 pi"
HALF, THREE, RAW = "s = 0.5, L = N", "s = 3, L = N", "s = 1.5, L = N, raw beta"
SETTINGS = {
    EUCLIDEAN: Setting(0.0),
    RADIANS: Setting(length=TWO_PI),
    CYCLES: Setting(),
    LQ_EUCLIDEAN: Setting(0.0, loser="input"),
    LQ_RADIANS: Setting(length=TWO_PI, loser="input"),
    HALF: Setting(0.5),
    THREE: Setting(3.0),
    RAW: Setting(raw=True),
}
# asasr.md 6.3: low, mid, high, PSNR, LSD, and the high band's energy where it is given
REFERENCE: dict[str, tuple[float, ...]] = {
    SFT: (0.00146, 0.00721, 0.02056, 25.28, 1.214),
    ADVERSARY: (0.00206, 0.01713, 0.04992, 21.95, 4.239, 1.27),
    EUCLIDEAN: (0.00229, 0.00709, 0.02088, 25.18, 1.314),
    RADIANS: (0.00231, 0.00664, 0.02049, 25.32, 1.297),
    CYCLES: (0.00142, 0.00666, 0.02035, 25.46, 1.220),
    LQ_EUCLIDEAN: (0.00170, 0.00818, 0.02428, 24.69, 1.355, 1.19),
    LQ_RADIANS: (0.00199, 0.01030, 0.03411, 23.36, 1.737, 1.58),
    RAW: (0.00134, 0.00640, 0.01939, 25.65, 1.216, 0.85),
}
# experiment, figure, setting, setting it is compared with (none: the number 1), sign that 6.2 states
DIRECTIONS: tuple[tuple[str, str, str, str, int], ...] = (
    *(("E1", "mid", ours, EUCLIDEAN, -1) for ours in (RADIANS, CYCLES)),
    *(("E1", "high", ours, EUCLIDEAN, -1) for ours in (RADIANS, CYCLES)),
    *(("E1", "psnr", ours, EUCLIDEAN, 1) for ours in (RADIANS, CYCLES)),
    *(("E1", "lsd", ours, EUCLIDEAN, -1) for ours in (RADIANS, CYCLES)),
    ("E1", "psnr", EUCLIDEAN, SFT, -1),
    *(("E1", "psnr", ours, SFT, 1) for ours in (RADIANS, CYCLES)),
    ("E2", "psnr", EUCLIDEAN, LQ_EUCLIDEAN, 1),
    ("E2", "psnr", RADIANS, LQ_RADIANS, 1),
    ("E2", "lsd", EUCLIDEAN, LQ_EUCLIDEAN, -1),
    ("E2", "lsd", RADIANS, LQ_RADIANS, -1),
    ("E2", "detail", LQ_EUCLIDEAN, "", 1),
    ("E2", "detail", LQ_RADIANS, "", 1),
)
TITLES = {
    "low": "error low",
    "mid": "error mid",
    "high": "error high",
    "psnr": "PSNR (dB)",
    "lsd": "LSD (dB)",
    "detail": "detail / gt",
    "drift": "dE_w / E_w",
}
TIE = {"low": 2e-5, "mid": 2e-5, "high": 1e-4, "psnr": 0.02, "lsd": 0.005, "detail": 0.0}  # differences that say nothing
LOOK = 6  # held-out pictures that are shown


class Preferences:
    """One setting's energies: draws pairs, and compares a policy with the reference on them."""

    def __init__(self, reference: UNet, opponent: UNet, setting: Setting) -> None:
        self.reference, self.opponent, self.setting = ToyBackbone(reference), ToyBackbone(opponent), setting
        self.norm = SobolevNorm(setting.s, setting.length)
        self.scale = logit_scale(BETA, self.norm, (SIZE, SIZE), raw=setting.raw)

    def energies(self, network: UNet, gt: Tensor, z_lq: Tensor, generator: Generator) -> PairEnergies:
        """Of the pictures themselves against coupled negatives; asasr.md 1.4."""
        process, policy = self.reference.process, ToyBackbone(network)
        noise, time = torch.randn(gt.shape, generator=generator), process.draw_times(gt.shape[0], generator=generator)
        with torch.no_grad():
            worse = foreseen(self.opponent, gt, noise, time, z_lq) if self.setting.loser == "adversary" else z_lq
            pair = coupled_pair(process, gt, worse, noise, time)
            conditions = torch.cat((z_lq, z_lq))
            before = self.norm.energy(self.reference.predict(pair.states, pair.times, conditions) - pair.targets)
        after = self.norm.energy(policy.predict(pair.states, pair.times, conditions) - pair.targets)
        return PairEnergies.of(after, before)

    def train(self, path: Path, seed: int, steps: int) -> UNet:
        """A policy that goes on from the reference."""
        network, generator = clone(self.reference.network), stream(seed, 3)

        def loss(step: int) -> Tensor:
            del step
            gt = pictures(BATCH, generator)
            energies = self.energies(network, gt, degrade(gt, generator), generator)
            return preference_terms(energies, logit_scale=self.scale).total().mean()

        return trained(network, path, steps, loss, lambda step: RATE * min(1.0, (step + 1) / WARM_UP))

    @torch.inference_mode()
    def figures(self, network: UNet, tests: HeldOut) -> dict[str, float]:
        """What preference_figures says about the held-out pairs."""
        energies = self.energies(network, tests.gt, tests.lq, stream(0, 4))
        return {name: float(value) for name, value in preference_figures(energies, logit_scale=self.scale).items()}


def run(seed: int, tests: HeldOut, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Tensor]]:
    """Everything of one seed: figures per model, the rows of E3, and the first pictures of each model."""
    reference = supervised(options.out, seed, options.shorter)
    opponent = adversary(reference, options.out, seed, options.shorter)
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}

    def add(name: str, network: UNet, **more: float) -> None:
        sr = tests.sampled(network)
        rows.append({"model": name, "seed": seed, **tests.measure(sr), **more})
        shown[name] = sr[:LOOK]
        print(f"seed {seed}: {name}, PSNR {rows[-1]['psnr']:.2f} dB", file=sys.stderr, flush=True)

    add(SFT, reference)
    add(ADVERSARY, opponent)
    for name, setting in SETTINGS.items():
        preferences = Preferences(reference, opponent, setting)
        network = preferences.train(options.out / f"{file_name(name, seed)}.safetensors", seed, STEPS // options.shorter)
        add(name, network, drift=preferences.figures(network, tests)["chosen_drift"])
    return rows, propositions(reference, tests, options.out, seed, PROPOSITION_STEPS // options.shorter), shown


def compare(rows: list[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Each direction of 6.2: difference per seed, its mean, the reference's, and whether the signs agree."""
    values = {(row["model"], row["seed"]): row for row in rows}
    found: list[dict[str, Any]] = []
    for experiment, figure, ours, other, sign in DIRECTIONS:
        differences = [values[ours, seed][figure] - (values[other, seed][figure] if other else 1.0) for seed in seeds]
        index = list(TITLES).index(figure)
        reference = REFERENCE[ours][index] - (REFERENCE[other][index] if other else 1.0)
        mean = statistics.fmean(differences)
        verdict = "tie" if abs(mean) <= TIE[figure] else "yes" if mean * sign > 0 else "no"
        line = {"experiment": experiment, "figure": figure, "model": ours, "against": other or "1", "stated": sign}
        found.append(line | {"mean": mean, "seeds": differences, "reference": reference, "reproduces": verdict})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, with the reference in brackets, as Markdown."""
    lines = ["| model | " + " | ".join(TITLES.values()) + " |", "| --- " * (len(TITLES) + 1) + "|"]
    for model in (SFT, ADVERSARY, *SETTINGS):
        cells: list[str] = []
        for index, figure in enumerate(TITLES):
            values = [row[figure] for row in rows if row["model"] == model and figure in row]
            digits = 5 if index < 3 else 2
            reference = REFERENCE.get(model, ())[index : index + 1]
            known = f" ({reference[0]:.{digits}f})" if reference else ""
            cells.append(mean_and_spread(values, digits) + known if values else "")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def directions_table(lines: list[dict[str, Any]]) -> str:
    """What was stated, what was found, as Markdown."""
    text = ["| | figure | of | minus that of | mean | per seed | reference | reproduces |", "| --- " * 8 + "|"]
    for line in lines:
        digits = 5 if line["figure"] in ("mid", "high") else 2
        seeds = ", ".join(f"{value:+.{digits}f}" for value in line["seeds"])
        text.append(
            f"| {line['experiment']} | {TITLES[line['figure']]} | {line['model']} | {line['against']} "
            f"| {line['mean']:+.{digits}f} | {seeds} | {line['reference']:+.{digits}f} | {line['reproduces']} |"
        )
    return "\n".join(text)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Errors by band beside the supervised model's, and PSNR and LSD over the order s."""

    def mean(model: str, figure: str) -> float:
        return statistics.fmean(row[figure] for row in rows if row["model"] == model)

    def bands(axes: Any) -> None:
        shown = (EUCLIDEAN, RADIANS, CYCLES, LQ_EUCLIDEAN, LQ_RADIANS)
        for index, model in enumerate(shown):
            heights = [mean(model, band) / mean(SFT, band) for band in ("low", "mid", "high")]
            axes.bar([place + 0.16 * (index - 2) for place in range(3)], heights, 0.15, label=model)
        axes.axhline(1, color="0.3", lw=1)
        axes.set_xticks(range(3), ["low", "mid", "high"])
        axes.set_ylabel("squared error / supervised model's")
        axes.legend(fontsize=8)

    def orders(figure: str) -> Callable[[Any], None]:
        def plot(axes: Any) -> None:
            sweep = {0.0: EUCLIDEAN, 0.5: HALF, 1.5: CYCLES, 3.0: THREE}
            for seed in sorted({row["seed"] for row in rows}):
                values = {row["model"]: row[figure] for row in rows if row["seed"] == seed}
                (line,) = axes.plot(list(sweep), [values[model] for model in sweep.values()], "o-", label=f"seed {seed}")
                axes.axhline(values[SFT], color=line.get_color(), lw=1, ls=":")
            axes.set_xlabel("order s, L = N (dotted: the supervised model)")
            axes.set_ylabel(TITLES[figure])
            axes.legend(fontsize=8)

        return plot

    plots = {"E1, E2: errors by band": bands, "E4: PSNR": orders("psnr"), "E4: LSD": orders("lsd")}
    write_atomic(path, lambda temporary: panels(plots, cell=(5.2, 4.2)).save(temporary, format="png"))


def look(tests: HeldOut, shown: dict[str, Tensor], path: Path) -> None:
    """The first held-out pictures, one strip per model."""

    def strip(images: Tensor) -> Callable[[Any], None]:
        def plot(axes: Any) -> None:
            axes.imshow(torch.cat(list(from_model_range(images[:, 0])), -1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()

        return plot

    strips = {"ground truth": tests.gt[:LOOK], "input": tests.lq[:LOOK], **shown}
    picture = panels({name: strip(images) for name, images in strips.items()}, columns=2, cell=(5.0, 1.15))
    write_atomic(path, lambda temporary: picture.save(temporary, format="png"))


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, measure, print; see the docstring of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 11, 12])
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="pictures to measure on")
    parser.add_argument("--shorter", type=int, default=1, help="divide every number of steps by this, to try it out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--picture", type=Path, help="also draw them here, as PNG")
    parser.add_argument("--look", type=Path, help="also show held-out pictures of the first seed here, as PNG")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    tests = HeldOut(options.held_out)
    results = [run(seed, tests, options) for seed in options.seeds]
    rows = [row for of_seed, _, _ in results for row in of_seed]
    lines, searched = compare(rows, options.seeds), mean_rows([e3 for _, e3, _ in results])
    print(table(rows), directions_table(lines), e3_table(searched), sep="\n\n")
    if options.json:
        report = json.dumps({"rows": rows, "directions": lines, "E3": searched}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    if options.picture:
        draw(rows, options.picture)
    if options.look:
        look(tests, results[0][2], options.look)
    return 0


if __name__ == "__main__":
    sys.exit(main())
