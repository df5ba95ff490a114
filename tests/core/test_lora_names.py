"""Adapters under other programs' names give the weights that those programs would give."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import ORIGINAL, adapter_for, original_lora
from safetensors.torch import save_file

from alignsr.core.backbones import open_backbone
from alignsr.core.backbones.latent import tiny
from alignsr.core.lora_files import export_for_comfy, read_adapter
from alignsr.core.weights import WeightsError

KINDS = list(ORIGINAL)


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_wrote_for_comfyui_is_read_back_with_its_facts(kind: str, tmp_path: Path) -> None:
    adapter = adapter_for(kind, latents="native" if kind == "flux2_klein" else "raw")
    again = read_adapter(export_for_comfy(tmp_path / "c.safetensors", adapter))
    assert again.state.keys() == adapter.state.keys()
    assert all(torch.equal(again.state[name], adapter.state[name]) for name in adapter.state)
    assert again.scale == adapter.scale and again.rank == adapter.rank and not again.projector
    assert {key: again.info[key] for key in adapter.info} == adapter.info
    opened = open_backbone(kind, "tiny", precision="fp32", lora=tmp_path / "c.safetensors")
    assert opened.latents == adapter.info["latents"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flat", [False, True])
def test_fused_layers_ranks_and_alphas_of_other_trainers(kind: str, flat: bool, tmp_path: Path) -> None:
    """W + alpha / rank B A on the fused weights of the original layout is what merging gives, layer by layer."""
    state = original_lora(kind, flat=flat)
    save_file(state, tmp_path / "other.safetensors")
    network = tiny(kind).transformer
    before = ORIGINAL[kind]({name: tensor.clone() for name, tensor in network.state_dict().items()})
    adapter = read_adapter(tmp_path / "other.safetensors")
    assert adapter.info["backbone"] == kind and adapter.rank == 3 and "latents" not in adapter.info
    adapter.merge_into(network)
    after = ORIGINAL[kind](dict(network.state_dict()))
    changed = 0
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        key = f"lora_unet_{layer.replace('.', '_')}" if flat else f"diffusion_model.{layer}"
        wanted = weight
        if f"{key}.lora_down.weight" in state:
            down, up = state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"]
            wanted = weight + float(state.get(f"{key}.alpha", torch.tensor(down.shape[0]))) / down.shape[0] * up @ down
            changed += 1
        torch.testing.assert_close(after[name], wanted, atol=1e-5, rtol=1e-5)
    assert changed == len({name.split(".lora_")[0] for name in state if ".lora_" in name})


def test_kohyas_names_of_part_of_the_layers(tmp_path: Path) -> None:
    layer = "transformer_blocks.0.attn.to_out.0"
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    state = {f"lora_transformer_{layer.replace('.', '_')}.lora_down.weight": down}
    save_file({**state, f"lora_transformer_{layer.replace('.', '_')}.lora_up.weight": up}, tmp_path / "part.safetensors")
    network = tiny("flux2_klein").transformer
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    read_adapter(tmp_path / "part.safetensors").merge_into(network)
    after = network.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [f"{layer}.weight"]
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + up @ down)


@pytest.mark.parametrize("program", ["diffusers", "PEFT"])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("flux2_klein", ("transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn.to_out")),
        ("z_image", ("layers.0.attention.to_q", "layers.1.feed_forward.w2")),
    ],
)
def test_adapters_of_other_trainers_are_not_taken_for_released_ones(
    kind: str, layers: tuple[str, str], program: str, tmp_path: Path
) -> None:
    """Its own layers, alpha by the note (in diffusers' header, beside PEFT's file), by a pattern for one of them.

    Latents and noise level stay the base model's.
    """
    network = tiny(kind).transformer
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    matrices: dict[str, torch.Tensor] = {}
    for layer in layers:
        out, inputs = before[f"{layer}.weight"].shape
        matrices |= {f"{layer}.lora_A.weight": torch.randn(4, inputs), f"{layer}.lora_B.weight": torch.randn(out, 4)}
    end = layers[1].split(".", 2)[2]
    note = {"r": 4, "lora_alpha": 8, "alpha_pattern": {end.replace(".", r"\."): 2}, "target_modules": list(layers)}
    prefix = "transformer" if program == "diffusers" else "base_model.model"
    state = {f"{prefix}.{name}": tensor for name, tensor in matrices.items()}

    def write(told: dict[str, Any] | None) -> None:
        header, beside = None, tmp_path / "adapter_config.json"
        beside.unlink(missing_ok=True)
        if told is not None and program == "diffusers":
            text = json.dumps({**{f"transformer.{key}": value for key, value in told.items()}, "text_encoder.lora_alpha": 64})
            header = {"format": "pt", "lora_adapter_metadata": text}
        elif told is not None:
            beside.write_text(json.dumps(told))
        save_file(state, tmp_path / "other.safetensors", header)

    for told, scales in ((note, (2.0, 0.5)), (None, (1.0, 1.0))):
        write(told)
        adapter = read_adapter(tmp_path / "other.safetensors")
        assert adapter.info["backbone"] == kind and adapter.rank == 4 and adapter.info["targets"] == sorted(layers)
        assert not adapter.info.keys() & {"latents", "start_sigma", "step_length", "base"}
        network.load_state_dict(before)
        adapter.merge_into(network)
        after = network.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {f"{layer}.weight" for layer in layers}
        for layer, scale in zip(layers, scales, strict=True):
            product = matrices[f"{layer}.lora_B.weight"] @ matrices[f"{layer}.lora_A.weight"]
            torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + scale * product, msg=layer)
    opened = open_backbone(kind, "tiny", precision="fp32", lora=tmp_path / "other.safetensors")
    assert opened.latents == tiny(kind).latents
    write({"use_rslora": True})
    with pytest.raises(WeightsError, match="got one with use_rslora"):
        read_adapter(tmp_path / "other.safetensors")
    if program == "diffusers":
        save_file(state, tmp_path / "other.safetensors", {"lora_adapter_metadata": "[1]"})
        with pytest.raises(WeightsError, match="JSON object in lora_adapter_metadata"):
            read_adapter(tmp_path / "other.safetensors")
        return
    for text, message in (("[1]", "adapter_config.json: expected a JSON object"), ('{"r": 8}', r"matrices of rank 8, .* \[4\]")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            read_adapter(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_of_the_published_list_do_not_make_an_adapter_a_released_one(kind: str, tmp_path: Path) -> None:
    """What PEFT saves lacks the adapter's name; a pickle without a projector, too, is a released one only under full names."""
    state, width = adapter_for(kind).state, tiny(kind).spec.conditioning_dim
    saved = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    whole = {f"base_model.model.{name.removesuffix('.weight')}.default.weight": tensor for name, tensor in state.items()}
    some = dict(list(whole.items())[:2])
    save_file(saved, tmp_path / "adapter_model.safetensors")
    save_file(whole, tmp_path / "whole.safetensors")
    for name, tensors in (("adapter_model.bin", saved), ("state_dict.pth", whole), ("some.pth", some)):
        torch.save(tensors, tmp_path / name)
    for name in ("adapter_model.safetensors", "adapter_model.bin", "some.pth"):
        adapter = read_adapter(tmp_path / name)
        assert adapter.info["backbone"] == kind and "start_sigma" not in adapter.info and "latents" not in adapter.info, name
        assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.state.items())
    assert (
        read_adapter(tmp_path / "some.pth").state.keys()
        < read_adapter(tmp_path / "adapter_model.bin").state.keys()
        == state.keys()
    )
    for name in ("whole.safetensors", "state_dict.pth"):
        assert read_adapter(tmp_path / name).info["start_sigma"] == 0.8, name
    torch.save({"0.weight": torch.zeros(width // 2, 8)}, tmp_path / "projector.pth")
    with pytest.raises(WeightsError, match=r"projector\.pth: .*missing: 0\.bias"):
        read_adapter(tmp_path)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    good = original_lora("z_image")
    first = next(name for name in good if name.endswith("lora_down.weight"))
    base = first.removesuffix(".lora_down.weight")
    for name, state, message in (
        ("lokr", {**good, f"{base}.lokr_w1": torch.zeros(1)}, r"got diffusion_model\..*lokr_w1; LoKr, LoHa and DoRA"),
        ("outer", {**good, "diffusion_model.final_layer.lora_up.weight": torch.zeros(1)}, "layers outside the blocks"),
        ("half", {key: tensor for key, tensor in good.items() if key != first}, "expected two matrices per layer, got one for"),
        ("kind", {"diffusion_model.blocks.0.a.lora_up.weight": torch.zeros(1)}, "in the transformer's blocks, got"),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=rf"{name}\.safetensors: .*{message}"):
            read_adapter(tmp_path / f"{name}.safetensors")
    save_file(original_lora("flux2_klein"), tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match=r"lora: expected an adapter of z_image, .* is one of flux2_klein"):
        open_backbone("z_image", "tiny", lora=tmp_path / "flux.safetensors")
