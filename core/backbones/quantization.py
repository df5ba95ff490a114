"""Weight-only 8-bit and 4-bit linear layers through bitsandbytes, an optional dependency."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import import_third_party

BITS = {"8bit": 8, "4bit": 4}
_BLOCK_SIZE = {8: 256, 4: 64}  # weights that share one scale
_BLOCK_LISTS = (
    *("transformer_blocks", "single_transformer_blocks", "layers", "noise_refiner", "context_refiner"),
    *("down_blocks", "mid_block", "up_blocks"),
)
_KEPT = ("adaLN", ".norm.linear", ".norm1.linear", ".norm1_context.linear", "time_emb_proj")  # modulation


class QuantizedLinear(nn.Module):
    """y = dequantize(codes) x + b: only the storage is small, the arithmetic is that of the input's precision.

    8 bits use a dynamic code per block of 256 weights (relative error about 1 %), 4 bits the normal-float code per block of 64
    (about 9 %). Scales are stored as bytes, so that moving the module to another precision does not round them.

    Args:
        linear: what to replace; its weights are read on their own device.
        bits: 8 or 4.

    Source:
        Dettmers et al. 2021, arXiv:2110.02861 (block-wise 8 bits); Dettmers et al. 2023, arXiv:2305.14314, section 3 (NF4).
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        functional: Any = import_third_party("bitsandbytes.functional")
        weight = linear.weight.detach()
        self.bits = bits
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with _eagerly(weight):
            if bits == 4:
                codes, state = functional.quantize_4bit(weight, blocksize=_BLOCK_SIZE[4], quant_type="nf4")
            else:
                codes, state = functional.quantize_blockwise(weight, blocksize=_BLOCK_SIZE[8])
        self.register_buffer("codes", codes)
        self.register_buffer("scales", state.absmax.float().contiguous().view(torch.uint8))
        self.register_buffer("book", state.code.float().contiguous().view(torch.uint8))
        self.bias: nn.Parameter | None = linear.bias

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weights, [out_features, in_features], rounded as they are stored."""
        functional: Any = import_third_party("bitsandbytes.functional")
        codes: Any = self.codes
        scales, book = (self.get_buffer(name).view(torch.float32) for name in ("scales", "book"))
        shape = torch.Size((self.out_features, self.in_features))
        size = _BLOCK_SIZE[self.bits]
        with _eagerly(codes):
            if self.bits == 4:
                state = functional.QuantState(scales, shape=shape, code=book, blocksize=size, quant_type="nf4", dtype=dtype)
                return functional.dequantize_4bit(codes, state)
            state = functional.QuantState(scales, shape=shape, code=book, blocksize=size, dtype=dtype)
            return functional.dequantize_blockwise(codes, state).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(x, self.weight_in(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def _eagerly(x: Tensor) -> AbstractContextManager[Any]:
    """On a processor bitsandbytes compiles its code anew for every shape of a layer, which takes minutes: run it as written."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return nullcontext()
    compiler: Any = torch.compiler
    return compiler.set_stance("force_eager")


def quantized_layers(transformer: nn.Module) -> list[str]:
    """Names of the layers that `quantize` replaces."""
    root: Any = transformer
    return [
        name
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in _BLOCK_LISTS and not any(part in name for part in _KEPT)
    ]


def stored_bytes(transformer: nn.Module, bits: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of a transformer's weights after `quantize`, also of one on the meta device.

    Args:
        transformer: not yet quantised.
        bits: 16, 8 or 4; 16 leaves everything in `dtype`.
        dtype: of what is not quantised.
    """
    whole = sum(tensor.numel() for tensor in (*transformer.parameters(), *transformer.buffers()))
    names = quantized_layers(transformer) if bits < 16 else []
    small = sum(transformer.get_parameter(f"{name}.weight").numel() for name in names)
    scales = 4 * small // _BLOCK_SIZE[bits] if bits < 16 else 0
    return (whole - small) * dtype.itemsize + small * bits // 8 + scales


def quantize(transformer: nn.Module, bits: int, device: str | torch.device | None = None) -> int:
    """Replace the linear layers of a transformer's blocks in place, one by one, so that the full model is never copied.

    Embedders, modulation, norms and the output layer keep their precision.

    Args:
        transformer: of any latent backbone, any device; adapters must be merged before.
        bits: 8 or 4.
        device: where each layer goes before it is quantised; None leaves it.

    Returns:
        How many layers were replaced.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed; the message says how to install it.
        ValueError: other bits.
    """
    if bits not in _BLOCK_SIZE:
        raise ValueError(f"bits: expected 8 or 4, got {bits}; choose one of them")
    names = quantized_layers(transformer)
    for name in names:
        linear: Any = transformer.get_submodule(name)
        parent, _, child = name.rpartition(".")
        replaced = QuantizedLinear(linear if device is None else linear.to(device), bits)
        transformer.get_submodule(parent).register_module(child, replaced)
    return len(names)
