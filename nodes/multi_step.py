"""Load Multi-Step Backbone: large diffusion models that restore by sampling from noise."""

import math
from dataclasses import replace
from typing import Any

from .common import SR_MODEL, file_stamp, input_names
from .host import Host, get_host
from .models import DEVICES
from .one_step import AUTO, OFFLOADS, PRECISIONS, TINY, OneStepModel, Request, report

NONE = "none"
BACKBONES = {"flux1": ("flux1", {}), **{v: ("stable_diffusion", {"version": v}) for v in ("sd2", "sd15", "sdxl")}}
FOLDER_KEYS = ("diffusers", "alignsr", "diffusion_models")
CONDITIONS = ("full", "half")
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
    from ..core.backbones.latent import components_of
    from ..core.backbones.published import find_folder, find_source

    kind, own = BACKBONES[backbone]
    entry = MULTI_STEP_KINDS[kind]
    assert entry.control is not None
    version = own.get("version", "")
    folders = {part.folder: host.model_dirs(part.folder) for part in (*components_of(entry, version), entry.control)}
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
    places = [folder for key in FOLDER_KEYS for folder in host.model_dirs(key)]
    if model_name != AUTO:
        whole = find_folder(model_name, entry.main, places)
        return replace(request, source=whole) if whole is not None else replace(request, transformer=model_name)
    source = find_source(kind, folders, places, version=version, chosen={"vae": vae} if vae else {})
    return replace(request, source=source)


class LoadMultiStepBackbone:
    """Node AlignSRLoadMultiStepBackbone."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Opens a large diffusion model for restoration in many steps: FLUX.1 [dev], or Stable Diffusion 2 base, 1.5 or XL, as "
        "single files or as a diffusers folder. Conditioned by the enlarged input itself (add a LoRA with Merge LoRA: ASASR) or "
        "by a control branch (C-FLUX, C-SD2 and their DP2O-SR versions). Without either it makes pictures and does not restore."
    )
    MODEL_FOLDERS = (("model_name", "diffusion_models"), ("control_name", "controlnet"), ("vae_name", "vae"))
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
        return model, report(model)
