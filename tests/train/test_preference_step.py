"""One step of preference training by the checks of dp2o-sr.md section 6: gradients, shared noise, packing, a toy that learns."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from multi_step_helpers import VP
from torch import nn

from alignsr.core.backbones.flux1 import pack, unpack
from alignsr.core.backbones.latent import tiny_multi_step
from alignsr.core.diffusion import FlowProcess
from alignsr.core.losses.preference import DP2O_SR_LOGIT_SCALE, PairEnergies, preference_loss, preference_terms
from alignsr.core.preferences import pair_table
from alignsr.core.records import PreferenceBatch
from alignsr.train.multi_step import MultiStepModelConfig
from alignsr.train.preference_step import draw_pair, errors, figures, pair_state
from alignsr.train.recipes.perceptual_dpo import PerceptualDpoConfig

BETA = 5000.0


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(channels: int = 4, side: int = 8, count: int = 2, stride: int = 8, scale: int = 4) -> PreferenceBatch:
    chosen, rejected = (randn(count, channels, side, side, seed=k) for k in (1, 2))
    lq = torch.rand(count, 3, side * stride // scale, side * stride // scale, generator=torch.Generator().manual_seed(3))
    weights = torch.tensor([1.2, 0.8])[:count]
    return PreferenceBatch(chosen, rejected, lq, weights, weights, torch.arange(count), ("a", "b")[:count], ("", "")[:count])


def model(kind: str, seed: int = 0):
    """A tiny model with a control branch that has an effect."""
    backbone = tiny_multi_step(kind, control=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.control.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return backbone


def state_of(backbone, pairs=None, **options):
    given = {"scale": 4, "seed": 5, "first_index": 0, "grid": 1000} | options
    channels = backbone.spec.latent_channels
    return pair_state(backbone, pairs or batch(channels, 8), lambda _: None, **given)


@pytest.mark.parametrize("kind", ["stable_diffusion", "flux1"])
def test_6_equal_models_lose_log_two_times_the_weight(kind):
    backbone = model(kind)
    state = state_of(backbone)
    backbone.control.requires_grad_(True)
    policy, reference = errors(backbone, state, nullcontext), errors(backbone, state, nullcontext)
    energies = PairEnergies.of(policy, reference)
    weights = torch.tensor([1.2, 0.8])
    loss = preference_terms(energies, logit_scale=BETA / 2, weights=weights).total()
    assert loss.tolist() == pytest.approx((math.log(2) * weights).tolist(), abs=1e-6)
    assert float(loss.mean()) == pytest.approx(0.693147, abs=1e-6)
    found = figures(energies, BETA / 2)
    assert found["margin"] == found["delta"] == found["implicit_accuracy"] == found["drift"] == 0
    loss.mean().backward()
    assert not energies.reference_chosen.requires_grad and not energies.reference_rejected.requires_grad
    assert all(p.grad is None for name, m in backbone.modules() if name != "control" for p in m.parameters())


def test_7_gradient_at_the_start_is_a_quarter_of_beta():
    chosen, rejected = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    preference_loss(chosen, rejected, logit_scale=BETA / 2, weights=torch.tensor([1.5]).double()).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(1.5 * 1250) and rejected.grad.item() == pytest.approx(-1.5 * 1250)


def test_8_antisymmetry():
    small, zero = torch.tensor([1e-4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    forward = preference_loss(small, zero, logit_scale=BETA / 2).item()
    backward = preference_loss(zero, small, logit_scale=BETA / 2).item()
    assert (forward, backward) == (pytest.approx(0.82594, abs=1e-5), pytest.approx(0.57594, abs=1e-5))
    assert forward - backward == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["stable_diffusion", "flux1"])
def test_9_equal_members_lose_log_two_whatever_the_policy(kind):
    policy, reference = model(kind, 1), model(kind, 2)
    pairs = batch(policy.spec.latent_channels, 8)
    same = replace(pairs, rejected=pairs.chosen)
    energies = PairEnergies.of(*(errors(m, state_of(m, same), nullcontext) for m in (policy, reference)))
    assert not torch.equal(energies.policy_chosen, energies.reference_chosen)
    loss = preference_loss(energies.chosen, energies.rejected, logit_scale=BETA / 2)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)


@pytest.mark.parametrize("process", [FlowProcess(), VP], ids=["flow", "epsilon"])
def test_members_share_noise_and_time_and_draws_depend_on_the_place_alone(process):
    first, second = (draw_pair(process, (4, 8, 8), 7, index, 1000) for index in (3, 4))
    again = draw_pair(process, (4, 8, 8), 7, 3, 1000)
    assert torch.equal(first[1], again[1]) and torch.equal(first[0], again[0]) and first[2] == again[2]
    assert not torch.equal(first[1], second[1]) and first[0] != second[0]
    kind = "flux1" if process.prediction == "velocity" else "stable_diffusion"
    backbone = model(kind)
    pairs = batch(backbone.spec.latent_channels, 8)
    whole = state_of(backbone, pairs, first_index=6)
    clean = torch.cat((pairs.chosen, pairs.rejected))
    noise = backbone.process.noise(whole.noisy, whole.target, whole.time)
    assert torch.equal(whole.time[:2], whole.time[2:])
    assert torch.allclose(noise[:2], noise[2:], atol=1e-5)
    assert torch.allclose(backbone.process.clean(whole.noisy, whole.target, whole.time), clean, atol=1e-3)
    one = state_of(backbone, batch(backbone.spec.latent_channels, 8, count=2), first_index=7)
    assert torch.equal(one.time[0], whole.time[1]), "batches may be cut anywhere"


def test_10_the_flow_identity_and_each_members_own_target():
    process, clean, noise, sigma = FlowProcess(), randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1), torch.tensor([0.1, 0.5, 0.9])
    noisy, velocity = process.add_noise(clean, noise, sigma), randn(3, 4, 5, 5, seed=2)
    wide = (1 - sigma).square() * (process.target(clean, noise) - velocity).square().flatten(1).sum(1)
    assert torch.allclose((noise - process.noise(noisy, velocity, sigma)).square().flatten(1).sum(1), wide, rtol=1e-4)
    backbone = model("flux1")
    pairs = batch(16, 8)
    state = state_of(backbone, pairs)
    drawn = torch.cat([draw_pair(backbone.process, (16, 8, 8), 5, index, 1000)[1] for index in range(2)])
    assert torch.equal(state.target, torch.cat((drawn - pairs.chosen, drawn - pairs.rejected)))


def test_noise_levels_are_those_of_the_unshifted_table():
    """floor(1000 u) into sigmas 1, 0.999, ..., 0.001 with u logit-normal(0, 1)."""
    levels = torch.cat([draw_pair(FlowProcess(), (1,), 0, index, 1000)[0] for index in range(4000)])
    steps = levels * 1000
    assert torch.allclose(steps, steps.round(), atol=1e-3) and float(levels.min()) >= 0.001 and float(levels.max()) <= 1
    logits = torch.logit(levels.clamp(1e-3, 0.9995))
    assert float(logits.mean()) == pytest.approx(0, abs=0.06) and float(logits.std()) == pytest.approx(1, abs=0.05)
    times = torch.cat([draw_pair(VP, (1,), 0, index)[0] for index in range(4000)])
    assert times.dtype == torch.int64 and int(times.min()) >= 0 and int(times.max()) <= 999
    assert float(times.float().mean()) == pytest.approx(499.5, abs=15)


def test_11_the_error_is_the_same_packed_and_unpacked():
    z, answer = randn(2, 16, 8, 8), randn(2, 16, 8, 8, seed=1)
    packed = (pack(z) - pack(answer)).square().flatten(1).mean(1)
    assert torch.allclose(packed, (z - answer).square().flatten(1).mean(1))
    assert torch.equal(unpack(pack(z), 4, 4), z)


def test_13_the_factor_on_the_difference_of_mean_errors_is_2500():
    config = PerceptualDpoConfig(model=MultiStepModelConfig(control="auto", precision="fp32"))
    assert config.loss.beta == 5000 and config.logit_scale == 2500
    assert DP2O_SR_LOGIT_SCALE == 2500
    delta, zero = torch.tensor([3e-4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert torch.equal(preference_loss(delta, zero, logit_scale=5000), preference_loss(2 * delta, zero, logit_scale=2500))
    assert preference_loss(delta, zero, logit_scale=2500).item() == pytest.approx(math.log1p(math.exp(2500 * 3e-4)))


class Toy(nn.Module):
    """A flow from noise to a cloud in the plane: velocity of (state, sigma)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, z, sigma):
        return self.net(torch.cat((z, sigma[:, None]), 1))

    @torch.no_grad()
    def sample(self, count: int, seed: int, steps: int = 12):
        z = randn(count, 2, seed=seed)
        for i in range(steps):
            sigma = torch.full((count,), 1 - i / steps)
            z = z - self(z, sigma) / steps
        return z


