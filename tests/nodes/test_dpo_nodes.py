"""From candidates to a trained policy and the comparison of seeds in a graph, under inference mode as in ComfyUI."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from candidates_helpers import pictures

from alignsr.core.weights import MissingModelError, read_info
from alignsr.nodes.candidates import SampleCandidates, ScoreCandidates
from alignsr.nodes.host import LocalHost, use_host
from alignsr.nodes.multi_step_sampling import MultiStepSR
from alignsr.nodes.preferences import CuratePreferences
from alignsr.nodes.seeds import CompareSeeds
from alignsr.nodes.train_dpo import PerceptualDPOTrainer
from alignsr.train.config import ConfigError
from alignsr.train.sources import DataError

QUIET = "run.preview_every=0\nguard.pictures=0\nrun.steps=2\noptimizer.learning_rate=1e-3\ndata.workers=0"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpo")


@pytest.fixture
def host(root: Path) -> Any:
    (root / "in").mkdir(exist_ok=True)
    if not (root / "in" / "pictures").exists():
        pictures(root / "in" / "pictures", 3)
    host = LocalHost(output_dir=root / "out", input_dirs=[root / "in"], models_dirs=[root / "models"])
    with use_host(host), torch.inference_mode():
        yield host


def scored(kind: str, more: str = "", **inputs: Any) -> Any:
    run = SampleCandidates().sample(f"tiny-dp2o-candidates-{kind}", "pictures", more, **inputs)[0]
    return ScoreCandidates().score(run)[0]


def preferences(kind: str) -> str:
    return CuratePreferences().curate(scored(kind))[0]


@pytest.mark.parametrize(("kind", "more"), [("pixel", ""), ("sd2", ""), ("flux-lora", ""), ("flux", 'train="lora"\nlora.rank=4')])
def test_pairs_to_a_policy_that_restores_and_samples(host: Any, kind: str, more: str) -> None:
    candidates = kind.split("-")[0]
    answer = PerceptualDPOTrainer().train(f"tiny-dp2o-{kind}", preferences(candidates), f"{QUIET}\n{more}")
    weights, model, curve, log, losses, lora, run = answer["result"]
    assert Path(weights).is_relative_to(host.output_dir()) and read_info(Path(weights))["step"] == 2
    assert (lora is not None) == ("lora" in more or kind == "pixel")
    assert curve.shape[0] == 1 and len(losses["loss"]) == 2 and json.loads(log.splitlines()[0])["margin"] == 0
    assert answer["ui"]["images"][0]["filename"] == "curve.png" and Path(run).is_dir()
    sr = MultiStepSR().upscale(model, torch.rand(1, 16, 16, 3), steps=2)[0]
    assert tuple(sr.shape) == (1, 64, 64, 3)
    after = scored(candidates, weights=weights)
    before = scored(candidates)
    assert after.folder != before.folder
    table, image, sheet, values = CompareSeeds().compare(before, after, third=before)
    assert table.startswith("4 seeds of 3 pictures") and "PSNR" in table and image.shape[-1] == sheet.shape[-1] == 3
    found = json.loads(values)["scores"]
    assert found["before"] == found["third"] and found["before"] != found["after"]
    again = PerceptualDPOTrainer().train(f"tiny-dp2o-{kind}", preferences(candidates), f"{QUIET}\n{more}")
    assert again["result"][0] == weights, "a finished run is found"


def test_inputs_change_the_config(host: Any) -> None:
    found = PerceptualDPOTrainer().train(
        "tiny-dp2o-pixel", preferences("pixel"), QUIET, "mine", beta=1000.0, weighting="uniform", picks=1
    )["result"]
    config = read_info(Path(found[0]))["config"]
    assert config["loss"]["beta"] == 1000 and config["data"]["weights"] == "uniform" and config["data"]["picks"] == 1
    folder = Path(config["data"]["pairs"]).parent
    by_name = PerceptualDPOTrainer().train("tiny-dp2o-pixel", folder.name, QUIET, "named")["result"]
    assert read_info(Path(by_name[0]))["config"]["data"]["pairs"] == str(folder)


def test_pairs_curated_anew_in_the_same_file_are_trained_on_anew(host: Any) -> None:
    run, trainer = scored("pixel"), PerceptualDPOTrainer()
    one = CuratePreferences().curate(run, picks=1)[0]
    before = trainer.train("tiny-dp2o-pixel", one, QUIET, "curated")["result"]
    kept = Path(before[0]).read_bytes()
    asked = PerceptualDPOTrainer.IS_CHANGED("tiny-dp2o-pixel", one, overrides=QUIET, out_name="curated")
    assert asked == PerceptualDPOTrainer.IS_CHANGED("tiny-dp2o-pixel", one, overrides=QUIET, out_name="curated")
    two = CuratePreferences().curate(run, picks=2)[0]
    assert two == one, "the table lies where it lay"
    assert asked != PerceptualDPOTrainer.IS_CHANGED("tiny-dp2o-pixel", one, overrides=QUIET, out_name="curated")
    after = trainer.train("tiny-dp2o-pixel", two, QUIET, "curated")["result"]
    assert after[0] != before[0] and Path(after[0]).read_bytes() != kept == Path(before[0]).read_bytes()
    assert read_info(Path(after[0]))["preferences"] != read_info(Path(before[0]))["preferences"]
    CuratePreferences().curate(run, picks=1)
    assert trainer.train("tiny-dp2o-pixel", one, QUIET, "curated")["result"][0] == before[0], "as it was: found again"


def test_mistakes_are_one_sentence(host: Any) -> None:
    trainer, pairs = PerceptualDPOTrainer(), preferences("pixel")
    with pytest.raises(
        ConfigError, match=r"config: expected one of the recipe perceptual_dpo, got fidelity; Perceptual DPO Trainer"
    ):
        trainer.train("tiny-lite-x4")
    with pytest.raises(ConfigError, match=r"model\.backbone: expected pixel, with which the candidates"):
        trainer.train("tiny-dp2o-sd2", pairs, QUIET)
    with pytest.raises(DataError, match="expected a Parquet table, found none"):
        trainer.train("tiny-dp2o-pixel", "nowhere", QUIET)
    with pytest.raises(ValueError, match=r"beta: expected a number above 0, or -1 for the config's, got 0\.0"):
        trainer.train("tiny-dp2o-pixel", pairs, QUIET, beta=0.0)
    with pytest.raises(MissingModelError, match="weights: expected a file that Perceptual DPO Trainer wrote, found no"):
        SampleCandidates().sample("tiny-dp2o-candidates-pixel", "pictures", weights="nothing.safetensors")
    before, fewer = scored("pixel"), scored("pixel", "data.limit=2")
    with pytest.raises(
        DataError, match=r"after: expected the pictures of before \(3\), cut and degraded alike, got others \(2\)"
    ):
        CompareSeeds().compare(before, fewer)
    with pytest.raises(ValueError, match="labels: expected 2 different names, got 'a, a'"):
        CompareSeeds().compare(before, before, "a, a")
