"""Mean and deviation over seeds."""

import math

import pytest
import torch

from alignsr.core.metrics.seeds import seed_table

METRICS = ["psnr_y", "lsd"]


def groups(offset: float = 0.0, spread: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 10, 2, generator=generator, dtype=torch.float64)
    return list(torch.tensor([25.0, 3.0]) + offset + spread * noise + 4 * torch.arange(5).view(5, 1, 1))


def test_deviations_are_those_of_numpy() -> None:
    stacked = torch.stack(groups()).numpy()
    table = seed_table({"a": groups()}, METRICS)
    for column, metric in enumerate(METRICS):
        found = table.scores["a"][metric]
        assert found.mean == pytest.approx(stacked[..., column].mean())
        assert found.within == pytest.approx(stacked[..., column].std(1, ddof=1).mean())
        assert found.of_means == pytest.approx(stacked[..., column].mean(0).std(ddof=1))
    assert table.scores["a"]["psnr_y"].of_means < table.scores["a"]["psnr_y"].within < 2, "pictures differ by 4, seeds by 1"


def test_a_model_of_half_the_spread() -> None:
    table = seed_table({"before": groups(), "after": groups(1.0, 0.5)}, METRICS)
    assert [row[-1] for row in table.cells()[1:]] == ["0.50", "0.50"]
    assert "PSNR-Y" in table.to_text() or "PSNR" in table.to_text()
    assert table.to_markdown().count("\n") >= 5 and table.to_csv().startswith("model,metric,mean,deviation_within")
    picture = table.picture()
    assert picture.width > 400
    assert table.to_dict()["scores"]["after"]["lsd"]["mean"] == pytest.approx(table.scores["after"]["lsd"].mean)


def test_a_seed_without_a_score_is_left_out() -> None:
    broken = groups()
    broken[0][0, 0] = math.nan
    found = seed_table({"a": broken}, METRICS).scores["a"]
    assert all(map(math.isfinite, (found["psnr_y"].mean, found["psnr_y"].within, found["psnr_y"].of_means)))
    assert found["lsd"] == seed_table({"a": groups()}, METRICS).scores["a"]["lsd"]


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="models: expected at least one, got none"):
        seed_table({}, METRICS)
    with pytest.raises(ValueError, match="models: expected 5 pictures with 10 seeds as a, got 4 with 10 of b"):
        seed_table({"a": groups(), "b": groups()[:4]}, METRICS)
    with pytest.raises(ValueError, match="models: expected at least 2 seeds of each picture, got 1"):
        seed_table({"a": [group[:1] for group in groups()]}, METRICS)
