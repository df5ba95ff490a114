"""Adversarial losses on logits: plain and relativistic average, for the generator and for the discriminator."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.normalization import sum_over_processes, world_size
from .precision import at_least_float32, per_sample

Mean = Callable[[Tensor], Tensor]  # logits of this process -> their mean, a scalar


class CriticTerms(NamedTuple):
    """The two halves of a discriminator's loss, [B] each; one backward pass on the sum equals one on each.

    Attributes:
        real: what it says about ground truth.
        fake: what it says about restored images.
    """

    real: Tensor
    fake: Tensor


def _wide(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    if fake.shape[:1] != real.shape[:1] or fake.ndim == 0:
        raise ValueError(
            f"fake: expected logits of as many samples as real {tuple(real.shape)}, got {tuple(fake.shape)}; "
            "pass one batch of each"
        )
    return at_least_float32(fake), at_least_float32(real)


def _says_real(logits: Tensor) -> Tensor:
    """BCE(logits, 1) = softplus(-logits)."""
    return F.softplus(-logits)


def _says_fake(logits: Tensor) -> Tensor:
    """BCE(logits, 0) = softplus(logits)."""
    return F.softplus(logits)


def relativistic_generator_loss(fake: Tensor, real: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Relativistic average loss of the generator: its images should look more real than the average ground truth.

        L_i = 1/2 [ BCE(stopgrad(real_i) - mean(fake), 0) + BCE(fake_i - mean(stopgrad(real)), 1) ]

    Args:
        fake: logits of restored images, [B, ...], with gradient.
        real: logits of ground truth, [B, ...]; detached here.
        mean: average over all logits; `mean_over_processes` makes it global.

    Returns:
        [B] float32; ln 2 when all logits are equal. A map of logits is averaged per sample.

    Raises:
        ValueError: different numbers of samples.

    Source:
        Jolicoeur-Martineau 2018, arXiv:1807.00734; specification aesop.md section 2.6 without its weight lambda = 0.005.

    Example:
        >>> relativistic_generator_loss(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor([0.6931, 0.6931])
    """
    fake, real = _wide(fake, real.detach())
    return (per_sample(_says_fake(real - mean(fake))) + per_sample(_says_real(fake - mean(real)))) / 2


def relativistic_critic_loss(fake: Tensor, real: Tensor, mean: Mean = torch.mean) -> CriticTerms:
    """Relativistic average loss of the discriminator; each half holds the other's mean constant.

        real_i = 1/2 BCE(real_i - mean(stopgrad(fake)), 1),   fake_i = 1/2 BCE(fake_i - mean(stopgrad(real)), 0)

    Args:
        fake: logits of restored images (without gradient to the generator), [B, ...].
        real: logits of ground truth, [B, ...].
        mean: average over all logits; `mean_over_processes` makes it global.

    Returns:
        Two halves of [B] float32; their sum is ln 2 when all logits are equal.

    Raises:
        ValueError: different numbers of samples.

    Source:
        See `relativistic_generator_loss`.
    """
    fake, real = _wide(fake, real)
    return CriticTerms(
        per_sample(_says_real(real - mean(fake.detach()))) / 2, per_sample(_says_fake(fake - mean(real.detach()))) / 2
    )


def plain_generator_loss(fake: Tensor) -> Tensor:
    """Plain loss of the generator: its images should be called real.

        L_i = mean BCE(fake_i, 1)

    Args:
        fake: logits of restored images, [B, ...], with gradient.

    Returns:
        [B] float32; ln 2 at logit 0. A map of logits is averaged per sample.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661 (non-saturating); specification aesop.md section 2.6 without its weight 0.1.
    """
    return per_sample(_says_real(at_least_float32(fake)))


def plain_critic_loss(fake: Tensor, real: Tensor) -> CriticTerms:
    """Plain loss of the discriminator, without the factor 1/2 of the relativistic one.

        real_i = mean BCE(real_i, 1),   fake_i = mean BCE(fake_i, 0)

    Args:
        fake: logits of restored images (without gradient to the generator), [B, ...].
        real: logits of ground truth, [B, ...].

    Returns:
        Two halves of [B] float32; their sum is 2 ln 2 at logit 0.

    Raises:
        ValueError: different numbers of samples.

    Source:
        See `plain_generator_loss`.
    """
    fake, real = _wide(fake, real)
    return CriticTerms(per_sample(_says_real(real)), per_sample(_says_fake(fake)))


def mean_over_processes(x: Tensor) -> Tensor:
    """Mean of equally many values in every process of the default group, differentiable; the plain mean in a single process.

        m = 1/N sum_p mean(x_p)

    With it, N processes whose gradients are averaged do what one does with N times the batch. All processes must call it, and
    the backward pass, alike.
    """
    return sum_over_processes(x.mean()) / world_size()
