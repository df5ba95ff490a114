"""One file per recipe, each a plain function to read from top to bottom; `RECIPES` is what `recipe` in a TOML file may say."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import autoencoder, fidelity, flow_sft, one_step_distill, perceptual_dpo, perceptual_gan, sobolev_dpo


class Recipe(NamedTuple):
    """A recipe's config class and its function `train(config, folder, hooks, resume, model_folders)`."""

    config: type[Any]
    train: Callable[..., Any]


RECIPES: dict[str, Recipe] = {
    "fidelity": Recipe(fidelity.FidelityConfig, fidelity.train),
    "autoencoder": Recipe(autoencoder.AutoencoderConfig, autoencoder.train),
    "perceptual_gan": Recipe(perceptual_gan.PerceptualGanConfig, perceptual_gan.train),
    "flow_sft": Recipe(flow_sft.FlowSftConfig, flow_sft.train),
    "one_step_distill": Recipe(one_step_distill.OneStepDistillConfig, one_step_distill.train),
    "sobolev_dpo": Recipe(sobolev_dpo.SobolevDPOConfig, sobolev_dpo.train),
    "perceptual_dpo": Recipe(perceptual_dpo.PerceptualDpoConfig, perceptual_dpo.train),
}


def build_config(values: Mapping[str, Any]) -> tuple[Recipe, Any]:
    """The recipe that `recipe` names, and its config from all other values.

    Raises:
        ConfigError: no such recipe, an unknown key or a wrong value; the message names the key.
    """
    from ...core.checks import did_you_mean
    from ..config import ConfigError, from_mapping

    kind = values.get("recipe")
    if kind == "candidates":
        raise ConfigError(
            "recipe: expected one that trains, got 'candidates'; `alignsr candidates` runs it, as does Sample Candidates"
        )
    if kind == "dp2o_rounds":
        raise ConfigError("recipe: expected one that trains once, got 'dp2o_rounds'; `alignsr dp2o` runs it")
    if kind not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {kind!r}; {did_you_mean(str(kind), list(RECIPES))}")
    return RECIPES[kind], from_mapping(RECIPES[kind].config, {key: value for key, value in values.items() if key != "recipe"})


def load_config(name: str | Path, sets: tuple[str, ...] | list[str] = ()) -> tuple[Recipe, Any]:
    """Read a TOML file (or a published config by name), apply `--set` items and build the recipe's config.

    Raises:
        ConfigError: see `train.config`.
    """
    from ..config import apply_sets, find_config, read_toml

    return build_config(apply_sets(read_toml(find_config(name)), sets))
