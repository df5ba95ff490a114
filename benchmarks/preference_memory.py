"""Memory of preference training at full size: policy and reference together against two full copies, and the peak on a GPU.

GPU: python benchmarks/preference_memory.py --device cuda [--config dp2o-flux dp2o-flux-lora dp2o-sd2] [--json FILE]
CPU: python benchmarks/preference_memory.py            bytes of parameters, counted by storages; peaks: "not measured"
     python benchmarks/preference_memory.py --tiny     the whole program on miniatures, to see that it runs

Counted on tensors without values: everything that policy and reference hold, each storage once, with gradients and two moments of
what is trained, against two copies of the model with the same. Measured: two steps of one pair at 512x512 with gradient
checkpointing, random weights, prompts of full length; the target is the issue's, 80 GB at batch 1.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignsr.core.losses.preference import PairEnergies, preference_terms
from alignsr.core.records import Conditioning, PreferenceBatch
from alignsr.train.optimize import make_optimizer
from alignsr.train.policy import Policy
from alignsr.train.preference_step import errors, pair_state
from alignsr.train.recipes import load_config
from alignsr.train.recipes.perceptual_dpo import PerceptualDpoConfig, open_policy

CONFIGS = ("dp2o-sd2", "dp2o-flux", "dp2o-flux-lora")
TARGET = 80e9
GIB = 2**30


def stored(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum({id(t) if t.is_meta else t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())


def config_of(name: str, is_tiny: bool, device: torch.device) -> PerceptualDpoConfig:
    """The published config on random weights."""
    config = load_config(f"tiny-{name}" if is_tiny else name)[1]
    precision = config.model.precision if device.type == "cuda" or is_tiny else "bf16"  # without values there are no codes
    source = "tiny" if is_tiny else "random"
    return replace(config, model=replace(config.model, source=source, precision=precision))


def count(config: PerceptualDpoConfig, is_tiny: bool) -> dict[str, Any]:
    """Bytes that a policy needs for weights, gradients and moments, and what two copies of the model would."""
    with nullcontext() if is_tiny else torch.device("meta"):
        policy = open_policy(config)
    trained = sum(p.nbytes for p in policy.part.parameters())
    one = stored(module for _, module in policy.backbone.modules())
    both = stored(module for _, module in policy.modules())
    return {
        "trained_parameters": sum(p.numel() for p in policy.part.parameters()),
        "weights": both,
        "with_gradients_and_moments": both + 3 * trained,
        "two_copies": 2 * one + 3 * trained,
    }


def fake_batch(policy: Policy, side: int, device: torch.device) -> tuple[PreferenceBatch, Any]:
    """A pair of random latents, and a teller of random prompts of full length."""
    backbone, generator = policy.backbone, torch.Generator().manual_seed(0)
    spec = backbone.spec
    shape = (1, spec.latent_channels, side // spec.latent_stride, side // spec.latent_stride)
    chosen, rejected = (torch.randn(shape, generator=generator) for _ in range(2))
    lq = torch.rand(1, 3, side // 4, side // 4, generator=generator)
    one = torch.ones(1)
    tokens = getattr(backbone, "text_tokens", 1)
    told = Conditioning(torch.randn(1, tokens, backbone.conditioning_dim, generator=generator).to(device))
    batch = PreferenceBatch(chosen, rejected, lq, one, one, torch.zeros(1, dtype=torch.int64), ("random",), ("",))
    return batch.to(str(device)), lambda prompts: told.rows([0] * len(prompts))


def peak(config: PerceptualDpoConfig, device: torch.device, side: int) -> int:
    """Bytes at the peak of two steps of one pair; 0 where there is no GPU, whose allocator counts."""
    policy = open_policy(config)
    policy.to(device)
    batch, tell = fake_batch(policy, side, device)
    optimizer = make_optimizer(list(policy.part.parameters()), config.optimizer)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32

    def autocast() -> Any:
        return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(2):
        state = pair_state(policy.backbone, batch, tell, scale=4, seed=0, first_index=step, grid=config.loss.sigma_grid)
        with torch.no_grad(), policy.reference() as reference:
            known = errors(reference, state, autocast)
        energies = PairEnergies.of(errors(policy.backbone, state, autocast), known)
        preference_terms(energies, logit_scale=config.logit_scale).total().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    for name in options.config:
        config = config_of(name, options.tiny, device)
        row: dict[str, Any] = {"config": name, "precision": config.model.precision, **count(config, options.tiny)}
        measured = options.tiny or device.type == "cuda"
        found = peak(config, device, 64 if options.tiny else 512) if measured else 0
        row["peak"] = found or None
        rows.append(row)
        sizes = [f"{row[key] / GIB:.2f} GiB" for key in ("weights", "with_gradients_and_moments", "two_copies")]
        told = "not measured" if not found else f"{found / GIB:.1f} GiB, {'within' if found < TARGET else 'beyond'} 80 GB"
        print(
            f"{name} ({row['precision']}): {row['trained_parameters']:,} trained; weights {sizes[0]}, with gradients and moments "
            f"{sizes[1]}; two copies {sizes[2]}; peak of a step at batch 1: {told}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
