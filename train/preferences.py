"""Preference pairs of a run of `alignsr candidates` -> PreferenceBatch.

Every epoch has all pairs once, in an order that is a pure function of (seed, epoch), so that processes share it by taking turns
and a resumed run goes on in it. A pair is read straight from its shard, each part checked against its checksum.
"""

import random
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..core.records import PreferenceBatch
from .candidates.curate import PAIRS
from .candidates.store import CandidateStore, GroupEntry
from .candidates.tables import read_table
from .sources import DataError

COLUMNS = ("group", "chosen", "rejected", "gap", "weight")


class PreferenceData:
    """Preference pairs as an endless, fixed sequence; several threads may ask for batches of it at once.

    Args:
        folder: run folder of `alignsr candidates`, or the path of its `pairs.parquet`.
        seed: of the order.
        uniform: give every pair a weight of 1 in place of the table's.

    Raises:
        DataError: no pair table, one of other candidates than lie beside it, or shards that are missing or truncated.
    """

    def __init__(self, folder: str | Path, seed: int, *, uniform: bool = False) -> None:
        path = Path(folder).expanduser()
        path = path if path.suffix == ".parquet" else path / PAIRS
        columns, self.info = read_table(path, COLUMNS)
        self.store = CandidateStore(path.parent)
        if self.info.get("sampling") != self.store.manifest["hash"]:
            raise DataError(
                f"{path}: expected pairs of the candidates beside it, got those of another sampling; curate them again"
            )
        self.seed, self.uniform = seed, uniform
        self._groups, self._chosen, self._rejected = (torch.from_numpy(columns[name].copy()).long() for name in COLUMNS[:3])
        self._gaps, self._weights = (torch.from_numpy(columns[name].copy()).float() for name in COLUMNS[3:])
        if not len(self._groups):
            raise DataError(f"{path}: expected at least one pair, got an empty table; curate the candidates again")
        self.store.require_finished()
        self.are_latents = self.store.has_latents
        self._order = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Pairs of one epoch."""
        return len(self._groups)

    @property
    def scale(self) -> int:
        """Upscaling factor of the inputs."""
        return self.store.scale

    def row(self, index: int) -> int:
        """Which row of the table is sample `index` of the endless sequence."""
        epoch, position = divmod(index, len(self))
        return self._order(epoch)[position]

    def _epoch(self, epoch: int) -> list[int]:
        order = list(range(len(self)))
        random.Random(f"alignsr:preferences:{self.seed}:{epoch}").shuffle(order)
        return order

    def batch(self, first_index: int, size: int) -> PreferenceBatch:
        """The samples [first_index, first_index + size).

        Raises:
            DataError: a damaged shard, or pictures of different sizes in one batch.
        """
        rows = [self.row(first_index + i) for i in range(size)]
        entries = [self.store.entry(int(self._groups[row])) for row in rows]
        chosen, rejected = (
            self._stack([self._result(entry, int(numbers[row])) for entry, row in zip(entries, rows, strict=True)], entries)
            for numbers in (self._chosen, self._rejected)
        )
        lq = self._stack([self.store.picture(entry, "lq").float() / 255 for entry in entries], entries)
        weights = self._weights[rows]
        return PreferenceBatch(
            chosen=chosen,
            rejected=rejected,
            lq=lq,
            weights=torch.ones_like(weights) if self.uniform else weights,
            gaps=self._gaps[rows],
            pairs=torch.tensor(rows),
            names=tuple(entry.name for entry in entries),
            prompts=tuple(self.store.read(entry, "txt").decode() for entry in entries),
            are_latents=self.are_latents,
        )

    def forget_before(self, first_index: int) -> None:
        """Nothing is kept between batches."""

    def _result(self, entry: GroupEntry, candidate: int) -> Tensor:
        if self.are_latents:
            return self.store.latents(entry, candidate)
        return self.store.picture(entry, f"{candidate:02d}.png").float() / 255

    @staticmethod
    def _stack(parts: list[Tensor], entries: list[GroupEntry]) -> Tensor:
        odd = next((entry for part, entry in zip(parts, entries, strict=True) if part.shape != parts[0].shape), None)
        if odd is not None:
            raise DataError(
                f"{odd.name}: expected {tuple(parts[0].shape)} as {entries[0].name} in the same batch, got another size; "
                "sample with data.gt_patch_px, or train with a batch size of 1"
            )
        return torch.stack(parts)
