"""Train a restoration model for fidelity: mean absolute or squared error between sr and gt, one forward pass per step.

Supported: direct networks (`model.backbone = "network"`) and one-step flow models (`"pixel"`, one Euler step from the resized
input at `start_sigma`); MATLAB bicubic pairs or any degradation preset; accumulation, several processes, bf16 and fp16 autocast,
EMA, resume, warm start.
Assumed: ground truth fits in memory when `data.cache_images` is on; the model takes RGB.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.backbones import network as network_backbone
from ...core.backbones.base import AnyBackbone, Backbone
from ...core.backbones.pixel import PixelBackbone
from ...core.images import crop_border, from_model_range, quantize_8bit, rgb_to_y, to_model_range
from ...core.losses.pixel import l1_loss, mse_loss, psnr_loss, psnr_y_loss
from ...core.records import LossTerms
from ...core.resize import bicubic
from ...core.weights import find_model, load_into, load_state_dict
from ..config import ConfigError, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, empty_table, positive, setting
from ..data import PairData
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..session import open_pairs, save_network, training
from ..validation import Watch, evaluating, held_out_pairs, unwatched


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    backbone: Literal["network", "pixel"] = "network"
    architecture: str = "lite"  # of backbone "network": a name in core.networks.NETWORKS
    scale: int = 4
    options: dict[str, Any] = field(default_factory=empty_table)  # keyword arguments of the network
    init: str = ""  # bundled model or weight file to start from; empty: random
    save_dtype: Literal["fp32", "fp16"] = "fp32"  # of the final weight file


@dataclass(frozen=True)
class FidelityConfig:
    """The whole config of this recipe."""

    name: str = "model"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    loss: Literal["l1", "mse", "psnr", "psnr_y"] = "l1"  # core.losses.pixel says what each is good for
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        positive(self.model, "scale")
        if self.data.gt_patch_px % self.model.scale:
            raise ValueError(
                f"data.gt_patch_px: expected a multiple of model.scale {self.model.scale}, got {self.data.gt_patch_px}; "
                "change one"
            )
        patch = int(self.model.options.get("patch_px", 8))
        if self.model.backbone == "pixel" and self.data.gt_patch_px % patch:
            raise ValueError(
                f"data.gt_patch_px: expected a multiple of model.options.patch_px {patch}, got {self.data.gt_patch_px}; "
                "change one"
            )


_WHOLE_PX = 16  # sides of held-out ground truth are cut to multiples of it: whole patches for every model
LOSSES = {"l1": l1_loss, "mse": mse_loss, "psnr": psnr_loss, "psnr_y": psnr_y_loss}


def build_model(config: FidelityConfig, model_folders: Sequence[str | Path] = ()) -> AnyBackbone:
    """The backbone that the config describes, randomly initialised (or from `model.init`)."""
    model = config.model
    if model.backbone == "pixel":
        backbone: AnyBackbone = PixelBackbone(model.options, config.name, config.licence)
    else:
        backbone = network_backbone.build(
            model.architecture, {"scale": model.scale, **model.options}, config.name, config.licence
        )
    if model.init:
        with setting("model.init"):
            path = find_model(model.init, model_folders)
        state = {name: tensor.float() for name, tensor in load_state_dict(path).items()}
        load_into(dict(backbone.modules())["network"], state, model.init)
    return backbone


def forward(backbone: AnyBackbone, network: nn.Module, lq: Tensor, scale: int) -> Tensor:
    """The restoration `sr` in [0, 1] (not clamped), with gradient: network(lq), or one Euler step z - sigma v from lq_up."""
    if not isinstance(backbone, Backbone):
        return network(lq)
    lq_up = bicubic(lq, (lq.shape[-2] * scale, lq.shape[-1] * scale)).clamp(0, 1)
    z_lq = to_model_range(lq_up)
    sigma = torch.full((lq.shape[0],), backbone.spec.start_sigma or 1.0, device=lq.device)
    return from_model_range(z_lq - sigma.view(-1, 1, 1, 1) * network(z_lq, sigma, z_lq))


def train(
    config: FidelityConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve and log into `folder`.

    Args:
        config: see `FidelityConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where `model.init` is looked for by name.

    Raises:
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    with training(config.run.seed):
        backbone = build_model(config, model_folders)
        network = dict(backbone.modules())["network"]
        network.train().requires_grad_(True)
        if config.run.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        parts = {"network": Trained(network, config.optimizer, config.schedule)}
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        data = open_pairs(config, loop.samples_per_step, minimum_px=_WHOLE_PX)

        term = config.loss if config.loss in ("l1", "mse") else f"{config.loss}_loss"  # psnr_y is what validation measures
        # closing: an error below reaches the loop at once, which keeps what is done
        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for _ in steps:
                for batch in loop.batches(feed):
                    with loop.autocast():
                        sr = forward(backbone, network, batch.lq, config.model.scale)
                    error = LOSSES[config.loss](sr, batch.gt)
                    loop.backward("network", LossTerms({term: error}), batch.names)
                loop.update("network")
                if loop.is_main and data.held_out and loop.is_due(config.run.validate_every):
                    _validate(loop, backbone, data, config)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, backbone, loop.averaged("network"), weights, loop.state.step, loop.origins)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def _validate(loop: Loop, backbone: AnyBackbone, data: PairData, config: FidelityConfig) -> None:
    network = loop.averaged("network")
    loop.validate(lambda watch: {"psnr_y": validate(backbone, network, data, config, loop.device, watch)})


def validate(
    backbone: AnyBackbone,
    network: nn.Module,
    data: PairData,
    config: FidelityConfig,
    device: torch.device,
    watch: Watch = unwatched,
) -> float:
    """Mean PSNR-Y (8 bit, border of `scale` px cropped) over the held-out pictures under the training degradation."""
    scale, total = config.model.scale, 0.0
    whole = _WHOLE_PX // math.gcd(_WHOLE_PX, scale)
    with evaluating(network):
        for lq, gt in held_out_pairs(data, whole, watch):
            sr = forward(backbone, network, lq.to(device), scale).float().cpu()
            error = crop_border(rgb_to_y(quantize_8bit(sr)) - rgb_to_y(gt), scale).double()
            total += float(-10 * torch.log10(error.square().mean() + 1e-8))
    return total / len(data.held_out)


def save_model(
    config: FidelityConfig, backbone: AnyBackbone, network: nn.Module, path: Path, step: int, origins: Mapping[str, str]
) -> Path:
    """Write a weight file with everything needed to load it and to know what it is."""
    kind = config.model.backbone
    architecture = config.model.architecture if kind == "network" else "pixel"
    header = {"backbone": kind, "architecture": architecture, "options": rebuild_options(backbone)}
    return save_network(path, network, config, step, header, origins)


def rebuild_options(backbone: AnyBackbone) -> dict[str, Any]:
    """The keyword arguments that rebuild the backbone's network."""
    if isinstance(backbone, (PixelBackbone, network_backbone.NetworkBackbone)):
        return dict(backbone.options)
    raise ConfigError(f"model.backbone: expected network or pixel, got {type(backbone).__name__}; train it with its own recipe")


__all__ = ["FidelityConfig", "ModelConfig", "build_model", "forward", "l1_loss", "mse_loss", "train"]
