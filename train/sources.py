"""Where training pictures lie: folders, pairs of folders, and WebDataset shards, all as a list in a fixed order."""

import io
import re
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..core.image_files import SUFFIXES, ImageFile, list_images, read_image
from .config import DataConfig

_GT_FIELDS = ("gt", "hr", "")  # of a shard's member, in this order: 0001.gt.png, 0001.hr.png, 0001.png
_LQ_FIELDS = ("lq", "lr")
_MOST_SHARDS = 100_000
_ORIENTATION, _FIRST_QUARTER_TURN = 274, 5  # EXIF: from this value on, width and height change places


class DataError(ValueError):
    """Training data that cannot be used; the message names the file or folder."""


@dataclass(frozen=True)
class Encoded:
    """One encoded picture: a file, or a span of a tar file.

    Attributes:
        path: the file, or the tar file.
        member: name inside the tar file; empty for a file of its own.
        offset: first byte inside the tar file.
        size: number of bytes there.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """What messages and batches call it."""
        return self.member or self.path.name

    @property
    def label(self) -> str:
        """Where it is, in full."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def content(self) -> bytes | None:
        """The bytes of a member; None for a file of its own."""
        if not self.member:
            return None
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def read(self) -> ImageFile:
        """Decode it; see `read_image` for what is raised."""
        return read_image(self.label, self.content())

    def sides(self) -> tuple[int, int]:
        """(height, width), turned as the EXIF block says, without decoding the pixels.

        Raises:
            OSError: not an image.
        """
        content = self.content()
        try:
            with open(self.path, "rb") if content is None else io.BytesIO(content) as file, Image.open(file) as opened:
                width, height = opened.size
                turned = _exif(opened, file).get(_ORIENTATION, 1) >= _FIRST_QUARTER_TURN
                return (width, height) if turned else (height, width)
        except (SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError) as error:
            raise OSError(f"damaged: {error}") from error


def _exif(opened: Image.Image, file: IO[bytes]) -> Image.Exif:
    """The EXIF block; Pillow decodes the whole of every PNG to look for one behind the pixels, which is rarely there."""
    if opened.format == "PNG" and not _has_metadata_behind_pixels(file):
        return Image.Image.getexif(opened)
    return opened.getexif()


def _has_metadata_behind_pixels(png: IO[bytes]) -> bool:
    """Whether a chunk that may tell the orientation follows the first one with pixels; only heads of chunks are read."""
    place, png_position, seen = 8, png.tell(), False  # the first chunk follows a signature of 8 bytes
    try:
        while True:
            png.seek(place)
            head = png.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            seen = seen or head[4:] == b"IDAT"
            if seen and head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            place += 12 + int.from_bytes(head[:4], "big")
    finally:
        png.seek(png_position)


@dataclass(frozen=True)
class Source:
    """A ground truth, and its low-resolution partner where that is not made here.

    Attributes:
        gt: the ground truth.
        lq: its partner or None.
        shard: which shard it lies in; 0 for folders.
    """

    gt: Encoded
    lq: Encoded | None = None
    shard: int = 0


def find_sources(config: DataConfig, scale: int) -> tuple[list[Source], list[Source]]:
    """(training pictures, held-out pictures) of the config's folders or shards, in the order of their names.

    Raises:
        DataError: a folder or shard that does not exist or holds no picture, a ground truth without its low-resolution
            partner, or fewer pictures than are held out.
    """
    if config.shards:
        if config.lq_folders:
            raise DataError("data.lq_folders: expected none beside data.shards, got some; put both pictures into the shards")
        sources = _from_shards(config.shards)
    else:
        sources = _from_folders(config, scale)
    keep = len(sources) - config.holdout
    if keep < 1:
        raise DataError(f"data.holdout: expected fewer than {len(sources)} files, got {config.holdout}; hold out fewer")
    return sources[:keep], sources[keep:]


def check_sources(config: Any) -> None:
    """See that the pictures of a recipe's config are there: at once, where loading its models may take minutes.

    Args:
        config: of a recipe. One whose `data` is no `DataConfig`, or is not used, has nothing to check.

    Raises:
        DataError: a folder or shard that does not exist, or a folder without pictures.
    """
    data = config.data
    if not isinstance(data, DataConfig) or getattr(config, "artefacts", None) is not None:
        return
    if data.shards:
        expand_shards(data.shards)
        return
    for key, folders in (("data.folders", data.folders), ("data.lq_folders", data.lq_folders)):
        for folder in folders:
            _images(folder, key)


