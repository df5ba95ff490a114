"""Files that belong to pictures by name: label pictures of semantic segmentation, lists of words."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..pairs import partner


class Labels:
    """The files of a folder, found by the name of a picture: `street_x4.png` belongs to `street.txt`.

    Args:
        folder: where they lie, subfolders included.
        suffixes: endings that count.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no file in it, or two of one name.
    """

    def __init__(self, folder: str | Path, suffixes: tuple[str, ...]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"labels: expected a folder at {self.folder}, found none; check the path")
        self._files: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix.lower() in suffixes and not path.name.startswith("."):
                stem = path.relative_to(self.folder).with_suffix("").as_posix()
                if stem in self._files:
                    raise ValueError(
                        f"labels: expected one file per name, got {self._files[stem].name} and {path.name}; remove one"
                    )
                self._files[stem] = path
        if not self._files:
            raise ValueError(f"labels: expected files ending in {', '.join(suffixes)} in {self.folder}, got none; check the path")

    @property
    def names(self) -> tuple[str, ...]:
        """What the files are called, without endings."""
        return tuple(self._files)

    def file(self, name: str) -> Path:
        """The file of a picture.

        Raises:
            ValueError: there is none.
        """
        found = partner(name, self._files)
        if found is not None:
            return self._files[found]
        raise ValueError(f"labels: expected a file for {name} in {self.folder}, got none; names must agree")


def read_levels(path: Path) -> Tensor:
    """[H, W] int64: the levels of a label picture, or the indices of one with a palette.

    Raises:
        ValueError: not a picture of one channel.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode not in ("L", "P", "I", "I;16", "1"):
                raise ValueError(
                    f"labels: expected a picture of one channel, got {opened.mode} in {path}; convert colours to classes"
                )
            return torch.from_numpy(np.array(opened).astype(np.int64))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"labels: expected a picture in {path}, got none ({error}); check the file") from error
