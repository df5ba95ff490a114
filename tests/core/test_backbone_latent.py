"""What both latent backbones share: every source gives the same model, and what is missing or wrong is said at once."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from latent_helpers import seed, write_diffusers_folder, write_single_files
from safetensors.torch import load_file, save_file

from alignsr.core.backbones import LATENT_KINDS, Backbone, load_backbone, open_backbone
from alignsr.core.backbones.autoencoders import Codec, load_autoencoder
from alignsr.core.backbones.files import find_components
from alignsr.core.backbones.latent import LatentBackbone, save, tiny
from alignsr.core.compat import import_third_party
from alignsr.core.networks.tiny_autoencoder import TinyAutoencoder
from alignsr.core.records import Conditioning
from alignsr.core.restore import one_step, restore
from alignsr.core.weights import MissingModelError, WeightsError

KINDS = list(LATENT_KINDS)
NAMES = {kind: (LATENT_KINDS[kind].components[0].file_names[0], LATENT_KINDS[kind].components[1].file_names[0]) for kind in KINDS}


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def tokens(backbone: LatentBackbone, batch: int = 1, count: int = 7) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    return Conditioning(torch.randn(batch, count, backbone.spec.conditioning_dim, generator=generator))


def same(a: LatentBackbone, b: LatentBackbone) -> None:
    """Weights bit for bit; results to rounding, since products depend on where in memory the weights lie on some processors."""
    for (name, one), (other, two) in zip(a.modules(), b.modules(), strict=True):
        first, second = one.state_dict(), two.state_dict()
        assert name == other and first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    x = picture(1, 3, 32, 48)
    results = (one_step(backbone, x, conditioning=tokens(backbone)) for backbone in (a, b))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_protocol_dtypes_and_reproducibility(kind: str) -> None:
    backbone = tiny(kind)
    assert isinstance(backbone, Backbone)
    x = picture(2, 3, 32, 48) * 2 - 1
    z = backbone.encode(x)
    spec = backbone.spec
    assert z.shape == (2, spec.latent_channels, 32 // spec.latent_stride, 48 // spec.latent_stride)
    assert z.dtype == torch.float32
    v = backbone.velocity(z, torch.tensor([0.8, 0.3]), z, tokens(backbone))
    assert v.shape == z.shape and v.dtype == torch.float32
    assert backbone.decode(z).shape == x.shape
    assert spec.tokens(32, 48) == 6 and spec.tile_bytes(512) > spec.parameters
    same(backbone, tiny(kind))
    assert not torch.equal(tiny(kind, seed=1).encode(x), z)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_by_default_and_samples_only_from_a_generator(kind: str) -> None:
    backbone = tiny(kind)
    x = picture(1, 3, 32, 32) * 2 - 1
    assert torch.equal(backbone.encode(x), backbone.encode(x))
    draws = [backbone.encode(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], backbone.encode(x))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_samples_do_not_see_each_other_and_masks_drop_tokens(kind: str) -> None:
    backbone = tiny(kind)
    z = backbone.encode(picture(2, 3, 32, 32) * 2 - 1)
    given = tokens(backbone, 2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    sigma = torch.tensor([0.8, 0.4])
    both = backbone.velocity(z, sigma, z, Conditioning(given.embeddings, mask))
    first = backbone.velocity(z[:1], sigma[:1], z[:1], Conditioning(given.embeddings[:1]))
    second = backbone.velocity(z[1:], sigma[1:], z[1:], Conditioning(given.embeddings[1:, :5]))
    assert torch.allclose(both, torch.cat((first, second)), atol=1e-5)
    with pytest.raises(ValueError, match="at least one token"):
        backbone.velocity(z, sigma, z, Conditioning(given.embeddings, torch.zeros(2, 9, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"conditioning: expected embeddings \[2 or 1, N"):
        backbone.velocity(z, sigma, z, Conditioning(given.embeddings[..., 1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_zeros_of_the_same_token_count(kind: str) -> None:
    backbone = tiny(kind)
    z = backbone.encode(picture(1, 3, 32, 32) * 2 - 1)
    zeros = Conditioning(torch.zeros(1, 68, backbone.spec.conditioning_dim))
    sigma = torch.tensor([0.8])
    assert torch.equal(backbone.velocity(z, sigma, z), backbone.velocity(z, sigma, z, zeros))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_runs_without_a_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[object] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: object = None, **options: object) -> object:
        masks.append(attn_mask)
        return real(query, key, value, attn_mask=attn_mask, **options)  # pyright: ignore[reportArgumentType]

    backbone = tiny(kind)
    z = backbone.encode(picture(1, 3, 32, 48) * 2 - 1)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    given = tokens(backbone, 1, 68)
    backbone.velocity(z, torch.tensor([0.8]), z, Conditioning(given.embeddings, torch.ones(1, 68, dtype=torch.bool)))
    assert masks and all(mask is None for mask in masks)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_do_not_fit_and_wrong_shapes_are_refused(kind: str) -> None:
    backbone = tiny(kind)
    with pytest.raises(ValueError, match="multiples of 16, got"):
        backbone.encode(picture(1, 3, 24, 32))
    z = backbone.encode(picture(1, 3, 32, 32))
    with pytest.raises(ValueError, match="z: expected the shape of z_lq"):
        backbone.velocity(z, torch.tensor([0.8]), z[..., :1])
    assert restore(backbone, picture(1, 3, 5, 7), scale=2).sr.shape == (1, 3, 10, 14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_are_the_same_model(kind: str, prefix: str, tmp_path: Path) -> None:
    backbone = tiny(kind)
    folders = write_single_files(tmp_path, backbone, NAMES[kind], prefix)
    same(backbone, open_backbone(kind, folders=folders, precision="fp32"))
    same(backbone, open_backbone(kind, folders=folders, precision="fp32", transformer=NAMES[kind][0]))


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_folder_is_the_same_model(kind: str, tmp_path: Path) -> None:
    backbone = tiny(kind)
    root = write_diffusers_folder(tmp_path / "model", backbone)
    same(backbone, open_backbone(kind, root, precision="fp32"))
    shard = next(iter(sorted((root / "transformer").glob("*-of-*.safetensors"))))
    shard.unlink()
    with pytest.raises(WeightsError, match=f"{shard.name} missing"):
        open_backbone(kind, root)
    (root / "vae" / "config.json").unlink()
    with pytest.raises(MissingModelError, match=r"lacks .*vae.config\.json"):
        open_backbone(kind, root)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_itself_writes_what_is_read(kind: str, tmp_path: Path) -> None:
    backbone = tiny(kind)
    for name, module in backbone.modules():
        module.save_pretrained(tmp_path / name)  # pyright: ignore[reportCallIssue]
    same(backbone, open_backbone(kind, tmp_path, precision="fp32"))


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_file_keeps_everything(kind: str, tmp_path: Path) -> None:
    backbone = tiny(kind, start_sigma=0.6)
    again = load_backbone(save(tmp_path / "small.safetensors", backbone, {"licence": "CC0-1.0"}))
    assert not isinstance(again, type(None)) and again.spec.start_sigma == 0.6 and again.spec.licence == "CC0-1.0"
    same(backbone, again)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_are_all_named_with_places_and_sources(kind: str, tmp_path: Path) -> None:
    folders = {"diffusion_models": [tmp_path / "a", tmp_path / "b"], "vae": [tmp_path / "c"]}
    wanted = (*LATENT_KINDS[kind].components, LATENT_KINDS[kind].text_encoder)
    with pytest.raises(MissingModelError) as caught:
        find_components(wanted, folders)
    text = str(caught.value)
    for part in wanted:
        assert f"{part.name}: no {part.file_names[0]}" in text and part.source in text
    for place in ("a", "b", "c"):
        assert str(tmp_path / place) in text
    assert "no folder (none is known for text_encoders)" in text
    with pytest.raises(MissingModelError, match=r"vae: no other\.safetensors in "):
        open_backbone(kind, folders=folders, autoencoder="other.safetensors")


def test_files_in_sub_folders_are_found(tmp_path: Path) -> None:
    backbone = tiny("z_image")
    folders = write_single_files(tmp_path / "z", backbone, NAMES["z_image"])
    same(backbone, open_backbone("z_image", folders={key: [tmp_path] for key in folders}, precision="fp32"))


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    flux = write_single_files(tmp_path / "f", tiny("flux2_klein"), NAMES["flux2_klein"])
    z = write_single_files(tmp_path / "z", tiny("z_image"), NAMES["z_image"])
    flux_dit, z_dit = flux["diffusion_models"][0] / NAMES["flux2_klein"][0], z["diffusion_models"][0] / NAMES["z_image"][0]
    with pytest.raises(WeightsError, match=r"expected a Z-Image transformer .*got double_blocks"):
        open_backbone("z_image", folders=z, transformer=flux_dit)
    with pytest.raises(WeightsError, match=r"expected a FLUX\.2 transformer .*choose flux-2-klein"):
        open_backbone("flux2_klein", folders=flux, transformer=z_dit)
    with pytest.raises(WeightsError, match="expected an autoencoder, got"):
        open_backbone("z_image", folders=z, autoencoder=flux_dit)
    damaged = load_file(z_dit)
    damaged["layers.0.feed_forward.w1.weight"] = damaged["layers.0.feed_forward.w1.weight"][1:]
    del damaged["layers.1.feed_forward.w2.weight"]
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(
        WeightsError, match=r"missing: layers\.1\.feed_forward\.w2\.weight; wrong shape: layers\.0\.feed_forward\.w1"
    ):
        open_backbone("z_image", folders=z, transformer=tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=r"kind: expected a latent backbone.*did you mean 'z_image'"):
        open_backbone("z-image")


@pytest.mark.parametrize("scale_name", ["weight_scale", "scale_weight"])
def test_scaled_8_bit_floats_are_read(scale_name: str, tmp_path: Path) -> None:
    backbone = tiny("z_image")
    folders = write_single_files(tmp_path, backbone, NAMES["z_image"])
    path = folders["diffusion_models"][0] / NAMES["z_image"][0]
    state = load_file(path)
    name = "layers.0.feed_forward.w1"
    scale = state[f"{name}.weight"].abs().max() / 448
    state |= {
        f"{name}.{scale_name}": scale,
        f"{name}.input_scale": torch.ones(()),
        f"{name}.weight": (state[f"{name}.weight"] / scale).to(torch.float8_e4m3fn),
    }
    save_file(state, path)
    again = open_backbone("z_image", folders=folders, precision="fp32")
    exact = backbone.transformer.layers[0].feed_forward.w1.weight
    read = again.transformer.layers[0].feed_forward.w1.weight
    assert 0 < float((read - exact).abs().max()) <= float(exact.abs().max()) / 16
    state[f"{name}.weight_scale_2"] = torch.ones(())
    save_file(state, path)
    with pytest.raises(WeightsError, match="nvfp4"):
        open_backbone("z_image", folders=folders)


@pytest.mark.parametrize(("kind", "latents"), [("flux2_klein", "native"), ("z_image", "scaled"), ("z_image", "raw")])
def test_tiny_autoencoder_is_a_drop_in(kind: str, latents: str, tmp_path: Path) -> None:
    backbone = tiny(kind)
    folders = write_single_files(tmp_path, backbone, NAMES[kind])
    torch.manual_seed(0)
    small = TinyAutoencoder(latent_channels=4, width=8, blocks=1, is_pooled=kind == "flux2_klein")
    torch.save(small.encoder.state_dict(), tmp_path / "vae" / "taexx_encoder.pth")
    torch.save(small.decoder.state_dict(), tmp_path / "vae" / "taexx_decoder.pth")
    again = open_backbone(kind, folders=folders, autoencoder="taexx_encoder.pth", precision="fp32", latents=latents)
    x = picture(1, 3, 32, 48) * 2 - 1
    z = again.encode(x)
    assert z.shape == backbone.encode(x).shape
    if latents != "raw":  # zero velocity gives back what the autoencoder keeps
        assert torch.allclose(again.decode(z), small(x), atol=1e-5)
    same(again, load_backbone(save(tmp_path / "own.safetensors", again)))  # pyright: ignore[reportArgumentType]


def test_diffusers_tiny_autoencoder_fits_too(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    blocks = {f"num_{half}_blocks": (1,) * 4 for half in ("encoder", "decoder")}
    network = AutoencoderTiny(**widths, **blocks, latent_channels=4)
    network.save_pretrained(tmp_path / "vae")
    backbone = tiny("z_image")
    folders = write_single_files(tmp_path / "z", backbone, NAMES["z_image"])
    again = open_backbone("z_image", folders=folders, autoencoder=tmp_path / "vae", precision="fp32")
    x = picture(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        reference = network.decode(network.encode(x).latents).sample
        assert torch.allclose(again.decode(again.encode(x)), reference, atol=1e-5)


def test_autoencoder_of_another_model_is_refused() -> None:
    other = {"class": "TinyAutoencoder", "options": {"latent_channels": 5, "width": 8, "blocks": 1}}
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"autoencoder: expected 4 latent channels .* got 5"):
            tiny(kind, options={"vae": other})


def test_vae_tiles_are_independent_of_the_transformers_and_exact_for_local_networks() -> None:
    class Local(TinyAutoencoder):
        """Every latent sees its own 8x8 pixels only, so that tiles must not change anything."""

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(image, 8)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(z, scale_factor=8)

    network = Local(latent_channels=3, width=8, blocks=1)
    x = picture(2, 3, 96, 160)
    whole, tiled = Codec(network), Codec(network, 64, 16)
    z = whole.encode(x)
    assert torch.allclose(tiled.encode(x), z, atol=1e-6)
    assert torch.allclose(tiled.decode(z), whole.decode(z), atol=1e-6)
    with pytest.raises(ValueError, match="vae_tile_px"):
        Codec(network, 60)


def test_tiles_of_the_encoder_share_one_draw_of_the_posterior() -> None:
    """Tiled equals whole for a network that sees its own 8x8 pixels only, and overlaps vary as much as the rest."""

    class Posterior(torch.nn.Module):
        config: ClassVar = {"latent_channels": 4}

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def encode(self, image: torch.Tensor) -> Any:
            mean = torch.nn.functional.avg_pool2d(image, 8).mean(1, keepdim=True)
            moments = torch.cat([mean.expand(-1, 4, -1, -1), (mean - 1).expand(-1, 4, -1, -1)], 1)
            distributions: Any = import_third_party("diffusers.models.autoencoders.vae")
            return SimpleNamespace(latent_dist=distributions.DiagonalGaussianDistribution(moments))

    whole, tiled = Codec(Posterior()), Codec(Posterior(), 64, 32)
    x = picture(2, 3, 96, 160)
    z = whole.encode(x, seed(3))
    assert torch.equal(z, Posterior().encode(x).latent_dist.sample(seed(3))), "whole: diffusers' own draw"
    assert torch.allclose(tiled.encode(x, seed(3)), z, atol=1e-6)
    flat = torch.zeros(200, 3, 64, 96)  # two tiles with 4 columns of latents in common
    deviation = tiled.encode(flat, seed(4)).std((0, 1, 2))
    assert torch.allclose(deviation, torch.full_like(deviation, math.exp(-0.5)), rtol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_vae_tiles_run_on_the_backbone(kind: str) -> None:
    x = picture(1, 3, 96, 192)
    whole, tiled = one_step(tiny(kind), x), one_step(tiny(kind, vae_tile_px=160), x)
    assert whole.shape == tiled.shape
    assert not torch.equal(whole, tiled)
    assert float((whole - tiled).abs().mean()) < 0.05  # group norms and attention see one tile at a time


def test_load_autoencoder_says_what_is_wrong(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"expected an autoencoder, got conv\.weight"):
        load_autoencoder(tmp_path / "x.safetensors", torch.float32, LATENT_KINDS["z_image"].autoencoder)
