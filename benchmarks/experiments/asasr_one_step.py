"""AS-DPO on a one-step model, a step that none of the papers took: the bundled pixel-x4, three seeds, Set5 and Set14.

python benchmarks/experiments/asasr_one_step.py --data DIR --out RUNS [--gan WEIGHTS] [--seeds 0 1 2] [--steps 120]
    [--json FILE]

A one-step model has no noise and no time to share between winner and loser: it makes one picture x(lq) for each input.
Preferences then compare what that picture is near to,

    m = kappa ( dE(x, negative) - dE(x, ground truth) ),   dE(x, y) = E_policy - E_reference,   E(x, y) = |x(lq) - y|^2 in H^s

with the negative made by an adversary, an adapter on the same model that has learned to restore as other methods do. The loss is
that of `core.losses.preference`, the norm that of `core.sobolev`; reference, policy and adversary are adapters on one network.

Trained beside it with the same pictures and steps: plain supervised fine-tuning, L = E(x, ground truth), for both norms; pairs
weighed by their gap (DP2O-SR's weights inside AS-DPO); and the winner's energy as an anchor (weight 100), since without one
nothing stops x from going on along ground truth minus negative: the logit is linear in it. Measured: see asasr_pixel.py, here on
bicubic inputs and whole pictures.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from asasr_pixel import FIGURES, artefacts, mean_figures, verdict_rows
from common import SCALE, table, test_pairs
from torch import Tensor

from alignsr.core.adapters import AdapterStack
from alignsr.core.backbones import load_backbone
from alignsr.core.images import to_model_range
from alignsr.core.losses.preference import PairEnergies, preference_terms
from alignsr.core.resize import bicubic
from alignsr.core.restore import restore
from alignsr.core.sobolev import SobolevNorm
from alignsr.core.weights import write_atomic
from alignsr.train.artefacts import ArtefactData, ArtefactsConfig
from alignsr.train.config import DataConfig
from alignsr.train.data import PairData
from alignsr.train.multi_step import adapted_network
from alignsr.train.negatives import gap_weights

MODEL, PATCH, BATCH, RANK, KAPPA, ANCHOR = "pixel-x4", 96, 8, 16, 2000.0, 100.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "time_embed.linear", "proj_out")
RATES = {"adversary": 1e-3, "policy": 3e-5}
START = "pixel-x4, the start"
AS_15, AS_0, GAP = "AS-DPO, s = 1.5", "AS-DPO, s = 0", "AS-DPO, s = 1.5, by gap"
ANCHORED = "AS-DPO, s = 1.5, anchored"
SFT_15, SFT_0 = "supervised, s = 1.5", "supervised, s = 0"
METHODS = (AS_15, AS_0, ANCHORED, GAP, SFT_15, SFT_0)
CLAIMS = (
    ("Sobolev against Euclidean", "psnr_y", AS_15, AS_0),
    ("Sobolev against Euclidean", "high", AS_15, AS_0),
    ("Sobolev against Euclidean", "lsd", AS_15, AS_0),
    ("against the start", "psnr_y", AS_15, START),
    ("anchored, against the start", "psnr_y", ANCHORED, START),
    ("anchored against not", "psnr_y", ANCHORED, AS_15),
    ("against supervised training", "psnr_y", AS_15, SFT_0),
    ("against supervised training", "lsd", AS_15, SFT_0),
    ("weighed by gap against uniform", "psnr_y", GAP, AS_15),
    ("weighed by gap against uniform", "lsd", GAP, AS_15),
)


def answer(backbone: Any, lq: Tensor) -> Tensor:
    """The one step, in [-1, 1], with gradient to whatever adapter is trained."""
    z_lq = to_model_range(bicubic(lq, (lq.shape[-2] * SCALE, lq.shape[-1] * SCALE)).clamp(0, 1))
    sigma = torch.full((lq.shape[0],), backbone.spec.start_sigma)
    return z_lq - sigma.view(-1, 1, 1, 1) * backbone.velocity(z_lq, sigma, z_lq)


def optimize(stack: AdapterStack, name: str, steps: int, loss_of: Any) -> None:
    """AdamW on one adapter; stops on a loss that is not finite."""
    optimizer = torch.optim.AdamW(stack.train(name), RATES["adversary" if name == "adv" else "policy"], weight_decay=0.01)
    for step in range(steps):
        loss = loss_of(step)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"step {step + 1} of {name}: the loss is not finite; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(name), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            print(f"{name}: step {step + 1} of {steps}, loss {float(loss.detach()):.4f}", file=sys.stderr, flush=True)


def add_adversary(backbone: Any, stack: AdapterStack, data: ArtefactData, seed: int, steps: int) -> None:
    """An adapter that restores as the artefacts' methods do."""
    stack.add("adv", TARGETS, RANK, generator=torch.Generator().manual_seed(seed))

    def loss_of(step: int) -> Tensor:
        batch = data.batch(step * BATCH, BATCH)
        stack.use("adv")
        return (answer(backbone, batch.lq) - to_model_range(batch.gt)).abs().mean()

    optimize(stack, "adv", steps, loss_of)


