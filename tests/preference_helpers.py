"""Tiny runs of pipeline A with models, and configs of preference training on them."""

from pathlib import Path
from typing import Any

import torch
from candidates_helpers import pictures
from train_helpers import toml

from alignsr.core.backbones.latent import tiny_multi_step
from alignsr.core.weights import save_weights
from alignsr.train.candidates import load_candidates_config, run_candidates
from alignsr.train.recipes import load_config

KINDS = {"sd2": "stable_diffusion", "flux": "flux1", "pixel": "pixel"}


def write_control(folder: Path, kind: str, seed: int = 3) -> Path:
    """A control branch of the tiny model whose output layers are not zero, as after training."""
    name = KINDS[kind]
    control = tiny_multi_step(name, control=True).control
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in control.state_dict().items()
    }
    return save_weights(folder / f"control-{kind}-{seed}.safetensors", state)


def sample(root: Path, kind: str, **sets: Any) -> Path:
    """The run folder of candidates of a tiny model, with scores and pairs."""
    data = pictures(root / "gt", 4)
    values = {"sampling__candidates": 4, "scoring__workers": 1, "pairs__picks": 2} | sets
    items = [f'data.folders=["{data.as_posix()}"]', *(f"{key.replace('__', '.')}={toml(value)}" for key, value in values.items())]
    folder = root / kind
    run_candidates(load_candidates_config(f"tiny-dp2o-candidates-{kind}", items), folder)
    return folder


def dpo(name: str, pairs: Path, **sets: Any) -> Any:
    """A tiny published config on these pairs; dots in keys are written as double underscores."""
    items = [f'data.pairs="{pairs.as_posix()}"', *(f"{key.replace('__', '.')}={toml(value)}" for key, value in sets.items())]
    return load_config(name, items)[1]
