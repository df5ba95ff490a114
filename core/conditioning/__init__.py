"""What backbones are told besides the picture: a vision-language model's tokens, prompts, or tags."""

from .conditioner import VLMConditioner
from .projector import ADAPTER_WIDTHS, VLM_WIDTH, TokenAdapter, load_adapter, make_adapter
from .tags import tags_to_text
from .text import TEXT_STYLES, TextEncoder, TextModel, TextStyle, find_text_model, load_text_model
from .vlm import VisionLanguageModel, VLMEncoder, load_vlm, strsr_prompt, tile_crops

__all__ = [
    "ADAPTER_WIDTHS",
    "TEXT_STYLES",
    "VLM_WIDTH",
    "TextEncoder",
    "TextModel",
    "TextStyle",
    "TokenAdapter",
    "VLMConditioner",
    "VLMEncoder",
    "VisionLanguageModel",
    "find_text_model",
    "load_adapter",
    "load_text_model",
    "load_vlm",
    "make_adapter",
    "strsr_prompt",
    "tags_to_text",
    "tile_crops",
]
