"""FLUX.2 klein: sizes of the full model, patches, statistics, clock, position ids, sign."""

from typing import Any

import pytest
import torch
from torch import nn

from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.flux2 import Flux2Backbone
from alignsr.core.backbones.latent import make_transformer, tiny
from alignsr.core.compat import import_third_party
from alignsr.core.flow import clean_from_velocity
from alignsr.core.lora import LORA_TARGETS, expected_state
from alignsr.core.records import Conditioning
from alignsr.core.restore import one_step

KIND = LATENT_KINDS["flux2_klein"]


def full() -> Flux2Backbone:
    with torch.device("meta"):
        network, autoencoder = make_transformer(KIND, KIND.transformer), make_autoencoder(KIND.autoencoder)
    return Flux2Backbone(network, autoencoder)


def test_full_model_has_the_sizes_of_the_specification() -> None:
    backbone = full()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in backbone.modules()}
    assert counts == {"transformer": 3_875_544_576, "vae": 84_046_115}
    spec = backbone.spec
    assert (spec.size_multiple, spec.latent_channels, spec.conditioning_dim) == (16, 128, 7680)
    assert spec.tokens(1024, 1024) == 4096 and spec.parameters == sum(counts.values())
    assert spec.licence == "Apache-2.0" and [file.split("/")[0] for file in spec.files] == [
        "diffusion_models",
        "vae",
        "text_encoders",
    ]
    assert spec.tile_bytes(1152) < 12 * 2**30
    adapter = expected_state(backbone.transformer, LORA_TARGETS["flux2_klein"], 256)
    assert len(adapter) == 2 * 80
    assert sum(p.numel() for p in adapter.values()) == 298_844_160


def test_full_model_shapes_without_memory() -> None:
    backbone = full()
    with torch.device("meta"):
        embeddings = torch.empty(1, 68, 7680)
        z = torch.empty(1, 128, 64, 64)
        assert backbone.velocity(z, torch.empty(1), z, Conditioning(embeddings)).shape == z.shape
        assert backbone.decode(z).shape == (1, 3, 1024, 1024)
        assert backbone.encode(torch.empty(1, 3, 1024, 1024)).shape == z.shape


def test_patches_are_pixel_unshuffle_and_statistics_are_undone() -> None:
    """Check 16: channel c * 4 + 2 * dy + dx, and every conversion is an identity there and back."""
    backbone = tiny("flux2_klein")
    bn = backbone.autoencoder.bn
    bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    backbone = Flux2Backbone(backbone.transformer, backbone.autoencoder)
    raw = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    backbone.codec = FixedCodec(raw)  # pyright: ignore[reportAttributeAccessIssue]
    z = backbone.encode(torch.zeros(1, 3, 32, 48))
    index = 2 * 4 + 2 * 1 + 0  # channel 2, dy 1, dx 0; row 1, column 2 of the patches
    by_hand = (raw[0, 2, 2 * 1 + 1, 2 * 2] - bn.running_mean[index]) / torch.sqrt(bn.running_var[index] + 1e-4)
    assert torch.allclose(z[0, index, 1, 2], by_hand)
    assert torch.allclose(backbone.decode(z), raw, atol=1e-6)


def test_patches_and_tokens_are_those_of_diffusers_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 16: patchify, pack and back are identities, and the same as the base model's own pipeline makes."""
    pipeline: Any = import_third_party("diffusers").Flux2KleinPipeline
    raw = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    patches = torch.nn.functional.pixel_unshuffle(raw, 2)
    assert torch.equal(pipeline._patchify_latents(raw), patches)
    assert torch.equal(torch.nn.functional.pixel_shuffle(patches, 2), raw)
    recorder = Recorder()
    backbone = with_recorder(recorder, monkeypatch)
    velocity = backbone.velocity(patches, torch.tensor([0.8]), patches)
    packed = recorder.calls[0]["hidden_states"]
    assert torch.equal(packed, pipeline._pack_latents(patches))
    assert torch.equal(packed.transpose(1, 2).reshape(patches.shape), patches)
    assert velocity.shape == patches.shape


