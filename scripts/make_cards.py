"""Turn finished runs into bundled models: weights, curve and model card under core/assets/.

python scripts/make_cards.py RUN_DIR [RUN_DIR ...] [--before RUN_DIR]   copy weights and curve, write the card without results;
    --before: the run of an earlier stage, for its line on the card
python scripts/make_cards.py --results results.json         fill in what benchmarks/bundled_models.py --json measured
"""

import argparse
import json
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignsr.core.weights import ASSETS, read_info

MARK = "## Results"
DATA = (
    "Berkeley Segmentation Data Set 500, its 200 training and 200 test photographs (Arbelaez et al., TPAMI 2011; published for "
    "non-commercial research and education)"
)
ABOUT = {
    "lite-x4": "A small residual network for clean pictures that were only made smaller (bicubic).",
    "pixel-x4": "A small diffusion transformer in pixel space for the same input: one Euler step from the resized input. "
    "It stands in for large one-step models in tests and workflows: same protocol, same node.",
    "lite-real-x4": "The network of lite-x4 for real-world pictures: trained on blurred, noisy, compressed input (`realesrgan`). "
    "Trained for fidelity: it removes noise and JPEG blocks and stays soft where nothing is known.",
    "autoencoder-tiny-x4": "A small auto-encoder for AESOP's loss (Lee et al. 2025, arXiv:2412.00124): what comes back is what a "
    "network could have predicted from the low-resolution picture. A tool of training; it upscales nothing by itself.",
    "pixel-flow-x4": "The transformer of pixel-x4 as a flow from noise to picture, for mildly blurred, noisy or compressed "
    "input: Multi-Step SR samples it in 16 steps, and every seed gives another restoration. For preference training on a "
    "processor, where several restorations of one input must differ; a single sample has invented detail and a lower PSNR "
    "than bicubic. Its PSNR while training says so: it is highest where samples are still smooth, and falls while the loss on "
    "held-out pictures (held_out_flow) falls to the end.",
    "lite-gan-x4": "The network of lite-x4, trained on with AESOP's loss and a discriminator: it adds texture that lite-x4 "
    "leaves out. Sharper to look at, lower in PSNR.",
}
BEFORE = {"lite-real-x4": ("lite-real-x4-start",)}  # stages that have to be trained first
LOSS_NAMES = {"l1": "L1", "mse": "squared error", "psnr": "PSNR loss", "psnr_y": "PSNR loss, half of it on luma"}


DATA_OPTION = '--set \'data.folders=["BSDS500/train", "BSDS500/test"]\''


def folder_of(info: Mapping[str, Any]) -> Path:
    """Where a model is bundled."""
    return ASSETS / "autoencoders" if info["architecture"] == "autoencoder" else ASSETS


def published_as(name: str) -> str:
    """The config that trains a bundled model."""
    return {"autoencoder-tiny-x4": "aesop-autoencoder-tiny"}.get(name, name)


def losses(config: Mapping[str, Any]) -> str:
    """What was minimised, in words."""
    if "lora" in config and "losses" not in config:
        return "flow matching"
    if isinstance(config.get("loss"), str):
        return LOSS_NAMES[config["loss"]]
    if "gt_weight" in config:
        return f"L1 on the picture x {config['gt_weight']:g} and on the bottleneck x {config['lq_weight']:g}"
    return ", ".join(f"{name} x {table['weight']:g}" for name, table in config["losses"].items() if table)


def training(config: Mapping[str, Any], seconds: float) -> str:
    """Steps, patches, loss and time of one run, in words."""
    run, data = config["run"], config["data"]
    smallest = data.get("gt_scale_min", 1.0)
    shrunk = f" of photographs shrunk by a random factor in {smallest:g}..1" if smallest < 1 else ""
    steps = f"{run['steps']} steps of {run['batch_size']} patches of {data['gt_patch_px']} px{shrunk}"
    how = f"{losses(config)}, {run['precision']}, EMA {run['ema_decay']}, seed {run['seed']}"
    return f"{steps}, {how}; {seconds / 60:.0f} minutes on one busy CPU core"


def stage(folder: Path) -> str:
    """An earlier stage in words, from its run folder."""
    (weights,) = [path for path in folder.glob("*.safetensors") if not path.name.startswith("state-")]
    config = read_info(weights)["config"]
    seconds = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]
    return f"from the weights of `{config['model']['init']}`; {training(config, seconds)}"


