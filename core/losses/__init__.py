"""Losses as plain functions: `(sr, gt, ...)`, or logits `(fake, real, ...)`, to one value per sample; `LOSSES` names them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from .adversarial import (
    CriticTerms,
    mean_over_processes,
    plain_critic_loss,
    plain_generator_loss,
    relativistic_critic_loss,
    relativistic_generator_loss,
)
from .artifact import artifact_loss, artifact_map
from .autoencoded import CachedTarget, aesop_loss
from .perceptual import LAYERS_REAL, LAYERS_SYNTHETIC, VGG19Features, load_vgg19, perceptual_loss
from .pixel import l1_loss, low_pass_l1_loss, mse_loss, psnr_loss

LOSSES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "l1": l1_loss,
        "mse": mse_loss,
        "psnr": psnr_loss,
        "low_pass": low_pass_l1_loss,
        "aesop": aesop_loss,
        "artifact": artifact_loss,
        "perceptual": perceptual_loss,
        "relativistic": relativistic_generator_loss,
        "plain": plain_generator_loss,
    }
)

__all__ = [
    "LAYERS_REAL",
    "LAYERS_SYNTHETIC",
    "LOSSES",
    "CachedTarget",
    "CriticTerms",
    "VGG19Features",
    "aesop_loss",
    "artifact_loss",
    "artifact_map",
    "l1_loss",
    "load_vgg19",
    "low_pass_l1_loss",
    "mean_over_processes",
    "mse_loss",
    "perceptual_loss",
    "plain_critic_loss",
    "plain_generator_loss",
    "psnr_loss",
    "relativistic_critic_loss",
    "relativistic_generator_loss",
]
