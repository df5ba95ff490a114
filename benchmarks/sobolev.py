"""What the Sobolev energy of a residual costs, beside the same energy by fast Fourier transforms and beside a mean square.

python benchmarks/sobolev.py [--shapes 16x16x64x64 4x16x128x128] [--rounds 15] [--threads 1] [--device cpu] [--json FILE]

Every version gets the same residuals [B, C, h, w] in float32 and returns the energy of each sample and its gradient. Ours is
`SobolevNorm.energy`: two products with cached matrices. The others are the DCT of Makhoul 1980 with cached orders and twiddles:
samples in the order 0, 2, 4, ..., 5, 3, 1, a real FFT, a turn of each coefficient; axis by axis, or both axes in one real FFT.
Rounds alternate; ratios are those of the rounds, one by one, and the median counts. With one thread on a CPU, seconds are the
process's own. Target: at least 1.5 times as fast as the faster of the two on a CPU.

With --device cuda also: energy and gradient of the 2 B residuals of a training step beside the five forward passes per pair of
FLUX.1-dev that the step makes (random weights; its backward pass comes on top). Target: under 1 %. Their operations are counted
on any machine.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.flux1 import Flux1Backbone
from alignsr.core.backbones.latent import find_kind, make_transformer
from alignsr.core.counting import count_flops
from alignsr.core.sobolev import SobolevNorm

OURS, BY_AXIS, AT_ONCE, MSE = "AlignSR", "rfft by axis", "rfft of both axes", "mean square"
ORDER, LENGTH = 1.5, 64.0
SPEED_TARGET, SHARE_TARGET = 1.5, 0.01
FORWARDS = 5  # per pair and step: one of the adversary, two of the reference, two of the policy (asasr.md 1.2)


@lru_cache(maxsize=16)
def axis_constants(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Order of the samples of one axis, and what turns its real FFT into an orthonormal DCT-II."""
    k = torch.arange(size // 2 + 1, dtype=torch.float64)
    scale = math.sqrt(2 / size) * torch.where(k == 0, math.sqrt(0.5), 1.0).double()
    order = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2).flip(0)))
    return order.to(device), torch.polar(scale, -math.pi * k / (2 * size)).to(torch.complex64).to(device)


