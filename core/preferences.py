"""From rewards to preference pairs: who is chosen over whom, and how much each pair counts.

Everything here is float64 on the CPU and a pure function of the rewards; nothing is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_positive_int

TIGHT = 1e-12  # rewards closer than this are one: the rest of the last bits of a sum


@dataclass(frozen=True)
class PairTable:
    """Preference pairs of several groups, in the order of the groups, then of the chosen, then of the rejected candidates.

    Attributes:
        group: [P] int64, position of the group in what was given.
        chosen: [P] int64, candidate that is preferred.
        rejected: [P] int64, candidate that is not; never one of the chosen ones of its group.
        reward: [P] float64, of the chosen one.
        gap: [P] float64, reward of the chosen one less that of the rejected one, >= 0.
        intra: [P] float64, weight within the group, mean 1 in every group.
        inter: [P] float64, weight of the group, mean 1 over the groups.
        weight: [P] float64, intra * inter, mean 1 over the table.
        spread: [G] float64, standard deviation of the rewards of each group.
    """

    group: Tensor
    chosen: Tensor
    rejected: Tensor
    reward: Tensor
    gap: Tensor
    intra: Tensor
    inter: Tensor
    weight: Tensor
    spread: Tensor

    def __len__(self) -> int:
        return len(self.group)


def rank(rewards: Tensor) -> Tensor:
    """Candidates from the best to the worst; ties in the order of their numbers, NaN left out.

    Args:
        rewards: [M] float, NaN for a candidate that dropped out.

    Returns:
        [at most M] int64.

    Example:
        >>> rank(torch.tensor([0.5, 0.9, float("nan"), 0.5])).tolist()
        [1, 0, 3]
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards: expected one value per candidate [M], got {tuple(rewards.shape)}; pass one group at a time")
    order = torch.argsort(rewards.double(), descending=True, stable=True)
    return order[~torch.isnan(rewards[order])]


def unusable(rewards: Tensor, picks: int) -> str:
    """Why a group cannot teach anything: the reason as a sentence, or an empty text.

    Args:
        rewards: [M] float, NaN for a candidate that dropped out.
        picks: N, how many are taken from each end.
    """
    usable = rewards[~torch.isnan(rewards)]
    if len(usable) < 2 * picks:
        lost = f" ({len(rewards) - len(usable)} of {len(rewards)} dropped out)" if len(usable) < len(rewards) else ""
        return f"expected at least 2 x {picks} candidates, got {len(usable)}{lost}"
    if float(usable.max() - usable.min()) <= TIGHT:
        return f"expected rewards that differ, got {float(usable[0]):.4g} for all {len(usable)} candidates"
    return ""


def pair(rewards: Tensor, picks: int) -> tuple[Tensor, Tensor]:
    """All pairs of the `picks` best with the `picks` worst candidates of one group.

        P = first N, Q = last N of the ranking;  pairs = P x Q

    Args:
        rewards: [M] float, NaN for a candidate that dropped out.
        picks: N >= 1; 1 is classical best against worst, M / 2 uses every candidate.

    Returns:
        (chosen, rejected), each [N^2] int64.

    Raises:
        ValueError: more than half of the usable candidates.

    Source:
        DP2O-SR, arXiv:2510.18851v1, section 4.2; symbols: N -> picks. All N^2 are listed, none is drawn (specification 5.5).

    Example:
        >>> chosen, rejected = pair(torch.tensor([0.1, 0.9, 0.3, 0.7]), 2)
        >>> chosen.tolist(), rejected.tolist()
        ([1, 1, 3, 3], [2, 0, 2, 0])
    """
    check_positive_int(picks, "picks")
    order = rank(rewards)
    if 2 * picks > len(order):
        raise ValueError(
            f"picks: expected at most half of the {len(order)} usable candidates, got {picks}; "
            "take fewer from each end or sample more candidates"
        )
    best, worst = order[:picks], order[len(order) - picks :]
    return best.repeat_interleave(picks), worst.repeat(picks)


