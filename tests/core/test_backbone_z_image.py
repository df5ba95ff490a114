"""Z-Image: sizes of the full model, its reversed clock and sign, and the two conventions of its latents."""

from typing import Any

import pytest
import torch
from torch import nn

from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.latent import make_transformer, tiny
from alignsr.core.backbones.z_image import SCALING, SHIFT, ZImageBackbone
from alignsr.core.flow import clean_from_velocity
from alignsr.core.lora import LORA_TARGETS, expected_state
from alignsr.core.records import Conditioning
from alignsr.core.restore import one_step

KIND = LATENT_KINDS["z_image"]


def full() -> ZImageBackbone:
    with torch.device("meta"):
        network, autoencoder = make_transformer(KIND, KIND.transformer), make_autoencoder(KIND.autoencoder)
    return ZImageBackbone(network, autoencoder)


def test_full_model_has_the_sizes_of_the_specification() -> None:
    backbone = full()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in backbone.modules()}
    assert counts == {"transformer": 6_154_908_736, "vae": 83_819_683}
    spec = backbone.spec
    assert (spec.size_multiple, spec.latent_channels, spec.conditioning_dim) == (16, 16, 2560)
    assert spec.tokens(1024, 1024) == 4096
    assert spec.licence == "Apache-2.0" and [file.split("/")[0] for file in spec.files] == [
        "diffusion_models",
        "vae",
        "text_encoders",
    ]
    assert spec.tile_bytes(1152) < 16 * 2**30
    adapter = expected_state(backbone.transformer, LORA_TARGETS["z_image"], 256)
    assert len(adapter) == 2 * 238
    assert sum(p.numel() for p in adapter.values()) == 635_043_840


def test_full_model_shapes_without_memory() -> None:
    """96 caption tokens after the padding of 68 to a multiple of 32, and 4096 image tokens."""
    backbone = full()
    rows: list[int] = []
    layer = backbone.transformer.layers[0]
    layer.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    with torch.device("meta"):
        z = torch.empty(1, 16, 128, 128)
        assert backbone.velocity(z, torch.empty(1), z, Conditioning(torch.empty(1, 68, 2560))).shape == z.shape
        assert backbone.decode(z).shape == (1, 3, 1024, 1024)
        assert backbone.encode(torch.empty(1, 3, 1024, 1024)).shape == z.shape
    assert rows == [4096 + 96]


class Recorder(nn.Module):
    """Takes the transformer's place, notes what it is given and answers with a chosen output."""

    def __init__(self, answer: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = {"in_channels": 4, "cap_feat_dim": 16, "dim": 32}
        self.cap_embedder = nn.Sequential(nn.Identity(), nn.Linear(16, 32, dtype=dtype))
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, cap: list[torch.Tensor], return_dict: bool) -> Any:
        self.calls.append((x, t, cap))
        return ([a * 0 for a in x] if self.answer is None else list(self.answer.unsqueeze(2)),)


def with_recorder(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, **facts: str) -> ZImageBackbone:
    monkeypatch.setattr("alignsr.core.backbones.z_image.plain_config", lambda module: module.config)
    return ZImageBackbone(recorder, tiny("z_image").autoencoder, **facts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clock_is_reversed_and_exact(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 17: sigma 0.8 is the model's 0.2, 200 after its scaling by 1000, also when the modules are bfloat16."""
    recorder = Recorder(dtype=dtype)
    z = torch.randn(2, 4, 4, 6)
    with_recorder(recorder, monkeypatch).velocity(z, torch.tensor([0.8, 0.35]), z, Conditioning(torch.zeros(1, 5, 16)))
    latents, clock, captions = recorder.calls[0]
    assert clock.dtype == torch.float32
    assert torch.equal(clock, torch.tensor([0.2, 0.65])) and float(clock[0] * 1000) == 200.0
    assert [tuple(a.shape) for a in latents] == [(4, 1, 4, 6)] * 2 and latents[0].dtype == dtype
    assert [tuple(a.shape) for a in captions] == [(5, 16)] * 2


def test_sign_and_step_give_back_the_clean_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 15: the network answers the negative velocity (clean - z) / 0.8."""
    z, clean = torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 6)
    velocity = with_recorder(Recorder((clean - z) / 0.8), monkeypatch).velocity(z, torch.tensor([0.8]), z)
    assert torch.allclose(clean_from_velocity(z, velocity, 0.8), clean, atol=1e-6)


def silent(latents: str) -> ZImageBackbone:
    backbone = tiny("z_image", latents=latents)
    final = backbone.transformer.all_final_layer["2-1"].linear
    nn.init.zeros_(final.weight)
    nn.init.zeros_(final.bias)
    return backbone  # pyright: ignore[reportReturnType]


def test_zero_velocity_is_the_round_trip_with_scaled_latents_only() -> None:
    """Check 18."""
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    autoencoder = silent("scaled").autoencoder
    mean = autoencoder.encode(x * 2 - 1).latent_dist.mode()
    expected = (autoencoder.decode(mean).sample + 1) / 2
    assert torch.allclose(one_step(silent("scaled"), x), expected, atol=1e-5)
    assert not torch.allclose(one_step(silent("raw"), x), expected, atol=1e-2)
    raw = (autoencoder.decode(mean / SCALING + SHIFT).sample + 1) / 2
    assert torch.allclose(one_step(silent("raw"), x), raw, atol=1e-5)


def test_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latents: expected scaled or raw, got 'scale'; did you mean 'scaled'"):
        tiny("z_image", latents="scale")


def test_gradients_reach_the_picture_and_the_tokens() -> None:
    backbone = tiny("z_image")
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    embeddings = torch.randn(1, 3, 16, requires_grad=True)
    one_step(backbone, x, conditioning=Conditioning(embeddings)).mean().backward()
    for leaf in (x, embeddings):
        assert leaf.grad is not None and float(leaf.grad.abs().sum()) > 0
