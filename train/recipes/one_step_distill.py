"""Train one Euler step of a flow transformer to restore pictures: StrSR, in two stages.

One forward pass: lq enlarged to the output size, encoded, taken as the noisy state at sigma 0.8; one step of the velocity, told
what a vision-language model sees in lq; decoded: sr. Losses on images: L1 + 3 LPIPS + 0.1 RaGAN, and 0.002 FDL in stage 2.

One step of training: generator and critic see the same batch, so that the critic's frozen backbone looks at ground truth and at
sr once for both (the released code alternates batches and looks five times where this looks three times). First one power
iteration of the critic's spectral norms; per forward pass the generator's terms and then, on the same features without gradient,
the critic's, with the approximated R1 penalty in float32; then both are updated.

Supported: FLUX.2 [klein], Z-Image and `pixel` by LoRA, or small ones whole (lora.rank 0); conditioning by Qwen3-VL through a
trained projector, by text, or none; any stack of losses on images; critics on CLIP, VGG19 or our own networks, or no critic;
accumulation, several processes, bf16 autocast, EMA, gradient checkpointing, 8-bit optimiser, resume.
N processes train as one does with N times the batch, and as one does with N times the accumulation where every mean of the GAN
lies within one process's batch (losses.ragan.span = "process", or another reference than "global"). With span = "all" the
mean covers all processes, but one forward pass alone, and accumulation makes passes smaller.
Assumed: one GPU holds frozen transformer, autoencoder, vision-language model and critic (conditioning.keep = "home" moves the
vision-language model out between steps).
Stage 2 starts from stage 1's files (`model.init`, `discriminator.init`), or, optimisers included, from its checkpoint
(`start_from`, which goes before them). Samples go on after those of stage 1, whichever way: the header of its weights and its
checkpoint say how many it saw, and with the same seed stage 2 would otherwise meet the same pictures, crops and noise again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...core.degradation import sharpen
from ...core.frozen import lean
from ...core.networks.clip_critic import ClipCritic
from ...core.networks.feature_maps import critic_on, set_checkpointing
from ...core.resize import bicubic
from ...core.restore import one_step
from ...core.weights import find_model, load_into, load_state_dict, save_weights
from ..conditioning import ConditioningConfig, TrainConditioner
from ..config import ConfigError, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, positive, setting, to_mapping
from ..data import PairData, sample_seed
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..loss_networks import build_features
from ..losses import LossesConfig, LossStack, precision
from ..one_step import (
    InAutocast,
    LoraTableConfig,
    OneStepModel,
    OneStepModelConfig,
    TrainedPart,
    check_model,
    use_checkpointing,
)
from ..one_step import (
    build_model as build_one_step,
)
from ..one_step_convention import check_convention
from ..one_step_critic import CriticConfig, critic_path, critic_terms, judged
from ..one_step_files import save_result, showing
from ..one_step_validation import samples, validate
from ..origins import ORIGINS
from ..session import open_pairs, training
from ..start import find_checkpoint, first_init, samples_before
from ..state import checkpoints
from ..validation import SMALLEST_HELD_OUT_PX

POSTERIOR, NOISE = 1, 2  # what else is drawn for a batch, beside its samples


@dataclass(frozen=True)
class OneStepDistillConfig:
    """The whole config of this recipe."""

    name: str = "model"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    # run folder or checkpoint of stage 1, of the same backbone, latents, step, adapter and conditioning: weights, critic and
    # optimisers go on, steps count anew; what model.init and discriminator.init say is not read then, but the weights that
    # stage 1 began with are
    start_from: str = ""
    sharpen_target: bool = True  # the ground truth is sharpened (USM), as the start of the degradation is
    model: OneStepModelConfig = field(default_factory=OneStepModelConfig)
    lora: LoraTableConfig = field(default_factory=LoraTableConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    discriminator: CriticConfig = field(default_factory=CriticConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of adapter and projector
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        positive(self.model, "scale")
        positive(self.discriminator, "hidden")
        positive(self.conditioning, "width")
        check_model(self.model, self.lora)
        patch = self.data.gt_patch_px
        cell = int(self.model.options.get("patch_px", 8)) if self.model.backbone == "pixel" else 16
        for multiple, what in ((self.model.scale, "model.scale"), (cell, f"what {self.model.backbone} takes")):
            if patch % multiple:
                raise ValueError(f"data.gt_patch_px: expected a multiple of {what} {multiple}, got {patch}; change it")
        for name, instead in (("adversarial", "ragan"), ("artifact", "fdl or grid")):
            if name in self.losses.weights():
                raise ValueError(f"losses.{name}: expected off in one_step_distill, got it on; use losses.{instead}")
        if self.conditioning.kind == "text" and self.model.backbone == "pixel":
            raise ValueError('conditioning.kind: expected "vlm" or "empty" for pixel, got "text"; it has no text encoder')
        if self.run.channels_last:
            raise ValueError("run.channels_last: expected false, got true; transformers have no such format")


def build_model(config: OneStepDistillConfig, model_folders: Sequence[str | Path] = ()) -> OneStepModel:
    """The backbone with what is trained of it, see `train.one_step.build_model`."""
    told = config.conditioning
    return build_one_step(
        config.model,
        config.lora,
        projector=(told.width, told.init) if told.kind == "vlm" else None,
        seed=config.run.seed,
        name=config.name,
        licence=config.licence,
        folders=model_folders,
    )


def build_critic(config: OneStepDistillConfig, model_folders: Sequence[str | Path] = ()) -> ClipCritic:
    """The critic that the config describes: frozen features, and heads that are random or from `discriminator.init`.

    Raises:
        MissingModelError, WeightsError: a file is missing or does not fit.
        ConfigError: its features need larger patches than those that are trained on.
    """
    spec = config.discriminator
    maps = build_features(spec.features, model_folders)
    _check_patch(config, f"the critic's features ({spec.features.kind})", maps.minimum_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        critic = critic_on(maps, spec.hidden)
    if config.model.use_checkpointing:
        set_checkpointing(critic)
    critic.features = lean(critic.features)
    if spec.init:
        with setting("discriminator.init"):
            hint = "train stage 1 first, or go on from its run: --set start_from=RUN"
            path = find_model(spec.init, model_folders, what="the critic's heads as stage 1 trained them", hint=hint)
        load_into(critic.heads, load_state_dict(path), str(path))
    critic.heads.eval()
    return critic


def train(
    config: OneStepDistillConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `OneStepDistillConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where weight files are looked for by name.

    Raises:
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    before = find_checkpoint(config.start_from) if config.start_from else None
    built = config if before is None else _as_begun(config, before, model_folders, is_new=not checkpoints(folder))
    with training(config.run.seed):
        model = build_model(built, model_folders)
        parts = {"generator": Trained(model.part, config.optimizer, config.schedule)}
        critic = build_critic(built, model_folders) if "ragan" in config.losses.weights() else None
        if critic is not None:
            spec = config.discriminator
            parts["discriminator"] = Trained(critic.heads, spec.optimizer, spec.schedule, is_averaged=False)
        if config.model.use_checkpointing:
            use_checkpointing(model.backbone)
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        if before is not None and not checkpoints(folder):
            loop.state.adopt(before)
        elif not checkpoints(folder):
            loop.state.extra["first_sample"] = samples_before(config.model.init, model_folders)
        model.to(loop.device)
        if critic is not None:
            critic.to(loop.device)
        losses = LossStack(config.losses, loop.device, scale=config.model.scale, folders=model_folders)
        _check_patch(config, "the features of losses.fdl", losses.minimum_px)
        backbone = InAutocast(model.backbone, loop.autocast)
        told = TrainConditioner(
            config.conditioning,
            config.model.backbone,
            backbone.spec.conditioning_dim,
            model.part.adapter,
            loop.device,
            model_folders,
        )
        data = open_pairs(config, loop.samples_per_step, minimum_px=SMALLEST_HELD_OUT_PX)

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for step in steps:
                if critic is not None:
                    critic.iterate_power()
                for micro, batch in enumerate(loop.batches(feed)):
                    draw = _draws(config, loop, micro)
                    gt = sharpen(batch.gt) if config.sharpen_target else batch.gt
                    sr = forward(config, backbone, batch.lq, told, draw(POSTERIOR))
                    fake: list[Tensor] = []
                    real: list[Tensor] = []
                    if critic is not None:
                        with precision(loop.device, config.discriminator.precision):
                            with torch.no_grad():
                                real = critic.features(gt)
                            fake = critic.features(sr)
                    if step == 0 and micro == 0 and "fdl" in losses.weights:
                        loop.note(**losses.fdl_by_range(sr.detach(), gt))
                    loop.backward("generator", losses.generator_terms(sr, gt, logits=judged(critic, fake, real)), batch.names)
                    if critic is not None:
                        fake = [level.detach() for level in fake]
                        terms = critic_terms(config.discriminator, losses, critic, fake, real, gt, draw(NOISE))
                        loop.backward("discriminator", terms, batch.names)
                loop.update(*parts)
                if loop.is_main:
                    _report(loop, model, backbone, config, data, told)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, model, _averaged(loop), weights, loop.state.step, loop.samples, loop.origins)
            if critic is not None:
                save_weights(critic_path(weights), critic.trainable_state(), {"architecture": "critic_heads", "options": {}})
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def forward(
    config: OneStepDistillConfig, backbone: InAutocast, lq: Tensor, told: TrainConditioner, generator: Generator
) -> Tensor:
    """The restoration `sr` in [0, 1], not clamped, with gradient to adapter and projector.

        z_lq = encode(lq_up);   z_sr = z_lq - step_length velocity(z_lq, sigma, told(lq));   sr = decode(z_sr)

    The enlarged input is clamped and not rounded (strsr.md 5.15).

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (3); strsr.md sections 1.4, 1.5 and 2.1.
    """
    size = (lq.shape[-2] * config.model.scale, lq.shape[-1] * config.model.scale)
    lq_up = bicubic(lq, size, antialias=backbone.spec.is_antialiased).clamp(0, 1)
    sample = generator if config.model.posterior == "sample" else None
    return one_step(backbone, lq_up, conditioning=told(lq), generator=sample)


def _as_begun(config: OneStepDistillConfig, before: Path, folders: Sequence[str | Path], *, is_new: bool) -> OneStepDistillConfig:
    """The config with the frozen weights of the run that is continued; what it trained comes from its checkpoint.

    Raises:
        WeightsError: a new run, and one of another convention, see `check_convention`; a run that is resumed has its own weights.
    """
    init = first_init(before)
    if is_new:
        check_convention(config, before, init, folders)
    return replace(config, model=replace(config.model, init=init), discriminator=replace(config.discriminator, init=""))


def _check_patch(config: OneStepDistillConfig, what: str, minimum_px: int) -> None:
    if config.data.gt_patch_px < minimum_px:
        raise ConfigError(
            f"data.gt_patch_px: expected at least {minimum_px}, which {what} need, got {config.data.gt_patch_px}; "
            "raise it or choose other features"
        )


def _draws(config: OneStepDistillConfig, loop: Loop, micro: int) -> Callable[[int], Generator]:
    """Random generators of one forward pass: functions of the seed and of the batch's first sample, so of process and step."""
    first = loop.first_index(micro)

    def draw(purpose: int) -> Generator:
        return Generator().manual_seed(sample_seed(config.run.seed + purpose, first))

    return draw


