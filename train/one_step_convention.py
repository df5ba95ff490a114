"""What a one-step training must share with the run that it goes on from: weights of one convention mean nothing in another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..core.weights import WeightsError
from .conditioning import ConditioningConfig
from .config import from_mapping
from .one_step import LoraTableConfig, OneStepModelConfig, adapter_shape, latents_of
from .start import config_beside


def convention(config: Any, folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The settings by name, those left to their defaults included.

    Args:
        config: an `OneStepDistillConfig`.
        folders: model folders.
    """
    model = config.model
    rank, alpha, targets = adapter_shape(model, config.lora)
    return {
        "model.backbone": model.backbone,
        "model.latents": latents_of(model, config.lora, folders),
        "model.sigma": model.sigma,
        "model.step_length": model.step_length,
        "lora.rank": rank,
        "lora.alpha": alpha,
        "lora.targets": sorted(targets),
        "conditioning.kind": config.conditioning.kind,
    }


def _read(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """A table of another run's config; what this version has no key for says nothing of the convention."""
    names = {found.name for found in fields(cls)}
    return from_mapping(cls, {key: value for key, value in values.items() if key in names}, where)


def check_convention(config: Any, checkpoint: Path, init: str, folders: Sequence[str | Path] = ()) -> None:
    """Compare a config with that of the run whose checkpoint it goes on from.

    Args:
        config: of the new run.
        checkpoint: with `config.json` beside it.
        init: what both stand on, see `start.first_init`.
        folders: model folders.

    Raises:
        WeightsError: one message that names every setting that differs, with both values.
        ConfigError: the other run's config says under one of these settings what this version cannot read.

    Source:
        strsr.md 5.2: weights of one latent convention make noise in another, not an error.
    """
    run = checkpoint.parent
    told = config_beside(checkpoint)
    where = run / "config.json"
    before = replace(
        config,
        model=_read(OneStepModelConfig, told["model"], f"{where}: model."),
        lora=_read(LoraTableConfig, told.get("lora", {}), f"{where}: lora."),
        conditioning=_read(ConditioningConfig, told.get("conditioning", {}), f"{where}: conditioning."),
    )
    there, here = (convention(replace(one, model=replace(one.model, init=init)), folders) for one in (before, config))
    texts = {key: f"{key} is {json.dumps(there[key])} there and {json.dumps(here[key])} here" for key in here}
    differing = [text for key, text in texts.items() if there[key] != here[key]]
    if differing:
        raise WeightsError(
            f"start_from: expected the settings of the run in {run}, got others: {'; '.join(differing)}; its weights mean "
            "something only under its own settings, so take them over, or train a stage 1 under yours"
        )
