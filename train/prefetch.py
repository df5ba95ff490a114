"""Coming batches prepared in the background, exactly those that `PairData.batch` would give."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from types import TracebackType
from typing import Protocol, Self

import torch

from ..core.records import PairBatch


class Samples(Protocol):
    """What batches are made of: an endless sequence in which a sample depends on nothing but its index."""

    def batch(self, first_index: int, size: int) -> PairBatch:
        """The samples [first_index, first_index + size)."""
        ...

    def forget_before(self, first_index: int) -> None:
        """No sample before that one is asked for again."""
        ...


class Prefetch:
    """`batch(first_index, size)` of `data`, prepared ahead by threads; use it as a context manager, which ends them.

    Samples depend on nothing but their index, so preparing them elsewhere and earlier cannot change them. An error while a batch
    is prepared is raised where that batch is asked for. Threads and not processes: decoding, resizing and convolutions run
    outside of Python's lock, and nothing has to be imported or copied again (ComfyUI loads this package under its path as name).

    Args:
        data: what makes batches.
        workers: number of threads; 0 makes every batch when it is asked for.
        stride: distance of the first indices of one process's successive batches.
        end: no batch starts here or later.
        pin: put batches into page-locked memory, from which a GPU copies while it computes.
    """

    def __init__(self, data: Samples, workers: int, stride: int, end: int, pin: bool = False) -> None:
        self.data, self.workers, self.stride, self.end, self.pin = data, workers, stride, end, pin
        self._pool = _single_threaded_workers(workers) if workers else None
        self._coming: deque[tuple[int, int, Future[PairBatch]]] = deque()

    def batch(self, first_index: int, size: int) -> PairBatch:
        """The samples [first_index, first_index + size); those that follow are ordered at the same time."""
        self.data.forget_before(first_index)
        if self._pool is None:
            return self._make(first_index, size)
        if self._coming and self._coming[0][:2] != (first_index, size):  # asked out of turn: start anew from here
            self._drop()
        following = self._coming[-1][0] + self.stride if self._coming else first_index
        while len(self._coming) < 1 + 2 * self.workers and (following < self.end or not self._coming):
            self._coming.append((following, size, self._pool.submit(self._make, following, size)))
            following += self.stride
        return self._coming.popleft()[2].result()

    def close(self) -> None:
        """Give up what is ordered and wait for the threads, which finish the batch they are at."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _drop(self) -> None:
        for _, _, future in self._coming:
            future.cancel()
        self._coming.clear()

    def _make(self, first_index: int, size: int) -> PairBatch:
        batch = self.data.batch(first_index, size)
        return batch.pin_memory() if self.pin else batch


def _single_threaded_workers(count: int) -> ThreadPoolExecutor:
    """Many threads that use one core each, instead of all of them for each."""
    # torch keeps this number per thread, from the thread's first look at it on; until then the last one set anywhere counts
    threads = torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()

    pool = ThreadPoolExecutor(count, "alignsr-data", start)
    everyone = Barrier(count + 1)
    for _ in range(count):
        pool.submit(everyone.wait)
    everyone.wait()
    torch.set_num_threads(threads)
    return pool
