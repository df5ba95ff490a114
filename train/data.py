"""Files and folders -> PairBatch.

Every sample is a pure function of (seed, sample index), so order, workers and resuming cannot change it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.checks import check_positive_int
from ..core.image_files import list_images, read_image
from ..core.images import to_rgb
from ..core.records import PairBatch
from ..core.resize import imresize_uint8
from .config import DataConfig


class DataError(ValueError):
    """Training data that cannot be used; the message names the file or folder."""


@dataclass(frozen=True)
class _Sample:
    """The draws of one sample."""

    file: int
    top: float
    left: float
    turn: int
    seed: int


def sample_seed(seed: int, index: int) -> int:
    """A 63-bit seed for sample `index`, well mixed, the same on every platform."""
    return random.Random(f"alignsr:{seed}:{index}").getrandbits(63)


def _draw(seed: int, index: int, files: int) -> _Sample:
    rng = random.Random(sample_seed(seed, index))
    return _Sample(rng.randrange(files), rng.random(), rng.random(), rng.randrange(8), rng.getrandbits(62))


def dihedral(x: Tensor, turn: int) -> Tensor:
    """One of the eight flips and quarter turns of [..., H, W]; turn 0 is the identity."""
    if turn & 1:
        x = x.flip(-1)
    if turn & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if turn & 4 else x


class ImageStore:
    """Decoded 8-bit RGB images by index, with their 8-bit MATLAB reductions, cached in memory on demand.

    Args:
        files: image paths.
        scale: reduction of `pair`.
        cache: keep what was read.
    """

    def __init__(self, files: Sequence[Path], scale: int, cache: bool = True) -> None:
        self.files = list(files)
        self.scale = scale
        self.cache = cache
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._images: dict[int, Tensor] = {}

    def image(self, index: int) -> Tensor:
        """[3, H, W] uint8, cut to a multiple of the scale."""
        if index in self._images:
            return self._images[index]
        pixels = to_rgb(read_image(self.files[index]).pixels)[0]
        height, width = (side - side % self.scale for side in pixels.shape[-2:])
        image = (pixels[:, :height, :width] * 255).round().to(torch.uint8)
        if self.cache:
            self._images[index] = image
        return image

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(gt, lq) as uint8, lq by the 8-bit MATLAB resize of the whole picture, as the benchmark files are made."""
        if index in self._pairs:
            return self._pairs[index]
        gt = self.image(index)
        pair = (gt, imresize_uint8(gt, 1 / self.scale))
        if self.cache:
            self._pairs[index] = pair
        return pair


def find_files(config: DataConfig) -> tuple[list[Path], list[Path]]:
    """(training files, held-out files) of the config's folders.

    Raises:
        DataError: a folder that does not exist or holds no image, or fewer files than are held out.
    """
    files: list[Path] = []
    for folder in config.folders:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise DataError(
                f"data.folders: expected a folder of images at {path}, found none; pass --set 'data.folders=[\"DIR\"]'"
            )
        found = list_images(path)
        if not found:
            raise DataError(f"data.folders: expected images in {path}, found none; choose another folder")
        files += found
    keep = len(files) - config.holdout
    if keep < 1:
        raise DataError(f"data.holdout: expected fewer than {len(files)} files, got {config.holdout}; hold out fewer")
    return files[:keep], files[keep:]


