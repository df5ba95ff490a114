"""Pipeline A from pictures to pairs with a toy model: what lies on disk, that it can be done again, and bad input."""

import json
import math
import tarfile

import numpy as np
import pytest
import torch
from candidates_helpers import FREE_METRICS, TABLES, contents, pictures, run, small, toy_draw
from PIL import Image

from alignsr.core.metrics import hybrid_reward, score
from alignsr.train.candidates import CandidateStore, read_scores
from alignsr.train.candidates.sample import seeds_of
from alignsr.train.candidates.tables import read_table
from alignsr.train.config import ConfigError
from alignsr.train.sources import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "gt")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(small(data), folder)


def test_every_candidate_is_on_disk_as_it_was_drawn(finished, data):
    store = CandidateStore(finished.folder)
    assert store.names == ["picture_0.png", "picture_1.png", "picture_2.png"]
    for index in range(3):
        entry = store.entry(index)
        assert entry.candidates == 6 and entry.size == (32, 32)
        gt, lq = store.picture(entry, "gt"), store.picture(entry, "lq")
        assert gt.shape == (3, 32, 32) and lq.shape == (3, 8, 8)
        group = type("Group", (), {"lq": lq, "gt": gt})
        for k in range(6):
            sr, z = toy_draw(group, [k])
            assert torch.equal(store.picture(entry, f"{k:02d}.png"), (sr[0] * 255).round().to(torch.uint8))
            assert torch.equal(store.latents(entry, k), z[0])


def test_a_shard_is_one_sample_per_group_for_webdataset(data, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    run(small(data, store__groups_per_shard=2), tmp_path, until="sample")
    shards = sorted((tmp_path / "candidates").glob("*.tar"))
    assert [path.name for path in shards] == ["shard-000000.tar", "shard-000001.tar"]
    samples = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002"]
    assert {"gt.png", "lq.png", "txt", "00.png", "00.npy", "05.npy"} <= set(samples[0])


def test_the_table_holds_what_the_metrics_say(finished):
    scores = read_scores(finished.scores)
    assert scores.metrics == tuple(FREE_METRICS) and [group.shape for group in scores.groups] == [(6, 5)] * 3
    store = CandidateStore(finished.folder)
    entry = store.entry(1)
    gt = store.picture(entry, "gt")[None].float() / 255
    for column, name in enumerate(FREE_METRICS):
        for k in range(6):
            sr = store.picture(entry, f"{k:02d}.png")[None].float() / 255
            assert scores.groups[1][k, column].item() == pytest.approx(score(name, sr, gt, scale=4).item(), rel=1e-9), name
    columns, info = read_table(finished.scores, ("group", "candidate", "metric", "score"))
    assert len(columns["score"]) == 3 * 6 * 5 and columns["metric"][:5].tolist() == FREE_METRICS
    assert info["scale"] == 4 and info["sampling"] == store.manifest["hash"]


def test_pairs_follow_from_the_table(finished):
    scores = read_scores(finished.scores)
    columns, info = read_table(finished.pairs, ("group", "chosen", "rejected", "gap", "intra", "inter", "weight"))
    assert len(columns["group"]) == 3 * 2 * 2 and info["picks"] == 2
    assert columns["weight"].mean() == pytest.approx(1, abs=1e-12)
    for g, chosen, rejected, gap in zip(*(columns[key] for key in ("group", "chosen", "rejected", "gap")), strict=True):
        reward = hybrid_reward(scores.groups[g], FREE_METRICS)
        assert reward[chosen] - reward[rejected] == pytest.approx(gap, abs=1e-12) and gap >= 0
    report = json.loads((finished.folder / "curation.json").read_text())
    assert report["groups"] == report["groups_used"] == 3 and report["pairs"] == 12
    assert report["mean_reward_chosen"] - report["mean_reward_rejected"] == pytest.approx(report["mean_gap"])


def test_doing_it_again_changes_nothing(finished, data):
    before = contents(finished.folder)
    seen = []
    watch = type("W", (), {"progress": lambda self, stage, done, total: seen.append(stage), "preview": lambda self, image: None})

    def never(group, seeds):
        raise AssertionError("sampled again")

    from alignsr.train.candidates import run_candidates

    run_candidates(small(data), finished.folder, draw=never, watch=watch())
    assert contents(finished.folder) == before
    assert "sampling" not in seen


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_a_second_run_elsewhere_gives_the_same_bytes(kind, data, tmp_path, finished):
    one, two = (run(small(data, store__kind=kind), tmp_path / name).folder for name in ("one", "two"))
    assert contents(one) == contents(two)
    same = read_table(one / "scores.parquet", ("score",))[0]["score"]
    assert np.array_equal(same, read_table(finished.scores, ("score",))[0]["score"])


def test_shared_noise_is_that_of_the_seed_and_own_noise_of_the_picture_too(data):
    shared, own = small(data), small(data, sampling__noise="own")
    assert seeds_of(shared, 0) == seeds_of(shared, 5) == [0, 1, 2, 3, 4, 5]
    assert not set(seeds_of(own, 0)) & set(seeds_of(own, 1))
    fewer = small(data, sampling__candidates=4)
    assert seeds_of(shared, 0)[:4] == seeds_of(fewer, 0), "more candidates begin with the same ones"


def test_other_pairs_and_metrics_reuse_the_candidates(data, tmp_path):
    first = run(small(data), tmp_path)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "candidates").iterdir()}
    second = run(small(data, pairs__picks=1, scoring__metrics=[*FREE_METRICS, "psnr_rgb"]), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "candidates").iterdir()} == shards
    assert len(second.curation.table) == 3 and second.curation.table.spread.shape == first.curation.table.spread.shape
    with pytest.raises(DataError, match="differs in hash"):
        run(small(data, sampling__seed=5), tmp_path)


