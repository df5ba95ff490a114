"""Where the losers of Sobolev DPO come from: an adversary that imitates artefacts or is trained, a closed form, or lq itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.coupled import SMALLEST_SIGNAL, closed_form_negative, foreseen
from ..core.records import Conditioning, LossTerms
from ..core.sobolev import SobolevNorm
from .config import OptimizerConfig, ScheduleConfig
from .multi_step import ADVERSARY, AdapterConfig, Autocast, Trainee


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=5e-5, betas=(0.9, 0.999), weight_decay=0.01, max_grad_norm=1.0)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(kind="constant", warmup_steps=100)


@dataclass(frozen=True)
class AdversaryConfig:
    """What makes the negative of each pair."""

    # mimic: an adapter that flow_sft trained on artefacts foresees it; closed_form: the state moved inside a Sobolev ball to
    # where the reference's residual is smaller; energy: an adapter learns to do that while the policy is trained; lq: the input
    mode: Literal["mimic", "closed_form", "energy", "lq"] = "mimic"
    adapter: str = ""  # of mimic: the file, "tiny": random, for tests; of energy: a start, empty: none
    strength: float = 1.0  # lambda: share of the way from the ground truth to the negative
    radius: float = 0.05  # rho, of closed_form and energy: radius of the ball over the Sobolev norm of the state
    # L of the ball's norm, of closed_form and energy, in latent elements. With the loss's 64 the norm of a state is that of its
    # finest noise, and a ball of 5 % of it has room for a tint of several standard deviations; 2 pi keeps the change small
    length_scale: float = 2 * math.pi
    lq_loser_weight: float = 0.0  # weight of a second pair whose loser is the enlarged input, with the same noise and time
    lora: AdapterConfig = field(default_factory=AdapterConfig)  # of energy
    optimizer: OptimizerConfig = field(default_factory=_optimizer)  # of energy
    schedule: ScheduleConfig = field(default_factory=_schedule)  # of energy


@dataclass(frozen=True)
class Batch:
    """One forward pass's pictures as latents, with noise and time.

    Attributes:
        clean: of the ground truth, [B, C, h, w].
        z_lq: what conditions the model.
        noise: standard normal, like clean.
        time: [B].
        lq_up: the enlarged input in [-1, 1], [B, 3, H, W].
        gt: the ground truth in [-1, 1].
        told: what the model is told.
    """

    clean: Tensor
    z_lq: Tensor
    noise: Tensor
    time: Tensor
    lq_up: Tensor
    gt: Tensor
    told: Conditioning | None


def check_adversary(config: AdversaryConfig) -> None:
    """What can be said before anything is opened.

    Raises:
        ValueError: names the key.
    """
    if config.mode == "mimic" and not config.adapter:
        raise ValueError(
            'adversary.adapter: expected the file of an adversary for mode "mimic", got none; train one with flow_sft on '
            'artefacts (asasr-adversary-*), or use mode "closed_form"'
        )
    if config.mode in ("closed_form", "lq") and config.adapter:
        raise ValueError(f'adversary.adapter: expected none for mode "{config.mode}", got {config.adapter}; leave it out')
    if not math.isfinite(config.strength) or not 0 < config.strength <= 1:
        raise ValueError(f"adversary.strength: expected a number in (0, 1], got {config.strength}; the paper uses 1")
    if not math.isfinite(config.radius) or config.radius <= 0:
        raise ValueError(f"adversary.radius: expected a number above 0, got {config.radius}; 0.05 is usual")
    if not math.isfinite(config.length_scale) or config.length_scale <= 0:
        raise ValueError(f"adversary.length_scale: expected a number above 0, got {config.length_scale}; 2 pi is usual")
    if not math.isfinite(config.lq_loser_weight) or config.lq_loser_weight < 0:
        raise ValueError(f"adversary.lq_loser_weight: expected at least 0, got {config.lq_loser_weight}; 0 leaves it out")
    if config.lora.rank < 1:
        raise ValueError(f"adversary.lora.rank: expected at least 1, got {config.lora.rank}; 16 is usual")


Learn = Callable[[LossTerms], None]


def make_negative(
    config: AdversaryConfig, trainee: Trainee, model: Autocast, batch: Batch, norm: SobolevNorm, learn: Learn | None = None
) -> Tensor:
    """Clean latents of the losers, [B, C, h, w] without gradient; the reference is active afterwards.

    Args:
        config: which way.
        trainee: whose adapters are switched.
        model: predicts, under autocast.
        batch: the positives.
        norm: of the ball.
        learn: of mode energy: takes the adversary's loss and differentiates it.

    Source:
        ASASR, arXiv:2605.23264, Eq. (16), (19), (38); asasr.md 2.10.
    """
    if config.mode == "lq":
        trainee.stack.use(*trainee.reference)
        return model.encode(batch.lq_up)
    if config.mode == "mimic":
        with torch.no_grad(), trainee.stack.using(*trainee.reference, ADVERSARY):
            return foreseen(model, batch.clean, batch.noise, batch.time, batch.z_lq, batch.told)
    if config.mode == "closed_form":
        with trainee.stack.using(*trainee.reference):
            return closed_form_negative(
                model, batch.clean, batch.noise, batch.time, batch.z_lq, batch.told, norm=norm, radius_ratio=config.radius
            )
    return _learned(config, trainee, model, batch, norm, learn)


def _learned(
    config: AdversaryConfig, trainee: Trainee, model: Autocast, batch: Batch, norm: SobolevNorm, learn: Learn | None
) -> Tensor:
    """The negative of an adversary that sees the ground truth in place of the input, and its loss.

        delta = radius v / |v|_{H^s},   v = adversary(x_w, t, encode_lq(gt));   J = mean |reference(x_w + delta, t, c) - target|^2

    Seeing only what the model sees it could not know which way to move: the expected gradient there is zero (asasr.md 2.10).

    The gradient goes through the reference first and then, with the adversary's adapter active again, through the adversary: with
    gradient checkpointing a block runs again under the adapters that are active in the backward pass.
    """
    process, stack = model.process, trainee.stack
    state = process.add_noise(batch.clean, batch.noise, batch.time).float()
    target = process.target(batch.clean, batch.noise).float()
    radius = config.radius * norm.squared_norm(state).sqrt()
    sees = model.encode_lq(batch.gt)
    with stack.using(*trainee.reference, ADVERSARY):
        delta = norm.to_sphere(model.predict(state, batch.time, sees, batch.told), radius)
    if learn is not None:
        moved = delta.detach().requires_grad_(True)
        with stack.using(*trainee.reference):
            energy = (model.predict(state + moved, batch.time, batch.z_lq, batch.told) - target).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad(energy.sum(), moved)
        follows = (delta * gradient).flatten(1).sum(1)  # its gradient in the adversary is that of the energy
        with stack.using(*trainee.reference, ADVERSARY):
            learn(LossTerms({"energy": energy.detach() + follows - follows.detach()}))
    stack.use(*trainee.reference)
    one = torch.ones_like(batch.clean[:, :1, :1, :1])
    share = process.add_noise(one, torch.zeros_like(one), batch.time)
    moved_by = torch.where(share < SMALLEST_SIGNAL, 0.0, delta.detach() / share.clamp_min(SMALLEST_SIGNAL))
    return batch.clean.float() + moved_by


def gap_weights(gaps: Tensor) -> Tensor:
    """Weights of pairs by how far apart their samples are, with a mean of 1: DP2O-SR's idea inside AS-DPO.

        w = 1 + r - mean(r),   r = (gap - min) / (max - min) over the batch, 0 where all gaps are the same

    Args:
        gaps: [B], at least 0.

    Returns:
        [B] in [0, 2].

    Source:
        DP2O-SR, arXiv:2510.18851v1, dp2o-sr.md 2.4, with the batch in place of the group.

    Example:
        >>> gap_weights(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.5000, 1.0000, 1.5000])
    """
    spread = gaps.max() - gaps.min()
    share = torch.where(spread > 0, (gaps - gaps.min()) / spread.clamp_min(torch.finfo(gaps.dtype).tiny), torch.zeros_like(gaps))
    return 1 + share - share.mean()


def needs_adversary(config: AdversaryConfig) -> bool:
    """Whether an adapter makes the negatives."""
    return config.mode in ("mimic", "energy")


__all__: Sequence[Any] = [
    "AdversaryConfig",
    "Batch",
    "check_adversary",
    "gap_weights",
    "make_negative",
    "needs_adversary",
]
