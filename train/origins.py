"""What a run was trained from, by content: a path alone does not tell a file from another one that took its place."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.weights import (
    WEIGHT_SUFFIXES,
    MissingModelError,
    WeightsError,
    bundled_autoencoders,
    bundled_models,
    find_model,
    read_info,
)
from .start import existing, find_checkpoint, first_init

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
_CHUNK = 2**22
_INCIDENTAL = ("config", "name", "extra", "python_random", "numpy_random")  # of a header: says nothing of what the file does


def origins(config: Any, folders: Sequence[str | Path] = ()) -> dict[str, str]:
    """Key of the config -> digest of the weights it names, for those that lie in a file of the user's.

    What is not found is left out, since the recipe says so better; so is what comes with the package.

    Args:
        config: of any recipe.
        folders: model folders.
    """
    named = {key: _value(config, key) for key in KEYS}
    named |= {f"{key}.weights": _value(config, key, "weights") for key in NETWORKS if _value(config, key, "kind") == "network"}
    if _value(config, "model.backbone") == "pixel":
        named["model.source"] = _value(config, "model.source")
    found = {key: path for key, name in named.items() if name and (path := _find(name, folders)) is not None}
    if before := _value(config, "start_from"):  # in the place of what the run before began with, but for what lies beneath
        for key in ("model.init", "discriminator.init"):
            found.pop(key, None)
        try:
            found["start_from"] = find_checkpoint(before)
            init = first_init(found["start_from"])
        except (MissingModelError, WeightsError):
            init = ""
        if init and (path := _find(init, folders)) is not None:
            found["model.init"] = path
    return {key: fingerprint(path) for key, path in sorted(found.items())}


def learned_from(config: Any, folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The entry of `origins` in a weight file's header, for `session.finished_weights`; none where none is named."""
    found = origins(config, folders)
    return {ORIGINS: found} if found else {}


def require_same(folder: Path, there: Mapping[str, str] | None, now: Mapping[str, str]) -> None:
    """Compare what a run folder's checkpoint was trained from with what lies there now.

    Args:
        folder: the run's.
        there: of the checkpoint; None: of a version that did not say, which fits.
        now: see `origins`.

    Raises:
        WeightsError: names every key whose content is another.
    """
    keys = sorted(key for key in {*(there or {}), *now} if there is not None and there.get(key) != now.get(key))
    if keys:
        raise WeightsError(
            f"{', '.join(keys)}: expected the content that the run in {folder} began with, got another under the same name; "
            "put back what was there, or choose another run folder"
        )


def short(value: Any) -> str:
    """8 hexadecimal digits of a digest, or of a table of them, for the name of a folder."""
    return value[:8] if isinstance(value, str) else hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits that change with the weights in a file or, of a folder, in the weight files directly inside."""
    files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHT_SUFFIXES] if path.is_dir() else [path]
    parts = [_digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _digest(path: Path, changed_ns: int, size: int) -> str:
    """Of tensors with names and shapes, and of what the header says of their use; the same training writes the same again."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            info = {key: value for key, value in read_info(path).items() if key not in _INCIDENTAL}
            (length,) = struct.unpack("<Q", file.read(8))
            table = json.loads(file.read(length))
            table.pop("__metadata__", None)
            made.update(json.dumps([table, info], sort_keys=True).encode())
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


def _value(config: Any, key: str, *more: str) -> str:
    """What a config says under a dotted key, empty where its recipe has no such key or the table is off."""
    values: Any = config
    for part in (*key.split("."), *more):
        values = getattr(values, part, "")
    return values if isinstance(values, str) else ""


__all__ = ["ORIGINS", "fingerprint", "learned_from", "origins", "require_same", "short"]
