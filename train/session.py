"""What every recipe does around its own steps: the state that training needs, its pictures, and a network's weight file."""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.weights import WeightsError, read_info, save_weights
from .config import ConfigError, config_hash, from_mapping, to_mapping
from .data import PairData
from .origins import ORIGINS, differing
from .state import keep_global_randomness

LOGGER = logging.getLogger("alignsr")


@contextmanager
def training(seed: int) -> Generator[None]:
    """Seeded, and with gradients whatever the host's mode is; the host's random numbers are as before at the end.

    ComfyUI and the runner execute nodes in inference mode, where nothing can be trained.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(), keep_global_randomness():
        torch.manual_seed(seed)
        yield


def open_pairs(config: Any, samples_per_step: int, minimum_px: int) -> PairData:
    """The training pairs of a recipe's config, its held-out pictures checked where they will be used.

    Args:
        config: with `data`, `model.scale` and `run`.
        samples_per_step: of one optimiser step over all processes.
        minimum_px: smallest side of a held-out picture.

    Raises:
        DataError: no pictures, or a held-out one that is too small.
    """
    data = PairData(config.data, config.model.scale, config.run.seed, samples_per_step)
    if config.run.validate_every:
        data.check_held_out(minimum_px=minimum_px)
    return data


def save_network(
    path: Path, network: nn.Module, config: Any, step: int, header: Mapping[str, Any], origins: Mapping[str, str]
) -> Path:
    """Write a super-resolution network with everything needed to load it and to know what it is.

    Args:
        path: ends in .safetensors.
        network: what was trained.
        config: with `name`, `licence`, `model.scale` and `model.save_dtype`; it goes into the header whole.
        step: optimiser steps done.
        header: `backbone`, `architecture` and `options`, by which it is built again.
        origins: what it was trained from, see `train.origins`.
    """
    dtype = torch.float16 if config.model.save_dtype == "fp16" else torch.float32
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()}
    facts = {"name": config.name, "scale": config.model.scale, "licence": config.licence, "step": step}
    return save_weights(path, tensors, {**header, **facts, "config": to_mapping(config), ORIGINS: dict(origins)})


def finished_weights(folder: Path, config: Any, learned_from: Mapping[str, Any] | None = None) -> Path | None:
    """The weight file of a run that reached its last step, else None. Intervals of logs and previews may differ.

    Args:
        folder: run folder.
        config: of the run.
        learned_from: entries that the file's header must have: what the config says by a path alone, whose content may change.
            Of its `origins` those count that both know, see `origins.differing`; one that is gone since is told aloud.
    """
    path = folder / f"{config.name}.safetensors"
    if not path.is_file():
        return None
    try:
        info = read_info(path)
        is_same = config_hash(from_mapping(type(config), info.get("config", {}))) == config_hash(config)
    except (WeightsError, ConfigError) as error:
        LOGGER.warning("%s; training again from the last checkpoint", error)
        return None
    began, wanted = info.get(ORIGINS), dict(learned_from or {})
    now = wanted.pop(ORIGINS, {})
    is_same = is_same and not differing(began, now) and all(info.get(key) == value for key, value in wanted.items())
    if not is_same or info.get("step") != config.run.steps:
        return None
    if learned_from is not None and (gone := sorted(set(began or {}) - set(now))):
        LOGGER.warning(
            "%s: what it was trained from is not there any more (%s); the finished run is taken", path, ", ".join(gone)
        )
    return path
