"""Adapters: one resolver, B = 0 is the base, merged equals attached, exact reports, released files, ComfyUI's key format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import RANK, adapter_for, seed
from safetensors.torch import load_file

from alignsr.core.backbones import LATENT_KINDS, load_backbone, open_backbone
from alignsr.core.backbones.latent import LatentBackbone, make_transformer, save, tiny
from alignsr.core.lora import (
    LORA_TARGETS,
    Adapter,
    adapter_state,
    attach,
    expected_state,
    load_attached,
    resolve_targets,
    set_strength,
)
from alignsr.core.lora_files import comfy_name, export_for_comfy, from_released, read_adapter, save_adapter
from alignsr.core.records import Conditioning
from alignsr.core.weights import MissingModelError, WeightsError, read_info

KINDS = list(LATENT_KINDS)


def answer(backbone: LatentBackbone) -> torch.Tensor:
    z = backbone.encode(torch.rand(1, 3, 32, 48, generator=seed(1)) * 2 - 1)
    given = Conditioning(torch.randn(1, 5, backbone.spec.conditioning_dim, generator=seed(2)))
    with torch.no_grad():
        return backbone.velocity(z, torch.tensor([0.8]), z, given)


@pytest.mark.parametrize(("kind", "layers"), [("flux2_klein", 80), ("z_image", 238)])
def test_resolver_on_the_full_models(kind: str, layers: int) -> None:
    with torch.device("meta"):
        network = make_transformer(LATENT_KINDS[kind], LATENT_KINDS[kind].transformer)
    names = resolve_targets(network, LORA_TARGETS[kind])
    assert len(names) == len(set(names)) == layers
    untouched = ("ff.", "ff_context.", "modulation", "embedder", "norm", "proj_out", "final_layer")
    assert not any(part in name for name in names for part in untouched)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_resolve_the_same_layers(kind: str) -> None:
    network = tiny(kind).transformer
    before = resolve_targets(network, LORA_TARGETS[kind])
    parameters = attach(network, LORA_TARGETS[kind], RANK, generator=seed(0))
    assert resolve_targets(network, LORA_TARGETS[kind]) == before
    expected = expected_state(network, LORA_TARGETS[kind], RANK)
    state = adapter_state(network)
    assert {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in expected.items()}
    assert sum(p.numel() for p in parameters) == sum(t.numel() for t in expected.values())


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_changes_nothing_and_alone_is_trained(kind: str) -> None:
    backbone = tiny(kind)
    before = answer(backbone)
    torch.nn.Module.to(backbone.transformer, dtype=torch.bfloat16)
    parameters = attach(backbone.transformer, LORA_TARGETS[kind], RANK, generator=seed(0))
    assert all(p.dtype == torch.float32 for p in parameters)  # also on a bfloat16 base
    trained = {name for name, p in backbone.transformer.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained) and len(trained) == len(parameters)
    torch.nn.Module.to(backbone.transformer, dtype=torch.float32)
    backbone = tiny(kind)
    attach(backbone.transformer, LORA_TARGETS[kind], RANK, generator=seed(0))
    assert torch.equal(answer(backbone), before)
    state = adapter_state(backbone.transformer)
    deviation = torch.cat([t.flatten() for name, t in state.items() if "lora_A" in name]).std()
    assert float(deviation) == pytest.approx(1 / RANK, rel=0.1)
    again = tiny(kind)
    attach(again.transformer, LORA_TARGETS[kind], RANK, generator=seed(0))
    assert all(torch.equal(state[name], tensor) for name, tensor in adapter_state(again.transformer).items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_zero_b_is_the_base_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    """Check 28."""
    network = tiny(kind).transformer
    torch.nn.Module.to(network, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapter_for(kind, zero_b=True).merge_into(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    adapter_for(kind).merge_into(network, strength=0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_merged_equals_attached(kind: str, strength: float) -> None:
    """Check 28: to 1e-5 in float32, to rounding in bfloat16; alpha and strength scale both alike."""
    adapter = adapter_for(kind)
    attached, merged, half = tiny(kind), tiny(kind), tiny(kind)
    base = answer(attached)
    attach(attached.transformer, LORA_TARGETS[kind], RANK, alpha=2 * RANK)
    load_attached(attached.transformer, adapter.state, "test")
    set_strength(attached.transformer, strength)
    adapter.merge_into(merged.transformer, strength)
    reference = answer(attached)
    assert float((reference - base).abs().max()) > 0.01
    assert torch.allclose(answer(merged), reference, atol=1e-5)
    for _, module in half.modules():
        torch.nn.Module.to(module, dtype=torch.bfloat16)
    adapter.merge_into(half.transformer, strength)
    assert half.transformer.state_dict().keys() == merged.transformer.state_dict().keys()
    assert torch.allclose(answer(half), reference, atol=0.05 * float(reference.abs().max()))
    set_strength(attached.transformer, 0.0)
    assert torch.equal(answer(attached), base)


def test_merging_may_be_worked_out_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, with the meta device in place of a GPU; the weights stay where and as they were."""
    places: list[torch.device] = []

    def product(*matrices: torch.Tensor, alpha: float) -> torch.Tensor:
        own = matrices[0]
        places.extend({matrix.device for matrix in matrices})
        return torch.zeros(own.shape)

    adapter, network = adapter_for("z_image"), tiny("z_image").transformer.to(torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", product)
    adapter.merge_into(network, device="meta")
    assert places == [torch.device("meta")] * (len(adapter.state) // 2)
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("cpu", torch.bfloat16)}


def test_opening_merges_where_it_is_told_to() -> None:
    given: dict[str, Any] = {"precision": "bf16", "adapters": [(adapter_for("z_image"), 1.0)]}
    opened, wanted = (open_backbone("z_image", "tiny", **given, **more) for more in ({"work_device": "cpu"}, {}))
    assert torch.equal(answer(opened), answer(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_reported_whole(kind: str) -> None:
    adapter = adapter_for(kind)
    state = dict(adapter.state)
    names = list(state)
    del state[names[0]]
    state["unknown.lora_A.weight"] = torch.zeros(1)
    state[names[3]] = state[names[3]][:1]
    network = tiny(kind).transformer
    wrong = Adapter(state, adapter.info, source="x.safetensors")
    parts = rf"x\.safetensors: .*missing: {names[0]}; unexpected: unknown\.lora_A\.weight; wrong shape: {names[3]} "
    for action in (lambda: wrong.merge_into(network), lambda: attached_load(kind, state)):
        with pytest.raises(WeightsError, match=parts):
            action()
    rank = Adapter(adapter.state, {**adapter.info, "rank": 8}, source="x.safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors: expected an adapter of rank 8, got matrices of rank 4; its header"):
        rank.merge_into(network)


def attached_load(kind: str, state: dict[str, torch.Tensor]) -> None:
    network = tiny(kind).transformer
    attach(network, LORA_TARGETS[kind], RANK)
    load_attached(network, state, "x.safetensors")


def test_targets_that_match_nothing_are_refused() -> None:
    network = tiny("z_image").transformer
    with pytest.raises(ValueError, match="add_q_proj, add_k_proj"):
        resolve_targets(network, LORA_TARGETS["flux2_klein"])
    with pytest.raises(ValueError, match="an empty list match none in ZImageTransformer2DModel"):
        resolve_targets(network, ())


def write_released(folder: Path, adapter: Adapter, width: int) -> Path:
    """The two files as the authors publish them: PEFT names, and the projector's four tensors in bfloat16."""
    folder.mkdir()
    names = {f"base_model.model.{name.removesuffix('.weight')}.default.weight": t for name, t in adapter.state.items()}
    torch.save(names, folder / "state_dict.pth")
    shapes = {"0.weight": (width // 2, 24), "0.bias": (width // 2,), "2.weight": (width, width // 2), "2.bias": (width,)}
    torch.save({name: torch.ones(shape).bfloat16() for name, shape in shapes.items()}, folder / "projector.pth")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_released_files_become_one_file_with_metadata(kind: str, tmp_path: Path) -> None:
    adapter = adapter_for(kind, alpha=RANK)
    released = read_adapter(write_released(tmp_path / "released", adapter, tiny(kind).spec.conditioning_dim))
    assert released.info["backbone"] == kind and released.rank == RANK and released.scale == 1.0
    assert released.info["latents"] == ("native" if kind == "flux2_klein" else "raw")
    path = save_adapter(tmp_path / "one.safetensors", released)
    assert read_info(path)["targets"] == list(LORA_TARGETS[kind])
    assert (read_info(path)["start_sigma"], read_info(path)["step_length"]) == (0.8, 0.8)
    for source in (tmp_path / "released", path):
        spec = open_backbone(kind, "tiny", precision="fp32", lora=source).spec
        assert (spec.start_sigma, spec.step_length) == (0.8, 0.8)
    again = read_adapter(path)
    assert again.info["backbone"] == kind
    for a, b in ((released.state, again.state), (released.projector, again.projector)):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    again.merge_into(tiny(kind).transformer)
    with pytest.raises(WeightsError, match="expected a whole model, got an adapter of"):
        load_backbone(path)


@pytest.mark.parametrize("kind", KINDS)
def test_released_names_and_shapes_of_the_full_models(kind: str) -> None:
    """The names of spec 1.7 on the real configuration, without memory: 80 and 238 layers are accepted, one less is not."""
    with torch.device("meta"):
        network = make_transformer(LATENT_KINDS[kind], LATENT_KINDS[kind].transformer)
    state = expected_state(network, LORA_TARGETS[kind], 256)
    info = {"backbone": kind, "rank": 256, "targets": LORA_TARGETS[kind]}
    Adapter(state, info).check(network)
    del state[next(iter(state))]
    with pytest.raises(WeightsError, match="missing: "):
        Adapter(state, info).check(network)


def test_released_files_that_are_not(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "r", adapter_for("z_image"), 16)
    with pytest.raises(MissingModelError, match=r"lora: expected an adapter file or a folder with state_dict\.pth"):
        read_adapter(tmp_path / "nothing")
    torch.save({"weight": torch.zeros(1)}, folder / "other.pth")
    with pytest.raises(
        WeightsError, match="expected an adapter of flux2_klein or z_image or flux1 or stable_diffusion, got weight"
    ):
        from_released(folder / "other.pth")
    torch.save({f"transformer.{name}": tensor for name, tensor in adapter_for("z_image").state.items()}, folder / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: expected PEFT's names .* got diffusers' \(transformer\."):
        read_adapter(folder / "other.pth")
    torch.save({"0.weight": torch.zeros(8, 24)}, folder / "projector.pth")
    with pytest.raises(WeightsError, match=r"projector\.pth: .*missing: 0\.bias, 2\.bias, 2\.weight"):
        read_adapter(folder)
    (folder / "state_dict.pth").write_bytes(b"not a pickle")
    with pytest.raises(WeightsError, match=r"state_dict\.pth: expected a weight file .* got a file that is none"):
        read_adapter(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_with_an_adapter_merges_it_and_takes_its_facts(kind: str, tmp_path: Path) -> None:
    latents = "native" if kind == "flux2_klein" else "raw"
    adapter = adapter_for(kind, latents=latents)
    path = save_adapter(tmp_path / "a.safetensors", adapter)
    opened = open_backbone(kind, "tiny", lora=path, lora_strength=0.7, precision="fp32")
    by_hand = tiny(kind, latents=latents)
    adapter.merge_into(by_hand.transformer, 0.7)
    assert opened.latents == latents
    assert torch.equal(answer(opened), answer(by_hand))
    other = next(name for name in KINDS if name != kind)
    with pytest.raises(ValueError, match=f"lora: expected an adapter of {other}, .* is one of {kind}"):
        open_backbone(other, "tiny", lora=path)


def test_contradicting_latent_conventions_are_refused(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a.safetensors", adapter_for("z_image", latents="raw"))
    with pytest.raises(ValueError, match=r"latents: expected 'raw', which .* was made with, got 'scaled'"):
        open_backbone("z_image", "tiny", lora=path, latents="scaled")


def test_projector_of_the_other_backbone_is_refused(tmp_path: Path) -> None:
    from alignsr.core.lora_files import check_projector

    projector = read_adapter(write_released(tmp_path / "r", adapter_for("z_image"), 16)).projector
    assert check_projector(projector, "p", 16) == 16
    with pytest.raises(WeightsError, match="expected a projector to 32 channels, got one to 16"):
        check_projector(projector, "p", 32)


def test_comfy_names_by_hand() -> None:
    flux = "flux2_klein"
    assert comfy_name(flux, "single_transformer_blocks.3.attn.to_out") == "diffusion_model.single_blocks.3.linear2"
    assert comfy_name(flux, "transformer_blocks.4.attn.to_add_out") == "diffusion_model.double_blocks.4.txt_attn.proj"
    assert comfy_name(flux, "transformer_blocks.0.attn.to_q") == "transformer.transformer_blocks.0.attn.to_q"
    assert comfy_name("z_image", "layers.0.attention.to_out.0") == "diffusion_model.layers.0.attention.to_out.0"
    with pytest.raises(ValueError, match="backbone: expected flux2_klein or z_image"):
        comfy_name("pixel", "x")


@pytest.mark.parametrize("kind", KINDS)
def test_every_exported_layer_has_its_pair_and_alpha(kind: str, tmp_path: Path) -> None:
    adapter = adapter_for(kind)
    exported = load_file(export_for_comfy(tmp_path / "c.safetensors", adapter, torch.bfloat16))
    layers = {name.rsplit(".lora_", 1)[0] for name in exported if ".lora_" in name}
    assert 2 * len(layers) == len(adapter.state) and len(exported) == 3 * len(layers)
    assert all(float(exported[f"{layer}.alpha"]) == 2 * RANK for layer in layers)
    assert exported[f"{next(iter(layers))}.lora_A.weight"].dtype == torch.bfloat16


def test_saved_backbone_keeps_a_merged_adapter(tmp_path: Path) -> None:
    backbone = tiny("z_image")
    adapter_for("z_image").merge_into(backbone.transformer)
    again = load_backbone(save(tmp_path / "m.safetensors", backbone))
    assert torch.equal(answer(again), answer(backbone))  # pyright: ignore[reportArgumentType]
