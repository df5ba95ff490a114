"""What every host offers to nodes; see host.py."""

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from ..core.memory import is_out_of_memory
from ..core.weights import WEIGHT_SUFFIXES, bundled_autoencoders, bundled_models, find_model

MODEL_FOLDER_KEYS = ("alignsr", "upscale_models")
PART_FOLDER_KEYS = ("diffusion_models", "vae", "text_encoders", "LLM", "diffusers", "loras")  # parts of large models
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif")


class Interrupted(Exception):  # noqa: N818  # it reports a wish of the user, not an error; ComfyUI's twin is no Error either
    """The user cancelled. Inside ComfyUI its own InterruptProcessingException is raised instead; see `Host.interrupt_types`."""


class Bar(Protocol):
    """Progress of one node over its whole job."""

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        """Say that `value` of `total` units are done, show a picture if given, and raise if the user cancelled."""
        ...


@dataclass(frozen=True)
class SaveTarget:
    """Where the next files of a filename prefix go: `folder / f"{stem}_{counter:05}_.png"`."""

    folder: Path
    stem: str
    counter: int
    subfolder: str

    def path(self, index: int = 0, suffix: str = ".png") -> Path:
        """The `index`-th free path; `%batch_num%` in the prefix becomes the index."""
        return self.folder / f"{self.stem.replace('%batch_num%', str(index))}_{self.counter + index:05}_{suffix}"


