"""What a one-step training must share with the run that it goes on from: weights of one convention mean nothing in another."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.weights import WeightsError
from .config import from_mapping
from .one_step import adapter_shape, latents_of
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


def check_convention(config: Any, checkpoint: Path, init: str, folders: Sequence[str | Path] = ()) -> None:
    """Compare a config with that of the run whose checkpoint it goes on from.

    Args:
        config: of the new run.
        checkpoint: with `config.json` beside it.
        init: what both stand on, see `start.first_init`.
        folders: model folders.

    Raises:
        WeightsError: one message that names every setting that differs, with both values.
        ConfigError: the other run's config has keys that this version does not know.

    Source:
        strsr.md 5.2: weights of one latent convention make noise in another, not an error.
    """
    run = checkpoint.parent
    before = from_mapping(type(config), config_beside(checkpoint), f"{run / 'config.json'}: ")
    there, here = (convention(replace(one, model=replace(one.model, init=init)), folders) for one in (before, config))
    told = {key: f"{key} is {json.dumps(there[key])} there and {json.dumps(here[key])} here" for key in here}
    differing = [text for key, text in told.items() if there[key] != here[key]]
    if differing:
        raise WeightsError(
            f"start_from: expected the settings of the run in {run}, got others: {'; '.join(differing)}; its weights mean "
            "something only under its own settings, so take them over, or train a stage 1 under yours"
        )
