"""Load Multi-Step Backbone and Multi-Step SR: restoration by sampling from noise."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
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
from ..core.weights import MissingModelError
from .common import SR_MODEL, JobBar, file_stamp, in_turns, input_names, on_device, take_pixels
from .condition import CONDITIONING
from .host import Host, get_host
from .models import DEVICES, LoadedModel
from .one_step import AUTO, OFFLOADS, PRECISIONS, TINY, OneStepModel, Request, describe
from .prompts import told

LOGGER = logging.getLogger("alignsr")
NONE = "none"
BACKBONES = {"flux1": ("flux1", {}), **{v: ("stable_diffusion", {"version": v}) for v in ("sd2", "sd15", "sdxl")}}
FOLDERS = {
    "flux1": ("FLUX.1-dev",),
    "sd2": ("stable-diffusion-2-base",),
    "sd15": ("stable-diffusion-v1-5",),
    "sdxl": ("stable-diffusion-xl-base-1.0",),
}
DOWNLOADS = {"flux1": "flux1", "sd15": "sd15", "sdxl": "sdxl"}
FOLDER_KEYS = ("diffusers", "alignsr", "diffusion_models")
CONDITIONS = ("full", "half")
SEEDS = ("same", "count up")
MARKERS = {"flux1": "transformer/config.json", "stable_diffusion": "unet/config.json"}


def find_multi_step(
    host: Host, backbone: str, model_name: str = AUTO, control_name: str = NONE, vae_name: str = AUTO, **options: Any
) -> Request:
    """Find what the names of the node's lists mean on this computer.

    Args:
        host: knows the folders.
        backbone: a key of BACKBONES.
        model_name: `auto`: the published single file, else a diffusers folder of the published name; `tiny`; a listed name.
        control_name: `none`, `auto`: the released branch; a listed name.
        vae_name: `auto`, or a file or folder of models/vae.
        options: further fields of `Request`; `facts` are added to those of the backbone.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
    """
    from ..core.backbones import MULTI_STEP_KINDS
    from ..core.backbones.files import find_components
    from ..core.backbones.stable_diffusion import COMPONENTS_OF

    kind, own = BACKBONES[backbone]
    entry = MULTI_STEP_KINDS[kind]
    components = COMPONENTS_OF.get(backbone, entry.components)
    assert entry.control is not None
    folders = {part.folder: host.model_dirs(part.folder) for part in (*components, entry.control)}
    facts = {**(own if model_name != TINY else {}), **options.pop("facts", {})}
    vae, control = (None if name in (AUTO, NONE) else name for name in (vae_name, control_name))
    request = Request(
        kind, None, folders, autoencoder=vae, control=AUTO if control_name == AUTO else control, facts=facts, **options
    )
    if model_name == TINY:
        if backbone == "sdxl":
            raise ValueError("model_name: expected files for sdxl, tiny is made for flux1, sd2 and sd15; choose one of them")
        control = None if control_name == NONE else TINY
        return replace(request, source=TINY, autoencoder=None, control=control)
    names = FOLDERS[backbone] if model_name == AUTO else (model_name,)
    places = [folder for key in FOLDER_KEYS for folder in host.model_dirs(key)]
    whole = next((place / name for name in names for place in places if (place / name / MARKERS[kind]).is_file()), None)
    if model_name != AUTO:
        return replace(request, source=whole) if whole is not None else replace(request, transformer=model_name)
    try:
        find_components(components, folders, {"vae": vae} if vae else {})
    except MissingModelError as error:
        if whole is not None:
            return replace(request, source=whole)
        place = next(iter(host.model_dirs(FOLDER_KEYS[0])), Path(FOLDER_KEYS[0])) / names[0]
        get = f"`alignsr models download {DOWNLOADS[backbone]}`, to" if backbone in DOWNLOADS else "a diffusers folder in"
        raise MissingModelError(f"{error}. Or {get} {place}") from error
    return request


class LoadMultiStepBackbone:
    """Node AlignSRLoadMultiStepBackbone."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Opens a large diffusion model for restoration in many steps: FLUX.1 [dev], or Stable Diffusion 2 base, 1.5 or XL, as "
        "single files or as a diffusers folder. Conditioned by the enlarged input itself (add a LoRA with Merge LoRA: ASASR) or "
        "by a control branch (C-FLUX, C-SD2 and their DP2O-SR versions). Without either it makes pictures and does not restore."
    )
    FUNCTION = "load"
    RETURN_TYPES = (SR_MODEL, "STRING")
    RETURN_NAMES = ("model", "info")
    OUTPUT_TOOLTIPS = (
        "The model, for Merge LoRA, Text Encode and Multi-Step SR. Its weights are read at the first use.",
        "Facts as JSON: files, parameters, tile size, tokens, licence of the weights, how it is sampled.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        host = get_host()
        folders = sorted({name for marker in MARKERS.values() for name in host.list_folders(marker, *FOLDER_KEYS)})
        return {
            "required": {
                "backbone": (
                    list(BACKBONES),
                    {
                        "default": "flux1",
                        "tooltip": "The family. flux1: FLUX.1 [dev] 12B, non-commercial. sd2, sd15, sdxl: Stable Diffusion 2 "
                        "base, 1.5 and XL.",
                    },
                ),
                "model_name": (
                    [AUTO, TINY, *folders, *host.list_files("diffusion_models"), *host.list_files("checkpoints")],
                    {
                        "default": AUTO,
                        "tooltip": "auto: the published file of models/diffusion_models or models/checkpoints, else the "
                        "diffusers folder of the published name in models/diffusers. tiny: a random miniature that shows whether "
                        "a workflow runs.",
                    },
                ),
                "control_name": (
                    [NONE, AUTO, *host.list_files("controlnet")],
                    {
                        "default": NONE,
                        "tooltip": "A control branch of models/controlnet: a plain state dict as released. auto: dp2o-flux or "
                        "dp2o-sd2, else c-flux or c-sd2. none: the model sees the input itself.",
                    },
                ),
                "vae_name": (
                    [AUTO, *host.list_files("vae")],
                    {
                        "default": AUTO,
                        "tooltip": "auto: the model's own autoencoder. A tiny one of the same latents (taef1, taesd) is many "
                        "times faster and a little less exact.",
                    },
                ),
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": PRECISIONS[0],
                        "tooltip": "Number format of the weights. 8bit and 4bit store the large layers smaller: 8bit brings "
                        "FLUX.1 into 24 GB. They need bitsandbytes.",
                    },
                ),
                "offload": (
                    list(OFFLOADS),
                    {
                        "default": OFFLOADS[0],
                        "tooltip": "sequential: autoencoder and transformer take turns on the GPU, twice per picture. none: both "
                        "stay there during a run.",
                    },
                ),
                "device": (
                    list(DEVICES),
                    {"default": DEVICES[0], "tooltip": "auto: the GPU if there is one. cpu: stay on the processor, very slow."},
                ),
            },
            "optional": {
                "condition": (
                    list(CONDITIONS),
                    {
                        "default": CONDITIONS[0],
                        "advanced": True,
                        "tooltip": "flux1 without a control branch: resolution at which the model sees the input. half has a "
                        "quarter of its tokens: about twice as fast at 1024 pixels, for adapters trained that way.",
                    },
                ),
                "vae_tile_px": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "advanced": True,
                        "tooltip": "Largest side that the autoencoder codes at once, apart from the model's tiles; at least 136. "
                        "0: the model's tile. Smaller needs less memory.",
                    },
                ),
                "use_compile": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "Compile the blocks that repeat: minutes at the first picture, faster from then on.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, model_name: str | None = AUTO, control_name: str | None = NONE, vae_name: str | None = AUTO, **_: Any
    ) -> str | float:
        """Open again when a file was replaced; always where a name comes through a link."""
        if model_name is None or vae_name is None or control_name is None:
            return math.nan
        host = get_host()
        places = [folder for key in ("checkpoints", "vae", "controlnet", *FOLDER_KEYS) for folder in host.model_dirs(key)]
        names = (model_name, control_name, vae_name)
        return " ".join(map(file_stamp, (path for name in names for place in places if (path := place / name).exists())))

    def load(
        self,
        backbone: str,
        model_name: str = AUTO,
        control_name: str = NONE,
        vae_name: str = AUTO,
        precision: str = "bf16",
        offload: str = "sequential",
        device: str = "auto",
        condition: str = "full",
        vae_tile_px: int = 0,
        use_compile: bool = False,
    ) -> tuple[OneStepModel, str]:
        for name, value, known in (
            ("backbone", backbone, tuple(BACKBONES)), ("offload", offload, OFFLOADS), ("device", device, DEVICES),
            ("condition", condition, CONDITIONS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        facts: dict[str, Any] = {"vae_tile_px": vae_tile_px}
        if backbone == "flux1" and control_name == NONE and condition == "half":
            facts["condition_stride"] = 2
        names = {"precision": "precision", "vae_tile_px": "vae_tile_px", "autoencoder": "vae_name", "control": "control_name"}
        with input_names("model_name", **names, condition_stride="condition"):
            request = find_multi_step(
                get_host(),
                backbone,
                model_name,
                control_name,
                vae_name,
                precision=precision,
                use_compile=use_compile,
                facts=facts,
            )
            model = OneStepModel(request, device, offload == "sequential")
        return model, json.dumps(describe(model), indent=2)


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
        with _held(model, pixels, scale, tile_px, batch_size, host) as backbone, input_names(pixels="image", lq="image"):
            restored = sample_picture(
                backbone,
                pixels,
                scale=scale,
                tile_px=tile_px,
                overlap_px=overlap_px,
                device=_device(model, host),
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


def _device(model: LoadedModel | OneStepModel, host: Host) -> torch.device:
    return torch.device("cpu") if model.device == "cpu" else host.device()


def _say(host: Host, message: str) -> None:
    LOGGER.warning("Multi-Step SR: %s", message)
    host.soft_empty_cache()
    host.check_interrupt()


def _held(model: LoadedModel | OneStepModel, pixels: Tensor, scale: int, tile_px: int, batch_size: int, host: Host) -> Any:
    """The model on its device, whole or by turns, with room for a tile and for the pictures."""
    spec, device = model.backbone.spec, _device(model, host)
    side = min(tile_px or spec.tile_px, max(pixels.shape[-2:]) * scale + spec.size_multiple)
    room = batch_size * side**2 * spec.bytes_per_pixel + min(picture_bytes(pixels, scale), LARGEST_PICTURE_BYTES)
    host.check_interrupt()
    if model.offload:
        return in_turns(model.backbone, device, host, room)
    return on_device(model.backbone, device, host, nbytes(*(module for _, module in model.backbone.modules())) + room)
