"""Align a multi-step model with its ground truth by preferences measured in a Sobolev norm: S-DPO and AS-DPO of ASASR.

One step: an adversary foresees a negative from the ground truth's noisy state; positive and negative are noised alike; the frozen
reference and the policy predict both; the policy learns to fit the positive better, and the negative worse, than the reference
does, where residuals are weighed by spatial frequency.

    L = -log sigmoid( kappa (dE(negative) - dE(positive)) ),   dE = E_policy - E_reference,   E = mean of w(k) / mean(w) |DCT|^2

Reference, policy and adversary are one network with other adapters active; the base is held once. Per forward pass: the adversary
and the reference without graph, then the policy with it, positive and negative as one batch.

Supported: FLUX.1 (tokens or control branch), SD 1.5, SD 2 and SDXL (channels or control branch), `pixel`; adapters on the network
that denoises; negatives by mimicry, in closed form, by an adversary that is trained along, or from the input itself; order 0 is
Euclidean; accumulation, several processes, bf16 autocast, EMA, gradient checkpointing, 8-bit optimiser, latents kept on disk,
resume.
Assumed: one GPU holds the base once, the autoencoder, and what a batch needs.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.coupled import coupled_pair
from ...core.images import to_model_range
from ...core.losses.preference import PairEnergies, preference_figures, preference_loss, preference_terms
from ...core.records import Conditioning, LossTerms, PairBatch
from ...core.sobolev import BANDS, SobolevNorm, logit_scale
from ..config import ConfigError, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, positive, setting, to_mapping
from ..data import PairData
from ..drift import DivergedError, DriftGuard, GuardConfig, check_guard, complain_of_energies
from ..flow_terms import Draw, drawn, encoded, enlarged, sample_draws
from ..loop import Hooks, Loop, SilentHooks, Trained, TrainResult
from ..multi_step import (
    ADVERSARY,
    POLICY,
    AdapterConfig,
    Autocast,
    MultiStepModelConfig,
    Trainee,
    add_adapter,
    build_trainee,
    check_multi_step,
    load_adapter,
    one_prompt,
    save_trained,
)
from ..multi_step_validation import SamplingConfig, preview, sampled, validate
from ..negatives import AdversaryConfig, Batch, check_adversary, gap_weights, make_negative
from ..one_step import use_checkpointing
from ..one_step_files import showing
from ..origins import ORIGINS
from ..session import open_pairs, training
from ..validation import SMALLEST_HELD_OUT_PX, sample_pair

LOGGER = logging.getLogger("alignsr")


@dataclass(frozen=True)
class PreferenceConfig:
    """The loss."""

    order: float = 1.5  # s of the Sobolev norm; 0: Euclidean DPO
    length_scale: float = 64.0  # L in latent elements; tiny models: the side of their grid
    beta: float = 2000.0
    beta_mode: Literal["normalized", "raw"] = "normalized"  # raw: times the mean weight, as the released code reads it
    winner_anchor: float = 0.0  # weight of the policy's energy on the ground truth, against both energies rising
    weighting: Literal["uniform", "gap"] = "uniform"  # gap: pairs further apart count more, see `negatives.gap_weights`


@dataclass(frozen=True)
class SobolevDPOConfig:
    """The whole config of this recipe."""

    name: str = "model"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    model: MultiStepModelConfig = field(default_factory=MultiStepModelConfig)
    lora: AdapterConfig = field(default_factory=AdapterConfig)  # the policy
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # of validation and previews
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        check_multi_step(self.model, self.lora, self.data.gt_patch_px)
        check_adversary(self.adversary)
        check_guard(self.guard)
        loss = self.preference
        SobolevNorm(loss.order, loss.length_scale)
        logit_scale(loss.beta, SobolevNorm(0), (1, 1))
        if not math.isfinite(loss.winner_anchor) or loss.winner_anchor < 0:
            raise ValueError(f"preference.winner_anchor: expected at least 0, got {loss.winner_anchor}; 0 leaves it out")
        if loss.weighting == "gap" and self.run.batch_size < 2:
            raise ValueError(
                f'preference.weighting: expected "uniform" for run.batch_size {self.run.batch_size}, got "gap", which compares '
                "the pairs of a forward pass with each other; raise the batch size"
            )
        if self.run.channels_last:
            raise ValueError("run.channels_last: expected false, got true; transformers have no such format")


def build_models(config: SobolevDPOConfig, model_folders: Sequence[str | Path] = ()) -> Trainee:
    """The base with reference, policy and adversary on it; only what is trained has gradients.

    Raises:
        MissingModelError, WeightsError, ValueError: see `train.multi_step`.
        ConfigError: no adapter of supervised training for a model that needs one to restore at all.
    """
    model, adversary = config.model, config.adversary
    if model.backbone != "pixel" and not model.adapter and not model.control:
        raise ConfigError(
            f"model.adapter: expected the adapter of supervised training (flow_sft), got none; {model.backbone} without it does "
            "not look at the input picture, train one first (asasr-sft-*)"
        )
    trainee = build_trainee(model, config.name, config.licence, model_folders)
    add_adapter(trainee, POLICY, config.lora, seed=config.run.seed, init=model.init, folders=model_folders)
    trained = [POLICY]
    if adversary.mode == "mimic":
        with setting("adversary.adapter"):
            load_adapter(trainee, ADVERSARY, adversary.adapter, model_folders)
    elif adversary.mode == "energy":
        seed = config.run.seed + 1
        add_adapter(trainee, ADVERSARY, adversary.lora, seed=seed, init=adversary.adapter, folders=model_folders)
        trained.append(ADVERSARY)
    trainee.stack.train(*trained)
    if model.use_checkpointing:
        use_checkpointing(trainee.backbone)  # pyright: ignore[reportArgumentType]  # asks for its modules alone
    return trainee


def train(
    config: SobolevDPOConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `SobolevDPOConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where weight files are looked for by name.

    Raises:
        DivergedError: the policy drifted from the ground truth; its weights so far are in `exports`.
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    with training(config.run.seed):
        trainee = build_models(config, model_folders)
        parts = {POLICY: Trained(nn.ParameterList(trainee.stack.parameters(POLICY)), config.optimizer, config.schedule)}
        if config.adversary.mode == "energy":
            spec, weights = config.adversary, nn.ParameterList(trainee.stack.parameters(ADVERSARY))
            parts[ADVERSARY] = Trained(weights, spec.optimizer, spec.schedule, is_averaged=False)
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        trainee.to(loop.device)
        model = Autocast(trainee.backbone, loop.autocast, config.model.latent_cache)
        told = one_prompt(config.model, trainee.backbone, folder, loop.device, model_folders)
        norm = SobolevNorm(config.preference.order, config.preference.length_scale)
        data = open_pairs(config, loop.samples_per_step, minimum_px=SMALLEST_HELD_OUT_PX)
        guard = DriftGuard(config.guard, loop.state.extra.get("drift", ()))
        shown: dict[str, Tensor] = {}  # samples from before training, which do not change

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for _ in steps:
                drifts: list[list[float]] = []
                for micro, pictures in enumerate(loop.batches(feed)):
                    draws = sample_draws(config.run.seed, loop.first_index(micro), len(pictures.names))
                    batch = encode(config, model, pictures, told, draws)
                    terms, drift = _pass(config, trainee, model, batch, norm, loop, pictures.names)
                    loop.backward(POLICY, terms, pictures.names)
                    drifts.append(drift)
                loop.update(*parts)
                guard.add(*_mean(drifts))
                loop.state.extra["drift"] = guard.state
                if loop.is_main:
                    _report(loop, trainee, config, data, told, shown)
                _heed(guard, loop, trainee, config)

        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            save_model(config, trainee, loop, weights, loop.state.step)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def encode(
    config: SobolevDPOConfig, model: Autocast, pictures: PairBatch, told: Conditioning | None, draws: Sequence[Draw]
) -> Batch:
    """Pictures as latents, with one noise and one time per pair; what is drawn is a function of the seed and the pair's place."""
    lq_up = enlarged(model, pictures)
    gt = to_model_range(pictures.gt)
    clean = encoded(model, gt, draws, config.model.posterior)
    noise, time = drawn(model.process, clean, draws)
    return Batch(clean, model.encode_lq(lq_up), noise, time, lq_up, gt, told)


