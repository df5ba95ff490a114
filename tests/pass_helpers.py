"""How often a module runs: blocks that are recomputed in the backward pass run once more."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def counted_passes() -> Iterator[Counter[str]]:
    """Calls of modules within, by the name of their class."""
    calls: Counter[str] = Counter()

    def count(module: nn.Module, _: Any) -> None:
        calls[type(module).__name__] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
