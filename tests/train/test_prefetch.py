"""Background workers: the same samples, errors where they belong, and no thread left behind."""

import threading

import pytest
import torch
from train_helpers import make_pictures, tiny

from alignsr.train.data import DataError, PairData
from alignsr.train.prefetch import Prefetch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("alignsr-data")]


CASES = {
    "matlab": {},
    "sub-images": {"data__subimage_px": 36, "data__subimage_step_px": 4},
    "degraded": {"data__degradation": "realesrgan", "data__pool_size": 0},
    "pool": {"data__degradation": "realesrgan", "data__pool_size": 3, "data__pool_patch_px": 36, "data__pool_refresh": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_workers_give_exactly_the_samples_that_are_made_inline(case, pictures):
    def data():
        return PairData(tiny("tiny-lite-x4", pictures, **CASES[case]).data, 4, seed=1, samples_per_step=4)

    inline = data()
    with Prefetch(data(), workers=3, stride=4, end=32) as feed:
        for index in range(0, 32, 4):
            expected, got = inline.batch(index, 2), feed.batch(index, 2)
            assert expected.names == got.names
            assert torch.equal(expected.lq, got.lq)
            assert torch.equal(expected.gt, got.gt)
    assert not workers()


def test_samples_do_not_depend_on_the_number_of_torch_threads(pictures):
    config = tiny("tiny-lite-x4", pictures, data__degradation="realesrgan", data__pool_size=0).data
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = PairData(config, 4, 0).batch(0, 2)
        assert torch.get_num_threads() == 2
        with Prefetch(PairData(config, 4, 0), workers=2, stride=2, end=8) as feed:
            assert torch.get_num_threads() == 2, "the training thread keeps its threads"
            assert torch.equal(feed.batch(0, 2).lq, two.lq)
            assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert torch.equal(PairData(config, 4, 0).batch(0, 2).lq, two.lq)
    finally:
        torch.set_num_threads(before)


def test_asking_out_of_turn_starts_anew(pictures):
    data = PairData(tiny("tiny-lite-x4", pictures).data, 4, 0)
    with Prefetch(data, workers=2, stride=2, end=20) as feed:
        for index in (0, 2, 10, 4):
            assert torch.equal(feed.batch(index, 2).gt, data.batch(index, 2).gt)


def test_nothing_is_prepared_beyond_the_last_step(pictures, monkeypatch):
    data = PairData(tiny("tiny-lite-x4", pictures).data, 4, 0)
    asked, original = [], data.batch
    monkeypatch.setattr(data, "batch", lambda first, size: asked.append(first) or original(first, size))
    with Prefetch(data, workers=4, stride=2, end=6) as feed:
        feed.batch(0, 2)
        feed.batch(2, 2)
        feed.batch(4, 2)
    assert sorted(asked) == [0, 2, 4]


@pytest.mark.parametrize("count", [0, 2])
def test_a_damaged_picture_stops_at_the_batch_that_needs_it_and_ends_the_workers(count, tmp_path):
    make_pictures(tmp_path, count=3)
    config = tiny("tiny-lite-x4", tmp_path, data__holdout=0).data
    names = [PairData(config, 4, 0).batch(i, 1).names[0] for i in range(12)]
    last = next(name for name in reversed(names) if name != names[0])
    first_use = names.index(last)
    (tmp_path / last).write_bytes(b"damaged")
    with (
        pytest.raises(DataError, match=rf"{last}: not readable"),
        Prefetch(PairData(config, 4, 0), workers=count, stride=1, end=12) as feed,
    ):
        for index in range(12):
            assert index <= first_use
            feed.batch(index, 1)
    assert not workers()


def test_pooled_pairs_are_let_go_when_no_coming_sample_can_use_them(pictures):
    config = tiny("tiny-lite-x4", pictures, **CASES["pool"]).data
    data = PairData(config, 4, 0, samples_per_step=1)
    with Prefetch(data, workers=2, stride=1, end=40) as feed:
        for index in range(40):
            feed.batch(index, 1)
            assert len(data._pool) <= config.pool_size + config.pool_refresh * 5
    assert min(data._pool) >= 39 * config.pool_refresh
