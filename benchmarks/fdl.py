"""Time and memory of the Frequency Distribution Loss beside the published order of operations, and what grids and noise cost.

python benchmarks/fdl.py [--size 512] [--projections 256] [--rounds 2] [--threads 1] [--device cpu]
    [--only speed|ranking] [--package DIR] [--json FILE]

Both sides get the same VGG19 feature maps of two shifted photographs (random weights: only sizes matter) and the same filters,
and return the loss and its gradient with respect to the first image's features. The published order: whole complex FFT, all
filters in one convolution, torch.sort, all levels before the backward pass. With DIR, from
`pip install --no-deps --target DIR fdl-pytorch==1.0`, the published package itself runs too. Rounds alternate; ratios are those
of the rounds, one by one, and the median counts. With one thread on a CPU, seconds are the process's own. Peak memory is what a
call adds to the process (Linux) or to the device.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignsr.core.losses import sliced
from alignsr.core.losses.frequency import FDL_CHANNELS, fdl_loss, frequency_distances, grid_loss, make_projections, relu_levels
from alignsr.core.losses.perceptual import VGG19Features
from alignsr.core.networks.feature_maps import open_features

STAGES = ("spectra", "projection", "sort")
ORDER, PACKAGE, OURS = "published order", "published package", "AlignSR"
TRAINED = "autoencoder-tiny-x4"  # bundled
CHANGES = ("grid", "noise", "slow")
RMS = (0.0025, 0.005, 0.01, 0.02, 0.04)


def photographs(size: int) -> tuple[Tensor, Tensor]:
    """Two views of a public photograph, 2 px apart, [1, 3, size, size] each."""
    import skimage.data

    picture = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float()[None] / 255
    picture = F.interpolate(picture, scale_factor=max(1, math.ceil((size + 2) / 512)), mode="bicubic").clamp(0, 1)
    picture = F.pad(picture, (0, 2, 0, 2), mode="reflect")
    return picture[..., :size, :size], picture[..., 2 : size + 2, 1 : size + 1]


def features(size: int, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The five levels of both photographs, from VGG19 with random weights that keep the scale of the activations."""
    vgg = VGG19Features().requires_grad_(False).to(device)
    generator = torch.Generator().manual_seed(0)
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / module.weight[0].numel())
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
    levels = relu_levels(vgg)
    with torch.no_grad():
        x, y = (list(levels(image.to(device))) for image in photographs(size))
    return x, y


def published_maps(x: Tensor) -> list[Tensor]:
    spectrum = torch.fft.fft2(x)
    phase = torch.angle(spectrum)
    with torch.no_grad():  # pi where rounding alone decides between pi and -pi, so that values can be compared
        limit = 16 * torch.finfo(x.dtype).eps
        phase[(spectrum.real < 0) & (spectrum.imag.abs() <= -limit * spectrum.real)] = math.pi
    return [spectrum.abs(), phase]


def published_sort(x: Tensor, y: Tensor) -> Tensor:
    sorted_x, sorted_y = x.flatten(2).sort(dim=-1).values, y.flatten(2).sort(dim=-1).values
    return (sorted_x - sorted_y).abs().mean(dim=(1, 2))


def published(x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor]) -> Tensor:
    """The published order of operations, in our words: everything of one step before anything of the next."""
    total = x[0].new_zeros(x[0].shape[0])
    for level_x, level_y, weight in zip(x, y, filters, strict=True):
        for map_x, map_y in zip(published_maps(level_x), published_maps(level_y), strict=True):
            total = total + published_sort(F.conv2d(map_x, weight), F.conv2d(map_y, weight))
    return total


def ours(x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor]) -> Tensor:
    parts = [frequency_distances(a, b, weight) for a, b, weight in zip(x, y, filters, strict=True)]
    return torch.stack([part.amplitude + part.phase for part in parts]).sum(0)


Loss = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor]


