"""The files of a shard: pictures as PNG, tar files and folders written whole or not at all, checksums."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.weights import write_atomic
from ..sources import DataError

COMPRESSION = 3  # of PNG: level 6 takes twice the time for 4 % less


@dataclass(frozen=True)
class Part:
    """One file of a shard.

    Attributes:
        name: of the file.
        offset: first byte inside the tar file; 0 in a folder.
        size: number of bytes.
        sha256: of them.
    """

    name: str
    offset: int
    size: int
    sha256: str


def pixel_hash(image: Tensor) -> str:
    """SHA-256 of size and values of a picture [3, H, W] uint8: whatever file it came from, the same picture has the same one."""
    digest = hashlib.sha256(f"{tuple(image.shape)}".encode())
    digest.update(image.permute(1, 2, 0).contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode_png(image: Tensor) -> bytes:
    """A picture [3, H, W] uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(out, format="PNG", compress_level=COMPRESSION)
    return out.getvalue()


def decode_png(content: bytes, label: str) -> Tensor:
    """[3, H, W] uint8.

    Raises:
        DataError: not a picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{label}: expected a picture, got damaged bytes ({error}); sample this shard again") from error


def sha256(content: bytes) -> str:
    """Checksum of a part."""
    return hashlib.sha256(content).hexdigest()


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> dict[str, int]:
    """Write the tar file atomically, the same bytes for the same content; where each file's bytes begin in it."""
    offsets: dict[str, int] = {}

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                offsets[name] = archive.offset + tarfile.BLOCKSIZE  # behind its own header
                archive.addfile(member, io.BytesIO(content))

    write_atomic(path, write)
    return offsets


def write_folder(path: Path, files: Sequence[tuple[str, bytes]]) -> dict[str, int]:
    """Fill a temporary neighbour, then rename it: the folder is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    for stale in (temporary, path):  # without an index it was not finished
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files:
        with open(temporary / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    return dict.fromkeys((name for name, _ in files), 0)
