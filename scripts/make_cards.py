"""Turn finished runs into bundled models: weights, curve and model card under core/assets/.

python scripts/make_cards.py RUN_DIR [RUN_DIR ...]          copy weights and curve, write the card without results
python scripts/make_cards.py --results results.json         fill in what benchmarks/bundled_models.py --json measured
"""

import argparse
import json
import re
import shutil
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
}


def card(name: str, info: Mapping[str, Any], logs: Sequence[Mapping[str, float]]) -> str:
    """The model card without results."""
    config, last = info["config"], logs[-1]
    scores = [(entry["step"], entry["psnr_y"]) for entry in logs if "psnr_y" in entry]
    size = (ASSETS / f"{name}.safetensors").stat().st_size / 1e6
    run, model = config["run"], config["model"]
    steps = (
        f"{run['steps']} steps of {run['batch_size']} patches of {config['data']['gt_patch_px']} px, L1, {run['precision']}, "
        f"EMA {run['ema_decay']}, seed {run['seed']}"
    )
    start = f"the weights of `{model['init']}`" if model["init"] else "random weights"
    lines = [
        f"# {name}",
        "",
        ABOUT[name],
        "",
        "| | |",
        "| --- | --- |",
        f"| network | `{info['architecture']}`, {json.dumps(info['options'])} |",
        f"| scale | x{info['scale']} |",
        f"| file | `{name}.safetensors`, {size:.1f} MB, {model['save_dtype']} |",
        f"| licence of the weights | {info['licence']} |",
        f"| data | {DATA}, {config['data']['holdout']} of them held out for validation. Set5 and Set14 were never used. |",
        f"| input | degradation `{config['data']['degradation']}`; the target is the plain photograph |",
        f"| training | from {start}; {steps}; {last['seconds'] / 60:.0f} minutes on one busy CPU core |",
        f'| command | `alignsr train {name} --set \'data.folders=["BSDS500/train", "BSDS500/test"]\'` |',
        f"| held-out PSNR-Y | {scores[-1][1]:.2f} dB at step {scores[-1][0]:.0f} |",
        "",
        f"![loss and held-out PSNR-Y over the training steps]({name}-curve.png)",
        "",
    ]
    return "\n".join(lines)


def results(name: str, measured: Mapping[str, Any]) -> str:
    """The results section from the benchmark's JSON."""
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
    for row in measured["degraded"]:
        if row["method"] in ("bicubic", name) and name == "lite-real-x4":
            lines.append(f"| {row['set']}, 5 seeds | {row['method']} | {row['psnr_y']:.2f} | |")
    grids = [
        (row["set"], row["grid"], row["grid_gt"]) for row in measured["clean"] if row["method"] == name and name == "pixel-x4"
    ]
    lines += [""] + [f"Periodic-energy score on {s}: {g:.3f} (ground truth {t:.3f})." for s, g, t in grids]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(argv)
    for folder in options.runs:
        (weights,) = [path for path in folder.glob("*.safetensors") if not path.name.startswith("state-")]
        name = weights.stem
        shutil.copyfile(weights, ASSETS / weights.name)
        shutil.copyfile(folder / "curve.png", ASSETS / f"{name}-curve.png")
        logs = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        (ASSETS / f"{name}.md").write_text(card(name, read_info(weights), logs), encoding="utf-8")
    if options.results:
        measured = json.loads(options.results.read_text(encoding="utf-8"))
        for path in ASSETS.glob("*.md"):
            text = re.split(rf"^{MARK}$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0].rstrip()
            path.write_text(f"{text}\n\n{results(path.stem, measured)}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
