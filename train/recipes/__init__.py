"""One file per recipe, each a plain function to read from top to bottom; `RECIPES` is what `recipe` in a TOML file may say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import fidelity


class Recipe(NamedTuple):
    """A recipe's config class and its function `train(config, folder, hooks, resume)`."""

    config: type[Any]
    train: Callable[..., Any]


RECIPES: dict[str, Recipe] = {
    "fidelity": Recipe(fidelity.FidelityConfig, fidelity.train),
}


def load_config(name: str | Path, sets: tuple[str, ...] | list[str] = ()) -> tuple[Recipe, Any]:
    """Read a TOML file (or a published config by name), apply `--set` items and build the recipe's config.

    Raises:
        ConfigError: see `train.config`.
    """
    from ...core.checks import did_you_mean
    from ..config import ConfigError, apply_sets, find_config, from_mapping, read_toml

    values = apply_sets(read_toml(find_config(name)), sets)
    kind = values.pop("recipe", None)
    if kind not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {kind!r}; {did_you_mean(str(kind), list(RECIPES))}")
    recipe = RECIPES[kind]
    return recipe, from_mapping(recipe.config, values)
