"""Adapters of models of many steps: ASASR's public files, both scopes, quantised bases, parameters trained whole, exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import seed
from safetensors.torch import save_file
from torch import Tensor, nn

from alignsr.core.backbones import MULTI_STEP_KINDS, open_multi_step
from alignsr.core.backbones.latent import MultiStepModel, make_transformer, tiny_multi_step
from alignsr.core.lora import LORA_TARGETS, Adapter, attach, expected_state
from alignsr.core.lora_files import export_for_comfy, export_for_diffusers, from_released, read_adapter, save_adapter
from alignsr.core.low_rank import LowRankLinear
from alignsr.core.records import Conditioning
from alignsr.core.weights import WeightsError, load_state_dict

KINDS = list(MULTI_STEP_KINDS)


def matrices(backbone: MultiStepModel, rank: int = 4, number: int = 0) -> dict[str, Tensor]:
    network = next(iter(backbone.modules()))[1]
    expected = expected_state(network, LORA_TARGETS[backbone.architecture], rank)
    return {
        name: torch.randn(like.shape, generator=seed(100 * number + i)) * 0.1 for i, (name, like) in enumerate(expected.items())
    }


def adapter(kind: str, number: int = 0, **info: Any) -> Adapter:
    facts = {"backbone": kind, "rank": 4, "alpha": 8.0, "targets": list(LORA_TARGETS[kind]), **info}
    return Adapter(matrices(tiny_multi_step(kind), 4, number), facts, source=f"adapter {number}")


def answer(backbone: MultiStepModel) -> Tensor:
    z = torch.randn(1, 4, 4, 8, generator=seed(4))
    time = torch.tensor([0.6]) if backbone.process.prediction == "velocity" else torch.tensor([600])
    with torch.no_grad():
        return backbone.predict(z, time, z.flip(3), Conditioning(torch.randn(1, 7, 32, generator=seed(5))))


def attached(kind: str, *adapters: tuple[Adapter, float], **facts: Any) -> Tensor:
    """The same through PEFT, adapter after adapter."""
    backbone = tiny_multi_step(kind, **facts)
    network: Any = next(iter(backbone.modules()))[1]
    for index, (one, strength) in enumerate(adapters):
        name = f"a{index}"
        attach(network, one.info["targets"], one.rank, alpha=one.scale * one.rank * strength, adapter=name)
        for key, parameter in network.named_parameters():
            if f".{name}." in key:
                parameter.data = one.state[key.replace(f".{name}.", ".")].clone()
    network.set_adapters([f"a{i}" for i in range(len(adapters))], [1.0] * len(adapters))
    return answer(backbone)


# What the public release of ASASR holds: PEFT's file of its policy and adversary, rank 16 (adapter_config.json beside them),
# and diffusers' file of the SR adapter in OminiControl's style.
RELEASED = {
    "dpo_lora/adapter_model.safetensors": ("base_model.model.", 16),
    "adv_lora/adapter_model.safetensors": ("base_model.model.", 16),
    "sr_lora/pytorch_lora_weights_v2.safetensors": ("transformer.", 64),
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_public_adapters_of_asasr_have_these_names_and_shapes(name: str, tmp_path: Path) -> None:
    """Random files of exactly those names and shapes, made from FLUX.1-dev's configuration; values where shapes allow it."""
    prefix, rank = RELEASED[name]
    kind = MULTI_STEP_KINDS["flux1"]
    with torch.device("meta"):
        network = make_transformer(kind, kind.transformer)
    expected = expected_state(network, LORA_TARGETS["flux1"], rank)
    assert len(expected) == 2 * 343 and sum(t.numel() for t in expected.values()) == 3_621_952 * rank
    examples = {
        "x_embedder.lora_A.weight": (rank, 64),
        "transformer_blocks.18.norm1.linear.lora_B.weight": (18432, rank),
        "transformer_blocks.0.attn.to_out.0.lora_A.weight": (rank, 3072),
        "transformer_blocks.0.ff.net.2.lora_A.weight": (rank, 12288),
        "single_transformer_blocks.37.norm.linear.lora_B.weight": (9216, rank),
        "single_transformer_blocks.37.proj_mlp.lora_B.weight": (12288, rank),
        "single_transformer_blocks.0.proj_out.lora_A.weight": (rank, 15360),
    }
    assert all(expected[key].shape == shape for key, shape in examples.items())
    path = tmp_path / name
    path.parent.mkdir()
    save_file({prefix + key: torch.zeros(like.shape, dtype=torch.bfloat16) for key, like in expected.items()}, path)
    read = read_adapter(path)
    assert read.info == {
        "backbone": "flux1", "rank": rank, "alpha": rank, "targets": list(LORA_TARGETS["flux1"]), "base": "FLUX.1-dev",
        "lora_scope": "condition_only", "guidance": 3.5,
    }  # fmt: skip
    read.check(network)


