"""For tests of models of many steps: a model whose answer is known, and files of FLUX.1 and Stable Diffusion from random ones."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from latent_helpers import write_diffusers_folder
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from alignsr.core.backbones.base import BackboneSpec
from alignsr.core.backbones.latent import MultiStepModel, tiny_multi_step
from alignsr.core.diffusion import FlowProcess, Process, VariancePreserving
from alignsr.core.lora import LORA_TARGETS, expected_state
from alignsr.core.records import Conditioning

VP = VariancePreserving()
SPEC = BackboneSpec(
    name="known", kind="flow", scale=None, size_multiple=16, tile_px=256, overlap_px=32, start_sigma=None, latent_channels=192,
    latent_stride=8, conditioning_dim=2, bytes_per_pixel=1, parameters=2, licence="CC0-1.0", token_px=16,
)  # fmt: skip


class Known:
    """A model whose clean picture is the enlarged input, so every sampler must end there; `spread` lets it see its whole tile."""

    def __init__(self, process: Process | None = None, spread: float = 0.0, **facts: Any) -> None:
        self.process: Process = process or FlowProcess()
        self.spread, self.spec = spread, replace(SPEC, **facts)
        self.module = nn.Linear(1, 1)
        self.told: list[Conditioning | None] = []
        self.seen: list[tuple[int, ...]] = []

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield "network", self.module

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        return F.pixel_unshuffle(image, 8)

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.encode(image)

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        self.told.append(conditioning)
        self.seen.append(tuple(z.shape))
        shift = 0.0 if conditioning is None else conditioning.embeddings.mean((1, 2)).view(-1, 1, 1, 1)
        goal = z_lq + self.spread * z.mean((1, 2, 3), keepdim=True) + shift
        if self.process.prediction == "velocity":
            return (z - goal) / time.view(-1, 1, 1, 1)
        signal, spread = VP.scales(time, z)
        return (z - signal * goal) / spread

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 8)


def picture(*size: int, batch: int = 1, number: int = 0) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(number))


_FLUX_OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_NORMS = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}


def flux1_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of FLUX.1 to Black Forest Labs' (ComfyUI's single files): fused qkv, shift before scale."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        body, end = name.rpartition(".")[::2]
        if match := re.match(r"transformer_blocks\.(\d+)\.(.*)\.(?:weight|bias)$", name):
            index, rest = match.groups()
            if f"{rest}.{end}" in _FLUX_NORMS:
                out[f"double_blocks.{index}.{_FLUX_NORMS[f'{rest}.{end}']}"] = tensor
            elif rest in _FLUX_DOUBLE:
                out[f"double_blocks.{index}.{_FLUX_DOUBLE[rest]}.{end}"] = tensor
            elif rest in ("attn.to_q", "attn.add_q_proj"):
                parts = ("to_q", "to_k", "to_v") if rest == "attn.to_q" else ("add_q_proj", "add_k_proj", "add_v_proj")
                stream = "img" if rest == "attn.to_q" else "txt"
                stacked = torch.cat([state[f"transformer_blocks.{index}.attn.{part}.{end}"] for part in parts])
                out[f"double_blocks.{index}.{stream}_attn.qkv.{end}"] = stacked
        elif match := re.match(r"single_transformer_blocks\.(\d+)\.(.*)\.(?:weight|bias)$", name):
            index, rest = match.groups()
            start = f"single_transformer_blocks.{index}"
            if rest in ("attn.norm_q", "attn.norm_k"):
                out[f"single_blocks.{index}.norm.{'query' if rest[-1] == 'q' else 'key'}_norm.scale"] = tensor
            elif rest == "attn.to_q":
                parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                out[f"single_blocks.{index}.linear1.{end}"] = torch.cat([state[f"{start}.{part}.{end}"] for part in parts])
            elif rest in ("norm.linear", "proj_out"):
                out[f"single_blocks.{index}.{'linear2' if rest == 'proj_out' else 'modulation.lin'}.{end}"] = tensor
        elif body == "norm_out.linear":
            scale, shift = tensor.chunk(2)
            out[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat((shift, scale))
        else:
            out[f"{_FLUX_OUTER[body]}.{end}"] = tensor
    return {name: tensor.contiguous() for name, tensor in out.items()}


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_OUTER = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def unet_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of a UNet to those of the original checkpoints, whatever its number of stages and layers."""
    stages = len({name.split(".")[1] for name in state if name.startswith("down_blocks.")})
    layers = len({name.split(".")[3] for name in state if name.startswith("down_blocks.0.resnets.")})
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        body, end = name.rpartition(".")[::2]
        if body in _UNET_OUTER:
            out[f"{_UNET_OUTER[body]}.{end}"] = tensor
            continue
        if name.startswith("mid_block."):
            _, kind, index, rest = body.split(".", 3)
            place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
        else:
            side, stage, kind, index, rest = body.split(".", 4)
            down = side == "down_blocks"
            each = layers + 1
            first = 1 + int(stage) * each if down else int(stage) * each
            if kind == "downsamplers":
                out[f"input_blocks.{first + layers}.0.op.{end}"] = tensor
                continue
            if kind == "upsamplers":
                attends = any(key.startswith(f"up_blocks.{stage}.attentions.") for key in state)
                out[f"output_blocks.{first + layers}.{2 if attends else 1}.conv.{end}"] = tensor
                continue
            place = f"{'input' if down else 'output'}_blocks.{first + int(index)}.{1 if kind == 'attentions' else 0}"
        out[f"{place}.{_RESNET[rest] if kind == 'resnets' else rest}.{end}"] = tensor
    assert stages and len(out) == len(state)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def write_folder(folder: Path, backbone: MultiStepModel) -> Path:
    """A diffusers folder of the base model, without its control branch and, for a UNet, as it is before it was widened."""
    if backbone.architecture == "flux1":
        return write_diffusers_folder(folder, _WithoutControl(backbone))  # pyright: ignore[reportArgumentType]
    for name, module in backbone.modules():
        if name == "control":
            continue
        place = folder / name
        place.mkdir(parents=True)
        options = backbone.options[name].get("options", backbone.options[name])
        (place / "config.json").write_text(json.dumps({"_class_name": type(module).__name__, **options}))
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        save_file(state, place / "diffusion_pytorch_model.safetensors")
    return folder


class _WithoutControl:
    def __init__(self, backbone: MultiStepModel) -> None:
        self.backbone, self.options = backbone, backbone.options

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, module) for name, module in self.backbone.modules() if name != "control")


def write_asasr(root: Path) -> None:
    """ASASR's adapters for the tiny FLUX.1, under the names of the released ones, in the `loras` of a models folder."""
    names = {"sr_lora/pytorch_lora_weights_v2": "transformer.", "dpo_lora/adapter_model": "base_model.model."}
    network = tiny_multi_step("flux1").transformer
    for number, (name, prefix) in enumerate(names.items()):
        draw = torch.Generator().manual_seed(number)
        expected = expected_state(network, LORA_TARGETS["flux1"], 4)
        state = {prefix + key: torch.randn(like.shape, generator=draw) * 0.1 for key, like in expected.items()}
        (root / "loras" / "ASASR" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(state, root / "loras" / "ASASR" / f"{name}.safetensors")
