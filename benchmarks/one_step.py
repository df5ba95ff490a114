"""One-step restoration by the full-size models: counted work and memory and, on a GPU, time beside its bound. Random weights.

GPU: python benchmarks/one_step.py --device cuda [--kind flux2_klein z_image] [--compile] [--json FILE]
CPU: python benchmarks/one_step.py                counts and the memory plan; what needs a GPU says "not measured"
     python benchmarks/one_step.py --tiny         the whole program on miniatures, to see that it runs; its times mean nothing

Counted on tensors without values: products (a multiply-add is two operations) and the memory of what lives at once. The bound is
that work over the speed of a measured product of two 8192 x 8192 matrices in bfloat16. Measured is the real path: the picture is
enlarged, Qwen3-VL looks at it, the projector brings its tokens over, the autoencoder encodes, the transformer (a rank-256 LoRA
merged) makes its step, the autoencoder decodes, tiles are blended. Targets: the transformer's step within 1.6 times its bound,
everything within 2 times the bound of everything, 4096 x 4096 within 24 GiB with parts taking turns on the device.

Training is the recipe `one_step_distill` as published (LoRA, projector, language model, CLIP critic, LPIPS) at batch 1, all
networks random; the first step is left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.latent import compile_blocks, make_transformer
from alignsr.core.backbones.latent import tiny as tiny_backbone
from alignsr.core.backbones.offload import OffloadedBackbone, Residency
from alignsr.core.batch import picture_bytes, restore_picture
from alignsr.core.borrowed import nbytes
from alignsr.core.compat import import_transformers
from alignsr.core.conditioning import VLM_WIDTH, TokenAdapter, VisionLanguageModel, VLMConditioner, VLMEncoder
from alignsr.core.conditioning.tiny import TINY_WIDTH, tiny_tokenizer, tiny_vlm
from alignsr.core.conditioning.vision import vision_sizes
from alignsr.core.counting import count_flops, peak_bytes, vlm_flops
from alignsr.core.lora import LORA_TARGETS, Adapter, expected_state
from alignsr.core.networks.clip_critic import random_clip_critic, tiny_clip_critic
from alignsr.core.networks.feature_maps import ClipMaps, clip_maps
from alignsr.core.records import Conditioning
from alignsr.core.tiling import plan
from alignsr.train import conditioning
from alignsr.train.hooks import SilentHooks
from alignsr.train.recipes import load_config, one_step_distill

SCALE, KEPT_TOKENS = 4, 68
STEP_TARGET, WHOLE_TARGET, MEMORY_TARGET = 1.6, 2.0, 24 * 2**30
STAGES = ("vlm", "encode", "step", "decode")
SPECIFIED = {"flux2_klein": 31, "z_image": 56}  # TFLOP of the step, strsr.md section 4
# Qwen3-VL-4B-Instruct as published: strsr.md section 1.3
TEXT = {
    **{"vocab_size": 151_936, "hidden_size": VLM_WIDTH, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 262_144, "tie_word_embeddings": True},
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    },
}
VISION = {
    **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "in_channels": 3, "patch_size": 16},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": VLM_WIDTH, "num_position_embeddings": 2304},
    "deepstack_visual_indexes": [5, 11, 17],
}


def vlm_config(tokenizer: Any) -> Any:
    """The published sizes, with the numbers that a tokenizer gives the special tokens."""
    marks = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    numbers = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    return import_transformers().Qwen3VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=True, **numbers)


def made(make: Callable[[], Any], device: str | torch.device, dtype: torch.dtype) -> Any:
    """A random frozen module, made where it works and in its precision, so that a large one is never there twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = make()
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def make_backbone(kind: str, device: str | torch.device, dtype: torch.dtype, is_tiny: bool) -> Any:
    """The published model with random weights, or the miniature."""
    if is_tiny:
        return tiny_backbone(kind)
    family = LATENT_KINDS[kind]
    transformer = made(lambda: make_transformer(family, family.transformer), device, dtype)
    return family.backbone(transformer, made(lambda: make_autoencoder(family.autoencoder), device, dtype), name=kind)


