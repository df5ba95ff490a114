"""What README says of workflows holds: its commands find their nodes, inputs and pictures, one command for every template."""

import itertools
import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from train_helpers import make_pictures

from alignsr.cli.downloads import DOWNLOADS
from alignsr.core.weights import bundled_autoencoders, bundled_models, read_info
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import apply_sets, default_node_classes, load_workflow, validate
from paths import ROOT

COMMANDS = [
    shlex.split(line)
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("alignsr run workflows/") and "[@]" not in line
]


def test_every_template_has_its_command() -> None:
    assert sorted(command[2] for command in COMMANDS) == sorted(
        f"workflows/{path.name}" for path in (ROOT / "workflows").glob("*.json")
    )


def test_the_miniature_of_the_ablation_names_nodes_inputs_and_choices(tmp_path: Path) -> None:
    """As the shell reads README's lines; with its pictures in place nothing is missing, and no node keeps a large model."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^tiny=\(.*?^alignsr run [^\n]*", text, re.MULTILINE | re.DOTALL)
    shell = "alignsr() { printf '%s\\n' \"$@\"; }"  # says what it was given
    said = [subprocess.run(["bash", "-c", f"{shell}\n{each}"], capture_output=True, check=True) for each in lines]
    (command,) = (done.stdout.decode().splitlines() for done in said)
    make_pictures(tmp_path / "strsr-pictures", 2)
    (tmp_path / "strsr-pictures" / "picture_0.png").rename(tmp_path / "photo.jpg")
    sets = [value for flag, value in itertools.pairwise(command) if flag == "--set"]
    classes = default_node_classes()
    with use_host(LocalHost(output_dir=tmp_path / "out", input_dirs=[tmp_path], models_dirs=[tmp_path / "models"])):
        graph = load_workflow(ROOT / command[1])[0]
        apply_sets(graph, sets, classes)
        assert validate(graph, classes)
    inputs = [node["inputs"] for node in graph.values()]
    assert all(each["config"].startswith("tiny-") for each in inputs if "config" in each)
    assert all(each["features_file"] == "random" for each in inputs if "features_file" in each)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command[2]).stem)
def test_a_command_for_a_template_is_complete(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with photo.jpg and photos/ nothing else is missing."""
    make_pictures(tmp_path / "photos", 2)
    (tmp_path / "photos" / "picture_0.png").rename(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    sets = [value for flag, value in itertools.pairwise(command) if flag == "--set"]
    classes = default_node_classes()
    with use_host(LocalHost(output_dir=tmp_path / "out", input_dirs=[tmp_path])):
        graph = load_workflow(ROOT / command[2])[0]
        apply_sets(graph, sets, classes)
        assert validate(graph, classes)
    assert command[-2:] == ["--out", "results"]


def test_the_licence_of_every_bundled_and_every_known_model_is_named() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text[text.index("## Licences") :].splitlines() if line.startswith("|")]
    for name, path in (bundled_models() | bundled_autoencoders()).items():
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert read_info(path)["licence"] in row
    for name, item in DOWNLOADS.items():
        named = [row for row in rows if any(fnmatch(name.lower(), pattern.lower()) for pattern in re.findall("`([^`]+)`", row))]
        assert len(named) == 1, name
        assert item.licence in named[0]
