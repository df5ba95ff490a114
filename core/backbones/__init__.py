"""Restoration models behind one protocol. `BACKBONES` lists the kinds; a weight file's header says which one it is."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..checks import did_you_mean
from ..weights import WeightsError, find_model, read_info
from . import latent, network, pixel
from .base import AnyBackbone, Backbone, BackboneSpec, DirectBackbone, trained_at
from .latent import LATENT_KINDS, MULTI_STEP_KINDS, find_files, open_backbone, open_multi_step

BACKBONES: dict[str, Callable[[Path, dict[str, Any]], AnyBackbone]] = {
    "network": network.load,
    "pixel": pixel.load,
    "flux2_klein": latent.load,
    "z_image": latent.load,
    "flux1": latent.load,
    "stable_diffusion": latent.load,
}

__all__ = [
    "BACKBONES",
    "LATENT_KINDS",
    "MULTI_STEP_KINDS",
    "AnyBackbone",
    "Backbone",
    "BackboneSpec",
    "DirectBackbone",
    "find_files",
    "load_backbone",
    "open_backbone",
    "open_multi_step",
]


def load_backbone(name: str | Path, folders: Iterable[str | Path] = ()) -> AnyBackbone:
    """Load a restoration model by bundled name, file name in `folders`, or path.

    Files with an AlignSR header say which backbone they are; all others are tried as a network through spandrel.

    Returns:
        The backbone in eval mode, float32, on the CPU, with frozen parameters.

    Raises:
        MissingModelError: nothing of that name.
        WeightsError: damaged or unfitting file.
        ValueError: a header that names an unknown backbone.
    """
    path = find_model(name, folders)
    info = read_info(path) if path.suffix == ".safetensors" else {}
    kind = str(info.get("backbone", "network"))
    if kind not in BACKBONES:
        raise ValueError(f"{path}: expected a known backbone in the header, got {kind!r}; {did_you_mean(kind, list(BACKBONES))}")
    lacking = [key for key in ("architecture", "options") if info and key not in info]
    if lacking:
        raise WeightsError(f"{path}: expected {' and '.join(lacking)} in the header, found none; export it again")
    if info and not isinstance(info["options"], dict):
        raise WeightsError(f"{path}: expected a JSON object as options in the header, got {info['options']!r}; export it again")
    backbone = BACKBONES[kind](path, info)
    backbone.spec = trained_at(backbone.spec, info)
    return backbone
