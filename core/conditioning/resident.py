"""A large model that is loaded when it is needed, works on a device, and leaves it afterwards."""

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, Literal, Protocol, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ..borrowed import Borrowed, nbytes, told
from ..checks import check_positive_int, did_you_mean
from ..memory import ROOM, must_fit

Keep = Literal["device", "home", "nothing"]
WORK_BYTES = 2**29  # beside the weights: a picture of a megapixel or a prompt is about a thousand tokens
SIXTEEN_BITS = f"choose 16 bits for its weights (bf16), {ROOM}"  # there is nothing below for a language model
KEEPS = cast(tuple[str, ...], get_args(Keep))


class Turns(Protocol):
    """Who is on the device: `core.backbones.offload.Residency`, shared with the backbone so that the two take turns."""

    device: torch.device

    def use(self, module: nn.Module) -> None:
        """Bring a module to the device, after the one before it has left."""
        ...

    def leave(self) -> None:
        """Send the resident module home."""
        ...


class HasModel(Protocol):
    """What `OnDemand` holds: anything with a module that can be moved."""

    @property
    def model(self) -> nn.Module:
        """The module."""
        ...


Held = TypeVar("Held", bound=HasModel)


class OnDemand(Generic[Held]):
    """Loads on first use and decides what stays afterwards.

    Args:
        load: reads the model to the CPU; called again after it was given up.
        device: where it works.
        keep: what is kept between uses: the weights on the `device`, the weights at `home` (the CPU), or `nothing`.
        turns: shared with other large models: it then decides who is on its device, and `device` is ignored.
        make_room: called with the bytes that will be needed there, before the model comes to its device.
        less_work: what a user can do besides where the model is there and its work does not fit.
    """

    def __init__(
        self,
        load: Callable[[], Held],
        device: str | torch.device = "cpu",
        keep: Keep = "home",
        turns: Turns | None = None,
        make_room: Callable[[int], None] | None = None,
        less_work: str = "",
    ) -> None:
        if keep not in KEEPS:
            raise ValueError(f"keep: expected one of {', '.join(KEEPS)}, got {keep!r}; {did_you_mean(keep, KEEPS)}")
        self.load, self.keep, self.turns, self.make_room = load, keep, turns, make_room
        self.device = torch.device(device) if turns is None else turns.device
        self.advice = f"{less_work}, {SIXTEEN_BITS}" if less_work else SIXTEEN_BITS
        self.held: Held | None = None
        self._borrowed: Borrowed | None = None

    @contextmanager
    def working(self) -> Generator[Held]:
        """The model on its device, for the duration of a `with` block.

        Raises:
            DoesNotFitError: it does not fit there, or what it computes does not.
        """
        held = self.load() if self.held is None else self.held
        self.held = held
        if self.make_room is not None and self._borrowed is None:
            self.make_room(nbytes(held.model) + WORK_BYTES)
        if self.turns is not None:
            self.turns.use(held.model)
        elif self._borrowed is None:
            self._borrowed = Borrowed(held.model, self.device, SIXTEEN_BITS)
        try:
            with must_fit(f"{told(held.model)} at work on {self.device}", self.advice):
                yield held
        finally:
            self._rest()

    def release(self) -> None:
        """Give the weights up; the next use loads them again."""
        if self.turns is not None and self.held is not None:
            self.turns.leave()
        self.held = self._borrowed = None

    def _rest(self) -> None:
        if self.keep == "nothing":
            self.release()
        elif self.keep == "home" and self.held is not None:
            if self._borrowed is not None:
                self._borrowed.give_back()
                self._borrowed = None
            elif self.turns is not None:
                self.turns.leave()


class EmbeddingCache:
    """The most recently used embeddings, on the CPU, by a key.

    Args:
        size: entries; an image's is 68 x 2560 values.
    """

    def __init__(self, size: int) -> None:
        self.size = check_positive_int(size, "size", low=0)
        self.entries: OrderedDict[Any, Tensor] = OrderedDict()

    def get(self, key: Any) -> Tensor | None:
        """The entry, which becomes the most recently used one, or None."""
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: Any, value: Tensor) -> None:
        """Add an entry and drop the least recently used ones that are too many."""
        self.entries[key] = value
        while len(self.entries) > self.size:
            self.entries.popitem(last=False)