class PairData:
    """Training pairs: `batch(first_index, size)` gives `size` samples of an endless, fixed sequence from first_index on.

    Args:
        config: where files are and how they are degraded.
        scale: upscaling factor.
        seed: of the sequence.
        samples_per_step: samples of one optimiser step over all processes; the pool of degraded pairs slides once per step.

    Raises:
        DataError: see `find_files`; also a patch that is not a multiple of the scale, or a picture smaller than the patch.
        ValueError: unknown degradation preset.
    """

    def __init__(self, config: DataConfig, scale: int, seed: int, samples_per_step: int = 1) -> None:
        check_positive_int(config.gt_patch_px, "data.gt_patch_px")
        if config.gt_patch_px % scale:
            raise DataError(f"data.gt_patch_px: expected a multiple of the scale {scale}, got {config.gt_patch_px}; change it")
        check_positive_int(config.holdout, "data.holdout", low=0)
        if config.degradation != "matlab" and config.pool_size:
            check_positive_int(config.pool_size, "data.pool_size", low=0)
            check_positive_int(config.pool_refresh, "data.pool_refresh", low=0)
            if config.pool_patch_px < config.gt_patch_px or config.pool_patch_px % scale:
                raise DataError(
                    f"data.pool_patch_px: expected a multiple of {scale} from data.gt_patch_px {config.gt_patch_px} on, "
                    f"got {config.pool_patch_px}; change it"
                )
        if config.degradation != "matlab":
            from ..core.degradation import find_config

            find_config(config.degradation)  # an unknown preset is told before anything is read or written
        self.config = config
        self.scale = scale
        self.seed = seed
        self.samples_per_step = samples_per_step
        files, self.held_out = find_files(config)
        self.store = ImageStore(files, scale, config.cache_images)
        self._pool: dict[int, tuple[Tensor, Tensor, str]] = {}

    def check_held_out(self, minimum_px: int) -> None:
        """Read the validation pictures once, so that a bad one stops a run at its start and not hours later.

        Raises:
            DataError: names the file that cannot be read or is too small; `on_error = "skip"` leaves it out instead.
        """
        usable: list[Path] = []
        for path in self.held_out:
            try:
                sides = read_image(path).pixels.shape[-2:]
                problem = (
                    "" if min(sides) >= minimum_px else f"expected sides of at least {minimum_px} px, got {sides[0]}x{sides[1]}"
                )
            except (OSError, ValueError) as error:
                problem = f"not readable as an image ({error})"
            if not problem:
                usable.append(path)
            elif self.config.on_error == "stop":
                raise DataError(f'{path}: {problem}; remove it or set data.on_error = "skip"')
        self.held_out = usable

    def batch(self, first_index: int, size: int) -> PairBatch:
        """The samples [first_index, first_index + size) as one batch."""
        if self.config.degradation == "matlab":
            samples = [self._matlab_sample(first_index + i) for i in range(size)]
        elif self.config.pool_size:
            samples = [self._pooled_sample(first_index + i) for i in range(size)]
        else:
            return self._degraded(range(first_index, first_index + size), self.config.gt_patch_px)
        gts, lqs, names = zip(*samples, strict=True)
        return PairBatch(torch.stack(lqs).float() / 255, torch.stack(gts).float() / 255, tuple(names))

    def _readable(self, draw: _Sample, need_pair: bool) -> tuple[Tensor, Tensor | None, str]:
        """The drawn picture; unreadable files stop the run or, if so configured, the next file takes their place."""
        for offset in range(len(self.store.files)):
            index = (draw.file + offset) % len(self.store.files)
            path = self.store.files[index]
            try:
                gt, lq = self.store.pair(index) if need_pair else (self.store.image(index), None)
            except (OSError, ValueError) as error:
                if self.config.on_error == "stop":
                    raise DataError(
                        f'{path}: not readable as an image ({error}); remove it or set data.on_error = "skip"'
                    ) from error
                continue
            if min(gt.shape[-2:]) < self.config.gt_patch_px:
                if self.config.on_error == "stop":
                    raise DataError(
                        f"{path}: expected sides of at least {self.config.gt_patch_px} px, got {gt.shape[-2]}x{gt.shape[-1]}; "
                        'lower data.gt_patch_px, remove it or set data.on_error = "skip"'
                    )
                continue
            return gt, lq, path.name
        raise DataError(f"data.folders: expected at least one usable image in {', '.join(self.config.folders)}, found none")

    def _matlab_sample(self, index: int) -> tuple[Tensor, Tensor, str]:
        draw = _draw(self.seed, index, len(self.store.files))
        gt, lq, name = self._readable(draw, need_pair=True)
        assert lq is not None
        return (*self._cut(gt, lq, draw), name)

    def _cut(self, gt: Tensor, lq: Tensor, draw: _Sample) -> tuple[Tensor, Tensor]:
        """The same random patch of both, turned the same way."""
        patch = self.config.gt_patch_px // self.scale
        top = int(draw.top * (lq.shape[-2] - patch + 1))
        left = int(draw.left * (lq.shape[-1] - patch + 1))
        s = self.scale
        gt = gt[:, top * s : (top + patch) * s, left * s : (left + patch) * s]
        lq = lq[:, top : top + patch, left : left + patch]
        turn = draw.turn if self.config.augment else 0
        return dihedral(gt, turn), dihedral(lq, turn)

    def _crop(self, index: int, size_px: int) -> tuple[Tensor, int, str]:
        """A square ground-truth crop for degradation, as large as the picture allows up to size_px."""
        draw = _draw(self.seed, index, len(self.store.files))
        gt, _, name = self._readable(draw, need_pair=False)
        side = min(size_px, *(n - n % self.scale for n in gt.shape[-2:]))
        top, left = (int(r * (n - side + 1)) for r, n in zip((draw.top, draw.left), gt.shape[-2:], strict=True))
        gt = gt[:, top : top + side, left : left + side]
        return dihedral(gt, draw.turn if self.config.augment else 0), draw.seed, name

    def _degraded(self, indices: Sequence[int], size_px: int) -> PairBatch:
        from ..core.degradation import degrade

        crops = [self._crop(index, size_px) for index in indices]
        gt = torch.stack([crop for crop, _, _ in crops]).float() / 255
        # The target stays the plain ground truth: sharpening (USM) belongs to the degradation's input only.
        made = degrade(gt, self.config.degradation, seeds=[seed for _, seed, _ in crops], scale=self.scale, jpeg=self.config.jpeg)
        return PairBatch(made.lq, gt, tuple(name for _, _, name in crops))

    def _pooled_sample(self, index: int) -> tuple[Tensor, Tensor, str]:
        """A random patch of one of the `pool_size` newest pairs; the pool slides on by `pool_refresh` pairs per step."""
        newest = self.config.pool_size + (index // self.samples_per_step) * self.config.pool_refresh
        for stale in [key for key in self._pool if key < newest - self.config.pool_size or key >= newest]:
            del self._pool[stale]
        rng = random.Random(sample_seed(self.seed + 1, index))
        pair = newest - 1 - rng.randrange(self.config.pool_size)
        if pair not in self._pool:
            made = self._degraded([pair], self.config.pool_patch_px)
            as_bytes = [(x[0] * 255).round().to(torch.uint8) for x in (made.gt, made.lq)]
            self._pool[pair] = (as_bytes[0], as_bytes[1], made.names[0])
        gt, lq, name = self._pool[pair]
        draw = _Sample(0, rng.random(), rng.random(), rng.randrange(8), 0)
        return (*self._cut(gt, lq, draw), name)
