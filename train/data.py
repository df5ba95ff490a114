"""Pictures -> PairBatch.

Every sample is a pure function of (seed, sample index), so order, workers, processes and resuming cannot change it.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.checks import check_positive_int
from ..core.records import PairBatch
from ..core.resize import bicubic
from .config import DataConfig
from .pool import pooled_index
from .sources import DataError, Source, find_sources
from .store import ImageStore, Windows

__all__ = ["DataError", "ImageStore", "PairData", "dihedral", "sample_seed"]

LOGGER = logging.getLogger("alignsr")
Pooled = tuple[Tensor, Tensor, str]


@dataclass(frozen=True)
class _Sample:
    """The draws of one sample."""

    file: int  # or window
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
    """One of the eight flips and quarter turns of [..., H, W]; turn 0 is the identity, turn 1 mirrors left and right."""
    if turn & 1:
        x = x.flip(-1)
    if turn & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if turn & 4 else x


def fitted(image: Tensor, side_px: int) -> Tensor:
    """The middle square of a picture whose short side is resized to `side_px`, small pictures enlarged.

    Halved with a box filter while the short side is at least twice as long, then bicubic (antialiased), then cut.

    Args:
        image: [3, H, W] uint8.
        side_px: of the square.

    Returns:
        [3, side_px, side_px] uint8.

    Source:
        strsr.md section 2.1 item 1.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    while min(picture.size) >= 2 * side_px:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = side_px / min(picture.size)
    size = (max(side_px, round(picture.width * factor)), max(side_px, round(picture.height * factor)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return torch.from_numpy(np.array(picture.crop((left, top, left + side_px, top + side_px)))).permute(2, 0, 1).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Samples are computed by one thread each, here and in workers: sums over several threads could differ in the last bit."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ShardOrder:
    """Which picture of a set of shards is sample `index`.

    Every epoch has all of them once, shard after shard in a shuffled order, and shuffled inside each shard. It is a pure function
    of the index, so processes share the order by taking turns and a resumed run goes on in it; neighbouring samples lie in one
    shard, so that large sets are read nearly in order.

    Args:
        shards: the shard of every picture, non-decreasing.
        seed: of the order.
    """

    def __init__(self, shards: Sequence[int], seed: int) -> None:
        self.seed, self.count = seed, len(shards)
        starts = [i for i, shard in enumerate(shards) if i == 0 or shards[i - 1] != shard]
        self._spans = list(zip(starts, [*starts[1:], len(shards)], strict=True))
        self._epoch = lru_cache(maxsize=4)(self._order_of_shards)
        self._inside = lru_cache(maxsize=64)(self._order_inside)

    def __call__(self, index: int) -> int:
        epoch, position = divmod(index, self.count)
        for shard, end in self._epoch(epoch):
            first, last = self._spans[shard]
            if position < end:
                return first + self._inside(epoch, shard)[position - (end - (last - first))]
        raise AssertionError("positions below count lie in a shard")

    def _order_of_shards(self, epoch: int) -> list[tuple[int, int]]:
        order = list(range(len(self._spans)))
        random.Random(f"alignsr:{self.seed}:{epoch}").shuffle(order)
        return list(zip(order, accumulate(self._spans[s][1] - self._spans[s][0] for s in order), strict=True))

    def _order_inside(self, epoch: int, shard: int) -> list[int]:
        first, last = self._spans[shard]
        order = list(range(last - first))
        random.Random(f"alignsr:{self.seed}:{epoch}:{shard}").shuffle(order)
        return order


class PairData:
    """Training pairs as an endless, fixed sequence; several threads may ask for batches of it at once.

    Args:
        config: where pictures are and how they are degraded.
        scale: upscaling factor.
        seed: of the sequence.
        samples_per_step: samples of one optimiser step over all processes; the pool of degraded pairs slides once per step.

    Raises:
        DataError: see `find_sources`; also a patch that is not a multiple of the scale, or a picture smaller than the patch.
        ValueError: unknown degradation preset.
    """

    def __init__(self, config: DataConfig, scale: int, seed: int, samples_per_step: int = 1) -> None:
        _check(config, scale)
        self.config = config
        self.scale = scale
        self.seed = seed
        self.samples_per_step = samples_per_step
        sources, self.held_out = find_sources(config, scale)
        folder = Path(config.decoded_cache).expanduser() if config.decoded_cache else None
        self.store = ImageStore(sources, scale, config.cache_images, folder)
        self._order = ShardOrder([source.shard for source in sources], seed) if config.shards else None
        self._lock = Lock()
        self._told: set[str] = set()
        self._windows = self._grid(sources) if config.subimage_px else None
        self._pool: dict[int, Future[Pooled]] = {}

    def check_held_out(self, minimum_px: int) -> None:
        """Read the validation pictures once, so that a bad one stops a run at its start and not hours later.

        Raises:
            DataError: names the file that cannot be read or is too small; `on_error = "skip"` leaves it out instead.
        """
        usable: list[Source] = []
        for source in self.held_out:
            try:
                sides = source.gt.read().pixels.shape[-2:]
                problem = (
                    "" if min(sides) >= minimum_px else f"expected sides of at least {minimum_px} px, got {sides[0]}x{sides[1]}"
                )
            except (OSError, ValueError) as error:
                problem = f"not readable as an image ({error})"
            if problem:
                self._complain(f"{source.gt.label}: {problem}; remove it")
            else:
                usable.append(source)
        self.held_out = usable

    def batch(self, first_index: int, size: int) -> PairBatch:
        """The samples [first_index, first_index + size) as one batch, in the order of `pair_pool` if there is one."""
        indices = [pooled_index(first_index + i, self.config.pair_pool, self.seed) for i in range(size)]
        with one_thread():
            if self.config.degradation == "matlab":
                samples = [self._matlab_sample(index) for index in indices]
            elif self.config.pool_size:
                samples = [self._pooled_sample(index) for index in indices]
            else:
                return self._degraded(indices, self.config.gt_patch_px)
            gts, lqs, names = zip(*samples, strict=True)
            return PairBatch(torch.stack(lqs).float() / 255, torch.stack(gts).float() / 255, tuple(names))

    def forget_before(self, first_index: int) -> None:
        """Let go of pooled pairs that no sample from `first_index` on can use."""
        oldest = self._newest(first_index) - self.config.pool_size
        with self._lock:
            for stale in [pair for pair in self._pool if pair < oldest]:
                del self._pool[stale]

    def _grid(self, sources: Sequence[Source]) -> Windows:
        sizes: list[tuple[int, int]] = []
        for source in sources:
            try:
                height, width = source.gt.sides()
            except (OSError, ValueError, SyntaxError) as error:
                self._complain(f"{source.gt.label}: not readable as an image ({error}); remove it")
                height = width = 0
            sizes.append((height - height % self.scale, width - width % self.scale))
        return Windows(sizes, self.config.subimage_px, self.config.subimage_step_px)

    def _complain(self, problem: str) -> None:
        """Stop with the message or, if so configured, say it once and go on without the picture."""
        if self.config.on_error == "stop":
            raise DataError(f'{problem} or set data.on_error = "skip"')
        with self._lock:
            is_new = problem not in self._told
            self._told.add(problem)
        if is_new:
            LOGGER.warning("%s; left out", problem)

    def _readable(self, index: int, need_pair: bool) -> tuple[Tensor, Tensor | None, _Sample, str]:
        """The picture of a sample, or its window; if it cannot be used, the run stops or the next one takes its place."""
        units = len(self._windows) if self._windows else len(self.store.sources)
        draw = _draw(self.seed, index, units)
        chosen, top, left = self._windows.locate(draw.file) if self._windows else (draw.file, 0, 0)
        chosen = self._order(index) if self._order else chosen
        for offset in range(len(self.store.sources)):
            number = (chosen + offset) % len(self.store.sources)
            source = self.store.sources[number].gt
            try:
                gt, lq = self.store.pair(number) if need_pair else (self.store.image(number), None)
            except DataError as error:
                self._complain(f"{error}; remove it")
                continue
            except (OSError, ValueError) as error:
                self._complain(f"{source.label}: not readable as an image ({error}); remove it")
                continue
            if min(gt.shape[-2:]) < self.config.gt_patch_px and self.config.crop == "random":
                self._complain(
                    f"{source.label}: expected sides of at least {self.config.gt_patch_px} px, got "
                    f"{gt.shape[-2]}x{gt.shape[-1]}; lower data.gt_patch_px, remove it"
                )
                continue
            if self._windows:
                gt, lq = self._window(gt, lq, *((top, left) if offset == 0 else (0, 0)))
            return gt, lq, draw, source.name
        raise DataError(f"data.folders: expected at least one usable image in {', '.join(self.config.folders)}, found none")

    def _window(self, gt: Tensor, lq: Tensor | None, top: int, left: int) -> tuple[Tensor, Tensor | None]:
        side, s = self.config.subimage_px, self.scale
        gt = gt[:, top : top + side, left : left + side]
        return gt, None if lq is None else lq[:, top // s : (top + side) // s, left // s : (left + side) // s]

    def _matlab_sample(self, index: int) -> Pooled:
        gt, lq, draw, name = self._readable(index, need_pair=True)
        assert lq is not None
        return (*self._cut(gt, lq, draw), name)

    def _turn(self, draw: _Sample) -> int:
        if not self.config.augment:
            return 0
        return draw.turn if self.config.turns == "all" else draw.turn & 1

    def _cut(self, gt: Tensor, lq: Tensor, draw: _Sample) -> tuple[Tensor, Tensor]:
        """The same random patch of both, turned the same way."""
        patch = self.config.gt_patch_px // self.scale
        top = int(draw.top * (lq.shape[-2] - patch + 1))
        left = int(draw.left * (lq.shape[-1] - patch + 1))
        s, turn = self.scale, self._turn(draw)
        gt = gt[:, top * s : (top + patch) * s, left * s : (left + patch) * s]
        lq = lq[:, top : top + patch, left : left + patch]
        return dihedral(gt, turn), dihedral(lq, turn)

    def _crop(self, index: int, size_px: int) -> tuple[Tensor, int, str]:
        """A square ground-truth crop for degradation, as large as the picture allows up to size_px."""
        gt, _, draw, name = self._readable(index, need_pair=False)
        if self.config.crop == "fit":
            return dihedral(fitted(gt, size_px), self._turn(draw)), draw.seed, name
        gt = self._shrunk(gt, draw)
        side = min(size_px, *(n - n % self.scale for n in gt.shape[-2:]))
        top, left = (int(r * (n - side + 1)) for r, n in zip((draw.top, draw.left), gt.shape[-2:], strict=True))
        gt = gt[:, top : top + side, left : left + side]
        return dihedral(gt, self._turn(draw)), draw.seed, name

    def _shrunk(self, gt: Tensor, draw: _Sample) -> Tensor:
        """The picture reduced by the factor drawn for this sample, never below the patch: a set of few pictures gains scales."""
        shortest = min(gt.shape[-2:])
        low = max(self.config.gt_scale_min, self.config.gt_patch_px / shortest)
        factor = low + (1 - low) * random.Random(draw.seed).random()
        if factor >= 1:
            return gt
        height, width = (max(self.config.gt_patch_px, round(side * factor)) for side in gt.shape[-2:])
        return (bicubic(gt[None].float() / 255, (height, width))[0].clamp(0, 1) * 255).round().to(torch.uint8)

    def _degraded(self, indices: Sequence[int], size_px: int) -> PairBatch:
        from ..core.degradation import degrade

        crops = [self._crop(index, size_px) for index in indices]
        gt = torch.stack([crop for crop, _, _ in crops]).float() / 255
        # The target stays the plain ground truth: sharpening (USM) belongs to the degradation's input only.
        made = degrade(gt, self.config.degradation, seeds=[seed for _, seed, _ in crops], scale=self.scale, jpeg=self.config.jpeg)
        return PairBatch(made.lq, gt, tuple(name for _, _, name in crops))

    def _newest(self, index: int) -> int:
        return self.config.pool_size + (index // self.samples_per_step) * self.config.pool_refresh

    def _pooled_sample(self, index: int) -> Pooled:
        """A random patch of one of the `pool_size` newest pairs; the pool slides on by `pool_refresh` pairs per step."""
        rng = random.Random(sample_seed(self.seed + 1, index))
        gt, lq, name = self._pooled_pair(self._newest(index) - 1 - rng.randrange(self.config.pool_size))
        draw = _Sample(0, rng.random(), rng.random(), rng.randrange(8), 0)
        return (*self._cut(gt, lq, draw), name)

    def _pooled_pair(self, pair: int) -> Pooled:
        """Pair number `pair`; made by the first thread that wants it while others wait."""
        with self._lock:
            known = self._pool.get(pair)
            slot = known or self._pool.setdefault(pair, Future())
        if known is not None:
            return known.result()
        try:
            made = self._degraded([pair], self.config.pool_patch_px)
            gt, lq = ((x[0] * 255).round().to(torch.uint8) for x in (made.gt, made.lq))
        except BaseException as error:
            with self._lock:
                self._pool.pop(pair, None)
            slot.set_exception(error)
            raise
        slot.set_result((gt, lq, made.names[0]))
        return slot.result()


def _check(config: DataConfig, scale: int) -> None:
    """What can be said before any picture is looked at."""
    check_positive_int(config.gt_patch_px, "data.gt_patch_px")
    if config.gt_patch_px % scale:
        raise DataError(f"data.gt_patch_px: expected a multiple of the scale {scale}, got {config.gt_patch_px}; change it")
    check_positive_int(config.holdout, "data.holdout", low=0)
    check_positive_int(config.workers, "data.workers", low=0, high=256)
    if config.subimage_px:
        check_positive_int(config.subimage_px, "data.subimage_px", low=config.gt_patch_px)
        check_positive_int(config.subimage_step_px, "data.subimage_step_px")
        if config.subimage_px % scale or config.subimage_step_px % scale:
            raise DataError(
                f"data.subimage_px: expected multiples of the scale {scale} for it and data.subimage_step_px, "
                f"got {config.subimage_px} and {config.subimage_step_px}; change them"
            )
        if config.shards:
            raise DataError("data.subimage_px: expected 0 with data.shards, got sub-images; cut them before packing the shards")
    check_positive_int(config.pair_pool, "data.pair_pool", low=0)
    if config.crop == "fit" and (config.degradation == "matlab" or config.pool_size or config.subimage_px):
        raise DataError(
            'data.crop: expected "random" with data.degradation = "matlab", data.pool_size or data.subimage_px, got "fit"; '
            "it makes one sample of a whole picture, choose a degradation preset and leave the others out"
        )
    if config.pair_pool and config.pool_size:
        raise DataError(
            f"data.pair_pool: expected 0 beside data.pool_size, got {config.pair_pool}; that pool mixes samples already"
        )
    if config.degradation == "matlab":
        return
    if config.lq_folders:
        raise DataError(
            f"data.degradation: expected matlab beside data.lq_folders, got {config.degradation!r}; "
            "low-resolution files from disk are taken as they are, leave out one of the two"
        )
    if config.pool_size:
        check_positive_int(config.pool_size, "data.pool_size", low=0)
        check_positive_int(config.pool_refresh, "data.pool_refresh", low=0)
        if config.pool_patch_px < config.gt_patch_px or config.pool_patch_px % scale:
            raise DataError(
                f"data.pool_patch_px: expected a multiple of {scale} from data.gt_patch_px {config.gt_patch_px} on, "
                f"got {config.pool_patch_px}; change it"
            )
    from ..core.degradation import find_config

    find_config(config.degradation)  # an unknown preset is told before anything is read or written
