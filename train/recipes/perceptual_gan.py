"""Train a super-resolution network with any stack of losses, against a discriminator if one of them is adversarial.

One step, in the order of the specification's section 1: freeze the discriminator D; sr = G(lq), and the moving average's sr_ema
only if a loss needs it; all terms of G, one backward pass; then D's terms on ground truth and on the same sr, detached, one
backward pass on their sum (equal to one on each); steps of G, of D and of G's average. The released code steps G before D's
terms, which look at nothing that this changes; with both steps at the end, an interruption finds both done or none. D is in
train mode in every pass, as released: its batch statistics and power iterations advance in G's pass too.

Supported: every network of core.networks.NETWORKS, from random weights, a bundled model or a released file; VGG and U-Net
discriminators; a generator every n-th step and after a number of steps of D alone; accumulation, several processes, bf16 and fp16
autocast, EMA, resume. Assumed: RGB; square patches, of the discriminator's size where it has one.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.backbones import network as network_backbone
from ...core.backbones.network import NetworkBackbone
from ...core.metrics import lr_psnr, psnr, ssim
from ...core.networks.discriminators import build_discriminator
from ...core.networks.official import read_official
from ...core.weights import find_model, load_into, load_state_dict, read_info
from ..config import ConfigError, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, empty_table, positive, setting
from ..data import PairData
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..losses import LossesConfig, LossStack
from ..session import open_pairs, save_network, training
from ..validation import SMALLEST_HELD_OUT_PX, Watch, evaluating, held_out_pairs, sample_pair, strip, unwatched

Sample = tuple[Tensor, Tensor, tuple[str, ...]]  # sr (detached), gt, names


@dataclass(frozen=True)
class GeneratorConfig:
    """The network that is trained."""

    architecture: str = ""  # a name in core.networks.NETWORKS; empty: what the header of `init` says
    scale: int = 4
    options: dict[str, Any] = field(default_factory=empty_table)  # keyword arguments of the network
    init: str = ""  # bundled model, released file or path to start from; empty: random
    save_dtype: Literal["fp32", "fp16"] = "fp32"  # of the final weight file


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Its opponent; built only when an adversarial loss is on."""

    kind: Literal["vgg", "unet"] = "vgg"  # one logit per patch of exactly `input_px`, or one per pixel
    input_px: int = 0  # vgg: 128, 192 or 256 as published; 0: the training patch
    features: int = 64
    init: str = ""  # weights to start from; empty: random
    generator_every: int = 1  # net_d_iters: the generator is trained in every n-th step
    alone_steps: int = 0  # net_d_init_iters: steps of the discriminator before the generator joins
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True)
class PerceptualGanConfig:
    """The whole config of this recipe."""

    name: str = "model"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of the generator
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        positive(self.model, "scale")
        positive(self.discriminator, "features", "generator_every")
        positive(self.discriminator, "alone_steps", low=0)
        patch, opponent, weights = self.data.gt_patch_px, self.discriminator, self.losses.weights()
        if patch % self.model.scale:
            raise ValueError(f"data.gt_patch_px: expected a multiple of model.scale {self.model.scale}, got {patch}; change one")
        if not (self.model.architecture or self.model.init):
            raise ValueError("model.architecture: expected a network's name, got nothing; give it or weights in model.init")
        if "ragan" in weights:
            raise ValueError("losses.ragan: expected off in perceptual_gan, got it on; use losses.adversarial")
        if "adversarial" in weights:
            if opponent.kind == "vgg" and opponent.input_px not in (0, patch):
                raise ValueError(
                    f"discriminator.input_px: expected data.gt_patch_px {patch}, got {opponent.input_px}; "
                    "this discriminator takes patches of its own size only, change one of the two"
                )
            if opponent.kind == "unet" and patch % 8:
                raise ValueError(f"data.gt_patch_px: expected a multiple of 8 for the U-Net, got {patch}; change it")
        if "artifact" in weights and not self.run.ema_decay:
            raise ValueError("run.ema_decay: expected more than 0 for the artifact loss, got 0; it compares with the average")


