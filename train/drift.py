"""Guards of preference training: what is not finite is named with its band, a policy that fits the winners worse is stopped."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.sobolev import BANDS


class DivergedError(RuntimeError):
    """The policy fits the chosen samples worse than the reference does, by more than is allowed."""


@dataclass(frozen=True)
class GuardConfig:
    """When to stop."""

    max_drift: float = 0.02  # mean of dE_chosen / E_reference over the window; above it training stops. 0: never
    window: int = 50  # steps
    action: Literal["stop", "warn"] = "stop"


def check_guard(config: GuardConfig) -> None:
    """Raise ValueError for numbers that mean nothing."""
    if config.max_drift < 0 or config.window < 1:
        raise ValueError(
            f"guard.max_drift, guard.window: expected at least 0 and at least 1, got {config.max_drift} and {config.window}; "
            "0.02 and 50 are usual"
        )


def complain_of_energies(energies: Mapping[str, Tensor], step: int, names: Iterable[str]) -> str:
    """What to say of the first energy that is not finite; empty where all are.

    Args:
        energies: what -> energies by band, [B, bands].
        step: counted from 1, for the message.
        names: of the samples.

    Returns:
        Step, term, band and sample in a sentence.
    """
    together = torch.stack([bands.detach().float().sum() for bands in energies.values()])
    if bool(torch.isfinite(together).all()):
        return ""
    labels = list(names)
    for what, bands in energies.items():
        finite = torch.isfinite(bands)
        if not bool(finite.all()):
            row, band = (int(index) for index in (~finite).nonzero()[0])
            return (
                f"step {step}: energy of {what} is not finite in the {BANDS[band]} band for {labels[row % len(labels)]}; "
                "look at this sample or lower the learning rate"
            )
    return f"step {step}: energies are too large for float32; lower the learning rate"


class DriftGuard:
    """Watches the mean of dE_chosen / E_reference over the last steps, the whole and by band.

    Args:
        config: the limit.
        kept: figures of earlier steps of a run that is resumed, as `state` gave them.

    Source:
        asasr.md 5.5: preference losses can raise both energies while the margin grows.
    """

    def __init__(self, config: GuardConfig, kept: Iterable[list[float]] = ()) -> None:
        self.config = config
        self._rows: deque[list[float]] = deque((list(row) for row in kept), maxlen=config.window)

    @property
    def state(self) -> list[list[float]]:
        """What a checkpoint keeps."""
        return [list(row) for row in self._rows]

    def add(self, drift: float, by_band: Iterable[float]) -> None:
        """One step's figures: of the whole energy, and of each band as shares of the whole reference energy."""
        self._rows.append([drift, *by_band])

    @property
    def drift(self) -> float:
        """Mean over the window."""
        return sum(row[0] for row in self._rows) / len(self._rows) if self._rows else 0.0

    def complaint(self, step: int) -> str:
        """What to say when the limit is passed over a full window; empty otherwise.

        Args:
            step: counted from 1.
        """
        limit = self.config.max_drift
        if not limit or len(self._rows) < self.config.window or self.drift <= limit:
            return ""
        means: Any = [sum(row[i] for row in self._rows) / len(self._rows) for i in range(1, len(self._rows[0]))]
        worst = max(range(len(means)), key=lambda i: means[i])
        return (
            f"step {step}: term preference has diverged: the policy's energy of the chosen samples is "
            f"{100 * self.drift:.1f} % above the reference's over {self.config.window} steps (guard.max_drift is "
            f"{100 * limit:g} %), most of it in the {BANDS[worst]} band ({100 * means[worst]:+.1f} %); lower the learning rate, "
            "raise preference.winner_anchor, or stop earlier"
        )
