"""Decoded training pictures: from memory, from raw files on disk that crops read in part, or decoded anew."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.images import to_rgb
from ..core.resize import imresize_uint8
from ..core.weights import write_atomic
from .sources import DataError, Encoded, Source


class ImageStore:
    """Decoded 8-bit RGB pictures by index, with their low-resolution partners; safe to use from several threads.

    A partner is read from disk where the source has one, else made by the 8-bit MATLAB resize of the whole picture.

    Args:
        sources: what there is.
        scale: of the partners.
        cache: keep what was read in memory; with a folder there is no need.
        folder: keep what was decoded there as raw bytes, mapped into memory: a crop touches only its own rows.
    """

    def __init__(self, sources: Sequence[Source], scale: int, cache: bool = True, folder: Path | None = None) -> None:
        self.sources = list(sources)
        self.scale = scale
        self.folder = folder
        self._cache = cache and folder is None
        self._images: dict[int, Tensor] = {}
        self._partners: dict[int, Tensor] = {}

    def of(self, sources: Sequence[Source]) -> "ImageStore":
        """A store of other pictures in the same folder, which keeps nothing in memory."""
        return ImageStore(sources, self.scale, False, self.folder)

    def image(self, index: int) -> Tensor:
        """The ground truth, [3, H, W] uint8, cut to a multiple of the scale."""
        source = self.sources[index]
        return self._kept(self._images, index, source.gt, "gt", lambda: self._decode(source.gt))

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(gt, lq) as uint8."""
        gt, source = self.image(index), self.sources[index]
        if source.lq is None:
            return gt, self._kept(self._partners, index, source.gt, "lq", lambda: imresize_uint8(gt, 1 / self.scale))
        lq = source.lq
        return gt, self._kept(self._partners, index, lq, "lq", lambda: self._decode_partner(lq, source.gt, gt))

    def _decode(self, picture: Encoded) -> Tensor:
        pixels = to_rgb(picture.read().pixels)[0]
        if min(pixels.shape[-2:]) < self.scale:
            raise DataError(
                f"{picture.label}: expected sides of at least {self.scale} px, one pixel of its low-resolution form, got "
                f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            )
        height, width = (side - side % self.scale for side in pixels.shape[-2:])
        return (pixels[:, :height, :width] * 255).round().to(torch.uint8)

    def _decode_partner(self, picture: Encoded, gt_picture: Encoded, gt: Tensor) -> Tensor:
        lq = (to_rgb(picture.read().pixels)[0] * 255).round().to(torch.uint8)
        height, width = (side // self.scale for side in gt.shape[-2:])
        # MATLAB rounds the size of an uneven picture up; the ground truth is cut to whole multiples
        if not (height <= lq.shape[-2] <= height + 1 and width <= lq.shape[-1] <= width + 1):
            raise DataError(
                f"{picture.label}: expected {height}x{width} px, 1/{self.scale} of {gt_picture.label}, got "
                f"{lq.shape[-2]}x{lq.shape[-1]}; choose the low-resolution files of this scale"
            )
        return lq[:, :height, :width]

    def _kept(self, memory: dict[int, Tensor], index: int, picture: Encoded, kind: str, make: Callable[[], Tensor]) -> Tensor:
        if index in memory:
            return memory[index]
        image = make() if self.folder is None else self._on_disk(self.folder, picture, kind, make)
        if self._cache:
            memory[index] = image
        return image

    def _on_disk(self, folder: Path, picture: Encoded, kind: str, make: Callable[[], Tensor]) -> Tensor:
        """Raw [H, W, 3] bytes, a crop's rows together. A changed picture gets another name, a damaged file is replaced."""
        facts = picture.path.stat()
        key = f"{picture.path.resolve()}|{picture.member}|{facts.st_size}|{facts.st_mtime_ns}|{kind}|{self.scale}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = folder / f"{Path(picture.name).stem[:60]}-{kind}-{digest}.npy"
        try:
            raw = np.load(path, mmap_mode="c")
        except (OSError, ValueError, EOFError):
            pixels = make().movedim(0, -1).contiguous().numpy()
            write_atomic(path, lambda temporary: np.save(temporary, pixels, allow_pickle=False))
            raw = np.load(path, mmap_mode="c")
        return torch.from_numpy(raw).movedim(-1, 0)


class Windows:
    """A grid of equal sub-images over every picture, counted through: what cutting a set into overlapping sub-images gives.

    The first window starts at 0, the next ones `step` further, and the last one ends with the picture. A picture smaller than a
    window is one window.

    Args:
        sizes: (height, width) of each picture.
        side: of a window in px.
        step: between windows in px.

    Source:
        BasicSR's preparation of DIV2K (480 px, step 240), specification aesop.md 4.1.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], side: int, step: int) -> None:
        self.sizes, self.side, self.step = list(sizes), side, step
        self._ends = list(accumulate(len(self.starts(height)) * len(self.starts(width)) for height, width in sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def starts(self, length: int) -> list[int]:
        """Where windows start along one side."""
        if length <= self.side:
            return [0]
        regular = list(range(0, length - self.side + 1, self.step))
        return regular if regular[-1] + self.side == length else [*regular, length - self.side]

    def locate(self, number: int) -> tuple[int, int, int]:
        """(picture, top, left) of window `number`."""
        picture = bisect_right(self._ends, number)
        tops, lefts = (self.starts(side) for side in self.sizes[picture])
        row, column = divmod(number - (self._ends[picture - 1] if picture else 0), len(lefts))
        return picture, tops[row], lefts[column]
