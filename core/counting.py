"""What a step costs before anybody owns the device for it: arithmetic and memory, counted on tensors without values."""

import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the products in `run` (matrices, convolutions, attention); a multiply-add counts as two.

    Args:
        run: computes on any device; on the meta device it takes no time and no memory.

    Example:
        >>> x = torch.empty(4, 8, device="meta")
        >>> count_flops(lambda: x @ x.mT) == 2 * 4 * 8 * 4
        True
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes of tensors made in `run` that live at once, run eagerly on the meta device.

    Attention is taken as fused: its matrix of scores is never stored. Workspaces of libraries, and what an allocator keeps back,
    come on top.

    Args:
        run: computes on the meta device.

    Example:
        >>> x = torch.empty(1000, device="meta")
        >>> peak_bytes(lambda: (x + 1) * 2)
        8000
    """
    with _fused_attention(), _Live() as live:
        run()
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the storages that operations make and takes them off when they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._note((args, kwargs), is_made=False)  # what was there before: weights, inputs
        out = func(*args, **(kwargs or {}))
        self._note(out, is_made=True)
        return out

    def _note(self, values: Any, *, is_made: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                self._add(tensor, is_made)

    def _add(self, tensor: Tensor, is_made: bool) -> None:
        storage: Any = tensor.untyped_storage()
        key, size = id(storage), int(storage.nbytes()) if is_made else 0
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@contextmanager
def _fused_attention() -> Generator[None]:
    """Scaled dot-product attention as a kernel that stores nothing but its result, also where checkpointed blocks run again."""
    kernel: Any = _Kernel
    kept: Any = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *options: Any, **more: Any) -> Tensor:
        return kernel.apply(query, key, value)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


class _Kernel(torch.autograd.Function):
    """What such a kernel makes: its result, and gradients of its inputs, for which it keeps inputs and result."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del gradients
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def vlm_flops(config: Any, height: int, width: int, text_tokens: int) -> int:
    """Products of one pass of Qwen3-VL without its output layer over an image and a prompt, counted from its configuration.

    Its code looks at values on the way and so does not run on the meta device.

    Args:
        config: `Qwen3VLConfig`.
        height: of the image as the vision tower sees it, px.
        width: the same.
        text_tokens: that are no image tokens.
    """
    vision, text = config.vision_config, config.text_config
    patches = height * width // vision.patch_size**2
    wide, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * wide**2 + 2 * wide * vision.intermediate_size
    rows = patches // vision.spatial_merge_size**2
    mergers = (1 + len(vision.deepstack_visual_indexes)) * rows * (merged**2 + merged * vision.out_hidden_size)
    tower = patches * (pixels * wide + vision.depth * block) + 2 * vision.depth * patches**2 * wide + mergers
    tokens, heads = rows + text_tokens, text.num_attention_heads * text.head_dim
    groups = text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * heads + 2 * groups + 3 * text.intermediate_size)
    model = text.num_hidden_layers * (tokens * layer + 2 * tokens**2 * heads)
    return 2 * (tower + model)


def state_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a module's parameters and buffers in a precision, also of one on the meta device."""
    count = sum(t.numel() for t in (*module.parameters(), *module.buffers()))
    return count * torch.empty(0, dtype=dtype).element_size()
