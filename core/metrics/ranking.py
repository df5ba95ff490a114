"""From many raw scores to one reward per candidate: direction, per-group min-max, equal halves."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .spec import MetricSpec


def align(scores: Tensor, specs: Sequence[MetricSpec]) -> Tensor:
    """Turn every column so that higher is better: a[m, k] = +-s[m, k].

    Args:
        scores: [M, K] raw scores.
        specs: K metrics, in the order of the columns.

    Returns:
        [M, K] float64.
    """
    signs = torch.tensor([1.0 if spec.higher_is_better else -1.0 for spec in specs], dtype=torch.float64, device=scores.device)
    return scores.double() * signs


def normalize(aligned: Tensor, ranges: Tensor | None = None) -> Tensor:
    """Min-max each column over the candidates, or over fixed ranges.

        sbar[m, k] = (a[m, k] - min_k) / (max_k - min_k),   0.5 for a column without spread

    Args:
        aligned: [M, K] finite, higher is better.
        ranges: [K, 2] lowest and highest aligned value per metric; None takes them from these M candidates. Not clipped.

    Returns:
        [M, K] float64, in [0, 1] when `ranges` is None.
    """
    low, high = (aligned.amin(0), aligned.amax(0)) if ranges is None else (ranges[:, 0], ranges[:, 1])
    spread = high - low
    flat = spread <= 0
    return torch.where(flat, torch.full_like(aligned, 0.5), (aligned - low) / torch.where(flat, torch.ones_like(spread), spread))


def score_ranges(scores: Tensor) -> Tensor:
    """Lowest and highest raw score per metric of a pool, to be kept as the `ranges` of later rewards.

    Rewards by ranges of one fixed pool can be compared: a group of one has a reward, and outputs of another model have one on the
    same scale, below 0 or above 1 where they leave the pool.

    Args:
        scores: [M, K] raw scores; candidates with a score that is not finite are left out.

    Returns:
        [K, 2] float64.

    Raises:
        ValueError: no usable candidate.

    Source:
        DP2O-SR, specification 5.2: for evaluation over a pool of baseline outputs per image (our choice).
    """
    usable = scores[torch.isfinite(scores).all(1)].double()
    if not len(usable):
        raise ValueError(
            f"scores: expected at least one candidate with finite scores, got none of {len(scores)}; score them again"
        )
    return torch.stack([usable.amin(0), usable.amax(0)], 1).cpu()


def reward_weights(specs: Sequence[MetricSpec], weights: Mapping[str, float] | None = None) -> Tensor:
    """How much each column counts.

    By default w_k = 0.5 / (number of metrics in its half), the halves being full-reference and no-reference metrics, so that both
    count the same whatever their sizes; a half without metrics leaves its share to the other. With `weights`, w_k = weights[name]
    / their sum.

    Args:
        specs: K metrics; a name may occur more than once.
        weights: weight per metric name, >= 0, not all 0; every name must be there.

    Returns:
        [K] float64, sums to 1.

    Raises:
        ValueError: a weight is missing, surplus, negative or not finite, or all are 0.
    """
    names = [spec.name for spec in specs]
    if weights is None:
        full = sum(spec.needs_reference for spec in specs)
        sizes = [full if spec.needs_reference else len(specs) - full for spec in specs]
        values = [1.0 / size for size in sizes]
    else:
        if set(weights) != set(names):
            raise ValueError(
                f"weights: expected one weight for each of {sorted(set(names))}, got {sorted(weights)}; add or remove names"
            )
        values = [float(weights[name]) for name in names]
        if any(not math.isfinite(value) or value < 0 for value in values) or sum(values) == 0:
            raise ValueError(f"weights: expected finite weights >= 0 with a positive sum, got {dict(weights)}; raise one of them")
    total = torch.tensor(values, dtype=torch.float64)
    return total / total.sum()


def reward(
    scores: Tensor, specs: Sequence[MetricSpec], *, weights: Mapping[str, float] | None = None, ranges: Tensor | None = None
) -> Tensor:
    """Hybrid reward of M candidates for one input; `hybrid_reward` with specs in place of names.

        a[m, k] = s[m, k] if higher is better else -s[m, k]
        sbar = min-max of a over the M candidates, per metric
        R[m] = 0.5 / |FR| sum_{k in FR} sbar[m, k] + 0.5 / |NR| sum_{k in NR} sbar[m, k]

    Args:
        scores: [M, K] raw scores; a candidate with a score that is not finite is left out of the min-max and gets reward NaN.
        specs: K metrics in the order of the columns; may be the user's own.
        weights: weight per metric name instead of the equal halves (see `reward_weights`).
        ranges: [K, 2] lowest and highest *raw* score per metric, for rewards that are comparable between groups; None = per
            group.

    Returns:
        [M] float64 on the CPU, in [0, 1] when `ranges` is None, NaN for candidates left out.

    Raises:
        ValueError: shapes do not fit.
    Source:
        DP2O-SR, arXiv:2510.18851v1, section 3 (specification 2.2); 0.5 for metrics without spread and the NaN rule are our
        choice.
    """
    if scores.ndim != 2 or scores.shape[1] != len(specs) or scores.shape[0] == 0 or not specs:
        raise ValueError(
            f"scores: expected [M, {len(specs)}] with M, K >= 1, got {tuple(scores.shape)}; one column per metric name"
        )
    aligned = align(scores.detach().cpu(), specs)
    if ranges is not None:
        if tuple(ranges.shape) != (len(specs), 2):
            raise ValueError(
                f"ranges: expected [{len(specs)}, 2], got {tuple(ranges.shape)}; give lowest and highest raw score per metric"
            )
        ranges = align(ranges.detach().cpu().T, specs).T.sort(dim=1).values
    usable = torch.isfinite(aligned).all(1)
    result = torch.full((len(aligned),), math.nan, dtype=torch.float64)
    if bool(usable.any()):
        result[usable] = normalize(aligned[usable], ranges) @ reward_weights(specs, weights)
    return result
