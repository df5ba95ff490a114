"""The reader of preference pairs: order, resuming, what a batch holds, damaged shards."""

import pytest
import torch
from candidates_helpers import pictures, run, small

from alignsr.core.preferences import pair_table
from alignsr.train.candidates.tables import read_table, write_table
from alignsr.train.preferences import PreferenceData
from alignsr.train.prefetch import Prefetch
from alignsr.train.sources import DataError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    data = pictures(tmp_path_factory.mktemp("data") / "gt", 4)
    return run(small(data), tmp_path_factory.mktemp("run"))


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(finished):
    data = PreferenceData(finished.folder, seed=3)
    count = len(data)
    assert count == 4 * 4
    epochs = [[data.row(epoch * count + i) for i in range(count)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(count)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert epochs[1] == [PreferenceData(finished.folder, seed=3).row(count + i) for i in range(count)], "resumes from a number"
    assert epochs[0] != [PreferenceData(finished.folder, seed=4).row(i) for i in range(count)]


def test_a_batch_holds_what_the_table_says(finished):
    data = PreferenceData(finished.pairs, seed=0)
    batch = data.batch(5, 4)
    columns, _ = read_table(finished.pairs, ("group", "chosen", "rejected", "gap", "weight"))
    for i, row in enumerate(batch.pairs.tolist()):
        assert row == data.row(5 + i)
        entry = finished.store.entry(int(columns["group"][row]))
        assert torch.equal(batch.chosen[i], finished.store.latents(entry, int(columns["chosen"][row])))
        assert torch.equal(batch.rejected[i], finished.store.latents(entry, int(columns["rejected"][row])))
        assert torch.equal(batch.lq[i], finished.store.picture(entry, "lq").float() / 255)
        assert batch.weights[i] == pytest.approx(columns["weight"][row]) and batch.gaps[i] == pytest.approx(columns["gap"][row])
        assert batch.names[i] == entry.name and batch.prompts[i] == ""
    assert batch.are_latents and data.scale == 4
    assert PreferenceData(finished.folder, 0, uniform=True).batch(5, 4).weights.tolist() == [1.0] * 4
    moved = batch.to("cpu")
    assert torch.equal(moved.chosen, batch.chosen) and moved.names == batch.names


def test_processes_take_turns_and_threads_prepare_the_same(finished):
    data = PreferenceData(finished.folder, seed=1)
    turns = [data.batch(step * 4 + rank * 2, 2).pairs.tolist() for step in range(2) for rank in range(2)]
    assert [row for turn in turns for row in turn] == data.batch(0, 8).pairs.tolist()
    with Prefetch(data, 2, 4, 8) as ahead:
        assert torch.equal(ahead.batch(0, 4).chosen, data.batch(0, 4).chosen)
        assert torch.equal(ahead.batch(4, 4).lq, data.batch(4, 4).lq)


def test_weights_of_an_epoch_have_a_mean_of_one(finished):
    data = PreferenceData(finished.folder, seed=1)
    assert data.batch(0, len(data)).weights.double().mean().item() == pytest.approx(1, abs=1e-6)
    table = pair_table(list(finished.curation.rewards), 2)
    assert data._weights.tolist() == pytest.approx(table.weight.tolist())


def test_pictures_held_out_leave_weights_with_a_mean_of_one(finished):
    """Check 5: dropping groups means a new mean of the spreads."""
    data = PreferenceData(finished.folder, seed=1, held_out=1)
    assert data.held_out == (3,) and len(data) == 3 * 4
    assert set(data.batch(0, len(data)).names) == set(finished.store.names[:3])
    wanted = pair_table(list(finished.curation.rewards)[:3], 2).weight
    assert data._weights.tolist() == pytest.approx(wanted.tolist()) and wanted.mean() == pytest.approx(1, abs=1e-12)
    for count in (4, 5, 9):
        with pytest.raises(DataError, match=f"expected at least one pair beside {count} pictures that are held out"):
            PreferenceData(finished.folder, seed=1, held_out=count)


def test_pairs_of_another_n_are_made_of_the_same_candidates(finished):
    best = PreferenceData(finished.folder, seed=1, picks=1)
    wanted = pair_table(list(finished.curation.rewards), 1)
    assert len(best) == 4 and best._gaps.tolist() == pytest.approx(wanted.gap.tolist())
    assert best._weights.tolist() == pytest.approx(wanted.weight.tolist())
    assert PreferenceData(finished.folder, seed=1, picks=2)._weights.tolist() == pytest.approx(
        PreferenceData(finished.folder, seed=1)._weights.tolist()
    )
    assert set(PreferenceData(finished.folder, seed=1, picks=1, held_out=2)._groups.tolist()) == {0, 1}
    with pytest.raises(DataError, match=r"data\.picks: expected at least 2 x 4 candidates, got 6; take fewer picks"):
        PreferenceData(finished.folder, seed=1, picks=4)


def test_pictures_stand_in_for_latents_that_were_not_kept(tmp_path):
    result = run(small(pictures(tmp_path / "gt"), sampling__latents="none"), tmp_path / "run")
    batch = PreferenceData(result.folder, seed=0).batch(0, 3)
    assert not batch.are_latents and batch.chosen.shape == (3, 3, 32, 32)
    assert float(batch.chosen.min()) >= 0 and float(batch.chosen.max()) <= 1


def test_half_precision_latents_are_read_as_float32(tmp_path):
    result = run(small(pictures(tmp_path / "gt"), sampling__latents="fp16"), tmp_path / "run")
    batch = PreferenceData(result.folder, seed=0).batch(0, 2)
    assert batch.chosen.dtype == torch.float32 and torch.equal(batch.chosen, batch.chosen.half().float())


def test_tables_and_shards_that_do_not_fit_are_told(tmp_path):
    result = run(small(pictures(tmp_path / "gt")), tmp_path / "run")
    folder = tmp_path / "run"
    with pytest.raises(DataError, match="expected a Parquet table, found none"):
        PreferenceData(tmp_path, 0)
    columns, info = read_table(result.pairs, ("group", "chosen", "rejected", "gap", "intra", "inter"))
    write_table(folder / "empty.parquet", {key: value[:0] for key, value in columns.items()}, info)
    with pytest.raises(DataError, match="expected at least one pair"):
        PreferenceData(folder / "empty.parquet", 0)
    write_table(folder / "other.parquet", columns, {**info, "sampling": "0123"})
    with pytest.raises(DataError, match="expected pairs of the candidates beside it"):
        PreferenceData(folder / "other.parquet", 0)
    shard = result.store.path(1)
    data = PreferenceData(folder, 0)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"shard-000001\.tar: expected 000001\.\S+ as it was sampled, got \d+ of \d+ bytes"):
        data.batch(0, len(data))
    with pytest.raises(DataError, match=r"shard-000001\.tar: expected a finished shard"):
        PreferenceData(folder, 0)


def test_pictures_of_different_sizes_need_a_batch_of_one(tmp_path):
    result = run(small(pictures(tmp_path / "gt"), data__gt_patch_px=0), tmp_path / "run")
    data = PreferenceData(result.folder, 0)
    assert data.batch(0, 1).chosen.ndim == 4
    with pytest.raises(DataError, match=r"expected \(3, 12, 1\d\) as picture_\d\.png in the same batch, got another size"):
        data.batch(0, len(data))
