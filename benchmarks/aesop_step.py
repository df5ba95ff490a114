"""One training step of AESOP (RRDB generator, VGG discriminator, all four losses) beside the straightforward order of operations.

python benchmarks/aesop_step.py [--batch 4] [--patch 128] [--blocks 23] [--steps 2] [--threads 1] [--device cpu]
    [--channels-last] [--bf16] [--compile] [--checkpoint] [--autoencoder FILE] [--vgg FILE] [--precision-study] [--json FILE]
GPU: python benchmarks/aesop_step.py --device cuda --batch 16 --patch 256 --steps 6 --channels-last --bf16 --compile

`straightforward` follows specification aesop.md section 1: every loss on one graph, plain frozen networks, unfolded windows in
the artifact map, three discriminator passes for its own step. `lean` is ours: lean twins, each frozen loss's gradient at once,
box filters, two discriminator passes. Each flag adds a row on top of the one before, so the table shows which change gives what
and what error it costs: the largest relative gap of a loss term and the gap of d loss / d sr, both in the first step.
In that step the averaged network equals the live one, so the artifact map hangs on ties of the two; where only one of them is
compiled, rounding decides them, and the gap of the artifact term (up to a half) says nothing of later steps.

Every row runs in a process of its own on the same weights and pictures. Memory is the high-water mark of the process over what it
held before the first step (Linux: VmHWM, reset before it): all that a machine must have, gradients, optimiser states and
temporaries of the kernels included. glibc is told to give freed blocks of 1 MB and more back at once, for every row alike;
without that, fragments of its heap blur the mark. On CUDA it is the allocator's maximum.

`--precision-study` fits a small auto-encoder (about a minute) and shows what bf16 costs L_AESOP itself, which untrained weights
cannot: by plain autocast, and by lean twins, which keep the convolutions from and to the image in float32.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignsr.core.frozen import lean
from alignsr.core.losses import LAYERS_SYNTHETIC, aesop_loss
from alignsr.core.networks.autoencoder import AutoEncoder
from alignsr.core.networks.discriminators import VGGDiscriminator
from alignsr.core.networks.rrdb import RRDBNet
from alignsr.core.resize import imresize
from alignsr.train.config import from_mapping
from alignsr.train.loss_networks import build_autoencoder, build_vgg19
from alignsr.train.losses import LossesConfig, LossStack

MEMORY_LIMIT = 0.75  # of the straightforward step
TOLERANCE = 1e-5  # relative, of every loss term in fp32


@dataclass(frozen=True)
class Variant:
    """How a step is done."""

    name: str
    is_lean: bool = True
    channels_last: bool = False
    loss_precision: str = "fp32"  # inside the auto-encoder and VGG19
    precision: str = "fp32"  # autocast of generator and discriminator
    compiled: bool = False
    checkpointed: bool = False


@dataclass
class Parts:
    """Everything a step works on."""

    generator: nn.Module
    average: nn.Module
    critic: nn.Module
    optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    stack: LossStack
    autoencoder: nn.Module  # plain, for the straightforward step
    features: nn.Module
    lq: Tensor
    gt: Tensor
    autocast: Any


def variants(options: argparse.Namespace) -> list[Variant]:
    """The ladder: each flag on top of the rows before it."""
    rows = [Variant("straightforward", is_lean=False), Variant("lean")]
    flags = {
        "checkpoint": ("+ checkpointed generator", {"checkpointed": True}),
        "channels_last": ("+ channels last", {"channels_last": True}),
        "bf16": ("+ bf16 in the losses' networks", {"loss_precision": "bf16"}),
        "bf16_all": ("+ bf16 everywhere", {"precision": "bf16"}),
        "compile": ("+ compile", {"compiled": True}),
    }
    for flag, (name, change) in flags.items():
        if getattr(options, "bf16" if flag == "bf16_all" else flag):
            rows.append(replace(rows[-1], name=name, **change))
    return rows


def photographs(batch: int, patch: int) -> Tensor:
    """Patches of a real photograph, [batch, 3, patch, patch]."""
    from skimage import data

    picture = torch.from_numpy(data.astronaut().copy()).movedim(-1, 0).float() / 255
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 512 - patch + 1, (batch, 2), generator=generator).tolist()
    return torch.stack([picture[:, y : y + patch, x : x + patch] for y, x in corners])


def losses_config(options: argparse.Namespace, precision: str) -> LossesConfig:
    return from_mapping(
        LossesConfig,
        {
            "aesop": {
                "autoencoder": options.autoencoder,
                "options": {"decoder_options": {"blocks": options.blocks}},
                "precision": precision,
            },
            "artifact": {},
            "perceptual": {"vgg": options.vgg, "precision": precision},
            "adversarial": {},
        },
    )


def build(variant: Variant, options: argparse.Namespace) -> Parts:
    torch.manual_seed(0)
    device = torch.device(options.device)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    generator: nn.Module = RRDBNet(blocks=options.blocks, checkpoint_blocks=variant.checkpointed).to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    critic: nn.Module = VGGDiscriminator(options.patch).to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(generator).requires_grad_(False).eval()
    config = losses_config(options, variant.loss_precision)
    stack = LossStack(config, device, scale=4, channels_last=variant.channels_last)
    if variant.is_lean:
        autoencoder, features = nn.Identity(), nn.Identity()
    else:
        assert config.aesop is not None
        assert config.perceptual is not None
        autoencoder = build_autoencoder(config.aesop, 4).requires_grad_(False).eval().to(device)
        features = build_vgg19(config.perceptual).requires_grad_(False).eval().to(device)
        stack.autoencoder = stack.features = None
    gt = photographs(options.batch, options.patch)
    lq = imresize(gt, 0.25)
    coder = stack.autoencoder if variant.is_lean else autoencoder
    if options.autoencoder == "random" and isinstance(coder, AutoEncoder):
        enliven(coder, gt.to(device))
    if variant.compiled:
        for module in (generator, critic, stack.autoencoder, stack.features):
            assert module is not None
            module.compile()
    half = torch.autocast(device.type, torch.bfloat16) if variant.precision == "bf16" else nullcontext()
    adam = [torch.optim.Adam(m.parameters(), 1e-4, (0.9, 0.99), fused=variant.is_lean or None) for m in (generator, critic)]
    gt, lq = (x.to(device).contiguous(memory_format=layout) for x in (gt, lq))
    return Parts(generator, average, critic, *adam, stack, autoencoder, features, lq, gt, half)


@torch.no_grad()
def enliven(network: AutoEncoder, gt: Tensor) -> None:
    """Scale both last layers so that bottleneck and output vary as much as the picture: untrained, they are nearly constant."""
    spread = gt.std((2, 3)).mean()
    network.get_parameter("conv_last.1.weight").mul_(spread / network.encode(gt).std((2, 3)).mean())
    network.get_parameter("decoder.conv_last.weight").mul_(spread / network(gt).std((2, 3)).mean())


def unfolded_artifact_loss(sr: Tensor, gt: Tensor, sr_ema: Tensor) -> Tensor:
    """Specification 2.4 read literally: every window laid out."""
    residual, residual_ema = ((gt - x).abs().sum(1, keepdim=True) for x in (sr, sr_ema))
    whole = (residual.var((1, 2, 3), keepdim=True) + 1e-12) ** 0.2
    windows = F.unfold(F.pad(residual, (3, 3, 3, 3), mode="reflect"), 7)
    weight = whole * windows.var(1, keepdim=True).view_as(residual)
    weight = torch.where(residual < residual_ema, 0.0, weight)
    return (weight * sr - weight * gt).abs().mean()


def straightforward_step(parts: Parts) -> tuple[dict[str, float], Tensor]:
    """Specification 1, line by line; returns the terms and d loss / d sr."""
    bce = F.binary_cross_entropy_with_logits
    gt, critic = parts.gt, parts.critic
    ones, zeros = torch.ones_like(gt[:, 0, 0, :1]), torch.zeros_like(gt[:, 0, 0, :1])
    critic.requires_grad_(False)
    sr = parts.generator(parts.lq)
    sr.retain_grad()
    with torch.no_grad():
        sr_ema = parts.average(parts.lq)
        target = parts.autoencoder(gt)
    terms = {"aesop": (parts.autoencoder(sr) - target).abs().mean(), "artifact": unfolded_artifact_loss(sr, gt, sr_ema)}
    with torch.no_grad():
        wanted = parts.features(gt)
    found = parts.features(sr)
    terms["perceptual"] = sum((w * (found[k] - wanted[k]).abs().mean() for k, w in LAYERS_SYNTHETIC.items()), torch.zeros(()))
    real, fake = critic(gt).detach(), critic(sr)
    terms["adversarial"] = (bce(real - fake.mean(), zeros) + bce(fake - real.mean(), ones)) / 2
    total = terms["aesop"] + terms["artifact"] + terms["perceptual"] + 0.005 * terms["adversarial"]
    parts.optimizer.zero_grad()
    total.backward()
    parts.optimizer.step()
    critic.requires_grad_(True)
    parts.critic_optimizer.zero_grad()
    fake, real = critic(sr).detach(), critic(gt)
    terms["real"] = bce(real - fake.mean(), ones) / 2
    terms["real"].backward()
    fake = critic(sr.detach())
    terms["fake"] = bce(fake - real.mean().detach(), zeros) / 2
    terms["fake"].backward()
    parts.critic_optimizer.step()
    update_average(parts)
    assert sr.grad is not None
    return {name: float(value.detach()) for name, value in terms.items()}, sr.grad


def our_step(parts: Parts) -> tuple[dict[str, float], Tensor]:
    """The same step through the loss stack."""
    parts.critic.requires_grad_(False)
    with torch.no_grad(), parts.autocast:
        sr_ema = parts.average(parts.lq)
    with parts.autocast:
        sr = parts.generator(parts.lq)
        sr.retain_grad()
        terms = parts.stack.generator_terms(sr, parts.gt, sr_ema, parts.critic)
    values = dict(terms.values)
    terms.total().mean().backward()
    parts.critic.requires_grad_(True)
    with parts.autocast:
        critic_terms = parts.stack.critic_terms(parts.critic, sr, parts.gt)
    values |= critic_terms.values
    critic_terms.total().mean().backward()
    for optimizer in (parts.optimizer, parts.critic_optimizer):  # both at the end, as the recipe does
        optimizer.step()
        optimizer.zero_grad()
    update_average(parts)
    assert sr.grad is not None
    return {name: float(value.detach().mean()) for name, value in values.items()}, sr.grad


@torch.no_grad()
def update_average(parts: Parts) -> None:
    torch._foreach_lerp_(list(parts.average.parameters()), list(parts.generator.parameters()), 0.001)


class PeakMemory:
    """Bytes above what was held when it was made."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device.startswith("cuda")
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            if sys.platform == "linux":
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM <- VmRSS
            self.before = self._resident()

    def _status(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    def _resident(self) -> int:
        return self._status("VmRSS:") if sys.platform == "linux" else _highest_resident()

    def peak(self) -> int:
        if self.is_cuda:
            return torch.cuda.max_memory_allocated() - self.before
        return (self._status("VmHWM:") if sys.platform == "linux" else _highest_resident()) - self.before


def _highest_resident() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(variant: Variant, options: argparse.Namespace, result: Path) -> None:
    """Run one row in this process and write its figures."""
    torch.set_num_threads(options.threads)
    parts = build(variant, options)
    step = our_step if variant.is_lean else straightforward_step
    memory = PeakMemory(options.device)
    terms: list[dict[str, float]] = []
    seconds: list[float] = []
    processor: list[float] = []
    grad = torch.zeros(0)
    for index in range(options.steps):
        started, used = time.perf_counter(), time.process_time()
        values, slope = step(parts)
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
        terms.append(values)
        grad = slope.float().cpu().clone() if index == 0 else grad
    torch.save(
        {
            "terms": terms,
            "seconds": seconds,
            "processor": processor,
            "peak_bytes": memory.peak(),
            "grad": grad,
            **asdict(variant),
        },
        result,
    )


def run_apart(variant: Variant, argv: Sequence[str]) -> dict[str, Any]:
    """Run one row in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.pt"
        command = [sys.executable, __file__, *argv, "--worker", json.dumps(asdict(variant)), str(result)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
        subprocess.run(command, check=True, env=environment)
        return torch.load(result, weights_only=True)


def summary(row: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    gaps = {name: abs(value - base["terms"][0][name]) / abs(base["terms"][0][name]) for name, value in row["terms"][0].items()}
    later = [
        abs(value - base["terms"][index][name]) / abs(base["terms"][index][name])
        for index in range(1, len(row["terms"]))
        for name, value in row["terms"][index].items()
    ]
    skip = 1 if len(row["seconds"]) > 1 else 0  # the first step warms up
    return {
        "name": row["name"],
        "peak_mb": round(row["peak_bytes"] / 1e6, 1),
        "memory_ratio": round(row["peak_bytes"] / base["peak_bytes"], 4),
        "seconds": round(statistics.median(row["seconds"][skip:]), 4),
        "speed_up": round(statistics.median(base["seconds"][skip:]) / statistics.median(row["seconds"][skip:]), 3),
        "processor_speed_up": round(statistics.median(base["processor"][skip:]) / statistics.median(row["processor"][skip:]), 3),
        "loss_gaps": gaps,
        "largest_loss_gap": max(gaps.values()),
        "largest_loss_gap_later": max(later, default=0.0),
        "gradient_gap": float((row["grad"] - base["grad"]).norm() / base["grad"].norm()),
        "terms": row["terms"],
    }


def fitted_autoencoder(steps: int = 300) -> AutoEncoder:
    """A small auto-encoder, trained by L_HR + L_LR on 32-px patches of a photograph."""
    torch.manual_seed(0)
    network = AutoEncoder(features=48, blocks=1, growth=16, decoder_options={"features": 32, "blocks": 1, "growth": 16})
    optimizer = torch.optim.Adam(network.parameters())
    pictures = photographs(8 * steps, 32)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        gt = pictures[8 * step : 8 * step + 8]
        z = network.encode(gt)
        loss = (network.decode(z) - gt).abs().mean() + (z - imresize(gt, 0.25)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False).eval()


def precision_study() -> list[dict[str, Any]]:
    """The error of L_AESOP and of its gradient in bf16, on errors of the kinds and sizes that training meets."""
    network = fitted_autoencoder()
    gt = photographs(8, 64)
    noise = 0.05 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cases = {
            "texture 0.05": gt + noise,
            "bicubic": F.interpolate(imresize(gt, 0.25), scale_factor=4, mode="bicubic"),
            "AE(HR)": network(gt),
            "colour 0.01": gt + 0.01,
        }
    rows: list[dict[str, Any]] = []
    for case, image in cases.items():
        figures: list[tuple[Tensor, Tensor]] = []
        for coder, dtype in ((network, torch.float32), (network, torch.bfloat16), (lean(network), torch.bfloat16)):
            sr = image.clone().requires_grad_()
            values = aesop_loss(sr, gt, coder, dtype=dtype)
            (grad,) = torch.autograd.grad(values.sum(), sr)
            figures.append((values.detach(), grad))
        (exact, slope), *others = figures
        for name, (values, grad) in zip(("plain autocast", "lean"), others, strict=True):
            rows.append(
                {
                    "sr": case,
                    "how": name,
                    "loss": float(exact.mean()),
                    "loss_gap": float(((values - exact).abs() / exact).mean()),
                    "gradient_gap": float((grad - slope).norm() / slope.norm()),
                    "gradient_cosine": float(F.cosine_similarity(grad.flatten(), slope.flatten(), dim=0)),
                }
            )
    return rows


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--batch", type=int, default=4)
    result.add_argument("--patch", type=int, default=128, help="side of the ground-truth patches; published: 128, 192 and 256")
    result.add_argument("--blocks", type=int, default=23, help="RRDBs of the generator and of an untrained decoder")
    result.add_argument("--steps", type=int, default=2, help="the first one warms up")
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--device", default="cpu")
    result.add_argument("--checkpoint", action="store_true", help="add a row: recompute the generator's blocks")
    result.add_argument("--channels-last", action="store_true", help="add a row: channels-last memory format")
    result.add_argument("--bf16", action="store_true", help="add two rows: bf16 in the losses' networks, then everywhere")
    result.add_argument("--compile", action="store_true", help="add a row: torch.compile (needs a C++ compiler)")
    result.add_argument("--autoencoder", default="random", help="weight file; untrained by default")
    result.add_argument("--vgg", default="random", help="weight file; untrained by default")
    result.add_argument("--precision-study", action="store_true", help="also what bf16 costs L_AESOP of a fitted auto-encoder")
    result.add_argument("--json", type=Path, help="write the numbers here")
    result.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(argv)
    if options.worker:
        work(Variant(**json.loads(options.worker[0])), options, Path(options.worker[1]))
        return 0
    size = f"{options.blocks} blocks, batch {options.batch}, patch {options.patch}"
    print(f"RRDB of {size}, {options.device}, {options.threads} threads")
    print(
        f"{'':32} {'peak MB':>9} {'ratio':>6} {'s/step':>8} {'speed':>6} {'cpu':>6} {'loss gap':>9} {'later':>8} {'grad gap':>9}"
    )
    rows: list[dict[str, Any]] = []
    base: dict[str, Any] = {}
    for variant in variants(options):
        figures = run_apart(variant, argv)
        base = base or figures
        row = summary(figures, base)
        rows.append(row)
        print(
            f"{row['name']:32} {row['peak_mb']:>9.0f} {row['memory_ratio']:>6.3f} {row['seconds']:>8.3f} {row['speed_up']:>6.2f} "
            f"{row['processor_speed_up']:>6.2f} {row['largest_loss_gap']:>9.1e} {row['largest_loss_gap_later']:>8.1e} "
            f"{row['gradient_gap']:>9.1e}",
            flush=True,
        )
    study = precision_study() if options.precision_study else []
    for line in study:
        print(
            f"bf16, sr = {line['sr']:13} {line['how']:15} loss {line['loss']:.5f}, gap {line['loss_gap']:.2%}; "
            f"gradient gap {line['gradient_gap']:.3f}, cosine {line['gradient_cosine']:.4f}"
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "worker")}
        report = {"settings": settings, "rows": rows, "precision_study": study}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    ours = rows[1]
    is_good = ours["memory_ratio"] <= MEMORY_LIMIT and ours["largest_loss_gap"] <= TOLERANCE
    if not is_good:
        print(f"lean: expected at most {MEMORY_LIMIT} of the memory and loss gaps of at most {TOLERANCE}")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
