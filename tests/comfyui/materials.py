"""What the prompts of these tests work on: pictures and weights from a formula, small enough for two busy cores."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignsr.core.networks import NETWORKS
from alignsr.core.weights import save_weights

NETWORK = {"fast": {"features": 8, "blocks": 1}, "slow": {"features": 64, "blocks": 16}}


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, edges and a little noise: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width] / 32.0
    waves = [np.sin(x + y * (k + 1) + seed) + np.sign(np.sin(x * (k + 2) - y + seed)) for k in range(3)]
    noise = np.random.default_rng(seed).normal(0, 0.05, (height, width, 3))
    return ((np.stack(waves, -1) / 4 + 0.5 + noise).clip(0, 1) * 255).astype(np.uint8)


def write_pictures(folder: Path) -> None:
    """`example.png` (ComfyUI brings one of this name), others of every kind, and folders: `photos` of three, and `dimmed`."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(96, 64)).save(folder / "example.png")
    Image.fromarray(picture(48, 40)).save(folder / "colour.png")
    Image.fromarray(picture(192, 160, 1)).save(folder / "wide.png")
    Image.fromarray(picture(37, 29, 2)).convert("L").save(folder / "grey.png")
    rgba = Image.fromarray(picture(40, 32, 3)).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (32, 1))))
    rgba.save(folder / "alpha.png")
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    dimmed = folder / "dimmed"
    dimmed.mkdir(exist_ok=True)
    for seed in range(3):
        pixels = picture(128, 112, 10 + seed)
        Image.fromarray(pixels).save(photos / f"photo{seed}.png")
        Image.fromarray(pixels // 2).save(dimmed / f"photo{seed}.png")


def write_model(folder: Path, name: str) -> str:
    """A network with random weights, always the same; its file name."""
    options = {"scale": 4, **NETWORK[name]}
    generator = torch.Generator().manual_seed(0)
    network = NETWORKS["lite"](**options)
    state = {key: torch.randn(value.shape, generator=generator) * 0.05 for key, value in network.state_dict().items()}
    info = {"backbone": "network", "architecture": "lite", "options": options, "name": name, "scale": 4, "licence": "Apache-2.0"}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / f"{name}.safetensors", state, info)
    return f"{name}.safetensors"
