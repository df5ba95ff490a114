"""Two processes train by preferences as one does with a doubled batch: every draw is a function of the pair's place alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from preference_helpers import dpo, sample

from alignsr.core.weights import load_state_dict
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


def test_two_processes_equal_one(tmp_path):
    """Takes the start of two interpreters."""
    pairs = sample(tmp_path, "pixel")
    alone = {key.replace(".", "__"): value.strip('"') if isinstance(value, str) else value for key, value in SETS.items()}
    one = recipe.train(dpo("tiny-dp2o-pixel", pairs, **alone, run__batch_size=4), tmp_path / "one")
    sets = [f'data.pairs="{pairs.as_posix()}"', *(f"{key}={value}" for key, value in SETS.items())]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "alignsr", "train"]
    command = [*launch, "tiny-dp2o-pixel", *(part for item in sets for part in ("--set", item)), "--out", str(tmp_path / "two")]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {})
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = (tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    for ours, theirs in zip(one.logs, map(json.loads, lines), strict=True):
        for key in ours:
            if key != "seconds":
                assert theirs[key] == pytest.approx(ours[key], rel=2e-3, abs=1e-6), f"step {ours['step']}: {key}"
    a, b = (load_state_dict(checkpoints(tmp_path / folder)[-1]) for folder in ("one", "two"))
    for key in (key for key in a if key.startswith("modules/")):
        assert float((a[key].double() - b[key].double()).abs().mean()) <= 2e-5, key