def _images(folder: str, key: str) -> list[Path]:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"{key}: expected a folder of images at {path}, found none; pass --set '{key}=[\"DIR\"]'")
    found = list_images(path)
    if not found:
        raise DataError(f"{key}: expected images in {path}, found none; choose another folder")
    return found


def _from_folders(config: DataConfig, scale: int) -> list[Source]:
    if config.lq_folders and len(config.lq_folders) != len(config.folders):
        raise DataError(
            f"data.lq_folders: expected one per entry of data.folders ({len(config.folders)}), got {len(config.lq_folders)}; "
            "name the folder of each one's low-resolution files"
        )
    sources: list[Source] = []
    for number, folder in enumerate(config.folders):
        found = _images(folder, "data.folders")
        if config.lq_folders:
            sources += _paired(Path(folder).expanduser(), found, config.lq_folders[number], config.lq_suffix, scale)
        else:
            sources += [Source(Encoded(path)) for path in found]
    return sources


def _paired(folder: Path, found: Sequence[Path], lq_folder: str, suffix: str, scale: int) -> list[Source]:
    """Partners by relative path and name, whatever the file types: a/0801.png and a/0801<suffix>.jpg."""
    root = Path(lq_folder).expanduser()
    partners = {path.relative_to(root).with_suffix("").as_posix(): path for path in _images(lq_folder, "data.lq_folders")}
    wanted = {path: path.relative_to(folder).with_suffix("").as_posix() + suffix for path in found}
    missing = [(path, name) for path, name in wanted.items() if name not in partners]
    if missing:
        path, name = missing[0]
        guess = f"x{scale}"
        hint = (
            f'set data.lq_suffix = "{guess}"'
            if not suffix and f"{name}{guess}" in partners
            else f"that folder holds {min(partners)} and the like; see data.lq_suffix"
        )
        raise DataError(
            f"data.lq_folders: expected a low-resolution file {name}.* in {root} for {path}, found none "
            f"({len(missing)} of {len(found)} have no partner); {hint}"
        )
    return [Source(Encoded(path), Encoded(partners[name])) for path, name in wanted.items()]


def expand_shards(patterns: Sequence[str]) -> list[Path]:
    """The tar files that patterns such as train-{000..041}.tar or train-*.tar stand for, in that order."""
    paths: list[Path] = []
    for pattern in patterns:
        for text in _braces(pattern):
            plain = Path(text).expanduser()
            found = [plain] if plain.is_file() else sorted(map(Path, glob(str(plain))))
            if not found:
                raise DataError(f"data.shards: expected a tar file at {plain}, found none; check the path")
            paths += found
    return paths


def _braces(pattern: str) -> list[str]:
    """{000..041} -> 000, ..., 041 with the width kept; several braces multiply."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST_SHARDS:
        raise DataError(f"data.shards: expected a rising range, got {match[0]}; write the smaller number first")
    names = (f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return [text for name in names for text in _braces(pattern[: match.start()] + name + pattern[match.end() :])]


def _from_shards(patterns: Sequence[str]) -> list[Source]:
    """The samples of WebDataset shards; only headers are read, so that any sample can be fetched later by its place."""
    sources: list[Source] = []
    for number, path in enumerate(expand_shards(patterns)):
        samples: dict[str, dict[str, Encoded]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    key, field = _split(member.name)
                    if member.isfile() and field is not None:
                        samples.setdefault(key, {})[field] = Encoded(path, member.name, member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(
                f"{path}: expected an uncompressed tar file, got {error}; write shards as .tar and get damaged ones again"
            ) from error
        found = [source for sample in samples.values() if (source := _sample(sample, number))]
        if not found:
            raise DataError(f"{path}: expected pictures named KEY.png or KEY.gt.png and KEY.lq.png, found none; see data.shards")
        sources += found
    return sources


def _split(name: str) -> tuple[str, str | None]:
    """WebDataset's rule: the key ends at the first dot of the base name. (key, field), field None for what is no picture."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    field, _, suffix = extension.rpartition(".")
    is_picture = bool(stem) and f".{suffix.lower()}" in SUFFIXES
    return f"{folder}/{stem}" if folder else stem, field.lower() if is_picture else None


def _sample(fields: Mapping[str, Encoded], shard: int) -> Source | None:
    gt = next((fields[name] for name in _GT_FIELDS if name in fields), None)
    return Source(gt, next((fields[name] for name in _LQ_FIELDS if name in fields), None), shard) if gt else None