def published_package(folder: Path) -> Loss:
    """The class of fdl-pytorch 1.0 on features that are already there; it needs a GPU to be imported, and here it does not.

    Raises:
        FileNotFoundError: not the package's folder.
    """
    file = folder / "FDL_pytorch" / "FDL.py"
    if not file.is_file():
        raise FileNotFoundError(
            f"--package: expected {file}, found none; pip install --no-deps --target {folder} fdl-pytorch==1.0"
        )
    package, extractors = ModuleType("FDL_pytorch"), ModuleType("FDL_pytorch.models")
    package.__path__ = [str(file.parent)]
    for name in ("VGG", "ResNet", "Inception", "EffNet"):  # pretrained networks, not wanted
        setattr(extractors, name, None)
    modules = {"FDL_pytorch": package, "FDL_pytorch.models": extractors}
    with patch.dict(sys.modules, modules), patch.object(Tensor, "cuda", lambda self: self):
        kind = importlib.import_module("FDL_pytorch.FDL").FDL_loss

    def loss(x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor]) -> Tensor:
        module = kind.__new__(kind)  # without a feature extractor; the rest as its __init__ sets it by default
        nn.Module.__init__(module)
        module.model, module.stride, module.phase_weight = list, 1, 1.0
        for level, weight in enumerate(filters):
            module.register_buffer(f"rand_{level}", weight)
        return module(x, y)

    return loss


