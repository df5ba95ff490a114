"""What models of many steps are told: prompts through CLIP and T5, found on disk where they were encoded before."""

import logging
from pathlib import Path
from typing import Any

import torch

from ..core.records import Conditioning
from ..core.weights import MissingModelError
from .common import input_names, room_on
from .host import get_host
from .one_step import AUTO, TINY, OneStepModel

LOGGER = logging.getLogger("alignsr")
FOLDER_KEYS = ("diffusers", "alignsr", "text_encoders", "clip", "diffusion_models")
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DOWNLOADS = {"flux1": "flux1-text", "sd2": "", "sd15": "sd15-text", "sdxl": "sdxl-text"}


def prompt_style(model: OneStepModel) -> str:
    """The key of `core.conditioning.PROMPT_STYLES`: FLUX.1, or the version of Stable Diffusion."""
    return model.request.kind if model.request.kind == "flux1" else str(model.meta.version)


def encode_prompt(model: OneStepModel, text: str, encoder_name: str = AUTO, precision: str = "bf16") -> Conditioning:
    """A prompt for a model of many steps: from disk where it was encoded before, else through the text encoders, once.

    Args:
        model: of Load Multi-Step Backbone.
        text: the prompt, or tags with commas between.
        encoder_name: `auto`, a diffusers folder, or `tiny`.
        precision: of the encoders.

    Raises:
        MissingModelError: not encoded yet, and no encoders; names the files and what gets them.
    """
    from ..core.conditioning import PromptEncoder, PromptStore, load_prompt_models, prompt_folder
    from ..core.conditioning.tiny import tiny_prompt_models

    style, host, dtype = prompt_style(model), get_host(), DTYPES[precision]
    device = torch.device("cpu") if model.device == "cpu" else host.device()
    places = [folder for key in FOLDER_KEYS for folder in host.model_dirs(key)]

    def read() -> Any:
        if encoder_name == TINY:
            made = tiny_prompt_models(
                style, model.spec.conditioning_dim, model.meta.pooled_dim or model.spec.conditioning_dim // 2
            )
            made.model.to(dtype)
            return made
        LOGGER.info("encoding a prompt for %s; it is remembered in %s ...", model.name, prompt_folder())
        name = None if encoder_name == AUTO else encoder_name
        try:
            return load_prompt_models(style, name, places, dtype, device, host.tokenizer_dirs())
        except MissingModelError as error:
            get = f" Or run `alignsr models download {DOWNLOADS[style]}`" if DOWNLOADS[style] else ""
            raise MissingModelError(
                f"{error}.{get}; needed once, for the prompt {text!r}, which is then found in {prompt_folder()}. Empty "
                "Conditioning does without"
            ) from error

    store = None if encoder_name == TINY else PromptStore(prompt_folder())
    with torch.inference_mode(False), input_names(tokenizer="encoder_name"):
        found = PromptEncoder(read, style, device, store=store, make_room=room_on(device)).encode([text])
    host.soft_empty_cache()
    return found


def told(model: Any, given: Any, text: str) -> Any:
    """What is connected, else a prompt that belongs to the model; nothing for models without prompts and for miniatures."""
    if given is not None or not isinstance(model, OneStepModel) or Path(str(model.request.source)) == Path(TINY):
        return given
    return encode_prompt(model, text)
