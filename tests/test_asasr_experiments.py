"""ASASR's experiments on real models run from end to end, a step or two on tiny pictures; what they find is in PAPERS.md."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from artefact_helpers import make_artefacts
from PIL import Image
from test_experiments import script
from train_helpers import make_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part in ("train", "test"):
        make_pictures(root / "bsds500" / part, count=2, side=96)
    for path in make_pictures(root / "set5" / "hr", count=1, side=64).iterdir():
        (root / "set5" / "lr_x4").mkdir(exist_ok=True)
        with Image.open(path) as picture:
            picture.reduce(4).save(root / "set5" / "lr_x4" / path.name)
    make_artefacts(root / "realsrset", side=32)
    return root


def run(experiment: ModuleType, data: Path, out: Path, *words: str) -> dict[str, Any]:
    given = ["--data", str(data), "--out", str(out), "--json", str(out / "rows.json"), "--seeds", "0", *words]
    assert experiment.main(given) == 0
    return json.loads((out / "rows.json").read_text(encoding="utf-8"))


def test_preferences_on_the_pixel_flow(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With the bundled model, and artefacts of one of ours (here pixel-x4 itself)."""
    experiment = script("asasr_pixel", monkeypatch)
    from alignsr.core.weights import ASSETS

    methods = [experiment.FULL, experiment.LQ_15]
    words = ["--steps", "1", "--adversary-steps", "1", "--sets", "set5", "--gan", str(ASSETS / "pixel-x4.safetensors")]
    words += ["--set", "run.batch_size=2", "--picture", str(tmp_path / "rows.png"), "--methods", *methods]
    rows = run(experiment, data, tmp_path, *words)["rows"]
    assert [row["method"] for row in rows] == [experiment.START, *methods]
    assert len(list((tmp_path / "own-gan" / "own_gan").iterdir())) == 2
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"| E2 | PSNR-Y (dB) | {experiment.FULL} | {experiment.LQ_15} |" in printed
    assert "E1 |" not in printed, "nothing is said of methods that were not trained"


def test_verdicts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means and signs per seed; for errors less is better."""
    experiment = script("asasr_pixel", monkeypatch)
    values = {experiment.FULL: (26.0, 1.0), experiment.EUCLID: (25.0, 2.0)}
    rows = [
        {"method": method, "seed": seed, "psnr_y": psnr + 2 * seed * (method == experiment.EUCLID), "mid": mid}
        for method, (psnr, mid) in values.items()
        for seed in (0, 1)
    ]
    claims = (("E1", "psnr_y", experiment.FULL, experiment.EUCLID), ("E1", "mid", experiment.FULL, experiment.EUCLID))
    lines = experiment.verdict_rows(rows, claims)[2:]
    assert lines[0].endswith("| +0.000 | no, 1 of 2 |")  # 26 against 25, and 26 against 27
    assert lines[1].endswith("| -1.000 | yes, 2 of 2 |")


def test_preferences_on_the_one_step_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("asasr_one_step", monkeypatch)
    monkeypatch.setattr(experiment, "BATCH", 2)
    rows = run(experiment, data, tmp_path, "--steps", "1", "--sets", "set5")["rows"]
    assert [row["method"] for row in rows] == [experiment.START, "the adversary", *experiment.METHODS]
    assert "| weighed by gap against uniform |" in capsys.readouterr().out
    before = (tmp_path / "one-step-0-1.json").stat().st_mtime_ns
    run(experiment, data, tmp_path, "--steps", "1", "--sets", "set5")
    assert (tmp_path / "one-step-0-1.json").stat().st_mtime_ns == before, "what is measured is not trained again"


def test_propositions_on_the_pixel_flow(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("asasr_pixel_propositions", monkeypatch)
    monkeypatch.setattr(experiment, "BATCH", 2)
    monkeypatch.setattr(experiment, "HELD_OUT", 4)
    (rows,) = run(experiment, data, tmp_path, "--steps", "1")["rows"]
    assert rows[experiment.CLOSED]["J"] < rows[experiment.STATE]["J"] < rows[experiment.COLORED]["J"] + 1e-3
    assert set(rows) == {
        experiment.STATE, experiment.CLOSED, experiment.SEES, experiment.BLIND, experiment.WHITE, experiment.COLORED
    }  # fmt: skip
    assert "| closed form |" in capsys.readouterr().out
