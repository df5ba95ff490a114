"""E3 of asasr.md 6.2 on a real model and real pictures: pixel-flow-x4 and patches of BSDS500, three seeds.

python benchmarks/experiments/asasr_pixel_propositions.py --data DIR --out RUNS [--seeds 0 1 2] [--steps 200] [--json FILE]

J(x) = mean |velocity(x, t, lq) - u|^2 at noisy states x of held-out pictures, and at x + delta with |delta| = rho |x| in H^s
(s = 1.5, L = 2 pi, rho = 0.05): the closed form of Proposition 4.1, random white and coloured directions, and two adapters on the
same network, trained by mode `energy` of `train.negatives` to lower J: one looks at the ground truth in place of the input, which
tells it u; the other one at the input alone.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.core.images import to_model_range
from alignsr.core.records import LossTerms
from alignsr.core.resize import bicubic
from alignsr.core.sobolev import SobolevNorm, closed_form
from alignsr.core.weights import write_atomic
from alignsr.train.config import DataConfig
from alignsr.train.data import PairData
from alignsr.train.multi_step import ADVERSARY, AdapterConfig, Autocast, MultiStepModelConfig, Trainee, add_adapter, build_trainee
from alignsr.train.negatives import AdversaryConfig, Batch, make_negative

PATCH, BATCH, RHO, HELD_OUT = 64, 8, 0.05, 32
NORM = SobolevNorm(1.5, 2 * math.pi)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "time_embed.linear", "proj_out")
STATE, CLOSED, SEES, BLIND = "the state itself", "closed form", "adapter that sees u", "adapter without u"
WHITE, COLORED = "random, white", "random, coloured"
ENERGY = AdversaryConfig(mode="energy", radius=RHO)


def batch_of(data: PairData, model: Autocast, first: int, size: int, seed: int) -> Batch:
    """Pictures with noise and times that are functions of (seed, first)."""
    pair, generator = data.batch(first, size), torch.Generator().manual_seed(1_000_003 * seed + first)
    lq_up = to_model_range(bicubic(pair.lq, (PATCH, PATCH)).clamp(0, 1))
    gt = to_model_range(pair.gt)
    noise, time = torch.randn(gt.shape, generator=generator), model.process.draw_times(size, generator=generator)
    return Batch(gt, lq_up, noise, time.clamp(0.1, 0.85), lq_up, gt, None)  # near 1 a state says nothing of its clean end


def looking(batch: Batch, sees: bool) -> Batch:
    """What the adapter looks at is the ground truth, or the input alone."""
    return batch if sees else replace(batch, gt=batch.lq_up)


def search(trainee: Trainee, model: Autocast, data: PairData, sees: bool, seed: int, steps: int) -> None:
    """Train an adapter of its own to lower J."""
    add_adapter(trainee, ADVERSARY, AdapterConfig(64, targets=TARGETS), seed=seed)
    optimizer = torch.optim.AdamW(trainee.stack.train(ADVERSARY), 1e-3)

    def learn(terms: LossTerms) -> None:
        terms.total().mean().backward()

    for step in range(steps):
        batch = batch_of(data, model, HELD_OUT + step * BATCH, BATCH, seed)
        make_negative(ENERGY, trainee, model, looking(batch, sees), NORM, learn)
        torch.nn.utils.clip_grad_norm_(trainee.stack.parameters(ADVERSARY), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def energy(model: Autocast, x: Tensor, batch: Batch) -> Tensor:
    """J at x, [B]."""
    target = model.process.target(batch.clean, batch.noise)
    return (model.predict(x, batch.time, batch.z_lq) - target).square().flatten(1).mean(1)


def measured(folders: Sequence[str], seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Row -> J and its cosine to the closed form, means over held-out patches."""
    data = PairData(DataConfig(folders=tuple(folders), gt_patch_px=PATCH, degradation="mild"), 4, seed)
    rows: dict[str, dict[str, float]] = {}
    deltas: dict[str, Tensor] = {}
    for name, sees in ((SEES, True), (BLIND, False)):
        trainee = build_trainee(MultiStepModelConfig(backbone="pixel", source="pixel-flow-x4", precision="fp32"))
        model = Autocast(trainee.backbone, nullcontext)
        search(trainee, model, data, sees, seed, steps)
        held_out = batch_of(data, model, 0, HELD_OUT, seed)
        with torch.no_grad():
            negative = make_negative(ENERGY, trainee, model, looking(held_out, sees), NORM)
        share = 1 - held_out.time.view(-1, 1, 1, 1)
        deltas[name] = share * (negative - held_out.clean)
    trainee.stack.use()
    state = model.process.add_noise(held_out.clean, held_out.noise, held_out.time).requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(model, state, held_out).sum(), state)
    state = state.detach()
    radius = RHO * NORM.squared_norm(state).sqrt()
    best = closed_form(gradient, radius, NORM)
    white = torch.randn(state.shape, generator=torch.Generator().manual_seed(seed))
    tried = {
        STATE: torch.zeros_like(state), CLOSED: best, **deltas, WHITE: NORM.to_sphere(white, radius),
        COLORED: NORM.to_sphere(NORM.colored(white), radius),
    }  # fmt: skip
    for name, delta in tried.items():
        with torch.no_grad():
            rows[name] = {"J": float(energy(model, state + delta, held_out).mean())}
            if name not in (STATE, CLOSED):
                rows[name]["cosine"] = float(NORM.cosine(delta, best).mean())
    return rows


def table(of_seeds: Sequence[dict[str, dict[str, float]]]) -> str:
    """Means and every seed's value, as Markdown."""
    lines = ["| perturbation | J | per seed | cosine | per seed |", "| --- | --- | --- | --- | --- |"]
    for name in of_seeds[0]:
        cells: list[str] = []
        for key in ("J", "cosine"):
            values = [rows[name][key] for rows in of_seeds if key in rows[name]]
            cells += [f"{statistics.fmean(values):.4f}", ", ".join(f"{v:.4f}" for v in values)] if values else ["", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = [str(options.data / "bsds500" / part) for part in ("train", "test")]
    found: list[Any] = []
    for seed in options.seeds:
        path = options.out / f"propositions-{seed}-{options.steps}.json"
        if not path.is_file():
            torch.manual_seed(seed)
            rows = measured(folders, seed, options.steps)
            text = json.dumps(rows) + "\n"
            write_atomic(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
        found.append(json.loads(path.read_text(encoding="utf-8")))
    print(table(found))
    if options.json:
        report = json.dumps({"seeds": options.seeds, "rows": found}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