class FixedCodec:
    """Stands in for the autoencoder: encodes to given latents and decodes to what it is given."""

    is_tiny = False

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def encode(self, image: torch.Tensor, generator: object = None) -> torch.Tensor:
        return self.latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_statistics_keep_their_precision_when_the_modules_lose_theirs() -> None:
    backbone = tiny("flux2_klein")
    backbone.autoencoder.bn.running_mean.fill_(1.001)
    backbone = Flux2Backbone(backbone.transformer, backbone.autoencoder)
    nn.Module.to(backbone.autoencoder, dtype=torch.bfloat16)
    mean, _ = backbone._statistics or pytest.fail("no statistics")
    assert float(mean.max()) == pytest.approx(1.001, abs=1e-6)


class Recorder(nn.Module):
    """Takes the transformer's place, notes what it is given and answers with a chosen velocity."""

    def __init__(self, answer: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = {"in_channels": 16, "joint_attention_dim": 32, "num_attention_heads": 2, "attention_head_dim": 16}
        self.x_embedder = nn.Linear(16, 32, bias=False, dtype=dtype)
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def forward(self, **given: Any) -> tuple[torch.Tensor]:
        self.calls.append(given)
        return (given["hidden_states"] * 0 if self.answer is None else self.answer,)


def with_recorder(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Flux2Backbone:
    monkeypatch.setattr("alignsr.core.backbones.flux2.plain_config", lambda module: module.config)
    return Flux2Backbone(recorder, tiny("flux2_klein").autoencoder)


def test_tokens_ids_and_clock_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec 1.4 items 4 and 5; check 17: 0.8 is 800 after bfloat16."""
    recorder = Recorder(dtype=torch.bfloat16)
    backbone = with_recorder(recorder, monkeypatch)
    z = torch.randn(1, 16, 2, 3)
    backbone.velocity(z, torch.tensor([0.8]), z, Conditioning(torch.zeros(1, 5, 32)))
    given = recorder.calls[0]
    assert given["img_ids"].tolist() == [[0, row, column, 0] for row in range(2) for column in range(3)]
    assert given["txt_ids"].tolist() == [[0, 0, 0, index] for index in range(5)]
    assert given["guidance"] is None
    assert given["hidden_states"].dtype == torch.bfloat16
    assert torch.equal(given["hidden_states"][0, 4], z[0, :, 1, 1].bfloat16())
    assert float(given["timestep"].to(torch.bfloat16) * 1000) == 800.0
    assert given["timestep"].dtype == torch.float32


def test_sign_and_step_give_back_the_clean_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 15: a network that answers (z - clean) / 0.8 leads to clean in one step."""
    z, clean = torch.randn(1, 16, 2, 3), torch.randn(1, 16, 2, 3)
    recorder = Recorder(((z - clean) / 0.8).flatten(2).transpose(1, 2))
    velocity = with_recorder(recorder, monkeypatch).velocity(z, torch.tensor([0.8]), z)
    assert torch.allclose(velocity, (z - clean) / 0.8)
    assert torch.allclose(clean_from_velocity(z, velocity, 0.8), clean, atol=1e-6)


def test_zero_velocity_is_the_autoencoders_round_trip() -> None:
    """Check 18, FLUX side: nothing but encode and decode remains."""
    backbone = tiny("flux2_klein")
    nn.init.zeros_(backbone.transformer.proj_out.weight)
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    autoencoder = backbone.autoencoder
    expected = autoencoder.decode(autoencoder.encode(x * 2 - 1).latent_dist.mode()).sample
    assert torch.allclose(one_step(backbone, x), (expected + 1) / 2, atol=1e-5)


def test_gradients_reach_the_picture_and_the_tokens() -> None:
    backbone = tiny("flux2_klein")
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    embeddings = torch.randn(1, 3, backbone.spec.conditioning_dim, requires_grad=True)
    one_step(backbone, x, conditioning=Conditioning(embeddings)).mean().backward()
    for leaf in (x, embeddings):
        assert leaf.grad is not None and float(leaf.grad.abs().sum()) > 0


def test_other_latent_conventions_are_refused() -> None:
    with pytest.raises(ValueError, match="latents: expected 'native'"):
        tiny("flux2_klein", latents="raw")
