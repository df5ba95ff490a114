"""The flow-matching convention of this package, written once.

    sigma in [0, 1], 1 = pure noise;   noisy = (1 - sigma) clean + sigma noise;   velocity = noise - clean

Every function computes in float32 at least, whatever the dtype of its tensors, and returns the dtype of its first tensor.
A sigma is a number, or a float tensor with one value per sample ([B]) or one value for all ([] or [1]).
"""

import math

import torch
from torch import Tensor

from .checks import check_positive_int, check_same_shape


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Mix a clean signal with noise: noisy = (1 - sigma) clean + sigma noise.

    Args:
        clean: [B, ...] float.
        noise: same shape, standard normal.
        sigma: noise level in [0, 1].

    Returns:
        [B, ...], dtype of clean.

    Raises:
        ValueError: shapes differ, or sigma is outside [0, 1] or not one value per sample.

    Source:
        Linear (rectified-flow) path, as in diffusers' FlowMatchEulerDiscreteScheduler.scale_noise.

    Example:
        >>> add_noise(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 0.25)
        tensor([[1.5000]])
    """
    check_same_shape(clean, noise, "clean", "noise")
    level = _per_sample(sigma, clean, "sigma")
    return ((1 - level) * _wide(clean) + level * _wide(noise)).to(clean.dtype)


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What a flow network should answer: velocity = noise - clean.

    Args:
        clean: [B, ...] float.
        noise: same shape.

    Returns:
        [B, ...], dtype of clean.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (3): v = z_1 - z_0; symbols: z_1 -> noise, z_0 -> clean.
    """
    check_same_shape(clean, noise, "clean", "noise")
    return (_wide(noise) - _wide(clean)).to(clean.dtype)


def clean_from_velocity(noisy: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The clean end of the path: clean = noisy - sigma velocity, one Euler step to sigma 0.

    Args:
        noisy: [B, ...] float, the state at sigma.
        velocity: same shape.
        sigma: noise level in [0, 1].

    Returns:
        [B, ...], dtype of noisy.

    Source:
        StrSR, arXiv:2603.06275v1, section 3 (one step from t_1): z_0 = z - t_1 v.
    """
    return euler_step(noisy, velocity, sigma, 0.0)


def noise_from_velocity(noisy: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The noise end of the path: noise = noisy + (1 - sigma) velocity, one Euler step to sigma 1.

    Args:
        noisy: [B, ...] float, the state at sigma.
        velocity: same shape.
        sigma: noise level in [0, 1].

    Returns:
        [B, ...], dtype of noisy.

    Source:
        DP2O-SR's flow identity eps_pred = x_s + (1 - s) v_pred; symbols: s -> sigma, x_s -> noisy.
    """
    return euler_step(noisy, velocity, sigma, 1.0)


def euler_step(z: Tensor, velocity: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """One Euler step along the flow: z + (sigma_next - sigma) velocity.

    Args:
        z: [B, ...] float, the state at sigma.
        velocity: same shape, the network's answer at sigma; may have another dtype.
        sigma: noise level of z in [0, 1].
        sigma_next: noise level to go to in [0, 1].

    Returns:
        [B, ...], dtype of z. Keep z in float32 over several steps: rounding to bfloat16 after each would add up.

    Raises:
        ValueError: shapes differ, or a sigma is outside [0, 1] or not one value per sample.

    Example:
        >>> euler_step(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.8, 0.0)
        tensor([[1.2000]])
    """
    check_same_shape(z, velocity, "z", "velocity")
    step = _per_sample(sigma_next, z, "sigma_next") - _per_sample(sigma, z, "sigma")
    return (_wide(z) + step * _wide(velocity)).to(z.dtype)


def sigma_schedule(num_steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """Noise levels for `num_steps` Euler steps, from `start` down to 0.

        sigma = shift u / (1 + (shift - 1) u),  u in equal steps from u(start) to 0

    so the first level is `start` whatever the shift. A shift above 1 spends more steps at high noise.

    Args:
        num_steps: number of network evaluations, >= 1.
        shift: > 0; 1 = equal steps in sigma; for FLUX use `flux_shift`.
        start: first noise level, in (0, 1]; 0.8 for the one-step models.

    Returns:
        [num_steps + 1] float32 on the CPU, strictly decreasing, last value 0.

    Raises:
        ValueError: num_steps < 1, shift <= 0 or start outside (0, 1].

    Source:
        Time shift of Esser et al., arXiv:2403.03206, section 5.3.2, as used by diffusers' FLUX pipelines.

    Example:
        >>> sigma_schedule(1, start=0.8)
        tensor([0.8000, 0.0000])
        >>> sigma_schedule(2, shift=3.0)
        tensor([1.0000, 0.7500, 0.0000])
    """
    check_positive_int(num_steps, "num_steps")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift: expected a number above 0, got {shift}; use 1.0 for equal steps")
    if not 0 < start <= 1:
        raise ValueError(f"start: expected 0 < start <= 1, got {start}; 1.0 starts from pure noise")
    first = start / (shift - (shift - 1) * start)
    u = torch.linspace(first, 0.0, num_steps + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).float()


def flux_shift(num_tokens: int) -> float:
    """The shift that FLUX uses for an image of `num_tokens` latent tokens.

        shift = exp(mu),  mu = 0.5 + (num_tokens - 256) (1.15 - 0.5) / (4096 - 256)

    Args:
        num_tokens: packed latent tokens of the image, (H / 16) (W / 16) for an H x W image.

    Returns:
        The value for `sigma_schedule`.

    Source:
        FLUX.1 as in diffusers' calculate_shift and its FlowMatchEulerDiscreteScheduler (exponential time shift).

    Example:
        >>> round(math.log(flux_shift(1024)), 2)
        0.63
    """
    check_positive_int(num_tokens, "num_tokens")
    return math.exp(0.5 + (num_tokens - 256) * (1.15 - 0.5) / (4096 - 256))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_sample(sigma: Tensor | float, like: Tensor, name: str) -> Tensor:
    """Shape a sigma so that it multiplies [B, ...]. Only numbers are range-checked: to look at a GPU tensor is to wait for it."""
    if isinstance(sigma, Tensor):
        if sigma.ndim > 1 or sigma.numel() not in (1, like.shape[0]):
            raise ValueError(
                f"{name}: expected one value or one per sample [{like.shape[0]}], got {tuple(sigma.shape)}; flatten it to [B]"
            )
        return _wide(sigma.to(like.device)).reshape(-1, *[1] * (like.ndim - 1))
    if not 0 <= sigma <= 1:
        raise ValueError(f"{name}: expected a noise level in [0, 1], got {sigma}; divide a timestep of 0..1000 by 1000")
    return torch.tensor(sigma, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
