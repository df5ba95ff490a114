"""Tiny runs of pipeline A: small pictures, metrics without weights, and a drawer that needs no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_helpers import make_pictures, toml

from alignsr.core.resize import bicubic
from alignsr.train.candidates import CandidatesConfig, build_candidates_config, run_candidates
from alignsr.train.candidates.sources import Group
from alignsr.train.config import apply_sets

FREE_METRICS = ["psnr_y", "ssim_y", "lsd", "hf_energy", "sharpness"]
SMALL: dict[str, Any] = {
    "recipe": "candidates",
    "name": "small",
    "model": {"source": "tiny"},
    "data": {"gt_patch_px": 32, "degradation": "matlab"},
    "sampling": {"candidates": 6, "batch_size": 4},
    "scoring": {"metrics": FREE_METRICS, "workers": 1},
    "pairs": {"picks": 2},
}


def small(data: Path, **sets: Any) -> CandidatesConfig:
    """A config on the pictures in `data`; dots in keys are written as double underscores."""
    items = [f'data.folders=["{data.as_posix()}"]', *(f"{key.replace('__', '.')}={toml(value)}" for key, value in sets.items())]
    return build_candidates_config(apply_sets(SMALL, items))


def toy_draw(group: Group, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The enlarged input with noise of its own strength for every seed; latents are the noise."""
    up = bicubic(group.lq[None].float() / 255, tuple(group.gt.shape[-2:])).clamp(0, 1)
    noise = torch.stack([torch.randn(up.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    strength = torch.tensor([(seed % 7 + 1) / 60 for seed in seeds]).view(-1, 1, 1, 1)
    return (up + strength * noise).clamp(0, 1), noise[..., ::4, ::4].contiguous()


def pictures(folder: Path, count: int = 3) -> Path:
    """A few pictures of different sizes."""
    return make_pictures(folder, count)


def run(config: CandidatesConfig, folder: Path, **options: Any) -> Any:
    """All stages with the toy drawer."""
    return run_candidates(config, folder, draw=toy_draw, **options)


TABLES = ("scores.parquet", "rewards.parquet", "pairs.parquet")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that a run hands on."""
    files = [*(folder / name for name in TABLES), *sorted((folder / "candidates").rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}
