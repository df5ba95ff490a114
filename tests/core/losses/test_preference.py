"""Preference losses: checks 2, 9, 10 and 17 of asasr.md 6.1, and the scale of both papers."""

import math

import pytest
import torch
from torch import Tensor

from alignsr.core.losses import (
    ASASR_LOGIT_SCALE,
    DP2O_SR_LOGIT_SCALE,
    PairEnergies,
    preference_figures,
    preference_loss,
    preference_terms,
)
from alignsr.core.sobolev import SobolevNorm, logit_scale
from reference.formula import S

B, SHAPE = 3, (2, 8, 8)


def residuals(key: str, batch: int = 2 * B) -> Tensor:
    return S(f"preference/{key}", batch, *SHAPE, dtype=torch.float64)


def pair_loss(policy: Tensor, reference: Tensor, norm: SobolevNorm, scale: float) -> Tensor:
    energies = PairEnergies.of(norm.energy(policy), norm.energy(reference))
    return preference_terms(energies, logit_scale=scale).total()


def test_both_papers_scales() -> None:
    # asasr.md 4.1: 2000 (in the release, a flag of 4000 with a factor of 0.5); dp2o-sr.md 2.5: softplus(0.5 beta delta), 5000
    assert ASASR_LOGIT_SCALE == 2000 == 4000 * 0.5
    assert DP2O_SR_LOGIT_SCALE == 2500 == 5000 / 2
    policy, reference = torch.tensor([0.30, 0.32]), torch.tensor([0.31, 0.315])
    delta = (0.30 - 0.32) - (0.31 - 0.315)
    energies = PairEnergies.of(policy.double(), reference.double())
    loss = preference_loss(energies.chosen, energies.rejected, logit_scale=DP2O_SR_LOGIT_SCALE)
    assert float(loss) == pytest.approx(math.log1p(math.exp(0.5 * 5000 * delta)), abs=1e-12)


def test_hand_worked_value() -> None:
    # dE_w = -0.001, dE_l = 0.002, m = 1000 * 0.003 = 3: -log sigmoid(3) = 0.0485873...
    loss = preference_loss(
        torch.tensor([-0.001], dtype=torch.float64), torch.tensor([0.002], dtype=torch.float64), logit_scale=1000
    )
    assert float(loss) == pytest.approx(0.04858735157374196, abs=1e-12)


@pytest.mark.parametrize("order", [0.0, 1.5, 3.0])
def test_equal_models_lose_log_two(order: float) -> None:
    x = residuals("x")
    loss = pair_loss(x, x, SobolevNorm(order, 8.0), 2e7)
    assert torch.equal(loss, torch.full((B,), math.log(2), dtype=torch.float64))


def test_sobolev_of_order_zero_is_euclidean_in_value_and_gradient() -> None:
    x, reference = residuals("x").requires_grad_(), residuals("reference")
    euclidean = [r.square().flatten(1).mean(1) for r in (x, reference)]
    gap = euclidean[0] - euclidean[1]
    wanted = -torch.nn.functional.logsigmoid(2000 * (gap[B:] - gap[:B]))
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), x)
    found = pair_loss(x, reference, SobolevNorm(0.0), 2000.0)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert torch.allclose(gradient, wanted_gradient, rtol=1e-12)


def test_gradient_at_the_start_is_half_the_scale() -> None:
    norm, kappa = SobolevNorm(1.5, 8.0), 2000.0
    x = residuals("x").requires_grad_()
    (gradient,) = torch.autograd.grad(pair_loss(x, x.detach(), norm, kappa).sum(), x)
    (energy,) = torch.autograd.grad(norm.energy(x).sum(), x)
    assert torch.allclose(gradient[:B], kappa / 2 * energy[:B], rtol=1e-12)
    assert torch.allclose(gradient[B:], -kappa / 2 * energy[B:], rtol=1e-12)


