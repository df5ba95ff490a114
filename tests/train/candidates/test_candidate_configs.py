"""The published configs of pipeline A: the numbers of the paper, and a run of every tiny twin."""

import pytest
from candidates_helpers import pictures

from alignsr.core.metrics import REWARD_METRICS
from alignsr.train.candidates import load_candidates_config, run_candidates
from alignsr.train.config import ConfigError, published
from alignsr.train.recipes import load_config

NAMES = published("candidates")
TINY = [name for name in NAMES if name.startswith("tiny-")]


def test_every_config_has_a_tiny_twin_and_none_is_taken_for_one_that_trains():
    assert {name.removeprefix("tiny-") for name in TINY} == set(NAMES) - set(TINY)
    assert not set(NAMES) & set(published())
    with pytest.raises(ConfigError, match="recipe: expected one that trains, got 'candidates'; `alignsr candidates` runs it"):
        load_config(NAMES[0])
    with pytest.raises(ConfigError, match=r"recipe: expected 'candidates', got 'fidelity'.*dp2o-candidates-pixel"):
        load_candidates_config("lite-x4")


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_twin_runs(name, tmp_path):
    data = pictures(tmp_path / "gt")
    config = load_candidates_config(name, [f'data.folders=["{data.as_posix()}"]', "data.limit=2"])
    result = run_candidates(config, tmp_path / "run")
    assert result.curation is not None and len(result.curation.table) == 2 * config.pairs.picks**2
    entry = result.store.entry(0)
    assert not (result.store.picture(entry, "00.png") == result.store.picture(entry, "01.png")).all(), "seeds differ"


# specification 3.1 and 3.3: M, N, steps, guidance, negative prompt
PUBLISHED = {
    "dp2o-candidates-sd2": ("stable_diffusion", 32, 8, 50, 3.5, "dotted, noise, blur, lowres, smooth", "ddpm"),
    "dp2o-candidates-flux": ("flux1", 64, 4, 25, 2.5, "", "euler"),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in NAMES])
def test_numbers_of_the_paper(name):
    config = load_candidates_config(name)
    sampling = config.sampling
    found = (
        config.model.backbone, sampling.candidates, config.pairs.picks, sampling.steps, sampling.guidance,
        sampling.negative_prompt, sampling.sampler,
    )  # fmt: skip
    assert found == PUBLISHED[name]
    assert config.scoring.metrics == REWARD_METRICS and not config.reward.weights
    assert config.reward.normalization == "group" and sampling.color_fix == "adain" and sampling.latents != "none"
    assert (config.data.gt_patch_px, config.data.degradation, config.model.scale) == (512, "dp2o", 4)
