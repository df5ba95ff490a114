"""Perceptual loss: check 13 of the specification's section 9.1, the official numbers (golden c05b_percep), loading."""

from pathlib import Path

import pytest
import torch

from alignsr.core.frozen import lean
from alignsr.core.losses import LAYERS_REAL, LAYERS_SYNTHETIC, VGG19Features, load_vgg19, perceptual_loss
from alignsr.core.losses.perceptual import VGG19_FILE, VGG19_LAYERS
from alignsr.core.weights import MissingModelError, WeightsError
from reference.formula import S, U, load_formula_weights
from reference.losses import check
from reference.photographs import crop, needs_photographs


@pytest.fixture(scope="module")
def features() -> VGG19Features:
    network = VGG19Features()
    load_formula_weights(network)
    return network.requires_grad_(False).eval()


def test_layers_are_torchvisions() -> None:
    assert VGG19_LAYERS["conv1_2"] == 2
    assert [VGG19_LAYERS[name] for name in LAYERS_SYNTHETIC] == [2, 7, 16, 25, 34]
    assert sum(LAYERS_SYNTHETIC.values()) == pytest.approx(3.2)
    assert sum(LAYERS_REAL.values()) == pytest.approx(3.1)
    assert set(LAYERS_SYNTHETIC) - set(LAYERS_REAL) == {"conv1_2"}


def test_names_and_shapes_are_torchvisions(features: VGG19Features) -> None:
    from alignsr.core.compat import import_third_party

    with torch.device("meta"):
        official = import_third_party("torchvision").models.vgg19().state_dict()
    ours = {name: tensor.shape for name, tensor in features.state_dict().items()}
    upto = VGG19_LAYERS["conv5_4"]
    wanted = {name: t.shape for name, t in official.items() if name.startswith("features.") and int(name.split(".")[1]) <= upto}
    assert ours == wanted


def test_equal_images_cost_nothing_and_taps_are_before_the_relu(features: VGG19Features) -> None:
    image = U("percep/gt", 2, 3, 32, 32)
    assert torch.equal(perceptual_loss(image, image, features), torch.zeros(2))
    taps = features(image)
    assert all(tap.min() < 0 for tap in taps.values())
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == {
        "conv1_2": (64, 32, 32),
        "conv2_2": (128, 16, 16),
        "conv3_4": (256, 8, 8),
        "conv4_4": (512, 4, 4),
        "conv5_4": (512, 2, 2),
    }


def test_gradient_reaches_sr_only(features: VGG19Features) -> None:
    gt = U("percep/gt", 1, 3, 32, 32).requires_grad_()
    sr = (gt + 0.1 * S("percep/sr", 1, 3, 32, 32)).detach().requires_grad_()
    perceptual_loss(sr, gt, features).mean().backward()
    assert sr.grad is not None
    assert gt.grad is None
    assert all(parameter.grad is None for parameter in features.parameters())


@needs_photographs
@pytest.mark.parametrize("twin", [False, True])
def test_official_numbers(features: VGG19Features, twin: bool) -> None:
    network = lean(features) if twin else features
    sr, gt = crop("img_013", 100, 200, 96, 96)[None].requires_grad_(), crop("img_013", 102, 201, 96, 96)[None]
    loss = perceptual_loss(sr, gt, network)
    loss.mean().backward()
    check("c05b_percep/synthetic/loss", loss)
    assert sr.grad is not None
    check("c05b_percep/synthetic/grad_x_sub4", sr.grad[..., ::4, ::4])
    with torch.no_grad():
        check("c05b_percep/real/loss", perceptual_loss(sr, gt, network, LAYERS_REAL))
        taps = list(network(sr).values())
    check("c05b_percep/tap_mean", torch.stack([tap.mean() for tap in taps]))
    check("c05b_percep/tap_std", torch.stack([tap.std() for tap in taps]))
    check("c05b_percep/tap_min", torch.stack([tap.min() for tap in taps]))
    check("c05b_percep/tap_conv5_4", taps[-1][:, :32])


def test_only_the_needed_layers_run(features: VGG19Features) -> None:
    assert set(features(U("percep/gt", 1, 3, 4, 4), ["conv2_2"])) == {"conv2_2"}  # too small for the deeper ones


def test_bad_input_is_named(features: VGG19Features) -> None:
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"layers: expected a convolution of VGG19, got 'conv5_5'; did you mean"):
        perceptual_loss(image, image, features, {"conv5_5": 1.0})
    with pytest.raises(ValueError, match="weights: expected at least one layer"):
        perceptual_loss(image, image, features, {})
    with pytest.raises(ValueError, match=r"image: expected sides of at least 16 px"):
        perceptual_loss(image[..., :8], image[..., :8], features)
    with pytest.raises(ValueError, match="features: expected frozen parameters"):
        perceptual_loss(image, image, VGG19Features())


def test_files_with_and_without_the_classifier_load(features: VGG19Features, tmp_path: Path) -> None:
    """Writes and reads 80 MB twice."""
    state = dict(features.state_dict())
    torch.save(state | {"classifier.0.bias": torch.zeros(4)}, tmp_path / VGG19_FILE)
    loaded = load_vgg19(folders=[tmp_path])
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    state["features.0.weight"] = state["features.0.weight"][:32]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.weight \(32, 3, 3, 3\) instead of \(64, 3, 3, 3\)"):
        load_vgg19(tmp_path / "other.pth")


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match=rf"no '{VGG19_FILE}'.*https://download\.pytorch\.org/models/{VGG19_FILE}"):
        load_vgg19(folders=[tmp_path])