def _averaged(loop: Loop) -> TrainedPart:
    part = loop.averaged("generator")
    assert isinstance(part, TrainedPart)
    return part


def _report(
    loop: Loop, model: OneStepModel, backbone: InAutocast, config: OneStepDistillConfig, data: PairData, told: TrainConditioner
) -> None:
    """Validation, samples and kept weights, when they are due."""
    part = _averaged(loop)
    validates = bool(data.held_out) and loop.is_due(config.run.validate_every)
    previews = loop.is_due(config.run.preview_every)
    if validates or previews:
        with showing(model.part, part):
            if validates:
                previews &= loop.validate(lambda watch: validate(backbone, data, told, loop.device, watch))
            if previews:
                loop.show(samples(backbone, data, told, loop.device))
    if loop.is_due(config.run.export_every):
        step = loop.state.step + 1
        path = loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors"
        save_model(config, model, part, path, step, loop.samples + loop.samples_per_step, loop.origins)


def save_model(
    config: OneStepDistillConfig,
    model: OneStepModel,
    part: TrainedPart,
    path: Path,
    step: int,
    samples: int,
    origins: Mapping[str, str],
) -> Path:
    """Write what was trained with everything needed to use it and to know what it is; see `train.one_step_files.save_result`."""
    info = {
        "name": config.name,
        "scale": config.model.scale,
        "licence": config.licence,
        "conditioning": config.conditioning.kind,
        "step": step,
        "samples": samples,
        "config": to_mapping(config),
        ORIGINS: dict(origins),
    }
    return save_result(model, config.model, part, path, info)


__all__ = [
    "CriticConfig",
    "OneStepDistillConfig",
    "build_critic",
    "build_model",
    "critic_path",
    "forward",
    "save_model",
    "train",
    "validate",
]