def card(name: str, info: Mapping[str, Any], logs: Sequence[Mapping[str, float]], before: Sequence[str] = ()) -> str:
    """The model card without results; `before` holds earlier stages in words."""
    config, last = info["config"], logs[-1]
    scores = [(entry["step"], entry["psnr_y"]) for entry in logs if "psnr_y" in entry]
    size = (folder_of(info) / f"{name}.safetensors").stat().st_size / 1e6
    model = config["model"]
    first = model["init"] or model.get("init_decoder", "")
    start = f"the weights of `{first}`" if first else "random weights"
    stages = [*BEFORE.get(name, ()), published_as(name)]
    commands = [
        f"alignsr train {stage} {DATA_OPTION}" + (f" --out runs/{stage}" if stage != stages[-1] else "") for stage in stages
    ]
    lines = [
        f"# {name}",
        "",
        ABOUT[name],
        "",
        "| | |",
        "| --- | --- |",
        f"| network | `{info['architecture']}`, {json.dumps(info['options'])} |",
        f"| scale | x{model['scale']} |",
        f"| file | `{name}.safetensors`, {size:.1f} MB, {model.get('save_dtype', 'fp32')} |",
        f"| licence of the weights | {info['licence']} |",
        f"| data | {DATA}, {config['data']['holdout']} of them held out for validation. Set5 and Set14 were never used. |",
        f"| input | degradation `{config['data']['degradation']}`; the target is the plain photograph |",
        *(f"| first stage | {stage} |" for stage in before),
        f"| training | from {start}; {training(config, last['seconds'])} |",
        f"| command | {', then '.join(f'`{command}`' for command in commands)} |",
        *([f"| held-out PSNR-Y | {scores[-1][1]:.2f} dB at step {scores[-1][0]:.0f} |"] if scores else []),
        "",
        f"![loss and held-out PSNR-Y over the training steps]({name}-curve.png)",
        "",
    ]
    return "\n".join(lines)


def sampled_results(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results section of a model that is sampled from noise."""
    lines = [
        MARK,
        "",
        f"PSNR on Y, border of 4 px cropped, mean over the set, no colour fix: of single samples (mean of {rows[0]['seeds']} "
        "seeds), and of the mean picture of these seeds. Spread: standard deviation over the seeds, mean over pixels in [0, 1]. "
        "The second kind of input is degraded as in training; `python benchmarks/bundled_models.py --data DIR`.",
        "",
        "| set | input | bicubic | a sample | mean of the seeds | SSIM-Y of a sample | spread |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        scores = (
            f"{row['bicubic']:.2f} | {row['psnr_y']:.2f} | {row['psnr_y_mean']:.2f} | {row['ssim_y']:.4f} | {row['spread']:.4f}"
        )
        lines.append(f"| {row['set']} x4 | {'bicubic, clean' if row['input'] == 'clean' else row['input']} | {scores} |")
    return "\n".join(lines) + "\n"


def results(name: str, measured: Mapping[str, Any]) -> str:
    """The results section from the benchmark's JSON."""
    if sampled := [row for row in measured.get("sampled", ()) if row["method"] == name]:
        return sampled_results(sampled)
    lines = [
        MARK,
        "",
        "PSNR and SSIM on Y, border of 4 px cropped, mean over the set; `python benchmarks/bundled_models.py --data DIR`.",
        "",
    ]
    lines += ["| set | method | PSNR-Y | SSIM-Y |", "| --- | --- | --- | --- |"]
    for row in measured["clean"]:
        if row["method"] in ("bicubic", name) and name != "lite-real-x4":
            lines.append(f"| {row['set']} x4 | {row['method']} | {row['psnr_y']:.2f} | {row['ssim_y']:.4f} |")
    degraded = {row["method"]: row for row in measured["degraded"] if row["method"] in ("bicubic", name)}
    if name == "lite-real-x4":
        lines += [f"| {row['set']}, 5 seeds | {method} | {row['psnr_y']:.2f} | |" for method, row in degraded.items()]
        mine, base = (degraded[method]["by_seed"] for method in (name, "bicubic"))
        gains = [mine[seed] - base[seed] for seed in mine]
        lines += ["", f"Gain over bicubic: {statistics.fmean(gains):.3f} dB; {min(gains):.2f} to {max(gains):.2f} dB by seed."]
    grids = [
        (row["set"], row["grid"], row["grid_gt"]) for row in measured["clean"] if row["method"] == name and name == "pixel-x4"
    ]
    lines += [""] + [f"Periodic-energy score on {s}: {g:.3f} (ground truth {t:.3f})." for s, g, t in grids]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--before", type=Path, action="append", default=[], help="run folder of an earlier stage")
    options = parser.parse_args(argv)
    for folder in options.runs:
        (weights,) = [path for path in folder.glob("*.safetensors") if not path.name.startswith("state-")]
        name = weights.stem
        target = folder_of(read_info(weights))
        target.mkdir(exist_ok=True)
        shutil.copyfile(weights, target / weights.name)
        shutil.copyfile(folder / "curve.png", target / f"{name}-curve.png")
        logs = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        (target / f"{name}.md").write_text(
            card(name, read_info(weights), logs, [stage(run) for run in options.before]), encoding="utf-8"
        )
    if options.results:
        measured = json.loads(options.results.read_text(encoding="utf-8"))
        for path in ASSETS.glob("*.md"):
            text = re.split(rf"^{MARK}$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0].rstrip()
            path.write_text(f"{text}\n\n{results(path.stem, measured)}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
