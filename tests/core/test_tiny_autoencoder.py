"""The tiny autoencoder: published names and shapes, strict loading, and what the pretrained TAEF2 keeps of a picture."""

from pathlib import Path

import pytest
import torch

from alignsr.core.image_files import list_images, read_image
from alignsr.core.images import from_model_range, pad_to_multiple, rgb_to_y, to_model_range
from alignsr.core.networks.tiny_autoencoder import (
    TinyAutoencoder,
    build_tiny_autoencoder,
    from_single_file,
    load_taef2,
    read_halves,
)
from alignsr.core.weights import WeightsError
from paths import SHARED

TAEF2 = SHARED / "data" / "taef2"
needs_taef2 = pytest.mark.skipif(not TAEF2.is_dir(), reason="the pretrained TAEF2 files are not in ../shared/data/taef2")


def seeded(**options: object) -> TinyAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyAutoencoder(**options).eval()  # pyright: ignore[reportArgumentType]


def write_halves(folder: Path, network: TinyAutoencoder) -> tuple[Path, Path]:
    paths = (folder / "tiny_encoder.pth", folder / "tiny_decoder.pth")
    torch.save(network.encoder.state_dict(), paths[0])
    torch.save(network.decoder.state_dict(), paths[1])
    return paths


@pytest.mark.parametrize("is_pooled", [False, True])
def test_round_trip_of_files_keeps_options_and_output(tmp_path: Path, is_pooled: bool) -> None:
    network = seeded(latent_channels=6, width=16, blocks=2, is_pooled=is_pooled)
    loaded = build_tiny_autoencoder(read_halves(*write_halves(tmp_path, network)), "test")
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    assert loaded.options == network.options
    assert torch.equal(loaded(image), network(image))
    assert loaded.encode(image).shape == (2, 6, 2, 3)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_one_file_names_are_the_same_network() -> None:
    network = seeded(latent_channels=6, width=16, blocks=1)
    one_file = {}
    for name, tensor in network.state_dict().items():
        half, index, tail = name.split(".", 2)
        one_file[f"{half}.layers.{int(index) - (half == 'decoder')}.{tail}"] = tensor
    assert from_single_file(one_file).keys() == network.state_dict().keys()


def test_wrong_files_are_named() -> None:
    state = dict(seeded(latent_channels=6, width=16, blocks=1).state_dict())
    del state["encoder.0.bias"]
    state["decoder.99.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"somewhere: .*missing: encoder\.0\.bias; unexpected: decoder\.99\.weight"):
        build_tiny_autoencoder(state, "somewhere")
    with pytest.raises(WeightsError, match="do not fit"):
        build_tiny_autoencoder({"conv.weight": torch.zeros(3)}, "somewhere")


def test_uneven_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        seeded(latent_channels=4, width=8, blocks=1).encode(torch.zeros(1, 3, 16, 20))


@needs_taef2
def test_pretrained_files_load_strictly_and_keep_set5() -> None:
    """Slow for a unit test (3 s): five pictures through the real network. Published round trip: 31.1 dB RGB, 34.0 dB Y."""
    network = load_taef2(TAEF2 / "taef2_encoder.pth", TAEF2 / "taef2_decoder.pth")
    assert sum(p.numel() for p in network.parameters()) == 2_677_027
    pictures = list_images(SHARED / "data" / "set5" / "hr")
    if not pictures:
        pytest.skip("the Set5 pictures are not in ../shared/data/set5/hr")
    rgb, luma = [], []
    for path in pictures:
        gt = read_image(path).pixels
        padded, (height, width) = pad_to_multiple(gt, 16)
        with torch.no_grad():
            sr = from_model_range(network(to_model_range(padded))).clamp(0, 1)[..., :height, :width]
        rgb.append(float(-10 * torch.log10((sr - gt).square().mean())))
        luma.append(float(-10 * torch.log10((rgb_to_y(sr) - rgb_to_y(gt)).square().mean())))
    assert sum(rgb) / len(rgb) >= 31.0
    assert sum(luma) / len(luma) >= 33.9