def test_released_pair_opens_with_condition_only_scope(tmp_path: Path) -> None:
    """SR adapter and policy at strength 1 each stay beside the weights; the result is that of both attached with PEFT."""
    sr, policy = (Adapter(matrices(tiny_multi_step("flux1"), rank, rank), {}) for rank in (6, 4))
    save_file({f"transformer.{key}": value for key, value in sr.state.items()}, tmp_path / "sr.safetensors")
    save_file({f"base_model.model.{key}": value for key, value in policy.state.items()}, tmp_path / "policy.safetensors")
    read = [(read_adapter(tmp_path / name), 1.0) for name in ("sr.safetensors", "policy.safetensors")]
    opened: Any = open_multi_step("flux1", "tiny", adapters=read, precision="fp32")
    assert (opened.lora_scope, opened.guidance, opened.spec.sampling.guidance) == ("condition_only", 3.5, 3.5)
    layer = opened.transformer.get_submodule("single_transformer_blocks.0.proj_out")
    assert isinstance(layer, LowRankLinear) and layer.down.shape[0] == 10
    wanted = attached("flux1", *read, lora_scope="condition_only", guidance=3.5)
    assert torch.allclose(answer(opened), wanted, atol=1e-5)
    assert not torch.allclose(wanted, attached("flux1", *read, guidance=3.5), atol=1e-3)
    checked = open_multi_step("flux1", "tiny", adapters=read, precision="fp32", device="meta")
    assert next(checked.transformer.parameters()).is_meta
    with pytest.raises(
        ValueError, match=r"lora_scope: expected 'condition_only', which .*sr.safetensors was made with, got 'all'"
    ):
        open_multi_step("flux1", "tiny", adapters=read, lora_scope="all")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_all_tokens_are_merged(kind: str) -> None:
    pair = [(adapter(kind, 1), 0.5), (adapter(kind, 2), 1.0)]
    opened = open_multi_step(kind, "tiny", adapters=pair, precision="fp32")
    network = next(iter(opened.modules()))[1]
    assert not any(isinstance(module, LowRankLinear) for module in network.modules())
    assert torch.allclose(answer(opened), attached(kind, *pair), atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "8bit"])
def test_adapters_beside_quantised_weights(precision: str) -> None:
    one = adapter("flux1", 1, lora_scope="condition_only")
    exact = answer(open_multi_step("flux1", "tiny", adapters=[(one, 10.0)], precision="fp32"))
    found = answer(open_multi_step("flux1", "tiny", adapters=[(one, 10.0)], precision=precision))
    plain = answer(open_multi_step("flux1", "tiny", precision=precision, lora_scope="condition_only"))
    assert float((found - exact).norm()) < 0.5 * float((plain - exact).norm())


def test_strength_zero_is_the_base() -> None:
    for scope in ("all", "condition_only"):
        one = adapter("flux1", 1, lora_scope=scope)
        zero = open_multi_step("flux1", "tiny", adapters=[(one, 0.0)], precision="fp32")
        assert torch.allclose(answer(zero), answer(tiny_multi_step("flux1", lora_scope=scope)), atol=1e-6)