def with_gradient(loss: Loss, x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    leaves = [level.detach().requires_grad_() for level in x]
    value = loss(leaves, y, filters)
    return value.item(), list(torch.autograd.grad(value.sum(), leaves))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def now() -> float:
    """Seconds: of this process's work where it has one thread, which other work on the machine does not disturb."""
    return time.process_time() if torch.get_num_threads() == 1 and not torch.cuda.is_initialized() else time.perf_counter()


class PeakMemory:
    """Bytes that a block adds at its worst: of the device, or of the process (Linux; 0 elsewhere)."""

    def __init__(self, device: str) -> None:
        self.device, self.added = device, 0

    def _process(self, field: str) -> int:
        status = Path("/proc/self/status")
        if not status.is_file():
            return 0
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    def __enter__(self) -> "PeakMemory":
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            reset = Path("/proc/self/clear_refs")
            if reset.is_file():
                reset.write_text("5")  # forget the peak so far
            self.before = self._process("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._process("VmHWM")
        self.added = peak - self.before


class Clock:
    """Adds up the seconds of wrapped functions by stage."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            synchronize(self.device)
            start = now()
            result = function(*args, **options)
            synchronize(self.device)
            self.seconds[stage] += now() - start
            return result

        return run


def published_stages(x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor], device: str) -> dict[str, float]:
    """Seconds of each stage, forward and backward, by running them one at a time."""
    clock = Clock(device)
    gradient = clock.timed  # a shorter name below
    for level_x, level_y, weight in zip(x, y, filters, strict=True):
        leaf = level_x.detach().requires_grad_()
        maps_x, maps_y = clock.timed("spectra", published_maps)(leaf), clock.timed("spectra", published_maps)(level_y)
        map_gradients: list[Tensor] = []
        for map_x, map_y in zip(maps_x, maps_y, strict=True):
            map_leaf = map_x.detach().requires_grad_()
            convolve = clock.timed("projection", F.conv2d)
            projected_x, projected_y = convolve(map_leaf, weight), convolve(map_y, weight)
            sort_leaf = projected_x.detach().requires_grad_()
            value = clock.timed("sort", published_sort)(sort_leaf, projected_y)
            (sort_gradient,) = gradient("sort", torch.autograd.grad)(value.sum(), sort_leaf)
            (map_gradient,) = gradient("projection", torch.autograd.grad)(projected_x, map_leaf, sort_gradient)
            map_gradients.append(map_gradient)
        gradient("spectra", torch.autograd.grad)(maps_x, leaf, map_gradients)
    return clock.seconds


def our_stages(x: Sequence[Tensor], y: Sequence[Tensor], filters: Sequence[Tensor], device: str) -> dict[str, float]:
    """Seconds of each stage, measured inside one run; `spectra` is all that is neither projection nor sort."""
    clock = Clock(device)
    originals = sliced.match_sorted, sliced.Projector.project, sliced.Projector.accumulate
    sliced.match_sorted = clock.timed("sort", originals[0])
    sliced.Projector.project = clock.timed("projection", originals[1])  # type: ignore[method-assign]
    sliced.Projector.accumulate = clock.timed("projection", originals[2])  # type: ignore[method-assign]
    try:
        start = now()
        with_gradient(ours, x, y, filters)
        synchronize(device)
        whole = now() - start
    finally:
        sliced.match_sorted, sliced.Projector.project, sliced.Projector.accumulate = originals  # type: ignore[method-assign]
    clock.seconds["spectra"] = whole - clock.seconds["projection"] - clock.seconds["sort"]
    return clock.seconds


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    device = options.device
    torch.set_num_threads(options.threads)
    x, y = features(options.size, device)
    filters = make_projections(FDL_CHANNELS, options.projections, generator=torch.Generator().manual_seed(0))
    filters = [weight.to(device) for weight in filters]
    versions: dict[str, Loss] = {ORDER: published, OURS: ours}
    if options.package is not None:
        versions = {PACKAGE: published_package(options.package), **versions}
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    peaks: dict[str, list[int]] = {name: [] for name in versions}
    results: dict[str, tuple[float, list[Tensor]]] = {}
    for loss in versions.values():  # what a first call costs once belongs to no round
        with_gradient(loss, [level[..., :8, :8] for level in x], [level[..., :8, :8] for level in y], filters)
    for _ in range(options.rounds):
        for name, loss in versions.items():
            results.pop(name, None)
            with PeakMemory(device) as memory:
                synchronize(device)
                start = now()
                results[name] = with_gradient(loss, x, y, filters)
                synchronize(device)
                seconds[name].append(now() - start)
            peaks[name].append(memory.added)
    stages = {ORDER: published_stages(x, y, filters, device), OURS: our_stages(x, y, filters, device)}
    return {
        name: {
            "seconds": round(statistics.median(seconds[name]), 3),
            "of_rounds": [round(value, 3) for value in seconds[name]],
            "peak_mb": round(max(peaks[name]) / 1e6),
            "value": results[name][0],
            **{f"{stage}_seconds": round(value, 3) for stage, value in stages.get(name, {}).items()},
        }
        for name in versions
    }


def compare(rows: dict[str, dict[str, Any]], name: str) -> dict[str, float]:
    """Ours against another version: median of the rounds' ratios of seconds, ratio of peaks, relative gap of values."""
    other, mine = rows[name], rows[OURS]
    ratios = [a / b for a, b in zip(other["of_rounds"], mine["of_rounds"], strict=True)]
    stages = {
        f"{stage}_speed": round(other[f"{stage}_seconds"] / mine[f"{stage}_seconds"], 2)
        for stage in STAGES
        if f"{stage}_seconds" in other
    }
    return {
        "speed": round(statistics.median(ratios), 2),
        "memory": round(mine["peak_mb"] / max(other["peak_mb"], 1), 3),
        "gap": abs(other["value"] - mine["value"]) / abs(other["value"]),
        **stages,
    }


def measure_ranking(size: int = 256) -> list[dict[str, float]]:
    """What a period-16 grid, white noise and three slow waves of equal RMS cost, in FDL and in the grid loss.

    FDL on the image itself (`fdl`) and on the encoder of the bundled auto-encoder (`fdl_trained`), 64 filters per level.
    """
    gt = photographs(size)[0]
    generator = torch.Generator().manual_seed(0)
    filters = make_projections([3], 64, generator=generator)
    noise = torch.randn(gt.shape, generator=generator)
    trained = open_features("network", TRAINED)
    trained_filters = make_projections(trained.channels, 64, generator=generator)
    period = torch.arange(size) % 16
    line = torch.where(period == 0, 1.0, 0.0) - 1 / 16  # a one-pixel seam every 16 px
    grid = (line[:, None] + line[None]).expand_as(gt)
    slow = torch.sin(torch.arange(size) * (2 * math.pi * 3 / size)).expand_as(gt)  # three periods over the image
    changes = {
        name: change / change.square().mean().sqrt() for name, change in (("grid", grid), ("noise", noise), ("slow", slow))
    }
    rows: list[dict[str, float]] = []
    for rms in RMS:
        row = {"rms": rms}
        for name, change in changes.items():
            sr = gt + rms * change
            row[f"fdl_{name}"] = round(fdl_loss(sr, gt, lambda image: [image], filters).item(), 4)
            with torch.no_grad():
                row[f"fdl_trained_{name}"] = round(fdl_loss(sr, gt, trained, trained_filters).item(), 4)
            row[f"grid_loss_{name}"] = round(grid_loss(sr, gt).item(), 5)
        rows.append(row)
    return rows


def print_speed(options: argparse.Namespace, rows: dict[str, dict[str, Any]], comparisons: dict[str, dict[str, float]]) -> None:
    """Seconds and peaks, by version and stage."""
    print(f"{options.size} px, {options.projections} filters per level, {options.device}, {options.threads} threads")
    print(f"{'version':18} {'seconds':>9} {'peak MB':>9} {'spectra':>9} {'project':>9} {'sort':>9} {'value':>12}")
    for name, row in rows.items():
        parts = " ".join(f"{row[f'{stage}_seconds']:9.2f}" if f"{stage}_seconds" in row else f"{'-':>9}" for stage in STAGES)
        print(f"{name:18} {row['seconds']:9.2f} {row['peak_mb']:9d} {parts} {row['value']:12.6f}")
    for name, found in comparisons.items():
        stages = "".join(f", {stage} x {found[f'{stage}_speed']:.2f}" for stage in STAGES if f"{stage}_speed" in found)
        print(
            f"AlignSR against the {name}: speed x {found['speed']:.2f}{stages}, memory x {found['memory']:.3f}, "
            f"values differ by {found['gap']:.1e} of their size"
        )


def print_ranking(rows: Sequence[dict[str, float]]) -> None:
    """One line per RMS as Markdown; the last columns say how many times as much as noise the grid costs."""
    losses = {"fdl": "FDL", "fdl_trained": "FDL, trained features", "grid_loss": "grid loss"}
    titles = [f"{title}: {part}" for title in losses.values() for part in (*CHANGES, "grid / noise")]
    print("| RMS | " + " | ".join(titles) + " |", "| --- " * (len(titles) + 1) + "|", sep="\n")
    for row in rows:
        cells = [f"{row['rms']:.4f}"]
        for loss in losses:
            cells += [f"{row[f'{loss}_{change}']:.4f}" for change in CHANGES]
            cells.append(f"{row[f'{loss}_grid'] / row[f'{loss}_noise']:.2f}")
        print("| " + " | ".join(cells) + " |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="side of the images in px, at least 80")
    parser.add_argument("--projections", type=int, default=256, help="filters per level")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("speed", "ranking"), help="one half; default: both")
    parser.add_argument("--package", type=Path, metavar="DIR", help="folder with fdl-pytorch 1.0, to run it too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    report: dict[str, Any] = {"settings": {k: v for k, v in vars(options).items() if k not in ("json", "package")}}
    if options.only != "ranking":
        rows = report["versions"] = measure(options)
        report["comparisons"] = {name: compare(rows, name) for name in rows if name != OURS}
        print_speed(options, rows, report["comparisons"])
    if options.only != "speed":
        report["ranking"] = measure_ranking()
        print_ranking(report["ranking"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
