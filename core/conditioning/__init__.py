"""What backbones are told besides the picture: a vision-language model's tokens, prompts, or tags."""

from .conditioner import VLMConditioner
from .projector import ADAPTER_WIDTHS, VLM_WIDTH, TokenAdapter, load_adapter, make_adapter
from .prompts import (
    PROMPT_STYLES,
    PromptEncoder,
    PromptModels,
    PromptStore,
    PromptStyle,
    find_prompt_models,
    load_prompt_models,
    prompt_folder,
)
from .tags import as_prompt, tags_to_text
from .text import TEXT_STYLES, TextEncoder, TextModel, TextStyle, find_text_model, load_text_model
from .vlm import VisionLanguageModel, VLMEncoder, load_vlm, strsr_prompt, tile_crops

__all__ = [
    "ADAPTER_WIDTHS",
    "PROMPT_STYLES",
    "TEXT_STYLES",
    "VLM_WIDTH",
    "PromptEncoder",
    "PromptModels",
    "PromptStore",
    "PromptStyle",
    "TextEncoder",
    "TextModel",
    "TextStyle",
    "TokenAdapter",
    "VLMConditioner",
    "VLMEncoder",
    "VisionLanguageModel",
    "as_prompt",
    "find_prompt_models",
    "find_text_model",
    "load_adapter",
    "load_prompt_models",
    "load_text_model",
    "load_vlm",
    "make_adapter",
    "prompt_folder",
    "strsr_prompt",
    "tags_to_text",
    "tile_crops",
]
