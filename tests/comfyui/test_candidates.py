"""Pipeline A of DP2O-SR in a real server: interrupted, queued again, and the same files as without the server."""

from pathlib import Path
from typing import Any

import pytest
from candidates_helpers import contents

from comfyui.runner import run_locally
from comfyui.server import Server, node, trouble
from comfyui.test_cancel import InterruptAt

pytestmark = pytest.mark.comfyui


def prompt_for(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "1": node(
            "AlignSRSampleCandidates", config="tiny-dp2o-candidates-pixel", data_folder="photos", out_name=name,
            overrides=changes.get("overrides", ""),
        ),
        "2": node("AlignSRScoreCandidates", candidates=["1", 0], metrics=changes.get("metrics", "")),
        "3": node("AlignSRCurationStudy", candidates=["2", 0], billion_parameters=12.0, most_candidates=0),
        "4": node("AlignSRCuratePreferences", candidates=["2", 0], picks=["3", 0]),
        "5": node("PreviewAny", source=["4", 0]),
        "6": node("PreviewImage", images=["3", 2]),
    }  # fmt: skip


def run_folder(root: Path, name: str) -> Path:
    (folder,) = (root / "alignsr" / "candidates").glob(f"{name}-*")
    return folder


def test_interrupted_and_queued_again_it_ends_with_the_files_of_a_headless_run(server: Server, tmp_path: Path) -> None:
    said, prompt = len(server.log), prompt_for("interrupted", overrides="sampling.steps=100\nsampling.candidates=16")
    stop = InterruptAt(server, "1", 333)  # of a thousand: the first of three pictures is done
    first = server.run(prompt, stop)
    assert first.end == "execution_interrupted", first.why()
    folder = run_folder(server.base / "output", "interrupted")
    done = {path.name: path.stat().st_mtime_ns for path in (folder / "candidates").glob("*.tar")}
    assert 1 <= len(done) < 3

    second = server.run(prompt)
    assert second.end == "execution_success", second.why()
    assert second.history["outputs"]["5"]["text"] == [str(folder / "pairs.parquet")]
    assert {name: (folder / "candidates" / name).stat().st_mtime_ns for name in done} == done, "sampled again"
    assert server.view(second.images("6")[0]).width > 1000
    run_locally(prompt, server, tmp_path)
    assert contents(folder) == contents(run_folder(tmp_path, "interrupted"))
    assert not trouble(server.log[said:])


def test_a_finished_run_is_found_after_the_cache_is_gone(server: Server) -> None:
    prompt = prompt_for("found")
    assert server.run(prompt).end == "execution_success"
    folder = run_folder(server.base / "output", "found")
    before = contents(folder)
    server.forget_results()
    again = server.run(prompt)
    assert again.end == "execution_success", again.why()
    assert "1" in again.executed and again.progress("1") in ([], [1000])
    assert contents(folder) == before


def test_mistakes_name_the_input(server: Server) -> None:
    unknown = server.run(prompt_for("wrong", metrics="psnr"))
    assert unknown.end == "execution_error" and "metrics: expected names among" in unknown.why()
    missing = server.run(prompt_for("wrong", metrics="psnr_y, musiq"))
    assert missing.end == "execution_error" and "musiq" in missing.why() and "weights" in missing.why()
