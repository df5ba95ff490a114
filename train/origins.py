"""What a run was trained from, by content: a path alone does not tell a file from another one that took its place."""

import hashlib
import json
import logging
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.lora_files import DIFFUSERS_NOTE, PEFT_NOTE
from ..core.weights import (
    WEIGHT_SUFFIXES,
    MissingModelError,
    WeightsError,
    bundled_autoencoders,
    bundled_models,
    find_model,
    read_info,
    read_notes,
)
from .config import to_mapping
from .start import existing, find_checkpoint, first_init
from .state import checkpoints

LOGGER = logging.getLogger(__name__)
ORIGINS = "origins"  # where checkpoints and weight files say it
# What trainings write and trainings start from. The base models, which nobody writes anew, are large and left out.
KEYS = (
    "model.init",
    "model.init_decoder",
    "model.adapter",
    "model.control",
    "adversary.adapter",
    "discriminator.init",
    "conditioning.init",
    "losses.aesop.autoencoder",
)
NETWORKS = ("discriminator.features", "losses.fdl.features")  # their weights, where ours are looked through
NO_FILES = ("tiny", "random", "auto")
_CHUNK, _LONG = 2**22, 2**30
# Of a header: says nothing of what the file does. Older versions wrote no origins: the same weights come with and without.
_INCIDENTAL = ("config", "name", "licence", "step", "extra", "python_random", "numpy_random", ORIGINS)


def origins(config: Any, folders: Sequence[str | Path] = ()) -> dict[str, str]:
    """Key of the config -> digest of the weights it names, for those that lie in a file of the user's.

    What is not found is left out, since the recipe says so better; so is what comes with the package.

    Args:
        config: of any recipe.
        folders: model folders.
    """
    found = origin_files(to_mapping(config), folders)
    return {key: fingerprint(path) for key, path in sorted(found.items())}


def origin_files(values: Mapping[str, Any], folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Key -> file, or folder of files, of what `origins` knows by content.

    Args:
        values: the config's plain values; what they leave out names nothing.
        folders: model folders.
    """
    named = {key: value_of(values, key) for key in KEYS}
    named |= {
        f"{key}.weights": value_of(values, f"{key}.weights") for key in NETWORKS if value_of(values, f"{key}.kind") == "network"
    }
    if value_of(values, "model.backbone") == "pixel":
        named["model.source"] = value_of(values, "model.source")
    found = {key: path for key, name in named.items() if name and (path := _find(name, folders)) is not None}
    if before := value_of(values, "start_from"):  # in the place of what the run before began with, but for what lies beneath
        for key in ("model.init", "discriminator.init"):
            found.pop(key, None)
        try:
            found["start_from"] = find_checkpoint(before)
            init = first_init(found["start_from"])
        except (MissingModelError, WeightsError):
            init = ""
        if init and (path := _find(init, folders)) is not None:
            found["model.init"] = path
    return found


def learned_from(config: Any, folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The entry of `origins` in a weight file's header, for `session.finished_weights`; none where none is named."""
    found = origins(config, folders)
    return {ORIGINS: found} if found else {}


def differing(there: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """The keys under which other content lies now than a run began with.

    Args:
        there: what the run's files say; None: of a version that did not say, which fits. So does a key that it did not know.
        now: see `origins`. What is gone since is no other content: a finished run needs it no more, a recipe asks for it itself.
    """
    return sorted(key for key in now if there is not None and there.get(key, now[key]) != now[key])


def recorded(folder: Path, name: str) -> Mapping[str, str] | None:
    """What a run began with, by its weights or its newest checkpoint; None where neither is there or says it.

    Args:
        folder: of the run.
        name: of its weights, without suffix.
    """
    for file in (folder / f"{name}.safetensors", *checkpoints(folder)[-1:]):
        try:
            info = read_info(file)
        except (FileNotFoundError, WeightsError):  # the first: not finished; the second is said where the file is used
            continue
        found = info.get(ORIGINS, info.get("extra", {}).get(ORIGINS))
        if found is not None:
            return found
    return None


def require_same(folder: Path, there: Mapping[str, str] | None, now: Mapping[str, str], start_from: str = "") -> None:
    """Compare what a run folder's checkpoint was trained from with what lies there now.

    Args:
        folder: the run's.
        there: of the checkpoint, see `differing`.
        now: see `origins`.
        start_from: of the config. Where that run has gone on since, the checkpoint that this one began with may still be there.

    Raises:
        WeightsError: names every key whose content is another.
    """
    keys = differing(there, now)
    if there is not None and "start_from" in keys:
        kept = map(fingerprint, checkpoints(Path(start_from).expanduser()))
        keys = [key for key in keys if key != "start_from" or there[key] not in kept]
    if keys:
        raise WeightsError(
            f"{', '.join(keys)}: expected the content that the run in {folder} began with, got another under the same name; "
            "put back what was there, or choose another run folder"
        )


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits that change with the weights in a file or, of a folder, in the weight files directly inside."""
    files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHT_SUFFIXES] if path.is_dir() else [path]
    parts = [_digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    note = (path if path.is_dir() else path.parent) / PEFT_NOTE  # has the alpha of PEFT's adapters
    if note.is_file():
        parts.append(hashlib.sha256(note.read_bytes()).hexdigest())
    return parts[0] if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _digest(path: Path, changed_ns: int, size: int) -> str:
    """Of tensors with names and shapes, and of what the header says of their use; the same training writes the same again."""
    made = hashlib.sha256()
    if size > _LONG:
        LOGGER.info("%s: reading %.1f GiB to tell whether it is what a run began with", path, size / 2**30)
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            info = {key: value for key, value in read_info(path).items() if key not in _INCIDENTAL}
            alpha = [note for note in (read_notes(path).get(DIFFUSERS_NOTE),) if note]
            (length,) = struct.unpack("<Q", file.read(8))
            table = json.loads(file.read(length))
            table.pop("__metadata__", None)
            made.update(json.dumps([table, info, *alpha], sort_keys=True).encode())
        while chunk := file.read(_CHUNK):
            made.update(chunk)
    return made.hexdigest()[:16]


def _find(name: str, folders: Sequence[str | Path]) -> Path | None:
    if name in (*NO_FILES, *bundled_models(), *bundled_autoencoders()):
        return None
    try:
        place = existing(name, folders)
        return place if place.is_dir() else find_model(name, folders)
    except MissingModelError:
        return None


def value_of(values: Mapping[str, Any], key: str) -> str:
    """What a config's plain values say under a dotted key; empty where its recipe has no such key or the table is off."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


__all__ = [
    "ORIGINS",
    "differing",
    "fingerprint",
    "learned_from",
    "origin_files",
    "origins",
    "recorded",
    "require_same",
    "value_of",
]
