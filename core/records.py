"""Frozen bundles that travel between functions: named fields instead of tuples whose length depends on flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """A training or evaluation batch.

    Attributes:
        lq: degraded input, [B, 3, h, w] float32 in [0, 1].
        gt: ground truth, [B, 3, H, W] float32 in [0, 1].
        names: one name per sample, for error messages and reports.
    """

    lq: Tensor
    gt: Tensor
    names: tuple[str, ...]

    def to(self, device: str | Any, *, non_blocking: bool = False) -> "PairBatch":
        """The same batch on another device; `non_blocking` lets a GPU copy from page-locked memory while it computes."""
        return PairBatch(self.lq.to(device, non_blocking=non_blocking), self.gt.to(device, non_blocking=non_blocking), self.names)

    def pin_memory(self) -> "PairBatch":
        """The same batch in page-locked memory."""
        return PairBatch(self.lq.pin_memory(), self.gt.pin_memory(), self.names)


@dataclass(frozen=True)
class PreferenceBatch:
    """Preference pairs for training: of each picture one result that is preferred to another one.

    Attributes:
        chosen: preferred results, final latents of the sampler [B, C, y, x] float32; pictures [B, 3, H, W] in [0, 1] where no
            latents were kept (`are_latents`).
        rejected: the others, same shape and kind.
        lq: low-resolution inputs, [B, 3, h, w] float32 in [0, 1].
        weights: [B] float32, how much each pair counts; 1 on average over the table.
        gaps: [B] float32, difference of their rewards, >= 0.
        pairs: [B] int64, rows of the pair table.
        names: of the pictures.
        prompts: what the sampled model was told about each.
        are_latents: whether `chosen` and `rejected` are latents.
    """

    chosen: Tensor
    rejected: Tensor
    lq: Tensor
    weights: Tensor
    gaps: Tensor
    pairs: Tensor
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    are_latents: bool = True

    def to(self, device: str | Any, *, non_blocking: bool = False) -> "PreferenceBatch":
        """The same batch on another device, as `PairBatch.to`."""
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors().items()})

    def pin_memory(self) -> "PreferenceBatch":
        """The same batch in page-locked memory."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class LossTerms:
    """Named loss terms, each per sample, with the weight the composer gave it.

    Attributes:
        values: name -> [B] float32, unweighted.
        weights: name -> weight; a missing name weighs 1.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, float] = field(default_factory=dict[str, float])

    def total(self) -> Tensor:
        """Per-sample weighted sum, [B]."""
        parts = [self.weights.get(name, 1.0) * value for name, value in self.values.items()]
        if not parts:
            raise ValueError("values: expected at least one loss term, got none; connect a loss")
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


@dataclass(frozen=True)
class Conditioning:
    """What a backbone is told besides the picture.

    Attributes:
        embeddings: [B, N, D] token embeddings.
        mask: [B, N] bool, True for tokens that count, or None when all do.
        pooled: [B, P], what a text encoder says about the whole prompt, for the base models that take it; or None.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def to(self, device: str | Any, dtype: Any = None) -> "Conditioning":
        """The same on another device, embeddings in another precision where one is named."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Conditioning(self.embeddings.to(device, dtype), None if self.mask is None else self.mask.to(device), pooled)

    def rows(self, index: list[int]) -> "Conditioning":
        """Some of its entries, in that order."""
        mask, pooled = (None if part is None else part[index] for part in (self.mask, self.pooled))
        return Conditioning(self.embeddings[index], mask, pooled)


@dataclass(frozen=True)
class Restored:
    """The result of a restoration.

    Attributes:
        sr: restored images, [B, 3, H, W] float32 in [0, 1].
        lq_up: the input resized (bicubic, clamped) to the result's size, same shape: the reference of the colour fix.
        info: facts for reports: backbone, tile size, number of tiles, sigma, ...
        z: final latents of multi-step restoration, [B, C, h, w] float32, with the padding that the model needs; None elsewhere.
    """

    sr: Tensor
    lq_up: Tensor
    info: Mapping[str, Any]
    z: Tensor | None = None
