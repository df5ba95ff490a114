"""Gaussian and Poisson noise whose every value is a function of (key, colour, row, column).

A counter-based hash takes the place of a stream of random numbers. So a noise field does not depend on the device, on the batch
or on the padding it is computed with, and two integers in a parameter record bring it back.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9 - (1 << 32)
_CELLS = 512


def _mix(z: Tensor) -> Tensor:
    """Scramble int32 values in place (xor with a logical shift, odd multiplication, twice): a bijection of 32-bit words."""
    z ^= (z >> 16).bitwise_and_(0xFFFF)
    z *= 0x7FEB352D
    z ^= (z >> 15).bitwise_and_(0x1FFFF)
    z *= 0x846CA68B - (1 << 32)
    z ^= (z >> 16).bitwise_and_(0xFFFF)
    return z


def random_bits(keys: Sequence[tuple[int, int]], channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Hash (key, channel, row, column) to 32 bits.

    Args:
        keys: one pair of 32-bit integers per sample.
        channels: number of fields per sample.
        height: rows; a larger field starts with the smaller one.
        width: columns, likewise.
        device: where to compute; the result is the same everywhere.

    Returns:
        [B, channels, height, width] int32, all values equally likely.
    """
    key = torch.tensor([[word - (1 << 32) if word >> 31 else word for word in pair] for pair in keys], dtype=torch.int32)
    key = key.to(device)
    rows = torch.arange(height, dtype=torch.int32, device=device)[None, None, :]
    lines = torch.arange(channels, dtype=torch.int32, device=device)[None, :, None] * 65536 + rows
    lines = _mix((lines * _GOLDEN) ^ key[:, :1, None])
    lines = _mix(lines ^ key[:, 1:, None])
    columns = torch.arange(width, dtype=torch.int32, device=device) * _GOLDEN
    return _mix(lines[..., None] ^ columns)


def gaussian_field(bits: Tensor) -> Tensor:
    """Turn random bits into standard normal values by the inverse distribution function (24 bits, at most 5.4 deviations)."""
    centred = (bits >> 8).to(torch.float32)
    centred.mul_(2.0**-23).add_(2.0**-24)
    return torch.erfinv(centred).mul_(math.sqrt(2.0))


@lru_cache(maxsize=18)
def poisson_tables(counts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Build Walker's alias tables of Poisson(level / 255 * counts) for level = 0..255.

    Args:
        counts: photon count at white, 1..256.
        device: where to keep them.

    Returns:
        threshold [256 * 512] float32: cell k of a level keeps its own value k with this probability;
        alias [256 * 512] float32: the value it gives otherwise. Values above 511 have probability below 1e-40 and are left out.

    Source:
        Walker 1977, ACM Transactions on Mathematical Software 3(3); built by Vose's method for all levels at once.
    """
    rate = np.arange(256, dtype=np.float64)[:, None] / 255.0 * counts
    k = np.arange(_CELLS, dtype=np.float64)[None, :]
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, _CELLS, dtype=np.float64)))])[None, :]
    mass = np.exp(k * np.log(np.maximum(rate, 1e-300)) - rate - log_factorial)
    weight = mass / mass.sum(1, keepdims=True) * _CELLS
    threshold = np.ones_like(weight)
    alias = np.tile(np.arange(_CELLS), (256, 1))
    level = np.arange(256)
    order = np.argsort(weight, axis=1, kind="stable")
    ordered = np.take_along_axis(weight, order, axis=1)
    small, large = np.zeros(256, dtype=np.int64), (ordered <= 1.0).sum(1)
    last_small = large.copy()
    left = ordered[level, np.minimum(large, _CELLS - 1)]
    # Every step fills one cell per level: the next light cell, or the heavy one once its surplus is used up.
    for _ in range(_CELLS):
        active = large < _CELLS
        takes_light = active & (left > 1.0) & (small < last_small)
        takes_heavy = active & ~takes_light
        heavy = order[level, np.minimum(large, _CELLS - 1)]
        light = order[level, np.minimum(small, _CELLS - 1)]
        light_weight = ordered[level, np.minimum(small, _CELLS - 1)]
        threshold[level[takes_light], light[takes_light]] = light_weight[takes_light]
        alias[level[takes_light], light[takes_light]] = heavy[takes_light]
        following = np.minimum(large + 1, _CELLS - 1)
        keeps = takes_heavy & (large + 1 < _CELLS)
        threshold[level[keeps], heavy[keeps]] = np.minimum(left[keeps], 1.0)
        alias[level[keeps], heavy[keeps]] = order[level, following][keeps]
        after_heavy = ordered[level, following] + left - 1.0
        left = np.where(takes_light, left - (1.0 - light_weight), np.where(takes_heavy, after_heavy, left))
        small, large = small + takes_light, large + takes_heavy
    tables = (torch.from_numpy(table.astype(np.float32)).flatten().to(device) for table in (threshold, alias))
    return next(tables), next(tables)


def poisson_counts(levels: Tensor) -> list[int]:
    """The photon count at white for each sample: 2^ceil(log2(number of distinct 8-bit values)).

    Args:
        levels: [B, ...] integers 0..255.

    Returns:
        B powers of two in 1..256.
    """
    batch = levels.shape[0]
    seen = torch.zeros(batch, 256, device=levels.device).scatter_(1, levels.reshape(batch, -1).long(), 1.0)
    return [1 << (int(count) - 1).bit_length() for count in seen.sum(1).cpu()]


def poisson_field(levels: Tensor, bits: Tensor, counts: Sequence[int]) -> Tensor:
    """Draw the deviation of a photon count from its mean.

        field = Poisson(v counts) / counts - v,   v = levels / 255

    Args:
        levels: [B, C, H, W] integers 0..255.
        bits: [B, C, H, W] int32 from `random_bits`.
        counts: B powers of two, see `poisson_counts`.

    Returns:
        [B, C, H, W] float32, mean 0, variance v / counts. Exact up to 23 random bits (alias method).
    """
    kinds = sorted(set(counts))
    device = levels.device
    tables = [poisson_tables(kind, device) for kind in kinds]
    threshold = tables[0][0] if len(kinds) == 1 else torch.cat([table[0] for table in tables])
    alias = tables[0][1] if len(kinds) == 1 else torch.cat([table[1] for table in tables])
    cell = bits & (_CELLS - 1)
    index = levels.to(torch.int32).mul(_CELLS).add_(cell)
    if len(kinds) > 1:
        start = torch.tensor([kinds.index(count) * 256 * _CELLS for count in counts], dtype=torch.int32, device=device)
        index += start[:, None, None, None]
    flat = index.flatten()
    # The upper 23 bits decide between the cell's own value and its alias; the arithmetic shift leaves them centred on zero.
    uniform = (bits >> 9).to(torch.float32).mul_(2.0**-23).add_(0.5)
    keeps = threshold.index_select(0, flat).view_as(uniform).sub_(uniform).gt_(0.0)
    other = alias.index_select(0, flat).view_as(uniform)
    value = torch.lerp(other, cell.to(torch.float32), keeps)
    white = torch.tensor(counts, dtype=torch.float32, device=device)[:, None, None, None]
    return value.div_(white).sub_(levels.to(torch.float32), alpha=1.0 / 255.0)
