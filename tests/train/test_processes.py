"""Two processes on a CPU do what one does with a doubled batch, through the command line."""

import json

import pytest
import torch
from process_helpers import run_processes
from train_helpers import make_pictures

from alignsr.core.weights import load_state_dict
from alignsr.train.processes import make_accelerator
from alignsr.train.recipes import load_config
from alignsr.train.state import checkpoints

COMMON = {
    "losses.perceptual.weight": 0,
    "run.steps": 3,
    "run.checkpoint_every": 3,
    "run.preview_every": 0,
    "run.export_every": 0,
    "run.validate_every": 0,
    "optimizer.learning_rate": 1e-4,  # where a gradient is next to nothing, rounding decides the direction of Adam
    "discriminator.optimizer.learning_rate": 1e-4,
}
CASES = {  # the relativistic means, the batch statistics and the draws of stochastic depth cover both processes
    "tiny-aesop-rrdb-128": {"losses.adversarial.average": '"global"'},
    "tiny-aesop-real-ldl-matched": {},
    "tiny-aesop-swinir-256": {"losses.adversarial.average": '"global"', "model.options.drop_path_rate": 0.5},
}


def sets_of(pictures, batch, **more):
    values = COMMON | more | {"run.batch_size": batch}
    return [f'data.folders=["{pictures.as_posix()}"]', *(f"{key}={value}" for key, value in values.items())]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_a_doubled_batch(name, tmp_path):
    """With the discriminator of batch statistics and with that of power iterations; takes the start of two interpreters."""
    pictures = make_pictures(tmp_path / "pictures")
    recipe, config = load_config(name, sets_of(pictures, 4, **CASES[name]))
    one = recipe.train(config, tmp_path / "one")
    sets = sets_of(pictures, 2, **CASES[name])
    items = [part for item in sets for part in ("--set", item)]
    command = ["-m", "alignsr", "train", name, *items, "--out", str(tmp_path / "two"), "--quiet"]
    # without a GPU the command of README is enough; with one, it takes this variable to do without
    environment = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    run_processes(command, tmp_path / "logs", environment=environment)
    lines = (tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    for ours, theirs in zip(one.logs, map(json.loads, lines), strict=True):
        for key in ours:
            if key != "seconds":
                rel = 1e-4 if ours["step"] == 1 else 2e-3
                assert theirs[key] == pytest.approx(ours[key], rel=rel), f"step {ours['step']}: {key}"
    # Adam divides by the gradient's size, so rounding moves a parameter by at most a share of the three steps of 1e-4
    a, b = (load_state_dict(checkpoints(tmp_path / folder)[-1]) for folder in ("one", "two"))
    assert a.keys() == b.keys()
    for key in (key for key in a if key.startswith(("modules/", "averages/"))):
        difference = (a[key].double() - b[key].double()).abs()
        assert float(difference.mean()) < 1e-6, key
        assert float(difference.max()) < 1e-4, key


def test_processes_that_would_train_alone_are_an_error(monkeypatch):
    """Accelerate was initialised before, for one process; two would write into one folder."""
    make_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="processes: expected 2 that train together, got 1; start them with torchrun"):
        make_accelerator()


def test_one_process_in_place_of_several_is_told(monkeypatch, caplog):
    """`accelerate launch --cpu --num_processes 2` starts one; these variables are what it leaves."""
    make_accelerator()
    assert not caplog.records
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    make_accelerator()
    assert "this is one process: `accelerate launch --cpu` starts no more" in caplog.text
