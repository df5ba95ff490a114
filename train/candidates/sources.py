"""The pictures of pipeline A: group number -> ground truth, low-resolution input and text, always the same."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.conditioning.tags import tags_to_text
from ...core.resize import imresize_uint8
from ..config import DataConfig
from ..data import fitted, one_thread, sample_seed
from ..sources import DataError, Source, find_sources
from ..store import ImageStore
from .config import CandidateDataConfig


@dataclass(frozen=True)
class Group:
    """One picture whose candidates are compared with one another.

    Attributes:
        index: its number.
        name: of the file.
        gt: ground truth, [3, H, W] uint8.
        lq: low-resolution input, [3, h, w] uint8.
        prompt: what a model is told about it.
    """

    index: int
    name: str
    gt: Tensor
    lq: Tensor
    prompt: str


class GroupSource:
    """All groups of a config, by number; a pure function of (seed, number).

    Args:
        config: where pictures are and how they are degraded.
        scale: upscaling factor.
        seed: of crops and degradations.

    Raises:
        DataError: no pictures, a folder that does not exist, or fewer pictures than are skipped.
    """

    def __init__(self, config: CandidateDataConfig, scale: int, seed: int) -> None:
        if config.degradation != "matlab":
            from ...core.degradation import find_config

            find_config(config.degradation)  # an unknown preset is told before any picture is read
        wanted = DataConfig(
            folders=config.folders, shards=config.shards, lq_folders=config.lq_folders, lq_suffix=config.lq_suffix
        )
        found = find_sources(wanted, scale)[0][config.skip :]
        self.sources: list[Source] = found[: config.limit] if config.limit else found
        if not self.sources:
            raise DataError(f"data.skip: expected fewer than the pictures there are, got {config.skip}; skip fewer")
        self.config, self.scale, self.seed = config, scale, seed
        self._store = ImageStore(self.sources, scale, cache=False)

    @property
    def names(self) -> list[str]:
        """One per group."""
        return [source.gt.name for source in self.sources]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Group:
        """Read, cut and degrade a picture.

        Raises:
            DataError: a picture that cannot be read or is smaller than the patch.
        """
        source = self.sources[index]
        rng = random.Random(sample_seed(self.seed, index))
        with one_thread():
            try:
                gt, lq = self._store.pair(index) if source.lq else (self._store.image(index), None)
            except DataError:
                raise
            except (OSError, ValueError) as error:
                raise DataError(f"{source.gt.label}: not readable as an image ({error}); remove it") from error
            gt, lq = self._cut(source, gt, lq, rng)
            return Group(index, source.gt.name, gt, self._degraded(gt, rng) if lq is None else lq, self._prompt(source))

    def _cut(self, source: Source, gt: Tensor, lq: Tensor | None, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        side, scale = self.config.gt_patch_px, self.scale
        if not side:
            return gt, lq
        if self.config.crop == "fit":
            return fitted(gt, side), None
        if min(gt.shape[-2:]) < side:
            raise DataError(
                f"{source.gt.label}: expected sides of at least {side} px, got {gt.shape[-2]}x{gt.shape[-1]}; "
                'lower data.gt_patch_px, use data.crop = "fit", or remove it'
            )
        room = [(length - side) // scale for length in gt.shape[-2:]]
        top, left = (int(rng.random() * (r + 1)) if self.config.crop == "random" else r // 2 for r in room)
        gt = gt[:, top * scale : top * scale + side, left * scale : left * scale + side]
        return gt, None if lq is None else lq[:, top : top + side // scale, left : left + side // scale]

    def _degraded(self, gt: Tensor, rng: random.Random) -> Tensor:
        if self.config.degradation == "matlab":
            return imresize_uint8(gt, 1 / self.scale)
        from ...core.degradation import degrade

        made = degrade(gt[None].float() / 255, self.config.degradation, seeds=[rng.getrandbits(62)], scale=self.scale)
        return (made.lq[0] * 255).round().clamp(0, 255).to(torch.uint8)

    def _prompt(self, source: Source) -> str:
        if not self.config.prompts:
            return ""
        path = Path(self.config.prompts).expanduser() / f"{Path(source.gt.name).stem}.txt"
        try:
            return tags_to_text(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"data.prompts: expected a text file {path} for {source.gt.label}, got none ({error.strerror}); write one, or "
                "leave data.prompts empty"
            ) from error
