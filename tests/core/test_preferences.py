"""Preference pairs and their weights (DP2O-SR 2.3 and 2.4, checks 4 and 5)."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignsr.core.metrics import hybrid_reward
from alignsr.core.preferences import inter_weights, intra_weights, pair, pair_table, rank, spread, unusable
from reference.formula import U

METRICS = ["psnr_y", "ssim_y", "lsd", "musiq", "afine_nr"]


def group(number: int, candidates: int = 32) -> Tensor:
    return hybrid_reward(U(f"preferences/{number}", candidates, len(METRICS), dtype=torch.float64), METRICS)


@pytest.mark.parametrize(("candidates", "picks"), [(2, 1), (32, 8), (64, 4), (7, 3), (16, 8)])
def test_pairs_are_all_of_the_best_against_all_of_the_worst(candidates: int, picks: int) -> None:
    rewards = group(0, candidates)
    chosen, rejected = pair(rewards, picks)
    assert len(chosen) == len(rejected) == len(set(zip(chosen.tolist(), rejected.tolist(), strict=True))) == picks**2
    assert not set(chosen.tolist()) & set(rejected.tolist())
    assert bool((rewards[chosen] >= rewards[rejected]).all())
    order = sorted(range(candidates), key=lambda i: -rewards[i].item())
    assert set(chosen.tolist()) == set(order[:picks])
    assert set(rejected.tolist()) == set(order[-picks:])


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_the_mean_gap_never_grows_with_more_picks(values: list[float]) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    gaps = [pair_table([rewards], picks).gap.mean().item() for picks in range(1, 7)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gaps))


def test_more_than_half_is_refused() -> None:
    with pytest.raises(ValueError, match="picks: expected at most half of the 4 usable candidates, got 3"):
        pair(torch.tensor([0.1, 0.2, 0.3, 0.4]), 3)
    with pytest.raises(ValueError, match=r"half of the 3 usable candidates, got 2.*\(group 1\)"):
        pair_table([torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.1, math.nan, 0.3, 0.4])], 2)


def test_ties_go_by_number_and_broken_candidates_are_left_out() -> None:
    assert rank(torch.tensor([0.5, math.nan, 0.5, 0.7, 0.5])).tolist() == [3, 0, 2, 4]
    chosen, rejected = pair(torch.full((5,), 0.5), 2)
    assert (chosen.tolist(), rejected.tolist()) == ([0, 0, 1, 1], [3, 4, 3, 4])
    with pytest.raises(ValueError, match="rewards: expected one value per candidate"):
        rank(torch.zeros(2, 3))


@pytest.mark.parametrize(("candidates", "picks"), [(32, 8), (64, 4), (2, 1), (9, 4)])
def test_weights_have_a_mean_of_one(candidates: int, picks: int) -> None:
    table = pair_table([group(number, candidates) for number in range(40)], picks)
    assert len(table) == 40 * picks**2
    for number in range(40):
        assert table.intra[table.group == number].mean().item() == pytest.approx(1, abs=1e-12)
    assert table.inter.mean().item() == pytest.approx(1, abs=1e-12)
    assert table.weight.mean().item() == pytest.approx(1, abs=1e-12)
    assert 0 <= table.intra.min() <= table.intra.max() <= 2
    assert 0.5 <= table.inter.min() <= table.inter.max() <= 1.5
    assert table.weight.dtype == torch.float64


def test_weights_by_hand() -> None:
    first, second = torch.tensor([1.0, 0.6, 0.4, 0.0]), torch.tensor([0.5, 0.55, 0.45, 0.5])
    table = pair_table([first, second], 2)
    gaps = [0.6, 1.0, 0.2, 0.6]  # (0, 2), (0, 3), (1, 2), (1, 3)
    assert table.gap[:4].tolist() == pytest.approx(gaps)
    assert table.reward[:4].tolist() == pytest.approx([1.0, 1.0, 0.6, 0.6])
    assert table.intra[:4].tolist() == pytest.approx([gap + 1 - 0.6 for gap in gaps])
    sigma = [math.sqrt((0.25 + 0.01 + 0.01 + 0.25) / 4), math.sqrt((0.0025 + 0.0025) / 4)]
    assert table.spread.tolist() == pytest.approx(sigma)
    inter = [value + 1 - sum(sigma) / 2 for value in sigma]
    assert table.inter.tolist() == pytest.approx([inter[0]] * 4 + [inter[1]] * 4)
    assert torch.equal(table.weight, table.intra * table.inter)


def test_identical_candidates_give_weights_of_one() -> None:
    table = pair_table([torch.full((8,), 0.5)] * 3, 2)
    assert table.weight.tolist() == [1.0] * 12
    assert table.gap.tolist() == [0.0] * 12


def test_leaving_groups_out_means_new_weights() -> None:
    rewards = [group(number) for number in range(6)]
    kept = pair_table(rewards[:4], 8)
    old = pair_table(rewards, 8)
    stale = old.weight[old.group < 4]
    assert stale.mean().item() != pytest.approx(1, abs=1e-6), "the old weights of the remaining groups"
    assert kept.weight.mean().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(kept.intra, old.intra[old.group < 4])
    assert torch.allclose(inter_weights(kept.spread), kept.inter[::64], atol=1e-15)


def test_the_spread_is_that_of_all_usable_candidates() -> None:
    values = torch.tensor([0.0, 1.0, math.nan])
    assert spread(values).item() == 0.5
    assert intra_weights(torch.tensor([0.2, 0.4])).tolist() == pytest.approx([0.9, 1.1])


def test_why_a_group_cannot_be_used() -> None:
    assert unusable(torch.tensor([0.1, 0.2, 0.3, 0.4]), 2) == ""
    assert "expected at least 2 x 3 candidates, got 4" in unusable(torch.tensor([0.1, 0.2, 0.3, 0.4]), 3)
    assert "got 1 (1 of 2 dropped out)" in unusable(torch.tensor([0.1, math.nan]), 1)
    assert "got 0.25 for all 4 candidates" in unusable(torch.full((4,), 0.25), 2)


def test_rewards_far_outside_the_unit_range_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards: expected values of about"):
        pair_table([torch.tensor([30.0, 20.0, 19.0, 0.0])], 2)
    with pytest.raises(ValueError, match="expected at least one group"):
        pair_table([], 1)
