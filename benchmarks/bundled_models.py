"""Bundled models against bicubic: the table of the README.

python benchmarks/bundled_models.py --data DIR [--json FILE]

DIR holds set5/ and set14/, each with hr/ and lr_x4/ (the benchmarks' own low-resolution files). Tables: PSNR-Y and SSIM-Y on
clean bicubic input, and PSNR-Y on Set14 degraded with the realesrgan preset (mean over five fixed seeds), both scored against the
plain ground truth, 8-bit rounded, border of 4 px cropped. For the transformer also the periodic-energy score against the ground
truth's (1 means no more 8- or 16-pixel grid than a photograph has). Models that are sampled from noise have a table of their own:
PSNR-Y of single samples (mean over four seeds) and of the seeds' mean picture, and the seeds' standard deviation, on clean
bicubic input and on the same pictures degraded with the preset that they were trained on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.core.backbones import load_backbone
from alignsr.core.degradation import degrade
from alignsr.core.image_files import list_images, read_image
from alignsr.core.images import crop_to_multiple, quantize_8bit, to_rgb
from alignsr.core.metrics import score
from alignsr.core.resize import imresize
from alignsr.core.restore import restore
from alignsr.core.sampling import restore_multi_step
from alignsr.core.spectral import periodic_energy_score
from alignsr.core.weights import bundled_models, find_model, read_info

SCALE = 4
SEEDS = (0, 1, 2, 3, 4)
SAMPLES = (0, 1, 2, 3)  # seeds of models that are sampled from noise
Upscale = Callable[[Tensor], Tensor]


def read_rgb(path: Path) -> Tensor:
    return to_rgb(read_image(path).pixels)


def pairs(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """(gt, lq) of a benchmark folder."""
    for path in list_images(folder / "hr"):
        gt = crop_to_multiple(read_rgb(path), SCALE)
        yield gt, read_rgb(folder / f"lr_x{SCALE}" / path.name)


def degraded_pairs(folder: Path) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(seed, gt, lq) with the realesrgan preset, every picture once per seed."""
    for index, path in enumerate(list_images(folder / "hr")):
        gt = crop_to_multiple(read_rgb(path), SCALE)
        for seed in SEEDS:
            yield seed, gt, degrade(gt, "realesrgan", seeds=[1000 * seed + index], scale=SCALE).lq


def upscalers(names: Sequence[str]) -> dict[str, Upscale]:
    """MATLAB's bicubic and every bundled model."""

    def with_model(name: str) -> Upscale:
        backbone = load_backbone(name)

        def run(lq: Tensor) -> Tensor:
            with torch.inference_mode():
                return restore(backbone, lq, scale=SCALE).sr

        return run

    def enlarge(lq: Tensor) -> Tensor:
        return imresize(lq, SCALE).clamp(0, 1)

    return {"bicubic": enlarge} | {name: with_model(name) for name in names}


def clean_rows(data: Path, methods: dict[str, Upscale]) -> list[dict[str, Any]]:
    """One row per method and set."""
    rows: list[dict[str, Any]] = []
    for dataset in ("set5", "set14"):
        for name, upscale in methods.items():
            sums = {"psnr_y": 0.0, "ssim_y": 0.0, "grid": 0.0, "grid_gt": 0.0}
            count, seconds, pixels = 0, 0.0, 0
            for gt, lq in pairs(data / dataset):
                started = time.perf_counter()
                sr = quantize_8bit(upscale(lq))
                seconds += time.perf_counter() - started
                pixels += gt.shape[-1] * gt.shape[-2]
                for metric in ("psnr_y", "ssim_y"):
                    sums[metric] += float(score(metric, sr, gt, scale=SCALE))
                sums["grid"] += float(periodic_energy_score(sr))
                sums["grid_gt"] += float(periodic_energy_score(gt))
                count += 1
            row = {key: value / count for key, value in sums.items()}
            rows.append({"set": dataset, "method": name, "images": count, **row, "megapixels_per_second": pixels / seconds / 1e6})
    return rows


