"""The weighted energy of a DCT on a processor, in half the multiplications: its time is that of its products.

Rows of the DCT's matrix D are even or odd about the middle of the axis. With E and O, left halves of its even and odd rows,

    D[2 k] x = E (first half + flipped last half),   D[2 k + 1] x = O (first half - flipped last half)

on either axis: four quarters of the spectrum, never brought into one order, since a weighted sum of squares has none.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .spectral import dct_matrix

SMALLEST_SIDE = 32  # below, the additional passes cost more than the products that they save


def can_fold(x: Tensor) -> bool:
    """Whether `folded_energy` takes x and is worth while: on a processor, both sides even and not small."""
    return x.device.type == "cpu" and all(side % 2 == 0 and side >= SMALLEST_SIDE for side in x.shape[-2:])


def folded_energy(x: Tensor, weights: Tensor) -> Tensor:
    """Mean over elements of weights |DCT(x)|^2, per sample; differentiable once.

    Args:
        x: [B, C, h, w] float32 or float64 on the CPU, h and w even.
        weights: [h, w], same type; the same tensor again and again, since its quarters are kept.

    Returns:
        [B], as x.
    """
    energy: Any = _FoldedEnergy
    return energy.apply(x, *_quarters(weights))


class _FoldedEnergy(torch.autograd.Function):
    """dE/dx = (2 / n) IDCT(weights DCT(x)), from the weighted spectrum that is there already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        rows, columns = (_halves(side, x.dtype) for side in x.shape[-2:])
        energy, weighted = x.new_zeros(x.shape[0]), list[Tensor]()
        with torch.autocast("cpu", enabled=False):
            for n, half in enumerate(_fold(x, -1)):
                for m, quarter in enumerate(_fold(half @ columns[n].mT, -2)):
                    spectrum = rows[m] @ quarter
                    weighted.append(spectrum * weights[2 * n + m])
                    energy += (spectrum * weighted[-1]).flatten(1).sum(1)
        ctx.save_for_backward(*weighted)
        return energy / x[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        weighted: tuple[Tensor, ...] = ctx.saved_tensors
        rows, columns = (_halves(2 * side, weighted[0].dtype) for side in weighted[0].shape[-2:])
        factor = gradients[0] * (2 / (4 * weighted[0][0].numel()))
        with torch.autocast("cpu", enabled=False):
            sides = [
                _unfold(rows[0].mT @ weighted[2 * n], rows[1].mT @ weighted[2 * n + 1], -2) @ matrix
                for n, matrix in enumerate(columns)
            ]
        return (_unfold(sides[0], sides[1], -1).mul_(factor.reshape(-1, 1, 1, 1)), *[None] * len(weighted))


def _fold(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, last = x.chunk(2, dim)
    last = last.flip(dim)
    return first + last, first - last


def _unfold(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    half = even.shape[dim]
    out = even.new_empty([2 * side if axis == even.ndim + dim else side for axis, side in enumerate(even.shape)])
    torch.add(even, odd, out=out.narrow(dim, 0, half))
    out.narrow(dim, half, half).copy_((even - odd).flip(dim))
    return out


@lru_cache(maxsize=32)
def _halves(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """E and O, [side / 2, side / 2] each; made outside inference mode, since training may use what a preview has made."""
    with torch.inference_mode(False), torch.no_grad():
        left = dct_matrix(side, dtype=dtype)[:, : side // 2]
        return left[::2].contiguous(), left[1::2].contiguous()


@lru_cache(maxsize=64)
def _quarters(weights: Tensor) -> tuple[Tensor, ...]:
    """Weights of the quarters, in the order in which they come: even columns first, in them even rows first."""
    with torch.inference_mode(False), torch.no_grad():
        return tuple(weights[m::2, n::2].contiguous() for n in (0, 1) for m in (0, 1))
