"""Runs that go on from another run: where its checkpoint lies, what that run itself began with, how many samples it saw."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.backbones.latent import TINY, find_kind
from ..core.backbones.published import find_source
from ..core.lora import Adapter
from ..core.lora_files import read_adapter
from ..core.weights import MissingModelError, WeightsError, find_model, read_info
from .config import setting
from .state import checkpoints

LOGGER = logging.getLogger(__name__)
KEYS = ("diffusers", "diffusion_models", "checkpoints", "vae", "controlnet")  # ComfyUI's folders of parts of models


def find_checkpoint(name: str) -> Path:
    """A checkpoint by its path, or the newest of a run folder.

    Raises:
        MissingModelError: neither.
    """
    path = Path(name).expanduser()
    found = checkpoints(path) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise MissingModelError(
            f"start_from: expected a run folder with checkpoints or a checkpoint, found none at {path}; "
            "train stage 1 first, or start from its weight files with model.init"
        )
    return found[-1]


def first_init(checkpoint: Path) -> str:
    """`model.init` of the run that a checkpoint belongs to: the frozen weights beneath what was trained.

    Where that run went on from another one, the same of that one.

    Raises:
        MissingModelError: the run that it went on from is gone.
        WeightsError: no `config.json` beside the checkpoint, or not one of a one-step run.
    """
    config = config_beside(checkpoint)
    before, init = str(config["start_from"]), str(config["model"]["init"])
    return first_init(find_checkpoint(before)) if before else init


def config_beside(checkpoint: Path) -> dict[str, Any]:
    """The config of the one-step run that a checkpoint belongs to.

    Raises:
        WeightsError: no `config.json` beside the checkpoint, or not one of a one-step run.
    """
    path = checkpoint.parent / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = config["start_from"], config["model"]["init"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"start_from: expected {path} of a one-step run beside the checkpoint, got {error!r}; name that run's own folder"
        ) from error
    return config


def existing(name: str, folders: Sequence[str | Path]) -> Path:
    """The first of a path and of its places in the model folders that exists, be it a file or a folder; else the path."""
    places = [Path(name).expanduser(), *(Path(folder).expanduser() / name for folder in folders)]
    return next((place for place in places if place.exists()), places[0])


def named_source(
    kind: str,
    name: str,
    folders: Sequence[str | Path],
    *,
    version: str = "",
    network: str = "",
    autoencoder: str = "",
) -> str | Path | None:
    """What `model.source` of a latent backbone means: the `source` of `open_backbone` and `open_multi_step`.

    Args:
        kind: the backbone.
        name: `tiny`; a diffusers folder by path or by its name in a model folder; empty: single files in the model folders, else
            the diffusers folder of the published name.
        folders: model folders.
        version: of Stable Diffusion.
        network: `model.transformer` or `model.network`, in place of the published one.
        autoencoder: the same of the autoencoder.

    Raises:
        MissingModelError: an empty name, and neither is there.
    """
    if name:
        return name if name == TINY else existing(name, folders)
    chosen = {find_kind(kind).main: network, "vae": autoencoder}
    given = {part: file for part, file in chosen.items() if file}
    return find_source(kind, dict.fromkeys(KEYS, tuple(folders)), folders, version=version, chosen=given)


def named_adapter(name: str, folders: Sequence[str | Path], *, what: str = "an adapter", hint: str = "") -> Adapter:
    """An adapter by path, or by its name in the model folders: a file, or the folder of a released pair.

    Args:
        name: what the config says.
        folders: model folders.
        what: it is, for messages.
        hint: how to get it, for messages.

    Raises:
        MissingModelError, WeightsError: see `read_adapter`.
    """
    place = existing(name, folders)
    return read_adapter(place if place.is_dir() else find_model(name, folders, what=what, hint=hint))


def samples_before(init: str, folders: Sequence[str | Path] = ()) -> int:
    """How many samples the training saw that made the weights of `model.init`, by their header; 0 for any other file.

    0 also for a folder, in a model folder or not: that is a released pair, which does not say. A result of a one-step training
    from before headers counted samples has a step only, of a batch that it does not tell: 0 too, with a warning.

    Raises:
        MissingModelError, WeightsError: no such file, or damaged.
    """
    if not init or existing(init, folders).is_dir():
        return 0
    with setting("model.init"):
        path = find_model(init, folders)
    info = read_info(path) if path.suffix == ".safetensors" else {}
    if "samples" not in info and "step" in info and "conditioning" in info:  # the second is in one-step training's headers alone
        LOGGER.warning(
            "model.init: %s says nothing of how many samples its training saw in %s steps, so this one begins with the first; "
            "under the same run.seed it sees the same ones again; change run.seed",
            path,
            info["step"],
        )
    return int(info.get("samples", 0))
