"""Train AESOP's auto-encoder: an image goes through a bottleneck of low-resolution size and back; what returns is predictable.

    L_AE = gt_weight mean|dec(enc(gt)) - gt| + lq_weight mean|enc(gt) - lq|                    (paper eq. 4-6, specification 2.2)

Supported: the synthetic task (both terms; the second holds the bottleneck at the low-resolution image), the real-world task
(gt term only, decoder frozen and out of the optimiser), the ablations (bicubic encoder, no lq term), scale 2.
Accumulation, several processes, bf16 and fp16 autocast, EMA, resume. Assumed: RGB.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.frozen import lean
from ...core.losses.pixel import l1_loss
from ...core.metrics import psnr
from ...core.networks.autoencoder import AutoEncoder, build_autoencoder, load_autoencoder, start_as_average
from ...core.networks.official import read_official, save_autoencoder
from ...core.records import LossTerms
from ...core.weights import find_model, load_into
from ..config import DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, added, empty_table, positive, setting, to_mapping
from ..data import PairData
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..loss_networks import RANDOM
from ..session import open_pairs, training
from ..validation import SMALLEST_HELD_OUT_PX, Watch, evaluating, held_out_pairs, sample_pair, strip, unwatched


@dataclass(frozen=True)
class AutoencoderModelConfig:
    """What is trained."""

    scale: int = 4  # 2 or 4
    options: dict[str, Any] = field(default_factory=empty_table)  # other keyword arguments of core.networks.AutoEncoder
    init: str = ""  # an auto-encoder to start from; empty: random
    init_decoder: str = ""  # a super-resolution network that becomes the decoder; "random": none, even where it is frozen
    freeze_decoder: bool = False  # train the encoder only
    init_encoder: Literal["random", "average"] = added("random")  # average: an area average at step 0, for short trainings


@dataclass(frozen=True)
class AutoencoderConfig:
    """The whole config of this recipe."""

    name: str = "autoencoder"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    gt_weight: float = 1.0  # L_HR
    lq_weight: float = 1.0  # L_LR, which holds the bottleneck at the low-resolution image; the real-world task has none
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        if self.model.scale not in (2, 4):
            raise ValueError(f"model.scale: expected 2 or 4, got {self.model.scale}; auto-encoders exist for these factors")
        if self.data.gt_patch_px % self.model.scale:
            raise ValueError(
                f"data.gt_patch_px: expected a multiple of model.scale {self.model.scale}, got {self.data.gt_patch_px}; "
                "change one"
            )
        if min(self.gt_weight, self.lq_weight) < 0 or self.gt_weight + self.lq_weight == 0:
            raise ValueError(
                f"gt_weight, lq_weight: expected weights of at least 0, not both 0, got {self.gt_weight} and {self.lq_weight}; "
                "the paper uses 1 and 1"
            )
        if self.model.freeze_decoder and self.model.options.get("encoder") == "bicubic":
            raise ValueError("model.freeze_decoder: expected false with a bicubic encoder, got true; nothing would be trained")
        if self.model.freeze_decoder and not (self.model.init or self.model.init_decoder):
            raise ValueError(
                "model.freeze_decoder: expected a trained decoder, got a random one; name a network in model.init_decoder"
            )


def build_model(config: AutoencoderConfig, model_folders: Sequence[str | Path] = ()) -> AutoEncoder:
    """The auto-encoder that the config describes, random or from the weights that it names, with what is frozen frozen.

    Raises:
        MissingModelError, WeightsError: weights are missing or do not fit.
        ValueError: options it does not take.
    """
    model = config.model
    autoencoder = build_autoencoder(_options(config))
    if model.init_encoder == "average" and not model.init:
        start_as_average(autoencoder)
    if model.init:
        load_into(autoencoder, load_autoencoder(model.init, model_folders).state_dict(), model.init)
    if model.init_decoder and model.init_decoder != RANDOM:
        with setting("model.init_decoder"):
            path = find_model(model.init_decoder, model_folders)
        state = read_official(path)
        load_into(autoencoder.decoder, {name: tensor.float() for name, tensor in state.items()}, model.init_decoder)
    autoencoder.train().requires_grad_(True)
    autoencoder.decoder.requires_grad_(not model.freeze_decoder)
    return autoencoder


def _options(config: AutoencoderConfig) -> dict[str, Any]:
    return {"scale": config.model.scale, **config.model.options}


def reconstruction_terms(config: AutoencoderConfig, out: Tensor, bottleneck: Tensor, gt: Tensor, lq: Tensor) -> LossTerms:
    """Both terms of L_AE that have a weight, per sample."""
    terms = {"gt": (config.gt_weight, out, gt), "lq": (config.lq_weight, bottleneck, lq)}
    used = {name: term for name, term in terms.items() if term[0]}
    return LossTerms({name: l1_loss(a, b) for name, (_, a, b) in used.items()}, {name: w for name, (w, _, _) in used.items()})


def train(
    config: AutoencoderConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `AutoencoderConfig`.
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
        if config.run.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        parts = {"autoencoder": Trained(model, config.optimizer, config.schedule)}
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        # a frozen decoder only passes the gradient on: its lean twin keeps a fraction of the activations
        decode = lean(model.decoder) if config.model.freeze_decoder else model.decoder
        data = open_pairs(config, loop.samples_per_step, minimum_px=SMALLEST_HELD_OUT_PX)

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for _ in steps:
                for batch in loop.batches(feed):
                    with loop.autocast():
                        bottleneck = model.encode(batch.gt)
                        out = decode(bottleneck)
                    terms = reconstruction_terms(config, out, bottleneck, batch.gt, batch.lq)
                    loop.backward("autoencoder", terms, batch.names)
                loop.update("autoencoder")
                if loop.is_main:
                    _report(loop, loop.averaged("autoencoder"), config, data)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, loop.averaged("autoencoder"), weights, loop.state.step, loop.origins)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def _report(loop: Loop, model: nn.Module, config: AutoencoderConfig, data: PairData) -> None:
    """Validation, samples and kept weights, when they are due."""
    previews = loop.is_due(config.run.preview_every)
    if data.held_out and loop.is_due(config.run.validate_every):
        previews &= loop.validate(lambda watch: validate(model, data, loop.device, watch))
    if previews:
        loop.show(samples(model, data, loop.device))
    if loop.is_due(config.run.export_every):
        step = loop.state.step + 1
        save_model(config, model, loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors", step, loop.origins)


def validate(model: Any, data: PairData, device: torch.device, watch: Watch = unwatched) -> dict[str, float]:
    """The health of an auto-encoder over the held-out pictures.

    Returns:
        psnr_y: of AE(gt) against gt. bottleneck_psnr_y: of the bottleneck against the low-resolution image. texture: mean
        absolute Laplacian of AE(gt) over that of gt; below 1, since what cannot be predicted is lost. out_of_range: share of
        values of AE(gt) outside [0, 1], unclamped as the loss sees them.
    """
    sums = dict.fromkeys(("psnr_y", "bottleneck_psnr_y", "texture", "out_of_range"), 0.0)
    with evaluating(model):
        for lq, gt in held_out_pairs(data, watch=watch):
            bottleneck = model.encode(gt.to(device))
            out = model.decode(bottleneck).float().cpu()
            sums["psnr_y"] += float(psnr(out.clamp(0, 1), gt, crop=data.scale))
            sums["bottleneck_psnr_y"] += float(psnr(bottleneck.float().cpu().clamp(0, 1), lq, crop=1))
            sums["texture"] += float(_roughness(out) / _roughness(gt).clamp_min(1e-9))
            sums["out_of_range"] += float(((out < 0) | (out > 1)).float().mean())
    return {name: total / len(data.held_out) for name, total in sums.items()}


def _roughness(image: Tensor) -> Tensor:
    laplacian = image.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).expand(3, 1, 3, 3)
    return F.conv2d(image, laplacian, groups=3).abs().mean()


def samples(model: Any, data: PairData, device: torch.device) -> Any:
    """What the bottleneck and the result look like, as a picture."""
    lq, gt = sample_pair(data)
    with evaluating(model):
        bottleneck = model.encode(gt.to(device))
        out = model.decode(bottleneck)
    return strip({"low resolution": lq, "bottleneck": bottleneck, "after the auto-encoder": out, "ground truth": gt})


def save_model(config: AutoencoderConfig, model: nn.Module, path: Path, step: int, origins: Mapping[str, str]) -> Path:
    """Write an auto-encoder file with everything needed to load it and to know what it is."""
    return save_autoencoder(
        path,
        model.state_dict(),
        _options(config),
        name=config.name,
        scale=config.model.scale,
        licence=config.licence,
        step=step,
        config=to_mapping(config),
        origins=dict(origins),
    )


__all__ = ["AutoencoderConfig", "AutoencoderModelConfig", "build_model", "save_model", "train", "validate"]
