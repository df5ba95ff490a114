"""The nodes of pipeline A on tiny models: what they give, that a second queue finds it, interruption, bad input."""

import json
from pathlib import Path

import pytest
import torch
from candidates_helpers import contents, pictures

from alignsr.nodes.candidates import SampleCandidates, ScoreCandidates
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.preferences import CuratePreferences, CurationStudy
from alignsr.train.config import ConfigError
from alignsr.train.preferences import PreferenceData
from alignsr.train.sources import DataError

TINY = "tiny-dp2o-candidates-pixel"


@pytest.fixture
def host(tmp_path):
    pictures(tmp_path / "input" / "photos")
    with use_host(LocalHost(output_dir=tmp_path / "out", input_dirs=[tmp_path / "input"])) as host:
        yield host


def chain(overrides="", metrics="", picks=0, **options):
    """All nodes in a row, under inference mode as in ComfyUI."""
    with torch.inference_mode():
        run, sheet, info = SampleCandidates().sample(TINY, "photos", overrides)
        scored, table, _, path = ScoreCandidates().score(run, metrics)
        return run, sheet, info, scored, table, path, CuratePreferences().curate(scored, picks, **options)


def test_from_pictures_to_pairs(host, tmp_path):
    threads = torch.get_num_threads()
    run, sheet, info, scored, table, path, (preferences, report, pairs_sheet) = chain()
    facts = json.loads(info)
    assert facts["pictures"] == 3 and facts["candidates"] == 4 and facts["model"]["name"] == "tiny pixel"
    assert Path(facts["folder"]).parent == tmp_path / "out" / "alignsr" / "candidates"
    assert sheet.ndim == 4 and sheet.shape[-1] == 3 and sheet.std() > 0.05
    assert table.splitlines()[0].split() == ["metric", "better", "mean", "lowest", "highest", "spread", "missing"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["psnr_y", "ssim_y", "lsd", "hf_energy", "sharpness"]
    assert Path(path).name == "scores.parquet" and Path(preferences).name == "pairs.parquet"
    record = json.loads(report)
    assert record["pairs"] == 3 and record["mean_weight"] == pytest.approx(1) and pairs_sheet.shape[2] >= 3 * 256
    data = PreferenceData(preferences, seed=0)
    assert data.batch(0, 3).chosen.shape == (3, 3, 32, 32)
    assert torch.get_num_threads() == threads, "the server's threads are as they were"
    assert run.config == scored.config


def test_a_second_queue_finds_everything(host):
    _, _, info, *_ = chain()
    folder = Path(json.loads(info)["folder"])
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in (folder / "candidates").iterdir()}
    chain()
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "candidates").iterdir()} == times


def test_inputs_of_curation_reach_it(host):
    *_, (_, report, _) = chain(picks=2)
    assert json.loads(report)["pairs"] == 12
    run, *_ = chain()
    scored = ScoreCandidates().score(run, "psnr_y, lsd", "shared-cache")[0]
    assert scored.config.scoring.metrics == ("psnr_y", "lsd") and (host.output_dir() / "shared-cache").is_dir()
    by_psnr, by_lsd = (
        CuratePreferences().curate(scored, 1, weights=weights)[1] for weights in ("psnr_y=1, lsd=0", "psnr_y=0, lsd=1")
    )
    assert json.loads(by_psnr)["mean_gap"] == json.loads(by_lsd)["mean_gap"] == 1.0
    fixed = json.loads(CuratePreferences().curate(scored, 1, normalization="fixed")[1])
    assert fixed["mean_gap"] < 1
    first_two = json.loads(CuratePreferences().curate(scored, 1, use_candidates=2, weights="psnr_y=1, lsd=0")[1])
    assert first_two["candidates"] == 6


def test_study_recommends_and_draws(host):
    scored = chain()[3]
    picks, text, study, published = CurationStudy().study(scored, 12.0, 0)
    assert picks == 1 and "recommended: M = 4, N = 1" in text
    assert study.shape[2] >= 1200 and published.shape[2] > 500
    assert CurationStudy().study(scored)[0] == 2, "the sampled model is small"
    assert CuratePreferences().curate(scored, picks)[0].endswith("pairs.parquet")


def test_an_interruption_keeps_finished_pictures(host, tmp_path, monkeypatch):
    asked = []

    class Bar:
        def update(self, value, preview=None):
            asked.append(value)
            if len(asked) == 2:
                raise Interrupted("stopped")

    monkeypatch.setattr(host, "progress", lambda total, desc="": Bar())
    with pytest.raises(Interrupted):
        SampleCandidates().sample(TINY, "photos")
    (folder,) = (tmp_path / "out" / "alignsr" / "candidates").iterdir()
    done = sorted(path.name for path in (folder / "candidates").glob("*.json"))
    assert done == ["shard-000000.json", "shard-000001.json"]
    run, *_ = SampleCandidates().sample(TINY, "photos")
    assert len(list((folder / "candidates").glob("*.json"))) == 3 and run.folder == folder


def test_bad_input_names_the_input(host, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="config: expected a TOML file"):
        SampleCandidates().sample("no-such-config")
    with pytest.raises(ConfigError, match="recipe: expected 'candidates', got 'fidelity'"):
        SampleCandidates().sample("lite-x4")
    with pytest.raises(ConfigError, match="out_name: expected letters"):
        SampleCandidates().sample(TINY, "photos", "", "../outside")
    with pytest.raises(FileNotFoundError, match="data_folder: "):
        SampleCandidates().sample(TINY, "nowhere")
    with pytest.raises(DataError, match="expected sides of at least 640 px"):
        SampleCandidates().sample(TINY, "photos", "data.gt_patch_px=640")
    run, *_ = chain()
    with pytest.raises(ValueError, match=r"metrics: expected names among .*did you mean 'psnr_"):
        ScoreCandidates().score(run, "psnr")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=r"metrics: musiq: expected its weights on disk"):
        ScoreCandidates().score(run, "psnr_y, musiq")
    with pytest.raises(DataError, match=r"scores\.parquet: expected a Parquet table, found none"):
        CuratePreferences().curate(SampleCandidates().sample(TINY, "photos", "sampling.seed=3")[0])
    with pytest.raises(ValueError, match="picks: expected at most half of 4 candidates, got 3"):
        CuratePreferences().curate(run, 3)
    with pytest.raises(ValueError, match="use_candidates: expected at most 4, got 9"):
        CuratePreferences().curate(run, 1, use_candidates=9)
    with pytest.raises(ValueError, match="weights: expected one weight for each of"):
        CuratePreferences().curate(run, 1, weights="lsd=1")
    (run.folder / "model.json").unlink()
    with pytest.raises(DataError, match="billion_parameters: expected the size of the model"):
        CurationStudy().study(run)
