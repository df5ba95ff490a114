"""Outputs of other methods as training targets: what an adversary learns to imitate.

A folder holds `lq/`, the inputs, optionally `gt/`, and one folder per method with that method's outputs for the same inputs,
under the same names and `scale` times as large.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..core.checks import did_you_mean
from ..core.image_files import list_images
from ..core.records import PairBatch
from .data import dihedral, one_thread, sample_seed
from .sources import DataError, Encoded, Source
from .store import ImageStore
from .validation import Watch, unwatched

LQ, GT = "lq", "gt"
_NAMED = 4  # missing names that a message lists per folder


@dataclass(frozen=True)
class ArtefactsConfig:
    """Table [artefacts]: what the adversary imitates takes the place of ground truth."""

    folders: tuple[str, ...] = ("data/artefacts",)  # each with lq/, optional gt/, and a folder per method
    methods: tuple[str, ...] = ()  # names of the methods' folders; empty: all there are
    share: float = 1.0  # of the pictures, drawn at random once; the paper ran the methods on a quarter of its training pictures
    crop: Literal["random", "middle"] = "random"  # middle: always the same, so that encoded pictures can be kept on disk
    augment: bool = True  # flips, the same of input and output
    holdout: int = 0  # the last N pictures (by name) are kept for validation

    def __post_init__(self) -> None:
        """Ranges."""
        if not self.folders:
            raise ValueError("artefacts.folders: expected at least one, got none; name a folder with lq/ and a folder per method")
        if not 0 < self.share <= 1:
            raise ValueError(f"artefacts.share: expected more than 0 and at most 1, got {self.share}; the paper uses 0.25")
        if self.holdout < 0:
            raise ValueError(f"artefacts.holdout: expected at least 0, got {self.holdout}; 0 holds none out")


@dataclass(frozen=True)
class ArtefactPicture:
    """One input with what methods made of it.

    Attributes:
        name: without suffix, below lq/.
        lq: the input's file.
        outputs: method -> file.
        gt: ground truth's file or None.
        sides: (height, width) of the input.
    """

    name: str
    lq: Path
    outputs: Mapping[str, Path]
    gt: Path | None
    sides: tuple[int, int]


@dataclass(frozen=True)
class ArtefactFolder:
    """A checked folder.

    Attributes:
        folder: its path.
        scale: of outputs over inputs.
        methods: names, sorted.
        pictures: in the order of their names.
    """

    folder: Path
    scale: int
    methods: tuple[str, ...]
    pictures: tuple[ArtefactPicture, ...]


def open_artefacts(folder: str | Path, scale: int = 4, methods: Sequence[str] = ()) -> ArtefactFolder:
    """Look at a folder and check that every method has every picture in the right size. Only headers of files are read.

    Args:
        folder: with lq/, optional gt/, and a folder per method.
        scale: of outputs over inputs.
        methods: which of them; empty: all.

    Raises:
        DataError: no such folder, no lq/ or no method in it, or one message with all that is missing or of another size.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"artefacts.folders: expected a folder at {root}, found none; check the path")
    inputs = _by_name(root / LQ)
    there = sorted(
        path.name for path in root.iterdir() if path.is_dir() and path.name not in (LQ, GT) and not path.name.startswith(".")
    )
    if not inputs:
        raise DataError(f"artefacts.folders: expected pictures in {root / LQ}, found none; put the inputs of the methods there")
    if not there:
        raise DataError(
            f"artefacts.folders: expected a folder per method beside {root / LQ}, found none; put what a method made of the "
            "inputs into a folder of its name"
        )
    for method in methods:
        if method not in there:
            raise DataError(
                f"artefacts.methods: expected one of {', '.join(there)}, got {method!r}; {did_you_mean(method, there)}"
            )
    chosen = tuple(sorted(set(methods))) if methods else tuple(there)
    found = {part: _by_name(root / part) for part in ((GT,) if (root / GT).is_dir() else ()) + chosen}
    sides = {name: Encoded(path) for name, path in inputs.items()}
    problems, sizes = _missing(inputs, found), {}
    for name, picture in sides.items():
        sizes[name] = _sides(picture, problems)
    for part, files in found.items():
        problems += _misfits(part, {name: path for name, path in files.items() if name in inputs}, sizes, scale)
    if problems:
        raise DataError(
            f"{root}: expected every method to have every picture of {LQ}/ in {scale} times its size; " + "; ".join(problems)
        )
    pictures = [
        ArtefactPicture(name, path, {m: found[m][name] for m in chosen}, found.get(GT, {}).get(name), size)
        for name, path in inputs.items()
        if (size := sizes[name]) is not None
    ]
    return ArtefactFolder(root, scale, chosen, tuple(pictures))


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_images(folder)}


def _missing(inputs: Mapping[str, Path], found: Mapping[str, Mapping[str, Path]]) -> list[str]:
    problems: list[str] = []
    for part, files in found.items():
        if not files:
            problems.append(f"{part}/ is empty")
            continue
        lacking, unknown = [n for n in inputs if n not in files], [n for n in files if n not in inputs]
        if lacking:
            problems.append(f"{part}/ lacks {_listed(lacking)} ({len(lacking)} of {len(inputs)})")
        if unknown:
            problems.append(f"{part}/ has {_listed(unknown)}, which {LQ}/ has not")
    return problems


def _sides(picture: Encoded, problems: list[str]) -> tuple[int, int] | None:
    try:
        return picture.sides()
    except OSError as error:
        problems.append(f"{picture.label} is not readable as an image ({error})")
        return None


