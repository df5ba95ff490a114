"""The hybrid reward: range, invariances, equal halves, ties, candidates that drop out (DP2O-SR 2.2, checks 1 to 3)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignsr.core.metrics import REWARD_METRICS, hybrid_reward
from alignsr.core.metrics.ranking import score_ranges
from reference.formula import S

NAMES = list(REWARD_METRICS)
FULL = [NAMES.index(name) for name in ("lpips-vgg", "topiq_fr", "afine_fr")]
NONE = [index for index in range(9) if index not in FULL]
LOWER_IS_BETTER = [NAMES.index(name) for name in ("lpips-vgg", "afine_fr", "afine_nr")]


def scores(candidates: int = 8) -> Tensor:
    return S("ranking/scores", candidates, 9, dtype=torch.float64) * 3 + 1


def by_hand(raw: Tensor) -> Tensor:
    """The formula, written as loops over the nine metrics of the paper."""
    reward = torch.zeros(len(raw), dtype=torch.float64)
    for index in range(9):
        column = -raw[:, index] if index in LOWER_IS_BETTER else raw[:, index]
        normal = (column - column.min()) / (column.max() - column.min())
        reward += normal * (0.5 / 3 if index in FULL else 0.5 / 6)
    return reward


def test_is_the_formula_of_the_paper() -> None:
    assert torch.allclose(hybrid_reward(scores(), NAMES), by_hand(scores()), atol=1e-12)


def test_range_affine_maps_and_permutations() -> None:
    reward = hybrid_reward(scores(), NAMES)
    assert reward.dtype == torch.float64
    assert reward.min() >= 0
    assert reward.max() <= 1
    for index in range(9):
        mapped = scores()
        mapped[:, index] = 0.01 * mapped[:, index] - 40
        assert torch.allclose(hybrid_reward(mapped, NAMES), reward, atol=1e-12)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.allclose(hybrid_reward(scores()[order], NAMES), reward[order], atol=1e-12)


def test_flipping_a_direction_mirrors_the_normalised_score() -> None:
    column = scores()[:, :1]
    assert torch.allclose(hybrid_reward(column, ["musiq"]), 1 - hybrid_reward(column, ["afine_nr"]), atol=1e-12)


def test_both_halves_weigh_the_same_whatever_their_sizes() -> None:
    raw = torch.zeros(2, 9, dtype=torch.float64)
    raw[0, FULL], raw[1, NONE] = 1.0, 1.0
    raw[:, LOWER_IS_BETTER] *= -1
    assert hybrid_reward(raw, NAMES).tolist() == pytest.approx([0.5, 0.5])
    doubled = torch.cat([raw, raw[:, NAMES.index("musiq")].unsqueeze(1)], dim=1)
    assert hybrid_reward(doubled, [*NAMES, "musiq"]).tolist() == pytest.approx([0.5, 0.5])


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=9, max_size=9))
def test_two_candidates_share_one(pairs: list[tuple[float, float]]) -> None:
    raw = torch.tensor([[a for a, _ in pairs], [b for _, b in pairs]], dtype=torch.float64)
    reward = hybrid_reward(raw, NAMES)
    assert reward.sum().item() == pytest.approx(1.0, abs=1e-12)  # ties give both 0.5, so they hold too
    assert bool(((reward >= 0) & (reward <= 1)).all())


def test_a_metric_without_spread_changes_no_gap() -> None:
    raw = scores()
    raw[:, 0] = 0.25
    reward = hybrid_reward(raw, NAMES)
    other = hybrid_reward(torch.cat([torch.full((8, 1), 7.0, dtype=torch.float64), raw[:, 1:]], dim=1), NAMES)
    assert torch.allclose(reward, other, atol=1e-12)
    assert hybrid_reward(torch.ones(4, 9), NAMES).tolist() == pytest.approx([0.5] * 4)
    assert hybrid_reward(torch.ones(1, 9), NAMES).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_with_a_broken_score_drops_out(bad: float) -> None:
    raw = scores()
    raw[2, 4] = bad
    reward = hybrid_reward(raw, NAMES)
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert math.isnan(reward[2])
    assert torch.allclose(reward[kept], hybrid_reward(raw[kept], NAMES), atol=1e-12)
    assert bool(torch.isnan(hybrid_reward(torch.full((3, 9), bad), NAMES)).all())


def test_one_half_alone_takes_everything() -> None:
    raw = scores()[:, NONE]
    reward = hybrid_reward(raw, [NAMES[index] for index in NONE])
    assert reward.max() <= 1
    assert hybrid_reward(torch.tensor([[1.0], [3.0], [2.0]]), ["musiq"]).tolist() == pytest.approx([0.0, 1.0, 0.5])


def test_own_weights_and_own_metrics() -> None:
    raw = torch.tensor([[30.0, 0.2], [20.0, 0.1]])
    assert hybrid_reward(raw, ["psnr_y", "lpips"], weights={"psnr_y": 3, "lpips": 1}).tolist() == pytest.approx([0.75, 0.25])
    assert hybrid_reward(raw, ["psnr_y", "lpips"], weights={"psnr_y": 1, "lpips": 0}).tolist() == pytest.approx([1.0, 0.0])


def test_ranges_of_a_pool_make_single_candidates_comparable() -> None:
    pool = scores(16)
    pool[3, 2] = math.nan
    ranges = score_ranges(pool)
    whole = hybrid_reward(pool, NAMES)
    alone = torch.cat([hybrid_reward(pool[i : i + 1], NAMES, ranges=ranges) for i in range(16)])
    assert torch.allclose(alone, whole, atol=1e-12, equal_nan=True)
    with pytest.raises(ValueError, match="scores: expected at least one candidate with finite scores, got none of 2"):
        score_ranges(torch.full((2, 3), math.inf))


def test_fixed_ranges_make_groups_comparable() -> None:
    ranges = torch.tensor([[20.0, 40.0], [0.0, 0.5]])
    reward = hybrid_reward(torch.tensor([[30.0, 0.25], [45.0, 0.0]]), ["psnr_y", "lpips"], ranges=ranges)
    assert reward.tolist() == pytest.approx([0.5, 1.125])  # not clipped


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybrid_reward(torch.zeros(3, 2), ["musiq"]), "scores: expected"),
        (lambda: hybrid_reward(torch.zeros(0, 1), ["musiq"]), "scores: expected"),
        (lambda: hybrid_reward(torch.zeros(3), ["musiq"]), "scores: expected"),
        (lambda: hybrid_reward(torch.zeros(3, 1), ["musik"]), "did you mean 'musiq'"),
        (lambda: hybrid_reward(torch.zeros(3, 1), ["musiq"], weights={"lpips": 1}), "weights: expected one weight"),
        (lambda: hybrid_reward(torch.zeros(3, 1), ["musiq"], weights={"musiq": -1}), "weights: expected finite"),
        (lambda: hybrid_reward(torch.zeros(3, 1), ["musiq"], weights={"musiq": 0}), "weights: expected finite"),
        (lambda: hybrid_reward(torch.zeros(3, 1), ["musiq"], ranges=torch.zeros(2, 2)), "ranges: expected"),
    ],
)
def test_one_clear_error_for_each_bad_call(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
