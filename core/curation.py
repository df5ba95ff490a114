"""What a choice of N out of M does to preference pairs, from one set of scored candidates; and what DP2O-SR found about it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_positive_int
from .metrics import hybrid_reward
from .metrics.published import published_papers
from .metrics.ranking import score_ranges
from .preferences import PairTable, pair_table, unusable

SMALL, LARGE = 0.8e9, 12e9  # parameters of the two models of the paper
RATIOS = (2, 4, 8, 16, 32, 64)
FEWEST_PICKS = 4  # of a small model: with 1 the paper's ends below its start, with 2 far below the best
MODELS = ("C-SD2", "C-FLUX")  # of SMALL and LARGE parameters
_SETTING = re.compile(r"N:M = 1:(\d+), M = (\d+)")
FINDINGS = (
    "Small model (0.8 B): best with M = 32, N = 8 (1:4). It collapses with few picks at any ratio: N = 1 always ends below its "
    "start, N = 2 far below the best; many picks of many candidates are stable.",
    "Large model (12 B): best from 1:16 on with M = 32 or 64 (N = 2 to 4); it never collapsed, and 1:2 helps it least.",
    "The paper's text says that the small model collapses under low N or high N/M; its figure shows the former only.",
)


@dataclass(frozen=True)
class Setting:
    """Pairs of one (M, N), over all groups.

    Attributes:
        candidates: M.
        picks: N, taken from each end.
        groups: that can be used.
        pairs: N^2 for each group.
        share: of the M (M - 1) / 2 pairs that M candidates have.
        used: share of the candidates that occur in a pair.
        spread: mean standard deviation of the rewards within a group.
        chosen: mean reward of the chosen side.
        rejected: mean reward of the rejected side.
        table: the pairs themselves.
    """

    candidates: int
    picks: int
    groups: int
    pairs: int
    share: float
    used: float
    spread: float
    chosen: float
    rejected: float
    table: PairTable

    @property
    def ratio(self) -> str:
        """`1:4`, say: N to M."""
        common = math.gcd(self.picks, self.candidates)
        return f"{self.picks // common}:{self.candidates // common}"

    @property
    def mean_gap(self) -> float:
        """Mean difference of the rewards of a pair."""
        return float(self.table.gap.mean())


@dataclass(frozen=True)
class BestOf:
    """Best, mean and worst reward among m candidates, averaged over groups and over all ways to choose the m.

    Attributes:
        counts: m = 1, 2, 4, ...
        best: mean of the maximum, one per count.
        mean: the same for every m, since all ways count.
        worst: mean of the minimum.
    """

    counts: tuple[int, ...]
    best: tuple[float, ...]
    mean: tuple[float, ...]
    worst: tuple[float, ...]


@dataclass(frozen=True)
class Recommendation:
    """Which M and N to take.

    Attributes:
        candidates: M.
        picks: N.
        parameters: of the model it is for.
        reason: in a sentence or two.
    """

    candidates: int
    picks: int
    parameters: float
    reason: str


def published_grid(model: str) -> tuple[float, dict[int, dict[int, float]]]:
    """What the paper's model reached with each (M, N).

    Args:
        model: one of MODELS.

    Returns:
        (reward before training, M / N -> M -> reward after 1000 steps), read off figures, +-0.003.

    Source:
        The official repository's figures; specification 4.4.
    """
    tables = published_papers()["DP2O-SR"]["tables"]
    found = next(table for table in tables if table["metric"] == "reward" and f"curation, {model}" in table["values"])
    start, grid = 0.0, dict[int, dict[int, float]]()
    for method, value in zip(found["methods"], found["values"][f"curation, {model}"], strict=True):
        if setting := _SETTING.fullmatch(method):
            grid.setdefault(int(setting[1]), {})[int(setting[2])] = float(value)
        else:
            start = float(value)
    return start, grid


def counts_up_to(most: int) -> tuple[int, ...]:
    """2, 4, 8, ... and `most` itself.

    Example:
        >>> counts_up_to(12)
        (2, 4, 8, 12)
    """
    powers = [2**k for k in range(1, most.bit_length()) if 2**k <= most]
    return tuple(dict.fromkeys([*powers, most]))


def settings_up_to(most: int, ratios: Sequence[int] = RATIOS) -> tuple[tuple[int, int], ...]:
    """Every (M, N) with M as in `counts_up_to` and N a whole M / ratio.

    Example:
        >>> settings_up_to(4)
        ((2, 1), (4, 2), (4, 1))
    """
    return tuple((m, m // ratio) for m in counts_up_to(most) for ratio in ratios if m % ratio == 0)


def measure(rewards: Sequence[Tensor], candidates: int, picks: int) -> Setting | None:
    """The pairs of one (M, N); groups that cannot be used are left out.

    Args:
        rewards: per group [M] float, NaN for candidates that dropped out.
        candidates: M.
        picks: N.

    Returns:
        None where no group can be used.
    """
    used = [values for values in rewards if not unusable(values, picks)]
    if not used:
        return None
    table = pair_table(used, picks)
    return Setting(
        candidates=candidates,
        picks=picks,
        groups=len(used),
        pairs=len(table),
        share=picks**2 / (candidates * (candidates - 1) / 2),
        used=2 * picks / candidates,
        spread=float(table.spread.mean()),
        chosen=float(table.reward.mean()),
        rejected=float((table.reward - table.gap).mean()),
        table=table,
    )


def study(
    scores: Sequence[Tensor],
    metrics: Sequence[str],
    settings: Sequence[tuple[int, int]] | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    ranges: Callable[[Sequence[Tensor]], Tensor] | None = None,
) -> list[Setting]:
    """What each (M, N) would make of one set of candidates: the first M of every group, normalised by themselves.

    Args:
        scores: per group [M_max, K] raw scores; NaN drops a candidate.
        metrics: K names.
        settings: pairs (M, N); None: all of `settings_up_to`.
        weights: of the metrics, as in `hybrid_reward`.
        ranges: gives those of the metrics, [K, 2], that normalise all groups alike, from the first M of every group.

    Returns:
        One entry per setting that some group can fill, in the order asked for.

    Raises:
        ValueError: no group, an (M, N) beyond the candidates, or none that any group can fill.

    Source:
        DP2O-SR, arXiv:2510.18851v1, section 4.2 and its figures on data curation; specification 4.4.
    """
    if not scores:
        raise ValueError("scores: expected at least one group, got none; score candidates first")
    most = max(len(group) for group in scores)
    found: list[Setting] = []
    for candidates, picks in settings or settings_up_to(most):
        check_positive_int(candidates, "candidates", low=2, high=most)
        check_positive_int(picks, "picks", high=candidates // 2)
        first = [group[:candidates] for group in scores if len(group) >= candidates]
        fixed = ranges(first) if ranges is not None and first else None
        rewards = [hybrid_reward(group, metrics, weights=weights, ranges=fixed) for group in first]
        setting = measure(rewards, candidates, picks)
        found += [setting] if setting is not None else []
    if not found:
        raise ValueError("scores: expected a group with two candidates of different reward, got none; choose other metrics")
    return found


def evaluation_rewards(
    scores: Sequence[Tensor], metrics: Sequence[str], *, weights: Mapping[str, float] | None = None
) -> list[Tensor]:
    """Rewards by the ranges of all candidates of each group, so that one candidate alone has one too.

    Source:
        DP2O-SR, specification 5.2 (our choice).
    """
    return [
        hybrid_reward(group, metrics, weights=weights, ranges=score_ranges(group))
        for group in scores
        if bool(torch.isfinite(group).all(1).any())
    ]


def best_of(rewards: Sequence[Tensor]) -> BestOf:
    """Best@m, Mean@m and Worst@m for m = 1, 2, 4, ... up to the smallest group.

        E[max of m out of M] = sum_k x_(k) C(k - 1, m - 1) / C(M, m),   x_(1) <= ... <= x_(M)

    Args:
        rewards: per group [M] float on one scale for all m: `evaluation_rewards`; NaN are left out.

    Returns:
        Means over the groups.

    Raises:
        ValueError: no group.

    Source:
        DP2O-SR, arXiv:2510.18851v1, its figure of Best, Mean and Worst of M; specification 4.6. Over all subsets in place of the
        first m, which has the same expectation and less noise (our choice).

    Example:
        >>> best_of([torch.tensor([0.0, 1.0])])
        BestOf(counts=(1, 2), best=(0.5, 1.0), mean=(0.5, 0.5), worst=(0.5, 0.0))
    """
    kept = [values[~torch.isnan(values)].double().sort().values for values in rewards]
    kept = [values for values in kept if len(values)]
    if not kept:
        raise ValueError("rewards: expected at least one group with rewards, got none; score candidates first")
    smallest = min(len(values) for values in kept)
    counts = (1, *counts_up_to(smallest)) if smallest > 1 else (1,)
    best, worst = ([_expected_extreme(kept, m, flip) for m in counts] for flip in (False, True))
    mean = sum(float(values.mean()) for values in kept) / len(kept)
    return BestOf(counts, tuple(best), (mean,) * len(counts), tuple(worst))


def _expected_extreme(groups: Sequence[Tensor], count: int, is_worst: bool) -> float:
    total = 0.0
    for values in groups:
        whole = math.comb(len(values), count)
        shares = torch.tensor([math.comb(k, count - 1) / whole for k in range(len(values))], dtype=torch.float64)
        total += float((values * (shares.flip(0) if is_worst else shares)).sum())
    return total / len(groups)


def recommend(parameters: float, most: int) -> Recommendation:
    """Which M and N to take for a model of that size, from what the paper found for two sizes.

        log2(M / N) = 2 at 0.8 billion parameters, 4 at 12 billion, linear in log(parameters) between them, constant outside

    Args:
        parameters: of the whole model.
        most: candidates per picture that there are.

    Returns:
        M = most; N = M / ratio as a power of two, at least 4 for small models (or M / 2, if that is less), and at least 1.

    Raises:
        ValueError: parameters not above 0, or fewer than two candidates.

    Source:
        The two ends: DP2O-SR, arXiv:2510.18851v1, section 4.2; specification 4.4 and 5.27. What lies between is our choice, and
        nothing was measured there.

    Example:
        >>> [(r.candidates, r.picks) for r in (recommend(0.8e9, 32), recommend(12e9, 64), recommend(12e9, 8))]
        [(32, 8), (64, 4), (8, 1)]
    """
    if not (math.isfinite(parameters) and parameters > 0):
        raise ValueError(f"parameters: expected a number above 0, got {parameters}; give the size of the model, such as 12e9")
    check_positive_int(most, "most", low=2)
    place = min(1.0, max(0.0, math.log(parameters / SMALL) / math.log(LARGE / SMALL)))
    exponent = round(2 + 2 * place)
    picks = max(1, most >> exponent)
    floor = min(FEWEST_PICKS, most // 2) if place < 0.5 else 1
    raised = picks < floor
    picks = max(picks, floor)
    size = f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters / 1e6:.3g} million"
    where = {0.0: "like the paper's small model", 1.0: "like the paper's large model"}.get(place, "between the paper's two")
    reason = f"{size} parameters, {where}: about 1:{2**exponent} of M = {most}"
    reason += f", but at least {floor} picks, since with few of them the paper's small model collapsed" if raised else ""
    if place == 0 and parameters < SMALL / 2:
        reason += "; nothing was published for models this small"
    return Recommendation(most, picks, parameters, reason)
