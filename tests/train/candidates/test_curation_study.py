"""The curation study of a run folder."""

import csv
import json

import pytest
from candidates_helpers import pictures, run, small
from PIL import Image

from alignsr.train.candidates import read_scores, study_folder, study_scores
from alignsr.train.candidates.config import PairsConfig, RewardConfig
from alignsr.train.candidates.curate import curate
from alignsr.train.sources import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = pictures(tmp_path_factory.mktemp("data") / "gt", 4)
    return run(small(data, sampling__candidates=8), tmp_path_factory.mktemp("run")).folder


def test_one_call_writes_table_pictures_and_recommendation(folder):
    found, target = study_folder(folder, parameters=12e9)
    assert target == folder / "study"
    record = json.loads((target / "study.json").read_text())
    assert {(s["candidates"], s["picks"]) for s in record["settings"]} == {(2, 1), (4, 2), (4, 1), (8, 4), (8, 2), (8, 1)}
    assert record["groups"] == 4 and record["recommendation"]["picks"] == 1
    assert record["best_of"]["counts"] == [1, 2, 4, 8]
    assert record["published"]["C-SD2"]["after_1000_steps"]["4"]["32"] == 0.636
    rows = list(csv.DictReader((target / "study.csv").read_text().splitlines()))
    assert [row["N:M"] for row in rows] == ["1:2", "1:2", "1:4", "1:2", "1:4", "1:8"]
    for name in ("study", "published"):
        with Image.open(target / f"{name}.png") as opened:
            assert opened.width > 600 and len(opened.convert("RGB").resize((60, 40)).getcolors(2400)) > 20
    text = found.to_text()
    assert "recommended: M = 8, N = 1" in text and "paper: Small model" in text and "best / mean / worst of 8" in text


def test_fewer_candidates_and_another_place(folder, tmp_path):
    found, target = study_folder(folder, parameters=1e8, most=4, out=tmp_path / "here")
    assert target == tmp_path / "here" and (target / "study.png").is_file()
    assert max(s.candidates for s in found.settings) == 4
    assert (found.advice.candidates, found.advice.picks) == (4, 2)


def test_the_size_of_the_model_is_asked_for_where_it_is_not_known(folder):
    (folder / "model.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="parameters: expected the size of the model"):
        study_folder(folder)
    (folder / "model.json").write_text('{"parameters": 800000000}')
    assert study_folder(folder)[0].advice.parameters == 8e8


def test_weights_of_the_config_count(folder):
    config = json.loads((folder / "config.json").read_text())
    scores = read_scores(folder / "scores.parquet")
    plain = study_folder(folder, parameters=1e9)[0]
    config["reward"]["weights"] = {name: float(name == "psnr_y") for name in scores.metrics}
    (folder / "config.json").write_text(json.dumps(config))
    weighted = study_folder(folder, parameters=1e9)[0]
    assert weighted.settings[0].mean_gap == 1.0, "one metric alone: best 1, worst 0"
    assert weighted.settings[3].mean_gap != pytest.approx(plain.settings[3].mean_gap, abs=1e-6)
    config["reward"] |= {"weights": {}, "normalization": "fixed"}
    (folder / "config.json").write_text(json.dumps(config))
    fixed = study_folder(folder, parameters=1e9)[0].settings[-1]
    made = curate(scores, RewardConfig(normalization="fixed"), PairsConfig(picks=fixed.picks)).table
    assert fixed.candidates == 8 and fixed.mean_gap == pytest.approx(float(made.gap.mean())), "what curation makes of them"
    assert fixed.mean_gap != pytest.approx(plain.settings[-1].mean_gap, abs=1e-6)
    assert study_scores(scores, 1e9).settings[0].mean_gap == plain.settings[0].mean_gap
    with pytest.raises(DataError, match="expected a Parquet table, found none"):
        study_folder(folder / "study", parameters=1e9)
