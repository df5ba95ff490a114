"""The config of a run, beside its candidates: what samples fresh ones later, or scores them, asks here."""

import json
from pathlib import Path

from ...core.weights import write_atomic
from ..config import ConfigError, from_mapping, to_mapping
from ..sources import DataError
from .config import CandidatesConfig

CONFIG = "config.json"


def write_config(config: CandidatesConfig, folder: Path) -> Path:
    """Write a run's config into its folder."""
    text = json.dumps(to_mapping(config), indent=1) + "\n"
    return write_atomic(folder / CONFIG, lambda part: part.write_text(text, encoding="utf-8"))


def read_config(folder: Path) -> CandidatesConfig:
    """The config of a run folder.

    Raises:
        DataError: none, or a damaged one.
    """
    path = folder / CONFIG
    try:
        return from_mapping(CandidatesConfig, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(f"{path}: expected the config of the candidates, got {error}; run `alignsr candidates` again") from error
