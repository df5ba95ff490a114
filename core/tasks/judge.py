"""What a task downstream is to the evaluation: something that sees pictures one after the other and then has scores."""

from typing import Protocol

from torch import Tensor


class Judge(Protocol):
    """One network, or one OCR engine, on one method's pictures.

    Attributes:
        metrics: keys of quantities.DOWNSTREAM that `result` may give.
        remarks: how it judges where there is a choice.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it may score."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of its scores should know."""
        ...

    def size_of(self, name: str) -> tuple[int, int] | None:
        """(height, width) that the labels of a picture belong to, or None where labels do not say.

        Raises:
            ValueError: no labels for this picture.
        """
        ...

    def see(self, name: str, image: Tensor) -> dict[str, float]:
        """Look at a picture, [1, 3, H, W] float in [0, 1]; scores of this picture alone, where they mean something."""
        ...

    def result(self) -> dict[str, float]:
        """Scores of all pictures seen, percent; absent where there is nothing to score."""
        ...
