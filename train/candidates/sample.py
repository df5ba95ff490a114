"""Stage 1 of pipeline A: candidates of every picture, shard by shard; what is finished is not done again."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.images import quantize_8bit
from ...core.pictures import contact_sheet
from ...core.weights import write_atomic
from ..data import sample_seed
from .config import CandidatesConfig
from .elsewhere import read_candidates
from .model import open_model
from .processes import SilentWatch, Team, Watch
from .record import write_config
from .sources import Group, GroupSource
from .store import FOLDER, Candidates, CandidateStore

LOGGER = logging.getLogger("alignsr")
MODEL = "model.json"  # facts of what was sampled: its size decides what a study recommends
PREVIEW_EVERY_S = 5.0
SHOWN = 8  # candidates of a preview

FRESH = 1 << 19  # noises for looking at a model in training begin so far after the first; a picture has 2^20 of its own

Draw = Callable[[Group, Sequence[int]], tuple[Tensor, Tensor]]
"""(group, seeds) -> pictures [m, 3, H, W] float in [0, 1] and latents [m, C, y, x]."""


def seeds_of(config: CandidatesConfig, group: int, fresh: int = 0) -> list[int]:
    """The generators' seeds of a group's candidates: the same for all groups, or its own.

    Args:
        config: the whole config.
        group: number of the picture.
        fresh: in place of the candidates' own, so many that none of them has, nor those of later rounds (`train/rounds.py`).
    """
    sampling = config.sampling
    first = sampling.first + (FRESH if fresh else 0)
    numbers = range(first, first + (fresh or sampling.candidates))
    if sampling.noise == "shared":
        return [sampling.seed + k for k in numbers]
    return [sample_seed(sampling.seed, (group << 20) + k) for k in numbers]


def open_store(config: CandidatesConfig, folder: Path, source: GroupSource) -> CandidateStore:
    """The run folder of exactly this sampling, made or found.

    Raises:
        DataError: it holds candidates of another config or of other pictures.
    """
    facts = {
        "kind": "candidates",
        "hash": config.sampling_hash,
        "store": config.store.kind,
        "groups_per_shard": config.store.groups_per_shard,
        "candidates": config.sampling.candidates,
        "scale": config.model.scale,
        "latents": "none" if config.data.candidates else config.sampling.latents,
        "groups": source.names,
    }
    return CandidateStore.create(folder, facts)


def sample_candidates(
    config: CandidatesConfig,
    folder: Path,
    *,
    team: Team,
    watch: Watch | None = None,
    verify: bool = False,
    model_folders: Sequence[str | Path] = (),
    draw: Draw | None = None,
) -> CandidateStore:
    """Sample whatever is missing in a run folder.

    Args:
        config: what to sample.
        folder: run folder; made here.
        team: the processes.
        watch: the host.
        verify: compare every finished shard with its checksums first, and sample damaged ones again.
        model_folders: where models are looked for.
        draw: in place of the config's model.

    Returns:
        The finished store.

    Raises:
        DataError: pictures or folder cannot be used.
        MissingModelError, WeightsError: the model is missing or does not fit.
    """
    watch = watch or SilentWatch()
    source = GroupSource(config.data, config.model.scale, config.sampling.seed)
    if team.is_main:
        store = open_store(config, folder, source)
        write_config(config, folder)
        _sweep(folder / FOLDER)
    team.meet()
    store = open_store(config, folder, source)
    missing = [shard for shard in range(store.shards) if not store.is_finished(shard, verify=verify)]
    team.meet()  # all have the same list before anyone adds to it
    mine, done = team.share(missing), store.shards - len(missing)
    if done and team.is_main:
        LOGGER.info("%s: %d of %d shards are there", folder, done, store.shards)
    make = _maker(config, folder, team, model_folders, draw) if mine else None
    shown = 0.0
    for number, shard in enumerate(mine):
        groups: list[Candidates] = []
        for index in store.groups_of(shard):
            assert make is not None
            groups.append(make(source[index]))
            if time.monotonic() - shown > PREVIEW_EVERY_S:
                shown = time.monotonic()
                watch.preview(_sheet(groups[-1]))
        store.write(shard, groups)
        watch.progress("sampling", min(done + (number + 1) * team.size, store.shards), store.shards)
    team.meet()
    store.require_finished()
    return store


def _maker(
    config: CandidatesConfig, folder: Path, team: Team, model_folders: Sequence[str | Path], draw: Draw | None
) -> Callable[[Group], Candidates]:
    """What gives a picture its candidates: a model, or a folder of pictures made elsewhere."""
    if config.data.candidates:
        made, most = Path(config.data.candidates).expanduser(), config.sampling.candidates
        return lambda group: read_candidates(made, group, most)
    found = draw
    if found is None:
        found, facts = open_model(config, folder, team.device, model_folders)
        if team.is_main:
            text = json.dumps(facts, indent=1) + "\n"
            write_atomic(folder / MODEL, lambda part: part.write_text(text, encoding="utf-8"))
    return lambda group: make_group(config, group, found)


def make_group(config: CandidatesConfig, group: Group, draw: Draw, fresh: int = 0) -> Candidates:
    """All candidates of one picture, `sampling.batch_size` at a time; see `seeds_of` for `fresh` ones."""
    seeds, size = seeds_of(config, group.index, fresh), config.sampling.batch_size
    pictures: list[Tensor] = []
    latents: list[Tensor] = []
    for start in range(0, len(seeds), size):
        try:
            with torch.inference_mode():
                sr, z = draw(group, seeds[start : start + size])
        except FloatingPointError as error:
            raise FloatingPointError(f"{group.name}, candidates from {start}: {error}") from error
        pictures.append((quantize_8bit(sr.float().cpu()) * 255).round().to(torch.uint8))
        latents.append(z.float().cpu())
    kept = {"fp32": torch.float32, "fp16": torch.float16}
    keep = config.sampling.latents
    z = torch.cat(latents).to(kept[keep]) if keep in kept else None
    if z is not None and not bool(torch.isfinite(z).all()):
        raise FloatingPointError(
            f"{group.name}: expected latents that fit {keep}, got values beyond it; use sampling.latents fp32"
        )
    return Candidates(group.index, group.name, group.gt, group.lq, group.prompt, torch.cat(pictures), z)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for stale in folder.glob(".shard-*") if folder.is_dir() else ():
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _sheet(group: Candidates) -> Any:
    pictures = {"ground truth": group.gt[None].float() / 255}
    pictures |= {f"candidate {k}": image[None].float() / 255 for k, image in enumerate(group.pictures[:SHOWN])}
    return contact_sheet(pictures, columns=3, cell_px=180, title=group.name)
