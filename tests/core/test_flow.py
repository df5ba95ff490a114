"""The flow convention: conversions are inverse to each other and agree with the papers' identities."""

import math

import pytest
import torch

from alignsr.core.flow import (
    add_noise,
    clean_from_velocity,
    euler_step,
    flux_shift,
    noise_from_velocity,
    sigma_schedule,
    velocity_target,
)


def pair(shape=(4, 3, 5, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=dtype), torch.randn(shape, generator=generator, dtype=dtype)


SIGMAS = [0.0, 0.3, 0.8, 1.0, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.0, 0.25, 0.8, 1.0], dtype=torch.float64)]


@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
def test_velocity_leads_back_to_both_ends(sigma):
    clean, noise = pair()
    noisy, velocity = add_noise(clean, noise, sigma), velocity_target(clean, noise)
    torch.testing.assert_close(clean_from_velocity(noisy, velocity, sigma), clean)
    torch.testing.assert_close(noise_from_velocity(noisy, velocity, sigma), noise)
    torch.testing.assert_close(euler_step(noisy, velocity, sigma, 0.4), add_noise(clean, noise, 0.4))


def test_ends_of_the_path():
    clean, noise = pair()
    assert torch.equal(add_noise(clean, noise, 0.0), clean)
    assert torch.equal(add_noise(clean, noise, 1.0), noise)


def test_by_hand():
    clean, noise = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    assert add_noise(clean, noise, 0.25).item() == 1.5
    assert velocity_target(clean, noise).item() == 2.0


def test_one_step_of_strsr():
    """strsr.md check 15: an answer of (z_t1 - z_0) / 0.8 at sigma 0.8 returns z_0; for a full step the answer is z_t1 - z_0."""
    z_clean, z_start = pair()
    torch.testing.assert_close(clean_from_velocity(z_start, (z_start - z_clean) / 0.8, 0.8), z_clean)
    torch.testing.assert_close(clean_from_velocity(z_start, z_start - z_clean, 1.0), z_clean)


def test_noise_error_is_the_velocity_error_scaled():
    """dp2o-sr.md check 10: |eps - eps_pred|^2 = (1 - s)^2 |v - v_pred|^2 with eps_pred = x_s + (1 - s) v_pred."""
    clean, noise = pair()
    sigma = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    predicted = velocity_target(clean, noise) + 0.3 * pair()[1].flip(0)
    noise_error = (noise - noise_from_velocity(add_noise(clean, noise, sigma), predicted, sigma)).square().flatten(1).mean(1)
    velocity_error = (velocity_target(clean, noise) - predicted).square().flatten(1).mean(1)
    torch.testing.assert_close(noise_error, (1 - sigma) ** 2 * velocity_error)


def test_sigma_belongs_to_its_sample():
    clean, noise = pair()
    sigma = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    for i in range(4):
        alone = add_noise(clean[i : i + 1], noise[i : i + 1], float(sigma[i]))
        torch.testing.assert_close(add_noise(clean, noise, sigma)[i : i + 1], alone)


def test_computes_in_float32_for_bfloat16_tensors():
    z, velocity = (x.bfloat16() for x in pair())
    exact = z.double() - 0.37 * velocity.double()
    result = euler_step(z, velocity, 0.37, 0.0)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, exact.bfloat16())
    assert euler_step(z.float(), velocity, 0.37, 0.0).dtype == torch.float32
    torch.testing.assert_close(euler_step(z.float(), velocity, 0.37, 0.0), exact.float(), atol=1e-6, rtol=0)


def test_gradient_reaches_the_velocity():
    clean, noise = pair(dtype=torch.float32)
    velocity = torch.zeros_like(clean, requires_grad=True)
    clean_from_velocity(noise, velocity, 0.8).sum().backward()
    torch.testing.assert_close(velocity.grad, torch.full_like(clean, -0.8))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, flux_shift(4096)])
@pytest.mark.parametrize(("num_steps", "start"), [(1, 1.0), (1, 0.8), (4, 0.8), (25, 1.0)])
def test_schedule_falls_from_start_to_zero(num_steps, shift, start):
    sigmas = sigma_schedule(num_steps, shift, start)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0].item() == pytest.approx(start)
    assert sigmas[-1].item() == 0
    assert bool((sigmas.diff() < 0).all())


def test_schedule_shift_is_that_of_flux():
    """FLUX's form e^mu / (e^mu + 1/t - 1) over t = 1 .. 1/n, then 0; mu = 0.63 at 1024 tokens (dp2o-sr.md, sampler row)."""
    mu = math.log(flux_shift(1024))
    assert mu == pytest.approx(0.63)
    expected = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    assert sigma_schedule(4, math.exp(mu)).tolist() == pytest.approx(expected)


def test_euler_over_a_straight_path_is_exact_for_any_schedule():
    clean, noise = pair()
    z, sigmas = noise, sigma_schedule(7, shift=3.0)
    for i in range(7):
        z = euler_step(z, velocity_target(clean, noise), sigmas[i], sigmas[i + 1])
    torch.testing.assert_close(z, clean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: add_noise(x, x[:1], 0.5), "clean: expected the shape of noise"),
        (lambda x: add_noise(x, x, 800), r"sigma: expected a noise level in \[0, 1\], got 800; divide a timestep"),
        (lambda x: euler_step(x, x, 0.5, -0.1), "sigma_next: expected a noise level"),
        (lambda x: add_noise(x, x, torch.rand(3)), r"sigma: expected one value or one per sample \[4\], got \(3,\)"),
        (lambda x: sigma_schedule(0), "num_steps: expected"),
        (lambda x: sigma_schedule(4, shift=0.0), "shift: expected a number above 0"),
        (lambda x: sigma_schedule(4, start=1.5), "start: expected 0 < start <= 1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pair()[0])