def test_gradient_away_from_the_start() -> None:
    norm, kappa = SobolevNorm(1.5, 8.0), 3.0
    x, reference = residuals("x").requires_grad_(), residuals("reference")
    energies = PairEnergies.of(norm.energy(x), norm.energy(reference))
    slope = torch.sigmoid(-kappa * (energies.rejected - energies.chosen)).detach()
    (gradient,) = torch.autograd.grad(pair_loss(x, reference, norm, kappa).sum(), x)
    (energy,) = torch.autograd.grad(norm.energy(x).sum(), x)
    wanted = kappa * torch.cat((slope, -slope))[:, None, None, None] * energy
    assert torch.allclose(gradient, wanted, rtol=1e-11)


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_raw_beta_is_the_normalised_one_times_the_mean_weight(beta: float) -> None:
    norm, x, reference = SobolevNorm(1.5, 8.0), residuals("x"), residuals("reference")
    raw = [norm.squared_norm(r) / r[0].numel() for r in (x, reference)]
    gap = raw[0] - raw[1]
    released = -torch.nn.functional.logsigmoid(beta * (gap[B:] - gap[:B]))
    ours = pair_loss(x, reference, norm, logit_scale(beta, norm, (8, 8), raw=True))
    assert torch.allclose(ours, released, rtol=1e-12)
    assert torch.allclose(ours, pair_loss(x, reference, norm, beta * norm.mean_weight((8, 8))), rtol=1e-12)


def test_anchor_adds_the_winner_s_energy() -> None:
    norm, x, reference = SobolevNorm(1.5, 8.0), residuals("x"), residuals("reference")
    energies = PairEnergies.of(norm.energy(x), norm.energy(reference))
    plain = preference_terms(energies, logit_scale=1.0)
    anchored = preference_terms(energies, logit_scale=1.0, winner_anchor=0.25)
    assert set(plain.values) == {"preference"}
    assert torch.allclose(anchored.total(), plain.total() + 0.25 * norm.energy(x)[:B])


def test_pair_weights_weigh_pairs_and_carry_no_gradient() -> None:
    chosen, rejected = torch.tensor([0.0, 0.1], requires_grad=True), torch.tensor([0.1, 0.0])
    weights = torch.tensor([0.5, 2.0], requires_grad=True)
    loss = preference_loss(chosen, rejected, logit_scale=5.0, weights=weights)
    assert torch.equal(loss, preference_loss(chosen, rejected, logit_scale=5.0) * weights)
    loss.sum().backward()
    assert weights.grad is None
    assert chosen.grad is not None


def test_a_step_widens_the_margin() -> None:
    norm, reference = SobolevNorm(1.5, 8.0), residuals("reference")
    x = (reference + 0.01 * residuals("x")).requires_grad_()
    before = PairEnergies.of(norm.energy(x), norm.energy(reference))
    (gradient,) = torch.autograd.grad(preference_terms(before, logit_scale=10.0).total().sum(), x)
    after = PairEnergies.of(norm.energy(x - 1e-3 * gradient), norm.energy(reference))
    assert bool(((after.rejected - after.chosen) > (before.rejected - before.chosen)).all())


def test_reference_energies_carry_no_gradient() -> None:
    policy, reference = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    preference_terms(PairEnergies.of(policy, reference), logit_scale=1.0).total().sum().backward()
    assert policy.grad is not None
    assert reference.grad is None


def test_figures_name_the_pathology() -> None:
    """Both energies rise while the margin grows: chosen_drift is above 0 although every pair agrees."""
    energies = PairEnergies.of(torch.tensor([1.03, 2.0]), torch.tensor([1.0, 1.0]))
    figures = preference_figures(energies, logit_scale=10.0)
    assert {name: round(float(value), 4) for name, value in figures.items()} == {
        "margin": 9.7,
        "agreement": 1.0,
        "chosen": 0.03,
        "rejected": 1.0,
        "chosen_drift": 0.03,
    }


def test_half_precision_energies_are_widened() -> None:
    loss = preference_loss(torch.zeros(2).bfloat16(), torch.zeros(2).bfloat16(), logit_scale=2000)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="logit_scale: expected a number above 0"):
        preference_loss(torch.zeros(1), torch.zeros(1), logit_scale=scale)


def test_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="chosen: expected the shape of rejected"):
        preference_loss(torch.zeros(2), torch.zeros(3), logit_scale=1.0)
    with pytest.raises(ValueError, match=r"chosen: expected one value per pair"):
        preference_loss(torch.zeros(2, 1), torch.zeros(2, 1), logit_scale=1.0)
    with pytest.raises(ValueError, match="weights: expected the shape of chosen"):
        preference_loss(torch.zeros(2), torch.zeros(2), logit_scale=1.0, weights=torch.ones(1))
    with pytest.raises(ValueError, match="policy: expected chosen and rejected samples"):
        PairEnergies.of(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="winner_anchor: expected at least 0"):
        preference_terms(PairEnergies.of(torch.zeros(2), torch.zeros(2)), logit_scale=1.0, winner_anchor=-1)
