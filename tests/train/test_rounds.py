"""Rounds of candidates and training: each goes on from the last policy, with new noises, and ends alike whatever kills it."""

import json
import os
import random
import signal
import sys
from dataclasses import replace

import pytest
from candidates_helpers import pictures
from kill_helpers import in_child, wait
from preference_helpers import write_control
from train_helpers import equal_files, toml

from alignsr.core.weights import load_state_dict, read_info
from alignsr.train.candidates.sample import seeds_of
from alignsr.train.config import ConfigError, published
from alignsr.train.recipes import load_config
from alignsr.train.rounds import RECORD, candidates_of, load_rounds_config, run_rounds
from alignsr.train.sources import DataError

NAMES = published("rounds")
TWINS = [name for name in NAMES if name.startswith("tiny-")]
KILLS = 6


def rounds(name, data, **sets):
    values = {"candidates__data__folders": [data.as_posix()], "training__optimizer__learning_rate": 1e-3} | sets
    return load_rounds_config(name, [f"{key.replace('__', '.')}={toml(value)}" for key, value in values.items()])


def test_every_config_has_a_tiny_twin_and_none_is_taken_for_another_kind():
    assert {name.removeprefix("tiny-") for name in TWINS} == set(NAMES) - set(TWINS)
    assert not set(NAMES) & (set(published()) | set(published("candidates")))
    for name in NAMES:
        load_rounds_config(name)
    with pytest.raises(ConfigError, match="expected one that trains once, got 'dp2o_rounds'; `alignsr dp2o` runs it"):
        load_config(NAMES[0])
    with pytest.raises(
        ConfigError, match=r"recipe: expected 'dp2o_rounds', got 'perceptual_dpo'; published here are dp2o-online"
    ):
        load_rounds_config("dp2o-sd2")
    with pytest.raises(ConfigError, match=r"training\.model\.backbone: expected pixel as in \[candidates\], got flux1"):
        load_rounds_config("dp2o-online-pixel", ['training.model.backbone="flux1"'])


@pytest.mark.parametrize("name", TWINS)
def test_every_tiny_twin_runs_and_each_round_goes_on_from_the_last_policy(name, tmp_path):
    data = pictures(tmp_path / "gt", 3)
    result = run_rounds(rounds(name, data), tmp_path / "run")
    assert [r.number for r in result.rounds] == [0, 1, 2]
    assert [bool(r.weights) for r in result.rounds] == [True, True, False]
    assert result.rounds[0].pairs == 2 and result.rounds[0].steps == 1, "one of three pictures is held out for the probe"
    assert 0 <= result.rounds[0].worst <= result.rounds[0].reward <= result.rounds[0].best <= 1
    told = json.loads((tmp_path / "run" / RECORD).read_text())
    assert [entry["reward"] for entry in told["rounds"]] == [r.reward for r in result.rounds]
    first, second = (tmp_path / "run" / f"round-{k}" for k in (0, 1))
    there = json.loads((second / "candidates" / "config.json").read_text())
    weights = next((first / "training").glob("tiny-*.safetensors"))
    key = "source" if "pixel" in name else "control"
    assert there["model"][key] == read_info(result.weights)["config"]["model"][key] == str(weights)
    assert there["sampling"]["first"] == there["sampling"]["candidates"]
    assert not equal_files(weights, result.weights)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    again = run_rounds(rounds(name, data), tmp_path / "run")
    assert again.rounds == result.rounds
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}, "nothing is done twice"


def test_adapters_add_up_over_rounds(tmp_path):
    """An adapter on the network: round 1's reference has round 0's, joined exactly; ranks add up."""
    control = write_control(tmp_path, "flux")
    config = rounds(
        "tiny-dp2o-online-flux", pictures(tmp_path / "gt", 3), training__train="lora", training__lora__rank=2,
        training__model__control=control.as_posix(), candidates__model__control=control.as_posix(), measure_last=False,
    )  # fmt: skip
    result = run_rounds(config, tmp_path / "run")
    joined = result.weights.with_name(f"{result.weights.stem}-with-sft.safetensors")
    assert read_info(result.weights)["rank"] == 2 and read_info(joined)["rank"] == 4
    first = load_state_dict(next((tmp_path / "run" / "round-0" / "training").glob("tiny-*.safetensors")))
    assert any(value.any() for key, value in first.items() if ".lora_B." in key)


def test_noises_are_never_drawn_twice_and_more_rounds_may_follow(tmp_path):
    config = rounds("tiny-dp2o-online-pixel", pictures(tmp_path / "gt", 3))
    assert config.measure_last, "as published"
    for noise in ("shared", "own"):
        mine = replace(config, candidates=replace(config.candidates, sampling=replace(config.candidates.sampling, noise=noise)))
        seeds = [seed for number in range(3) for seed in seeds_of(candidates_of(mine, number, None), 1)]
        assert len(set(seeds)) == len(seeds) == 12
        looked = [seed for number in range(3) for seed in seeds_of(candidates_of(mine, number, None), 1, fresh=4)]
        assert not set(seeds) & set(looked), "the probe of a round looks at none that a later round trains on"
    two = run_rounds(config, tmp_path / "run")
    three = run_rounds(replace(config, rounds=3), tmp_path / "run")
    assert three.rounds[:2] == two.rounds[:2] and len(three.rounds) == 4
    last, third = two.rounds[2], three.rounds[2]
    assert (last.reward, last.spread, last.worst) == (third.reward, third.spread, third.worst), "sampled once"
    assert not last.weights and third.weights and three.rounds[3].number == 3
    with pytest.raises(DataError, match="expected an empty folder or rounds of this config, got those of another"):
        run_rounds(replace(config, training=replace(config.training, name="other")), tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_ends_with_the_same_rounds(tmp_path):
    config = rounds("tiny-dp2o-online-pixel", pictures(tmp_path / "gt", 3))

    def work(folder, number: int = 0, out=None) -> None:
        seen = []

        def watch(event: str, _) -> None:
            if event in ("open", "os.rename", "os.mkdir"):
                seen.append(event)
                if len(seen) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        run_rounds(config, folder)
        if out is not None:
            out.write_text(str(len(seen)))

    assert wait(in_child(lambda: work(tmp_path / "whole", 0, tmp_path / "events"))) == 0
    total, rng, kills = int((tmp_path / "events").read_text()), random.Random("rounds"), 0
    while kills < KILLS:
        place = 1 + int(rng.random() * total * 0.5)
        code = wait(in_child(lambda place=place: work(tmp_path / "killed", place)))
        if code != -signal.SIGKILL:
            assert code == 0
            break
        kills += 1
    assert kills >= 2
    assert wait(in_child(lambda: work(tmp_path / "killed"))) == 0
    assert (tmp_path / "whole" / RECORD).read_text().replace("whole", "killed") == (tmp_path / "killed" / RECORD).read_text()
    for path in sorted((tmp_path / "whole").rglob("training/tiny-*.safetensors")):
        assert equal_files(path, tmp_path / "killed" / path.relative_to(tmp_path / "whole"))
