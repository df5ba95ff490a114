"""A training run's whole state in one safetensors file: weights, EMA, optimisers, random generators, step. Saved atomically."""

import json
import logging
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.weights import WeightsError, load_into, load_state_dict, read_info, save_weights

LOGGER = logging.getLogger("alignsr")
PREFIX = "state-"


@dataclass
class TrainState:
    """What a checkpoint holds. Everything is updated in place by `load`.

    Attributes:
        modules: name -> trained module (only what is trained; frozen modules are rebuilt).
        averages: name -> EMA copy.
        optimizers: name -> optimiser over parameters of `modules`.
        generators: name -> explicit random generator.
        step: number of optimiser steps done.
        extra: JSON-able facts that must survive, e.g. elapsed seconds.
    """

    modules: dict[str, nn.Module]
    averages: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer])
    generators: dict[str, torch.Generator] = field(default_factory=dict[str, torch.Generator])
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    def save(self, folder: Path, config_hash: str, keep: int) -> Path:
        """Write `folder/state-<step>.safetensors` atomically and delete all but the newest `keep`."""
        tensors: dict[str, Tensor] = {}
        for group, modules in (("modules", self.modules), ("averages", self.averages)):
            for name, module in modules.items():
                tensors |= {f"{group}/{name}/{key}": value for key, value in module.state_dict().items()}
        layout: dict[str, Any] = {}
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            layout[name] = {"param_groups": state["param_groups"], "scalars": {}}
            for index, values in state["state"].items():
                for key, value in _places(values):
                    if isinstance(value, Tensor):
                        tensors[f"optimizers/{name}/{index}/{key}"] = value
                    else:
                        layout[name]["scalars"].setdefault(str(index), {})[key] = value
        for name, generator in self.generators.items():
            tensors[f"generators/{name}"] = generator.get_state()
        tensors |= _global_generators()
        info = {
            "kind": "train_state",
            "step": self.step,
            "config_hash": config_hash,
            "optimizers": layout,
            "extra": self.extra,
            "python_random": json.dumps(random.getstate()),
            "numpy_random": _numpy_state(),
        }
        path = save_weights(folder / f"{PREFIX}{self.step:08d}.safetensors", tensors, info)
        for old in checkpoints(folder)[:-keep]:
            old.unlink()
        return path

    def load(self, path: Path, accepted_hashes: Sequence[str], wanted: Mapping[str, Any] | None = None) -> None:
        """Restore everything from a file that `save` wrote under one of these hashes of a config.

        Args:
            path: the checkpoint.
            accepted_hashes: of configs that continue the run, the current one first.
            wanted: the current config, for the message: what differs from `config.json` beside the checkpoint.

        Raises:
            WeightsError: damaged file, one of another config, or other modules.
        """
        info = _read(path)
        if info["config_hash"] not in accepted_hashes:
            changed = differing_keys(path.parent / "config.json", wanted or {})
            raise WeightsError(
                f"{path}: expected a checkpoint of config {accepted_hashes[0]}, got one of {info['config_hash']}"
                f"{f' ({changed})' if changed else ''}; resume with the config it was started with or choose another run folder"
            )
        tensors = load_state_dict(path)
        self._load_parts(path, tensors, info, ("modules", "averages"))
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generators/{name}"])
        _restore_global_generators(tensors, info)
        self.step = int(info["step"])
        self.extra = dict(info["extra"])

    def adopt(self, path: Path) -> None:
        """Go on from the checkpoint of another run: its weights and optimisers, not its step, learning rates or random state.

        An optimiser that kept its state in another number of bits starts anew, with a warning: the weights alone fit. Averages
        start at the weights, and samples after those that the run before has seen: they are functions of seed and index.

        Raises:
            WeightsError: damaged file, or one with other modules, or of a version that did not count samples.
        """
        info = _read(path)
        if "samples" not in info["extra"]:
            raise WeightsError(
                f"{path}: expected a checkpoint that says how many samples were seen, got one of an older version; "
                "start from the run's weight files instead"
            )
        groups = {name: [dict(group) for group in optimizer.param_groups] for name, optimizer in self.optimizers.items()}
        self._load_parts(path, load_state_dict(path), info, ("modules",))
        for name, optimizer in self.optimizers.items():
            for group, own in zip(optimizer.param_groups, groups[name], strict=True):
                group |= {key: value for key, value in own.items() if key != "params"}
        for name, average in self.averages.items():
            with torch.no_grad():
                for own, live in zip(average.module.parameters(), self.modules[name].parameters(), strict=True):  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
                    own.copy_(live)
        self.extra["first_sample"] = int(info["extra"]["samples"])

    def _load_parts(self, path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any], groups: Sequence[str]) -> None:
        for group, modules in (("modules", self.modules), ("averages", self.averages)):
            for name, module in modules.items() if group in groups else ():
                load_into(module, _under(tensors, f"{group}/{name}/"), f"{path} ({group}/{name})")
        for name, optimizer in self.optimizers.items():
            if name not in info["optimizers"]:
                raise WeightsError(
                    f"{path}: expected the optimiser of {name}, got {', '.join(info['optimizers'])}; "
                    "it belongs to a run with other losses, start from its weight file instead"
                )
            state: dict[int, dict[str, Any]] = {}
            for key, value in _under(tensors, f"optimizers/{name}/").items():
                index, _, place = key.partition("/")
                _put(state.setdefault(int(index), {}), place, value)
            for index, values in info["optimizers"][name]["scalars"].items():
                for place, value in values.items():
                    _put(state.setdefault(int(index), {}), place, value)
            moments = {place.rpartition("/")[2] for values in state.values() for place, _ in _places(values)}
            there, here = 8 if _EIGHT_BIT in moments else 32, _bits(optimizer)
            if not state or there == here:  # empty: a part that has not been stepped yet
                optimizer.load_state_dict({"state": state, "param_groups": info["optimizers"][name]["param_groups"]})
                continue
            LOGGER.warning(  # in `adopt` alone: the hash of a config, which `load` compares, covers optimizer.bits
                "%s: the optimiser of %s has its state in %d bits there and in %d here (optimizer.bits), so it starts anew; the "
                "weights go on",
                path,
                name,
                there,
                here,
            )


