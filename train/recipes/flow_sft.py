"""Supervised training of a model that is sampled from noise: it learns to restore, or, as an adversary, to restore as others do.

    z = encode(target),   z_lq = encode_lq(enlarged input),   t and noise ~ those of the process, per sample
    loss = mean || predict(add_noise(z, noise, t), t, z_lq) - target(z, noise) ||^2

The prediction is a velocity for flows (FLUX.1, pixel) and the noise for Stable Diffusion. With the table [artefacts] the targets
are what other methods made of the inputs, and an adapter is trained on top of the frozen one of supervised training: the
adversary of ASASR, in its mode `mimic`.

Supported: FLUX.1 conditioned by tokens (all of them adapted, or those of the condition alone) and Stable Diffusion 1.5, 2 and XL
by LoRA, conditioned by channels (the widened first convolution is trained whole) or by a frozen control branch; `pixel` by LoRA
or whole (lora.rank 0); any degradation of the data table, one flip for input and target; latents kept on disk; accumulation,
several processes, bf16 autocast, EMA, gradient checkpointing, 8-bit optimiser, resume.
Assumed: one GPU holds the frozen network and the autoencoder.
Everything random about a sample is a function of the seed and the sample's number, so batch size and processes do not change it.

Source:
    ASASR, arXiv:2605.23264, Eq. (1), (2) and section 4; asasr.md sections 1.3, 2.10, 3.2 and 3.3. Differs from the released code
    (asasr.md 5.3): one flip for both pictures; guidance, prompt and enlargement are those of sampling; only what is trained is
    clipped.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...core.backbones.pixel import PixelBackbone, flow_from_one_step
from ...core.records import Conditioning
from ...core.weights import find_model, load_into, load_state_dict, read_info
from ..artefacts import ArtefactData, ArtefactsConfig
from ..config import DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, positive, setting, to_mapping
from ..flow_terms import Sets, flow_terms, held_out, held_out_error, sample_draws
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..multi_step import (
    ADVERSARY,
    SFT,
    AdapterConfig,
    Autocast,
    MultiStepModelConfig,
    Trainee,
    add_adapter,
    build_trainee,
    check_multi_step,
    one_prompt,
    save_trained,
)
from ..multi_step_validation import SamplingConfig, preview, sampled, scores
from ..one_step import TrainedPart, use_checkpointing
from ..one_step_files import showing
from ..origins import ORIGINS
from ..session import open_pairs, save_network, training
from ..validation import SMALLEST_HELD_OUT_PX

WHOLE = {"stable_diffusion": ("conv_in.weight", "conv_in.bias")}  # trained beside the adapter: LoRA cannot widen a convolution


@dataclass(frozen=True)
class FlowSftConfig:
    """The whole config of this recipe."""

    name: str = "model"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    model: MultiStepModelConfig = field(default_factory=MultiStepModelConfig)
    lora: AdapterConfig = field(default_factory=lambda: AdapterConfig(rank=64))  # rank 0: the whole network, pixel only
    artefacts: ArtefactsConfig | None = None  # what other methods made of the inputs, to train an adversary on
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # of validation and previews
    data: DataConfig = field(default_factory=DataConfig)  # with [artefacts]: gt_patch_px alone counts
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        model, is_whole = self.model, self.lora.rank == 0
        check_multi_step(model, None if is_whole else self.lora, self.data.gt_patch_px)
        if is_whole and (model.backbone != "pixel" or self.artefacts is not None):
            what = "an adversary" if self.artefacts is not None else model.backbone
            raise ValueError(f"lora.rank: expected at least 1 for {what}, got 0; only pixel is trained whole, 64 is usual")
        if self.artefacts is None and model.adapter:
            raise ValueError(
                f"model.adapter: expected none where that adapter itself is trained, got {model.adapter!r}; to go on with one, "
                "name it in model.init; to train an adversary on it, add the table [artefacts]"
            )
        if self.artefacts is not None and not model.adapter and model.backbone != "pixel":
            raise ValueError(
                "model.adapter: expected the adapter of supervised training, which the adversary is trained on top of, got none; "
                "train it first, with this recipe and without [artefacts]"
            )
        is_fp32 = is_whole or (model.backbone in WHOLE and not model.control and self.artefacts is None)
        if is_fp32 and model.precision != "fp32" and (is_whole or self.run.precision == "fp32"):
            raise ValueError(
                f'model.precision: expected "fp32" where weights are trained whole, got "{model.precision}"; at 16 bits small '
                'steps are lost to rounding (beside an adapter, run.precision = "bf16" does too)'
            )
        if self.run.channels_last:
            raise ValueError("run.channels_last: expected false, got true; transformers have no such format")


@dataclass
class FlowModel:
    """What this recipe trains.

    Attributes:
        trainee: the model with its adapters.
        part: what the optimiser moves.
        adapter: name of the trained adapter in the stack; empty where the whole network is trained.
        full: parameters that are trained whole beside the adapter.
    """

    trainee: Trainee
    part: TrainedPart
    adapter: str
    full: tuple[str, ...] = ()


def build_model(config: FlowSftConfig, model_folders: Sequence[str | Path] = ()) -> FlowModel:
    """The model that the config describes, with what is trained of it active and everything else frozen.

    Raises:
        MissingModelError, WeightsError, ValueError: see `build_trainee` and `add_adapter`.
    """
    model, seed = config.model, config.run.seed
    if config.lora.rank == 0:
        return _whole(config, model_folders)
    trainee = build_trainee(model, config.name, config.licence, model_folders)
    name = SFT if config.artefacts is None else ADVERSARY
    add_adapter(trainee, name, config.lora, seed=seed, init=model.init, folders=model_folders)
    trainee.stack.use(*trainee.reference, name)
    weights = trainee.stack.train(name)
    full = () if config.artefacts is not None or model.control else WHOLE.get(model.backbone, ())
    for key in full:
        parameter = trainee.network.get_parameter(key)
        parameter.data = parameter.data.float()
        weights.append(parameter.requires_grad_(True))
    return FlowModel(trainee, TrainedPart(weights, None), name, full)


def _whole(config: FlowSftConfig, folders: Sequence[str | Path]) -> FlowModel:
    trainee = build_trainee(config.model, config.name, config.licence, folders)
    backbone: Any = trainee.backbone
    assert isinstance(backbone, PixelBackbone)
    if config.model.init:
        with setting("model.init"):
            path = find_model(config.model.init, folders)
        state = {key: tensor.float() for key, tensor in load_state_dict(path).items()}
        before, tau = read_info(path).get("options", {}), float(backbone.options["residual_std"])
        if tau and not before.get("residual_std"):
            state = flow_from_one_step(state, float(before["start_sigma"]), tau)
        load_into(backbone.network, state, str(path))
    return FlowModel(trainee, TrainedPart(backbone.network.requires_grad_(True), None), "")


def train(
    config: FlowSftConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `FlowSftConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where weight files are looked for by name.

    Raises:
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    with training(config.run.seed):
        model = build_model(config, model_folders)
        parts = {"model": Trained(model.part, config.optimizer, config.schedule)}
        if config.model.use_checkpointing:
            use_checkpointing(model.trainee.backbone)  # pyright: ignore[reportArgumentType]
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        model.trainee.to(loop.device)
        backbone = Autocast(model.trainee.backbone, loop.autocast, config.model.latent_cache or None)
        told = one_prompt(config.model, model.trainee.backbone, folder, loop.device, model_folders)
        data = open_data(config, loop.samples_per_step, backbone.spec.size_multiple)

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for _ in steps:
                for micro, batch in enumerate(loop.batches(feed)):
                    draws = sample_draws(config.run.seed, loop.first_index(micro), len(batch.names))
                    terms = flow_terms(backbone, batch, draws, told, config.model.posterior)
                    loop.backward("model", terms, batch.names)
                loop.update("model")
                if loop.is_main:
                    _report(loop, model, backbone, config, data, told)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, model, _averaged(loop), weights, loop.state.step, loop.origins)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def open_data(config: FlowSftConfig, samples_per_step: int, cell_px: int = 1) -> Sets:
    """Pairs of the table [data], or of [artefacts].

    Raises:
        DataError: see `PairData` and `ArtefactData`.
    """
    if config.artefacts is not None:
        return ArtefactData(config.artefacts, config.model.scale, config.data.gt_patch_px, config.run.seed)
    return open_pairs(config, samples_per_step, minimum_px=max(SMALLEST_HELD_OUT_PX, cell_px))


def _averaged(loop: Loop) -> TrainedPart:
    part = loop.averaged("model")
    assert isinstance(part, TrainedPart)
    return part


def _report(
    loop: Loop, model: FlowModel, backbone: Autocast, config: FlowSftConfig, data: Sets, told: Conditioning | None
) -> None:
    """Validation, samples and kept weights, when they are due."""
    part, run = _averaged(loop), config.run
    validates, previews = bool(data.held_out) and loop.is_due(run.validate_every), loop.is_due(run.preview_every)
    if validates or previews:
        multiple = backbone.spec.size_multiple
        given = (multiple, max(config.data.gt_patch_px, multiple))
        sampling, device = config.sampling, loop.device
        with showing(model.part, part):
            if validates:
                previews &= loop.validate(
                    lambda watch: {
                        "held_out_flow": held_out_error(backbone, held_out(data, *given, watch), told, device),
                        **scores(backbone, held_out(data, *given, watch), data.scale, sampling, told, device),
                    }
                )
            if previews:
                lq, gt = next(held_out(data, *given)) if data.held_out else _first(data)
                seeds = [replace(sampling, seed=sampling.seed + k) for k in range(2)]
                shown = {f"seed {s.seed}": sampled(backbone, lq, data.scale, s, told, device) for s in seeds}
                loop.show(preview(shown, lq, gt, "ground truth" if config.artefacts is None else "output"))
    if loop.is_due(run.export_every):
        step = loop.state.step + 1
        save_model(config, model, part, loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors", step, loop.origins)


def _first(data: Sets) -> tuple[Tensor, Tensor]:
    batch = data.batch(0, 1)
    return batch.lq, batch.gt


def save_model(
    config: FlowSftConfig, model: FlowModel, part: nn.Module, path: Path, step: int, origins: Mapping[str, str]
) -> Path:
    """Write what was trained with everything needed to use it and to know what it is; see `train.multi_step.save_trained`."""
    trainee = model.trainee
    with showing(model.part, part):
        if not model.adapter:
            backbone: Any = trainee.backbone
            header = {"backbone": "pixel", "architecture": "pixel", "options": dict(backbone.options)}
            return save_network(path, backbone.network, config, step, header, origins)
        info = {
            "name": config.name,
            "scale": config.model.scale,
            "licence": config.licence,
            "step": step,
            "role": "supervised" if model.adapter == SFT else "adversary",
            "config": to_mapping(config),
            ORIGINS: dict(origins),
        }
        return save_trained(trainee, model.adapter, path, info, config.model.save_dtype, full=model.full)


__all__ = [
    "FlowModel",
    "FlowSftConfig",
    "build_model",
    "open_data",
    "save_model",
    "train",
]
