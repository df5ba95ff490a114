"""The Sobolev norm for people: maps that add up to the energy, negatives of equal size and different shape."""

import math
from typing import Any

import pytest
import torch
from latent_helpers import seed
from multi_step_helpers import Known

from alignsr.core.backbones.latent import tiny_multi_step
from alignsr.core.diffusion import FlowProcess, VariancePreserving
from alignsr.core.sobolev import SobolevNorm
from alignsr.core.sobolev_view import (
    energy_picture,
    find_negatives,
    fine_share,
    negatives_picture,
    radial_power,
    sobolev_figures,
)

NORM = SobolevNorm(1.5, 2 * math.pi)


def drawn(*shape: int, number: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seed(number))


@pytest.mark.parametrize("order", [0.0, 1.5])
def test_the_map_adds_up_to_the_energy_and_is_local(order: float) -> None:
    norm, x = SobolevNorm(order, 16.0), drawn(2, 3, 24, 32)
    assert torch.allclose(norm.energy_map(x).mean((1, 2, 3)), norm.energy(x), rtol=1e-5)
    spot = torch.zeros(1, 1, 32, 32)
    spot[..., 8, 20] = 1.0
    found = norm.energy_map(spot)[0, 0]
    assert divmod(int(found.argmax()), 32) == (8, 20)
    assert float(found[4:13, 16:25].sum() / found.sum()) > 0.98


def test_figures_say_what_is_fine() -> None:
    coarse = torch.cos(torch.pi * (torch.arange(32) + 0.5) * 2 / 32).expand(1, 1, 32, 32)
    fine = torch.cos(torch.pi * (torch.arange(32) + 0.5) * 28 / 32).expand(1, 1, 32, 32)
    both = sobolev_figures(torch.cat((coarse, fine)), SobolevNorm(1.5, 64.0))
    assert both[0].euclidean == pytest.approx(both[1].euclidean, rel=1e-5) and both[1].energy > 100 * both[0].energy
    assert both[0].bands[0] == pytest.approx(1, abs=1e-5) and both[1].bands[2] == pytest.approx(1, abs=1e-5)
    nothing = sobolev_figures(torch.zeros(1, 1, 32, 32), NORM)[0]
    assert nothing.energy == 0 and set(nothing.to_dict()["bands"].values()) == {None}  # type: ignore[attr-defined]


def test_shells_and_fine_share_of_white_noise() -> None:
    x = drawn(1, 16, 64, 64)
    assert fine_share(x) == pytest.approx(0.75, abs=0.01)
    points = radial_power(x)
    assert points[0][0] == pytest.approx(1 / 128) and points[-1][0] <= 0.5
    assert max(abs(level) for _, level in points[8:]) < 1.0


@pytest.mark.parametrize("process", [FlowProcess(), VariancePreserving()])
@pytest.mark.parametrize("level", [0.2, 0.6])
def test_negatives_are_equally_far_and_only_one_is_grainy(process: Any, level: float) -> None:
    """A model whose answer is pointwise has a residual of white gradient: the Sobolev ball takes its fine part away."""
    backbone = Known(process)
    clean, noise = drawn(1, 4, 32, 32, number=1), drawn(1, 4, 32, 32, number=2)
    z_lq = drawn(1, 4, 32, 32, number=3)
    found = find_negatives(backbone, clean, noise, level, z_lq, norm=NORM, radius_ratio=0.02)
    change = found.deltas()
    sizes = [float(part.square().mean()) for part in change.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4) and sizes[0] > 0
    assert fine_share(change["Sobolev"]) < 0.2 < 0.5 < fine_share(change["Euclidean"])
    assert found.residuals["euclidean"] < found.residuals["picture"]
    assert found.residuals["sobolev"] < found.residuals["picture"]


def test_negatives_of_a_latent_model() -> None:
    backbone = tiny_multi_step("flux1")
    clean, noise = drawn(1, 4, 16, 16, number=1), drawn(1, 4, 16, 16, number=2)
    found = find_negatives(backbone, clean, noise, 0.5, clean, norm=NORM)
    assert bool(torch.isfinite(found.sobolev).all()) and not torch.equal(found.sobolev, clean)


@pytest.mark.parametrize("level", [0.0, 0.95, 1.5])
def test_levels_without_a_picture_are_refused(level: float) -> None:
    x = drawn(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"level: expected"):
        find_negatives(Known(FlowProcess()), x, x, level, x, norm=NORM)


def test_pictures() -> None:
    x, gt = torch.rand(1, 3, 48, 64, generator=seed(0)), torch.rand(1, 3, 48, 64, generator=seed(1))
    sheet = energy_picture(x - gt, NORM, {"image": x, "reference": gt}, "a title")
    alone = energy_picture(drawn(1, 16, 8, 8), NORM, {})
    assert sheet.width > 640 and sheet.height > alone.height
    found = find_negatives(Known(FlowProcess()), x, drawn(1, 3, 48, 64), 0.5, gt, norm=NORM)
    shown = {"picture": x, "Sobolev": gt, "Euclidean": x}
    assert negatives_picture(found, shown, gain=4.0).height > 900