def test_fixed_ranges_keep_the_absolute_spread(data, tmp_path):
    run(small(data), tmp_path)
    fixed = run(small(data, reward__normalization="fixed"), tmp_path).curation
    rewards = torch.cat(list(fixed.rewards))
    assert rewards.min() >= 0 and rewards.max() <= 1
    wide = {name: [-100.0, 100.0] for name in FREE_METRICS}
    tight = run(small(data, reward__normalization="fixed", reward__ranges=wide), tmp_path).curation
    assert tight.table.spread.max() < fixed.table.spread.min()


def test_own_weights_choose_the_metric_that_counts(data, tmp_path):
    weights = {name: float(name == "sharpness") for name in FREE_METRICS}
    curation = run(small(data, reward__weights=weights, pairs__picks=1), tmp_path).curation
    scores = read_scores(tmp_path / "scores.parquet")
    for row, group in enumerate(curation.groups):
        assert curation.table.chosen[row] == scores.groups[group][:, FREE_METRICS.index("sharpness")].argmax()


def test_a_candidate_without_a_score_drops_out(data, tmp_path):
    """A cached NaN, as a broken metric would leave it."""
    config = small(data)
    result = run(config, tmp_path)
    from alignsr.core.metrics import spec_of
    from alignsr.train.candidates.cache import ScoreCache, metric_key
    from alignsr.train.candidates.score import keys_of

    cache = ScoreCache(tmp_path / "score-cache", metric_key("lsd", 4, "fp32"))
    entry = result.store.entry(1)
    for path in cache.folder.glob("*.parquet"):
        path.unlink()
    everything = {
        key: 1.0 + i for i, e in enumerate(map(result.store.entry, range(3))) for key in keys_of(e.pixels, spec_of("lsd"))
    }
    cache.add(everything | {keys_of(entry.pixels, spec_of("lsd"))[2]: math.nan})
    again = run(config, tmp_path).curation
    assert math.isnan(again.rewards[1][2]) and not torch.isnan(torch.cat([again.rewards[0], again.rewards[2]])).any()
    used = again.table.group == 1
    assert 2 not in again.table.chosen[used].tolist() + again.table.rejected[used].tolist()
    assert json.loads((tmp_path / "curation.json").read_text())["candidates_without_scores"] == 1


