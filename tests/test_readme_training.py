"""What README says of training holds: its commands name configs and keys that exist, its tables every starting file."""

import itertools
import re
import shlex

import pytest

from alignsr.core.losses.lpips import LPIPS_FILE, VGG16_FILE
from alignsr.core.losses.perceptual import VGG19_FILE
from alignsr.core.networks.clip_critic import CLIP_FILES
from alignsr.train.candidates import load_candidates_config
from alignsr.train.config import published
from alignsr.train.recipes import load_config
from alignsr.train.rounds import load_rounds_config
from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(found.replace("\\\n", " "), comments=True)
    for found in re.findall(r"^(alignsr train (?:.*\\\n)*.*)$", README, flags=re.MULTILINE)
]


def test_both_steps_of_aesop_are_shown() -> None:
    assert [command[2] for command in COMMANDS][:2] == ["aesop-autoencoder", "aesop-rrdb-128"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[2])
def test_a_training_command_reads(command: list[str]) -> None:
    config = load_config(command[2], [value for flag, value in itertools.pairwise(command) if flag == "--set"])[1]
    assert config.name == command[2]


OTHERS = [
    (name, [value for flag, value in itertools.pairwise(command) if flag == "--set"])
    for command in (
        shlex.split(line.rstrip("\\"), comments=True) for line in README.splitlines() if re.match(r"(alignsr|torchrun) ", line)
    )
    for kind, name in itertools.pairwise(command)
    if kind in ("candidates", "dp2o")
]


@pytest.mark.parametrize(("name", "sets"), OTHERS)
def test_commands_of_preference_pairs_read(name: str, sets: list[str]) -> None:
    if "-online-" in name:
        assert load_rounds_config(name, sets).rounds > 1
    else:
        assert load_candidates_config(name, sets).name == name


def test_preference_training_reads_the_pairs_of_the_model_that_is_sampled() -> None:
    """The commands of the section as they are printed, one after the other: same folder, same model."""
    assert len(OTHERS) >= 6
    sampled = load_candidates_config(*OTHERS[0]).model
    (command,) = (command for command in COMMANDS if command[2] == "dp2o-pixel")
    trained = load_config("dp2o-pixel", [value for flag, value in itertools.pairwise(command) if flag == "--set"])[1]
    assert trained.data.pairs == "runs/pairs" and trained.model.source == sampled.source == "pixel-flow-x4"


@pytest.mark.parametrize("name", ["dp2o-sd2", "dp2o-flux", "dp2o-flux-lora"])
def test_eight_processes_take_the_published_pairs_as_readme_says(name: str) -> None:
    told = README.partition("are `run.batch_size` x")[2].partition(f"`{name}`")[2]
    found = re.search(r"`--set run\.accumulation_steps=(\d+)`", told)
    assert found and load_config(name)[1].run.batch_size * int(found[1]) * 8 == 1024


def test_step_two_takes_what_step_one_writes() -> None:
    first, second = COMMANDS[:2]
    name = load_config(first[2])[1].name
    assert f"losses.aesop.autoencoder={first[first.index('--out') + 1]}/{name}.safetensors" in second


def test_configs_and_files_of_the_section_exist() -> None:
    section = README.partition("### Training AESOP")[2].partition("\n### ")[0]
    names = {name for name in re.findall(r"`((?:tiny-)?(?:aesop|ldl)-[a-z0-9-]+)`", section) if not name.endswith("-")}
    assert names <= set(published()) and len(names) > 8
    assert {f"tiny-{name}" for name in names if not name.startswith("tiny-")} <= set(published()), "a tiny twin of each"
    wanted: set[str] = set()
    for config in ("aesop-autoencoder", "aesop-rrdb-128", "aesop-real", "aesop-swinir-256", "aesop-drct-256"):
        text = (ROOT / "configs" / f"{config}.toml").read_text(encoding="utf-8")
        wanted |= set(re.findall(r'^init\w* = "models/([^"]+)"', text, flags=re.MULTILINE))
    assert wanted and all(f"`{name}`" in section for name in wanted), "where every starting file is to be had"


def test_configs_stages_and_files_of_strsr_exist() -> None:
    section = README.partition("### Training StrSR")[2].partition("\n### ")[0]
    names = set(re.findall(r"`(strsr-[a-z0-9-]+)`", section))
    assert names == {name for name in published() if name.startswith("strsr-")}
    assert {f"tiny-{name}" for name in names} <= set(published()), "a tiny twin of each"
    one, two = (command for command in COMMANDS if command[2].startswith("strsr-"))
    assert f"start_from={one[one.index('--out') + 1]}" in two, "stage 2 goes on with what stage 1 writes"
    files = [*CLIP_FILES, VGG16_FILE, LPIPS_FILE, VGG19_FILE]
    assert all(f"`{name}`" in section for name in files), "under what names files are looked for"