@contextmanager
def keep_global_randomness() -> Generator[None]:
    """Put Python's and NumPy's global generators back at the end: resuming sets them, and a host has its own use for them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*.safetensors"))


def differing_keys(file: Path, wanted: Mapping[str, Any], most: int = 4) -> str:
    """`run.steps: 20 there, 22 now`: where a run folder's config and the current one differ; empty when that cannot be said."""
    try:
        there: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    old, new = (dict(_flat(config)) for config in (there, json.loads(json.dumps(wanted))))
    keys = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    more = [f"and {len(keys) - most} more"] if len(keys) > most else []
    return "; ".join([f"{key}: {json.dumps(old[key])} there, {json.dumps(new[key])} now" for key in keys[:most]] + more)


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(path: Path) -> dict[str, Any]:
    info = read_info(path)
    if info.get("kind") != "train_state":
        raise WeightsError(f"{path}: expected a training checkpoint, got another file; choose one named {PREFIX}*.safetensors")
    return info


_EIGHT_BIT = "state1"  # what bitsandbytes calls a parameter's first moment, torch: exp_avg


def _bits(optimizer: Optimizer) -> int:
    return 32 if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) else 8


def _places(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """An optimiser's state of one parameter as (place, value); bitsandbytes keeps a table inside the table."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{start}{key}/")
        else:
            yield f"{start}{key}", value


def _put(values: dict[str, Any], place: str, value: Any) -> None:
    *tables, key = place.split("/")
    for table in tables:
        values = values.setdefault(table, {})
    values[key] = value


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _global_generators() -> dict[str, Tensor]:
    """Global generators too: a third-party module (dropout, drop path) may draw from them."""
    states = {"generators/torch.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"generators/torch.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _numpy_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # the global one is what libraries use
    return {"name": name, "keys": keys.tolist(), "position": position, "has_gauss": has_gauss, "gauss": gauss}


def _restore_global_generators(tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["generators/torch.cpu"])
    for i in range(torch.cuda.device_count()):
        if f"generators/torch.cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"generators/torch.cuda.{i}"], i)
    version, internal, gauss = json.loads(info["python_random"])
    random.setstate((version, tuple(internal), gauss))
    state = info["numpy_random"]
    np.random.set_state(
        (state["name"], np.array(state["keys"], np.uint32), state["position"], state["has_gauss"], state["gauss"])
    )
