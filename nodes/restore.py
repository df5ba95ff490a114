"""One-Step SR and Colour Fix: the path from a bad picture to a good one."""

import json
import logging
from typing import Any

import torch
from torch import Tensor

from ..core.backbones.base import Backbone, DirectBackbone
from ..core.batch import LARGEST_PICTURE_BYTES, largest_tile, picture_bytes, restore_picture
from ..core.borrowed import nbytes
from ..core.color import COLOR_FIXES, apply_color_fix
from ..core.images import bchw_to_bhwc, quantize_8bit
from ..core.resize import bicubic
from ..core.restore import MODES, scale_warning
from .common import SR_MODEL, JobBar, give, in_turns, input_names, match_batch, on_device, take, take_pixels
from .condition import CONDITIONING
from .host import get_host
from .models import LoadedModel
from .one_step import OneStepModel

LOGGER = logging.getLogger("alignsr")


class OneStepSR:
    """Node AlignSROneStepSR."""

    CATEGORY = "AlignSR/restoration"
    DESCRIPTION = (
        "Upscales pictures with one pass of the model: a direct network, or one Euler step of a flow model from the "
        "enlarged input (StrSR). "
        "Large pictures are cut into overlapping tiles; when memory runs out, smaller tiles are tried."
    )
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("image", "enlarged_input", "info")
    OUTPUT_TOOLTIPS = (
        "The restored pictures, larger by the scale. Grey stays grey; alpha is enlarged alongside.",
        "The input enlarged by bicubic interpolation to the same size: for comparison, and as colour reference.",
        "What was done, as JSON: model, tiles, sigma, colour fix, device.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": (SR_MODEL, {"tooltip": "From Load SR Model, Load One-Step Backbone, Merge LoRA or Train SR Network."}),
                "image": ("IMAGE", {"tooltip": "Pictures to upscale; any size from 1x1 up, batches and lists."}),
                "scale": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 16,
                        "tooltip": "How many times larger. At another factor than the network's own its result is "
                        "resized; flow models take any factor and warn above the one they were trained for, 4 as published.",
                    },
                ),
                "color_fix": (
                    list(COLOR_FIXES),
                    {
                        "default": "none",
                        "tooltip": "Takes colours from the enlarged input. none: as the model gives them (best for the "
                        "bundled models). "
                        "wavelet: coarse colours of the input, fine detail of the result. adain: mean and contrast per "
                        "channel.",
                    },
                ),
                "tile_px": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "tooltip": "Largest tile side in pixels of the model's input (networks: the small picture; flow "
                        "models: the large "
                        "one). 0: the model's own. Smaller needs less memory and is a little slower.",
                    },
                ),
                "overlap_px": (
                    "INT",
                    {
                        "default": -1,
                        "min": -1,
                        "max": 1024,
                        "tooltip": "How far neighbouring tiles overlap. -1: the model's own. More hides seams better and "
                        "costs time.",
                    },
                ),
            },
            "optional": {
                "sigma": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "advanced": True,
                        "tooltip": "Flow models: noise level assumed for the input; higher invents more. 0: the model's own. "
                        "Networks ignore it.",
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "advanced": True,
                        "tooltip": "0: the enlarged input, 1: the model as trained, between: a mixture, above 1: exaggerated.",
                    },
                ),
                "batch_size": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "advanced": True,
                        "tooltip": "Tiles per pass. More is faster on a large GPU and needs more memory.",
                    },
                ),
                "conditioning": (
                    CONDITIONING,
                    {
                        "tooltip": "Flow models: what the model is told, from VLM Encode or Text Encode. Without it, zeros. "
                        "Networks ignore it."
                    },
                ),
                "mode": (
                    list(MODES),
                    {
                        "default": MODES[0],
                        "advanced": True,
                        "tooltip": "Large one-step models only. best: even tiles, nothing left to chance, 8 bits rounded. "
                        "parity: as the released scripts, with their tiles, a random sample of the encoder and 8 bits cut off.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "advanced": True,
                        "tooltip": "Of what parity draws: same seed, same picture. In best mode nothing is drawn.",
                    },
                ),
            },
        }

    def upscale(
        self,
        model: LoadedModel | OneStepModel,
        image: Tensor,
        scale: int,
        color_fix: str = "none",
        tile_px: int = 0,
        overlap_px: int = -1,
        sigma: float = 0.0,
        strength: float = 1.0,
        batch_size: int = 1,
        conditioning: Any = None,
        mode: str = "best",
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, str]:
        check_one_step(model)
        pixels, host, spec = take_pixels(image, "image"), get_host(), model.backbone.spec
        device = torch.device("cpu") if model.device == "cpu" else host.device()
        if warning := scale_warning(model.backbone, scale):
            LOGGER.warning("One-Step SR: %s", warning)

        def notify(message: str) -> None:
            LOGGER.warning("One-Step SR: %s", message)
            host.soft_empty_cache()
            host.check_interrupt()

        activations = batch_size * largest_tile(model.backbone, pixels, scale, tile_px, mode) ** 2 * spec.bytes_per_pixel
        activations += min(picture_bytes(pixels, scale), LARGEST_PICTURE_BYTES)
        if model.offload:
            held = in_turns(model.backbone, device, host, activations)
        else:
            weights = nbytes(*(module for _, module in model.backbone.modules()))
            held = on_device(model.backbone, device, host, weights + activations)
        told = conditioning if spec.conditioning_dim else None
        host.check_interrupt()
        with held as backbone, input_names(pixels="image", lq="image", method="color_fix"):
            restored = restore_picture(
                backbone,
                pixels,
                scale=scale,
                tile_px=tile_px,
                overlap_px=overlap_px,
                batch_size=batch_size,
                sigma=sigma or None,
                strength=strength,
                color_fix=color_fix,
                conditioning=told,
                mode=mode,
                seed=seed,
                device=device,
                on_tile=JobBar(host, "restoring"),
                is_oom=host.is_oom,
                notify=notify,
            )
        info = {**restored.info, "model_file": model.path.name} | (
            {"seed": seed} if restored.info.get("mode") == "parity" else {}
        )
        info |= {"warning": warning} if warning else {}
        # programs that save an IMAGE cut off what is finer than 8 bits, which darkens it by half a grey level
        sr = quantize_8bit(restored.sr) if restored.info.get("mode") == "best" else restored.sr
        return bchw_to_bhwc(sr), bchw_to_bhwc(restored.lq_up), json.dumps(info, indent=2)


