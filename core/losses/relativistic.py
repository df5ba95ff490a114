"""StrSR's adversarial losses: relativistic over several levels of logits, and the approximated R1 penalty."""

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..checks import check_image, check_range, check_same_shape, did_you_mean
from .adversarial import Mean
from .precision import at_least_float32, per_sample

Reference = Literal["paired", "average", "global"]
Noise = Literal["gaussian", "uniform"]
REFERENCES = cast(tuple[str, ...], get_args(Reference))
NOISES = cast(tuple[str, ...], get_args(Noise))
R1_SIGMA = 0.005
R1_WEIGHT = 10.0

Critic = Callable[[Tensor], Sequence[Tensor]]  # images [B, 3, H, W] in [0, 1] -> logits [B, ...], one tensor per level


def ragan_generator_loss(
    fake: Sequence[Tensor],
    real: Sequence[Tensor],
    *,
    reference: Reference = "global",
    factor: float = 0.5,
    mean: Mean = torch.mean,
) -> Tensor:
    """Relativistic loss of the generator over all levels of a critic.

        f~ = f - m(r),   r~ = r - m(f),   L_i = factor sum over levels of mean [ BCE(f~_i, 1) + BCE(r~_i, 0) ]

    m is the sample itself, position by position (`paired`), the mean over the batch at each position (`average`), or the mean
    over batch and positions (`global`). The released code is `average` on batches of 1, which is `paired`.

    Args:
        fake: logits of restored images, one tensor [B, ...] per level, with gradient.
        real: logits of ground truth, the same shapes; detached here.
        reference: what a logit is compared with.
        factor: 1/2 as in the released code; 1 is the paper's formula, twice as large at the same weight.
        mean: mean over all logits for `global`; `mean_over_processes` makes it span them.

    Returns:
        [B] float32; ln 2 per level when all logits are equal (2 ln 2 with factor 1).

    Raises:
        ValueError: other shapes or numbers of levels, or an unknown reference.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (7) and (9); strsr.md sections 2.4 and 5.4 (code: HYPIR/trainer/base.py of 4a5c99e).

    Example:
        >>> ragan_generator_loss([torch.zeros(1, 2, 2)], [torch.full((1, 2, 2), 2.0)], reference="paired")
        tensor([2.1269])
    """
    return _relativistic(fake, [level.detach() for level in real], reference, factor, mean)


def ragan_critic_loss(
    fake: Sequence[Tensor],
    real: Sequence[Tensor],
    *,
    reference: Reference = "global",
    factor: float = 0.5,
    mean: Mean = torch.mean,
) -> Tensor:
    """Relativistic loss of the critic; the generator's with real and fake exchanged, and with gradient through both.

        L_i = factor sum over levels of mean [ BCE(r~_i, 1) + BCE(f~_i, 0) ]

    Args:
        fake: logits of restored images, which were computed without gradient to the generator.
        real: logits of ground truth, the same shapes.
        reference: see `ragan_generator_loss`.
        factor: see `ragan_generator_loss`.
        mean: see `ragan_generator_loss`.

    Returns:
        [B] float32; ln 2 per level when all logits are equal (2 ln 2 with factor 1).

    Raises:
        ValueError: as `ragan_generator_loss`.

    Source:
        See `ragan_generator_loss`.
    """
    return _relativistic(real, fake, reference, factor, mean)


def r1_noise(gt: Tensor, *, sigma: float = R1_SIGMA, kind: Noise = "gaussian", generator: Generator) -> Tensor:
    """Noise for `approximate_r1`.

    Args:
        gt: [B, 3, H, W], range [0, 1]; only its shape and device are read.
        sigma: in images of the range [-1, 1], as published; halved here, where images are in [0, 1].
        kind: `gaussian` of deviation sigma (paper), or `uniform` in [0, sigma) (released code; its mean is not zero).
        generator: on the CPU or on the device of `gt`.

    Returns:
        The shape of `gt`, float32, to be added to it.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (8); strsr.md sections 2.4 and 5.5.
    """
    check_image(gt, "gt")
    check_range(sigma, "sigma", 0.0, 1.0)
    if kind not in NOISES:
        raise ValueError(f"kind: expected gaussian or uniform, got {kind!r}; {did_you_mean(kind, NOISES)}")
    draw = torch.randn if kind == "gaussian" else torch.rand
    return draw(gt.shape, generator=generator, device=generator.device).to(gt.device) * (sigma / 2)


def approximate_r1(critic: Critic, gt: Tensor, noise: Tensor, clean: Sequence[Tensor] | None = None) -> Tensor:
    """How much a critic's answer on ground truth moves when a little noise is added, without second derivatives.

        R1_i = sum over levels of mean (C(gt_i) - C(gt_i + noise_i))^2

    for small noise of deviation sigma about sigma^2 |grad C|^2. Everything is float32 with autocast off: at 16 bits the noise
    is of the size of the rounding (strsr.md 6.2 item 3).

    Args:
        critic: images in [0, 1] to logits; its parameters float32. Gradient flows through both answers.
        gt: [B, 3, H, W], range [0, 1].
        noise: the same shape, from `r1_noise`.
        clean: logits of `gt` if they are at hand in float32 with gradient; computed otherwise.

    Returns:
        [B] float32, to be weighed by R1_WEIGHT = 10; 0 for a constant critic or without noise.

    Raises:
        ValueError: shapes differ, or `clean` is not float32.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (8), a squared norm where the code takes the mean over positions; strsr.md section 2.4.
    """
    check_image(gt, "gt")
    check_same_shape(noise, gt, "noise", "gt")
    if clean is not None and any(level.element_size() < 4 for level in clean):
        raise ValueError("clean: expected float32 logits, got half precision; leave them out to have them computed in float32")
    with torch.autocast(gt.device.type, enabled=False):
        wide = at_least_float32(gt)
        still = critic(wide) if clean is None else clean
        moved = critic(wide + noise)
        terms = [per_sample((a - b).square()) for a, b in zip(still, moved, strict=True)]
    return torch.stack(terms).sum(0)


def _relativistic(wins: Sequence[Tensor], loses: Sequence[Tensor], reference: Reference, factor: float, mean: Mean) -> Tensor:
    """Factor times the sum over levels of softplus(-(w - m(l))) + softplus(l - m(w)): `wins` should be above `loses`."""
    if reference not in REFERENCES:
        raise ValueError(f"reference: expected a known one, got {reference!r}; {did_you_mean(reference, REFERENCES)}")
    if len(wins) != len(loses) or not wins:
        raise ValueError(f"fake, real: expected as many levels in both, got {len(wins)} and {len(loses)}; pass all levels")
    terms: list[Tensor] = []
    for high, low in zip(wins, loses, strict=True):
        check_same_shape(high, low, "fake, real", "the other")
        above, below = at_least_float32(high), at_least_float32(low)
        term = F.softplus(_reference(below, reference, mean) - above) + F.softplus(below - _reference(above, reference, mean))
        terms.append(per_sample(term))
    return factor * torch.stack(terms).sum(0)


def _reference(logits: Tensor, reference: Reference, mean: Mean) -> Tensor:
    if reference == "paired":
        return logits
    return logits.mean(0, keepdim=True) if reference == "average" else mean(logits)
