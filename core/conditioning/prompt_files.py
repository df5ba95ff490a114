"""CLIP and T5 as ComfyUI users have them: one weight file each, without configuration and without a tokenizer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.files import count_blocks, read_part
from ..compat import import_transformers
from ..weights import MissingModelError, WeightsError
from .folders import attention

# where the tokenizers lie besides a folder of their own: in diffusers folders, and in ComfyUI's own code
TOKENIZERS = {
    "clip": ("clip_tokenizer", "sd1_tokenizer", "../sd1_tokenizer", "comfy/sd1_tokenizer"),
    "t5": ("t5_tokenizer", "comfy/text_encoders/t5_tokenizer"),
}
_FILES = {"clip": ("vocab.json", "tokenizer.json"), "t5": ("tokenizer.json", "spiece.model")}
_SOURCES = {"clip": "openai/clip-vit-large-patch14", "t5": "google/t5-v1_1-xxl"}
_HEAD = 64  # channels per attention head of every published CLIP text encoder and T5
_LARGE = 768  # width of CLIP-L, the only one with the approximate activation


def find_tokenizer(places: Iterable[Path], family: str, name: str) -> Path:
    """A folder with the tokenizer of CLIP or T5: a known name in one of `places`, or the base model's own folder there.

    Args:
        places: folders to search.
        family: `clip` or `t5`.
        name: of the tokenizer's folder in a diffusers folder.

    Raises:
        MissingModelError: names what was searched and where to get it.
    """
    searched = list(dict.fromkeys(places))
    names = (*TOKENIZERS[family], *(f"{base}/{name}" for base in ("FLUX.1-dev", "stable-diffusion-xl-base-1.0")))
    for place in searched:
        for folder in (place / name for name in names):
            if (folder / "tokenizer_config.json").is_file() and any((folder / one).is_file() for one in _FILES[family]):
                return folder.resolve()
    raise MissingModelError(
        f"tokenizer: expected a folder {TOKENIZERS[family][0]} with tokenizer_config.json and {' or '.join(_FILES[family])}, "
        f"searched {', '.join(map(str, searched))}; get it from https://huggingface.co/{_SOURCES[family]}"
    )


def clip_options(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Options of a CLIP text encoder from the shapes of its tensors.

    Raises:
        WeightsError: not one.
    """
    try:
        vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
        options: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count_blocks(state, "text_model.encoder.layers."),
            "num_attention_heads": max(1, width // _HEAD),
            "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "hidden_act": "quick_gelu" if width == _LARGE else "gelu",
            "projection_dim": state["text_projection.weight"].shape[0] if "text_projection.weight" in state else width,
        }
    except KeyError as error:
        raise _wrong(state, source, "CLIP text encoder", "clip_l.safetensors", error) from error
    return options


def t5_options(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Options of a T5 encoder from the shapes of its tensors.

    Raises:
        WeightsError: not one.
    """
    try:
        vocabulary, width = state["shared.weight"].shape
        first = "encoder.block.0.layer.0.SelfAttention"
        buckets, heads = state[f"{first}.relative_attention_bias.weight"].shape
        inner = state[f"{first}.q.weight"].shape[0]
        hidden = state["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    except KeyError as error:
        raise _wrong(state, source, "T5 encoder", "t5xxl_fp16.safetensors", error) from error
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": count_blocks(state, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def _wrong(state: Mapping[str, Tensor], source: str, what: str, file: str, error: KeyError) -> WeightsError:
    found = ", ".join(sorted(state)[:3]) or "no tensors"
    return WeightsError(f"{source}: expected a {what}, found no {error.args[0]} but {found}; choose {file}")


def load_clip(path: Path, class_name: str, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A CLIP text encoder from one weight file.

    Args:
        path: the file.
        class_name: `CLIPTextModel`, or `CLIPTextModelWithProjection`.
        dtype: of the weights.
        device: where it will work; decides the attention.

    Raises:
        WeightsError: damaged, another model, or weights that are missing.
    """
    part = read_part(path, wrappers=())
    ignored = {
        "logit_scale",
        "text_model.embeddings.position_ids",
        *(["text_projection.weight"] * (class_name == "CLIPTextModel")),
    }
    state = {name: tensor for name, tensor in part.state.items() if name not in ignored}
    config = import_transformers().CLIPTextConfig(**clip_options(state, part.source))
    return _build(class_name, config, state, part.source, dtype, device)


def load_t5(path: Path, class_name: str, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A T5 encoder from one weight file, also one of scaled 8-bit floats; see `load_clip`."""
    del device
    part = read_part(path, wrappers=())
    state = dict(part.state)
    state.setdefault("shared.weight", state.get("encoder.embed_tokens.weight", torch.empty(0)))
    state.pop("encoder.embed_tokens.weight", None)
    if not state["shared.weight"].numel():
        del state["shared.weight"]
    config = import_transformers().T5Config(**t5_options(state, part.source))
    return _build(class_name, config, state, part.source, dtype, "cpu")  # flash attention knows no relative positions


def _build(
    class_name: str, config: Any, state: dict[str, Tensor], source: str, dtype: torch.dtype, device: str | torch.device
) -> nn.Module:
    kind: Any = getattr(import_transformers(), class_name)
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, attn_implementation=attention(device, dtype),
        output_loading_info=True,
    )  # fmt: skip
    lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    extra = sorted(info["unexpected_keys"])
    if lacking or extra:
        raise WeightsError(
            f"{source}: the weights do not fit a {class_name}; missing: {', '.join(lacking[:8]) or 'none'}; unexpected: "
            f"{', '.join(extra[:8]) or 'none'}; choose the file made for it"
        )
    return cast(nn.Module, model).requires_grad_(False).eval()
