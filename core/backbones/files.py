"""Where the parts of large models lie on disk and how they are read: diffusers folders, and single files as ComfyUI has them.

Nothing is downloaded here. A file that is missing is named together with the folders searched and the place it comes from.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..weights import WEIGHT_SUFFIXES, MissingModelError, WeightsError, check_state, load_shapes, load_state_dict

Module = TypeVar("Module", bound=nn.Module)

_WRAPPERS = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "vae.")
VAE_WRAPPERS = ("first_stage_model.", "vae.")
_SCALES = (".weight_scale", ".scale_weight")
_QUANTIZATION_NOTES = (".input_scale", ".scale_input", ".comfy_quant", "scaled_fp8")
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_STATISTICS = ("running_mean", "running_var")  # of batch normalisation: rounding them would shift every latent


@dataclass(frozen=True)
class Component:
    """One part of a model on disk.

    Attributes:
        name: `transformer`, `vae` or `text_encoder`; also the sub-folder of a diffusers folder.
        folder: sub-folder of ComfyUI's models folder, and key in the `folders` of `find_components`.
        file_names: names under which the part is published for ComfyUI, best first.
        source: where to get it.
        inside: another component whose single file may hold this one too, as checkpoints do; empty: none.
        stand_ins: files that do its work less exactly: taken by their name alone, and named where the part is missing.
        rounded: those of `file_names` whose weights are rounded to 8 bits: taken aloud, see `remarks`.
    """

    name: str
    folder: str
    file_names: tuple[str, ...]
    source: str
    inside: str = ""
    stand_ins: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for help pages: folder, file and source."""
        return f"{self.folder}/{self.file_names[0]} ({self.source})"


@dataclass(frozen=True)
class Part:
    """What was read of one component.

    Attributes:
        state: name -> CPU tensor.
        config: the diffusers configuration beside it, or None for single files, whose tensor shapes say everything.
        source: path, for error messages.
    """

    state: dict[str, Tensor]
    config: dict[str, Any] | None
    source: str


def find_components(
    components: Iterable[Component],
    folders: Mapping[str, Iterable[str | Path]],
    chosen: Mapping[str, str | Path] | None = None,
) -> dict[str, Path]:
    """Find the parts of a model.

    Args:
        components: what is needed.
        folders: ComfyUI's key (`diffusion_models`, `vae`, ...) -> folders to search, with their sub-folders.
        chosen: component name -> a path, or a file name inside its folders, instead of the published names.

    Returns:
        Component name -> existing file or folder.

    Raises:
        MissingModelError: one message that names every missing part, the folders searched and where to get it.
    """
    found: dict[str, Path] = {}
    missing: list[tuple[str, str, str]] = []  # the part, where it was looked for, where to get it
    for part in components:
        places = [Path(folder).expanduser() for folder in folders.get(part.folder, ())]
        wanted = (chosen or {}).get(part.name)
        names = part.file_names if wanted is None else (str(wanted),)
        path = next((path for name in names if (path := _locate(name, places)) is not None), None)
        if wanted is None and part.inside in found and has_part(found[part.inside], VAE_WRAPPERS):
            path = found[part.inside]
        if path is not None:
            found[part.name] = path
        else:
            searched = ", ".join(map(str, places)) or f"no folder (none is known for {part.folder})"
            other = next((path for name in part.stand_ins if (path := _locate(name, places)) is not None), None)
            instead = "" if other is None else f", or choose {other.name} by its name: it is there, smaller and less exact"
            missing.append((f"{part.name}: no {' or '.join(names)}", searched, part.source + instead))
    if missing:
        raise MissingModelError(
            f"model files: expected {len(found) + len(missing)} parts, {len(missing)} are missing. {_told(missing)}"
        )
    return found


def remarks(
    components: Iterable[Component], found: Mapping[str, Path], chosen: Mapping[str, str | Path] | None = None
) -> list[str]:
    """One line for each part of which `find_components` took a rounded file, since the exact one is not there; none if chosen."""
    return [
        f"{part.name}: {found[part.name].name} is used, rounded to 8 bits, since {part.file_names[0]} is not there"
        for part in components
        if part.name in found and part.name not in (chosen or {}) and found[part.name].name in part.rounded
    ]


def _told(missing: Sequence[tuple[str, str, str]]) -> str:
    """One sentence per missing part; folders that all parts share are named once."""
    shared = {searched for _, searched, _ in missing}
    if len(missing) > 1 and len(shared) == 1:
        return ". ".join(f"{what}; get it from {source}" for what, _, source in missing) + f". Searched: {shared.pop()}"
    return ". ".join(f"{what} in {searched}; get it from {source}" for what, searched, source in missing)