def build_model(config: PerceptualGanConfig, model_folders: Sequence[str | Path] = ()) -> NetworkBackbone:
    """The generator that the config describes, random or from `model.init`.

    Raises:
        MissingModelError, WeightsError: weights are missing or do not fit.
        ValueError: unknown architecture, or options it does not take.
    """
    model = config.model
    architecture, options = model.architecture, {"scale": model.scale, **model.options}
    with setting("model.init"):
        path = find_model(model.init, model_folders) if model.init else None
    if path and not architecture:
        info = read_info(path) if path.suffix == ".safetensors" else {}
        if info.get("backbone", "network") != "network" or "architecture" not in info:
            raise ConfigError(
                f"model.architecture: expected a network's name, got nothing, and {path.name} does not say one; name it"
            )
        architecture, options = str(info["architecture"]), {**options, **info["options"]}
        if options["scale"] != model.scale:
            raise ConfigError(f"model.scale: expected {options['scale']} as {path.name} has, got {model.scale}; change it")
    backbone = network_backbone.build(architecture, options, config.name, config.licence)
    if path:
        state = read_official(path)
        as_float = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        load_into(backbone.network, as_float, model.init)
    backbone.network.train().requires_grad_(True)
    return backbone


def build_opponent(config: PerceptualGanConfig, model_folders: Sequence[str | Path] = ()) -> nn.Module:
    """The discriminator that the config describes."""
    opponent = config.discriminator
    module = build_discriminator(opponent.kind, opponent.input_px or config.data.gt_patch_px, opponent.features)
    if opponent.init:
        with setting("discriminator.init"):
            path = find_model(opponent.init, model_folders, what="a discriminator")
        load_into(module, load_state_dict(path), opponent.init)
    return module.train()


