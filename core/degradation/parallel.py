"""One sample per CPU thread: small images keep several threads busy that way, and hardly within one operation."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Kept between calls, since new threads get new memory from the system; a forked process has no threads and makes its own."""
    del process
    return ThreadPoolExecutor(threads, "alignsr-degrade", initializer=torch.set_num_threads, initargs=(1,))


def side_by_side(work: Callable[[int], T], count: int) -> list[T]:
    """Call work(0) .. work(count - 1) on as many threads as torch may use, each of them with one thread for its own operations.

    So a result does not depend on the number of threads either. The caller's gradient and inference modes hold inside.

    Args:
        work: what to do for one sample; must neither touch the others nor call this function.
        count: number of samples.

    Returns:
        The results in order. The first exception is raised again.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(index) for index in range(count)]
    with_grad, is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def one(index: int) -> T:
        with torch.inference_mode(is_inference), torch.set_grad_enabled(with_grad):
            return work(index)

    try:
        return list(_pool(os.getpid(), threads).map(one, range(count)))
    finally:
        torch.set_num_threads(threads)  # torch gives threads that begin later the number that any thread set last
