"""Two processes train from noise as one does with a doubled batch: every draw is a function of the sample's place alone."""

import json

import pytest
import torch
from preference_helpers import dpo, sample
from process_helpers import run_processes
from train_helpers import make_pictures, tiny

from alignsr.core.weights import load_state_dict
from alignsr.train.recipes import load_config
from alignsr.train.recipes import perceptual_dpo as recipe
from alignsr.train.state import checkpoints

SETS = {
    "run.steps": 3,
    "run.checkpoint_every": 3,
    "run.preview_every": 0,
    "guard.pictures": 1,
    "guard.every": 2,
    "optimizer.learning_rate": 1e-3,
    "loss.reference": '"precomputed"',
}


def assert_two_equal_one(name: str, one, sets: list[str], folder) -> None:
    """Takes the start of two interpreters."""
    command = ["-m", "alignsr", "train", name, *(part for item in sets for part in ("--set", item)), "--out", str(folder)]
    environment = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    run_processes([*command, "--quiet"], folder.with_name(f"{folder.name}-logs"), environment=environment)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    for ours, theirs in zip(one.logs, map(json.loads, lines), strict=True):
        for key in ours:
            if key != "seconds":
                assert theirs[key] == pytest.approx(ours[key], rel=2e-3, abs=2e-5), f"step {ours['step']}: {key}"
    a, b = (load_state_dict(checkpoints(place)[-1]) for place in (one.folder, folder))
    for key in (key for key in a if key.startswith("modules/")):
        assert float((a[key].double() - b[key].double()).abs().mean()) <= 2e-5, key


def test_two_processes_equal_one(tmp_path):
    pairs = sample(tmp_path, "pixel")
    alone = {key.replace(".", "__"): value.strip('"') if isinstance(value, str) else value for key, value in SETS.items()}
    one = recipe.train(dpo("tiny-dp2o-pixel", pairs, **alone, run__batch_size=4), tmp_path / "one")
    sets = [f'data.pairs="{pairs.as_posix()}"', *(f"{key}={value}" for key, value in SETS.items())]
    assert_two_equal_one("tiny-dp2o-pixel", one, sets, tmp_path / "two")


ASASR = {
    "run.steps": 3,
    "run.checkpoint_every": 3,
    "run.preview_every": 0,
    "run.validate_every": 0,
    "optimizer.learning_rate": 1e-4,
    "schedule.warmup_steps": 0,
}


@pytest.mark.parametrize(("name", "more"), [("tiny-asasr-sd15", {"preference.beta": 20.0}), ("tiny-asasr-sft-sd15", {})])
def test_two_processes_equal_one_in_the_stages_of_asasr(name, more, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", side=64)
    values = ASASR | more
    alone = {key.replace(".", "__"): value for key, value in values.items()}
    known, config = load_config(name, []), tiny(name, pictures, **alone, run__batch_size=4)
    one = known[0].train(config, tmp_path / "one")
    sets = [f'data.folders=["{pictures.as_posix()}"]', *(f"{key}={value}" for key, value in values.items()), "run.batch_size=2"]
    assert_two_equal_one(name, one, sets, tmp_path / "two")