def make_vlm(device: str | torch.device, dtype: torch.dtype, is_tiny: bool) -> VisionLanguageModel:
    """Qwen3-VL with random weights; the tiny tokenizer makes as many tokens of the prompt as the real one."""
    if is_tiny:
        return tiny_vlm()
    tokenizer = tiny_tokenizer()
    whole = made(lambda: import_transformers().Qwen3VLModel(vlm_config(tokenizer)), device, dtype)
    return VisionLanguageModel(whole, tokenizer)


def stages_of(backbone: Any, side: int) -> dict[str, Callable[[], object]]:
    """What the three parts do for one tile, on the meta device."""
    spec, place = backbone.spec, torch.device("meta")
    cells = side // spec.latent_stride
    z, told = torch.empty(1, spec.latent_channels, cells, cells, device=place), torch.empty(1, KEPT_TOKENS, spec.conditioning_dim)
    image, sigma, tokens = torch.empty(1, 3, side, side, device=place), torch.empty(1, device=place), Conditioning(told.to(place))
    return {
        "encode": lambda: backbone.encode(image),
        "step": lambda: backbone.velocity(z, sigma, z, tokens),
        "decode": lambda: backbone.decode(z),
    }


@torch.no_grad()
def count(kind: str, side: int, is_tiny: bool = False) -> dict[str, dict[str, float]]:
    """Stage -> operations, bytes of weights in bfloat16 and of activations, for one tile of `side` px."""
    backbone = make_backbone(kind, "meta", torch.bfloat16, False) if not is_tiny else tiny_backbone(kind)
    modules = dict(backbone.modules())
    if is_tiny:
        for module in modules.values():
            nn.Module.to(module, device="meta", dtype=torch.bfloat16)
    weights = {"encode": modules["vae"], "step": modules["transformer"], "decode": modules["vae"]}
    rows: dict[str, dict[str, float]] = {}
    for name, run in stages_of(backbone, side).items():
        rows[name] = {"flops": count_flops(run), "weights": nbytes(weights[name]), "activations": peak_bytes(run)}
    model = make_vlm("meta", torch.bfloat16, is_tiny)
    height, width = vision_sizes(side // SCALE, side // SCALE, parity=False)[-1]
    flops = vlm_flops(model.model.config, height, width, KEPT_TOKENS)
    parameters = sum(p.numel() for p in model.model.parameters())
    rows["vlm"] = {"flops": flops, "weights": 2 * parameters, "activations": 0}  # of a few hundred tokens: megabytes
    return {name: rows[name] for name in STAGES}


def memory_plan(kind: str, side: int, is_tiny: bool = False) -> dict[str, Any]:
    """What lies on the device in each stage of a `side` x `side` result when the parts take turns."""
    backbone = tiny_backbone(kind) if is_tiny else make_backbone(kind, "meta", torch.bfloat16, False)
    spec = backbone.spec
    tiles = plan(side, side, min(spec.tile_px, side), spec.overlap_px if side > spec.tile_px else 0, spec.size_multiple)
    rows = count(kind, tiles.tile_size[0], is_tiny)
    cells = (side // spec.latent_stride) ** 2 * tiles.pixel_factor
    picture = picture_bytes(torch.empty(1, 3, side // SCALE, side // SCALE, device="meta"), SCALE)
    latents = int(2 * 4 * spec.latent_channels * cells)
    stages = {name: int(row["weights"] + row["activations"]) + picture + latents for name, row in rows.items()}
    return {
        "side": side,
        "tiles": len(tiles.starts),
        "tile_px": tiles.tile_size[0],
        "picture": picture,
        "latents": latents,
        **stages,
    }


class Clock:
    """Runs things and says how long they took, with the device waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            results: list[Any] = []
            self.seconds[stage] += self.time(lambda: results.append(function(*arguments, **options)))
            return results[0]

        return timed

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def product_speed(clock: Clock, dtype: torch.dtype, size: int, rounds: int = 20) -> float:
    """Operations per second of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / min(clock.time(lambda: a @ b) for _ in range(rounds))


def merge_random_lora(backbone: Any, kind: str, rank: int) -> None:
    """As at load: every adapted layer gets B A of that rank."""
    shapes = expected_state(backbone.transformer, LORA_TARGETS[kind], rank)
    place = next(backbone.transformer.parameters()).device
    state = {name: torch.randn(shape.shape, device=place) * 1e-3 for name, shape in shapes.items()}
    Adapter(state, {"backbone": kind, "rank": rank, "targets": list(LORA_TARGETS[kind])}).merge_into(backbone.transformer)


def measure(kind: str, options: argparse.Namespace, clock: Clock, dtype: torch.dtype) -> dict[str, Any]:
    """Latency, peak memory and shares of a small result, then of a large one with parts taking turns."""
    result: dict[str, Any] = {}
    backbone = make_backbone(kind, clock.device, dtype, options.tiny)
    result["lora_merge_seconds"] = clock.time(lambda: merge_random_lora(backbone, kind, 4 if options.tiny else 256))
    if options.compile:
        compile_blocks(backbone.transformer)
    if options.channels_last:
        backbone.autoencoder.to(memory_format=torch.channels_last)
    model = make_vlm(clock.device, dtype, options.tiny)
    projector = TokenAdapter(TINY_WIDTH if options.tiny else VLM_WIDTH, backbone.spec.conditioning_dim).to(clock.device)

    def restored(lq: Tensor, way: Any, encoder: VLMEncoder) -> Tensor:
        told = VLMConditioner(encoder, projector, lq, per_tile=True)
        return restore_picture(way, lq, scale=SCALE, conditioning=told, device=clock.device, notify=print).sr

    lq = torch.rand(1, 3, options.side // SCALE, options.side // SCALE, generator=torch.Generator().manual_seed(0))
    encoder = VLMEncoder(lambda: model, clock.device, "device", cache_size=0)
    for _ in range(2):
        restored(lq, backbone, encoder)
    clock.forget_peak()
    result["seconds"] = statistics.median(clock.time(lambda: restored(lq, backbone, encoder)) for _ in range(options.rounds))
    result["peak_bytes"] = clock.peak()
    kept = {name: getattr(backbone, name) for name in ("encode", "velocity", "decode")}
    for name, stage in (("encode", "encode"), ("velocity", "step"), ("decode", "decode")):
        setattr(backbone, name, clock.wrap(stage, kept[name]))
    look, looking = VisionLanguageModel.embed, clock.wrap("vlm", VisionLanguageModel.embed)
    VisionLanguageModel.embed = looking  # type: ignore[method-assign]
    try:
        clock.seconds = dict.fromkeys(STAGES, 0.0)
        for _ in range(options.rounds):
            restored(lq, backbone, encoder)
    finally:
        VisionLanguageModel.embed = look  # type: ignore[method-assign]
        for name, method in kept.items():
            setattr(backbone, name, method)
    result["stage_seconds"] = {stage: value / options.rounds for stage, value in clock.seconds.items()}
    if options.large:
        for module in (model.model, *(module for _, module in backbone.modules())):
            nn.Module.to(module, device="cpu")
        turns = Residency(clock.device)
        in_turns = OffloadedBackbone(backbone, turns)
        encoder = VLMEncoder(lambda: model, turns=turns, cache_size=0)
        lq = torch.rand(1, 3, options.large // SCALE, options.large // SCALE, generator=torch.Generator().manual_seed(1))
        clock.forget_peak()
        result["large_seconds"] = clock.time(lambda: restored(lq, in_turns, encoder))
        result["large_peak_bytes"] = clock.peak()
    return result


class StepTimes(SilentHooks):
    """When each step of a training run was over."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.ends = clock, list[float]()

    def progress(self, step: int, total: int, logs: Any) -> None:
        self.clock.wait()
        self.ends.append(time.perf_counter())


def make_critic(device: str | torch.device, is_tiny: bool = False) -> ClipMaps:
    """What the published critic looks through, ConvNeXt-XXLarge's image tower, untrained; float32, as in the recipe."""
    return clip_maps(tiny_clip_critic() if is_tiny else made(random_clip_critic, device, torch.float32))


@contextmanager
def untrained(device: torch.device, is_tiny: bool) -> Iterator[None]:
    """Where the recipe would open the files of the language model and of the critic, it gets the same networks untrained."""
    with (
        patch.object(conditioning, "find_folder", lambda *_: Path()),
        patch.object(conditioning, "load_vlm", lambda *_: make_vlm(device, torch.bfloat16, is_tiny)),
        patch.object(one_step_distill, "build_features", lambda *_: make_critic(device, is_tiny)),
    ):
        yield


def train(kind: str, options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Seconds of a training step at batch 1 (median, the first one left out) and peak memory."""
    name = f"strsr-{kind.replace('2_', '2-').replace('z_image', 'z-image')}-stage1"
    side = options.train_side
    with tempfile.TemporaryDirectory() as place, untrained(clock.device, options.tiny):
        for n in range(3):
            noise = torch.rand(side // 16, side // 16, 3, generator=torch.Generator().manual_seed(n))
            Image.fromarray((noise * 255).byte().numpy()).resize((side, side), Image.Resampling.BICUBIC).save(f"{place}/{n}.png")
        sets = [f'data.folders=["{Path(place).as_posix()}"]', "data.holdout=0", "data.pair_pool=0", "data.workers=2"]
        sets += [f"data.gt_patch_px={side}", f"run.steps={options.train_steps}", "run.batch_size=1", "run.preview_every=0"]
        sets += ["run.validate_every=0", f"run.checkpoint_every={options.train_steps}", f"optimizer.bits={options.bits}"]
        sets += [f'model.source="{"tiny" if options.tiny else "random"}"', 'losses.lpips.vgg="random"']
        if options.tiny:
            sets += ["lora.rank=4", f"conditioning.width={TINY_WIDTH}"]
        recipe, config = load_config(name, sets)
        clock.forget_peak()
        times = StepTimes(clock)
        recipe.train(config, Path(place) / "run", times)
    steps = [after - before for before, after in zip(times.ends, times.ends[1:], strict=False)]
    return {"seconds": statistics.median(steps), "peak_bytes": clock.peak()}


def report(kind: str, counted: dict[str, Any], plan_of: dict[str, Any], found: dict[str, Any] | None, options: Any) -> None:
    """The tables of one model."""
    gib = 2**30
    print(f"\n{kind}: {options.side} x {options.side} from {options.side // SCALE} x {options.side // SCALE}, one tile")
    heads = f"{'stage':8} {'TFLOP':>8} {'weights GiB':>12} {'activations GiB':>16}"
    print(f"{heads} {'seconds':>10} {'bound':>8} {'ratio':>7} {'share':>7}")
    speed = found["flops_per_second"] if found else 0.0
    for stage, row in counted.items():
        measured = f"{'not measured':>35}"
        if found:
            seconds, bound = found["stage_seconds"][stage], row["flops"] / speed
            share = seconds / found["seconds"]
            measured = f"{seconds:10.4f} {bound:8.4f} {seconds / bound:7.2f} {100 * share:6.1f}%"
        print(f"{stage:8} {row['flops'] / 1e12:8.2f} {row['weights'] / gib:12.2f} {row['activations'] / gib:16.2f} {measured}")
    total = sum(row["flops"] for row in counted.values())
    print(f"all      {total / 1e12:8.2f}; specification for the step: about {SPECIFIED[kind]} TFLOP")
    largest = max(plan_of[stage] for stage in STAGES)
    parts, pictures = (
        ", ".join(f"{stage} {plan_of[stage] / gib:.1f}" for stage in STAGES),
        plan_of["picture"] + plan_of["latents"],
    )
    side, tiles, limit = plan_of["side"], plan_of["tiles"], MEMORY_TARGET / gib
    print(f"plan of {side} x {side}: {tiles} tiles of {plan_of['tile_px']} px, parts in turns, GiB: {parts},")
    print(f"of which pictures and latents {pictures / gib:.1f}; at most {largest / gib:.1f} of {limit:.0f} GiB")
    if not found:
        print("latency, peak memory and ratios: not measured (no GPU)")
        return
    step = found["stage_seconds"]["step"] * speed / counted["step"]["flops"]
    whole = found["seconds"] * speed / total
    print(f"product of matrices: {speed / 1e12:.1f} TFLOP/s; LoRA merged in {found['lora_merge_seconds']:.2f} s")
    print(f"step: {step:.2f} x its bound (target {STEP_TARGET}); everything: {whole:.2f} x (target {WHOLE_TARGET})")
    print(f"{found['seconds']:.3f} s, peak {found['peak_bytes'] / gib:.1f} GiB, the language model included in both")
    if "large_seconds" in found:
        peak, limit = found["large_peak_bytes"] / gib, MEMORY_TARGET / gib
        print(f"{options.large} x {options.large}: {found['large_seconds']:.1f} s, peak {peak:.1f} GiB (target {limit:.0f})")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=list(LATENT_KINDS), default=list(LATENT_KINDS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--side", type=int, default=0, help="of the small result in px; default 1024 (tiny: 64)")
    parser.add_argument("--large", type=int, default=-1, help="of the large result; default 4096 (tiny: 128), 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--channels-last", action="store_true", help="convolutions of the autoencoder in that memory format")
    parser.add_argument("--train-steps", type=int, default=4, help="steps of the training run; 0 leaves it out")
    parser.add_argument("--train-side", type=int, default=0, help="of the crops in px; default 1024 (tiny: 128)")
    parser.add_argument("--bits", type=int, choices=(32, 8), default=32, help="of the optimiser's state")
    parser.add_argument("--tiny", action="store_true", help="miniatures: shows that the program runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    options.side = options.side or (64 if options.tiny else 1024)
    options.train_side = options.train_side or (128 if options.tiny else 1024)
    options.large = (128 if options.tiny else 4096) if options.large < 0 else options.large

    device = torch.device(options.device)
    runs = options.tiny or device.type == "cuda"
    dtype = torch.bfloat16 if device.type == "cuda" and not options.tiny else torch.float32
    results: dict[str, Any] = {}
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def save() -> None:  # after every part: what is measured stays when the next one fails
        if options.json:
            report_of = {"settings": settings, "device": place, "models": results}
            options.json.write_text(json.dumps(report_of, indent=2) + "\n", encoding="utf-8")

    for kind in options.kind:
        counted = count(kind, options.side, options.tiny)
        plan_of = memory_plan(kind, options.large or 4096, options.tiny)
        found: dict[str, Any] | None = None
        if runs:
            clock = Clock(device)
            speed = product_speed(clock, dtype, 256 if options.tiny else 8192)
            found = {"flops_per_second": speed, **measure(kind, options, clock, dtype)}
        report(kind, counted, plan_of, found, options)
        results[kind] = {"counted": counted, "plan": plan_of, "measured": found}
        save()
        if found is not None and options.train_steps:
            row = found["train"] = train(kind, options, clock)
            print(f"training step, batch 1: {row['seconds']:.2f} s, peak {row['peak_bytes'] / 2**30:.1f} GiB")
            save()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