def test_a_trained_first_convolution_travels_with_the_adapter(tmp_path: Path) -> None:
    base: Any = tiny_multi_step("stable_diffusion")
    full = {"conv_in.weight": base.unet.conv_in.weight + 0.1, "conv_in.bias": base.unet.conv_in.bias + 0.2}
    one = adapter("stable_diffusion", 1)
    path = save_adapter(tmp_path / "sft.safetensors", Adapter(one.state, one.info, full=full))
    read = read_adapter(path)
    assert read.full.keys() == full.keys()
    opened: Any = open_multi_step("stable_diffusion", "tiny", adapters=[(read, 1.0)], precision="fp32")
    assert torch.allclose(opened.unet.conv_in.weight, full["conv_in.weight"], atol=1e-6)
    half: Any = open_multi_step("stable_diffusion", "tiny", adapters=[(read, 0.5)], precision="fp32")
    assert torch.allclose(half.unet.conv_in.bias, base.unet.conv_in.bias + 0.1, atol=1e-6)
    for export in (export_for_comfy, export_for_diffusers):
        with pytest.raises(ValueError, match=r"file_format: expected 'alignsr'.*parameters trained whole"):
            export(tmp_path / "x.safetensors", read)
    with pytest.raises(WeightsError, match=r"wrong shape: conv_in.weight"):
        open_multi_step(
            "stable_diffusion", "tiny", adapters=[(Adapter(one.state, one.info, full={"conv_in.weight": torch.zeros(1)}), 1.0)]
        )
    scoped = Adapter(matrices(tiny_multi_step("flux1")), adapter("flux1").info | {"lora_scope": "condition_only"}, full=full)
    with pytest.raises(ValueError, match="lora: expected matrices alone for scope condition_only"):
        open_multi_step("flux1", "tiny", adapters=[(scoped, 1.0)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_back(kind: str, tmp_path: Path) -> None:
    one = adapter(kind, 3, lora_scope="all")
    for export in (save_adapter, export_for_comfy, export_for_diffusers):
        read = read_adapter(export(tmp_path / f"{export.__name__}.safetensors", one))
        assert read.state.keys() == one.state.keys() and read.scale == one.scale
        assert all(torch.equal(read.state[key], one.state[key]) for key in one.state)
        assert read.info["backbone"] == kind and read.info["lora_scope"] == "all"
    names = load_state_dict(tmp_path / "export_for_comfy.safetensors").keys()
    if kind == "flux1":
        assert (
            "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight" in names and "transformer.x_embedder.alpha" in names
        )
    else:
        start = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
        assert f"{start}.to_q.lora_B.weight" in names and f"{start}.to_out.alpha" in names


def test_condition_only_is_not_for_loaders_that_fold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file_format: expected 'alignsr' or 'diffusers' for adapter 1, got 'comfyui'"):
        export_for_comfy(tmp_path / "x.safetensors", adapter("flux1", 1, lora_scope="condition_only"))


def test_adapters_of_other_backbones_are_refused(tmp_path: Path) -> None:
    for kind, other in (KINDS, KINDS[::-1]):
        with pytest.raises(ValueError, match=f"lora: expected an adapter of {kind}, adapter 1 is one of {other}"):
            open_multi_step(kind, "tiny", adapters=[(adapter(other, 1), 1.0)])
    unet = {f"base_model.model.{name}": value for name, value in matrices(tiny_multi_step("stable_diffusion")).items()}
    save_file(unet, tmp_path / "another.safetensors")
    assert read_adapter(tmp_path / "another.safetensors").info["backbone"] == "stable_diffusion"
    with pytest.raises(WeightsError, match="got one of stable_diffusion without a header"):
        from_released(tmp_path / "another.safetensors")
    short = adapter("flux1", 1)
    lacking = Adapter({name: value for name, value in short.state.items() if "x_embedder" not in name}, short.info)
    with pytest.raises(WeightsError, match="missing: x_embedder"):
        open_multi_step("flux1", "tiny", adapters=[(lacking, 1.0)], device="meta")


def test_layers_beside_which_an_adapter_lies() -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    down, up = torch.randn(1, 3), torch.randn(2, 1)
    layer = LowRankLinear(linear, down, up)
    assert torch.allclose(layer(x), linear(x) + x @ down.T @ up.T, atol=1e-6)
    assert (layer.in_features, layer.out_features) == (3, 2) and layer.weight is linear.weight
    assert not any(parameter.requires_grad for name, parameter in layer.named_parameters() if "base" not in name)