def _misfits(part: str, files: Mapping[str, Path], sizes: Mapping[str, tuple[int, int] | None], scale: int) -> list[str]:
    problems: list[str] = []
    wrong: list[str] = []
    for name, path in files.items():
        size, base = _sides(Encoded(path), problems), sizes[name]
        if size is not None and base is not None and size != (base[0] * scale, base[1] * scale):
            wrong.append(f"{name} {size[0]}x{size[1]} instead of {base[0] * scale}x{base[1] * scale}")
    return problems + ([f"{part}/ has {_listed(wrong)}"] if wrong else [])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


class ArtefactData:
    """Pairs of an input and what a method made of it, as an endless, fixed sequence.

    Every epoch has each (picture, method) once, in an order that is a function of (seed, epoch); crop and flip are functions of
    (seed, sample index). Crops begin at whole pixels of the input, so that input and output show the same part. Several threads
    may ask for batches at once.

    Args:
        config: table [artefacts].
        scale: upscaling factor.
        patch_px: side of the crops of outputs; a multiple of the scale.
        seed: of the sequence. Which pictures `share` leaves is the same for every seed.

    Raises:
        DataError: see `open_artefacts`; pictures smaller than the crops; fewer than are held out.
    """

    def __init__(self, config: ArtefactsConfig, scale: int, patch_px: int, seed: int) -> None:
        self.config, self.scale, self.patch_px, self.seed = config, scale, patch_px, seed
        opened = [open_artefacts(folder, scale, config.methods) for folder in config.folders]
        pictures = [picture for folder in opened for picture in folder.pictures]
        if config.holdout >= len(pictures):
            raise DataError(f"artefacts.holdout: expected fewer than {len(pictures)}, got {config.holdout}; hold out fewer")
        keep = len(pictures) - config.holdout
        self.held_out = pictures[keep:]
        self.pictures = _some(pictures[:keep], config.share)
        small = [p.name for p in (*self.pictures, *self.held_out) if min(p.sides) * scale < patch_px]
        if small:
            raise DataError(
                f"data.gt_patch_px: expected pictures of at least {patch_px} px, smaller are {_listed(small)}; lower it"
            )
        pairs = [(picture, method) for picture in self.pictures for method in picture.outputs]
        self.names = [f"{picture.name} ({method})" for picture, method in pairs]
        self.store = ImageStore([Source(Encoded(p.outputs[method]), Encoded(p.lq)) for p, method in pairs], scale)
        self._order = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Pairs of one epoch."""
        return len(self.names)

    def batch(self, first_index: int, size: int) -> PairBatch:
        """The samples [first_index, first_index + size); `gt` are the methods' outputs."""
        with one_thread():
            samples = [self._sample(first_index + i) for i in range(size)]
        gts, lqs, names = zip(*samples, strict=True)
        return PairBatch(torch.stack(lqs).float() / 255, torch.stack(gts).float() / 255, tuple(names))

    def forget_before(self, first_index: int) -> None:
        """Nothing is kept for single samples."""
        del first_index

    def pairs_of_held_out(self, watch: Watch = unwatched) -> Iterator[tuple[Tensor, Tensor]]:
        """(lq, output) of the held-out pictures, the methods taking turns, [1, 3, h, w] in [0, 1]; `watch` hears of each."""
        for index, picture in enumerate(self.held_out):
            watch(index, len(self.held_out))
            methods = list(picture.outputs)
            source = Source(Encoded(picture.outputs[methods[index % len(methods)]]), Encoded(picture.lq))
            gt, lq = ImageStore([source], self.scale, cache=False).pair(0)
            yield lq[None].float() / 255, gt[None].float() / 255

    def _epoch(self, epoch: int) -> list[int]:
        order = list(range(len(self.names)))
        random.Random(f"alignsr:artefacts:{self.seed}:{epoch}").shuffle(order)
        return order

    def _sample(self, index: int) -> tuple[Tensor, Tensor, str]:
        epoch, position = divmod(index, len(self.names))
        number = self._order(epoch)[position]
        gt, lq = self.store.pair(number)
        rng, side, s = random.Random(sample_seed(self.seed, index)), self.patch_px // self.scale, self.scale
        place = (rng.random(), rng.random()) if self.config.crop == "random" else (0.5, 0.5)
        top, left = (int(r * (n - side + 1)) for r, n in zip(place, lq.shape[-2:], strict=True))
        turn = rng.randrange(2) if self.config.augment else 0  # as in the papers: left and right only
        gt = gt[:, top * s : (top + side) * s, left * s : (left + side) * s]
        return dihedral(gt, turn), dihedral(lq[:, top : top + side, left : left + side], turn), self.names[number]


def _some(pictures: Sequence[ArtefactPicture], share: float) -> list[ArtefactPicture]:
    """That share of the pictures, at least one, drawn by their names, in their order."""
    count = max(1, round(share * len(pictures)))
    ranked = sorted(pictures, key=lambda p: (random.Random(f"alignsr:share:{p.name}").random(), p.name))
    chosen = {id(picture) for picture in ranked[:count]}
    return [picture for picture in pictures if id(picture) in chosen]


def contact(folder: ArtefactFolder, limit: int = 4) -> dict[str, dict[str, Tensor]]:
    """The first pictures with what each method made of them: name -> {"input", method, ...} -> [1, 3, H, W] in [0, 1]."""
    shown: dict[str, dict[str, Tensor]] = {}
    for picture in folder.pictures[:limit]:
        parts = {"input": picture.lq, **picture.outputs} | ({"ground truth": picture.gt} if picture.gt else {})
        shown[picture.name] = {name: _image(path) for name, path in parts.items()}
    return shown


def _image(path: Path) -> Tensor:
    from ..core.images import to_rgb

    return to_rgb(Encoded(path).read().pixels)


__all__ = ["ArtefactData", "ArtefactFolder", "ArtefactPicture", "ArtefactsConfig", "contact", "open_artefacts"]
