"""FLUX.1-dev restoring in 28 steps and trained by preferences: counted work and memory and, on a GPU, time. Random weights.

GPU: python benchmarks/multi_step.py --device cuda [--cases 1024/1024 1024/512] [--bits 16 8 4] [--candidates] [--json FILE]
CPU: python benchmarks/multi_step.py          what can be counted; what needs a GPU says "not measured"
     python benchmarks/multi_step.py --tiny   the whole program on miniatures, to see that it runs; its times mean nothing

A case is HQ/condition in pixels: the side of the result and of the picture whose tokens condition the model. Counted on tensors
without values: the products of 28 steps (a multiply-add is two operations), weights in 16, 8 and 4 bits, and the memory of what
lives at once: in one step, and in the policy's forward and backward pass of a training step with recomputed blocks. Measured is
the real path: the picture is enlarged and encoded, 28 Euler steps, decoded, colours. MFU is the counted work of the 28 steps over
seconds times the GPU's peak, as the paper's 46.6 % is over 312 TFLOP/s; beside it, over a measured product of matrices.
With 8 and 4 bits transformer and autoencoder take turns, and the process may use 24 GiB of the GPU and no more.
Training is the recipe `sobolev_dpo` as published, at each batch, without accumulation; the first step is left out.
`--candidates` adds candidates per minute at 512 px of both models of DP2O-SR (`benchmarks/candidates.py`).
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from one_step import Clock, StepTimes, made, product_speed
from torch import Tensor, nn

from alignsr.core.adapters import AdapterStack
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.flux1 import Flux1Backbone
from alignsr.core.backbones.latent import find_kind, make_transformer, tiny_multi_step
from alignsr.core.backbones.offload import OffloadedMultiStep, Residency
from alignsr.core.backbones.quantization import quantize, stored_bytes
from alignsr.core.borrowed import nbytes
from alignsr.core.counting import count_flops, peak_bytes
from alignsr.core.lora import LORA_TARGETS, Adapter, expected_state
from alignsr.core.lora_files import save_adapter
from alignsr.core.sampling import restore_multi_step

STEPS, SCALE = 28, 4
CASES = ((512, 512), (1024, 512), (1024, 1024))
SPECIFIED = {(512, 512): 1.055, (1024, 512): 2.659, (1024, 1024): 4.633}  # PFLOP of 28 steps, asasr.md 4.7
PAPER = {"seconds": 19.60, "gigabytes": 33.02, "pflop": 2.85, "mfu": 0.466}  # one picture on an A800, Table 5
PEAKS = {"A800": 312e12, "A100": 312e12, "H100": 989e12, "H800": 989e12, "H200": 989e12}  # bfloat16 without sparsity
BITS = (16, 8, 4)
SMALL_MEMORY, LARGE_MEMORY = 24 * 2**30, 80 * 2**30
BATCHES = (1, 4, 8)  # pairs of a training step at HQ 512
RANKS = {"sft": 64, "policy": 16, "adv": 16}
GIB = 2**30


def make_flux(device: str | torch.device, condition_stride: int = 1, is_tiny: bool = False) -> Flux1Backbone:
    """The published size with random weights in bfloat16, or the miniature."""
    if is_tiny:
        backbone: Any = tiny_multi_step("flux1", condition_stride=condition_stride)
        for _, module in backbone.modules():
            nn.Module.to(module, device=device)
        return backbone
    family = find_kind("flux1")
    makers = (lambda: make_transformer(family, family.transformer), lambda: make_autoencoder(family.autoencoder))
    return Flux1Backbone(*(made(make, device, torch.bfloat16) for make in makers), condition_stride=condition_stride)


def with_condition(backbone: Flux1Backbone, stride: int) -> Flux1Backbone:
    parts, tokens = (backbone.transformer, backbone.autoencoder), backbone.text_tokens
    return Flux1Backbone(*parts, condition_stride=stride, text_tokens=tokens)


def latents(backbone: Flux1Backbone, side: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """A state and a condition without values."""
    cells = side // backbone.spec.latent_stride
    shapes = [(batch, backbone.spec.latent_channels, cells // n, cells // n) for n in (1, backbone.condition_stride)]
    return torch.empty(shapes[0], device="meta"), torch.empty(shapes[1], device="meta")


@torch.no_grad()
def count(backbone: Flux1Backbone, side: int, condition: int) -> dict[str, float]:
    """Operations of 28 steps, and bytes of activations, of one picture on the meta device."""
    model = with_condition(backbone, side // condition)
    z, z_lq = latents(model, side)

    def step() -> None:
        model.predict(z, torch.empty(1, device="meta"), z_lq)

    return {"pflop": STEPS * count_flops(step) / 1e15, "activations": peak_bytes(step)}


def count_training(backbone: Flux1Backbone, side: int, batches: Sequence[int]) -> dict[str, Any]:
    """Memory of a step of AS-DPO on the meta device: what is there throughout, and the policy's pass of each batch."""
    network = backbone.transformer
    stack = AdapterStack(network)
    for name, rank in RANKS.items():
        stack.add(name, LORA_TARGETS["flux1"], rank)
    network.to("meta")
    stack.train("policy")
    stack.use("sft", "policy")
    network.enable_gradient_checkpointing()
    trained = nbytes(nn.ParameterList(stack.parameters("policy")))

    def policy(batch: int) -> None:
        z, z_lq = latents(backbone, side, 2 * batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = backbone.predict(z, torch.empty(2 * batch, device="meta"), z_lq)
        torch.autograd.backward(out.square().mean())

    kept = nbytes(network, backbone.autoencoder) + 3 * trained  # gradients and both of AdamW's averages
    passes = {batch: peak_bytes(lambda batch=batch: policy(batch)) - trained for batch in batches}  # gradients count as kept
    return {"side": side, "policy_parameters": trained // 4, "kept": kept, "passes": passes}


def restored_seconds(backbone: Any, side: int, steps: int, rounds: int, clock: Clock) -> dict[str, float]:
    """Seconds of one picture (median) and peak memory, after a short run."""
    lq = torch.rand(1, 3, side // SCALE, side // SCALE, generator=torch.Generator().manual_seed(0)).to(clock.device)

    @torch.no_grad()
    def restore(count_of: int) -> None:
        restore_multi_step(backbone, lq, scale=SCALE, steps=count_of, tile_px=side)

    restore(min(steps, 2))
    clock.forget_peak()
    seconds = statistics.median(clock.time(lambda: restore(steps)) for _ in range(rounds))
    return {"seconds": seconds, "peak_bytes": clock.peak()}


def measure(options: argparse.Namespace, cases: Sequence[tuple[int, int]], clock: Clock) -> dict[str, Any]:
    """Each case in 16 bits with everything on the GPU; then the largest in fewer bits, parts taking turns, within 24 GiB."""
    is_cuda, steps = clock.device.type == "cuda", 2 if options.tiny else STEPS
    rows: dict[str, Any] = {}
    for bits in options.bits:
        backbone = make_flux(clock.device, is_tiny=options.tiny)
        if bits < 16:
            quantize(backbone.transformer, bits)
            if is_cuda:  # from here on: the weights were made where there is room
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(min(1.0, SMALL_MEMORY / torch.cuda.mem_get_info()[1]))
        for side, condition in cases if bits == 16 else cases[-1:]:
            model: Any = with_condition(backbone, side // condition)
            if bits < 16:
                for _, module in model.modules():
                    nn.Module.to(module, device="cpu")
                model = OffloadedMultiStep(model, Residency(clock.device))
            rows[f"{bits} bits, {side}/{condition}"] = restored_seconds(model, side, steps, options.rounds, clock)
        if bits < 16 and is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return rows


def save_random_adapter(network: nn.Module, path: Path, rank: int) -> Path:
    """An adapter of the published layers and that rank, as supervised training leaves it."""
    shapes = expected_state(network, LORA_TARGETS["flux1"], rank)
    state = {name: torch.randn(like.shape) * 1e-3 for name, like in shapes.items()}
    facts = {"backbone": "flux1", "rank": rank, "alpha": float(rank), "targets": list(LORA_TARGETS["flux1"])}
    return save_adapter(path, Adapter(state, facts, source=path.stem))


def train(batch: int, options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Seconds of a step of the recipe `sobolev_dpo` (median, the first one left out) and peak memory."""
    from PIL import Image

    from alignsr.train.recipes import load_config

    side = 64 if options.tiny else 512
    with tempfile.TemporaryDirectory() as place:
        for n in range(3):
            noise = torch.rand(side // 16, side // 16, 3, generator=torch.Generator().manual_seed(n))
            Image.fromarray((noise * 255).byte().numpy()).resize((side, side), Image.Resampling.BICUBIC).save(f"{place}/{n}.png")
        sets = [f'data.folders=["{Path(place).as_posix()}"]', "data.holdout=0", "data.workers=2", f"data.gt_patch_px={side}"]
        sets += [f"run.steps={options.train_steps}", f"run.batch_size={batch}", "run.accumulation_steps=1"]
        sets += ["run.preview_every=0", "run.validate_every=0", f"run.checkpoint_every={options.train_steps}"]
        sets += ["run.export_every=0", 'model.text="none"']
        if not options.tiny:
            network = make_flux("meta").transformer
            files = {name: Path(place) / f"{name}.safetensors" for name in ("sft", "adv")}
            sft, adversary = (save_random_adapter(network, path, RANKS[name]).as_posix() for name, path in files.items())
            sets += ['model.source="random"', f'model.adapter="{sft}"', f'adversary.adapter="{adversary}"']
        recipe, config = load_config("tiny-asasr-flux" if options.tiny else "asasr-flux", sets)
        clock.forget_peak()
        times = StepTimes(clock)
        recipe.train(config, Path(place) / "run", times)
    steps = [after - before for before, after in zip(times.ends, times.ends[1:], strict=False)]
    return {"seconds": statistics.median(steps), "peak_bytes": clock.peak()}


def candidates_per_minute(options: argparse.Namespace) -> dict[str, Any]:
    """Of both models of DP2O-SR; miniatures on a CPU."""
    import candidates

    given = argparse.Namespace(device=options.device, batch=4, rounds=1)
    return {name: candidates.measure(name, given) for name in candidates.PUBLISHED}


def peak_of(device: torch.device) -> float:
    """Published operations per second of the GPU in bfloat16; 0: not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for key, peak in PEAKS.items() if key in name), 0.0)


def report_counts(counted: dict[str, Any]) -> None:
    print(f"FLUX.1-dev, {STEPS} steps, by count; paper on an A800: {PAPER['pflop']} PFLOP, its size is not stated")
    for name, row in counted["cases"].items():
        wanted = f"specification {row['specified']} " if row["specified"] else ""
        print(f"  HQ/condition {name:10} {row['pflop']:9.3f} PFLOP {wanted}activations {row['activations'] / GIB:.2f} GiB")
    parts = ", ".join(f"{bits} bits {value / GIB:.2f}" for bits, value in counted["weights"].items())
    print(f"  weights of the transformer, GiB: {parts}; autoencoder {counted['autoencoder'] / GIB:.2f}")
    worst = max(row["activations"] for row in counted["cases"].values())
    fits = [bits for bits, value in counted["weights"].items() if value + worst < SMALL_MEMORY]
    print(f"  within 24 GiB when parts take turns: {', '.join(map(str, fits))} bits")
    found = counted["training"]
    policy = f"policy of {found['policy_parameters'] / 1e6:.2f} M"
    print(f"AS-DPO at HQ {found['side']}, by count: {policy}, kept {found['kept'] / GIB:.1f} GiB")
    for batch, value in found["passes"].items():
        print(
            f"  batch {batch}: {value / GIB:5.1f} GiB more, {(found['kept'] + value) / GIB:.1f} of {LARGE_MEMORY / GIB:.0f} GiB"
        )


def report_times(counted: dict[str, Any], found: dict[str, Any], peak: float) -> None:
    speed = found["flops_per_second"]
    print(f"measured; the paper: {PAPER['seconds']:.2f} s, {PAPER['gigabytes']} GB, MFU {100 * PAPER['mfu']:.1f} %")
    for name, row in found["pictures"].items():
        work = 1e15 * counted["cases"][name.split(", ")[1]]["pflop"] / row["seconds"]
        shares = f"{100 * work / peak:.1f} % of the peak, " if peak else ""
        print(
            f"  {name:22} {row['seconds']:8.2f} s, peak {row['peak_bytes'] / GIB:5.1f} GiB, MFU {shares}"
            f"{100 * work / speed:.1f} % of a product of matrices"
        )
    for batch, row in found["training"].items():
        print(f"  AS-DPO step, batch {batch}: {row['seconds']:.2f} s, peak {row['peak_bytes'] / GIB:.1f} GiB")


def count_all(options: argparse.Namespace, cases: Sequence[tuple[int, int]]) -> dict[str, Any]:
    backbone = make_flux("meta", is_tiny=options.tiny)
    rows: dict[str, Any] = {}
    for side, condition in cases:
        wanted = None if options.tiny else SPECIFIED.get((side, condition))
        rows[f"{side}/{condition}"] = {**count(backbone, side, condition), "specified": wanted}
    weights = {bits: stored_bytes(backbone.transformer, bits) for bits in BITS}
    coder = nbytes(backbone.autoencoder)
    training = count_training(backbone, 64 if options.tiny else 512, options.batches)
    return {"cases": rows, "weights": weights, "autoencoder": coder, "training": training}


def case(text: str) -> tuple[int, int]:
    side, _, condition = text.partition("/")
    sides = (int(side), int(condition or side))
    if sides[0] not in (sides[1], 2 * sides[1]):
        raise argparse.ArgumentTypeError(f"expected HQ/condition, the condition as large or half as large, got {text}")
    return sides


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", type=case, default=None, metavar="HQ/CONDITION", help="the largest last")
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS), help="of the weights, measured")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="pairs of a training step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=4, help="steps of each measured training; 0 leaves it out")
    parser.add_argument("--candidates", action="store_true", help="candidates per minute of DP2O-SR's models too")
    parser.add_argument("--tiny", action="store_true", help="miniatures: shows that the program runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    cases: Sequence[tuple[int, int]] = options.cases or (((64, 32), (64, 64)) if options.tiny else CASES)

    device = torch.device(options.device)
    counted = count_all(options, cases)
    report_counts(counted)
    found: dict[str, Any] | None = None
    if options.tiny or device.type == "cuda":
        clock = Clock(device)
        dtype = torch.float32 if options.tiny else torch.bfloat16
        found = {"flops_per_second": product_speed(clock, dtype, 256 if options.tiny else 8192)}
        found["pictures"] = measure(options, cases, clock)
        found["training"] = {batch: train(batch, options, clock) for batch in (options.batches if options.train_steps else ())}
        report_times(counted, found, peak_of(device))
    else:
        print("latency, peak memory, MFU; the mode of 24 GiB; training steps: not measured (no GPU)")
    if options.candidates:
        rates = candidates_per_minute(options)
        for name, row in rates.items():
            said = f"{row['candidates_per_minute']:.1f} candidates of {row['side']} px per minute"
            print(f"{name}: {said}{'' if row['side'] == 512 else '; full size: not measured'}")
    if options.json:
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        result = {"device": place, "counted": counted, "measured": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
