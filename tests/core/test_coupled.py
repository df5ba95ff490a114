"""Coupled sampling: checks 13, 14 and 21 of asasr.md 6.1, and the closed-form negative."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignsr.core.coupled import closed_form_negative, coupled_pair, foreseen
from alignsr.core.diffusion import FlowProcess, VariancePreserving
from alignsr.core.losses import PairEnergies, preference_terms
from alignsr.core.sobolev import SobolevNorm
from reference.formula import S

SHAPE = (4, 2, 8, 8)
NORM = SobolevNorm(1.5, 8.0)


def draw(key: str) -> Tensor:
    return S(f"coupled/{key}", *SHAPE, dtype=torch.float64)


def answering(process: Any, answer: Any) -> Any:
    return SimpleNamespace(process=process, predict=lambda z, time, z_lq, told=None: answer(z, time))


CLEAN, NOISE = draw("clean"), draw("noise")
SIGMA = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)


def wide(time: Tensor) -> Tensor:
    return time.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_coupled_flow_pair_in_the_paper_s_convention(strength: float) -> None:
    """t = 1 - sigma, u = clean - noise = -v: all of section 2.4's identities."""
    process, v_phi = FlowProcess(), draw("adversary")
    backbone = answering(process, lambda z, time: v_phi.float())
    v_phi = v_phi.float().double()
    z_a = foreseen(backbone, CLEAN, NOISE, SIGMA, CLEAN)
    pair = coupled_pair(process, CLEAN, z_a, NOISE, SIGMA, strength=strength)
    t, u_w, u_phi = wide(1 - SIGMA), CLEAN - NOISE, -v_phi
    x_w, x_a = pair.states.chunk(2)
    target_w, target_a = pair.targets.chunk(2)
    one_w = t * CLEAN + (1 - t) * NOISE
    hat = one_w + (1 - t) * u_phi  # Eq. (16)
    x1_a = CLEAN + strength * (hat - CLEAN)
    close = {"rtol": 1e-6, "atol": 1e-6}
    assert torch.allclose(x_w, one_w)
    assert torch.allclose(pair.negative, x1_a, **close)
    assert torch.allclose(x_a, (1 - t) * NOISE + t * x1_a, **close)  # Eq. (17)
    assert torch.allclose(x_a - x_w, t * (pair.negative - CLEAN), **close)
    assert torch.allclose(x_a - x_w, strength * t * (1 - t) * (u_phi - u_w), **close)
    assert torch.allclose(-target_a - -target_w, strength * (1 - t) * (u_phi - u_w), **close)
    assert torch.allclose(-target_a, pair.negative - NOISE)
    assert torch.equal(x_a[0], x_w[0]) or torch.allclose(x_a[0], x_w[0], **close)  # sigma 0 is t = 1
    assert torch.allclose(x_a[3], x_w[3], **close)
    assert torch.equal(pair.times, torch.cat((SIGMA, SIGMA)))