class Host(ABC):
    """What both hosts share. `LocalHost` and `ComfyHost` fill in the rest."""

    interrupt_types: tuple[type[BaseException], ...] = (Interrupted,)

    @abstractmethod
    def progress(self, total: int, desc: str = "") -> Bar:
        """One bar for the whole job of a node (all tiles, all steps)."""

    @abstractmethod
    def check_interrupt(self) -> None:
        """Raise if the user cancelled."""

    @abstractmethod
    def input_dirs(self) -> list[Path]:
        """Folders that inputs are looked for in, first one first."""

    @abstractmethod
    def output_dir(self) -> Path:
        """Folder for results."""

    @abstractmethod
    def temp_dir(self) -> Path:
        """Folder for previews; does not outlive the process."""

    @abstractmethod
    def model_dirs(self, key: str = "alignsr") -> list[Path]:
        """Folders of one kind of model; they need not exist."""

    @abstractmethod
    def device(self) -> torch.device:
        """The device that models run on."""

    @abstractmethod
    def free_memory(self, vram_bytes: int) -> None:
        """Ask for this much free memory on `device()` before loading a model."""

    @abstractmethod
    def soft_empty_cache(self) -> None:
        """Hand unused cached memory back to the device."""

    def tokenizer_dirs(self) -> list[Path]:
        """Folders in which the program that runs us keeps tokenizers of its own."""
        return []

    def input_dir(self) -> Path:
        """The first input folder."""
        return self.input_dirs()[0]

    def is_oom(self, error: BaseException) -> bool:
        """Does this exception mean that memory ran out (so that a smaller tile may help)?"""
        return is_out_of_memory(error)

    def all_model_dirs(self) -> list[Path]:
        """Every folder that holds models for our nodes, without repeats."""
        return list(dict.fromkeys(folder for key in MODEL_FOLDER_KEYS for folder in self.model_dirs(key)))

    def training_dirs(self) -> list[Path]:
        """Every folder that a recipe may find a file in: `all_model_dirs`, and those of parts of large models that are there."""
        parts = [folder for key in PART_FOLDER_KEYS for folder in self.model_dirs(key) if folder.is_dir()]
        return list(dict.fromkeys([*self.all_model_dirs(), *parts]))

    def list_models(self) -> list[str]:
        """Bundled names first, then weight files by their path inside a model folder, sorted."""
        found = {path.relative_to(folder).as_posix() for folder in self.all_model_dirs() for path in self._weight_files(folder)}
        bundled = list(bundled_models())
        return bundled + sorted(found - set(bundled))

    def list_autoencoders(self) -> list[str]:
        """As `list_models`, with the bundled auto-encoders in place of the bundled super-resolution models."""
        bundled, ours = list(bundled_autoencoders()), set(bundled_models())
        return bundled + [name for name in self.list_models() if name not in ours and name not in bundled]

    def list_files(self, *keys: str) -> list[str]:
        """Weight files in the folders of these keys, by their path inside a folder, sorted."""
        folders = [folder for key in keys for folder in self.model_dirs(key)]
        return sorted({path.relative_to(folder).as_posix() for folder in folders for path in self._weight_files(folder)})

    def list_folders(self, marker: str, *keys: str) -> list[str]:
        """Folders directly inside those of these keys that hold the file `marker`, by name, sorted."""
        folders = [folder for key in keys for folder in self.model_dirs(key)]
        return sorted(
            {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if (path / marker).is_file()}
        )

    def _weight_files(self, folder: Path) -> list[Path]:
        paths = folder.rglob("*") if folder.is_dir() else ()
        return [path for path in paths if path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file()]

    def resolve_model(self, name: str | Path) -> Path:
        """Path of a bundled name, a listed file or an existing path.

        Raises:
            MissingModelError: names the folders searched.
        """
        return find_model(name, self.all_model_dirs())

    def list_inputs(self) -> list[str]:
        """Image files directly inside the input folders, sorted."""
        folders = [folder for folder in self.input_dirs() if folder.is_dir()]
        return sorted({path.name for folder in folders for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES})

    def find_input(self, name: str, what: str = "file") -> Path:
        """Path of an input file or folder; `name [output]` and `name [temp]` look into those folders, as in ComfyUI.

        Args:
            name: of the file or folder.
            what: of the two it is, for messages.

        Raises:
            FileNotFoundError: names the folders searched.
        """
        match = re.fullmatch(r"(.*) \[(input|output|temp)\]", name)
        plain = match[1] if match else name
        kind = match[2] if match else "input"
        folders = {"output": lambda: [self.output_dir()], "temp": lambda: [self.temp_dir()]}.get(kind, self.input_dirs)()
        for candidate in self._input_candidates(plain, folders):
            if plain and candidate.exists():
                return candidate
        raise FileNotFoundError(
            f"image: expected a {what} in {' or '.join(map(str, folders))}, found no {plain!r}; check the name"
        )

    def _input_candidates(self, name: str, folders: Sequence[Path]) -> list[Path]:
        return [folder / name for folder in folders if _is_inside(folder / name, folder)]

    def save_target(self, prefix: str, width: int = 0, height: int = 0, folder: Path | None = None) -> SaveTarget:
        """Expand a filename prefix (`%width%`, `%year%` ... `%second%`, subfolders with `/`) and find the next free number.

        Args:
            prefix: as in ComfyUI's Save Image.
            width: image width for `%width%`.
            height: image height for `%height%`.
            folder: the base folder; the output folder if not given.

        Raises:
            ValueError: the prefix is empty or leads out of the folder.
            OSError: the folder cannot be made.
        """
        base = folder or self.output_dir()
        now = datetime.now()
        values = {"width": str(width), "height": str(height), "year": str(now.year)}
        values |= {name: f"{getattr(now, name):02}" for name in ("month", "day", "hour", "minute", "second")}
        text = re.sub("%([a-z]+)%", lambda found: values.get(found[1], found[0]), prefix).replace("\\", "/")
        target = base / text
        if not text or text.endswith("/") or not _is_inside(target, base):
            raise ValueError(
                f"filename_prefix: expected a name inside {base}, got {prefix!r}; use letters, digits and / for subfolders"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        pattern = re.compile(re.escape(target.name).replace("%batch_num%", r"\d+") + r"_(\d+)_?\.\w+", re.IGNORECASE)
        taken = [int(match[1]) for path in target.parent.iterdir() if (match := pattern.fullmatch(path.name))]
        subfolder = target.parent.relative_to(base).as_posix()
        return SaveTarget(target.parent, target.name, max(taken, default=0) + 1, "" if subfolder == "." else subfolder)

    def save_preview_images(self, images: Sequence[Image.Image]) -> dict[str, list[dict[str, str]]]:
        """Write pictures into the temp folder; a node returns `{"ui": host.save_preview_images(...), "result": ...}`."""
        folder = self.temp_dir()
        folder.mkdir(parents=True, exist_ok=True)
        entries: list[dict[str, str]] = []
        for image in images:
            name = f"alignsr_{uuid.uuid4().hex}.png"
            image.save(folder / name, compress_level=1)
            entries.append({"filename": name, "subfolder": "", "type": "temp"})
        return {"images": entries}


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
