"""SwinIR-M and DRCT with AESOP's settings, from spandrel's architecture classes, which have the official parameter names."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # its function is untyped

from ..checks import check_image, check_positive_int
from ..compat import import_third_party
from ..images import pad_to_multiple
from .stochastic_depth import StochasticDepth


def swinir(
    scale: int = 4,
    img_size: int = 64,
    window_size: int = 8,
    embed_dim: int = 180,
    depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
    num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
    mlp_ratio: float = 2.0,
    drop_path_rate: float = 0.1,
    *,
    checkpoint_blocks: bool = False,
) -> nn.Module:
    """SwinIR with a pixel-shuffle head; the defaults are SwinIR-M for classical super-resolution, 11,900,199 parameters.

    Args:
        scale: 2, 3, 4 or 8.
        img_size: side of the training input; only the size of the stored attention masks depends on it.
        window_size: side of the attention windows.
        embed_dim: width, a multiple of every entry of `num_heads`.
        depths: blocks per group.
        num_heads: attention heads per group.
        mlp_ratio: hidden width of the blocks' MLP over embed_dim.
        drop_path_rate: stochastic depth of the last block, rising from 0; active in train mode, off in eval mode.
        checkpoint_blocks: recompute every group in the backward pass instead of keeping its activations.

    Returns:
        A module [B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w], not clamped, for any h, w from 2: it pads right and
        bottom by reflection to whole windows and crops.

    Source:
        Liang et al. 2021, arXiv:2108.10257; settings of AESOP: specification aesop.md 3.5.
    """
    options = dict(img_size=img_size, window_size=window_size, embed_dim=embed_dim, mlp_ratio=mlp_ratio)
    options |= dict(depths=list(depths), num_heads=list(num_heads), drop_path_rate=drop_path_rate)
    return _build("SwinIR", scale, options, [embed_dim], checkpoint_blocks)


def drct(
    scale: int = 4,
    img_size: int = 64,
    window_size: int = 16,
    embed_dim: int = 180,
    depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
    num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
    mlp_ratio: float = 2.0,
    drop_path_rate: float = 0.1,
    growth: int = 32,
    *,
    checkpoint_blocks: bool = False,
) -> nn.Module:
    """DRCT with a pixel-shuffle head; the defaults are DRCT x4 as AESOP trains it, 14,139,579 parameters.

    Args:
        scale: 2, 3, 4 or 8.
        img_size: side of the training input, a multiple of `window_size`; only stored attention masks depend on it.
        window_size: side of the attention windows.
        embed_dim: width.
        depths: one entry per group; its value only spaces the stochastic depth (a group always has five blocks).
        num_heads: attention heads per group; a dense block of width d has num_heads - d mod num_heads.
        mlp_ratio: hidden width of the MLP of the first three blocks of a group over their width; 1 in the others.
        drop_path_rate: stochastic depth, one rate per group; active in train mode, off in eval mode.
        growth: width of the dense connections.
        checkpoint_blocks: recompute every group in the backward pass instead of keeping its activations, as AESOP does.

    Returns:
        A module as `swinir` gives; here the padding to whole windows is ours, spandrel's class has none.

    Source:
        Hsu et al. 2024, arXiv:2404.00722; settings of AESOP: specification aesop.md 3.5.
    """
    check_positive_int(growth, "growth")
    options = dict(img_size=img_size, window_size=window_size, embed_dim=embed_dim, mlp_ratio=mlp_ratio, gc=growth)
    options |= dict(depths=list(depths), num_heads=list(num_heads), drop_path_rate=drop_path_rate)
    return _build("DRCT", scale, options, [embed_dim + k * growth for k in range(5)], checkpoint_blocks)


def _build(kind: str, scale: int, options: Mapping[str, Any], widths: Sequence[int], checkpoint_blocks: bool) -> nn.Module:
    if scale not in (2, 3, 4, 8):
        raise ValueError(f"scale: expected 2, 3, 4 or 8, got {scale!r}; the pixel-shuffle head exists for these factors only")
    for name in ("img_size", "window_size", "embed_dim"):
        check_positive_int(options[name], name)
    if len(options["depths"]) != len(options["num_heads"]):
        raise ValueError(
            f"num_heads: expected one entry per group, {len(options['depths'])} as in depths, got {len(options['num_heads'])}; "
            "give both lists the same length"
        )
    _check_sizes(options, widths)
    device = torch.empty(0).device  # spandrel's constructors read values of new tensors, which the meta device cannot
    with torch.device("cpu"):
        network: Any = _padded(kind)(upscale=scale, upsampler="pixelshuffle", resi_connection="1conv", img_range=1.0, **options)
    network.to(device)
    network.scale, network.size_multiple = scale, 1
    for module in network.modules():
        if type(module).__name__ == "WindowAttention":
            module.register_forward_pre_hook(_mask_like_input, with_kwargs=True)
        if type(getattr(module, "drop_path", None)).__name__ == "DropPath":
            module.drop_path = StochasticDepth(module.drop_path.drop_prob)
    if checkpoint_blocks:
        for group in network.layers:
            group.forward = functools.partial(checkpoint, group.forward, use_reentrant=False)
    return network


def _check_sizes(options: Mapping[str, Any], widths: Sequence[int]) -> None:
    """Windows tile the training input, and heads share the width of every block; spandrel's classes fail on it when called."""
    if options["img_size"] % options["window_size"]:
        raise ValueError(
            f"img_size: expected a multiple of window_size {options['window_size']}, got {options['img_size']}; change one"
        )
    for heads in options["num_heads"]:
        check_positive_int(heads, "num_heads")
        wrong = [width for width in widths if width % (heads if len(widths) == 1 else heads - width % heads)]
        if wrong:
            raise ValueError(
                f"num_heads: expected head counts that divide the blocks' widths {list(widths)}, got {heads}; change embed_dim, "
                "growth or num_heads"
            )


@functools.cache
def _padded(kind: str) -> Any:
    """Spandrel's class with inputs checked, padded to whole windows, and the result cropped; made once per kind."""
    base: Any = getattr(import_third_party(f"spandrel.architectures.{kind}"), kind)

    def forward(self: Any, lq: Tensor) -> Tensor:
        check_image(lq, "lq", channels=(3,))
        height, width = lq.shape[-2:]
        padded, _ = pad_to_multiple(lq, self.window_size)
        return base.forward(self, padded)[..., : height * self.upscale, : width * self.upscale]

    return type(kind, (base,), {"forward": forward, "__doc__": f"{kind} of spandrel, for inputs of any size."})


def _mask_like_input(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Masks that spandrel's blocks make for other sizes than `img_size` are float32 and would lift bf16 to it halfway."""
    mask = named.get("mask")
    return inputs, named if mask is None else {**named, "mask": mask.to(inputs[0].dtype)}
