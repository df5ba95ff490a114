"""LPIPS: equal to pyiqa's on the same weights, reads the published layout, and has a gradient that improves what it names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignsr.core.compat import import_third_party
from alignsr.core.frozen import lean
from alignsr.core.losses.lpips import WIDTHS, LPIPSFeatures, load_lpips, lpips_loss
from alignsr.core.weights import MissingModelError, WeightsError
from reference.formula import S, U


@pytest.fixture(scope="module")
def features() -> LPIPSFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LPIPSFeatures().requires_grad_(False).eval()


def pair(side: int = 32) -> tuple[Tensor, Tensor]:
    gt = U("lpips/gt", 2, 3, side, side)
    return (gt + 0.1 * S("lpips/sr", 2, 3, side, side)).clamp(0, 1), gt


def linear(features: LPIPSFeatures) -> dict[str, Tensor]:
    return {f"lin{i}.model.1.weight": weight.view(1, -1, 1, 1) for i, weight in enumerate(features.linear)}


def test_it_is_pyiqas(features: LPIPSFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports pyiqa and builds VGG16 once more, which takes seconds; its constructor would fetch ImageNet's weights."""
    module = import_third_party("pyiqa.archs.lpips_arch")
    make = module.models.vgg16
    monkeypatch.setattr(module.models, "vgg16", lambda weights: make(weights=None))
    theirs = module.LPIPS(net="vgg", pretrained=False).requires_grad_(False)
    layers = [(module, f"net.slice{number}") for number, module in enumerate(features.features)]
    convolutions = [module for module, _ in layers if isinstance(module, torch.nn.Conv2d)]
    names = [key.removesuffix(".weight") for key in theirs.state_dict() if key.startswith("net.") and key.endswith(".weight")]
    state = {
        f"{n}.{part}": getattr(conv, part) for n, conv in zip(names, convolutions, strict=True) for part in ("weight", "bias")
    }
    missing = theirs.load_state_dict(state | linear(features), strict=False)
    assert not missing.unexpected_keys
    sr, gt = pair()
    assert torch.allclose(lpips_loss(sr, gt, features), theirs(sr, gt).flatten(), rtol=1e-4)


def test_published_layout_is_read_and_others_are_refused(features: LPIPSFeatures, tmp_path: Path) -> None:
    state = {key: value for key, value in features.state_dict().items() if key.startswith("features.")}
    torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    torch.save({**linear(features), "scaling_layer.shift": torch.zeros(3)}, tmp_path / "lpips.pth")
    read = load_lpips("vgg16.pth", "lpips.pth", [tmp_path])
    assert all(torch.equal(a, b) for a, b in zip(read.state_dict().values(), features.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in read.parameters())
    torch.save({"lin0.model.1.weight": torch.zeros(1, 192, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(WeightsError, match=r"lin0\.model\.1\.weight of 64 values"):
        load_lpips("vgg16.pth", "alex.pth", [tmp_path])
    with pytest.raises(MissingModelError, match=r"VGG16 on ImageNet, .*absent\.pth.*get them from https"):
        load_lpips("absent.pth", "lpips.pth", [tmp_path])
    with pytest.raises(MissingModelError, match=r"channel weights of LPIPS 0\.1 for VGG16, .*get them from https"):
        load_lpips("vgg16.pth", "absent.pth", [tmp_path])


def test_a_step_down_its_gradient_lowers_it(features: LPIPSFeatures) -> None:
    sr, gt = pair()
    sr.requires_grad_()
    before = lpips_loss(sr, gt, lean(features))
    (grad,) = torch.autograd.grad(before.sum(), sr)
    after = lpips_loss(sr.detach() - 0.02 * grad / grad.abs().max(), gt, features)
    assert (after < before).all()
    (plain,) = torch.autograd.grad(lpips_loss(sr, gt, features).sum(), sr)
    assert torch.allclose(grad, plain, atol=1e-7)


def test_more_noise_is_worse_and_images_without_features_have_a_gradient(features: LPIPSFeatures) -> None:
    _, gt = pair()
    noise = S("lpips/noise", *gt.shape)
    values = [float(lpips_loss((gt + amount * noise).clamp(0, 1), gt, features).mean()) for amount in (0.0, 0.02, 0.05, 0.1)]
    assert values == sorted(values)
    assert values[0] == 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        dead = LPIPSFeatures()
    for layer in dead.features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.constant_(layer.bias, -100.0)  # pyright: ignore[reportArgumentType]  # it has one
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    lpips_loss(black, gt[:1, :, :16, :16], dead.requires_grad_(False).eval()).sum().backward()
    assert black.grad is not None
    assert torch.isfinite(black.grad).all()


def test_images_that_are_too_small_are_named(features: LPIPSFeatures) -> None:
    with pytest.raises(ValueError, match="expected sides of at least 16 px"):
        lpips_loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), features)
    assert [weight.numel() for weight in features.linear] == [widths[-1] for widths in WIDTHS]
