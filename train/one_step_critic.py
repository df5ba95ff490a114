"""The critic's side of one-step training: its settings, what it tells the generator, and its own loss on shared features."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..core.networks.clip_critic import ClipCritic
from .config import OptimizerConfig, ScheduleConfig
from .losses import FeaturesConfig, Logits, LossStack, precision


@dataclass(frozen=True)
class CriticConfig:
    """The critic; built only when losses.ragan is on."""

    features: FeaturesConfig = field(default_factory=lambda: FeaturesConfig("clip"))
    hidden: int = 512  # width of its heads
    precision: Literal["fp32", "bf16"] = "fp32"  # of the frozen backbone in the game's terms; heads and R1 are always fp32
    init: str = ""  # heads to start from: stage 1's `<name>-critic.safetensors`; empty: random
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def judged(critic: ClipCritic | None, fake: list[Tensor], real: list[Tensor]) -> Logits | None:
    """Logits for the generator's loss: gradient goes to `fake` only."""
    if critic is None:
        return None
    with critic.judging(), precision(fake[0].device, "fp32"):
        with torch.no_grad():
            wanted = critic.heads(real)
        return Logits(critic.heads(fake), wanted)


def critic_terms(
    config: CriticConfig,
    losses: LossStack,
    critic: ClipCritic,
    fake: list[Tensor],
    real: list[Tensor],
    gt: Tensor,
    generator: Generator,
) -> Any:
    """The critic's loss on features that the generator's pass has made; only the penalty's noisy copy is looked at anew."""
    with precision(gt.device, "fp32"):  # the heads, as the penalty's own pass through them
        logits = Logits(critic.heads(fake), critic.heads(real))
    assert losses.config.ragan is not None
    if not losses.config.ragan.r1_weight:
        return losses.ragan_critic_terms(logits)

    def judge(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            features: list[Tensor] = critic.features(images)
        return critic.heads(features)

    clean = logits.real if config.precision == "fp32" else None
    return losses.ragan_critic_terms(logits, losses.r1(judge, gt, generator, clean))


def critic_path(weights: Path) -> Path:
    """Where the critic's heads lie beside the final weights."""
    return weights.with_name(f"{weights.stem}-critic.safetensors")
