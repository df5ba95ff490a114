"""Does DP2O-SR's training do what it is for? Pipelines A and B on pixel-flow-x4 and a processor, three seeds, Set5 and Set14.

python benchmarks/experiments/dp2o_pixel.py --data DIR --out RUNS [--seeds 0 1 2] [--model NAME] [--methods ...]
    [--json FILE] [--picture FILE]

Per seed: M candidates of each of some BSDS500 patches, scored by metrics that need no weights (PSNR-Y, SSIM-Y, -LSD, match of the
high-frequency energy: full reference; sharpness Q: none), paired by the reward of DP2O-SR; then adapters trained by
`perceptual_dpo` from the same model, on the same candidates with the same noise, that differ in what their names say:

    N = 4 of M            the published way: HPO weights
    N = M/2               every candidate is used
    N = 1                 best against worst
    N = 4, uniform        without HPO weights
    N = 1 of 4            best against worst among four candidates: low coverage of a small pool

Measured on the middle of each test picture with ten noises that no candidate had: the reward, by ranges of the model's own first
M results of the same picture (which span 0 to 1 per metric), its deviation over the noises, the best and the worst of ten; and
every metric's mean and deviation as in Table 2. While training, the same reward of eight patches that are kept out.

DIR holds bsds500/, set5/ and set14/. Finished parts in RUNS are found again; an interrupted one goes on.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import file_name, table, trained, training_folders

from alignsr.core.metrics import hybrid_reward
from alignsr.core.metrics.ranking import score_ranges
from alignsr.core.weights import read_info, write_atomic
from alignsr.train.candidates import CandidatesConfig, build_candidates_config, curate, read_scores, run_candidates
from alignsr.train.candidates.curate import write_curation
from alignsr.train.candidates.score import SCORES, Scores
from alignsr.train.candidates.store import CandidateStore
from alignsr.train.config import apply_sets, find_config, read_toml
from alignsr.train.state import checkpoints

CONFIG = Path(__file__).with_name("dp2o_pixel.toml")
START = "the start"
PAPER, HALF, ONE, UNIFORM, FEW = "N = 4", "N = M/2", "N = 1", "N = 4, uniform", "N = 1 of 4"
METHODS: dict[str, list[str]] = {
    PAPER: ["data.picks=4"],
    HALF: ["data.picks=0"],  # the table as it was curated
    ONE: ["data.picks=1"],
    UNIFORM: ["data.picks=4", 'data.weights="uniform"'],
    FEW: ["data.picks=0"],  # a table of its own
}
FIGURES = {"reward": "mean reward", "spread": "deviation", "best": "best of 10", "worst": "worst of 10"}
SEEDS_EACH = 10


def candidates_config(options: argparse.Namespace, seed: int, folders: str, name: str) -> CandidatesConfig:
    sets = [
        f"name={json.dumps(name)}",
        f"data.folders={folders}",
        f"data.gt_patch_px={options.side}",
        f"sampling.candidates={options.candidates}",
        f"sampling.seed={seed}",
        f"sampling.batch_size={options.candidates}",
        f"model.source={json.dumps(options.model)}",
        f"pairs.picks={options.candidates // 2}",
        "num_threads=1",
        *options.sample_set,
    ]
    return build_candidates_config(apply_sets(read_toml(find_config("dp2o-candidates-pixel")), sets))


def few_pairs(folder: Path, config: CandidatesConfig) -> Path:
    """Another pair table beside the first one: best against worst of the first four candidates, normalised by themselves."""
    path = folder / "pairs-1-of-4.parquet"
    if not path.is_file():
        store, scores = CandidateStore(folder), read_scores(folder / SCORES)
        whole = (folder / "pairs.parquet").read_bytes(), (folder / "rewards.parquet").read_bytes()
        pairs = replace(config.pairs, picks=1, candidates=4, on_unusable="drop")
        made = write_curation(store, curate(scores, config.reward, pairs, store.names), scores, config.reward, pairs)
        table = made.read_bytes()
        for name, content in (("pairs.parquet", whole[0]), ("rewards.parquet", whole[1]), (path.name, table)):
            write_atomic(folder / name, lambda part, content=content: part.write_bytes(content))
    return path


def train(seed: int, options: argparse.Namespace) -> tuple[dict[str, Path], dict[str, list[tuple[float, float]]]]:
    """Method -> weights, and its (step, reward of fresh candidates) while it was trained."""
    config = replace(
        candidates_config(options, seed, training_folders(options.data), f"pairs-{seed}"),
    )
    config = replace(config, data=replace(config.data, limit=options.pictures))
    folder = options.out / f"pairs-{seed}"
    print(f"seed {seed}: candidates of {options.pictures} pictures", file=sys.stderr, flush=True)
    run_candidates(config, folder)
    weights: dict[str, Path] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for method in options.methods:
        pairs = few_pairs(folder, config) if method == FEW else folder
        name = file_name(method, seed)
        sets = [
            f"name={json.dumps(name)}",
            f"data.pairs={json.dumps(str(pairs))}",
            f"model.source={json.dumps(options.model)}",
            f"run.seed={seed}",
            f"run.steps={options.steps}",
            *METHODS[method],
            *options.set,
        ]
        weights[method] = trained(CONFIG, sets, options.out / name)
        history = read_info(checkpoints(options.out / name)[-1])["extra"]["guard"]["history"]
        curves[method] = [(step, reward) for step, reward, *_ in history]
    return weights, curves


def measure(seed: int, model: str, name: str, options: argparse.Namespace, ranges: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Figures of a model on the test pictures with fresh noises."""
    scores = fresh(seed, model, name, options)
    rewards = torch.stack(
        [hybrid_reward(group, scores.metrics, ranges=there) for group, there in zip(scores.groups, ranges, strict=True)]
    )
    found: dict[str, Any] = {
        "reward": float(rewards.mean()),
        "spread": float(rewards.std(1).mean()),
        "best": float(rewards.amax(1).mean()),
        "worst": float(rewards.amin(1).mean()),
    }
    for column, metric in enumerate(scores.metrics):
        values = torch.stack([group[:, column] for group in scores.groups])
        found[metric] = float(values.mean())
        found[f"{metric} deviation"] = float(values.std(1).mean())
    return found


