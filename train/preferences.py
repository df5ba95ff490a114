"""Preference pairs of a run of `alignsr candidates` -> PreferenceBatch.

Every epoch has all pairs once, in an order that is a pure function of (seed, epoch), so that processes share it by taking turns
and a resumed run goes on in it. A pair is read straight from its shard, each part checked against its checksum.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.preferences import pair_table, unusable
from ..core.records import PreferenceBatch
from ..core.weights import read_info
from .candidates.curate import PAIRS, REWARDS
from .candidates.store import CandidateStore, GroupEntry
from .candidates.tables import read_table
from .sources import DataError
from .state import checkpoints

FINGERPRINT = "preferences"  # where checkpoints and weight files say what they have learned from
COLUMNS = ("group", "chosen", "rejected", "gap", "intra", "inter")


class PreferenceData:
    """Preference pairs as an endless, fixed sequence; several threads may ask for batches of it at once.

    Args:
        folder: run folder of `alignsr candidates`, or the path of its `pairs.parquet`.
        seed: of the order.
        uniform: give every pair a weight of 1 in place of the table's.
        picks: N, to pair anew by the rewards beside the table; 0: the table as it was curated.
        held_out: leave out the pairs of so many pictures, the last ones; the weights of the rest have a mean of 1 again.

    Attributes:
        path: of the table.
        held_out: numbers of the groups that are left out.

    Raises:
        DataError: no pair table, one of other candidates than lie beside it, shards that are missing or truncated, or no pair
            that is left.
    """

    def __init__(self, folder: str | Path, seed: int, *, uniform: bool = False, picks: int = 0, held_out: int = 0) -> None:
        path = Path(folder).expanduser()
        path = path if path.suffix == ".parquet" else path / PAIRS
        columns, self.info = read_table(path, COLUMNS)
        self.path = path
        self.store = CandidateStore(path.parent)
        if self.info.get("sampling") != self.store.manifest["hash"]:
            raise DataError(
                f"{path}: expected pairs of the candidates beside it, got those of another sampling; curate them again"
            )
        self.seed, self.uniform = seed, uniform
        self.held_out = tuple(range(len(self.store.names)))[max(0, len(self.store.names) - held_out) :] if held_out else ()
        if picks:
            columns = _paired_anew(path.parent, picks, self.held_out)
        elif held_out:
            columns = _without(columns, self.held_out)
        self._groups, self._chosen, self._rejected = (torch.from_numpy(columns[name].copy()).long() for name in COLUMNS[:3])
        self._gaps = torch.from_numpy(columns["gap"].copy()).float()
        self._weights = torch.from_numpy(columns["intra"] * columns["inter"]).float()
        if not len(self._groups):
            left = f" beside {held_out} pictures that are held out" if held_out else ""
            raise DataError(f"{path}: expected at least one pair{left}, got an empty table; curate the candidates again")
        self.store.require_finished()
        self.are_latents = self.store.has_latents
        self._order = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Pairs of one epoch."""
        return len(self._groups)

    @property
    def digest(self) -> str:
        """Changes with the candidates, the pairs and their order."""
        rows = torch.stack([self._groups, self._chosen, self._rejected]).numpy().tobytes()
        return hashlib.sha256(f"{self.store.manifest['hash']}:{self.seed}:".encode() + rows).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Changes with whatever is learned from: the candidates, the pairs and, unless all count the same, their weights.

        A table is curated anew in place: its path does not tell one from another, this does.
        """
        made = hashlib.sha256(self.store.manifest["hash"].encode())
        weights = torch.ones_like(self._weights) if self.uniform else self._weights
        for column in (self._groups, self._chosen, self._rejected, weights):
            made.update(column.numpy().tobytes())
        return made.hexdigest()[:16]

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


def require_same_pairs(folder: Path, data: PreferenceData) -> None:
    """Raise DataError where the newest checkpoint of a run folder has learned from other pairs, or from other weights of them."""
    found = checkpoints(folder)
    there = read_info(found[-1]).get("extra", {}).get(FINGERPRINT) if found else None
    if there not in (None, data.fingerprint):
        raise DataError(
            f"data.pairs: expected the pairs that the run in {folder} began with ({there}), got others ({data.fingerprint}) in "
            f"{data.path}; curate them as they were, or choose another run folder"
        )


def _without(columns: dict[str, Any], held_out: Sequence[int]) -> dict[str, Any]:
    """The table without some groups; a group's weight is re-centred on the mean of those that are left."""
    kept = ~np.isin(columns["group"], held_out)
    rest = {name: values[kept] for name, values in columns.items()}
    _, first = np.unique(rest["group"], return_index=True)
    if len(first):
        rest["inter"] = rest["inter"] + (1 - rest["inter"][first].mean())
    return rest


def _paired_anew(folder: Path, picks: int, held_out: Sequence[int]) -> dict[str, Any]:
    """The pair table of another N, from the rewards of the same candidates.

    Raises:
        DataError: no rewards, or no group that can be used.
    """
    found, _ = read_table(folder / REWARDS, ("group", "candidate", "reward"))
    bounds = np.flatnonzero(np.diff(found["group"])) + 1
    rewards = [torch.from_numpy(part.copy()) for part in np.split(found["reward"], bounds)]
    reasons = {number: unusable(values, picks) for number, values in enumerate(rewards) if number not in held_out}
    used = [number for number, reason in reasons.items() if not reason]
    if not used:
        raise DataError(f"data.picks: {next(iter(reasons.values()), 'expected a picture, got none')}; take fewer picks")
    table = pair_table([rewards[number] for number in used], picks)
    columns = {name: getattr(table, name).numpy() for name in COLUMNS}
    return columns | {"group": np.asarray(used)[columns["group"]]}
