"""Safetensors in and out, exact key reports, and where models are looked for: the core's only reader and writer of weights."""

import difflib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]  # its path type is generic
from torch import Tensor, nn

ASSETS = Path(__file__).parent / "assets"
METADATA_KEY = "alignsr"  # one JSON object in the safetensors header: what the file is and how to build its module
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


_UMASK = os.umask(0)  # it can only be read by setting it, so once, while importing and not while a server's threads write files
os.umask(_UMASK)


class WeightsError(ValueError):
    """A weight file that cannot be used: damaged, unsafe, or of another network."""


class MissingModelError(FileNotFoundError):
    """A model that is not on disk; the message names the folders searched and what to do."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it: readers see the old file or the whole new one.

    Args:
        path: the final path; missing parent folders are made.
        write: called with the temporary path.

    Returns:
        `path`.

    Raises:
        OSError: folder not writable or disk full; nothing of the new file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes private files; results should carry the user's usual permissions
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def save_weights(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a safetensors file atomically, with `info` as one JSON object in its header.

    Args:
        path: must end in .safetensors.
        tensors: name -> tensor, any dtype; copied to the CPU, made contiguous and unshared.
        info: JSON-able facts, e.g. {"backbone": "network", "architecture": "lite", "options": {...}}.
        notes: further entries of the header, for other programs.

    Raises:
        ValueError: other suffix.
        OSError: not writable or disk full.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"path: expected a name ending in .safetensors, got {path.name}; weights are written as safetensors only"
        )
    cpu = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **(notes or {})} | (
        {METADATA_KEY: json.dumps(dict(info), sort_keys=True)} if info is not None else {}
    )

    def write(temporary: Path) -> None:
        try:
            save_file(cpu, temporary, metadata)
        except SafetensorError as error:  # the library reports a full disk as its own error
            raise OSError(f"path: could not write {path}: {error}; check free space and permissions") from error

    return write_atomic(path, write)


def read_info(path: str | Path) -> dict[str, Any]:
    """The JSON object that `save_weights` put into the header; empty for files of other programs.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged header, or one whose entry of ours is not a JSON object.
    """
    metadata = read_notes(path)
    if METADATA_KEY not in metadata:
        return {}
    try:
        info = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError:
        info = None
    if not isinstance(info, dict):
        raise WeightsError(f"{path}: expected a JSON object under {METADATA_KEY!r} in the header; export the file again")
    return cast(dict[str, Any], info)


def read_notes(path: str | Path) -> dict[str, str]:
    """The entries of a safetensors header, other programs' too.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged header.
    """
    with _open(Path(path)) as file:
        return file.metadata() or {}


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file at {path}, found none; check the path")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise WeightsError(
            f"{path}: expected a safetensors file, got {size} bytes that are not one ({error}); "
            "the file is damaged or incomplete, get it again"
        ) from error


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a pickle file under `weights_only=True`.

    The wrappers `params_ema`, `params` and `state_dict` are opened in this order and a leading `module.` is stripped, as the
    BasicSR family writes them.

    Returns:
        name -> CPU tensor.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged file, a pickle that would run code, or no tensors in it.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _open(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file at {path}, found none; check the path")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or unsafe pickles; all mean the same here
        with open(path, "rb") as file:
            if not file.read(4).startswith((b"PK", b"\x80")):  # torch writes zip archives, and wrote bare pickles
                raise WeightsError(
                    f"{path}: expected a weight file ({', '.join(WEIGHT_SUFFIXES)}), got a file that is none; name a model's file"
                ) from error
        raise WeightsError(
            f"{path}: expected a checkpoint of plain tensors, got something that weights_only=True refuses "
            f"({type(error).__name__}); the file is damaged or would run code when loaded, get a safetensors version"
        ) from error
    for wrapper in ("params_ema", "params", "state_dict"):
        if isinstance(loaded, dict) and isinstance(cast(dict[str, Any], loaded).get(wrapper), dict):
            loaded = cast(dict[str, Any], loaded)[wrapper]
            break
    pairs = cast(dict[Any, Any], loaded) if isinstance(loaded, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in pairs.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path}: expected a state dict, got no named tensors; this is not a weight file")
    return state


def load_shapes(path: str | Path) -> dict[str, Tensor]:
    """As `load_state_dict`, without the values: tensors on the meta device. Of safetensors only the header is read.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged or incomplete.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {name: tensor.to("meta") for name, tensor in load_state_dict(path).items()}
    with _open(path) as file:
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        return {
            name: torch.empty(one.get_shape(), dtype=_dtype(one.get_dtype(), path), device="meta") for name, one in pieces.items()
        }


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise WeightsError(f"{path}: expected tensors of {', '.join(_DTYPES)}, got {name}; choose another file of the model")
    return _DTYPES[name]


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f", ... ({len(ordered) - 8} more)" if len(ordered) > 8 else "")


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes and report everything that differs at once, the first 8 of each kind.

    Raises:
        WeightsError: missing, unexpected or wrong-shaped entries.
    """
    missing = expected.keys() - state.keys()
    extra = state.keys() - expected.keys()
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if missing or extra or wrong:
        parts = [
            f"{label}: {_first(names)}"
            for label, names in (("missing", missing), ("unexpected", extra), ("wrong shape", wrong))
            if names
        ]
        raise WeightsError(f"{source}: the weights do not fit this network; {'; '.join(parts)}; choose the file made for it")


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load strictly after `check_state`, so a mismatch changes nothing and is reported whole."""
    check_state(state, module.state_dict(), source)
    module.load_state_dict(dict(state), strict=True)


