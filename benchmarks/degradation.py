"""Degraded images per second beside a per-image OpenCV version of the same chain, and JPEG models against the codec.

python benchmarks/degradation.py [--batch 8] [--gt 256] [--threads 2] [--preset realesrgan] [--rounds 24] [--json FILE]
python benchmarks/degradation.py --device cuda --batch 64

Both sides get the same images and the same draws: ours draws them inside the measured time, OpenCV gets the finished records.
Rounds alternate between the two and the median counts, so that other work on the machine hits both. Needs OpenCV.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignsr.core.degradation import PRESETS, degrade
from alignsr.core.degradation.jpeg import jpeg_codec, jpeg_differentiable, jpeg_diffjpeg
from alignsr.core.degradation.steps import make_kernel

QUALITIES = (30, 50, 75, 95)
Pixels = np.ndarray[Any, np.dtype[np.float32]]


def photographs(count: int, side: int) -> Tensor:
    """Square crops of three public photographs, [count, 3, side, side]."""
    import skimage.data

    crops: list[Tensor] = []
    pictures = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    for n in range(count):
        picture = torch.from_numpy(pictures[n % 3]).permute(2, 0, 1).float() / 255
        picture = torch.nn.functional.pad(
            picture, (0, max(0, side - picture.shape[2]), 0, max(0, side - picture.shape[1])), mode="reflect"
        )
        top, left = (37 * n) % (picture.shape[1] - side + 1), (53 * n) % (picture.shape[2] - side + 1)
        crops.append(picture[:, top : top + side, left : left + side])
    return torch.stack(crops)


def opencv_sharpen(image: Pixels) -> Pixels:
    import cv2

    residual = image - cv2.GaussianBlur(image, (51, 51), 0)
    mask = (np.abs(residual) * 255 > 10).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (51, 51), 0)
    return soft * np.clip(image + 0.5 * residual, 0, 1) + (1 - soft) * image


def opencv_noise(image: Pixels, step: dict[str, Any], rng: np.random.Generator) -> Pixels:
    channels = 1 if step["grey"] else 3
    if step["kind"] == "gaussian":
        field = rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * np.float32(step["std_255"] / 255)
    else:
        clean = image if channels == 3 else (image @ np.array([0.114, 0.587, 0.2989], np.float32))[..., None]
        levels = np.clip(np.round(clean * 255), 0, 255).astype(np.uint8)
        distinct = int((np.bincount(levels.ravel(), minlength=256) > 0).sum())
        counts = 2 ** int(np.ceil(np.log2(distinct)))
        mean = levels.astype(np.float32) / 255
        field = (rng.poisson(mean * counts).astype(np.float32) / counts - mean) * np.float32(step["scale"])
    return np.clip(image + field, 0, 1)


def opencv_degrade(image: Pixels, record: dict[str, Any], rng: np.random.Generator) -> Pixels:
    """The chain of one record on one [H, W, 3] image in OpenCV's order of colours (BGR) with OpenCV and numpy."""
    import cv2

    modes = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    if record["sharpen_input"]:
        image = opencv_sharpen(image)
    for step in record["steps"]:
        if step["op"] == "blur" and step["kernel"] is not None:
            kernel = make_kernel(step["kernel"]).numpy().astype(np.float32)
            image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        elif step["op"] in ("resize", "bicubic"):
            height, width = step["size"]
            image = cv2.resize(image, (width, height), interpolation=modes[step.get("mode", "bicubic")])
        elif step["op"] == "noise":
            image = opencv_noise(image, step, rng)
        elif step["op"] == "jpeg":
            pixels = np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
            _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, step["quality"]])
            image = cv2.imdecode(stream, cv2.IMREAD_COLOR).astype(np.float32) / np.float32(255)
    return np.round(np.clip(image, 0, 1) * 255) / np.float32(255)


def alternate(cases: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round; one unmeasured round first."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-1, rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run(number + 1)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_speed(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    import cv2

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    device = torch.device(options.device)
    gt = photographs(options.batch, options.gt)
    on_device = gt.to(device)
    pictures = [np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy()) for image in gt]

    def seeds(number: int) -> list[int]:
        return list(range(number * options.batch, (number + 1) * options.batch))

    records = [degrade(gt, options.preset, seeds=seeds(number)).params for number in range(options.rounds + 1)]
    rng = np.random.default_rng(0)

    def ours(jpeg: Any) -> Callable[[int], object]:
        def run(number: int) -> object:
            lq = degrade(on_device, options.preset, seeds=seeds(number), jpeg=jpeg).lq
            return lq.sum().item()  # waits for the device

        return run

    cases: dict[str, Callable[[int], object]] = {
        "OpenCV, image by image": lambda n: [opencv_degrade(p, r, rng) for p, r in zip(pictures, records[n], strict=True)],
        f"AlignSR on {device.type}, codec": ours("codec"),
        f"AlignSR on {device.type}, differentiable": ours("differentiable"),
    }
    seconds = alternate(cases, options.rounds)
    baseline = statistics.median(seconds["OpenCV, image by image"])
    return {
        name: {
            "images_per_second": round(options.batch / statistics.median(values), 2),
            "best_images_per_second": round(options.batch / min(values), 2),
            "times_opencv": round(baseline / statistics.median(values), 3),
        }
        for name, values in seconds.items()
    }


def measure_jpeg() -> dict[str, dict[str, float]]:
    """Mean absolute difference to the codec in grey levels for clean photographs and at noise of standard deviation 25."""
    clean = photographs(6, 255)
    noisy = (clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255).clamp(0, 1)
    rows: dict[str, dict[str, float]] = {}
    for name, images in (("clean", clean), ("noise 25", noisy)):
        for quality in QUALITIES:
            qualities = [quality] * len(images)
            codec = torch.stack(jpeg_codec(list(images), qualities))
            forms = {"differentiable": jpeg_differentiable, "official DiffJPEG": jpeg_diffjpeg}
            rows[f"{name}, quality {quality}"] = {
                form: round(float((torch.stack(run(list(images), qualities)) - codec).abs().mean()) * 255, 3)
                for form, run in forms.items()
            }
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--gt", type=int, default=256, help="side of the clean images in px")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of OpenCV")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="realesrgan")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    speed, distance = measure_speed(options), measure_jpeg()
    print(
        f"{options.preset}, batch {options.batch}, gt {options.gt}, {options.threads} threads, median of {options.rounds} rounds"
    )
    print(f"{'version':36} {'images/s':>9} {'best':>9} {'x OpenCV':>9}")
    for name, row in speed.items():
        print(f"{name:36} {row['images_per_second']:9.1f} {row['best_images_per_second']:9.1f} {row['times_opencv']:9.2f}")
    print(f"\n{'mean |difference| to the codec, /255':36} {'differentiable':>15} {'official DiffJPEG':>18}")
    for name, row in distance.items():
        print(f"{name:36} {row['differentiable']:15.3f} {row['official DiffJPEG']:18.3f}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        result = {"settings": settings, "speed": speed, "jpeg_mean_abs_difference_255": distance}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