def _locate(name: str, places: Iterable[Path]) -> Path | None:
    direct = Path(name).expanduser()
    if direct.is_absolute() or direct.exists():
        return direct if direct.exists() else None
    for place in places:
        for candidate in (place / name, *(place / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES)):
            if candidate.exists():
                return candidate
        if (nested := next(iter(sorted(place.rglob(direct.name))), None)) is not None and "/" not in name:
            return nested
    return None


def components_of_folder(root: Path, components: Iterable[Component]) -> dict[str, Path]:
    """The parts of a diffusers folder: `<root>/<component>/config.json` with the weights beside it.

    Raises:
        MissingModelError: names every missing sub-folder.
    """
    paths = {part.name: root / part.name for part in components}
    missing = [str(path / "config.json") for path in paths.values() if not (path / "config.json").is_file()]
    if missing:
        raise MissingModelError(
            f"model folder: expected a diffusers folder with {', '.join(paths)}, {root} lacks {', '.join(missing)}; "
            f"get the whole folder again, from {next(iter(components)).source}"
        )
    return paths


def has_part(path: Path, wrappers: Sequence[str]) -> bool:
    """Whether a single file holds tensors under one of these prefixes."""
    return path.is_file() and any(name.startswith(tuple(wrappers)) for name in load_shapes(path))


def read_part(path: Path, *, shapes_only: bool = False, wrappers: Sequence[str] = _WRAPPERS) -> Part:
    """Read a component: a folder with `config.json` and one or several weight files, or a single weight file.

    Prefixes that checkpoints put before every name are removed, and 8-bit float weights with scales become plain floats.

    Args:
        path: file or folder.
        shapes_only: tensors on the meta device, without their values.
        wrappers: prefixes; of the first one that a file has, its tensors are taken and all others left.

    Raises:
        FileNotFoundError: nothing there.
        WeightsError: damaged files, a shard that is missing, or a quantisation that is not read here.
    """
    load = load_shapes if shapes_only else load_state_dict
    if not path.is_dir():
        return Part(_plain(load(path), str(path), wrappers), None, str(path))
    config: Any = _read_json(path / "config.json")
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        state.update(load(file))
    return Part(_plain(state, str(path), wrappers), cast(dict[str, Any], config), str(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: expected a JSON file, got {type(error).__name__}; get the folder again") from error


def _weight_files(folder: Path) -> list[Path]:
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        names = sorted(set(_read_json(index)["weight_map"].values()))
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            raise WeightsError(f"{folder}: expected the files of {index.name}, {', '.join(lacking)} missing; get them again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    preferred = [file for file in files if file.stem == "diffusion_pytorch_model"] or files[:1]
    if not preferred:
        raise WeightsError(f"{folder}: expected a .safetensors file beside config.json, found none; get the folder again")
    return preferred


def _plain(state: Mapping[str, Tensor], source: str, wrappers: Sequence[str]) -> dict[str, Tensor]:
    for wrapper in wrappers:
        if state and any(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items() if name.startswith(wrapper)}
            break
    if any(name.endswith(".weight_scale_2") for name in state):
        raise WeightsError(
            f"{source}: expected 16-bit, 32-bit or scaled 8-bit weights, got 4-bit blocks (nvfp4); "
            "choose the bf16 file, 4-bit weights are made from it with precision 4bit"
        )
    scales = {name[: -len(end)] + ".weight": state[name] for name in state for end in _SCALES if name.endswith(end)}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((*_SCALES, *_QUANTIZATION_NOTES)):
            continue
        if name in scales:
            tensor = (tensor.float() * scales[name].float()).to(torch.bfloat16)
        plain[name] = tensor.to(torch.bfloat16) if tensor.dtype in _FLOAT8 else tensor
    return plain


def build_module(make: Callable[[], Module], state: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> Module:
    """Build a module without memory, check the weights against it exactly, and give it those weights.

    Args:
        make: builds the module; called under the meta device.
        state: all its parameters and buffers.
        dtype: of floating-point weights; statistics of batch normalisation stay float32.
        source: for error messages.

    Returns:
        The module in eval mode, frozen, on the CPU.

    Raises:
        WeightsError: missing, unexpected and wrong-shaped entries, all at once.
    """
    with torch.device("meta"):
        module = make()
    check_state(state, module.state_dict(), source)
    module.load_state_dict({name: _cast(name, tensor, dtype) for name, tensor in state.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if name.endswith(_STATISTICS) else dtype)


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many consecutive `<prefix>0.`, `<prefix>1.`, ... a state dict has."""
    numbers = {int(head) for name in state if name.startswith(prefix) and (head := name[len(prefix) :].split(".")[0]).isdigit()}
    return len(numbers)
