"""The published configs of pipeline A: the numbers of the paper, and a run of every tiny twin."""

import itertools
import re
import shlex

import pytest
import torch
from candidates_helpers import pictures

from alignsr.core.metrics import REWARD_METRICS
from alignsr.core.weights import MissingModelError
from alignsr.train.candidates import CandidateStore, load_candidates_config, run_candidates
from alignsr.train.config import ConfigError, published
from alignsr.train.recipes import load_config
from alignsr.train.sources import DataError
from paths import ROOT

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


def test_prompts_are_told_and_kept_encoded_in_the_run_folder(tmp_path):
    """Each picture's own text, and the negative prompt, through miniature text encoders."""
    data, tags = pictures(tmp_path / "gt", 2), tmp_path / "tags"
    tags.mkdir()
    for index, text in enumerate(("a cat, outdoor", "a red house")):
        (tags / f"picture_{index}.txt").write_text(text)
    sets = [f'data.folders=["{data.as_posix()}"]', f'data.prompts="{tags.as_posix()}"']
    name = "tiny-dp2o-candidates-sd2"
    run_candidates(load_candidates_config(name, sets), tmp_path / "told", until="sample")
    kept = sorted((tmp_path / "told" / "prompts").iterdir())
    assert len(kept) == 3 and all(path.name.startswith("sd2-") for path in kept)
    store = CandidateStore(tmp_path / "told")
    assert [store.read(store.entry(i), "txt").decode() for i in range(2)] == ["a cat, outdoor", "a red house"]
    run_candidates(load_candidates_config(name, sets[:1]), tmp_path / "untold", until="sample")
    other = CandidateStore(tmp_path / "untold")
    assert not torch.equal(store.latents(store.entry(0), 0), other.latents(other.entry(0), 0))
    (tags / "picture_1.txt").unlink()
    with pytest.raises(DataError, match=r"data\.prompts: expected a text file .*picture_1\.txt for .*picture_1\.png, got none"):
        run_candidates(load_candidates_config(name, sets), tmp_path / "lost", until="sample")


COMMANDS = re.findall(r"^(?:torchrun .* -m )?alignsr candidates (.*?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_readme_read(command):
    name, *rest = shlex.split(command)
    assert load_candidates_config(name, [value for flag, value in itertools.pairwise(rest) if flag == "--set"]).name == name


def test_missing_models_and_models_of_another_kind_are_told(tmp_path):
    data = pictures(tmp_path / "gt", 1)
    sets = [f'data.folders=["{data.as_posix()}"]', "data.gt_patch_px=32"]
    with pytest.raises(MissingModelError, match=r"transformer.*flux1-dev"):
        run_candidates(load_candidates_config("dp2o-candidates-flux", sets), tmp_path / "flux")
    with pytest.raises(ConfigError, match=r"model\.source: expected a model that is sampled from noise, got lite-x4"):
        run_candidates(load_candidates_config("dp2o-candidates-pixel", [*sets, "model.source=lite-x4"]), tmp_path / "lite")