def check_one_step(model: LoadedModel | OneStepModel) -> None:
    """Raise TypeError for models that are sampled in many steps only."""
    backbone = model.meta if isinstance(model, OneStepModel) else model.backbone
    if not isinstance(backbone, (Backbone, DirectBackbone)):
        raise TypeError(f"model: expected a network or a model of one step, got {backbone.spec.name}; use Multi-Step SR")


class ColorFix:
    """Node AlignSRColorFix."""

    CATEGORY = "AlignSR/restoration"
    DESCRIPTION = "Gives a picture the colours of another one of the same scene, keeping its own detail."
    FUNCTION = "fix"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures with corrected colours; size, grey and alpha as they came.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "Pictures whose colours drifted."}),
                "reference": (
                    "IMAGE",
                    {
                        "tooltip": "Where the colours come from, usually the picture before upscaling; resized as needed. "
                        "One or as many."
                    },
                ),
                "method": (
                    list(COLOR_FIXES),
                    {
                        "default": "wavelet",
                        "tooltip": "wavelet: everything coarser than about 32 px comes from the reference. adain: mean "
                        "and contrast of "
                        "each channel. none: change nothing.",
                    },
                ),
            }
        }

    def fix(self, image: Tensor, reference: Tensor, method: str = "wavelet") -> tuple[Tensor]:
        pixels, style = take(image, "image"), take(reference, "reference")
        colours = bicubic(match_batch(style.rgb, pixels.rgb.shape[0], "reference"), pixels.size).clamp(0, 1)
        get_host().check_interrupt()
        return (give(apply_color_fix(pixels.rgb, colours, method), pixels),)
