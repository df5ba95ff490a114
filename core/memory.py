"""When memory runs out: how that is recognised, trying again with smaller tiles, and saying so where those would not help."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import torch

from .checks import check_positive_int

Result = TypeVar("Result")
MIN_TILE_PX = 64
_NO_MEMORY = re.compile(
    r"out[ _]?of[ _]?(\w+[ _])?memory|(can't|cannot|not|failed to) allocate|not enough memory|alloc(ation)?[ _]?failed"
    r"|status_memory_error|invalid buffer size",  # rocBLAS; Metal, for a buffer above its limit
    re.IGNORECASE,
)


ROOM = "let the models take turns (offload sequential, keep home), close other programs, or move to the CPU"
LOWER_PRECISION = f"choose a lower precision (8bit or 4bit where there is one), {ROOM}"


class DoesNotFitError(MemoryError):
    """Memory ran out where trying again with smaller tiles is no remedy: for weights, or while a model is conditioned.

    Args:
        what: did not fit, with its size where that is known.
        advice: what a user can do about it there.
    """

    def __init__(self, what: str, advice: str = LOWER_PRECISION) -> None:
        super().__init__(f"memory: expected room for {what}, got out of memory; {advice}")
        self.what = what


@contextmanager
def must_fit(what: str, advice: str = LOWER_PRECISION) -> Generator[None]:
    """Inside the block lack of memory becomes a `DoesNotFitError` about `what` with `advice`, the error itself chained.

    Raises:
        DoesNotFitError: see above; one from within keeps what it says.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DoesNotFitError) or not is_out_of_memory(error):
            raise
        raise DoesNotFitError(what, advice) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device.

    torch's own class, Python's MemoryError, and RuntimeErrors in which torch passes on what a library said: the allocators of
    CPU, CUDA, ROCm, Apple's and Intel's GPUs, and cuBLAS, cuDNN, cuFFT, hipBLAS, rocBLAS, MIOpen, which allocate work space on
    their own when they are first used.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def with_oom_retry(
    run: Callable[[int], Result],
    tile_px: int,
    min_tile_px: int = MIN_TILE_PX,
    *,
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
    notify: Callable[[str], None],
) -> Result:
    """Call run(tile_px); when memory runs out, say so, halve the tile and try again.

    Args:
        run: the whole tiled job for one tile size. It must not keep results of a failed try alive.
        tile_px: first tile size; give no more than the longer side of the image, since larger tiles change nothing.
        min_tile_px: smallest size to try.
        is_oom: which exceptions mean that memory ran out; all others pass through, and `DoesNotFitError` always does.
        notify: receives one readable line before each new try; a good place to empty caches too.

    Returns:
        What run returns.

    Raises:
        MemoryError: the smallest tile did not fit either; the last error is chained.
        DoesNotFitError: what no tile makes smaller did not fit.
    """
    check_positive_int(min_tile_px, "min_tile_px")
    while True:
        try:
            return run(tile_px)
        except Exception as error:
            if isinstance(error, DoesNotFitError) or not is_oom(error):
                raise
            smaller_px = tile_px // 2
            if smaller_px < min_tile_px:
                raise MemoryError(
                    f"tile_px: expected a tile that fits in memory, got out of memory at {tile_px} px and {min_tile_px} px is "
                    "the smallest allowed; close other programs, use a smaller batch or model, or move to the CPU"
                ) from error
        # Outside the handler: the traceback, and with it the tensors of the failed try, is gone before the next one starts.
        notify(f"out of memory with tiles of {tile_px} px; trying again with {smaller_px} px")
        tile_px = smaller_px
