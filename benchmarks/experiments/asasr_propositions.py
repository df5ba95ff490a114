"""E3 of asasr.md 6.2: proposition 4.1's perturbation, and what networks find that are trained for it (proposition 4.2).

At states x of held-out pictures, J(x) = |v(x, t, c) - u|^2 (sum over pixels) with the supervised model's v, and perturbations of
Sobolev norm rho, s = 1.5, L = 2 pi: the closed form; random coloured directions; a network that sees x, t, c and the target u;
and one that sees x, t and c, as an adversary does. Both are trained to lower J(x + rho z / |z|_{H^s}).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from asasr_toy import BATCH, HeldOut, ToyBackbone, UNet, degrade, pictures, stream, trained
from torch import Tensor

from alignsr.core.sobolev import SobolevNorm, closed_form

RADII = (0.3, 1.0)
PROPOSITION_STEPS = 600
NORM = SobolevNorm(1.5, 2 * math.pi)
STATE, CLOSED, SEES, BLIND, RANDOM = (
    "the state itself",
    "closed form",
    "network that sees u",
    "network without u",
    "random, coloured",
)
# asasr.md 6.3, per radius: J, and for networks the cosine to the closed form
E3_REFERENCE = {
    STATE: ((15.330,), (15.330,)),
    CLOSED: ((14.009,), (11.636,)),
    SEES: ((14.139, 0.87), (11.863, 0.84)),
    BLIND: ((15.341, 0.00), (15.399, 0.00)),
    RANDOM: ((15.41,), (16.28,)),
}
State = tuple[Tensor, Tensor, Tensor, Tensor]  # x, sigma, c, u


def state_of(gt: Tensor, z_lq: Tensor, backbone: ToyBackbone, generator: torch.Generator) -> State:
    """A noisy state of each picture with its target."""
    noise = torch.randn(gt.shape, generator=generator)
    time = backbone.process.draw_times(gt.shape[0], generator=generator)
    return backbone.process.add_noise(gt, noise, time), time, z_lq, backbone.process.target(gt, noise)


def residual_energy(backbone: ToyBackbone, x: Tensor, state: State) -> Tensor:
    """J at x, [B]."""
    _, time, z_lq, target = state
    return (backbone.predict(x, time, z_lq) - target).square().flatten(1).sum(1)


def searcher(reference: ToyBackbone, path: Path, sees_target: bool, radius: float, seed: int, steps: int) -> UNet:
    """A network whose answer, brought to the sphere, lowers J."""
    torch.manual_seed(seed)
    network, generator = UNet(3 if sees_target else 2), stream(seed, 20 + sees_target)

    def loss(step: int) -> Tensor:
        del step
        gt = pictures(BATCH, generator)
        state = state_of(gt, degrade(gt, generator), reference, generator)
        return residual_energy(reference, state[0] + direction(network, state, sees_target, radius), state).mean()

    return trained(network, path, steps, loss, lambda _: 1e-3)


def direction(network: UNet, state: State, sees_target: bool, radius: float) -> Tensor:
    """rho z / |z|_{H^s} of the network's answer z."""
    x, time, z_lq, target = state
    seen = (x, z_lq, target) if sees_target else (x, z_lq)
    return NORM.to_sphere(network(torch.cat(seen, 1), time), radius)


def propositions(reference: UNet, tests: HeldOut, folder: Path, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Row -> J and cosine at each radius, means over the held-out pictures."""
    backbone, generator = ToyBackbone(reference), stream(seed, 30)
    state = state_of(tests.gt, tests.lq, backbone, generator)
    x = state[0].clone().requires_grad_(True)
    before = residual_energy(backbone, x, state)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    rows: dict[str, dict[str, float]] = {name: {} for name in E3_REFERENCE}
    for radius in RADII:
        best = closed_form(gradient, radius, NORM)
        white = torch.randn(x.shape, generator=generator)
        tried: dict[str, Callable[[], Tensor]] = {
            STATE: lambda: torch.zeros_like(gradient),
            CLOSED: lambda best=best: best,
            RANDOM: lambda white=white, radius=radius: NORM.to_sphere(NORM.colored(white), radius),
        }
        for name, sees in ((SEES, True), (BLIND, False)):
            path = folder / f"{'sees' if sees else 'blind'}-{radius}-{seed}.safetensors"
            network = searcher(backbone, path, sees, radius, seed, steps)
            tried[name] = lambda network=network, sees=sees, radius=radius: direction(network, state, sees, radius)
        for name, make in tried.items():
            with torch.no_grad():
                delta = make()
                rows[name][f"J {radius}"] = float(residual_energy(backbone, state[0] + delta, state).mean())
                if name in (SEES, BLIND):
                    rows[name][f"cosine {radius}"] = float(NORM.cosine(delta, best).mean())
    return rows


def mean_rows(of_seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over seeds of what `propositions` gives."""
    return {
        name: {key: statistics.fmean(rows[name][key] for rows in of_seeds) for key in row} for name, row in of_seeds[0].items()
    }


def e3_table(rows: dict[str, dict[str, float]]) -> str:
    """The rows beside the reference, as Markdown."""
    head = [f"{name} at {radius}" for radius in RADII for name in ("J", "cosine")]
    lines = ["| perturbation | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
    for name, row in rows.items():
        cells: list[str] = []
        for radius, reference in zip(RADII, E3_REFERENCE[name], strict=True):
            for index, key in enumerate((f"J {radius}", f"cosine {radius}")):
                cells.append(f"{row[key]:.3f} ({reference[index]:g})" if key in row else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