def intra_weights(gaps: Tensor) -> Tensor:
    """How much each pair counts within its group.

        w_intra = |R_i - R_j| + 1 - mu_gap,   mu_gap = mean of |R_i - R_j| over the pairs of the group

    Args:
        gaps: [P] float, |R_i - R_j| of the pairs of one group.

    Returns:
        [P] float64, mean 1; in [0, 2] for rewards in [0, 1].

    Source:
        DP2O-SR, arXiv:2510.18851v1, section 4.3; the mean is over the curated pairs (specification 5.6).
    """
    wide = gaps.double()
    return wide + (1 - wide.mean())


def inter_weights(spreads: Tensor) -> Tensor:
    """How much each group counts.

        w_inter = sigma_g + 1 - mu_sigma,   mu_sigma = mean of sigma_g over the groups

    Args:
        spreads: [G] float, `spread` of each group that is used; leaving groups out means calling this again.

    Returns:
        [G] float64, mean 1; in [0.5, 1.5] for rewards in [0, 1].

    Source:
        DP2O-SR, arXiv:2510.18851v1, section 4.3; the mean is over the whole training set (specification 5.8).
    """
    wide = spreads.double()
    return wide + (1 - wide.mean())


def spread(rewards: Tensor) -> Tensor:
    """Population standard deviation (ddof 0) of all usable candidates of a group, a float64 scalar.

    Source:
        DP2O-SR, arXiv:2510.18851v1, section 4.3; over all M candidates (specification 5.7).
    """
    usable = rewards[~torch.isnan(rewards)].double()
    return usable.std(correction=0)


def pair_table(rewards: Sequence[Tensor], picks: int) -> PairTable:
    """The pairs of all groups with their weights.

        w(i, j) = w_intra(i, j) * w_inter(g)

    Args:
        rewards: per group [M_g] float, NaN for a candidate that dropped out.
        picks: N, how many are taken from each end of every group.

    Returns:
        The table; its weights have a mean of 1. Zero gaps, from ties or groups of equal rewards, are kept.

    Raises:
        ValueError: no group, one with fewer than 2 N usable candidates, or rewards so far outside [0, 1] that a weight would be
            negative.

    Source:
        DP2O-SR, arXiv:2510.18851v1, sections 4.2 and 4.3; specification 2.3 and 2.4.

    Example:
        >>> table = pair_table([torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.4])], 1)
        >>> table.gap.round(decimals=3).tolist(), table.inter.round(decimals=3).tolist(), round(table.weight.mean().item(), 12)
        ([1.0, 0.2], [1.2, 0.8], 1.0)
    """
    if not rewards:
        raise ValueError("rewards: expected at least one group, got none; score candidates first")
    groups: list[tuple[Tensor, Tensor]] = []
    for number, values in enumerate(rewards):
        try:
            groups.append(pair(values, picks))
        except ValueError as error:
            raise ValueError(f"{error} (group {number})") from error
    spreads = torch.stack([spread(values) for values in rewards])
    best = [values[chosen].double() for values, (chosen, _) in zip(rewards, groups, strict=True)]
    worst = [values[rejected].double() for values, (_, rejected) in zip(rewards, groups, strict=True)]
    gaps = [one - other for one, other in zip(best, worst, strict=True)]
    pairs_each = picks * picks
    intra = torch.cat([intra_weights(gap) for gap in gaps])
    inter = inter_weights(spreads).repeat_interleave(pairs_each)
    weight = intra * inter
    if float(weight.min()) < 0:
        raise ValueError(
            f"rewards: expected values of about [0, 1], got gaps up to {float(torch.cat(gaps).max()):.3g} and weights below 0; "
            "normalise per group or widen the fixed ranges"
        )
    return PairTable(
        group=torch.arange(len(rewards)).repeat_interleave(pairs_each),
        chosen=torch.cat([chosen for chosen, _ in groups]),
        rejected=torch.cat([rejected for _, rejected in groups]),
        reward=torch.cat(best),
        gap=torch.cat(gaps),
        intra=intra,
        inter=inter,
        weight=weight,
        spread=spreads,
    )