def _pass(
    config: SobolevDPOConfig,
    trainee: Trainee,
    model: Autocast,
    batch: Batch,
    norm: SobolevNorm,
    loop: Loop,
    names: tuple[str, ...],
) -> tuple[LossTerms, list[float]]:
    """The loss of one forward pass with graph, the policy active, and the drift: whole, and by band.

    Source:
        ASASR, arXiv:2605.23264, Eq. (16)-(18); asasr.md 1.4, whose order of forward passes this keeps.
    """
    spec, step = config.adversary, loop.state.step + 1
    learn = (lambda terms: loop.backward(ADVERSARY, terms, names)) if spec.mode == "energy" else None
    negative = make_negative(spec, trainee, model, batch, SobolevNorm(norm.order, spec.length_scale), learn)
    pair = coupled_pair(model.process, batch.clean, negative, batch.noise, batch.time, strength=spec.strength)
    states, times, targets, rows = pair.states, pair.times, pair.targets, 2
    if spec.lq_loser_weight:
        far = coupled_pair(model.process, batch.clean, model.encode(batch.lq_up), batch.noise, batch.time)
        count = len(batch.clean)
        states, times = torch.cat((states, far.states[count:])), torch.cat((times, batch.time))
        targets, rows = torch.cat((targets, far.targets[count:])), 3
    z_lq = torch.cat([batch.z_lq] * rows)
    with torch.no_grad(), trainee.stack.using(*trainee.reference):
        apart = model.predict(states, times, z_lq, batch.told) - targets
        before, bands_before = norm.energy(apart), norm.band_energies(apart)
    trainee.stack.use(*trainee.reference, POLICY)  # stays active through the backward pass, which may run blocks again
    apart = model.predict(states, times, z_lq, batch.told) - targets
    after, bands_after = norm.energy(apart), norm.band_energies(apart.detach())
    loop.stop_together(complain_of_energies({"reference": bands_before, "policy": bands_after}, step, names))
    size = (states.shape[-2], states.shape[-1])
    kappa = logit_scale(config.preference.beta, norm, size, raw=config.preference.beta_mode == "raw")
    policy, reference = after.chunk(rows), before.chunk(rows)
    energies = PairEnergies(policy[0], policy[1], reference[0], reference[1])
    weights = gap_weights(norm.energy(pair.negative - batch.clean)) if config.preference.weighting == "gap" else None
    anchor = config.preference.winner_anchor
    terms = preference_terms(energies, logit_scale=kappa, weights=weights, winner_anchor=anchor)
    if spec.lq_loser_weight:
        lq = preference_loss(policy[0] - reference[0], policy[2] - reference[2], logit_scale=kappa)
        terms = LossTerms({**terms.values, "lq_loser": lq}, {**terms.weights, "lq_loser": spec.lq_loser_weight})
    figures = preference_figures(energies, logit_scale=kappa) | {"reference_chosen": reference[0].mean()}
    change = (bands_after - bands_before).chunk(rows)
    for index, band in enumerate(BANDS):
        figures |= {f"chosen_{band}": change[0][:, index].mean(), f"rejected_{band}": change[1][:, index].mean()}
    found = loop.watch(figures)
    level = max(found["reference_chosen"], 1e-12)  # shares of means, not means of shares: the same for any number of processes
    return terms, [found["chosen"] / level, *(found[f"chosen_{band}"] / level for band in BANDS)]


