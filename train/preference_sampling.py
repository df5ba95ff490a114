"""The model that preferences train, and the one that candidates were sampled with: are they the same, and what it makes now."""

from dataclasses import replace
from typing import Any

import torch

from ..core.backbones.base import Adjustable, BackboneSpec
from .candidates.config import CandidatesConfig
from .candidates.model import drawer
from .candidates.record import read_config
from .candidates.sample import seeds_of
from .config import ConfigError
from .guard import group_of
from .loop import Loop
from .multi_step import Autocast
from .preferences import PreferenceData
from .prompts import Tell
from .validation import strip


def check_candidates(backbone: str, scale: int, data: PreferenceData) -> CandidatesConfig:
    """What the candidates were made with, which must be the model that is trained.

    Args:
        backbone: kind of the model that is trained.
        scale: its upscaling factor.
        data: the pairs.

    Raises:
        ConfigError: another kind of model, or another scale.
        DataError: no config beside the candidates.
    """
    settings = read_config(data.store.folder)
    for key, there, here in (("backbone", settings.model.backbone, backbone), ("scale", data.scale, scale)):
        if there != here:
            raise ConfigError(
                f"model.{key}: expected {there}, with which the candidates in {data.store.folder} were sampled, got {here}; "
                "sample candidates with the model that is to be trained"
            )
    return settings


def check_latents(spec: BackboneSpec, data: PreferenceData) -> None:
    """Raise ConfigError unless the candidates' latents are of this model's space."""
    if not data.are_latents:
        return
    found = data.batch(0, 1).chosen.shape[1]
    if found != spec.latent_channels:
        raise ConfigError(
            f"data.pairs: expected latents of {spec.latent_channels} channels as {spec.name} has, got {found}; "
            "sample candidates with the model that is to be trained"
        )


def as_sampled(backbone: Any, settings: CandidatesConfig, loop: Loop) -> tuple[Autocast, CandidatesConfig]:
    """The policy told what the candidates' model was told: guidance that is an input, and the weight of its control branch.

    Returns:
        The policy, and settings for `drawer` from which that weight is gone.
    """
    if isinstance(backbone, Adjustable):
        spec: BackboneSpec = backbone.spec  # pyright: ignore[reportAttributeAccessIssue]
        own = 1.0 if spec.sampling is None else spec.sampling.guidance
        guidance = settings.sampling.guidance
        weight = settings.sampling.control_scale if settings.model.control else 1.0
        backbone = backbone.adjusted(guidance=own if guidance < 0 else guidance, control_scale=weight)
    return Autocast(backbone, loop.autocast), replace(settings, sampling=replace(settings.sampling, control_scale=1.0))


def before_and_after(sampled: Any, data: PreferenceData, settings: CandidatesConfig, tell: Tell, device: torch.device) -> Any:
    """Input, the reference's candidate 0, the policy's from the same noise, ground truth: of a picture held out, if there is one.

    Source:
        dp2o-sr.md 4.9 D10: with the same seed the layout is kept and local texture changes.
    """
    group = group_of(data.store, data.held_out[0] if data.held_out else 0)
    with torch.no_grad():
        draw = drawer(settings, sampled, lambda text: tell([text]), device)
        after, _ = draw(group, seeds_of(settings, group.index)[:1])
    before = data.store.picture(data.store.entry(group.index), "00.png")
    images = {"input": group.lq, "before": before, "after": after[0].cpu() * 255, "ground truth": group.gt}
    return strip({name: image[None].float() / 255 for name, image in images.items()})
