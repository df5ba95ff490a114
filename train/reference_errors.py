"""What the frozen reference answers to fixed (pair, noise, time), computed once and kept: training needs no reference.

One file per step and process, written whole: rows (place in the sequence, row of the pair table, both errors).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.records import PreferenceBatch
from ..core.weights import write_atomic
from .config import RunConfig
from .loop import NonFiniteError, Stopped
from .preference_step import labels
from .preferences import PreferenceData
from .processes import first_index
from .sources import DataError

ROW = np.dtype([("index", "<i8"), ("pair", "<i8"), ("chosen", "<f4"), ("rejected", "<f4")])


SAMPLED = 64  # values of each tensor that tell weights apart


def weights_digest(modules: Iterable[tuple[str, nn.Module]], without: str = "") -> str:
    """Tells models apart by values spread over each of their tensors, wherever the weights came from.

    Args:
        modules: named modules.
        without: leave out tensors with this in their name.
    """
    made = hashlib.sha256()
    for part, module in modules:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and not (without and without in name):
                flat = tensor.detach().reshape(-1)
                some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
                made.update(f"{part}.{name}:{tuple(tensor.shape)}:".encode() + some.view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]


class ReferenceErrors:
    """The reference's errors of a run's draws.

    Args:
        folder: shared by all runs that name it.
        facts: whatever decides the errors: model, pairs, seed, batches, precision; a folder of its own for each.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], rank: int = 0, processes: int = 1) -> None:
        digest = hashlib.sha256(json.dumps({**facts, "processes": processes}, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.rank = Path(folder).expanduser() / digest, rank
        self._step: tuple[int, Any] = (-1, None)

    def path(self, step: int) -> Path:
        """Where a step's errors lie."""
        return self.folder / f"{step:08d}-{self.rank}.npy"

    def has(self, step: int) -> bool:
        """Whether they are known."""
        return self.path(step).is_file()

    def write(self, step: int, indices: Tensor, pairs: Tensor, errors: Tensor) -> None:
        """Keep the errors of a step.

        Args:
            step: number of it.
            indices: places in the sequence, [B].
            pairs: rows of the pair table, [B].
            errors: of the chosen and the rejected samples, [2, B] float32.
        """
        rows = np.empty(len(indices), ROW)
        rows["index"], rows["pair"] = indices.numpy(), pairs.numpy()
        rows["chosen"], rows["rejected"] = errors.detach().float().cpu().numpy()

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.save(file, rows, allow_pickle=False)

        write_atomic(self.path(step), save)

    def read(self, step: int, first_index: int, pairs: Tensor) -> Tensor:
        """The errors of one batch of a step, [2 B]: chosen samples, then rejected ones.

        Args:
            step: number of it.
            first_index: place of the batch's first pair in the sequence.
            pairs: rows of the pair table, [B].

        Raises:
            DataError: missing, damaged, or of other pairs.
        """
        if self._step[0] != step:
            self._step = (step, self._load(step))
        rows = self._step[1]
        start = int(np.searchsorted(rows["index"], first_index))
        found = rows[start : start + len(pairs)]
        wanted = np.arange(first_index, first_index + len(pairs))
        if not np.array_equal(found["index"], wanted) or not np.array_equal(found["pair"], pairs.cpu().numpy()):
            raise DataError(f"{self.path(step)}: expected the errors of other pairs; delete the folder {self.folder}")
        return torch.from_numpy(np.concatenate((found["chosen"], found["rejected"])).copy())

    def _load(self, step: int) -> Any:
        path = self.path(step)
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: expected the reference's errors, got {error}; delete the file and start again") from error
        if rows.dtype != ROW:
            raise DataError(f"{path}: expected the reference's errors, got another array; delete it and start again")
        return rows


def precompute(
    known: ReferenceErrors,
    run: RunConfig,
    data: PreferenceData,
    answer: Callable[[PreferenceBatch, int], Tensor],
    *,
    device: torch.device,
    processes: int,
    should_stop: Callable[[], bool],
) -> None:
    """Compute the reference's errors of all draws of a run that are not on disk yet, in the batches that training will have.

    Args:
        known: where they are kept.
        run: steps and batches.
        data: the pairs.
        answer: (batch, place of its first pair) -> errors [2 B], without gradient.
        device: of the model.
        processes: how many train.
        should_stop: asked before every step.

    Raises:
        Stopped: the user asked for it; what is finished is kept.
        NonFiniteError: an error is NaN or infinite.
    """
    for step in range(run.steps):
        if known.has(step):
            continue
        if should_stop():
            raise Stopped(f"stopped at the reference's errors of step {step + 1} of {run.steps}; continue with --resume")
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for micro in range(run.accumulation_steps):
            first = first_index(run, step, micro, processes, known.rank)
            batch = data.batch(first, run.batch_size).to(device)
            found = answer(batch, first)
            if not bool(torch.isfinite(found).all()):
                raise NonFiniteError(
                    f"step {step + 1}: the reference's error is not finite for {', '.join(labels(batch)[:8])}; "
                    "look at these pairs or use another precision"
                )
            rows.append((torch.arange(first, first + run.batch_size), batch.pairs.cpu(), found.view(2, -1)))
        places, pairs, found = zip(*rows, strict=True)
        known.write(step, torch.cat(places), torch.cat(pairs), torch.cat(found, 1))
