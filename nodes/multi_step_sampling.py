"""Multi-Step SR: restoration by sampling from noise."""

import json
import logging
from typing import Any

import torch
from torch import Tensor

from ..core.batch import LARGEST_PICTURE_BYTES, picture_bytes, sample_picture
from ..core.borrowed import nbytes
from ..core.color import COLOR_FIXES
from ..core.diffusion import as_multi_step
from ..core.image_files import to_pil
from ..core.images import bchw_to_bhwc, quantize_8bit
from ..core.schedules import SAMPLERS
from .common import SR_MODEL, JobBar, in_turns, input_names, on_device, take_pixels
from .condition import CONDITIONING
from .host import Host, get_host
from .models import LoadedModel
from .one_step import AUTO, OneStepModel
from .prompts import told

LOGGER = logging.getLogger("alignsr")
SEEDS = ("same", "count up")


class MultiStepSR:
    """Node AlignSRMultiStepSR."""

    CATEGORY = "AlignSR/restoration"
    DESCRIPTION = (
        "Upscales pictures by sampling from noise, conditioned on the enlarged input: ASASR, DP2O-SR, or a small pixel model "
        "trained as a flow. Another seed gives another picture. Large pictures are cut into overlapping tiles that share one "
        "field of noise; a preview shows the picture while it is made."
    )
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("image", "enlarged_input", "info")
    OUTPUT_TOOLTIPS = (
        "The restored pictures, larger by the scale. Grey stays grey; alpha is enlarged alongside.",
        "The input enlarged by bicubic interpolation to the same size: for comparison, and as colour reference.",
        "What was done, as JSON: model, tiles, steps, sampler, seeds, guidance, colour fix, device.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": (
                    SR_MODEL,
                    {"tooltip": "From Load Multi-Step Backbone, Merge LoRA, or Load SR Model with a pixel flow."},
                ),
                "image": ("IMAGE", {"tooltip": "Pictures to upscale; any size from 1x1 up, batches and lists."}),
                "scale": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 16,
                        "tooltip": "How many times larger. Models take any factor but are best at 4. 1: the input is enlarged "
                        "already.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 28,
                        "min": 0,
                        "max": 999,
                        "tooltip": "Steps from noise to picture, the time grows with them. ASASR uses 28, C-FLUX 25, C-SD2 50. "
                        "0: as published for the model.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "tooltip": "Of the noise: same seed, same picture, whatever else is in the batch.",
                    },
                ),
                "sampler": (
                    [AUTO, *SAMPLERS],
                    {
                        "default": AUTO,
                        "tooltip": "auto: the model's own. euler: flows (flux1, pixel). For Stable Diffusion: ddpm, ancestral, "
                        "as DP2O-SR was published; ddim; dpm: DPM-Solver++, good with 20 to 30 steps.",
                    },
                ),
                "color_fix": (
                    list(COLOR_FIXES),
                    {
                        "default": "adain",
                        "tooltip": "Takes colours from the enlarged input. adain: mean and contrast per channel, as published. "
                        "wavelet: coarse colours of the input, fine detail of the result. none: as the model gives them.",
                    },
                ),
                "tile_px": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "tooltip": "Largest tile side in pixels of the result. 0: the model's own (1024, Stable Diffusion 512). "
                        "Smaller needs less memory.",
                    },
                ),
                "overlap_px": (
                    "INT",
                    {
                        "default": -1,
                        "min": -1,
                        "max": 1024,
                        "tooltip": "How far neighbouring tiles overlap. -1: the model's own. Tiles are blended at every step, so "
                        "little is enough.",
                    },
                ),
            },
            "optional": {
                "guidance": (
                    "FLOAT",
                    {
                        "default": -1.0,
                        "min": -1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "advanced": True,
                        "tooltip": "flux1: what its guidance input is told. Stable Diffusion: classifier-free guidance, which "
                        "asks the model twice per step; 1 is none. -1: the model's own.",
                    },
                ),
                "control_scale": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.05,
                        "advanced": True,
                        "tooltip": "Weight of the control branch: less follows the input less. 1 where there is none.",
                    },
                ),
                "shift": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 20.0,
                        "step": 0.05,
                        "advanced": True,
                        "tooltip": "Euler: above 1 more steps go to high noise. 0: FLUX's, which grows with the tile; none for "
                        "pixel models.",
                    },
                ),
                "seeds": (
                    list(SEEDS),
                    {
                        "default": SEEDS[0],
                        "advanced": True,
                        "tooltip": "same: every picture of the batch starts from the same noise, so its place does not matter. "
                        "count up: seed, seed + 1, ...; copies of one picture become different results.",
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
                    {"tooltip": "What the model is told, from Text Encode: a prompt or tags. Without it, the empty prompt."},
                ),
                "negative": (
                    CONDITIONING,
                    {
                        "tooltip": "Stable Diffusion with guidance: what it should stay away from, from Text Encode. Without it, "
                        "the model's own negative prompt."
                    },
                ),
            },
        }

    def upscale(
        self,
        model: LoadedModel | OneStepModel,
        image: Tensor,
        scale: int = 4,
        steps: int = 28,
        seed: int = 0,
        sampler: str = AUTO,
        color_fix: str = "adain",
        tile_px: int = 0,
        overlap_px: int = -1,
        guidance: float = -1.0,
        control_scale: float = 1.0,
        shift: float = 0.0,
        seeds: str = "same",
        batch_size: int = 1,
        conditioning: Any = None,
        negative: Any = None,
    ) -> tuple[Tensor, Tensor, str]:
        pixels, host = take_pixels(image, "image"), get_host()
        if seeds not in SEEDS:
            raise ValueError(f"seeds: expected one of {', '.join(SEEDS)}, got {seeds!r}; choose one of them")
        as_multi_step(model.meta if isinstance(model, OneStepModel) else model.backbone, "model")
        spec = model.backbone.spec
        numbers = [(seed + index * (seeds == "count up")) % 2**64 for index in range(pixels.shape[0])]
        strength = None if guidance < 0 else guidance
        own = spec.sampling
        is_guided = own is not None and own.guidance_kind == "classifier_free" and (strength or own.guidance) != 1.0
        tells: dict[str, Any] = {"conditioning": told(model, conditioning, "") if spec.conditioning_dim else None}
        tells["negative"] = told(model, negative, own.negative_prompt) if is_guided and own is not None else None
        bar = JobBar(host, "restoring")
        with held(model, pixels, scale, tile_px, batch_size, host) as backbone, input_names(pixels="image", lq="image"):
            restored = sample_picture(
                backbone,
                pixels,
                scale=scale,
                tile_px=tile_px,
                overlap_px=overlap_px,
                device=work_device(model, host),
                on_tile=bar,
                on_preview=lambda seen: bar.show(to_pil(seen[:1])),
                is_oom=host.is_oom,
                notify=lambda message: _say(host, message),
                steps=steps,
                sampler=sampler,
                shift=shift or None,
                seeds=numbers,
                guidance=strength,
                control_scale=control_scale,
                color_fix=color_fix,
                batch_size=batch_size,
                **tells,
            )
        info = {**restored.info, "model_file": model.path.name}
        sr = quantize_8bit(restored.sr)  # programs that save an IMAGE cut off what is finer than 8 bits
        return bchw_to_bhwc(sr), bchw_to_bhwc(restored.lq_up), json.dumps(info, indent=2)


def work_device(model: LoadedModel | OneStepModel, host: Host) -> torch.device:
    return torch.device("cpu") if model.device == "cpu" else host.device()


def _say(host: Host, message: str) -> None:
    LOGGER.warning("Multi-Step SR: %s", message)
    host.soft_empty_cache()
    host.check_interrupt()


def held(model: LoadedModel | OneStepModel, pixels: Tensor, scale: int, tile_px: int, batch_size: int, host: Host) -> Any:
    """The model on its device, whole or by turns, with room for a tile and for the pictures."""
    spec, device = model.backbone.spec, work_device(model, host)
    side = min(tile_px or spec.tile_px, max(pixels.shape[-2:]) * scale + spec.size_multiple)
    room = batch_size * side**2 * spec.bytes_per_pixel + min(picture_bytes(pixels, scale), LARGEST_PICTURE_BYTES)
    host.check_interrupt()
    if model.offload:
        return in_turns(model.backbone, device, host, room)
    return on_device(model.backbone, device, host, nbytes(*(module for _, module in model.backbone.modules())) + room)
