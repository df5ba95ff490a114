"""Files of latent backbones for tests: diffusers folders, and single files in the original layout, written from random models."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from alignsr.core.backbones.latent import LatentBackbone, tiny
from alignsr.core.lora import LORA_TARGETS, Adapter, expected_state

RANK = 4

_FLUX_DOUBLE = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0.weight": "img_attn.proj.weight",
    "attn.to_add_out.weight": "txt_attn.proj.weight",
    "ff.linear_in.weight": "img_mlp.0.weight",
    "ff.linear_out.weight": "img_mlp.2.weight",
    "ff_context.linear_in.weight": "txt_mlp.0.weight",
    "ff_context.linear_out.weight": "txt_mlp.2.weight",
}
_FLUX_SINGLE = {
    "attn.to_qkv_mlp_proj.weight": "linear1.weight",
    "attn.to_out.weight": "linear2.weight",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}
_FLUX_OUTER = {
    "x_embedder.": "img_in.",
    "context_embedder.": "txt_in.",
    "time_guidance_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_guidance_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "double_stream_modulation_img.linear.": "double_stream_modulation_img.lin.",
    "double_stream_modulation_txt.linear.": "double_stream_modulation_txt.lin.",
    "single_stream_modulation.linear.": "single_stream_modulation.lin.",
    "proj_out.": "final_layer.linear.",
}


def flux2_original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to Black Forest Labs' (the layout of ComfyUI's single files): fused qkv, shift before scale."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if match := re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)", name):
            single, index, rest = match.groups()
            if single:
                out[f"single_blocks.{index}.{_FLUX_SINGLE[rest]}"] = tensor
            elif rest in _FLUX_DOUBLE:
                out[f"double_blocks.{index}.{_FLUX_DOUBLE[rest]}"] = tensor
        elif name == "norm_out.linear.weight":
            scale, shift = tensor.chunk(2)
            out["final_layer.adaLN_modulation.1.weight"] = torch.cat((shift, scale))
        else:
            start = next(start for start in _FLUX_OUTER if name.startswith(start))
            out[_FLUX_OUTER[start] + name.removeprefix(start)] = tensor
    for index in {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}:
        attn = f"transformer_blocks.{index}.attn"
        for stream, parts in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
            out[f"double_blocks.{index}.{stream}_attn.qkv.weight"] = torch.cat([state[f"{attn}.{p}.weight"] for p in parts])
    return out


def z_image_original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to those of ComfyUI's single files: fused qkv, and a final norm that nothing uses."""
    out: dict[str, torch.Tensor] = {"norm_final.weight": torch.ones(3)}
    renames = (
        ("all_final_layer.2-1.", "final_layer."),
        ("all_x_embedder.2-1.", "x_embedder."),
        (".attention.to_out.0.", ".attention.out."),
        (".attention.norm_q.", ".attention.q_norm."),
        (".attention.norm_k.", ".attention.k_norm."),
    )
    for name, tensor in state.items():
        if name.endswith(".attention.to_q.weight"):
            parts = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            out[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not name.endswith((".attention.to_k.weight", ".attention.to_v.weight")):
            for old, new in renames:
                name = name.replace(old, new)
            out[name] = tensor
    return out


def vae_original(state: dict[str, torch.Tensor], stages: int = 4) -> dict[str, torch.Tensor]:
    """diffusers' names of a large autoencoder to the original ones, quantisation convolutions inside the halves."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"^(encoder)\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1.down.\2.block.\3.", name)
        name = re.sub(r"^(encoder)\.down_blocks\.(\d+)\.downsamplers\.0\.", r"\1.down.\2.downsample.", name)
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.",
            lambda m: f"decoder.up.{stages - 1 - int(m[1])}.block.{m[2]}.",
            name,
        )
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"decoder.up.{stages - 1 - int(m[1])}.upsample.", name
        )
        name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
            for old, new in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
                name = name.replace(f".{old}.", f".{new}.")
            if name.endswith("weight") and ".norm." not in name:
                tensor = tensor[:, :, None, None]
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"^quant_conv", "encoder.quant_conv", re.sub(r"^post_quant_conv", "decoder.post_quant_conv", name))
        out[name] = tensor.contiguous()
    return out


ORIGINAL = {"flux2_klein": flux2_original, "z_image": z_image_original}


def write_single_files(folder: Path, backbone: LatentBackbone, names: tuple[str, str], prefix: str = "") -> dict[str, list[Path]]:
    """Write transformer and autoencoder as ComfyUI users have them; returns the folders by ComfyUI's keys."""
    states = {name: dict(module.state_dict()) for name, module in backbone.modules()}
    originals = {
        "diffusion_models": {
            f"{prefix}{k}": v.contiguous() for k, v in ORIGINAL[backbone.architecture](states["transformer"]).items()
        },
        "vae": vae_original(states["vae"]),
    }
    for (key, state), name in zip(originals.items(), names, strict=True):
        (folder / key).mkdir(parents=True)
        save_file(state, folder / key / name)
    return {key: [folder / key] for key in originals}


def write_diffusers_folder(folder: Path, backbone: LatentBackbone, shards: int = 2) -> Path:
    """Write a diffusers folder, the transformer in several files with an index."""
    for name, module in backbone.modules():
        place = folder / name
        place.mkdir(parents=True)
        config = {"_class_name": type(module).__name__, **backbone.options[name].get("options", backbone.options[name])}
        (place / "config.json").write_text(json.dumps(config))
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        if name == "vae":
            save_file(state, place / "diffusion_pytorch_model.safetensors")
            continue
        files: dict[str, str] = {}
        for index in range(shards):
            part = {key: state[key] for key in list(state)[index::shards]}
            file = f"diffusion_pytorch_model-{index + 1:05d}-of-{shards:05d}.safetensors"
            save_file(part, place / file)
            files |= dict.fromkeys(part, file)
        (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def seed(value: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(value)


def adapter_for(kind: str, *, zero_b: bool = False, alpha: float = 2 * RANK, latents: str | None = None) -> Adapter:
    """An adapter of rank 4 with random matrices, so that nothing in it is zero by chance."""
    network = tiny(kind).transformer
    state = {
        name: torch.randn(tensor.shape, generator=seed(i)) * (0.0 if zero_b and "lora_B" in name else 0.1)
        for i, (name, tensor) in enumerate(expected_state(network, LORA_TARGETS[kind], RANK).items())
    }
    info = {"backbone": kind, "rank": RANK, "alpha": alpha, "targets": list(LORA_TARGETS[kind]), "start_sigma": 0.8}
    info["latents"] = latents or ("native" if kind == "flux2_klein" else "scaled")
    return Adapter(state, info, source="test adapter")


def original_lora(kind: str, *, flat: bool = False) -> dict[str, torch.Tensor]:
    """An adapter as trainers of the original checkpoints write it: fused qkv, ranks and alphas that differ from layer to layer.

    Args:
        kind: of the tiny model.
        flat: kohya's names, with underscores for dots, in place of ComfyUI's.
    """
    blocks = ("double_blocks.", "single_blocks.", "layers.", "noise_refiner.", "context_refiner.")
    weights = {
        name.removesuffix(".weight"): tensor
        for name, tensor in ORIGINAL[kind](dict(tiny(kind).transformer.state_dict())).items()
        if name.startswith(blocks) and tensor.ndim == 2 and "adaLN" not in name
    }
    state: dict[str, torch.Tensor] = {}
    for n, (name, weight) in enumerate(sorted(weights.items())):
        rank = 2 + n % 2
        key = f"lora_unet_{name.replace('.', '_')}" if flat else f"diffusion_model.{name}"
        state[f"{key}.lora_down.weight"] = 0.1 * torch.randn(rank, weight.shape[1], generator=seed(2 * n))
        state[f"{key}.lora_up.weight"] = 0.1 * torch.randn(weight.shape[0], rank, generator=seed(2 * n + 1))
        if n % 3:
            state[f"{key}.alpha"] = torch.tensor(float(n))
    return state
