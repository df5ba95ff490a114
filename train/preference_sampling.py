"""The model that preferences train, and the one that candidates were sampled with: are they the same, and what it makes now."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.backbones.base import BackboneSpec
from .candidates.config import CandidatesConfig
from .candidates.model import drawer
from .candidates.record import read_config
from .candidates.sample import seeds_of
from .config import ConfigError
from .guard import group_of
from .loop import Loop
from .multi_step import Autocast, MultiStepModelConfig
from .policy import Policy
from .preferences import PreferenceData
from .prompts import Tell
from .validation import strip

SAME_FILES = ("source", "network", "autoencoder", "control", "adapter")


def check_candidates(
    model: MultiStepModelConfig, data: PreferenceData, *, any_model: bool = False, folders: Sequence[str | Path] = ()
) -> CandidatesConfig:
    """What the candidates were made with, which must be the model that is trained.

    Args:
        model: the model that is trained.
        data: the pairs.
        any_model: candidates of other weights or another guidance are meant; kind and scale must fit nevertheless.
        folders: model folders: a name and a path of the same file are the same.

    Raises:
        ConfigError: another kind of model, another scale, other weights, or another guidance that is an input.
        DataError: no config beside the candidates.

    Source:
        dp2o-sr.md 2.7: candidates are the reference's own; 5.14: guidance is the same in sampling and training.
    """
    settings = read_config(data.store.folder)
    for key, there, here in (("backbone", settings.model.backbone, model.backbone), ("scale", data.scale, model.scale)):
        if there != here:
            raise _another(key, there, here, data, "")
    if any_model or settings.data.candidates:  # made elsewhere: nothing is known of their model
        return settings
    for key in SAME_FILES:
        there, here = str(getattr(settings.model, key)), str(getattr(model, key))
        if there != here and _place(there, folders) != _place(here, folders):
            raise _another(key, there, here, data, OVERRIDE)
    there, here = settings.sampling.guidance, model.guidance
    if there >= 0 and here >= 0 and there != here:
        raise _another("guidance", there, here, data, OVERRIDE)
    return settings


OVERRIDE = ", or set data.any_model = true if you mean it"


def _another(key: str, there: object, here: object, data: PreferenceData, hint: str) -> ConfigError:
    there, here = ("none" if value == "" else value for value in (there, here))
    return ConfigError(
        f"model.{key}: expected {there}, with which the candidates in {data.store.folder} were sampled, got {here}; "
        f"sample candidates with the model that is to be trained{hint}"
    )


def _place(name: str, folders: Sequence[str | Path]) -> str:
    """Where a file or folder lies that a config names; the name where it is none."""
    places = [Path(name).expanduser(), *(Path(folder).expanduser() / name for folder in folders)] if name else []
    return next((str(place.resolve()) for place in places if place.exists()), name)


def tell_as_sampled(policy: Policy, model: MultiStepModelConfig, settings: CandidatesConfig) -> None:
    """Tell policy and reference what the candidates' model was told: guidance that is an input, a control branch's weight."""
    guidance = settings.sampling.guidance if model.guidance < 0 else model.guidance
    weight = settings.sampling.control_scale if settings.model.control and model.control else 1.0
    policy.adjust(guidance=None if guidance < 0 else guidance, control_scale=weight)


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
    """The policy for sampling, and settings for `drawer` without the control branch's weight, which `tell_as_sampled` told it."""
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