def single_pass_models() -> list[str]:
    """The bundled models that restore in one pass; the others are sampled from noise."""
    return [name for name, path in bundled_models().items() if not read_info(path).get("options", {}).get("sampling_steps")]


def bundled_models() -> dict[str, Path]:
    """name -> path of the models that ship with the package."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.safetensors"))}


def bundled_autoencoders() -> dict[str, Path]:
    """name -> path of the auto-encoders that ship with the package: tools of training, no super-resolution models."""
    return {path.stem: path for path in sorted((ASSETS / "autoencoders").glob("*.safetensors"))}


def find_model(name: str | Path, folders: Iterable[str | Path] = (), *, what: str = "", hint: str = "") -> Path:
    """Find a weight file: a bundled name, an existing path, or a name (with or without suffix) in one of `folders`.

    A leading `models/`, as in the published configs, stands for any of the folders where no such path exists.

    Args:
        name: what to look for.
        folders: model folders.
        what: the file is, for messages: one of a kind that no bundled model is, so that these are not offered in its place.
        hint: how to get it, for messages.

    Raises:
        MissingModelError: names what was looked for, where, and what would have been found, the most similar name first.
    """
    models, autoencoders = bundled_models(), bundled_autoencoders()
    bundled = models | autoencoders
    if str(name) in bundled:  # before paths: a stray file of that name in the working folder must not shadow it
        return bundled[str(name)]
    direct = Path(name).expanduser()
    if direct.is_file():
        return direct
    searched = [Path(folder).expanduser() for folder in folders]
    inside = [direct, Path(*direct.parts[1:])] if direct.parts[:1] == ("models",) else [direct]
    for folder, file in product(searched, inside):
        for candidate in (folder / file, *(folder / f"{file}{suffix}" for suffix in WEIGHT_SUFFIXES)):
            if candidate.is_file():
                return candidate
    if direct.is_dir():
        raise MissingModelError(f"model: expected a weight file, got the folder {direct}; pass the path of a file in it")
    near = _similar_model(str(name), [*searched, direct.parent] if direct.parent != Path() else searched, {} if what else bundled)
    advice = (f"did you mean {near!r}? Otherwise " if near else "") + (f"{hint}, or " if hint else "")
    places = ", ".join(map(str, searched)) or "no model folder"
    ours = f"a bundled model ({', '.join(models) or 'none'}; auto-encoder: {', '.join(autoencoders) or 'none'})"
    wanted = f"{what}, a path or a file in {places}" if what else f"a file path, {ours} or a file in {places}"
    raise MissingModelError(
        f"model: expected {wanted}, found no {str(name)!r}; {advice}put the weight file there or pass its path"
    )


def _similar_model(name: str, folders: Iterable[Path], bundled: Iterable[str]) -> str:
    """The most similar name of a model that could be loaded, or an empty string; suffixes and case do not count."""

    def key(text: str) -> str:
        return next((text.removesuffix(suffix) for suffix in WEIGHT_SUFFIXES if text.endswith(suffix)), text).lower()

    known = {key(model): model for model in bundled}
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix in WEIGHT_SUFFIXES:
                inside = path.relative_to(folder).as_posix()
                known.setdefault(key(inside), inside)
                known.setdefault(key(str(path)), str(path))
    near = difflib.get_close_matches(key(name), list(known), n=1, cutoff=0.6)
    return known[near[0]] if near else ""
