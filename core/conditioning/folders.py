"""Folders of the transformers and diffusers libraries: where they are looked for and what must be in them."""

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..compat import import_third_party
from ..weights import MissingModelError, WeightsError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = (("tokenizer_config.json",), ("tokenizer.json", "vocab.json"))


@dataclass(frozen=True)
class FolderSpec:
    """What a model folder is called and what it holds.

    Attributes:
        what: for messages.
        names: names of the folder, best first.
        files: needed files, each as alternatives, relative to the folder.
        source: where to get it.
        download: what `alignsr models download` calls it; empty: it is fetched by hand.
        key: which model folder it then lies in.
    """

    what: str
    names: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    source: str
    download: str = ""
    key: str = "diffusers"

    @property
    def advice(self) -> str:
        """How to get it, for the end of a message."""
        command = f"`alignsr models download {self.download}`, which puts it into {self.key}/{self.names[0]}, or "
        return f"get it {f'with {command}' if self.download else ''}from {self.source}"


def find_folder(spec: FolderSpec, name: str | Path | None = None, folders: Iterable[str | Path] = ()) -> Path:
    """Find a complete model folder.

    Args:
        spec: what is needed.
        name: a path, or the folder's name in one of `folders`, instead of the published names.
        folders: places to search.

    Returns:
        The folder.

    Raises:
        MissingModelError: no such folder, or an incomplete one; names every missing file, the places searched and the source.
    """
    places = [Path(place).expanduser() for place in folders]
    names = spec.names if name is None else (str(name),)
    candidates = [Path(name).expanduser()] if name is not None else []
    candidates += [place / one for place in places for one in names]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        searched = ", ".join(map(str, places)) or "no folder"
        alias = (
            f"; {name!r} is what the download is called, the folder's name is {spec.names[0]}" if name == spec.download else ""
        )
        raise MissingModelError(
            f"{spec.what}: expected a folder {' or '.join(names)} with {_listed(spec.files)}, searched {searched}; "
            f"{spec.advice}{alias}"
        )
    missing = [f"{found / ' or '.join(options)}" for options in spec.files if not any((found / one).is_file() for one in options)]
    missing += [str(found / shard) for options in spec.files for shard in _missing_shards(found, options)]
    if missing:
        raise MissingModelError(f"{spec.what}: {found} lacks {', '.join(missing)}; get the whole folder again: {spec.advice}")
    return found


def _listed(files: Iterable[tuple[str, ...]]) -> str:
    return ", ".join(" or ".join(options) for options in files)


def _missing_shards(folder: Path, options: tuple[str, ...]) -> list[str]:
    """Shards that an index names and the folder lacks."""
    present = [folder / one for one in options if (folder / one).is_file()]
    if not present or not present[0].name.endswith(".index.json"):
        return []
    try:
        index: Any = json.loads(present[0].read_text(encoding="utf-8"))
        shards = sorted(set(cast(dict[str, str], index["weight_map"]).values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{present[0]}: expected an index of weight files, got {error!r}; get the file again") from error
    beside = present[0].parent
    return [str((beside / shard).relative_to(folder)) for shard in shards if not (beside / shard).is_file()]


def attention(device: str | torch.device, dtype: torch.dtype) -> str:
    """Which attention transformers should use: flash-attention 2 where the package, a GPU and 16 bits are there, else SDPA."""
    installed = importlib.util.find_spec("flash_attn") is not None
    fits = torch.device(device).type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    return "flash_attention_2" if installed and fits else "sdpa"


def load_transformer(class_name: str, folder: Path, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A model of transformers from its folder: frozen, in eval mode, on the CPU, complete.

    Args:
        class_name: for example `Qwen3VLForConditionalGeneration`.
        folder: has config.json and weights.
        dtype: of the weights.
        device: where it will work; decides the attention.

    Raises:
        WeightsError: damaged files, or weights that leave a part of the model random.
    """
    kind: Any = getattr(import_third_party("transformers"), class_name)
    try:
        model, info = kind.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention(device, dtype), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many kinds for damaged folders; all mean the same here
        raise WeightsError(f"{folder}: expected a {class_name}, got {type(error).__name__} ({error}); get it again") from error
    lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lacking:
        raise WeightsError(
            f"{folder}: expected all weights of a {class_name}, {len(lacking)} are missing or of another shape: "
            f"{', '.join(lacking[:8])}; get the whole folder again"
        )
    return cast(nn.Module, model).requires_grad_(False).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        WeightsError: damaged files.
    """
    try:
        return import_third_party("transformers").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise WeightsError(f"{folder}: expected a tokenizer, got {type(error).__name__} ({error}); get it again") from error
