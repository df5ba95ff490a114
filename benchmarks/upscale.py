"""Upscaling speed: megapixels of result per second for each bundled model, beside bicubic.

python benchmarks/upscale.py [--model NAME ...] [--side 256] [--scale 4] [--rounds 3] [--threads 2] [--device cpu] [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.core.backbones import load_backbone
from alignsr.core.resize import bicubic
from alignsr.core.restore import move, restore
from alignsr.core.weights import single_pass_models

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def photograph(side: int) -> Tensor:
    """A square of a real photograph, [1, 3, side, side]; repeated where `side` is larger than it."""
    from skimage import data

    picture = torch.from_numpy(data.astronaut().copy()).movedim(-1, 0)[None].float() / 255
    repeats = -(-side // picture.shape[-1])
    return picture.tile(1, 1, repeats, repeats)[..., :side, :side].contiguous()


def measure(run: Callable[[], Tensor], device: torch.device, rounds: int) -> dict[str, float]:
    """Median and best of `rounds` after one that warms up; the device is waited for."""
    seconds: list[float] = []
    pixels = 0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        pixels = result.shape[-1] * result.shape[-2]
    timed = seconds[1:]
    return {
        "seconds": round(statistics.median(timed), 4),
        "megapixels_per_second": round(pixels / 1e6 / statistics.median(timed), 4),
        "best_megapixels_per_second": round(pixels / 1e6 / min(timed), 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="NAME", help="instead of every bundled model; may be repeated")
    parser.add_argument("--side", type=int, default=256, help="side of the input in px")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    lq = photograph(options.side).to(device)
    size = (options.side * options.scale, options.side * options.scale)
    rows: dict[str, dict[str, Any]] = {"bicubic": {"parameters": 0, **measure(lambda: bicubic(lq, size), device, options.rounds)}}
    for name in options.model or single_pass_models():
        backbone = move(load_backbone(name), device, DTYPES[options.precision])

        def run(backbone: Any = backbone) -> Tensor:
            with torch.inference_mode():
                return restore(backbone, lq, scale=options.scale).sr

        rows[backbone.spec.name] = {"parameters": backbone.spec.parameters, **measure(run, device, options.rounds)}

    print(
        f"{options.side}x{options.side} -> {size[0]}x{size[1]}, {options.threads} threads, {options.device}, {options.precision}"
    )
    print(f"{'model':24} {'parameters':>12} {'seconds':>9} {'MP/s':>9} {'best':>9}")
    for name, row in rows.items():
        speeds = f"{row['seconds']:9.3f} {row['megapixels_per_second']:9.3f} {row['best_megapixels_per_second']:9.3f}"
        print(f"{name:24} {row['parameters']:12,} {speeds}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "model")}
        options.json.write_text(json.dumps({"settings": settings, "models": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
