"""Train a multi-step model towards the candidates that metrics prefer: DP2O-SR, pipeline B.

One step: B pairs of candidates of the reference, read from a run of `alignsr candidates`. Noise and time are drawn once per pair;
policy and reference answer at the chosen and at the rejected state; mean squared errors over all elements, in float32, give

    delta = (e_policy^w - e_policy^l) - (e_reference^w - e_reference^l),   L = mean over pairs of w softplus(beta / 2 delta)

with beta = 5000, so a factor of exactly 2500 on delta, and the weights w of the pair table (mean 1). Neither sampler nor metric
runs, but for the guard's probe.

Supported: flux1 and stable_diffusion with a control branch trained whole (as published), by an adapter on it, or an adapter on
the network; pixel by an adapter; a frozen adapter beneath; errors of the reference live or computed beforehand; accumulation,
several processes, bf16 autocast, gradient checkpointing, 8-bit optimiser, resume; early stop by reward or drift.
Assumed: one GPU holds the frozen network once; text was encoded when candidates were sampled, or is now, once per prompt.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.checks import check_range
from ...core.losses.preference import PairEnergies, preference_terms
from ...core.records import PreferenceBatch
from ..candidates.config import CandidatesConfig
from ..config import OptimizerConfig, RunConfig, ScheduleConfig, added, positive, run_only, to_mapping
from ..guard import Guard, GuardConfig, Probe
from ..loop import Hooks, Loop, SilentHooks, Stopped, Trained, TrainResult, autocast_for
from ..multi_step import POLICY, AdapterConfig, Autocast, MultiStepModelConfig
from ..one_step import DTYPES
from ..one_step_files import showing
from ..origins import ORIGINS
from ..policy import Policy, build_policy, check_policy, save_policy
from ..preference_sampling import as_sampled, before_and_after, check_candidates, check_latents, tell_as_sampled
from ..preference_step import PairState, errors, figures, labels, pair_state
from ..preferences import FINGERPRINT, PreferenceData, require_same_pairs
from ..processes import make_accelerator
from ..prompts import PROMPTS, Tell, prompt_teller
from ..reference_errors import ReferenceErrors, precompute, weights_digest
from ..session import training
from ..validation import Watch

LOGGER = logging.getLogger("alignsr")
PART = "policy"
CACHE = "reference-errors"  # inside the run folder


@dataclass(frozen=True)
class PairsDataConfig:
    """Which pairs are learned from."""

    pairs: str = "runs/candidates"  # run folder of `alignsr candidates`, or the path of its pairs.parquet
    weights: Literal["hpo", "uniform"] = "hpo"  # of pairs: the table's (reward gap x spread of the picture's rewards), or all 1
    picks: int = 0  # N, to pair the candidates anew by their rewards, 1 is best against worst; 0: the table as it was curated
    any_model: bool = added(False)  # true: the candidates may be of other weights or another guidance than [model] says
    workers: int = run_only(0)  # threads that prepare coming batches


@dataclass(frozen=True)
class PreferenceLossConfig:
    """The loss."""

    beta: float = 5000.0  # halved in the loss: a factor of beta / 2 on the difference of mean squared errors
    sigma_grid: int = 1000  # of flows: noise levels are multiples of 1 / this, as FLUX's table has them; 0: any
    prompt_dropout: float = 0.0  # share of pairs told the empty prompt, the same for both members and both models
    # live: the reference answers in every step; precomputed: its errors are computed first and kept, the result is the same
    reference: Literal["live", "precomputed"] = "live"
    reference_cache: str = run_only("")  # folder of such errors, to share between runs; empty: inside the run folder


@dataclass(frozen=True)
class PerceptualDpoConfig:
    """The whole config of this recipe."""

    name: str = "policy"  # file name of the result
    licence: str = "Apache-2.0"  # of the resulting weights
    train: Literal["control", "control_lora", "lora"] = "control"  # the control branch, an adapter on it, or one on the network
    model: MultiStepModelConfig = field(default_factory=MultiStepModelConfig)
    lora: AdapterConfig = field(default_factory=AdapterConfig)  # not for train = "control"
    data: PairsDataConfig = field(default_factory=PairsDataConfig)
    loss: PreferenceLossConfig = field(default_factory=PreferenceLossConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Cross-field checks."""
        positive(self.run, "steps", "batch_size", "accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        positive(self.model, "scale")
        positive(self.data, "picks", "workers", low=0)
        positive(self.loss, "sigma_grid", low=0)
        check_policy(self.train, self.model)
        check_range(self.loss.prompt_dropout, "loss.prompt_dropout", 0.0, 1.0)
        if not 0 < self.loss.beta < float("inf"):
            raise ValueError(f"loss.beta: expected a number above 0, got {self.loss.beta}; the paper uses 5000")
        if self.train != "control" and self.lora.rank < 1:
            raise ValueError(f"lora.rank: expected at least 1 for train = {self.train!r}, got {self.lora.rank}; raise it")
        if self.run.precision == "fp16":
            raise ValueError('run.precision: expected "bf16" or "fp32", got "fp16"; errors that differ by 1e-4 count')

        if self.train == "control" and self.run.precision == "fp32" and self.model.precision != "fp32":
            raise ValueError(
                f'run.precision: expected "bf16" beside model.precision "{self.model.precision}" where control is trained, got '
                '"fp32"; set it, or model.precision to "fp32"'
            )

    @property
    def logit_scale(self) -> float:
        """What multiplies the difference of errors: beta / 2."""
        return self.loss.beta / 2


def train(
    config: PerceptualDpoConfig,
    folder: str | Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    model_folders: Sequence[str | Path] = (),
) -> TrainResult:
    """Train, and write weights, curve, samples and log into `folder`.

    Args:
        config: see `PerceptualDpoConfig`.
        folder: run folder.
        hooks: the host's progress, preview and stop.
        resume: continue a run in `folder` that was interrupted; the result equals the uninterrupted one bit for bit on one CPU.
        model_folders: where weight files are looked for by name.

    Raises:
        ConfigError, DataError, WeightsError, NonFiniteError, Stopped, FileExistsError: see their classes.

    Source:
        DP2O-SR, arXiv:2510.18851v1; specification 2.5 to 2.8.
    """
    folder, hooks = Path(folder), hooks or SilentHooks()
    data = open_data(config)
    if resume:
        require_same_pairs(folder, data)
    settings = check_candidates(config.model, data, any_model=config.data.any_model, folders=model_folders)
    with training(config.run.seed):
        policy = open_policy(config, model_folders)
        tell_as_sampled(policy, config.model, settings)
        check_latents(policy.backbone.spec, data)
        device = make_accelerator().device
        policy.to(device)
        tell = open_teller(config, policy, data, device, model_folders)
        known = None
        if config.loss.reference == "precomputed":  # before a checkpoint changes what the policy began as
            known = _precomputed(config, folder, policy, data, tell, hooks)
            policy.forget_reference()
        parts = {PART: Trained(policy.part, config.optimizer, config.schedule)}
        loop = Loop(config, config.run, parts, folder, hooks, resume, model_folders)
        loop.state.extra[FINGERPRINT] = data.fingerprint
        sampled, drawn = as_sampled(policy.backbone, settings, loop)
        probe = Probe(config.guard, drawn, data.store, data.held_out, tell, loop.device) if config.guard.pictures else None
        guard = Guard(config.guard, probe, folder, loop.state.extra.setdefault("guard", {}))
        _look_where_owed(config, policy, loop, guard, sampled)

        with loop.prefetch(data, config.data.workers) as feed, closing(loop.steps()) as steps:
            for step in steps:
                if loop.agreed(bool(guard.stopped)):
                    break
                drift = 0.0
                for micro, batch in enumerate(loop.batches(feed)):
                    first = loop.first_index(micro)
                    state = _state(config, policy, batch, tell, first)
                    if known is None:  # before the policy: its adapter must not be switched between its passes
                        with torch.no_grad(), policy.reference() as reference:
                            answered = errors(reference, state, loop.autocast)
                    else:
                        answered = known.read(step, first, batch.pairs).to(loop.device)
                    energies = PairEnergies.of(errors(policy.backbone, state, loop.autocast), answered)
                    terms = preference_terms(energies, logit_scale=config.logit_scale, weights=batch.weights)
                    loop.backward(PART, terms, labels(batch))
                    seen = loop.watch(figures(energies, config.logit_scale))
                    drift += seen["drift"] / config.run.accumulation_steps
                loop.update(PART)
                guard.watch(step + 1, drift)
                if loop.is_main:
                    _report(config, policy, loop, guard, sampled, drawn, data, tell)
        _require_look(config, loop, guard)  # that of the last step may have been cut: what it says decides which weights are best

        best = guard.restore_best(loop.averaged(PART)) if guard.stopped else 0
        if guard.stopped:
            LOGGER.warning("%s: stopped early: %s; the weights are those of step %d", folder, guard.stopped, best)
        weights = folder / f"{config.name}.safetensors"
        if loop.is_main:
            with showing(policy.part, loop.averaged(PART)):
                facts = _info(config, loop.state.step, data, loop.origins) | {"stopped": guard.stopped, "best_step": best}
                save_policy(policy, weights, facts, config.model.save_dtype)
        loop.finish()
        return TrainResult(folder, weights, folder / "curve.png", tuple(loop.logs), loop.state.step)


def open_data(config: PerceptualDpoConfig) -> PreferenceData:
    """The pairs of a config.

    Raises:
        DataError: see `PreferenceData`.
    """
    return PreferenceData(
        config.data.pairs,
        config.run.seed,
        uniform=config.data.weights == "uniform",
        picks=config.data.picks,
        held_out=config.guard.pictures,
    )


def learned_from(config: PerceptualDpoConfig) -> dict[str, str]:
    """What the header of this config's weights says of the pairs that they were learned from, as these are now.

    Raises:
        DataError: see `PreferenceData`.
    """
    return {FINGERPRINT: open_data(config).fingerprint}


def open_policy(config: PerceptualDpoConfig, model_folders: Sequence[str | Path] = ()) -> Policy:
    """Policy and reference of a config, see `policy.build_policy`."""
    facts = {"seed": config.run.seed, "name": config.name, "licence": config.licence}
    return build_policy(config.train, config.model, config.lora, folders=model_folders, **facts)


def open_teller(
    config: PerceptualDpoConfig, policy: Policy, data: PreferenceData, device: torch.device, folders: Sequence[str | Path] = ()
) -> Tell:
    """Prompts to embeddings, from those that were encoded when the candidates were sampled."""
    return prompt_teller(
        config.model.text,
        policy.backbone,
        config.model.backbone,
        folder=data.store.folder / PROMPTS,
        dtype=DTYPES["bf16"],
        device=device,
        folders=folders,
    )


def _state(config: PerceptualDpoConfig, policy: Policy, batch: PreferenceBatch, tell: Tell, first: int) -> PairState:
    return pair_state(
        policy.backbone,
        batch,
        tell,
        scale=config.model.scale,
        seed=config.run.seed,
        first_index=first,
        grid=config.loss.sigma_grid,
        dropout=config.loss.prompt_dropout,
    )


def _precomputed(
    config: PerceptualDpoConfig, folder: Path, policy: Policy, data: PreferenceData, tell: Tell, hooks: Hooks
) -> ReferenceErrors:
    """The reference's errors of all steps, those that are missing computed now; see `precompute`."""
    accelerator, run = make_accelerator(), config.run
    device, processes = accelerator.device, int(accelerator.num_processes)
    facts = {
        "model": {**asdict(config.model), "init": "", "latent_cache": ""},
        **{key: getattr(run, key) for key in ("precision", "batch_size", "accumulation_steps", "seed")},
        **{key: getattr(config.loss, key) for key in ("sigma_grid", "prompt_dropout")},
        "pairs": data.digest,
        "train": config.train,  # a control branch that is trained whole is in float32, in the reference too
        # paths and names do not tell weights apart that were written anew
        "weights": weights_digest((policy.original or policy.backbone).modules(), without=f".{POLICY}."),
    }
    cache = config.loss.reference_cache or folder / CACHE
    known = ReferenceErrors(cache, facts, int(accelerator.process_index), processes)

    def answer(batch: PreferenceBatch, first: int) -> Tensor:
        with torch.no_grad(), policy.reference() as reference:
            return errors(reference, _state(config, policy, batch, tell, first), partial(autocast_for, run, device))

    precompute(known, run, data, answer, device=device, processes=processes, should_stop=hooks.should_stop)
    return known


def _look_where_owed(config: PerceptualDpoConfig, policy: Policy, loop: Loop, guard: Guard, sampled: Autocast) -> None:
    """The probe, where the run stands at a look that was not taken: before training, and after one was cut.

    Raises:
        Stopped: the user asked for it meanwhile.
    """
    step, seen = loop.state.step, dict[str, float]()

    def look(watch: Watch) -> dict[str, float]:
        seen.update(guard.look(step, sampled, policy.part, watch))
        return seen

    if loop.is_main and guard.is_owed(step, config.run.steps):
        with showing(policy.part, loop.averaged(PART)):
            loop.validate(look)
        if seen and step:
            if loop.logs and loop.logs[-1]["step"] == step:
                loop.logs[-1] |= seen
            loop.checkpoint()  # a look takes long: kept whatever comes
    _require_look(config, loop, guard)


def _require_look(config: PerceptualDpoConfig, loop: Loop, guard: Guard) -> None:
    """Go no further without the look that is due where the run stands, or the guard would decide otherwise than uninterrupted.

    Raises:
        Stopped: the user did not wait for it; a resumed run takes it first.
    """
    step, last = loop.state.step, config.run.steps
    if loop.agreed(loop.is_main and guard.is_owed(step, last)):
        raise Stopped(f"stopped at step {step} of {last}, in the middle of a look; continue with --resume")


def _report(
    config: PerceptualDpoConfig,
    policy: Policy,
    loop: Loop,
    guard: Guard,
    sampled: Autocast,
    drawn: CandidatesConfig,
    data: PreferenceData,
    tell: Tell,
) -> None:
    """The probe, a sample and kept weights, when they are due."""
    step = loop.state.step + 1
    with showing(policy.part, loop.averaged(PART)):
        previews = loop.is_due(config.run.preview_every)
        if guard.is_due(step, config.run.steps):
            previews &= loop.validate(lambda watch: guard.look(step, sampled, policy.part, watch))
        if previews:
            loop.show(before_and_after(sampled, data, drawn, tell, loop.device))
        if loop.is_due(config.run.export_every):
            save_policy(
                policy, loop.folder / "exports" / f"{config.name}-{step:08d}.safetensors", _info(config, step, data, loop.origins)
            )


def _info(config: PerceptualDpoConfig, step: int, data: PreferenceData, origins: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": config.name,
        "scale": config.model.scale,
        "licence": config.licence,
        "step": step,
        FINGERPRINT: data.fingerprint,
        ORIGINS: dict(origins),
        "config": to_mapping(config),
    }
