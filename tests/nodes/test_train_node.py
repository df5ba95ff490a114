"""Train SR Network under inference mode, as in ComfyUI: live curve, interruption, resuming, and no run done twice."""

import json
from pathlib import Path

import pytest
import torch
from node_helpers import picture
from train_helpers import make_pictures

from alignsr.core.weights import load_state_dict
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.restore import OneStepSR
from alignsr.nodes.train import TrainSRNetwork, read_config, run_folder
from alignsr.train.config import ConfigError
from alignsr.train.session import finished_weights

STEPS = "run.steps=4\nrun.checkpoint_every=2\n# a comment\n\nrun.validate_every=0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


class Watcher:
    """Collects progress and cancels at a step, if asked."""

    def __init__(self):
        self.steps, self.previews, self.cancel_at, self.host = [], [], 0, None

    def __call__(self, value, total, desc, preview):
        self.steps.append((value, total))
        if preview is not None:
            self.previews.append(preview.size)
        if value == self.cancel_at:
            self.host.cancel()


@pytest.fixture
def watched(tmp_path, data):
    watcher = Watcher()
    host = LocalHost(
        output_dir=tmp_path / "out", input_dirs=[data.parent], models_dirs=[tmp_path / "models"], on_progress=watcher
    )
    watcher.host = host
    with use_host(host), torch.inference_mode():
        yield watcher


def train(**changes):
    inputs = {
        "config": "tiny-lite-x4",
        "data_folder": "pictures",
        "overrides": STEPS,
        "out_name": "mine",
        "resume": True,
    } | changes
    shown = TrainSRNetwork().train(**inputs)
    return shown["ui"], shown["result"]


def test_it_trains_and_shows_its_curve_while_it_runs(watched):
    ui, (weights, model, curve, log, losses) = train()
    assert (
        Path(weights).name == "mine.safetensors" and Path(weights).parent.parent == watched.host.output_dir() / "alignsr/training"
    )
    assert [step for step, _ in watched.steps] == [1, 2, 3, 4] and {total for _, total in watched.steps} == {4}
    assert watched.previews, "the loss curve is shown during the run"
    assert curve.ndim == 4 and curve.shape[3] == 3
    entries = [json.loads(line) for line in log.splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4] and losses == {"loss": [entry["loss"] for entry in entries]}
    assert ui["images"][0]["type"] == "output"
    sr, *_ = OneStepSR().upscale(model, picture(), 4)
    assert sr.shape == (1, 48, 40, 3)
    assert not torch.equal(load_state_dict(weights)["tail.weight"], torch.zeros(()))


def test_a_finished_run_is_found_and_not_repeated(watched):
    first = Path(train()[1][0])
    written = first.stat().st_mtime_ns
    steps = len(watched.steps)
    second = Path(train()[1][0])
    assert second == first and first.stat().st_mtime_ns == written and len(watched.steps) == steps
    other = Path(train(overrides=STEPS.replace("=4", "=5"))[1][0])
    assert other.parent != first.parent, "another config is another run"
    fresh = Path(train(resume=False)[1][0])
    assert fresh.parent.name == f"{first.parent.name}-2"


def test_interrupted_runs_go_on_and_end_where_an_uninterrupted_one_does(watched, data):
    watched.cancel_at = 3
    with pytest.raises(Interrupted):
        train()
    folder = next((watched.host.output_dir() / "alignsr/training").iterdir())
    assert (folder / "state-00000003.safetensors").is_file(), "the finished steps are kept"
    assert not (folder / "mine.safetensors").exists()
    watched.cancel_at = 0
    watched.host.clear_cancel()
    seen = len(watched.steps)
    resumed = load_state_dict(train()[1][0])
    assert [step for step, _ in watched.steps[seen:]] == [4]
    straight = load_state_dict(train(resume=False)[1][0])
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_cancel_is_noticed_within_a_step(watched):
    watched.host.cancel()
    with pytest.raises(Interrupted):
        train(overrides=STEPS + "\nrun.accumulation_steps=3")
    assert watched.steps == []


def test_a_damaged_result_is_not_taken_for_a_finished_run(watched, caplog):
    weights = Path(train()[1][0])
    _, config = read_config("tiny-lite-x4", STEPS, "pictures", "mine")
    assert finished_weights(weights.parent, config) == weights
    weights.write_bytes(b"broken")
    assert finished_weights(weights.parent, config) is None and "mine.safetensors" in caplog.text
    assert finished_weights(run_folder(weights.parent.parent, config, True), config) is None


def test_other_intervals_do_not_repeat_a_finished_run(watched):
    first = Path(train()[1][0])
    steps = len(watched.steps)
    weights = first.parent / first.name
    _, config = read_config("tiny-lite-x4", STEPS, "pictures", "mine")
    assert finished_weights(weights.parent, config) == weights
    other = train(overrides=STEPS + "\nrun.log_every=2\nrun.preview_every=7")[1]
    assert Path(other[0]) == first and len(watched.steps) == steps


def test_config_text_may_start_from_a_published_one(watched):
    _, config = read_config('base = "lite-x4"\nname = "text"\n[run]\nsteps = 7\n', "run.batch_size=3", "", "")
    assert (config.name, config.run.steps, config.run.batch_size, config.model.options["features"]) == ("text", 7, 3, 64)
    _, published = read_config(" lite-x4\n", "", "", "")
    assert published.name == "lite-x4"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"config": "lite-x5"}, ConfigError, "config: expected a TOML file"),
        ({"config": "[run]\nsteps = "}, ConfigError, "^config: expected TOML text"),
        ({"config": "recipe = 'fidelty'"}, ConfigError, "^recipe: expected one of .* did you mean 'fidelity'"),
        ({"overrides": "run.stepps=3"}, ConfigError, "run.stepps: unknown key; did you mean 'steps'"),
        ({"overrides": "run.steps"}, ConfigError, "^overrides: expected key=value lines, .* got 'run.steps'"),
        ({"overrides": "run.steps=0"}, ConfigError, "steps: expected at least 1"),
        ({"out_name": "../escape"}, ConfigError, "^out_name: expected letters"),
        ({"out_name": "", "overrides": "name='../escape'"}, ConfigError, "^config: name: expected letters"),
        ({"out_name": "", "config": 'base = "tiny-lite-x4"\nname = ""'}, ConfigError, "^config: name: expected letters"),
        ({"data_folder": "absent"}, FileNotFoundError, "^data_folder: expected"),
    ],
)
def test_refusals_before_anything_is_written(watched, change, error, text):
    with pytest.raises(error, match=text):
        train(**change)
    assert not watched.host.output_dir().exists()
