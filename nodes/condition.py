"""What one-step models are told besides the picture: Load VLM, VLM Encode, Text Encode, Empty Conditioning."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.records import Conditioning
from ..core.restore import MODES
from .common import SR_MODEL, input_names, room_on, take
from .host import get_host
from .models import DEVICES, LoadedModel
from .one_step import AUTO, TINY, OneStepModel

LOGGER = logging.getLogger("alignsr")
CONDITIONING = "ALIGNSR_CONDITIONING"  # socket type; a core.records.Conditioning or a core.staged.Conditioner
VLM = "ALIGNSR_VLM"  # socket type; the value is a LoadedVLM
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEEPS = ("home", "nothing", "device")
SCOPES = ("auto", "image", "tile")
VLM_KEYS = ("text_encoders", "LLM", "diffusers")
TEXT_KEYS = ("diffusers", "alignsr", "diffusion_models", "text_encoders")
EMPTY_TOKENS = 68


@dataclass(frozen=True)
class LoadedVLM:
    """The value of an ALIGNSR_VLM socket.

    Attributes:
        folder: where the model lies.
        load: reads it to the CPU; called when an image comes that is not remembered.
        device: where it works.
        keep: what stays between uses, see `core.conditioning.resident.OnDemand`.
        encoders: by whether they prepare pictures as the released scripts do; they share the model.
    """

    folder: Path
    load: Callable[[], Any]
    device: torch.device
    keep: Any
    encoders: dict[bool, Any] = field(default_factory=dict[bool, Any])

    def encoder(self, parity: bool) -> Any:
        """A `VLMEncoder`, always the same one, so that it remembers."""
        from ..core.conditioning import VLMEncoder

        if parity not in self.encoders:
            made = VLMEncoder(self.load, self.device, self.keep, parity=parity, make_room=room_on(self.device))
            for other in self.encoders.values():
                made.models = other.models
            self.encoders[parity] = made
        return self.encoders[parity]


class LoadVLM:
    """Node AlignSRLoadVLM."""

    CATEGORY = "AlignSR/conditioning"
    DESCRIPTION = (
        "Names the vision-language model that looks at the small picture: Qwen3-VL-4B-Instruct for StrSR. Its weights are read "
        "when a picture comes that it has not seen."
    )
    MODEL_FOLDERS = (("vlm_name", "text_encoders"),)
    FUNCTION = "load"
    RETURN_TYPES = (VLM, "STRING")
    RETURN_NAMES = ("vlm", "info")
    OUTPUT_TOOLTIPS = ("The model, for VLM Encode.", "Facts as JSON: folder, precision, device.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "vlm_name": (
                    [AUTO, TINY, *get_host().list_folders("tokenizer_config.json", *VLM_KEYS)],
                    {
                        "default": AUTO,
                        "tooltip": "A folder of transformers in models/text_encoders. auto: Qwen3-VL-4B-Instruct, the one that "
                        "the released adapters know. tiny: a random miniature that shows whether a workflow runs.",
                    },
                ),
                "precision": (list(DTYPES), {"default": "bf16", "tooltip": "Number format of its weights; bf16 as released."}),
                "keep": (
                    list(KEEPS),
                    {
                        "default": KEEPS[0],
                        "tooltip": "What stays after use. home: the weights wait in main memory. nothing: they are read again "
                        "next time. device: they stay on the GPU, which must hold the transformer as well.",
                    },
                ),
                "device": (
                    list(DEVICES),
                    {"default": DEVICES[0], "tooltip": "auto: the GPU if there is one. cpu: the processor."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, vlm_name: str | None, **_: Any) -> str | float:  # noqa: N802
        """Always where the name comes through a link."""
        return math.nan if vlm_name is None else vlm_name

    def load(
        self, vlm_name: str = AUTO, precision: str = "bf16", keep: str = "home", device: str = "auto"
    ) -> tuple[LoadedVLM, str]:
        from ..core.conditioning import load_vlm

        for name, value, known in (("precision", precision, tuple(DTYPES)), ("keep", keep, KEEPS), ("device", device, DEVICES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        host = get_host()
        where = torch.device("cpu") if device == "cpu" else host.device()
        folder = _vlm_folder(vlm_name)

        def read() -> Any:
            LOGGER.info("reading the weights of %s ...", folder.name)
            with torch.inference_mode(False):
                return _tiny_vlm(DTYPES[precision]) if vlm_name == TINY else load_vlm(folder, (), DTYPES[precision], where)

        facts = {"folder": str(folder), "precision": precision, "keep": keep, "device": str(where)}
        return LoadedVLM(folder, read, where, keep), json.dumps(facts, indent=2)


def _vlm_folder(vlm_name: str) -> Path:
    from ..core.conditioning.folders import find_folder
    from ..core.conditioning.vlm import VLM_FOLDER

    if vlm_name == TINY:
        return Path(TINY)
    host = get_host()
    places = [folder for key in VLM_KEYS for folder in host.model_dirs(key)]
    with input_names("vlm_name"):
        return find_folder(VLM_FOLDER, None if vlm_name == AUTO else vlm_name, places)


def _tiny_vlm(dtype: torch.dtype) -> Any:
    from ..core.conditioning.tiny import tiny_vlm

    made = tiny_vlm()
    made.model.to(dtype)
    return made


class VLMEncode:
    """Node AlignSRVLMEncode."""

    CATEGORY = "AlignSR/conditioning"
    DESCRIPTION = (
        "Shows the small picture to a vision-language model with StrSR's fixed question, and brings what it holds at the text "
        "tokens to the transformer's width with the projector that came with the LoRA. Pictures are remembered."
    )
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "info")
    OUTPUT_TOOLTIPS = (
        "What the model is told, for One-Step SR with the same pictures.",
        "Facts as JSON: pictures, tokens, scope, preparation.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "vlm": (VLM, {"tooltip": "The language model, from Load VLM."}),
                "model": (SR_MODEL, {"tooltip": "The model with its LoRA, from Merge LoRA: it brings the projector."}),
                "image": ("IMAGE", {"tooltip": "The small pictures, as they go to One-Step SR: not enlarged."}),
                "mode": (
                    list(MODES),
                    {
                        "default": MODES[0],
                        "tooltip": "best: one resize, every tile is told about its own part. parity: as the released scripts, "
                        "two resizes and one description for the whole picture. An adapter trained with is_parity saw two.",
                    },
                ),
            },
            "optional": {
                "scope": (
                    list(SCOPES),
                    {
                        "default": SCOPES[0],
                        "advanced": True,
                        "tooltip": "auto: tile in best mode, image in parity mode. image: one description for all tiles. tile: "
                        "each tile its own, as in training; seen when One-Step SR has cut its tiles.",
                    },
                ),
                "batch_size": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "advanced": True,
                        "tooltip": "Parts of a picture per pass. More is faster on a large GPU and needs more memory.",
                    },
                ),
            },
        }

    def encode(
        self,
        vlm: LoadedVLM,
        model: OneStepModel | LoadedModel,
        image: Tensor,
        mode: str = "best",
        scope: str = "auto",
        batch_size: int = 1,
    ) -> tuple[Any, str]:
        from ..core.conditioning import VLMConditioner

        pixels, host = take(image, "image"), get_host()
        for name, value, known in (("mode", mode, MODES), ("scope", scope, SCOPES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        projector = _projector(model)
        if mode == "best" and _is_parity_trained(model):
            LOGGER.info(
                "VLM Encode: this adapter was trained with conditioning.is_parity, on pictures resized twice; best resizes once: "
                "choose parity to tell the model what it was told in training"
            )
        per_tile = scope == "tile" or (scope == "auto" and mode == "best")
        with torch.inference_mode(False), input_names(lq="image"):
            lq = pixels.rgb.clone()
            conditioner = VLMConditioner(vlm.encoder(mode == "parity"), projector, lq, per_tile=per_tile, batch_size=batch_size)
            if not per_tile:
                bar = host.progress(lq.shape[0], "looking at the pictures")
                for sample in range(lq.shape[0]):
                    bar.update(sample)
                    conditioner.encoder.encode(lq[sample : sample + 1])
                bar.update(lq.shape[0])
                host.soft_empty_cache()
        facts = {
            "vlm": vlm.folder.name,
            "pictures": lq.shape[0],
            "scope": "tile" if per_tile else "image",
            "resizes": 2 if mode == "parity" else 1,
            "width": model.spec.conditioning_dim,
        }
        return conditioner, json.dumps(facts, indent=2)


def _projector(model: OneStepModel | LoadedModel) -> Any:
    projector = model.projector
    if projector is None:
        raise ValueError(
            "model: expected a model whose LoRA has a projector, got one without; connect the output of Merge LoRA with "
            "StrSR-flux or StrSR-zimage (projector.pth beside state_dict.pth)"
        )
    return projector


def _is_parity_trained(model: OneStepModel | LoadedModel) -> bool:
    """Whether the adapter that brings the projector says in its header that it was trained with two resizes."""
    adapters = model.adapters if isinstance(model, OneStepModel) else ()
    infos: list[Any] = [adapter.info for adapter, _ in adapters if adapter.projector]
    told: Any = infos[-1].get("config", {}).get("conditioning", {}) if infos else {}
    return bool(told.get("is_parity"))


class TextEncode:
    """Node AlignSRTextEncode."""

    CATEGORY = "AlignSR/conditioning"
    DESCRIPTION = (
        "Turns a prompt into tokens with the text encoder of the model's own family. The released StrSR adapters were trained "
        "with VLM Encode instead; other adapters may know prompts. For models of many steps each prompt is encoded once and "
        "found again on disk, without the encoders."
    )
    MODEL_FOLDERS = (("encoder_name", "text_encoders"),)
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING,)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("What the model is told, for One-Step SR or Multi-Step SR; the same for all pictures and tiles.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        host = get_host()
        return {
            "required": {
                "model": (
                    SR_MODEL,
                    {"tooltip": "From Load One-Step or Multi-Step Backbone, or Merge LoRA: says which text encoder is needed."},
                ),
                "text": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The prompt, or tags: one line, commas between, up to four words each. Empty is a prompt too.",
                    },
                ),
                "encoder_name": (
                    [AUTO, TINY, *host.list_folders("text_encoder/config.json", *TEXT_KEYS), *host.list_files("text_encoders")],
                    {
                        "default": AUTO,
                        "tooltip": "A diffusers folder with text_encoder and tokenizer, or a file of models/text_encoders. auto: "
                        "the folder of the published name, e.g. models/diffusers/FLUX.2-klein-base-4B, else "
                        "qwen_3_4b.safetensors. tiny: a random miniature that shows whether a workflow runs.",
                    },
                ),
                "precision": (list(DTYPES), {"default": "bf16", "tooltip": "Number format of the text encoder's weights."}),
            }
        }

    def __init__(self) -> None:
        self.encoders: dict[tuple[str, ...], Any] = {}  # ComfyUI keeps a node's object: the last encoder remembers prompts

    def encode(
        self, model: OneStepModel, text: str = "", encoder_name: str = AUTO, precision: str = "bf16"
    ) -> tuple[Conditioning]:
        from ..core.conditioning import TEXT_STYLES, TextEncoder, as_prompt, find_text_model, load_text_model

        if not isinstance(model, OneStepModel):  # pyright: ignore[reportUnnecessaryIsInstance]  # the socket is shared
            raise TypeError(
                "model: expected one of Load One-Step Backbone or Load Multi-Step Backbone, got another model; only those take "
                "prompts"
            )
        if precision not in DTYPES:
            raise ValueError(f"precision: expected one of {', '.join(DTYPES)}, got {precision!r}; choose one of them")
        if model.request.kind not in TEXT_STYLES:
            from .prompts import encode_prompt

            return (encode_prompt(model, text, encoder_name, precision),)
        host, style = get_host(), TEXT_STYLES[model.request.kind]
        places = [folder for key in TEXT_KEYS for folder in host.model_dirs(key)]
        device, dtype = torch.device("cpu") if model.device == "cpu" else host.device(), DTYPES[precision]
        if encoder_name == TINY:
            found, share = Path(TINY), model.spec.conditioning_dim // len(style.layers)
            load = partial(_tiny_text_model, share, dtype)
        else:
            with input_names("encoder_name"):
                found = find_text_model(style, None if encoder_name == AUTO else encoder_name, places)
            load = partial(load_text_model, style, found, places, dtype, device, host.tokenizer_dirs())
        key = (str(found), model.request.kind, precision, str(device))
        if key not in self.encoders:
            self.encoders = {key: TextEncoder(load, style, device, make_room=room_on(device))}
        with torch.inference_mode(False), input_names(tokenizer="encoder_name"):
            told = self.encoders[key].encode([as_prompt(text)])
        host.soft_empty_cache()
        return (told,)


def _tiny_text_model(width: int, dtype: torch.dtype) -> Any:
    from ..core.conditioning.tiny import tiny_text_model

    made = tiny_text_model(width)
    made.model.to(dtype)
    return made


class EmptyConditioning:
    """Node AlignSREmptyConditioning."""

    CATEGORY = "AlignSR/conditioning"
    DESCRIPTION = "Tells the model nothing: zeros in place of tokens, for comparison and for adapters trained without conditions."
    FUNCTION = "make"
    RETURN_TYPES = (CONDITIONING,)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("Zeros of the model's width, for One-Step SR; the same as connecting nothing.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": (SR_MODEL, {"tooltip": "From Load One-Step Backbone or Merge LoRA: says how wide a token is."}),
                "tokens": (
                    "INT",
                    {"default": EMPTY_TOKENS, "min": 1, "max": 512, "tooltip": "How many; 68 is what VLM Encode sends."},
                ),
            }
        }

    def make(self, model: Any, tokens: int = EMPTY_TOKENS) -> tuple[Conditioning]:
        spec = model.spec if isinstance(model, OneStepModel) else model.backbone.spec
        if not spec.conditioning_dim:
            raise ValueError(f"model: expected one that takes conditions, got {spec.name}; leave conditioning unconnected")
        return (Conditioning(torch.zeros(1, tokens, spec.conditioning_dim)),)
