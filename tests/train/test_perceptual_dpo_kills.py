"""Preference training killed with SIGKILL at random moments and resumed: the same weights as without, bit for bit."""

import os
import random
import signal
import sys

import pytest
from kill_helpers import in_child, wait
from preference_helpers import dpo, sample
from train_helpers import equal_files

from alignsr.train.recipes import perceptual_dpo as recipe

KILLS = 5
EVENTS = ("open", "os.rename", "os.mkdir")


def count_events(config, folder, out) -> None:
    """Train, and write down how many times a file was opened, made or renamed."""
    seen = []
    sys.addaudithook(lambda event, _: seen.append(event) if event in EVENTS else None)
    recipe.train(config, folder)
    out.write_text(str(len(seen)))


def killed_at(number: int, config, folder) -> None:
    """Train or go on, and die at that event: a file half written, or whole and not renamed, or between two steps."""
    seen = []

    def watch(event: str, _) -> None:
        if event in EVENTS:
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    recipe.train(config, folder, resume=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_killed_at_random_moments_it_ends_with_the_same_weights(reference, tmp_path):
    pairs = sample(tmp_path, "pixel")
    config = dpo(
        "tiny-dp2o-pixel", pairs, run__steps=6, run__checkpoint_every=1, optimizer__learning_rate=1e-3, guard__pictures=1,
        guard__every=2, loss__reference=reference, run__preview_every=3,
    )  # fmt: skip
    assert wait(in_child(lambda: count_events(config, tmp_path / "whole", tmp_path / "events"))) == 0
    total, rng, kills = int((tmp_path / "events").read_text()), random.Random(f"kills:{reference}"), 0
    while kills < KILLS:
        place = 1 + int(rng.random() * total * 0.6)
        code = wait(in_child(lambda place=place: killed_at(place, config, tmp_path / "killed")))
        if code != -signal.SIGKILL:
            assert code == 0
            break
        kills += 1
    assert kills >= 2
    assert wait(in_child(lambda: recipe.train(config, tmp_path / "killed", resume=True))) == 0
    name = f"{config.name}.safetensors"
    assert equal_files(tmp_path / "whole" / name, tmp_path / "killed" / name)
    logs = [(tmp_path / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "killed")]
    assert [line.split('"seconds"')[0] for line in logs[0]] == [line.split('"seconds"')[0] for line in logs[1]]