def unfolded(half: Tensor, size: int) -> Tensor:
    """All real coefficients from half of the turned complex ones: their real parts, then the negative imaginary ones, back."""
    return torch.cat((half.real, -half.imag[..., 1 : (size + 1) // 2].flip(-1)), -1)


def last_axis(x: Tensor) -> Tensor:
    size = x.shape[-1]
    turn = axis_constants(size, str(x.device))[1]
    return unfolded(torch.fft.rfft(torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), -1)) * turn, size)


def dct_by_axis(x: Tensor) -> Tensor:
    return last_axis(last_axis(x).mT).mT


@lru_cache(maxsize=16)
def grid_constants(height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Turns of a grid's coefficients and of those at the opposite row frequency."""
    k = torch.arange(height, dtype=torch.float64)
    scale = math.sqrt(0.5 / height) * torch.where(k == 0, math.sqrt(0.5), 1.0).double()
    rows = torch.polar(scale, -math.pi * k / (2 * height)).to(torch.complex64).to(device)[:, None]
    columns = axis_constants(width, device)[1]
    return rows * columns, rows.conj() * columns


def dct_at_once(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    place = str(x.device)
    ahead, behind = grid_constants(height, width, place)
    spectrum = torch.fft.rfft2(x[..., axis_constants(height, place)[0], :][..., axis_constants(width, place)[0]])
    mirrored = torch.cat((spectrum[..., :1, :], spectrum[..., 1:, :].flip(-2)), -2)
    return unfolded(spectrum * ahead + mirrored * behind, width)


def energy_by(transform: Callable[[Tensor], Tensor], norm: SobolevNorm) -> Callable[[Tensor], Tensor]:
    @lru_cache(maxsize=4)
    def weights(size: tuple[int, int], device: str) -> Tensor:
        raw = norm.weights(size)
        return (raw / raw.mean()).float().to(device)

    return lambda x: (weights((x.shape[-2], x.shape[-1]), str(x.device)) * transform(x).square()).flatten(1).mean(1)


def mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def with_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    value = energy(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(shape: Sequence[int], rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds of each version, ratios of the rounds to ours, and how far values and gradients differ."""
    norm = SobolevNorm(ORDER, LENGTH)
    versions: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: norm.energy,
        BY_AXIS: energy_by(dct_by_axis, norm),
        AT_ONCE: energy_by(dct_at_once, norm),
        MSE: mean_square,
    }
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device)
    results = {name: with_gradient(energy, x) for name, energy in versions.items()}  # and what a first call costs once
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(rounds):
        for name, energy in versions.items():
            seconds[name].append(timed(lambda energy=energy: with_gradient(energy, x), device))
    value, gradient = results[OURS]
    rows: dict[str, Any] = {}
    for name in versions:
        ratios = [other / own for other, own in zip(seconds[name], seconds[OURS], strict=True)]
        rows[name] = {"milliseconds": 1e3 * statistics.median(seconds[name]), "ratio": statistics.median(ratios)}
        if name != MSE:
            rows[name]["value_gap"] = float(((results[name][0] - value) / value).abs().max())
            rows[name]["gradient_gap"] = float((results[name][1] - gradient).norm() / gradient.norm())
    return rows


def make_flux(device: str) -> Flux1Backbone:
    """FLUX.1-dev with random weights in bfloat16."""
    family, before = find_kind("flux1"), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            parts = make_transformer(family, family.transformer), make_autoencoder(family.autoencoder)
    finally:
        torch.set_default_dtype(before)
    return Flux1Backbone(*(part.eval().requires_grad_(False) for part in parts))


def share_of_a_step(device: str, rounds: int) -> dict[str, float]:
    """Operations and, on a GPU, seconds of the norm for one pair at HQ 512, over those of the step's forward passes."""
    norm, place = SobolevNorm(ORDER, LENGTH), "cuda" if device == "cuda" else "meta"
    backbone = make_flux(place)
    z, time_of = torch.zeros(1, 16, 64, 64, device=place), torch.full((1,), 0.5, device=place)

    @torch.no_grad()
    def forward() -> None:
        backbone.predict(z, time_of, z)

    flops = count_flops(lambda: with_gradient(norm.energy, torch.zeros(2, 16, 64, 64)))
    found = {"flops": flops / (FORWARDS * count_flops(forward))}
    if place == "cuda":
        residuals = torch.randn(2, 16, 64, 64, device=place)
        for run in (forward, lambda: with_gradient(norm.energy, residuals)):
            run()
        own = statistics.median(timed(lambda: with_gradient(norm.energy, residuals), place) for _ in range(rounds))
        forwards = statistics.median(timed(forward, place) for _ in range(rounds))
        found |= {"norm_seconds": own, "forwards_seconds": FORWARDS * forwards, "seconds": own / (FORWARDS * forwards)}
    return found


def report(shape: str, rows: dict[str, Any]) -> None:
    print(f"{shape:20} {'ms':>9} {'times ours':>11} {'value differs':>14} {'gradient':>10}")
    for name, row in rows.items():
        gaps = f"{row['value_gap']:14.1e} {row['gradient_gap']:10.1e}" if "value_gap" in row else ""
        print(f"{name:20} {row['milliseconds']:9.2f} {row['ratio']:11.2f} {gaps}".rstrip())
    ratio = min(rows[BY_AXIS]["ratio"], rows[AT_ONCE]["ratio"])
    print(
        f"{ratio:.2f} times as fast as the faster one by rfft (target {SPEED_TARGET}), {1 / rows[MSE]['ratio']:.1f} mean squares"
    )


def sizes(text: str) -> tuple[int, ...]:
    parts = tuple(map(int, text.split("x")))
    if len(parts) != 4 or min(parts) < 2:
        raise argparse.ArgumentTypeError(f"expected BxCxhxw of numbers above 1, got {text}; for example 16x16x64x64")
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", type=sizes, default=[(16, 16, 64, 64), (4, 16, 128, 128)], metavar="BxCxhxw")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    found: dict[str, Any] = {"shapes": {}}
    for shape in options.shapes:
        name = "x".join(map(str, shape))
        found["shapes"][name] = rows = measure(shape, options.rounds, options.device)
        report(name, rows)
    found["step"] = share = share_of_a_step(options.device, options.rounds)
    print(f"share of a FLUX.1-dev step's forward passes, HQ 512: {100 * share['flops']:.5f} % of the operations", end="; ")
    seconds = (
        f"{100 * share['seconds']:.3f} % (target {100 * SHARE_TARGET:g} %)" if "seconds" in share else "not measured (no GPU)"
    )
    print(f"of the time {seconds}")
    if options.json:
        settings = {"rounds": options.rounds, "threads": options.threads, "device": options.device}
        options.json.write_text(json.dumps({"settings": settings, **found}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
