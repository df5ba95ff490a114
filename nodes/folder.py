"""Load Image Folder: the pictures of a folder as a list."""

import hashlib
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.image_files import ImageFileError, list_images, read_image
from ..core.images import bchw_to_bhwc, to_rgb
from .host import get_host


def find_folder(name: str, what: str = "folder") -> Path:
    """A folder by absolute path or by name inside the input folder.

    Raises:
        ValueError: empty name.
        FileNotFoundError: no such folder.
    """
    if not name.strip():
        raise ValueError(f"{what}: expected a folder, got an empty text; give a path or the name of a folder in the input folder")
    path = Path(name).expanduser()
    if not path.is_absolute():
        try:
            path = get_host().find_input(name, "folder")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{what}: {str(error).removeprefix('image: ')}") from error
    if not path.is_dir():
        raise FileNotFoundError(f"{what}: expected a folder at {path}, found none; check the path")
    return path


def find_method_folders(text: str, what: str) -> dict[str, Path]:
    """One folder per line, `NAME = folder` or the folder alone, which then gives the name.

    Raises:
        ValueError: no folder, or two of one name.
        FileNotFoundError: no such folder.
    """
    methods: dict[str, Path] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, folder = (part.strip() for part in line.partition("="))
        path = find_folder(folder if sign else line, what)
        name = name if sign and name else path.name
        if name in methods:
            raise ValueError(f"{what}: expected a name of its own for every folder, got {name} twice; write NAME = folder")
        methods[name] = path
    if not methods:
        raise ValueError(f"{what}: expected at least one folder, got an empty text; write one per line, NAME = folder to name it")
    return methods


class LoadImageFolder:
    """Node AlignSRLoadImageFolder."""

    CATEGORY = "AlignSR/data"
    DESCRIPTION = (
        "Reads all pictures of a folder, subfolders included, as a list: every following node runs once per picture, so "
        "sizes may differ. "
        "8 and 16 bit; grey becomes RGB, alpha is kept."
    )
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("images", "names", "skipped")
    OUTPUT_IS_LIST = (True, True, False)
    OUTPUT_TOOLTIPS = (
        "The pictures, one list element each, in the order of their paths.",
        "Their names without suffix (subfolders with /), for Save Image's filename_prefix or IQA Reward.",
        "One line per file that could not be read; empty if all could.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Absolute path, or a folder inside the input folder. All pictures stay in memory.",
                    },
                ),
                "start": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1_000_000, "tooltip": "How many files to leave out at the beginning."},
                ),
                "limit": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1_000_000, "tooltip": "How many files to read at most. 0: all of them."},
                ),
                "on_error": (
                    ["stop", "skip"],
                    {
                        "default": "stop",
                        "tooltip": "What an unreadable file does: stop with an error, or be left out and listed in `skipped`.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder: str | None, start: int, limit: int, on_error: str) -> str | float:  # noqa: N802
        """Read again when files came, went or changed; always where the folder comes through a link."""
        if folder is None:
            return math.nan
        facts = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in list_images(find_folder(folder))]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def load(self, folder: str, start: int = 0, limit: int = 0, on_error: str = "stop") -> tuple[list[Tensor], list[str], str]:
        root = find_folder(folder)
        files = list_images(root)[start:]
        files = files[:limit] if limit else files
        if not files:
            raise ValueError(f"folder: expected images in {root} from number {start} on, found none; check path and start")
        bar = get_host().progress(len(files), "reading")
        images: list[Tensor] = []
        names: list[str] = []
        skipped: list[str] = []
        for index, path in enumerate(files):
            try:
                pixels = read_image(path).pixels
            except (ImageFileError, OSError) as error:
                if on_error != "skip":
                    raise
                skipped.append(str(error))
            else:
                images.append(bchw_to_bhwc(pixels if pixels.shape[1] == 4 else to_rgb(pixels)))
                names.append(path.relative_to(root).with_suffix("").as_posix())
            bar.update(index + 1)
        if not images:
            raise ValueError(f"folder: expected readable images in {root}, got none; {skipped[0]}")
        return images, names, "\n".join(skipped)