def pretrained(seed: int) -> Toy:
    toy, process, generator = Toy(seed), FlowProcess(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(toy.parameters(), 3e-3)
    for _ in range(500):
        clean = torch.randn(256, 2, generator=generator)
        noise, sigma = torch.randn(256, 2, generator=generator), process.draw_times(256, generator=generator)
        loss = (toy(process.add_noise(clean, noise, sigma), sigma) - process.target(clean, noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return toy


def reward(z):
    """Closeness to a target."""
    return torch.exp(-(z - torch.tensor([1.0, 0.5])).square().sum(1) / 4).double()


def test_14_a_toy_learns_what_is_preferred():
    """N = 4 of M = 16: mean reward rises, its spread over seeds falls, the worst of 32 gains more than the best."""
    reference = pretrained(0)
    groups = [reference.sample(16, seed=100 + g) for g in range(64)]
    table = pair_table([reward(z) for z in groups], 4)
    stacked = torch.stack(groups)
    chosen, rejected = stacked[table.group, table.chosen], stacked[table.group, table.rejected]
    policy = Toy(0)
    policy.load_state_dict(reference.state_dict())
    process, generator = FlowProcess(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-4)
    for _ in range(200):
        rows = torch.randint(len(table), (128,), generator=generator)
        clean = torch.cat((chosen[rows], rejected[rows]))
        noise = torch.randn(128, 2, generator=generator).repeat(2, 1)
        sigma = process.draw_times(128, generator=generator).repeat(2)
        noisy, target = process.add_noise(clean, noise, sigma), process.target(clean, noise)
        found = [(net(noisy, sigma) - target).square().mean(1) for net in (policy, reference)]
        energies = PairEnergies.of(*found)
        loss = preference_terms(energies, logit_scale=10.0, weights=table.weight[rows]).total().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before, after = (reward(net.sample(64 * 32, seed=9)).view(64, 32) for net in (reference, policy))
    gain = {
        k: float((f(after) - f(before)).mean())
        for k, f in (("best", lambda r: r.amax(1)), ("mean", lambda r: r.mean(1)), ("worst", lambda r: r.amin(1)))
    }
    assert gain["mean"] > 0.1
    assert float(after.std(1).mean()) < float(before.std(1).mean())
    assert gain["worst"] > gain["best"]