@pytest.mark.parametrize("process", [FlowProcess(), VariancePreserving()])
def test_a_perfect_adversary_teaches_nothing(process: Any) -> None:
    time = SIGMA if process.prediction == "velocity" else torch.tensor([0, 300, 500, 999])
    backbone = answering(process, lambda z, time: process.target(CLEAN, NOISE))
    pair = coupled_pair(process, CLEAN, foreseen(backbone, CLEAN, NOISE, time, CLEAN).double(), NOISE, time)
    x_w, x_a = pair.states.chunk(2)
    assert torch.allclose(x_w, x_a, atol=1e-5)
    same = torch.cat((x_w, x_w))
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)  # a policy: weight times the state
    targets = torch.cat((pair.targets[:4], pair.targets[:4]))
    energies = PairEnergies.of(NORM.energy(weight * same - targets), NORM.energy(same - targets))
    loss = preference_terms(energies, logit_scale=2000.0).total()
    assert torch.allclose(loss, torch.full((4,), math.log(2), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert abs(float(gradient)) < 1e-9


def test_coupled_epsilon_pair() -> None:
    process, epsilon_phi = VariancePreserving(), draw("adversary")
    time = torch.tensor([0, 300, 700, 999])
    backbone = answering(process, lambda z, time: epsilon_phi)
    z_a = foreseen(backbone, CLEAN, NOISE, time, CLEAN)
    pair = coupled_pair(process, CLEAN, z_a.double(), NOISE, time)
    signal, spread = process.scales(time, CLEAN)
    x_w, x_a = pair.states.chunk(2)
    error = NOISE - epsilon_phi.float().double()
    assert torch.allclose(x_a - x_w, spread * error, atol=1e-5)
    assert torch.allclose(z_a.double() - CLEAN, spread / signal * error, atol=1e-4)
    assert torch.equal(pair.targets, torch.cat((NOISE, NOISE)))


@pytest.mark.parametrize("process", [FlowProcess(), VariancePreserving()])
@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_both_pictures_changes_no_loss_and_flipping_one_does(process: Any, axis: int) -> None:
    """Check 21: for models that commute with flips, here pointwise ones that compare state and input."""
    time = torch.tensor([0.2, 0.4, 0.6, 0.8]) if process.prediction == "velocity" else torch.tensor([5, 300, 500, 900])
    z_lq = draw("input")

    def loss(clean: Tensor, noise: Tensor, lq: Tensor) -> Tensor:
        def model(strength: float) -> Any:
            predict = lambda z, time, z_lq, told=None: torch.tanh(z + strength * z_lq)  # noqa: E731
            return SimpleNamespace(process=process, predict=predict)

        negative = foreseen(model(0.3), clean, noise, time, lq).double()
        pair, both = coupled_pair(process, clean, negative, noise, time), torch.cat((lq, lq))
        policy, reference = (model(s).predict(pair.states, pair.times, both) - pair.targets for s in (0.9, 0.5))
        energies = PairEnergies.of(NORM.energy(policy), NORM.energy(reference))
        return preference_terms(energies, logit_scale=3.0).total()

    plain = loss(CLEAN, NOISE, z_lq)
    clean, noise, turned = (x.flip(axis) for x in (CLEAN, NOISE, z_lq))
    assert torch.allclose(loss(clean, noise, turned), plain, rtol=1e-6)  # float32 inside `foreseen`
    assert not torch.allclose(loss(clean, noise, z_lq), plain, rtol=1e-2)


@pytest.mark.parametrize("process", [FlowProcess(), VariancePreserving()])
def test_closed_form_moves_the_state_to_the_ball_s_best_point(process: Any) -> None:
    time = torch.tensor([0.1, 0.3, 0.5, 0.95]) if process.prediction == "velocity" else torch.tensor([5, 300, 500, 999])
    weights = draw("network")[:1].float()
    backbone = answering(process, lambda z, time: torch.tanh(weights * z) + 0.3 * z.roll(1, -1))
    clean, noise = CLEAN.float(), NOISE.float()

    def objective(state: Tensor) -> Tensor:
        answer = backbone.predict(state, time, clean)
        return (answer - process.target(clean, noise)).square().flatten(1).sum(1)

    negative = closed_form_negative(backbone, clean, noise, time, clean, norm=NORM, radius_ratio=0.05)
    assert not negative.requires_grad
    x_w, x_a = coupled_pair(process, clean, negative, noise, time).states.chunk(2)
    lengths = NORM.squared_norm(x_a - x_w).sqrt() / NORM.squared_norm(x_w).sqrt()
    assert torch.allclose(lengths[:3], torch.full((3,), 0.05), rtol=1e-3)
    assert bool((objective(x_a) < objective(x_w))[:3].all())
    assert torch.equal(negative[3], clean[3])  # next to no signal: the pair is no pair
    with torch.no_grad():
        assert torch.equal(closed_form_negative(backbone, clean, noise, time, clean, norm=NORM), negative)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.5, math.nan])
def test_strength_is_checked(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength: expected a number in \(0, 1\]"):
        coupled_pair(FlowProcess(), CLEAN, CLEAN, NOISE, SIGMA, strength=strength)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="negative: expected the shape of clean"):
        coupled_pair(FlowProcess(), CLEAN, CLEAN[:2], NOISE, SIGMA)
    with pytest.raises(ValueError, match="radius_ratio: expected a number above 0"):
        closed_form_negative(answering(FlowProcess(), None), CLEAN, NOISE, SIGMA, CLEAN, norm=NORM, radius_ratio=0.0)
