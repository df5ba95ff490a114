"""Losses as plain functions of `(sr, gt, ...)`, logits or energies, to one value per sample; `LOSSES` names them."""

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
from .frequency import fdl_loss, frequency_distances, grid_loss, make_projections, relu_levels
from .lpips import LPIPSFeatures, load_lpips, lpips_loss
from .perceptual import LAYERS_REAL, LAYERS_SYNTHETIC, VGG19Features, load_vgg19, perceptual_loss
from .pixel import l1_loss, low_pass_l1_loss, mse_loss, psnr_loss, psnr_y_loss
from .preference import (
    ASASR_LOGIT_SCALE,
    DP2O_SR_LOGIT_SCALE,
    PairEnergies,
    preference_figures,
    preference_loss,
    preference_terms,
)
from .relativistic import R1_WEIGHT, approximate_r1, r1_noise, ragan_critic_loss, ragan_generator_loss

LOSSES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "l1": l1_loss,
        "mse": mse_loss,
        "psnr": psnr_loss,
        "psnr_y": psnr_y_loss,
        "low_pass": low_pass_l1_loss,
        "aesop": aesop_loss,
        "artifact": artifact_loss,
        "perceptual": perceptual_loss,
        "lpips": lpips_loss,
        "relativistic": relativistic_generator_loss,
        "plain": plain_generator_loss,
        "ragan": ragan_generator_loss,
        "fdl": fdl_loss,
        "grid": grid_loss,
        "preference": preference_loss,
    }
)

__all__ = [
    "ASASR_LOGIT_SCALE",
    "DP2O_SR_LOGIT_SCALE",
    "LAYERS_REAL",
    "LAYERS_SYNTHETIC",
    "LOSSES",
    "R1_WEIGHT",
    "CachedTarget",
    "CriticTerms",
    "LPIPSFeatures",
    "PairEnergies",
    "VGG19Features",
    "aesop_loss",
    "approximate_r1",
    "artifact_loss",
    "artifact_map",
    "fdl_loss",
    "frequency_distances",
    "grid_loss",
    "l1_loss",
    "load_lpips",
    "load_vgg19",
    "low_pass_l1_loss",
    "lpips_loss",
    "make_projections",
    "mean_over_processes",
    "mse_loss",
    "perceptual_loss",
    "plain_critic_loss",
    "plain_generator_loss",
    "preference_figures",
    "preference_loss",
    "preference_terms",
    "psnr_loss",
    "psnr_y_loss",
    "r1_noise",
    "ragan_critic_loss",
    "ragan_generator_loss",
    "relativistic_critic_loss",
    "relativistic_generator_loss",
    "relu_levels",
]
