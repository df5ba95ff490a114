"""A user study in a real server: the pages that the core makes, and votes counted in the same graph."""

from pathlib import Path

import pytest
from user_study_helpers import files_of, letters, write_votes

from alignsr.core.user_study.pages import make_study
from comfyui.server import Server, node

pytestmark = pytest.mark.comfyui

MAKE = {"mode": "rank", "groups": 0, "seed": 3, "title": "Which is best?", "out_name": "studies/server"}


def test_pages_and_votes(server: Server, tmp_path: Path) -> None:
    inputs = server.base / "input"
    make = node("AlignSRMakeVotingPages", sr="bright = photos\ndim = dimmed", lq="photos", **MAKE)
    job = server.run({"1": make, "2": node("PreviewAny", source=["1", 2])})
    assert job.end == "execution_success", job.why()
    made = server.base / "output" / "studies" / "server"
    assert f"hand out {made / 'page'}" in job.history["outputs"]["2"]["text"][0]
    folders = {"bright": inputs / "photos", "dim": inputs / "dimmed"}
    make_study(folders, tmp_path / "core", lq=inputs / "photos", seed=3, title="Which is best?")
    assert files_of(made) == files_of(tmp_path / "core")

    assert set(letters(made, "g001")) == {"bright", "dim"}
    write_votes(made, inputs / "votes" / "anna.json", "Anna", {f"g00{number}": ("bright", "dim") for number in (1, 2, 3)})
    read = node("AlignSRReadVotes", votes="votes", key=str(made / "key.json"), published="none")
    prompt = {"1": read, "2": node("PreviewAny", source=["1", 0]), "3": node("PreviewImage", images=["1", 2])}
    job = server.run(prompt)
    assert job.end == "execution_success", job.why()
    assert job.history["outputs"]["2"]["text"][0].splitlines()[2].startswith("bright  100.0 [")
    assert server.view(job.images("3")[0]).size == (900, 540)
