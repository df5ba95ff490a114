"""FLUX.1 on disk: its configurations, where its parts lie, and names of the original layout to diffusers' names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..weights import WeightsError
from .files import Component, count_blocks
from .z_image import AUTOENCODER as AUTOENCODER  # the same latent space, by the same file

PATCH = 2  # latent elements per token and axis
LICENCE = "FLUX.1 [dev] Non-Commercial License"
TRANSFORMER_CLASS = "FluxTransformer2DModel"
CONTROL_CLASS = "FluxControlNetModel"
TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
CONTROL_BLOCKS = {"num_layers": 4, "num_single_layers": 0}  # of C-FLUX, dp2o-sr.md 3.2
TINY: dict[str, Any] = {
    "transformer": TRANSFORMER
    | {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    },
    "control": {"num_layers": 1, "num_single_layers": 0},
    "vae": {
        "class": "AutoencoderKL",
        "options": AUTOENCODER["options"] | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 4},
    },
    "text_tokens": 16,
}
COMPONENTS = (
    Component(
        "transformer",
        "diffusion_models",
        ("flux1-dev.safetensors", "flux1-dev-fp8.safetensors"),
        "black-forest-labs/FLUX.1-dev on Hugging Face (gated: accept its non-commercial licence there first)",
        rounded=("flux1-dev-fp8.safetensors",),
    ),
    Component(
        "vae",
        "vae",
        ("ae.safetensors",),
        "black-forest-labs/FLUX.1-dev on Hugging Face (gated)",
        stand_ins=("taef1_encoder.pth", "taef1_encoder.safetensors"),
    ),
)
CONTROL = Component(
    "control",
    "controlnet",
    ("dp2o-flux.safetensors", "c-flux.safetensors", "dp2o-flux/model.safetensors", "c-flux/model.safetensors"),
    "the Google Drive folder of cswry/DP2O-SR, see `alignsr models list`",
)
TEXT_ENCODER = Component(
    "text_encoder",
    "text_encoders",
    ("clip_l.safetensors", "t5xxl_fp16.safetensors"),
    "black-forest-labs/FLUX.1-dev on Hugging Face (text_encoder, text_encoder_2, tokenizer, tokenizer_2)",
)
TEXT_TOKENS = 512

_OUTER = {
    "img_in.": "x_embedder.",
    "txt_in.": "context_embedder.",
    "time_in.in_layer.": "time_text_embed.timestep_embedder.linear_1.",
    "time_in.out_layer.": "time_text_embed.timestep_embedder.linear_2.",
    "vector_in.in_layer.": "time_text_embed.text_embedder.linear_1.",
    "vector_in.out_layer.": "time_text_embed.text_embedder.linear_2.",
    "guidance_in.in_layer.": "time_text_embed.guidance_embedder.linear_1.",
    "guidance_in.out_layer.": "time_text_embed.guidance_embedder.linear_2.",
    "final_layer.linear.": "proj_out.",
}
_DOUBLE = {
    "img_mod.lin.": "norm1.linear.",
    "txt_mod.lin.": "norm1_context.linear.",
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "img_attn.proj.": "attn.to_out.0.",
    "txt_attn.proj.": "attn.to_add_out.",
    "img_mlp.0.": "ff.net.0.proj.",
    "img_mlp.2.": "ff.net.2.",
    "txt_mlp.0.": "ff_context.net.0.proj.",
    "txt_mlp.2.": "ff_context.net.2.",
}
_SINGLE = {
    "modulation.lin.": "norm.linear.",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
    "linear2.": "proj_out.",
}
_FUSED = {"img_attn.qkv.": ("to_q", "to_k", "to_v"), "txt_attn.qkv.": ("add_q_proj", "add_k_proj", "add_v_proj")}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def to_diffusers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Names of the original layout (`double_blocks`, fused qkv), as single files have them, to diffusers' names.

    Args:
        state: of a single file, in either layout.
        source: for messages.

    Raises:
        WeightsError: another model's weights, or names that FLUX.1 has not.
    """
    if "x_embedder.weight" in state and "time_text_embed.timestep_embedder.linear_1.weight" in state:
        return dict(state)
    if "double_blocks.0.img_mod.lin.weight" not in state:
        found = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{source}: expected a FLUX.1 transformer (double_blocks.0.img_mod and others), got {found}; "
            "choose flux1-dev.safetensors"
        )
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _BLOCK.fullmatch(name):
            kind, index, rest = match.groups()
            named |= _block(
                kind, f"{'single_' if kind == 'single' else ''}transformer_blocks.{index}", rest, tensor, name, source
            )
        elif name.startswith("final_layer.adaLN_modulation.1."):
            shift, scale = tensor.chunk(2)  # diffusers has them the other way round
            named[f"norm_out.linear.{name.rpartition('.')[2]}"] = torch.cat((scale, shift))
        else:
            named[_renamed(name, _OUTER, name, source)] = tensor
    return named


def _block(kind: str, block: str, rest: str, tensor: Tensor, name: str, source: str) -> dict[str, Tensor]:
    if kind == "single" and rest.startswith("linear1."):  # q, k, v and the feed-forward's input, one above the other
        end = rest.rpartition(".")[2]
        width = tensor.shape[0] // 7
        parts: tuple[Tensor, ...] = torch.split(tensor, [width, width, width, tensor.shape[0] - 3 * width])
        return {
            f"{block}.{layer}.{end}": part
            for layer, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True)
        }
    for start, layers in _FUSED.items():
        if kind == "double" and rest.startswith(start):
            end = rest.removeprefix(start)
            return {f"{block}.attn.{layer}.{end}": part for layer, part in zip(layers, tensor.chunk(3), strict=True)}
    return {f"{block}.{_renamed(rest, _DOUBLE if kind == 'double' else _SINGLE, name, source)}": tensor}


def _renamed(rest: str, table: Mapping[str, str], name: str, source: str) -> str:
    for old, new in table.items():
        if rest.startswith(old):
            return new + rest.removeprefix(old)
    raise WeightsError(f"{source}: expected the tensors of a FLUX.1 transformer, got {name}; choose flux1-dev.safetensors")


def control_options(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """Options of C-FLUX's control branch over a transformer of these options."""
    taken = ("patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim")
    taken += ("pooled_projection_dim", "guidance_embeds", "axes_dims_rope")
    return {key: transformer[key] for key in taken} | CONTROL_BLOCKS


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The transformer's options from the shapes of its tensors (diffusers' names).

    Raises:
        WeightsError: a tensor that says the size is missing.
    """
    try:
        width, channels = state["x_embedder.weight"].shape
        head = state["transformer_blocks.0.attn.norm_q.weight"].numel()
        joint = state["context_embedder.weight"].shape[1]
        pooled = state["time_text_embed.text_embedder.linear_1.weight"].shape[1]
        side = 7 * head // 16 // 2 * 2  # an even share; 56 of 128
    except KeyError as error:
        raise WeightsError(f"weights: expected a FLUX.1 transformer, found no {error.args[0]}; choose another file") from error
    return TRANSFORMER | {
        "in_channels": channels,
        "num_layers": count_blocks(state, "transformer_blocks."),
        "num_single_layers": count_blocks(state, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": joint,
        "pooled_projection_dim": pooled,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in state,
        "axes_dims_rope": (head - 2 * side, side, side),
    }
