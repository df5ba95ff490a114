"""Text encoders as ComfyUI users have them: one weight file, without configuration and without a tokenizer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.files import count_blocks, read_part
from ..compat import import_transformers
from ..weights import MissingModelError, WeightsError, check_state
from .folders import TOKENIZER, attention, load_tokenizer

# where Qwen's tokenizer lies besides a folder of its own; all Qwen3 models and ComfyUI's copy share vocabulary and merges
TOKENIZER_FOLDERS = (
    *("tokenizer", "qwen25_tokenizer", "Qwen3-VL-4B-Instruct", "Qwen3-4B"),
    *(f"{name}/tokenizer" for name in ("FLUX.2-klein-base-4B", "FLUX.2-klein-4B", "Z-Image-Turbo")),
)
# Qwen3's chat template for turns of text; a folder of another Qwen brings another one, without thinking
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}  # of Qwen3, as its positions' length: shapes do not tell them
_POSITIONS = 40_960


def find_tokenizer(places: Iterable[Path]) -> Path:
    """A folder with Qwen's tokenizer: one of `places` itself, or a known name in it.

    Raises:
        MissingModelError: names what was searched and where to get it.
    """
    searched = list(dict.fromkeys(places))
    for place in searched:
        for folder in (place, *(place / name for name in TOKENIZER_FOLDERS)):
            if all(any((folder / one).is_file() for one in options) for options in TOKENIZER):
                return folder
    listed = " and ".join(" or ".join(options) for options in TOKENIZER)
    raise MissingModelError(
        f"tokenizer: expected a folder with {listed} beside the text encoder's file, searched "
        f"{', '.join(map(str, searched))} for {', '.join(TOKENIZER_FOLDERS)}; "
        "get tokenizer_config.json, vocab.json and merges.txt from https://huggingface.co/Qwen/Qwen3-4B"
    )


def read_tokenizer(folder: Path) -> Any:
    """Qwen's tokenizer with the chat template of Qwen3."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def infer_options(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Options of a Qwen3 from the shapes of its tensors.

    Raises:
        WeightsError: not a Qwen3.
    """
    try:
        vocabulary, width = state["embed_tokens.weight"].shape
        head = state["layers.0.self_attn.q_norm.weight"].numel()
        heads, groups = (state[f"layers.0.self_attn.{name}_proj.weight"].shape[0] // head for name in "qk")
        hidden = state["layers.0.mlp.gate_proj.weight"].shape[0]
    except KeyError as error:
        found = ", ".join(sorted(state)[:3]) or "no tensors"
        raise WeightsError(
            f"{source}: expected a Qwen3 text encoder, found no {error.args[0]} but {found}; choose qwen_3_4b.safetensors"
        ) from error
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": count_blocks(state, "layers."),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _ROPE,
    }


def load_qwen3(path: Path, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """Qwen3 without its output layer from one weight file, also one of scaled 8-bit floats.

    Args:
        path: the file.
        dtype: of the weights.
        device: where it will work; decides the attention.

    Returns:
        The model in eval mode, frozen, on the CPU.

    Raises:
        WeightsError: damaged, another model, or weights that are missing or do not fit, all at once.
    """
    part = read_part(path)
    state = {name.removeprefix("model."): tensor for name, tensor in part.state.items() if name != "lm_head.weight"}
    transformers: Any = import_transformers()
    config = transformers.Qwen3Config(**infer_options(state, part.source))
    with torch.device("meta"):
        expected: nn.Module = transformers.Qwen3Model(config)
    check_state(state, expected.state_dict(), part.source)
    model: Any = transformers.Qwen3Model.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, attn_implementation=attention(device, dtype)
    )
    return cast(nn.Module, model).requires_grad_(False).eval()