def _mean(rows: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return means[0], means[1:]


def _heed(guard: DriftGuard, loop: Loop, trainee: Trainee, config: SobolevDPOConfig) -> None:
    """Stop, or warn once per window, where the policy has drifted."""
    step = loop.state.step + 1
    told = guard.complaint(step)
    if not told:
        return
    if config.guard.action == "warn":
        if step % config.guard.window == 0 and loop.is_main:
            LOGGER.warning("%s", told)
        return
    path = loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors"
    if loop.is_main:
        save_model(config, trainee, loop, path, step)
    loop.accelerator.wait_for_everyone()  # whoever leaves first ends the others, who may be writing
    raise DivergedError(f"{told}; weights so far are in {path}")


def _report(
    loop: Loop, trainee: Trainee, config: SobolevDPOConfig, data: PairData, told: Conditioning | None, shown: dict[str, Tensor]
) -> None:
    """Validation, samples with their spectra and kept weights, when they are due."""
    spec, device = config.sampling, loop.device
    validates = bool(data.held_out) and loop.is_due(config.run.validate_every)
    previews = loop.is_due(config.run.preview_every)
    if validates or previews:
        policy = (*trainee.reference, POLICY)
        with showing(loop.parts[POLICY].module, loop.averaged(POLICY)), trainee.stack.using(*policy):
            if validates:
                previews &= loop.validate(lambda watch: validate(trainee.backbone, data, spec, told, device, watch))
            if previews:
                lq, gt = sample_pair(data)
                if not shown:
                    with trainee.stack.using(*trainee.reference):
                        shown["before"] = sampled(trainee.backbone, lq, data.scale, spec, told, device)
                mine = sampled(trainee.backbone, lq, data.scale, spec, told, device)
                loop.show(preview({**shown, "after": mine}, lq, gt))
    if loop.is_due(config.run.export_every):
        step = loop.state.step + 1
        save_model(config, trainee, loop, loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors", step)


def save_model(config: SobolevDPOConfig, trainee: Trainee, loop: Loop, path: Path, step: int) -> Path:
    """Write the policy, see `train.multi_step.save_trained`; in mode energy the adversary too, as `<stem>-adversary`."""
    info = {"name": config.name, "scale": config.model.scale, "licence": config.licence, "step": step}
    described = {**info, "config": to_mapping(config), ORIGINS: loop.origins}
    if config.adversary.mode == "energy":
        named = trainee.stack.adapter(ADVERSARY, **{**described, **trainee.facts})
        from ...core.lora_files import save_adapter

        save_adapter(path.with_name(f"{path.stem}-adversary.safetensors"), named)
    with showing(loop.parts[POLICY].module, loop.averaged(POLICY)):
        return save_trained(trainee, POLICY, path, described, config.model.save_dtype)


__all__ = ["PreferenceConfig", "SobolevDPOConfig", "build_models", "encode", "train"]
