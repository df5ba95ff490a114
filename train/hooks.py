"""How a training run talks to its host (terminal, ComfyUI, test), and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Hooks(Protocol):
    """How a run talks to its host (terminal, ComfyUI, test)."""

    def progress(self, step: int, total: int, logs: Mapping[str, float]) -> None:
        """Called after every step; may raise the host's own interruption."""
        ...

    def preview(self, image: Any) -> None:
        """Called with a PIL image (curve or sample)."""
        ...

    def validating(self, done: int, total: int) -> None:
        """Called between steps, before every held-out picture (or tile of one): so many of them are done."""
        ...

    def should_stop(self) -> bool:
        """Asked before every forward pass, of validation too."""
        ...


class SilentHooks:
    """Hooks for tests and imports: nothing is shown, nothing stops."""

    def progress(self, step: int, total: int, logs: Mapping[str, float]) -> None:
        """Ignore."""

    def preview(self, image: Any) -> None:
        """Ignore."""

    def validating(self, done: int, total: int) -> None:
        """Ignore."""

    def should_stop(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class TrainResult:
    """What a recipe returns.

    Attributes:
        folder: the run's folder.
        weights: the final weight file.
        curve: the loss curve as PNG.
        logs: one mapping per logged step.
        step: steps done.
    """

    folder: Path
    weights: Path
    curve: Path
    logs: tuple[Mapping[str, float], ...]
    step: int