# bad input


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"scoring__metrics": ["psnr"]}, r"scoring\.metrics: expected names among .*did you mean 'psnr_"),
        ({"scoring__metrics": []}, r"scoring\.metrics: expected names without repeats"),
        ({"scoring__metrics": ["fid"]}, r"scoring\.metrics: expected metrics of single pictures, got fid"),
        ({"pairs__picks": 4}, r"pairs\.picks: expected at most half of 6 candidates, got 4"),
        ({"pairs__candidates": 7}, r"pairs\.candidates: expected at most sampling\.candidates 6, got 7"),
        ({"reward__weights": {"psnr_y": 1.0}}, r"reward\.weights: expected one for each of"),
        ({"reward__ranges": {"psnr_y": [0.0, 1.0]}}, r"reward\.ranges: expected none with reward\.normalization"),
        ({"data__gt_patch_px": 30}, r"data\.gt_patch_px: expected a multiple of model\.scale 4, got 30"),
        ({"data__crop": "fitt"}, r"data\.crop: .*did you mean 'fit'"),
        ({"sampling__candidate": 3}, r"sampling\.candidate: unknown key; did you mean 'candidates'"),
        ({"store__kind": "folder", "store__groups_per_shard": 2}, r"store\.groups_per_shard: expected 1"),
    ],
)
def test_configs_that_cannot_be_used_name_the_key(sets, message, data):
    with pytest.raises(ConfigError, match=message):
        small(data, **sets)


def test_weights_that_are_missing_are_named_before_anything_is_scored(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    from alignsr.core.metrics import MissingWeightsError

    with pytest.raises(MissingWeightsError, match="musiq_koniq") as caught:
        run(small(data, scoring__metrics=["psnr_y", "musiq", "lpips"]), tmp_path / "run")
    assert set(caught.value.metric.split(", ")) == {"musiq", "lpips"}
    assert not (tmp_path / "run" / "score-cache").exists()


def test_equal_rewards_are_an_error_or_left_out(data, tmp_path):
    flat = {"picture_1.png"}

    def draw(group, seeds):
        sr, z = toy_draw(group, seeds)
        return (sr[:1].expand_as(sr) * 0 + 0.5, z) if group.name in flat else (sr, z)

    from alignsr.train.candidates import run_candidates

    with pytest.raises(DataError, match=r"picture_1\.png: expected rewards that differ, got 0\.5 for all 6 .*\(1 of 3 groups"):
        run_candidates(small(data), tmp_path, draw=draw)
    kept = run_candidates(small(data, pairs__on_unusable="drop"), tmp_path, draw=draw).curation
    assert kept.groups == (0, 2) and list(kept.dropped) == [1]
    assert kept.table.weight.mean().item() == pytest.approx(1, abs=1e-12), "mu_sigma of the groups that are left"
    columns, _ = read_table(tmp_path / "pairs.parquet", ("group",))
    assert set(columns["group"].tolist()) == {0, 2}
    flat |= {"picture_0.png", "picture_2.png"}
    with pytest.raises(DataError, match=r"3 of 3 groups are like that"):
        run_candidates(small(data, pairs__on_unusable="drop"), tmp_path / "all", draw=draw)


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_a_truncated_shard_is_told_and_sampled_again(kind, data, tmp_path):
    config = small(data, store__kind=kind)
    run(config, tmp_path)
    before = contents(tmp_path)
    store = CandidateStore(tmp_path)
    victim = store.path(1) if kind == "shards" else store.path(1) / "000001.03.npy"
    victim.write_bytes(victim.read_bytes()[:-12000] if kind == "shards" else b"")
    with pytest.raises(DataError, match="expected a finished shard, got none or a truncated one"):
        CandidateStore(tmp_path).require_finished()
    run(config, tmp_path)
    assert contents(tmp_path) == before


def test_changed_bytes_are_told_when_read_and_found_by_verify(data, tmp_path):
    run(small(data), tmp_path)
    before = contents(tmp_path)
    path = CandidateStore(tmp_path).path(2)
    raw = bytearray(path.read_bytes())
    entry = CandidateStore(tmp_path).entry(2)
    raw[entry.parts["04.png"].offset + 30] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"expected 000002\.04\.png as it was sampled, got other bytes.*--verify"):
        CandidateStore(tmp_path).picture(CandidateStore(tmp_path).entry(2), "04.png")
    run(small(data), tmp_path, verify=True)
    assert contents(tmp_path) == before


