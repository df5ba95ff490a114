"""Candidates on disk: shards that are written whole or not at all, each with an index that holds a checksum of every part.

A shard is a tar file (as WebDataset reads it, one sample per group) or a folder. Of group 12 it holds

    000012.gt.png, 000012.lq.png, 000012.txt       ground truth, input, prompt
    000012.00.png, 000012.00.npy, 000012.01.png    candidate 0: 8-bit picture and latents; candidate 1, ...

and beside it lies `shard-000012.json`, written last: where it is there, with the right size, the shard is finished.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.weights import write_atomic
from ..sources import DataError
from .shard_files import Part, decode_png, encode_png, pixel_hash, sha256, write_folder, write_tar

FOLDER = "candidates"  # of shards, inside the run folder
MANIFEST = "manifest.json"
INDEXES = 512  # kept in memory: those of a whole published run would take a gigabyte


@dataclass(frozen=True)
class GroupEntry:
    """One group, as the index of its shard knows it.

    Attributes:
        index: its number.
        name: of the picture.
        size: (height, width) of the ground truth.
        candidates: how many.
        pixels: SHA-256 of the pixels of every candidate, then of `gt` and `lq`.
        parts: by what they are: `gt`, `lq`, `txt`, `00.png`, `00.npy`, ...
        shard: which shard it lies in.
    """

    index: int
    name: str
    size: tuple[int, int]
    candidates: int
    pixels: tuple[str, ...]
    parts: Mapping[str, Part]
    shard: int


@dataclass(frozen=True)
class Candidates:
    """All candidates of one picture, on the CPU.

    Attributes:
        index: number of the group.
        name: of the picture.
        gt: [3, H, W] uint8.
        lq: [3, h, w] uint8.
        prompt: what the model was told.
        pictures: [M, 3, H, W] uint8.
        latents: [M, C, y, x] float, or None.
    """

    index: int
    name: str
    gt: Tensor
    lq: Tensor
    prompt: str
    pictures: Tensor
    latents: Tensor | None


class CandidateStore:
    """The candidates of a run folder.

    Args:
        folder: the run folder.

    Attributes:
        entries: shard -> what its index says; raises DataError where there is none, or one that does not fit.

    Raises:
        DataError: not a run folder with candidates.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.kind: Literal["shards", "folder"] = self.manifest["store"]
            self.names: list[str] = self.manifest["groups"]
            self.candidates: int = self.manifest["candidates"]
            self.scale: int = self.manifest["scale"]
            self.per_shard: int = self.manifest["groups_per_shard"]
            self.has_latents: bool = self.manifest["latents"] != "none"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: expected a folder of `alignsr candidates`, found no readable {MANIFEST} ({error}); choose another"
            ) from error
        self.entries = lru_cache(maxsize=INDEXES)(self._read_index)

    @classmethod
    def create(cls, folder: Path, facts: Mapping[str, Any]) -> "CandidateStore":
        """Start a run folder, or open it where one of exactly these facts is there.

        Raises:
            DataError: the folder holds candidates of another config or other pictures.
        """
        path = folder / MANIFEST
        if path.exists():
            store = cls(folder)
            changed = sorted(key for key in facts if store.manifest.get(key) != json.loads(json.dumps(facts[key])))
            if changed:
                shown = {key: store.manifest.get(key) for key in changed if key != "groups"}
                raise DataError(
                    f"{folder}: expected candidates of this config, got a folder that differs in {', '.join(changed)} "
                    f"({json.dumps(shown)[:200]}); choose another --out"
                )
            return store
        text = json.dumps(dict(facts), indent=1) + "\n"
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
        return cls(folder)

    @property
    def shards(self) -> int:
        """How many there are when all are finished."""
        return -(-len(self.names) // self.per_shard)

    def groups_of(self, shard: int) -> range:
        """The numbers of its groups."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.names)))

    def path(self, shard: int) -> Path:
        """The tar file, or the folder."""
        return self.folder / FOLDER / f"shard-{shard:06d}{'.tar' if self.kind == 'shards' else ''}"

    def index_path(self, shard: int) -> Path:
        """The index that is written last."""
        return self.folder / FOLDER / f"shard-{shard:06d}.json"

    def is_finished(self, shard: int, *, verify: bool = False) -> bool:
        """Whether a shard is there in its full size; with `verify`, whether every byte is as it was written."""
        try:
            entries = self.entries(shard)
        except DataError:
            return False
        if not verify:
            return self._has_its_size(shard, entries)
        try:
            return all(sha256(content) == part.sha256 for _, part, content in self._contents(shard, entries))
        except DataError:
            return False

    def missing(self) -> list[int]:
        """Shards that are not finished."""
        return [shard for shard in range(self.shards) if not self.is_finished(shard)]

    def require_finished(self) -> None:
        """Raise DataError unless every shard is there in its full size."""
        missing = self.missing()
        if missing:
            raise DataError(
                f"{self.path(missing[0])}: expected a finished shard, got none or a truncated one "
                f"({len(missing)} of {self.shards}); run `alignsr candidates` with this folder again: it samples what is missing"
            )

    def write(self, shard: int, groups: Sequence[Candidates]) -> None:
        """Write a shard and, when it lies there whole, its index."""
        parts = {group.index: _files(group) for group in groups}
        flat = [(name, content) for files in parts.values() for name, content in files.values()]
        write_files = write_tar if self.kind == "shards" else write_folder
        offsets = write_files(self.path(shard), flat)
        entries = [
            GroupEntry(
                index=group.index,
                name=group.name,
                size=(group.gt.shape[-2], group.gt.shape[-1]),
                candidates=len(group.pictures),
                pixels=tuple(pixel_hash(image) for image in (*group.pictures, group.gt, group.lq)),
                parts={
                    key: Part(name, offsets[name], len(content), sha256(content))
                    for key, (name, content) in parts[group.index].items()
                },
                shard=shard,
            )
            for group in groups
        ]
        text = json.dumps([asdict(entry) for entry in entries]) + "\n"
        write_atomic(self.index_path(shard), lambda part: part.write_text(text, encoding="utf-8"))
        self.entries.cache_clear()

    def _read_index(self, shard: int) -> list[GroupEntry]:
        """What its index says.

        Raises:
            DataError: no index, a damaged one, or one with other groups than this run has.
        """
        path = self.index_path(shard)
        try:
            found = [
                GroupEntry(
                    **{
                        **raw,
                        "size": tuple(raw["size"]),
                        "pixels": tuple(raw["pixels"]),
                        "parts": {key: Part(**part) for key, part in raw["parts"].items()},
                    }
                )
                for raw in json.loads(path.read_text(encoding="utf-8"))
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected the index of a shard, got none ({error}); run `alignsr candidates` again"
            ) from error
        if [entry.index for entry in found] != list(self.groups_of(shard)):
            raise DataError(f"{path}: expected groups {self.groups_of(shard)}, got others; run `alignsr candidates` again")
        return found

    def entry(self, group: int) -> GroupEntry:
        """One group of a finished shard."""
        shard = group // self.per_shard
        return self.entries(shard)[group - shard * self.per_shard]

    def read(self, entry: GroupEntry, key: str) -> bytes:
        """The bytes of one part, checked.

        Raises:
            DataError: truncated, or not what was written.
        """
        part, path = entry.parts[key], self.path(entry.shard)
        path = path if self.kind == "shards" else path / part.name
        try:
            with open(path, "rb") as file:
                file.seek(part.offset)
                content = file.read(part.size)
        except OSError as error:
            raise DataError(
                f"{path}: expected {part.name}, could not read it ({error.strerror}); run `alignsr candidates` again"
            ) from error
        if sha256(content) != part.sha256:
            what = f"{len(content)} of {part.size} bytes" if len(content) != part.size else "other bytes than were written"
            raise DataError(
                f"{path}: expected {part.name} as it was sampled, got {what}; `alignsr candidates --verify` with this folder "
                "samples damaged shards again"
            )
        return content

    def picture(self, entry: GroupEntry, key: str) -> Tensor:
        """A picture of a group, [3, H, W] uint8: `gt`, `lq`, or `00.png`, ... ; candidates have the size of the ground truth.

        Raises:
            DataError: damaged, or of another size.
        """
        image = decode_png(self.read(entry, key), f"{self.path(entry.shard)}: {entry.parts[key].name}")
        if key != "lq" and tuple(image.shape[-2:]) != entry.size:
            raise DataError(
                f"{self.path(entry.shard)}: {entry.parts[key].name}: expected {entry.size[0]}x{entry.size[1]} px as the "
                f"ground truth, got {image.shape[-2]}x{image.shape[-1]}; all candidates of a group have one size"
            )
        return image

    def latents(self, entry: GroupEntry, candidate: int) -> Tensor:
        """Latents of one candidate, [C, y, x] float32."""
        content = self.read(entry, f"{candidate:02d}.npy")
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False)).float()

    def _has_its_size(self, shard: int, entries: Sequence[GroupEntry]) -> bool:
        path = self.path(shard)
        parts = [part for entry in entries for part in entry.parts.values()]
        if self.kind == "shards":
            return path.is_file() and path.stat().st_size >= max(part.offset + part.size for part in parts)
        return all((path / part.name).is_file() and (path / part.name).stat().st_size == part.size for part in parts)

    def _contents(self, shard: int, entries: Sequence[GroupEntry]) -> Iterator[tuple[GroupEntry, Part, bytes]]:
        for entry in entries:
            for key, part in entry.parts.items():
                yield entry, part, self.read(entry, key)


def _files(group: Candidates) -> dict[str, tuple[str, bytes]]:
    """Key -> (name, content) of everything that is kept of a group."""
    stem = f"{group.index:06d}"
    files = {
        "gt": (f"{stem}.gt.png", encode_png(group.gt)),
        "lq": (f"{stem}.lq.png", encode_png(group.lq)),
        "txt": (f"{stem}.txt", group.prompt.encode()),
    }
    for number, image in enumerate(group.pictures):
        files[f"{number:02d}.png"] = (f"{stem}.{number:02d}.png", encode_png(image))
        if group.latents is not None:
            out = io.BytesIO()
            np.save(out, group.latents[number].contiguous().numpy(), allow_pickle=False)
            files[f"{number:02d}.npy"] = (f"{stem}.{number:02d}.npy", out.getvalue())
    return files
