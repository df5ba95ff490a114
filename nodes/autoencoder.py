"""AESOP's auto-encoder: load one, and look at what it keeps and what it removes (the paper's Fig. 6)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.images import crop_to_multiple
from .common import JobBar, file_stamp, give, on_device, take, to_image
from .host import get_host

AUTOENCODER = "ALIGNSR_AUTOENCODER"  # socket type; the value is a LoadedAutoEncoder


@dataclass(frozen=True)
class LoadedAutoEncoder:
    """The value of an ALIGNSR_AUTOENCODER socket.

    Attributes:
        module: `core.networks.autoencoder.AutoEncoder`, frozen, on the CPU between runs.
        source: what finds it again: the bundled name, or the file's path. Losses store this, not the module.
        path: the weight file.
    """

    module: Any
    source: str
    path: Path

    def modules(self) -> list[tuple[str, Any]]:
        """Named modules, as a backbone gives them, for moving between devices."""
        return [("autoencoder", self.module)]


def load(name: str | Path) -> LoadedAutoEncoder:
    """Find and read an auto-encoder; usable under inference mode.

    Raises:
        MissingModelError, WeightsError: see `core.networks.autoencoder.load_autoencoder`.
    """
    from ..core.networks.autoencoder import load_autoencoder
    from ..core.weights import bundled_autoencoders

    path = get_host().resolve_model(name)
    with torch.inference_mode(False):
        module = load_autoencoder(path)
    return LoadedAutoEncoder(module, str(name) if str(name) in bundled_autoencoders() else str(path), path)


class AESOPAutoEncoder:
    """Node AlignSRAESOPAutoEncoder."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Loads an auto-encoder whose bottleneck is a small RGB image: what it can give back is what a network could predict from "
        "the low-resolution picture. Takes the released files, files of Train Auto-Encoder, and a tiny bundled one."
    )
    MODEL_FOLDERS = (("model_name", "alignsr"),)
    FUNCTION = "load"
    RETURN_TYPES = (AUTOENCODER, "STRING")
    RETURN_NAMES = ("autoencoder", "info")
    OUTPUT_TOOLTIPS = (
        "The auto-encoder, for AESOP Loss and Auto-Encoder View.",
        "Facts as JSON: file, scale, parameters.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model_name": (
                    get_host().list_autoencoders(),
                    {
                        "tooltip": "autoencoder-tiny-x4 is bundled: small and quick. For the paper's results put the released "
                        "AESOP file, or your own, into models/alignsr."
                    },
                ),
            },
            "optional": {
                "path": (
                    "STRING",
                    {
                        "default": "",
                        "forceInput": True,
                        "tooltip": "Path of a weight file, e.g. from Train Auto-Encoder; goes before model_name when connected.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None, path: str | None = "") -> str | float:  # noqa: N802
        """Load again when the file itself was replaced; always where its name comes through a link."""
        if model_name is None or path is None:
            return math.nan
        return file_stamp(get_host().resolve_model(path or model_name))

    def load(self, model_name: str, path: str = "") -> tuple[LoadedAutoEncoder, str]:
        loaded = load(path.strip() or model_name)
        count = sum(parameter.numel() for parameter in loaded.module.parameters())
        facts = {"file": loaded.path.name, "scale": loaded.module.scale, "parameters": count}
        return loaded, json.dumps(facts, indent=2)


class AEView:
    """Node AlignSRAEView."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Shows what an auto-encoder does to a picture: the picture, what comes back, what was removed (that is what AESOP Loss "
        "does not punish), and the spectra of all three."
    )
    FUNCTION = "view"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "kept", "removed", "health")
    OUTPUT_TOOLTIPS = (
        "Picture, auto-encoded picture, removed part and spectra on one sheet per picture.",
        "The picture after the auto-encoder.",
        "Picture minus auto-encoded picture, around mid-grey.",
        "JSON per picture: PSNR of the auto-encoded picture, share of high-frequency energy kept, pixels outside [0, 1].",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "autoencoder": (AUTOENCODER, {"tooltip": "From AESOP Auto-Encoder or Train Auto-Encoder."}),
                "image": ("IMAGE", {"tooltip": "Sharp pictures; sides are cut to a multiple of the scale."}),
                "gain": (
                    "FLOAT",
                    {
                        "default": 4.0,
                        "min": 1.0,
                        "max": 32.0,
                        "step": 0.5,
                        "tooltip": "How strongly the removed part is amplified.",
                    },
                ),
            }
        }

    def view(self, autoencoder: LoadedAutoEncoder, image: Tensor, gain: float = 4.0) -> tuple[Tensor, Tensor, Tensor, str]:
        from ..core.autoencoder_view import autoencoder_health, autoencoder_view, removed_part

        host, pixels = get_host(), take(image, "image")
        gt = crop_to_multiple(pixels.rgb, autoencoder.module.scale)
        bar = JobBar(host, "auto-encoding")
        kept: list[Tensor] = []
        with on_device(autoencoder, host.device(), host, 2**30), torch.inference_mode():
            for index in range(gt.shape[0]):
                host.check_interrupt()
                kept.append(autoencoder.module(gt[index : index + 1].to(host.device())).cpu())
                bar(index + 1, gt.shape[0])
        out = torch.cat(kept)
        sheets: list[Image.Image] = [
            autoencoder_view(gt[i : i + 1], out[i : i + 1], gain=gain, scale=autoencoder.module.scale) for i in range(gt.shape[0])
        ]
        health = [autoencoder_health(gt[i : i + 1], out[i : i + 1], scale=autoencoder.module.scale) for i in range(gt.shape[0])]
        removed = removed_part(gt, out, gain)
        return to_image(sheets), give(out.clamp(0, 1), pixels), give(removed, pixels), json.dumps(health, indent=2)
