"""Candidates per minute of the models that DP2O-SR samples, at 512x512 and with its settings. Random weights.

GPU: python benchmarks/candidates.py --device cuda [--config dp2o-candidates-sd2 dp2o-candidates-flux] [--batch 4] [--json FILE]
CPU: python benchmarks/candidates.py    the same program on miniatures of 64x64, to see that it runs; full size: "not measured"

Counted is what the pipeline does for one picture: encode the input, all steps of the sampler (two network calls each with true
guidance), decode, colours, 8-bit pictures and latents in memory; the first picture is left out. The paper's figures for 8 GPUs
(A800) are 192 and 72 candidates per minute: 0.40 and 0.15 per second and GPU (specification 5.23).
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignsr.core.backbones import MULTI_STEP_KINDS
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.latent import make_control, make_transformer, tiny_multi_step
from alignsr.core.sampling import restore_multi_step
from alignsr.train.candidates import CandidatesConfig, load_candidates_config
from alignsr.train.candidates.sample import make_group
from alignsr.train.candidates.sources import Group

PUBLISHED = {"dp2o-candidates-sd2": 0.40 * 60, "dp2o-candidates-flux": 0.15 * 60}  # per minute and GPU


def build(config: CandidatesConfig, device: torch.device) -> Any:
    """The published size with random weights on a GPU, a miniature elsewhere."""
    name = config.model.backbone
    if device.type == "cpu":
        return tiny_multi_step(name, control=True)
    kind, dtype = MULTI_STEP_KINDS[name], torch.float16 if config.model.precision == "fp16" else torch.bfloat16
    with torch.device(device):
        network = make_transformer(kind, kind.transformer).to(dtype)
        assert kind.control_options is not None
        control = make_control(kind, kind.control_options(kind.transformer)).to(dtype)
        autoencoder = make_autoencoder(kind.autoencoder)
    for module in (network, control, autoencoder):
        module.eval().requires_grad_(False)
    return kind.backbone(network, autoencoder, control)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device, config = torch.device(arguments.device), load_candidates_config(name)
    side = 512 if device.type != "cpu" else 64
    sampling, backbone = config.sampling, build(config, device)
    sets = {"candidates": arguments.batch, "batch_size": arguments.batch, "steps": sampling.steps if side == 512 else 2}
    config = replace(config, sampling=replace(sampling, **sets), pairs=replace(config.pairs, picks=1))

    def draw(group: Group, seeds: Any) -> Any:
        restored = restore_multi_step(
            backbone,
            group.lq[None].to(device).float() / 255,
            scale=4,
            steps=config.sampling.steps,
            sampler=sampling.sampler,
            seeds=list(seeds),
            guidance=sampling.guidance,
            batch_size=len(seeds),
        )
        return restored.sr, restored.z

    lq = torch.randint(0, 256, (3, side // 4, side // 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    group = Group(0, "noise", torch.zeros(3, side, side, dtype=torch.uint8), lq, "")
    seconds: list[float] = []
    for _ in range(1 + arguments.rounds):
        start = time.perf_counter()
        make_group(config, group, draw)
        seconds.append(time.perf_counter() - start)
    per_minute = 60 * arguments.batch / min(seconds[1:])
    return {
        "side": side,
        "steps": config.sampling.steps,
        "guidance": sampling.guidance,
        "batch": arguments.batch,
        "candidates_per_minute": per_minute,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "parameters": backbone.spec.parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for name in arguments.config:
        result[name] = found = measure(name, arguments)
        is_full = found["side"] == 512
        size = f"{found['parameters'] / 1e9:.2f} billion parameters" if is_full else "miniature"
        speed = f"{found['candidates_per_minute']:.1f} candidates of {found['side']} px per minute on {found['device']}"
        print(f"{name} ({size}): {speed}{'' if is_full else '; full size: not measured'}")
        if is_full:
            print(f"  published: {PUBLISHED[name]:.0f} per minute and GPU; {found['memory_gib']:.1f} GiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
