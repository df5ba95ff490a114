"""A training run's whole state in one safetensors file: weights, EMA, optimisers, random generators, step. Saved atomically."""

import json
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.weights import WeightsError, load_into, load_state_dict, read_info, save_weights

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
                for key, value in values.items():
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

    def load(self, path: Path, accepted_hashes: Sequence[str]) -> None:
        """Restore everything from a file that `save` wrote under one of these hashes of a config.

        Raises:
            WeightsError: damaged file, one of another config, or other modules.
        """
        info = read_info(path)
        if info.get("kind") != "train_state":
            raise WeightsError(
                f"{path}: expected a training checkpoint, got another file; choose one named {PREFIX}*.safetensors"
            )
        if info["config_hash"] not in accepted_hashes:
            raise WeightsError(
                f"{path}: expected a checkpoint of config {accepted_hashes[0]}, got one of {info['config_hash']}; "
                "resume with the config it was started with or choose another run folder"
            )
        tensors = load_state_dict(path)
        for group, modules in (("modules", self.modules), ("averages", self.averages)):
            for name, module in modules.items():
                load_into(module, _under(tensors, f"{group}/{name}/"), f"{path} ({group}/{name})")
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in _under(tensors, f"optimizers/{name}/").items():
                index, _, field_name = key.partition("/")
                state.setdefault(int(index), {})[field_name] = value
            for index, values in info["optimizers"][name]["scalars"].items():
                state.setdefault(int(index), {}).update(values)
            optimizer.load_state_dict({"state": state, "param_groups": info["optimizers"][name]["param_groups"]})
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generators/{name}"])
        _restore_global_generators(tensors, info)
        self.step = int(info["step"])
        self.extra = dict(info["extra"])


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