def add_policy(backbone: Any, stack: AdapterStack, method: str, data: PairData, seed: int, steps: int) -> None:
    """The adapter of one method, and it acts at the end."""
    name = f"policy_{METHODS.index(method)}"
    norm = SobolevNorm(0.0 if "s = 0" in method else 1.5, float(PATCH))
    stack.add(name, TARGETS, RANK, generator=torch.Generator().manual_seed(seed + 1))

    def loss_of(step: int) -> Tensor:
        batch = data.batch(step * BATCH, BATCH)
        gt = to_model_range(batch.gt)
        if method in (SFT_15, SFT_0):
            stack.use(name)
            return norm.energy(answer(backbone, batch.lq) - gt).mean()
        with torch.no_grad():
            with stack.using("adv"):
                negative = answer(backbone, batch.lq)
            with stack.using():
                before = answer(backbone, batch.lq)
        stack.use(name)
        after = answer(backbone, batch.lq)
        energies = PairEnergies(
            *(norm.energy(x - y) for x, y in ((after, gt), (after, negative), (before, gt), (before, negative)))
        )
        weights = gap_weights(norm.energy(negative - gt)) if method == GAP else None
        anchor = ANCHOR if method == ANCHORED else 0.0
        return preference_terms(energies, logit_scale=KAPPA, weights=weights, winner_anchor=anchor).total().mean()

    optimize(stack, name, steps, loss_of)
    stack.use(name)


def measure(backbone: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means of every figure over the pictures."""
    return mean_figures(lambda _, lq: restore(backbone, lq, scale=SCALE).sr, pairs)


def run(
    seed: int, options: argparse.Namespace, folders: Sequence[str], pairs: Sequence[tuple[Tensor, Tensor]]
) -> list[dict[str, Any]]:
    """All methods of one seed; what is measured already is read."""
    path = options.out / f"one-step-{seed}-{options.steps}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    backbone: Any = load_backbone(MODEL)
    stack = AdapterStack(adapted_network(backbone))
    rows = [{"method": START, "seed": seed, **measure(backbone, pairs)}]
    imitated = ArtefactData(ArtefactsConfig(folders=tuple(folders)), SCALE, PATCH, seed)
    add_adversary(backbone, stack, imitated, seed, options.steps)
    rows.append({"method": "the adversary", "seed": seed, **measure(backbone, pairs)})
    training = DataConfig(folders=tuple(str(options.data / "bsds500" / part) for part in ("train", "test")), gt_patch_px=PATCH)
    for method in METHODS:
        add_policy(backbone, stack, method, PairData(training, SCALE, seed), seed, options.steps)
        rows.append({"method": method, "seed": seed, **measure(backbone, pairs)})
        print(f"seed {seed}: {method}: {rows[-1]}", file=sys.stderr, flush=True)
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/, set14/ and realsrset/")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--gan", type=Path, help="a GAN-trained model of ours, see asasr_pixel.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="of the adversary and of each policy")
    parser.add_argument("--sets", nargs="+", default=["set5", "set14"], help="what is measured on")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = artefacts(options.data, options.out, options.gan)
    pairs = test_pairs(options.data, options.sets)
    rows = [row for seed in options.seeds for row in run(seed, options, folders, pairs)]
    print(table(rows, FIGURES), "", *verdict_rows(rows, CLAIMS), sep="\n")
    if options.json:
        report = json.dumps({"rows": rows}, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