def fresh(seed: int, model: str, name: str, options: argparse.Namespace, *, own: bool = False) -> Scores:
    """Scores of results on the test pictures: the model's first M, or ten that come after these."""
    folders = json.dumps([str(options.data / part / "hr") for part in options.sets])
    config = candidates_config(options, seed, folders, name)
    sampling = replace(config.sampling, first=0 if own else options.candidates)
    sampling = replace(sampling, candidates=options.candidates if own else SEEDS_EACH, latents="none")
    config = replace(
        config,
        sampling=sampling,
        model=replace(config.model, source=model),
        data=replace(config.data, crop="center"),
        pairs=replace(config.pairs, picks=1),
    )
    folder = options.out / f"test-{name}"
    run_candidates(config, folder, until="score")
    return read_scores(folder / SCORES)


def tables(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Figures, mean and standard deviation over seeds, as Markdown; then every metric's mean and deviation over noises."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [table(rows, FIGURES)]
    lines += ["", "| training | " + " | ".join(metrics) + " |", "| --- " * (len(metrics) + 1) + "|"]
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        cells = [
            f"{statistics.fmean(row[m] for row in mine):.4g} +- {statistics.fmean(row[f'{m} deviation'] for row in mine):.3g}"
            for m in metrics
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


DIRECTIONS = (  # (the paper's claim, method, figure, minus that of, sign that it should have)
    ("(a) mean reward rises", PAPER, "reward", START, 1),
    ("(a) deviation over noises falls (D7)", PAPER, "spread", START, -1),
    ("(b) many picks beat best against worst", PAPER, "reward", ONE, 1),
    ("(b) half of all candidates beat best against worst", HALF, "reward", ONE, 1),
    ("(b) a larger pool beats a small one at N = 1 (D2)", ONE, "reward", FEW, 1),
    ("(b) N = 1 of 4 ends below the start (D3)", FEW, "reward", START, -1),
    ("(c) HPO weights beat uniform ones (D5)", PAPER, "reward", UNIFORM, 1),
)


def verdict(gaps: Sequence[float], sign: int) -> str:
    """`reproduces`, `contradicts`, or `within noise`: a mean that is not beyond twice its standard error over seeds says nothing.

    A single seed has no standard error and says nothing either.
    """
    mean = statistics.fmean(gaps)
    if len(gaps) < 2 or abs(mean) <= 2 * statistics.stdev(gaps) / len(gaps) ** 0.5:
        return "within noise"
    return "reproduces" if sign * mean > 0 else "contradicts"


def directions(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every direction as differences per seed, and what they say of the paper's sign; see `verdict`."""
    by = {(row["method"], row["seed"]): row for row in rows}
    found: list[dict[str, Any]] = []
    for claim, method, figure, other, sign in DIRECTIONS:
        if all((name, seed) in by for name in (method, other) for seed in seeds):
            gaps = [by[method, seed][figure] - by[other, seed][figure] for seed in seeds]
            found.append({"claim": claim, "differences": gaps, "verdict": verdict(gaps, sign)})
    if all((name, seed) in by for name in (PAPER, START) for seed in seeds):
        gaps = [
            by[PAPER, s]["worst"] - by[START, s]["worst"] - (by[PAPER, s]["best"] - by[START, s]["best"]) for s in seeds
        ]  # fmt: skip
        found.append({"claim": "the worst gains more than the best (D6)", "differences": gaps, "verdict": verdict(gaps, 1)})
    return found


def draw(rows: Sequence[dict[str, Any]], curves: dict[str, list[list[tuple[float, float]]]], path: Path) -> None:
    """The reward of fresh candidates over steps, and best, mean and worst of ten at the end."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), dpi=100)
    for index, (method, runs) in enumerate(curves.items()):
        for points in runs:
            left.plot(*zip(*points, strict=True), color=f"C{index}", lw=0.8, alpha=0.4)
        steps = [step for step, _ in runs[0]]
        means = [statistics.fmean(points[i][1] for points in runs) for i in range(len(steps))]
        left.plot(steps, means, color=f"C{index}", lw=2.2, label=method)
    left.set_xlabel("steps")
    left.set_ylabel("reward of fresh candidates, patches kept out")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for place, method in enumerate(methods):
        mine = [row for row in rows if row["method"] == method]
        low, mid, high = (statistics.fmean(row[key] for row in mine) for key in ("worst", "reward", "best"))
        right.plot([place, place], [low, high], color="0.6", lw=6, solid_capstyle="butt")
        right.plot(place, mid, "ko", ms=7)
        right.plot([place] * len(mine), [row["reward"] for row in mine], "o", color="C3", ms=3)
    right.set_xticks(range(len(methods)), methods, rotation=20)
    right.set_ylabel("worst, mean and best of ten noises")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(fontsize=8)
    figure.suptitle("Rewards by ranges of the start's own results; means over seeds")
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/ and set14/")
    parser.add_argument("--out", type=Path, required=True, help="folder for candidates and trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="pixel-flow-x4")
    parser.add_argument("--pictures", type=int, default=64, help="that candidates are sampled of")
    parser.add_argument("--candidates", type=int, default=16, help="M")
    parser.add_argument("--side", type=int, default=64, help="of patches and of the middles of test pictures, in px")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="only these")
    parser.add_argument("--sets", nargs="+", default=["set5", "set14"], help="what is measured on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config of every training")
    parser.add_argument("--sample-set", action="append", default=[], metavar="KEY=VALUE", help="change that of every sampling")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--picture", type=Path, help="also draw the figures here, as PNG")
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[list[tuple[float, float]]]] = {method: [] for method in options.methods}
    metrics: tuple[str, ...] = ()
    for seed in options.seeds:
        weights, found = train(seed, options)
        pool = fresh(seed, options.model, f"pool-{seed}", options, own=True)
        ranges, metrics = [score_ranges(group) for group in pool.groups], pool.metrics
        rows.append({"method": START, "seed": seed, **measure(seed, options.model, f"start-{seed}", options, ranges)})
        for method in options.methods:
            name = file_name(method, seed)
            rows.append({"method": method, "seed": seed, **measure(seed, str(weights[method]), name, options, ranges)})
            curves[method].append(found[method])
    rows.sort(key=lambda row: [START, *METHODS].index(row["method"]))
    print(tables(rows, metrics))
    lines = directions(rows, options.seeds)
    for line in lines:
        gaps = ", ".join(f"{gap:+.4f}" for gap in line["differences"])
        print(f"{line['claim']}: {gaps}: {line['verdict']}")
    if options.json:
        report = json.dumps({"rows": rows, "directions": lines, "curves": curves}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    if options.picture:
        draw(rows, curves, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
