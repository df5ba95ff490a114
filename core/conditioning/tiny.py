"""Random language models of a few thousand weights with Qwen's structure, for tests, dry runs and trying a workflow."""

from typing import Any

import torch
from torch import nn

from ..compat import import_third_party, import_transformers
from .prompts import PROMPT_STYLES, PromptModels
from .text import TextModel
from .vlm import VisionLanguageModel

TINY_WIDTH = 32
_SPECIAL = ("<|endoftext|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = 256


def tiny_tokenizer() -> Any:
    """One token per word (its first letter) or mark, and Qwen's special ones: as short as Qwen's own."""
    tokenizers: Any = import_third_party("tokenizers")
    letters = {chr(code): code for code in range(_WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="?"))
    inner.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"(?<=\w)\w"), "")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast: Any = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=list(_SPECIAL)
    )
    fast.chat_template = _TEMPLATE
    return fast


def tiny_vlm(width: int = TINY_WIDTH, seed: int = 0) -> VisionLanguageModel:
    """Qwen3-VL's structure with 0.1 million random weights.

    Args:
        width: of the tokens it gives, a multiple of 8.
        seed: of the weights; the global random state is left alone.
    """
    transformers, tokenizer = import_transformers(), tiny_tokenizer()
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [width // 16, width // 32, width // 32]}
    number = tokenizer.convert_tokens_to_ids
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192},
        "rope_parameters": {**rotary, "mrope_interleaved": True},
    }
    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "in_channels": 3, "patch_size": 16},
        **{"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": width, "num_position_embeddings": 64},
        "deepstack_visual_indexes": [0, 1],
    }
    marks = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    config: Any = transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, **{f"{name}_token_id": number(mark) for name, mark in marks.items()}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = transformers.Qwen3VLForConditionalGeneration(config).eval().requires_grad_(False)
    return VisionLanguageModel(model.model, tokenizer)


def tiny_text_model(width: int = TINY_WIDTH, layers: int = 28, seed: int = 0) -> TextModel:
    """Qwen3's structure, tiny but as deep as FLUX.2 [klein] reads it.

    Args:
        width: of every hidden state, a multiple of 8.
        layers: hidden layers.
        seed: of the weights; the global random state is left alone.
    """
    transformers, tokenizer = import_transformers(), tiny_tokenizer()
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers, "head_dim": max(4, width // 4)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}
    config: Any = transformers.Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False)
    return TextModel(model.model, tokenizer)


def tiny_prompt_models(style: str, width: int = TINY_WIDTH, pooled: int = TINY_WIDTH // 2, seed: int = 0) -> PromptModels:
    """CLIP's and T5's structure with a few thousand random weights, for a style of `prompts.PROMPT_STYLES`.

    Args:
        style: which base model's.
        width: of the tokens that the encoders give together, a multiple of 16.
        pooled: width of the pooled embedding.
        seed: of the weights; the global random state is left alone.
    """
    transformers, encoders = import_transformers(), PROMPT_STYLES[style].encoders
    sharing = sum(encoder.layer is not None for encoder in encoders)
    models: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for encoder in encoders:
            tokenizer = _padded_tokenizer(encoder.max_tokens)
            size = pooled if encoder.layer is None else width // sharing
            common = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "eos_token_id": tokenizer.eos_token_id}
            if encoder.class_name == "T5EncoderModel":
                sizes = {"d_model": size, "d_kv": 8, "d_ff": 2 * size, "num_layers": 2, "num_heads": 2}
                config: Any = transformers.T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)
            else:
                sizes = {"hidden_size": size, "intermediate_size": 2 * size, "num_attention_heads": 2, "projection_dim": pooled}
                config = transformers.CLIPTextConfig(max_position_embeddings=encoder.max_tokens, **common, **sizes)
            models.append(getattr(transformers, encoder.class_name)(config).eval().requires_grad_(False))
    return PromptModels(nn.ModuleList(models), tuple(_padded_tokenizer(encoder.max_tokens) for encoder in encoders))


def _padded_tokenizer(max_tokens: int) -> Any:
    """As `tiny_tokenizer`, with an end mark after every text."""
    tokenizer = tiny_tokenizer()
    processors: Any = import_third_party("tokenizers.processors")
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.model_max_length = max_tokens
    return tokenizer
