"""Sobolev Norm and Perturbation Viewer: what they say is what core says, in inference mode too; bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from node_helpers import picture

from alignsr.core.images import to_model_range
from alignsr.core.sobolev import SobolevNorm as Norm
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.models import load_model
from alignsr.nodes.multi_step import LoadMultiStepBackbone
from alignsr.nodes.perturbation import PerturbationViewer
from alignsr.nodes.sobolev import SobolevNorm


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ALIGNSR_PROMPTS", str(tmp_path / "prompts"))
    with use_host(LocalHost(models_dirs=[tmp_path / "models"], output_dir=tmp_path / "out")) as found:
        yield found


def tiny(backbone: str = "flux1", control: str = "none") -> Any:
    return LoadMultiStepBackbone().load(backbone, "tiny", control, precision="fp32")[0]


def test_energy_of_pictures_is_that_of_their_difference() -> None:
    x, y = picture(2, 40, 48), picture(2, 40, 48).flip(1)
    energy, said, sheet = SobolevNorm().measure(1.5, 64.0, x, y)
    wanted = Norm(1.5, 64.0).energy((x - y).movedim(-1, 1))
    found = json.loads(said)
    assert energy == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert [row["energy"] for row in found["pictures"]] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert sum(found["pictures"][0]["bands"].values()) == pytest.approx(1, abs=1e-5)
    assert sheet.shape[0] == 2 and sheet.shape[1] > 300
    flat = SobolevNorm().measure(0.0, 64.0, x, y)[0]
    assert flat == pytest.approx(float((x - y).square().mean()), rel=1e-5)
    assert SobolevNorm().measure(1.5, 64.0, x, x)[0] == 0
    assert SobolevNorm().measure(1.5, 64.0, x, y[:1])[0] > 0, "one reference for all"


def test_a_blurred_picture_loses_less_by_the_norm_than_a_noisy_one() -> None:
    """Equal mean square; what noise adds is finer than what a blur takes away."""
    gt = picture(1, 64, 64)
    blurred = torch.nn.functional.avg_pool2d(gt.movedim(-1, 1), 5, 1, 2, count_include_pad=False).movedim(1, -1)
    noise = torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))
    noisy = gt + noise * ((blurred - gt).square().mean() / noise.square().mean()).sqrt()
    by_blur, by_noise = (SobolevNorm().measure(1.5, 64.0, x, gt)[0] for x in (blurred, noisy))
    assert by_noise > 1.2 * by_blur


def test_energy_of_latents_and_of_encoded_pictures() -> None:
    x, y = (torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2))
    energy, said, sheet = SobolevNorm().measure(1.5, 8.0, latent={"samples": x}, reference_latent={"samples": y})
    assert energy == pytest.approx(float(Norm(1.5, 8.0).energy(x - y).mean()), rel=1e-5) and sheet.shape[0] == 2
    assert len(json.loads(said)["pictures"]) == 2
    model, a, b = tiny(), picture(1, 40, 50), picture(1, 40, 50).flip(2)
    with torch.no_grad():
        z = [model.backbone.encode(to_model_range(image.movedim(-1, 1)[..., :32, :48])) for image in (a, b)]
    found = SobolevNorm().measure(1.5, 8.0, a, b, model=model)[0]
    assert found == pytest.approx(float(Norm(1.5, 8.0).energy(z[0] - z[1]).mean()), rel=1e-4)


def test_bad_input_of_the_norm() -> None:
    x, z = picture(1, 16, 16), {"samples": torch.zeros(1, 4, 8, 8)}
    node = SobolevNorm()
    for given in ({}, {"image": x}, {"latent": z}, {"image": x, "reference_latent": z}):
        with pytest.raises(ValueError, match="image, reference: expected two pictures"):
            node.measure(**given)
    with pytest.raises(ValueError, match=r"image, reference: expected"):
        node.measure(latent=z, reference_latent=z, model=tiny())
    with pytest.raises(ValueError, match=r"reference: expected the size of image 16x16, got 8x8"):
        node.measure(image=x, reference=picture(1, 8, 8))
    with pytest.raises(ValueError, match=r"reference_latent: expected the shape of latent"):
        node.measure(latent=z, reference_latent={"samples": torch.zeros(1, 4, 8, 9)})
    with pytest.raises(ValueError, match=r"latent: expected latents \[B, C, h, w\] of pictures, got"):
        node.measure(latent={"samples": torch.zeros(1, 4, 2, 8, 8)}, reference_latent=z)
    with pytest.raises(ValueError, match=r"latent: expected finite numbers"):
        node.measure(latent={"samples": torch.full((1, 4, 8, 8), torch.nan)}, reference_latent=z)
    with pytest.raises(ValueError, match=r"image: expected sides of at least 16 px"):
        node.measure(image=picture(1, 8, 8), reference=picture(1, 8, 8), model=tiny())
    with pytest.raises(ValueError, match=r"order: expected s of at least 0"):
        node.measure(-1.0, 64.0, x, x)
    with pytest.raises(TypeError, match="model: expected a model that is sampled in many steps"):
        node.measure(1.5, 64.0, x, x, model=load_model("lite-x4"))


@pytest.mark.parametrize(("backbone", "control"), [("flux1", "none"), ("flux1", "auto"), ("sd2", "none"), ("sd2", "auto")])
def test_negatives_in_inference_mode(backbone: str, control: str) -> None:
    with torch.inference_mode():
        model, image = tiny(backbone, control), picture(2, 48, 40)
        sheet, sobolev, euclidean, said = PerturbationViewer().view(model, image, size_px=32)
    facts = json.loads(said)["pictures"]
    assert sheet.shape[0] == 2 and sobolev.shape == euclidean.shape == (2, 32, 32, 3)
    assert all(row["change_rms"] > 0 and set(row["residuals"]) == {"picture", "sobolev", "euclidean"} for row in facts)
    networks = [module for _, module in model.backbone.modules()]
    assert not any(getattr(part, "is_gradient_checkpointing", False) for module in networks for part in module.modules())
    assert not any(p.is_inference() or p.requires_grad for module in networks for p in module.parameters())


def test_the_bundled_model_makes_a_smooth_and_a_grainy_negative() -> None:
    model, image = load_model("pixel-x4"), picture(1, 64, 64)
    _, sobolev, euclidean, said = PerturbationViewer().view(model, image, seed=3, size_px=64)
    (facts,) = json.loads(said)["pictures"]
    assert facts["fine_share"]["sobolev"] < 0.1 < facts["fine_share"]["euclidean"]
    assert facts["residuals"]["sobolev"] < facts["residuals"]["picture"]
    again = PerturbationViewer().view(model, image, seed=3, size_px=64)
    assert torch.equal(again[1], sobolev) and not torch.equal(sobolev, euclidean)
    assert not torch.equal(PerturbationViewer().view(model, image, seed=4, size_px=64)[1], sobolev)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_finds_nearly_the_same(precision: str) -> None:
    image = picture(1, 64, 64)
    whole, half = (PerturbationViewer().view(load_model("pixel-x4", p), image)[1] for p in ("fp32", precision))
    assert float((whole - half).square().mean().sqrt()) < 0.01
    model = LoadMultiStepBackbone().load("flux1", "tiny", "none", precision="bf16")[0]
    assert torch.isfinite(PerturbationViewer().view(model, image, size_px=32)[1]).all()


def test_bad_input_of_the_viewer(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, image = PerturbationViewer(), picture(1, 32, 32)
    with pytest.raises(TypeError, match="model: expected a model that is sampled in many steps"):
        node.view(load_model("lite-x4"), image)
    with pytest.raises(ValueError, match=r"noise_level: expected above 0"):
        node.view(tiny(), image, noise_level=0.95)
    with pytest.raises(ValueError, match=r"radius: expected a number above 0"):
        node.view(tiny(), image, radius=0.0)
    with pytest.raises(ValueError, match=r"image: expected sides of at least 16 px, got 8x8"):
        node.view(tiny(), picture(1, 8, 8))
    monkeypatch.setattr(host, "check_interrupt", lambda: (_ for _ in ()).throw(Interrupted()))
    with pytest.raises(Interrupted):
        node.view(tiny(), image)