def test_damaged_indexes_and_tables_are_told(data, tmp_path):
    run(small(data), tmp_path)
    before = contents(tmp_path)
    CandidateStore(tmp_path).index_path(0).write_text("[{}]")
    run(small(data), tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="expected a Parquet table, got a damaged file"):
        read_scores(tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="expected a Parquet table, found none"):
        read_scores(tmp_path / "nothing.parquet")
    with pytest.raises(DataError, match="expected columns"):
        read_table(tmp_path / "pairs.parquet", ("metric",))
    with pytest.raises(DataError, match="expected a folder of `alignsr candidates`"):
        CandidateStore(tmp_path / "candidates")


# candidates made elsewhere


@pytest.fixture
def elsewhere(data, tmp_path):
    """Five candidates for every picture as another program might write them."""
    rng = np.random.default_rng(0)
    for path in data.iterdir():
        gt = np.array(Image.open(path))
        gt = gt[: gt.shape[0] // 4 * 4, : gt.shape[1] // 4 * 4]
        (tmp_path / "made" / path.stem).mkdir(parents=True)
        for k in range(5):
            noisy = np.clip(gt + rng.normal(0, 2 + 3 * k, gt.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "made" / path.stem / f"{k}.png")
    return tmp_path / "made"


def test_candidates_made_elsewhere_are_scored_and_paired(elsewhere, data, tmp_path):
    config = small(data, data__candidates=elsewhere.as_posix(), data__gt_patch_px=0)
    result = run(config, tmp_path / "run")
    assert result.store.entry(0).candidates == 5 and not result.store.has_latents
    weights = {name: float(name == "psnr_y") for name in FREE_METRICS}
    config = small(data, data__candidates=elsewhere.as_posix(), data__gt_patch_px=0, reward__weights=weights)
    table = run(config, tmp_path / "run").curation.table
    assert set(table.chosen.tolist()) == {0, 1} and set(table.rejected.tolist()) == {3, 4}, "less noise is preferred"


def test_groups_made_elsewhere_that_do_not_fit_are_named(elsewhere, data, tmp_path):
    config = small(data, data__candidates=elsewhere.as_posix(), data__gt_patch_px=0, pairs__picks=2)
    Image.new("RGB", (20, 20)).save(elsewhere / "picture_1" / "2.png")
    with pytest.raises(DataError, match=r"2\.png: expected 48x52 px as the ground truth picture_1\.png, got 20x20"):
        run(config, tmp_path / "run")
    for k in (1, 2, 3):
        (elsewhere / "picture_1" / f"{k}.png").unlink()
    with pytest.raises(DataError, match=r"picture_1\.png: expected at least 2 x 2 candidates, got 2 \(1 of 3 groups"):
        run(config, tmp_path / "run")
    (elsewhere / "picture_2").rename(elsewhere / "other")
    with pytest.raises(DataError, match=r"data\.candidates: expected pictures in .*picture_2"):
        run(config, tmp_path / "again")


def test_tar_files_are_ordinary(finished):
    with tarfile.open(finished.folder / "candidates" / "shard-000000.tar") as archive:
        names = archive.getnames()
    assert names[:3] == ["000000.gt.png", "000000.lq.png", "000000.txt"] and len(names) == 3 + 2 * 6
    assert all((finished.folder / name).is_file() for name in TABLES)
