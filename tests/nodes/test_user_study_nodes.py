"""Make Voting Pages and Read Votes: the core's pages in the output folder, and votes counted from the input folder."""

import json
from pathlib import Path

import pytest
import torch
from user_study_helpers import METHODS, files_of, write_results, write_votes

from alignsr.core.user_study.pages import make_study
from alignsr.nodes import NODE_CLASS_MAPPINGS
from alignsr.nodes.host import Interrupted, LocalHost, use_host

MAKE, READ = NODE_CLASS_MAPPINGS["AlignSRMakeVotingPages"], NODE_CLASS_MAPPINGS["AlignSRReadVotes"]
SR = "\n".join(METHODS)


@pytest.fixture
def host(tmp_path):
    write_results(tmp_path / "in")
    local = LocalHost(output_dir=tmp_path / "out", input_dirs=[tmp_path / "in"])
    with use_host(local), torch.inference_mode():
        yield local


def test_pages_are_those_of_the_core(host, tmp_path):
    page, key, notes = MAKE().make(SR, "rank", 0, 7, "Image comparison", "alignsr/study", lq="lq")
    assert Path(page) == tmp_path / "out" / "alignsr" / "study" / "page" / "index.html"
    make_study({name: tmp_path / "in" / name for name in METHODS}, tmp_path / "core", lq=tmp_path / "in" / "lq", seed=7)
    assert files_of(tmp_path / "core") == files_of(tmp_path / "out" / "alignsr" / "study")
    assert notes.splitlines()[0] == "4 pictures, 3 methods" and notes.endswith(f"keep {key}")
    again = MAKE().make(SR, "top1", 2, 7, "Image comparison", "alignsr/study")
    assert Path(again[1]) == tmp_path / "out" / "alignsr" / "study-2" / "key.json", "nothing is overwritten"


def test_votes_are_counted(host, tmp_path):
    _, key, _ = MAKE().make(SR, "rank", 0, 0, "Image comparison", "study")
    groups = {f"g00{number}": METHODS for number in range(1, 5)}
    write_votes(Path(key).parent, tmp_path / "in" / "votes" / "anna.json", "Anna", groups)
    before = READ.IS_CHANGED("votes", key, "none")
    table, text, chart = READ().read("votes", key, "ASASR user study")
    assert table.splitlines()[2].startswith("Sobolev  100.0 [51.0, 100.0] (100.0, 100.0)") and "91.1" in table
    assert json.loads(text)["votes"] == 4
    assert chart.shape == (1, 540, 900, 3) and 0 <= chart.min() < chart.max() <= 1
    write_votes(Path(key).parent, tmp_path / "in" / "votes" / "ben.json", "Ben", groups)
    assert READ.IS_CHANGED("votes", key, "none") != before
    assert READ.IS_CHANGED(None, key, "none") != READ.IS_CHANGED(None, key, "none"), "NaN: always again"


def test_changed_results_make_new_pages(host, tmp_path):
    inputs = (SR, "rank", 0, 0, "Image comparison", "study")
    before = MAKE.IS_CHANGED(*inputs)
    assert before == MAKE.IS_CHANGED(*inputs)
    (tmp_path / "in" / "Plain" / "scene0_x4.png").unlink()
    assert before != MAKE.IS_CHANGED(*inputs)


def test_cancel_leaves_no_page(host, tmp_path):
    host.cancel()
    with pytest.raises(Interrupted):
        MAKE().make(SR, "rank", 0, 0, "Image comparison", "study")
    assert not (tmp_path / "out" / "study").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sr": ""}, "sr: expected at least one folder"),
        ({"sr": "Plain"}, "methods: expected 2 to 26 methods"),
        ({"sr": "Plain\nPlain"}, "got Plain twice"),
        ({"sr": "Plain\nnowhere"}, "sr: "),
        ({"out_name": "../outside"}, "out_name: expected a name inside"),
        ({"out_name": " "}, "out_name: expected a name inside"),
        ({"title": "Plain or not?"}, "title: expected one that names no method"),
        ({"lq": "nowhere"}, "lq: "),
    ],
)
def test_refusals(host, changes, text):
    inputs = {"sr": SR, "mode": "rank", "groups": 0, "seed": 0, "title": "Image comparison", "out_name": "study"} | changes
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        MAKE().make(**inputs)


def test_reading_needs_a_key(host, tmp_path):
    (tmp_path / "in" / "votes").mkdir()
    with pytest.raises(ValueError, match=r"key: expected the path of a study's key\.json"):
        READ().read("votes", " ", "none")
    with pytest.raises(FileNotFoundError, match="votes: "):
        READ().read("gone", "key.json", "none")