def train(
    config: PerceptualGanConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `PerceptualGanConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where weight files are looked for by name.

    Raises:
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    with training(config.run.seed):
        backbone = build_model(config, model_folders)
        generator = backbone.network
        parts = {"generator": Trained(generator, config.optimizer, config.schedule)}
        opponent = build_opponent(config, model_folders) if "adversarial" in config.losses.weights() else None
        if opponent is not None:
            spec = config.discriminator
            parts["discriminator"] = Trained(opponent, spec.optimizer, spec.schedule, is_averaged=False)
        if config.run.channels_last:
            for part in parts.values():
                part.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        _check_batch(config, loop)
        losses = LossStack(
            config.losses, loop.device, scale=config.model.scale, folders=model_folders, channels_last=config.run.channels_last
        )
        data = open_pairs(config, loop.samples_per_step, minimum_px=SMALLEST_HELD_OUT_PX)

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for step in steps:
                trains_generator = _is_generators_turn(config, step)
                made: list[Sample] = []
                for batch in loop.batches(feed):
                    with loop.autocast(), torch.set_grad_enabled(trains_generator):
                        sr = generator(batch.lq)
                    sr = sr.float()
                    if trains_generator:
                        sr_ema = _averaged_result(loop, batch.lq) if losses.needs_ema else None
                        with _frozen(opponent):
                            terms = losses.generator_terms(sr, batch.gt, sr_ema, _critic(loop, opponent))
                            loop.backward("generator", terms, batch.names)
                    made.append((sr.detach(), batch.gt, batch.names))
                if opponent is not None:
                    for sr, gt, names in made:
                        loop.backward("discriminator", losses.critic_terms(_critic(loop, opponent), sr, gt), names)
                loop.update(*(["generator"] if trains_generator else []), *(["discriminator"] if opponent is not None else []))
                if loop.is_main:
                    _report(loop, backbone, config, data)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, backbone, loop.averaged("generator"), weights, loop.state.step, loop.origins)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def _is_generators_turn(config: PerceptualGanConfig, step: int) -> bool:
    """BasicSR's rule, with its iterations counted from 1; without an opponent always."""
    opponent = config.discriminator
    if "adversarial" not in config.losses.weights():
        return True
    return (step + 1) % opponent.generator_every == 0 and step + 1 > opponent.alone_steps


def _check_batch(config: PerceptualGanConfig, loop: Loop) -> None:
    """Batch normalisation over one sample says what that sample is, not how it compares."""
    samples = config.run.batch_size * int(loop.accelerator.num_processes)
    if "adversarial" in config.losses.weights() and config.discriminator.kind == "vgg" and samples < 2:
        raise ConfigError(
            f"run.batch_size: expected at least 2 over all processes for the batch normalisation of discriminator.kind vgg, "
            f'got {samples}; raise it or set discriminator.kind = "unet"'
        )


class _frozen:  # noqa: N801  # a context manager, read as a word
    """The discriminator's parameters take no gradient inside: they would be computed in vain."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __enter__(self) -> None:
        if self.module is not None:
            self.module.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        if self.module is not None:
            self.module.requires_grad_(True)


def _critic(loop: Loop, opponent: nn.Module | None) -> Any:
    """The discriminator as a function of images, in the run's precision."""
    if opponent is None:
        return None

    def critic(images: Tensor) -> Tensor:
        with loop.autocast():
            return opponent(images).float()

    return critic


def _averaged_result(loop: Loop, lq: Tensor) -> Tensor:
    """sr of the moving average, which is in eval mode (no stochastic depth)."""
    with torch.no_grad(), loop.autocast():
        return loop.averaged("generator")(lq).float()


def _report(loop: Loop, backbone: NetworkBackbone, config: PerceptualGanConfig, data: PairData) -> None:
    """Validation, samples and kept weights, when they are due."""
    average, previews = loop.averaged("generator"), loop.is_due(config.run.preview_every)
    if data.held_out and loop.is_due(config.run.validate_every):
        previews &= loop.validate(lambda watch: validate(average, data, loop.device, backbone.spec.size_multiple, watch))
    if previews:
        loop.show(samples(average, data, loop.device, backbone.spec.size_multiple))
    if loop.is_due(config.run.export_every):
        step = loop.state.step + 1
        save_model(
            config, backbone, average, loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors", step, loop.origins
        )


def validate(
    network: nn.Module, data: PairData, device: torch.device, multiple: int = 1, watch: Watch = unwatched
) -> dict[str, float]:
    """Means over the held-out pictures under the training degradation.

    Returns:
        psnr_y and ssim_y (8 bit, border of `scale` px cropped), lr_psnr: whether the result still explains its input, and
        out_of_range: share of values outside [0, 1] before they are clamped, as the losses see them. An auto-encoder was trained
        without such values, so a share that grows is a warning (specification aesop.md 7).
    """
    sums = dict.fromkeys(("psnr_y", "ssim_y", "lr_psnr", "out_of_range"), 0.0)
    with evaluating(network):
        for lq, gt in held_out_pairs(data, multiple, watch):
            raw = network(lq.to(device)).float().cpu()
            sr = raw.clamp(0, 1)
            sums["out_of_range"] += float((raw != sr).float().mean())
            sums["psnr_y"] += float(psnr(sr, gt, crop=data.scale))
            sums["ssim_y"] += float(ssim(sr, gt, crop=data.scale))
            sums["lr_psnr"] += float(lr_psnr(sr, lq, scale=data.scale))
    return {name: total / len(data.held_out) for name, total in sums.items()}


def samples(network: nn.Module, data: PairData, device: torch.device, multiple: int = 1) -> Any:
    """Input, result and ground truth of one picture."""
    lq, gt = sample_pair(data, multiple)
    with evaluating(network):
        sr = network(lq.to(device))
    return strip({"input": lq, "result": sr, "ground truth": gt})


def save_model(
    config: PerceptualGanConfig, backbone: NetworkBackbone, network: nn.Module, path: Path, step: int, origins: Mapping[str, str]
) -> Path:
    """Write a weight file with everything needed to load it and to know what it is."""
    header = {"backbone": "network", "architecture": backbone.architecture, "options": dict(backbone.options)}
    return save_network(path, network, config, step, header, origins)


__all__ = ["DiscriminatorConfig", "GeneratorConfig", "PerceptualGanConfig", "build_model", "save_model", "train", "validate"]
