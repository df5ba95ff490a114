"""Small pictures and configs for training tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alignsr.core.weights import load_state_dict
from alignsr.train.loop import SilentHooks
from alignsr.train.recipes import load_config
from alignsr.train.state import checkpoints
from reference.formula import U


def make_pictures(folder: Path, count: int = 3, side: int = 48) -> Path:
    """`count` smooth colour pictures with an edge each, from the reference formula."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = (U(f"train/{i}", 6, 6, 3).numpy() * 255).astype(np.uint8)
        Image.fromarray(coarse).resize((side + 4 * i, side), Image.Resampling.BICUBIC).save(folder / f"picture_{i}.png")
    return folder


def tiny(name: str, data: Path, **sets: Any) -> Any:
    """A tiny published config on the pictures in `data`; dots in keys are written as double underscores."""
    items = [f'data.folders=["{data.as_posix()}"]', *(f"{key.replace('__', '.')}={toml(value)}" for key, value in sets.items())]
    return load_config(name, items)[1]


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


class StopAfter(SilentHooks):
    """Hooks that note what they are told and ask to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.seen, self.previews = step, list[int](), 0

    def progress(self, step: int, total: int, logs: Mapping[str, float]) -> None:
        self.seen.append(step)

    def preview(self, image: Any) -> None:
        self.previews += 1

    def should_stop(self) -> bool:
        return bool(self.seen) and self.seen[-1] >= self.step


def equal_files(one: Path, two: Path) -> bool:
    """Whether two weight files hold the same bits."""
    a, b = load_state_dict(one), load_state_dict(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def state_of(folder: Path, part: str, group: str = "modules") -> dict[str, torch.Tensor]:
    """The newest checkpoint's tensors of a part."""
    tensors = load_state_dict(checkpoints(folder)[-1])
    prefix = f"{group}/{part}/"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
