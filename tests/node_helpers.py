"""Tiny models and pictures for tests of nodes and workflows."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.core.backbones import network, pixel
from alignsr.core.networks.autoencoder import build_autoencoder
from alignsr.core.networks.official import save_autoencoder
from alignsr.core.weights import save_weights


def save_tiny_network(path: Path, scale: int = 4) -> Path:
    """A random `lite` network of a few hundred weights; not just interpolation, since its last layer is filled too."""
    options = {"scale": scale, "features": 4, "blocks": 1}
    backbone = network.build("lite", options, path.stem)
    return _save(path, backbone.network, {"backbone": "network", "architecture": "lite", "options": options, "scale": scale})


def save_tiny_pixel(path: Path) -> Path:
    """A random pixel transformer with 4-pixel patches."""
    options = {"patch_px": 4, "width": 8, "heads": 2, "layers": 1, "mlp_ratio": 1.0, "conditioning_dim": 4, "start_sigma": 0.8}
    backbone = pixel.PixelBackbone(options, path.stem)
    return _save(path, backbone.network, {"backbone": "pixel", "architecture": "pixel", "options": backbone.options, "scale": 4})


def save_tiny_autoencoder(path: Path) -> Path:
    """A random auto-encoder for scale 4, as small as still lets colour through."""
    options = {"features": 48, "blocks": 1, "growth": 4, "decoder_options": {"features": 8, "blocks": 1, "growth": 4}}
    generator = torch.Generator().manual_seed(0)
    state = build_autoencoder(options).state_dict()
    state = {name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    return save_autoencoder(path, state, options, name=path.stem, licence="Apache-2.0")


def _save(path: Path, module: torch.nn.Module, info: dict) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in module.state_dict().items()}
    return save_weights(path, state, info | {"name": path.stem, "licence": "Apache-2.0"})


def picture(batch: int = 1, height: int = 12, width: int = 10, channels: int = 3, seed: int = 0) -> Tensor:
    """A smooth random IMAGE [B, H, W, C]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return fine.clamp(0, 1).movedim(1, -1).contiguous()


class Watcher:
    """Notes the steps and previews of a training, and cancels at a step, if asked; `LocalHost(on_progress=watcher)`."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.previews: list[tuple[int, int]] = []
        self.cancel_at = 0
        self.host: Any = None

    def __call__(self, value: int, total: int, desc: str, preview: Any) -> None:
        if not desc.startswith("training"):
            return
        self.steps.append(value)
        if preview is not None:
            self.previews.append(preview.size)
        if value == self.cancel_at:
            self.host.cancel()