def degraded_rows(data: Path, methods: dict[str, Upscale]) -> list[dict[str, Any]]:
    """Mean PSNR-Y per method on degraded Set14, and by seed; every method sees the same inputs."""
    found: dict[str, dict[int, list[float]]] = {name: {seed: [] for seed in SEEDS} for name in methods}
    for seed, gt, lq in degraded_pairs(data / "set14"):
        for name, upscale in methods.items():
            found[name][seed].append(float(score("psnr_y", quantize_8bit(upscale(lq)), gt, scale=SCALE)))
    rows: list[dict[str, Any]] = []
    for name, by_seed in found.items():
        values = [value for of_seed in by_seed.values() for value in of_seed]
        rows.append(
            {
                "set": "set14 realesrgan",
                "method": name,
                "images": len(values),
                "psnr_y": statistics.fmean(values),
                "by_seed": {str(seed): statistics.fmean(of_seed) for seed, of_seed in by_seed.items()},
            }
        )
    return rows


def sampled_rows(data: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per model that is sampled from noise, set and kind of input."""
    rows: list[dict[str, Any]] = []
    for name in names:
        backbone: Any = load_backbone(name)
        own = read_info(find_model(name))["config"]["data"]["degradation"]
        for dataset in ("set5", "set14"):
            for kind in ("clean", own):
                sums = dict.fromkeys(("bicubic", "psnr_y", "ssim_y", "psnr_y_mean", "spread"), 0.0)
                count = 0
                for index, (gt, clean) in enumerate(pairs(data / dataset)):
                    lq = clean if kind == "clean" else degrade(gt, kind, seeds=[index], scale=SCALE).lq
                    with torch.inference_mode():
                        found = [restore_multi_step(backbone, lq, scale=SCALE, seeds=s, color_fix="none").sr for s in SAMPLES]
                    plain = quantize_8bit(imresize(lq, SCALE).clamp(0, 1))
                    sums["bicubic"] += float(score("psnr_y", plain, gt, scale=SCALE))
                    for metric in ("psnr_y", "ssim_y"):
                        each = [float(score(metric, quantize_8bit(sr), gt, scale=SCALE)) for sr in found]
                        sums[metric] += statistics.fmean(each)
                    sums["psnr_y_mean"] += float(score("psnr_y", quantize_8bit(sum(found) / len(found)), gt, scale=SCALE))
                    sums["spread"] += float(torch.cat(found).std(0).mean())
                    count += 1
                row = {key: value / count for key, value in sums.items()}
                rows.append({"set": dataset, "input": kind, "method": name, "images": count, "seeds": len(SAMPLES), **row})
    return rows


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """The rows as a Markdown table; columns are (key, format)."""
    lines = ["| " + " | ".join(key for key, _ in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(format(row[key], form) for key, form in columns) + " |" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with set5/ and set14/")
    parser.add_argument("--models", nargs="*", default=list(bundled_models()), help="bundled names or weight files")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(argv)
    from_noise = [name for name in options.models if load_backbone(name).spec.sampling is not None]
    methods = upscalers([name for name in options.models if name not in from_noise])
    clean = clean_rows(options.data, methods)
    real = degraded_rows(options.data, {name: run for name, run in methods.items() if not name.startswith("pixel")})
    number = ".2f"
    print(
        markdown(
            clean,
            [
                ("set", ""),
                ("method", ""),
                ("psnr_y", number),
                ("ssim_y", ".4f"),
                ("grid", ".3f"),
                ("grid_gt", ".3f"),
                ("megapixels_per_second", ".3f"),
            ],
        )
    )
    print()
    print(markdown(real, [("set", ""), ("method", ""), ("images", ""), ("psnr_y", number)]))
    sampled = sampled_rows(options.data, from_noise)
    print()
    shown = [(key, number) for key in ("bicubic", "psnr_y", "psnr_y_mean")]
    print(markdown(sampled, [("set", ""), ("input", ""), ("method", ""), ("seeds", ""), *shown, ("spread", ".4f")]))
    if options.json:
        options.json.write_text(json.dumps({"clean": clean, "degraded": real, "sampled": sampled}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
