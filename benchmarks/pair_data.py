"""Does the pair pipeline keep up? Samples per second that it delivers, beside those that a training step of RRDB-128 consumes.

python benchmarks/pair_data.py [--config aesop-rrdb-128] [--batch 16] [--workers 0 1 2] [--pictures 4] [--side 2040]
    [--step-batch 1] [--device cpu] [--json FILE]

Pictures have the size of DIV2K's, made from photographs of scikit-image; both sides are timed in the same run. A first look
decodes a picture and makes its low-resolution partner; samples are then crops of the decoded files. The need is in samples per
second, so the step may be timed at a smaller batch than it is trained with. On a CPU the step is timed without a warm-up.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignsr.train.data import PairData
from alignsr.train.losses import LossStack
from alignsr.train.prefetch import Prefetch
from alignsr.train.recipes import load_config, perceptual_gan


def make_pictures(folder: Path, count: int, width: int) -> Path:
    """PNG files of the size and noisiness of DIV2K's, from two photographs."""
    import numpy as np
    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    size = (width, width * 1356 // 2040)
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = Image.fromarray((data.astronaut, data.coffee)[number % 2]()).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(photograph, np.float32) + random.normal(0, 4, (size[1], size[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png", compress_level=3)
    return folder


def pipeline_speed(config: Any, scale: int, batch: int, workers: int, batches: int) -> tuple[float, float]:
    """Samples per second: while every picture is seen for the first time, and once all are decoded."""
    data = PairData(config, scale, 0, batch)
    started = time.perf_counter()
    for index in range(len(data.store.sources)):
        data.store.pair(index)
    decoded = len(data.store.sources) / (time.perf_counter() - started)
    with Prefetch(data, workers, batch, batches * batch) as feed:
        started = time.perf_counter()
        for number in range(batches):
            feed.batch(number * batch, batch)
        return decoded, batches * batch / (time.perf_counter() - started)


def step_speed(config: Any, batch: int, device: torch.device, rounds: int) -> float:
    """Samples per second of the generator's and the discriminator's passes with every loss of the config, random weights."""
    torch.manual_seed(0)
    generator = perceptual_gan.build_model(config).network.to(device)
    opponent = perceptual_gan.build_opponent(config).to(device)
    losses = LossStack(config.losses, device, scale=config.model.scale)
    patch = config.data.gt_patch_px
    gt = torch.rand(batch, 3, patch, patch, device=device)
    lq = torch.rand(batch, 3, patch // config.model.scale, patch // config.model.scale, device=device)
    seconds: list[float] = []
    warm_up = int(device.type != "cpu")
    for _ in range(rounds + warm_up):
        started = time.perf_counter()
        sr = generator(lq)
        opponent.requires_grad_(False)
        losses.generator_terms(sr, gt, sr.detach(), opponent).total().mean().backward()
        opponent.requires_grad_(True)
        losses.critic_terms(opponent, sr, gt).total().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        generator.zero_grad()
        opponent.zero_grad()
    return batch / statistics.median(seconds[warm_up:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="aesop-rrdb-128", help="a published config of the recipe perceptual_gan")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--side", type=int, default=2040, help="width of the pictures in px")
    parser.add_argument("--batches", type=int, default=8, help="batches per measurement")
    parser.add_argument("--step-batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    sets = ["model.init=", "losses.aesop.autoencoder=random", "losses.perceptual.vgg=random"]
    _, config = load_config(options.config, sets)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_pictures(Path(temporary) / "pictures", options.pictures, options.side)
        for workers in options.workers:
            change = {"decoded_cache": f"{temporary}/decoded-{workers}", "cache_images": False, "holdout": 0}
            data = dataclasses.replace(config.data, folders=(str(folder),), **change)
            decoded, speed = pipeline_speed(data, config.model.scale, options.batch, workers, options.batches)
            rows.append({"workers": workers, "pictures_per_second": round(decoded, 2), "samples_per_second": round(speed, 1)})
    need = step_speed(config, options.step_batch, torch.device(options.device), options.rounds)

    print(f"{options.config}, batch {options.batch}, {options.pictures} pictures {options.side} px wide")
    print(f"{'workers':>8} {'first look, pictures/s':>24} {'samples/s':>12} {'times the need':>16}")
    for row in rows:
        speed = row["samples_per_second"]
        print(f"{row['workers']:8d} {row['pictures_per_second']:24.2f} {speed:12.1f} {speed / need:16.0f}")
    print(f"needed on {options.device} with {torch.get_num_threads()} threads: {need:.3f} samples/s (batch {options.step_batch})")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report = {"settings": settings, "pipeline": rows, "need": need}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
