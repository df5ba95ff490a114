"""Coupled sampling: a negative that differs from its positive in the quality of restoration alone, not in noise or time.

The positive is the ground truth's latents. The negative is what an adversary foresees at the positive's noisy state, noised again
with the same noise to the same time; or a closed form of it, or any other latents, such as those of the enlarged input.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_same_shape
from .diffusion import MultiStepBackbone, Process
from .records import Conditioning
from .sobolev import SobolevNorm, closed_form

SMALLEST_SIGNAL = 0.1  # share of the clean end in a state below which a perturbed state says nothing about its clean end


@dataclass(frozen=True)
class CoupledPair:
    """Two noisy states per pair, positives first, ready to be predicted as one batch.

    Attributes:
        states: [2 B, C, h, w].
        times: [2 B].
        targets: what a perfect model answers there, like states.
        negative: clean latents of the negatives, [B, C, h, w].
    """

    states: Tensor
    times: Tensor
    targets: Tensor
    negative: Tensor


def coupled_pair(
    process: Process, clean: Tensor, negative: Tensor, noise: Tensor, time: Tensor, *, strength: float = 1.0
) -> CoupledPair:
    """Noise a positive and its negative alike.

        z_a = clean + strength (negative - clean);   x_w = add_noise(clean, noise, t),  x_a = add_noise(z_a, noise, t)

    For a flow the states differ by (1 - sigma) (z_a - clean) and the targets by clean - z_a; with epsilon prediction the states
    by a_k (z_a - clean), and both targets are the noise.

    Args:
        process: of the model.
        clean: latents of the ground truth, [B, C, h, w].
        negative: latents that are worse, same shape.
        noise: standard normal, same shape; shared.
        time: one per pair, [B]; shared.
        strength: lambda in (0, 1] of the way from clean to negative; 1 is the paper's.

    Raises:
        ValueError: shapes differ, or a strength outside (0, 1].

    Source:
        ASASR, arXiv:2605.23264, Eq. (17); asasr.md 2.4 (strength) and 1.3 (epsilon).
    """
    check_same_shape(negative, clean, "negative", "clean")
    if not math.isfinite(strength) or not 0 < strength <= 1:
        raise ValueError(f"strength: expected a number in (0, 1], got {strength}; the paper uses 1")
    far = negative if strength == 1 else clean + strength * (negative - clean)
    states = torch.cat((process.add_noise(clean, noise, time), process.add_noise(far, noise, time)))
    targets = torch.cat((process.target(clean, noise), process.target(far, noise)))
    return CoupledPair(states, torch.cat((time, time)), targets, far)


def foreseen(
    backbone: MultiStepBackbone,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    z_lq: Tensor,
    conditioning: Conditioning | None = None,
) -> Tensor:
    """The clean end that a model sees from the noisy state of `clean`: the adversary's negative.

        x_w = add_noise(clean, noise, t);   z_a = x_w - sigma v(x_w)   or   (x_w - s_k epsilon(x_w)) / a_k

    Args:
        backbone: with the adversary's adapter.
        clean: [B, C, h, w].
        noise: same shape.
        time: [B].
        z_lq: what conditions the model.
        conditioning: what it is told.

    Returns:
        Like clean, float32 at least. Tracks gradients unless the caller's mode does not.

    Source:
        ASASR, Eq. (16), in the convention of `core/flow.py`; asasr.md 1.3 for epsilon.
    """
    state = backbone.process.add_noise(clean, noise, time)
    return backbone.process.clean(state, backbone.predict(state, time, z_lq, conditioning).float(), time)


def closed_form_negative(
    backbone: MultiStepBackbone,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    z_lq: Tensor,
    conditioning: Conditioning | None = None,
    *,
    norm: SobolevNorm,
    radius_ratio: float = 0.05,
) -> Tensor:
    """The negative of proposition 4.1: the state moved inside a Sobolev ball to where the reference's residual is smaller.

        x_a = x_w + delta*,   g = grad_x |p(x) - target|^2 at x_w,   radius = radius_ratio |x_w|_{H^s}
        z_a = clean + delta* / a,   a = 1 - sigma or a_k: the clean end with the same noise

    Where a is below 0.1 the state says next to nothing about its clean end; the negative is the positive there, and such a pair
    has no gradient.

    Args:
        backbone: the reference, p.
        clean: [B, C, h, w].
        noise: same shape.
        time: [B].
        z_lq: what conditions the model.
        conditioning: what it is told.
        norm: of the ball.
        radius_ratio: rho > 0.

    Returns:
        Like clean, float32, detached. One forward and one backward pass through the model.

    Raises:
        ValueError: rho is not above 0.

    Source:
        ASASR, Eq. (19); asasr.md 2.10, which fixes radius and target.
    """
    if not math.isfinite(radius_ratio) or radius_ratio <= 0:
        raise ValueError(f"radius_ratio: expected a number above 0, got {radius_ratio}; 0.05 is usual")
    process = backbone.process
    with torch.enable_grad():
        state = process.add_noise(clean, noise, time).detach().float().requires_grad_(True)
        residual = backbone.predict(state, time, z_lq, conditioning).float() - process.target(clean, noise).float()
        (gradient,) = torch.autograd.grad(residual.square().sum(), state)
    delta = closed_form(gradient, radius_ratio * norm.squared_norm(state.detach()).sqrt(), norm)
    # a, the share of the clean end: what a state of clean = 1 without noise is
    one = torch.ones_like(delta[:, :1, :1, :1])
    share = process.add_noise(one, torch.zeros_like(one), time)
    return (clean.float() + torch.where(share < SMALLEST_SIGNAL, 0.0, delta / share.clamp_min(SMALLEST_SIGNAL))).detach()
