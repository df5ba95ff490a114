"""`alignsr candidates` and `alignsr study`: what they write and say, stopping, and mistakes on one line."""

import json
import os
import signal

import pytest
from candidates_helpers import contents, pictures
from cli_helpers import call

NAME = "tiny-dp2o-candidates-pixel"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "gt")


def arguments(data, out, *more):
    return ["candidates", NAME, "--set", f'data.folders=["{data.as_posix()}"]', "--out", out, *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, call(*arguments(data, out, "--json", out / "report.json"))


def test_pairs_and_a_report_are_written(finished):
    out, done = finished
    assert done.code == 0 and done.out == "" and "3 pairs of 3 of 3 pictures" in done.err
    assert done.err.splitlines()[-1] == str(out / "pairs.parquet")
    report = json.loads((out / "report.json").read_text())
    assert report["curation"]["pairs"] == 3 and report["pairs"] == str(out / "pairs.parquet")


def test_stages_one_after_the_other_are_the_whole(data, finished, tmp_path):
    first = call(*arguments(data, tmp_path, "--until", "sample"))
    assert first.code == 0 and not (tmp_path / "scores.parquet").exists()
    second = call(*arguments(data, tmp_path, "--until", "score"))
    assert second.code == 0 and (tmp_path / "scores.parquet").exists() and not (tmp_path / "pairs.parquet").exists()
    assert call(*arguments(data, tmp_path, "--quiet")).err == ""
    assert contents(tmp_path) == contents(finished[0])


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(data, finished, tmp_path, monkeypatch):
    from alignsr.cli.candidates import TerminalWatch

    progress = TerminalWatch.progress

    def interrupt(self, stage, done, total):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        progress(self, stage, done, total)

    monkeypatch.setattr(TerminalWatch, "progress", interrupt)
    stopped = call(*arguments(data, tmp_path))
    assert stopped.code == 130 and "stopped; finished parts are kept" in stopped.err
    assert f"alignsr candidates {NAME}" in stopped.err.splitlines()[-1] and str(tmp_path) in stopped.err.splitlines()[-1]
    assert len(list((tmp_path / "candidates").glob("*.json"))) == 2
    monkeypatch.undo()
    assert call(*arguments(data, tmp_path, "--quiet")).code == 0
    assert contents(tmp_path) == contents(finished[0])


def test_study_prints_the_table_and_writes_the_pictures(finished, tmp_path):
    out, _ = finished
    done = call("study", out, "--parameters", "12e9", "--out", tmp_path / "study", "--json", tmp_path / "study.json")
    assert done.code == 0 and "recommended: M = 4, N = 1" in done.out and done.err.splitlines()[-1] == str(tmp_path / "study")
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"study.csv", "study.json", "study.png", "published.png"}
    assert json.loads((tmp_path / "study.json").read_text())["recommendation"]["picks"] == 1
    assert call("study", out, "--candidates", "2", "--quiet", "--out", tmp_path / "two").out == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--until", "train"], "--until: expected one of sample, score, curate, got 'train'"),
        (["--set", "pairs.picks=3"], "pairs.picks: expected at most half of 4 candidates, got 3"),
        (["--set", "scoring.metrics=['psnr']"], "did you mean 'psnr_"),
        (["--set", "sampling.step=3"], "sampling.step: unknown key; did you mean 'steps'"),
        (["--set", "data.folders=['nowhere']"], "data.folders: expected a folder of images at nowhere"),
        (["--set", "data.gt_patch_px=400"], "expected sides of at least 400 px"),
    ],
)
def test_mistakes_are_one_line(more, message, data, tmp_path):
    done = call(*arguments(data, tmp_path / "run", *more))
    assert done.code == 1 and len(done.errors) == 1 and message in done.errors[0]


def test_other_mistakes_are_one_line(tmp_path, finished):
    assert "expected a TOML file" in call("candidates", "no-such").errors[0]
    assert "`alignsr train` runs the others" in call("candidates", "lite-x4").errors[0]
    assert "expected a Parquet table, found none" in call("study", tmp_path).errors[0]
    (finished[0] / "model.json").rename(tmp_path / "model.json")
    assert "parameters: expected the size of the model" in call("study", finished[0]).errors[0]
    (tmp_path / "model.json").rename(finished[0] / "model.json")


def test_seeds_are_compared_and_written(data, finished, tmp_path):
    out, _ = finished
    other = tmp_path / "other"
    assert call(*arguments(data, other, "--set", "sampling.first=4", "--until", "score")).code == 0
    done = call("seeds", f"before={out}", f"after={other}", "--out", tmp_path / "report", "--json", tmp_path / "seeds.json")
    assert done.code == 0 and done.out.startswith("4 seeds of 3 pictures") and "deviation, last / first" in done.out
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert set(found["scores"]) == {"before", "after"} and found["seeds"] == 4
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"seeds.csv", "seeds.md", "seeds.png", "sheet.png"}
    assert (tmp_path / "report" / "seeds.csv").read_text().count("\n") == 1 + 2 * 5
    for words, message in (
        ([str(out), str(out)], "runs: expected a name for each"),
        ([str(tmp_path)], "expected a folder of `alignsr candidates`"),
    ):
        failed = call("seeds", *words)
        assert failed.code == 1 and message in failed.err and failed.err.count("\n") == 1


def test_rounds_run_and_go_on(data, tmp_path):
    words = [
        "dp2o",
        "tiny-dp2o-online-pixel",
        "--set",
        f'candidates.data.folders=["{data.as_posix()}"]',
        "--out",
        tmp_path / "run",
    ]
    done = call(*words, "--json", tmp_path / "rounds.json")
    assert done.code == 0 and done.out.splitlines()[0].split() == ["round", "reward", "spread", "best", "worst", "pairs", "steps"]
    report = json.loads((tmp_path / "rounds.json").read_text())
    assert [entry["number"] for entry in report["rounds"]] == [0, 1, 2] and done.err.splitlines()[-1] == report["weights"]
    assert call(*words, "--quiet").err == ""
    failed = call("dp2o", "tiny-dp2o-pixel")
    assert failed.code == 1 and "recipe: expected 'dp2o_rounds', got 'perceptual_dpo'" in failed.err


def test_rounds_stop_between_two_units(data, tmp_path, monkeypatch):
    from alignsr.cli.rounds import RoundsTerminal

    progress = RoundsTerminal.progress

    def interrupt(self, stage, done, total):
        progress(self, stage, done, total)
        if isinstance(total, dict):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RoundsTerminal, "progress", interrupt)
    words = [
        "dp2o",
        "tiny-dp2o-online-pixel",
        "--set",
        f'candidates.data.folders=["{data.as_posix()}"]',
        "--out",
        tmp_path / "run",
    ]
    stopped = call(*words)
    assert stopped.code == 130 and "alignsr dp2o tiny-dp2o-online-pixel" in stopped.err.splitlines()[-1]
    monkeypatch.setattr(RoundsTerminal, "progress", progress)
    assert call(*words).code == 0
