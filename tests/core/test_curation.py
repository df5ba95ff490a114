"""The curation study: settings, expectations over subsets, the recommendation, and its pictures."""

import itertools

import pytest
import torch
from torch import Tensor

from alignsr.core.curation import (
    MODELS,
    best_of,
    counts_up_to,
    evaluation_rewards,
    published_grid,
    recommend,
    settings_up_to,
    study,
)
from alignsr.core.curation_pictures import (
    HEADER,
    chosen_setting,
    plots_picture,
    published_picture,
    settings_rows,
    study_picture,
)
from alignsr.core.metrics import hybrid_reward
from alignsr.core.preferences import pair_table
from reference.formula import U

METRICS = ["psnr_y", "lsd", "sharpness"]


def scores(groups: int = 6, candidates: int = 16) -> list[Tensor]:
    return [U(f"curation/{g}", candidates, 3, dtype=torch.float64) for g in range(groups)]


def test_settings_are_the_papers_grid() -> None:
    assert counts_up_to(64) == (2, 4, 8, 16, 32, 64)
    grid = {(m, n) for m, n in settings_up_to(64)}
    assert grid == {(m, m // ratio) for model in MODELS for ratio, row in published_grid(model)[1].items() for m in row}
    assert counts_up_to(2) == (2,)


def test_each_setting_is_what_training_on_its_candidates_would_see() -> None:
    found = {(s.candidates, s.picks): s for s in study(scores(), METRICS)}
    assert set(found) == set(settings_up_to(16))
    one = found[8, 2]
    rewards = [hybrid_reward(group[:8], METRICS) for group in scores()]
    table = pair_table(rewards, 2)
    assert torch.equal(one.table.weight, table.weight) and one.pairs == 6 * 4 and one.groups == 6
    assert one.share == pytest.approx(4 / 28) and one.used == 0.5 and one.ratio == "1:4"
    assert one.chosen - one.rejected == pytest.approx(one.mean_gap)
    assert one.spread == pytest.approx(float(table.spread.mean()))


def test_more_picks_smaller_gaps_more_candidates_larger_ones() -> None:
    found = {(s.candidates, s.picks): s for s in study(scores(20), METRICS)}
    assert found[16, 1].mean_gap > found[16, 2].mean_gap > found[16, 4].mean_gap > found[16, 8].mean_gap
    assert found[16, 1].mean_gap > found[8, 1].mean_gap > found[4, 1].mean_gap, "normalised groups, more extremes"
    assert all(s.table.weight.mean().item() == pytest.approx(1, abs=1e-12) for s in found.values())


def test_groups_that_cannot_be_used_are_left_out() -> None:
    given = [*scores(3), torch.full((16, 3), 0.5, dtype=torch.float64), scores(1)[0][:4]]
    found = {(s.candidates, s.picks): s for s in study(given, METRICS)}
    assert found[4, 1].groups == 4 and found[16, 1].groups == 3
    with pytest.raises(ValueError, match="scores: expected a group with two candidates of different reward"):
        study([torch.ones(4, 3)], METRICS)
    with pytest.raises(ValueError, match="scores: expected at least one group"):
        study([], METRICS)
    with pytest.raises(ValueError, match=r"picks: expected an integer in 1\.\.2, got 3"):
        study(scores(), METRICS, [(4, 3)])
    with pytest.raises(ValueError, match=r"candidates: expected an integer in 2\.\.16, got 32"):
        study(scores(), METRICS, [(32, 8)])


def test_best_and_worst_are_means_over_all_subsets() -> None:
    rewards = [U(f"best/{g}", 6, dtype=torch.float64) for g in range(3)]
    found = best_of(rewards)
    assert found.counts == (1, 2, 4, 6)
    for place, m in enumerate(found.counts):
        subsets = [[values[list(c)] for c in itertools.combinations(range(6), m)] for values in rewards]
        best = sum(float(torch.stack([s.max() for s in group]).mean()) for group in subsets) / 3
        worst = sum(float(torch.stack([s.min() for s in group]).mean()) for group in subsets) / 3
        assert found.best[place] == pytest.approx(best) and found.worst[place] == pytest.approx(worst)
    assert found.best[0] == pytest.approx(found.worst[0]) == pytest.approx(found.mean[0])
    assert list(found.best) == sorted(found.best) and list(found.worst) == sorted(found.worst, reverse=True)
    with pytest.raises(ValueError, match="rewards: expected at least one group"):
        best_of([torch.full((3,), torch.nan)])


def test_evaluation_rewards_are_by_the_whole_pool() -> None:
    given = scores(2)
    given[0][3] = torch.nan
    found = evaluation_rewards([*given, torch.full((4, 3), torch.nan)], METRICS)
    assert len(found) == 2 and torch.isnan(found[0][3])
    assert torch.allclose(found[1], hybrid_reward(given[1], METRICS), atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "most", "expected"),
    [
        (0.8e9, 32, (32, 8)),  # the paper's small model
        (0.8e9, 64, (64, 16)),
        (12e9, 64, (64, 4)),  # its large one
        (12e9, 32, (32, 2)),
        (3e9, 64, (64, 8)),  # between
        (1e6, 8, (8, 4)),  # small and few: not fewer than four picks
        (1e6, 6, (6, 3)),
        (20e9, 4, (4, 1)),
        (0.8e9, 2, (2, 1)),
    ],
)
def test_recommendation(parameters: float, most: int, expected: tuple[int, int]) -> None:
    found = recommend(parameters, most)
    assert (found.candidates, found.picks) == expected
    assert 2 * found.picks <= found.candidates
    assert "parameters, " in found.reason and ("million" in found.reason) == (parameters < 1e8)


def test_recommendation_follows_the_published_grid() -> None:
    """Of the settings with as many candidates, the recommended one is at most 0.01 below the best."""
    for model, parameters in (("C-SD2", 0.8e9), ("C-FLUX", 12e9)):
        for most in (32, 64):
            advice = recommend(parameters, most)
            ends = {ratio: row[most] for ratio, row in published_grid(model)[1].items() if most in row}
            assert ends[most // advice.picks] >= max(ends.values()) - 0.01
    start, grid = published_grid("C-SD2")
    assert start == 0.535 and max(grid[m][m] for m in (2, 4, 8, 16, 32, 64)) < start, (
        "N = 1 ends below the start of the small model"
    )


def test_recommendations_for_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="parameters: expected a number above 0"):
        recommend(0, 8)
    with pytest.raises(ValueError, match="most: expected an integer >= 2, got 1"):
        recommend(1e9, 1)


def test_pictures_show_every_setting() -> None:
    settings, best = study(scores(), METRICS), best_of(evaluation_rewards(scores(), METRICS))
    advice = recommend(12e9, 16)
    assert len(settings_rows(settings)) == len(settings) and all(len(row) == len(HEADER) for row in settings_rows(settings))
    assert (chosen_setting(settings, advice).candidates, chosen_setting(settings, advice).picks) == (16, 1)
    page = study_picture(settings, best, advice)
    assert page.width >= 1200 and page.height > plots_picture(settings, best, advice).height + 200
    assert published_picture(advice).width > 500
