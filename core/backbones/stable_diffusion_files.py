"""Stable Diffusion on disk: configurations, where the parts lie, and checkpoints of the original layout to diffusers' names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..compat import import_third_party
from ..weights import WeightsError
from .files import Component, count_blocks

VERSIONS = ("sd2", "sd15", "sdxl")
CHANNELS = 4
TEXT_TOKENS = 77
TRANSFORMER_CLASS = "UNet2DConditionModel"
CONTROL_CLASS = "ControlNetModel"
LICENCES = {"sd2": "CreativeML Open RAIL++-M", "sd15": "CreativeML Open RAIL-M", "sdxl": "CreativeML Open RAIL++-M"}
NAMES = {"sd2": "Stable Diffusion 2 base", "sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}
SCALINGS = {"sd2": 0.18215, "sd15": 0.18215, "sdxl": 0.13025}
WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl"}  # of the text's tokens
NEGATIVE = "dotted, noise, blur, lowres, smooth"  # dp2o-sr.md 3.3
_UNET: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_FOUR: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": _UNET | _FOUR | {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": _UNET | _FOUR
    | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": _UNET
    | {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
TRANSFORMER = UNETS["sd2"]
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": CHANNELS,
    "norm_num_groups": 32,
}
AUTOENCODER: dict[str, Any] = {"class": "AutoencoderKL", "options": _VAE}
_TINY_UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": (1, 1),
    "cross_attention_dim": 32,
    "use_linear_projection": True,
}
TINY: dict[str, Any] = {
    "transformer": _UNET | _TINY_UNET,
    "control": {"conditioning_embedding_out_channels": (8, 8, 16, 16)},  # three halvings: 8 pixels per latent
    "vae": {"class": "AutoencoderKL", "options": _VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}},
    "version": "sd2",
}
TINY_XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}
_PAGES = {
    "sd2": "the Google Drive folder of cswry/DP2O-SR (stable-diffusion-2-base, whose own page was taken down)",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5 on Hugging Face",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0 on Hugging Face",
}
_CHECKPOINTS = {
    "sd2": ("512-base-ema.safetensors", "v2-base.safetensors"),
    "sd15": ("v1-5-pruned-emaonly.safetensors", "v1-5-pruned-emaonly-fp16.safetensors"),
    "sdxl": ("sd_xl_base_1.0.safetensors",),
}
COMPONENTS_OF = {
    version: (
        Component("unet", "checkpoints", _CHECKPOINTS[version], _PAGES[version]),
        Component("vae", "vae", ("vae-ft-mse-840000-ema-pruned.safetensors",) if version != "sdxl" else ("sdxl_vae.safetensors",),
                  f"the checkpoint itself, or {_PAGES[version]}", inside="unet"),
    )
    for version in VERSIONS
}  # fmt: skip
COMPONENTS = COMPONENTS_OF["sd2"]
CONTROL = Component(
    "control",
    "controlnet",
    ("dp2o-sd2.safetensors", "c-sd2.safetensors", "dp2o-sd2/model.safetensors", "c-sd2/model.safetensors"),
    "the Google Drive folder of cswry/DP2O-SR, see `alignsr models list`",
)
TEXT_ENCODER = Component("text_encoder", "diffusers", ("text_encoder and tokenizer",), _PAGES["sd2"])

_KEY = "model.diffusion_model."
_HEAD = 64  # channels per attention head of all versions but 1.x, which has 8 heads everywhere
_FIRST_WIDTH = 768  # of 1.x's text tokens


def to_diffusers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Names of the original layout (`input_blocks`), as checkpoints have them, to diffusers' names.

    Args:
        state: of the UNet, in either layout.
        source: for messages.

    Raises:
        WeightsError: another model's weights.
    """
    if "conv_in.weight" in state and "down_blocks.0.resnets.0.conv1.weight" in state:
        return dict(state)
    if "input_blocks.0.0.weight" not in state:
        found = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{source}: expected a UNet of Stable Diffusion (input_blocks and others), got {found}; choose a checkpoint of it"
        )
    converters: Any = import_third_party("diffusers.loaders.single_file_utils")
    downs = sum(name.endswith(".0.op.weight") for name in state)
    inputs = count_blocks(state, "input_blocks.")
    config = {
        "layers_per_block": (inputs - 1 - downs) // (downs + 1),
        "addition_embed_type": "text_time" if "label_emb.0.0.weight" in state else None,
    }
    named: dict[str, Tensor] = converters.convert_ldm_unet_checkpoint({_KEY + name: state[name] for name in state}, config)
    if len(named) != len(state):
        raise WeightsError(
            f"{source}: expected a UNet of Stable Diffusion, {len(state) - len(named)} of its {len(state)} tensors are unknown; "
            "choose a checkpoint of SD 1.5, SD 2 base or SDXL"
        )
    return named


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet's options from the shapes of its tensors (diffusers' names).

    Raises:
        WeightsError: a tensor that says the size is missing.
    """
    try:
        stages = range(count_blocks(state, "down_blocks."))
        widths = [state[f"down_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in stages]
        attends = [f"down_blocks.{i}.attentions.0.proj_in.weight" in state for i in stages]
        depths = [count_blocks(state, f"down_blocks.{i}.attentions.0.transformer_blocks.") or 1 for i in stages]
        first = next(f"down_blocks.{i}.attentions.0" for i in stages if attends[i])
        width = state[f"{first}.transformer_blocks.0.attn2.to_k.weight"].shape[1]
        options: dict[str, Any] = {
            "in_channels": state["conv_in.weight"].shape[1],
            "out_channels": state["conv_out.weight"].shape[0],
            "block_out_channels": tuple(widths),
            "down_block_types": tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
            "layers_per_block": count_blocks(state, "down_blocks.0.resnets."),
            "norm_num_groups": min(32, widths[0] // 4),
            "attention_head_dim": 8 if width == _FIRST_WIDTH else tuple(max(1, one // _HEAD) for one in widths),
            "cross_attention_dim": width,
            "use_linear_projection": state[f"{first}.proj_in.weight"].ndim == 2,
            "transformer_layers_per_block": _depths(depths, attends, state),
        }
    except (KeyError, StopIteration) as error:
        raise WeightsError(f"weights: expected a UNet of Stable Diffusion, found no {error}; choose another file") from error
    if "add_embedding.linear_1.weight" in state:
        total = state["add_embedding.linear_1.weight"].shape[1]
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256 if total > 6 * 256 else 8,
            "projection_class_embeddings_input_dim": total,
        }
    return options


def _depths(depths: list[int], attends: list[bool], state: Mapping[str, Tensor]) -> Any:
    """Transformer layers per stage; a stage without attention has its depth in the middle block, where it counts."""
    middle = count_blocks(state, "mid_block.attentions.0.transformer_blocks.") or 1
    if not attends[-1]:
        depths = [*depths[:-1], middle]
    return depths[0] if len(set(depths)) == 1 else tuple(depths)


def control_options(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a control branch over a UNet of these options, as `ControlNetModel.from_unet` has them."""
    taken = ("down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim")
    taken += ("attention_head_dim", "use_linear_projection", "transformer_layers_per_block", "addition_embed_type")
    taken += ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    return {key: unet[key] for key in taken if unet.get(key) is not None} | {"in_channels": CHANNELS}


def hint_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of a control branch that its own tensors tell: the widths of the encoder of the picture."""
    found = [name for name in state if name.startswith("controlnet_cond_embedding.blocks.") and name.endswith(".weight")]
    if not found or "controlnet_cond_embedding.conv_in.weight" not in state:
        return {}
    widths = [state["controlnet_cond_embedding.conv_in.weight"].shape[0]]
    widths += [state[f"controlnet_cond_embedding.blocks.{i}.weight"].shape[0] for i in range(1, len(found), 2)]
    return {"conditioning_embedding_out_channels": tuple(widths)}
