"""How pipeline A talks to its host, and how several processes share its work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from ..processes import make_accelerator

T = TypeVar("T")


class Watch(Protocol):
    """How a run talks to its host (terminal, ComfyUI, test). Both may raise the host's interruption: nothing finished is lost."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Called after every unit of work of a stage: `sampling`, a metric's name, ..."""
        ...

    def preview(self, image: Any) -> None:
        """Called with a PIL image."""
        ...


class SilentWatch:
    """For tests and imports: nothing is shown, nothing stops."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Ignore."""

    def preview(self, image: Any) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Team:
    """This process among those that a launcher started; alone without one.

    Attributes:
        accelerator: accelerate's.
        device: where this process works.
        rank: its number.
        size: how many there are.
    """

    accelerator: Any
    device: torch.device
    rank: int
    size: int

    @classmethod
    @contextmanager
    def joined(cls, num_threads: int) -> Iterator["Team"]:
        """Together with the other processes, with so many CPU threads of torch (0: as they are) for the time of the block."""
        threads = torch.get_num_threads()
        if num_threads:
            torch.set_num_threads(num_threads)
        accelerator = make_accelerator()
        try:
            yield cls(accelerator, accelerator.device, int(accelerator.process_index), int(accelerator.num_processes))
        finally:
            torch.set_num_threads(threads)

    @property
    def is_main(self) -> bool:
        """Whether this one writes what there is one of."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all have come here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def share(self, items: Sequence[T]) -> list[T]:
        """What this process does of a list that is the same for all."""
        return list(items[self.rank :: self.size])
