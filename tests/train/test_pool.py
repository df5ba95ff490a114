"""The order of a pool of pairs (check 26 of strsr.md), and whole pictures fitted to a patch (section 2.1)."""

import numpy as np
import pytest
import torch
from PIL import Image
from train_helpers import make_pictures

from alignsr.train.config import DataConfig
from alignsr.train.data import DataError, PairData, fitted
from alignsr.train.pool import pooled_index
from reference.formula import U


def test_26_first_calls_pass_through_and_nothing_is_lost():
    """After n >= 256 calls, what went in is what came out beyond the first 256, and the 256 that are inside."""
    size, calls = 256, 900
    out = [pooled_index(call, size, seed=3) for call in range(calls)]
    assert out[:size] == list(range(size))
    assert all(index <= call for call, index in enumerate(out))
    left = out[size:]
    assert len(set(left)) == len(left), "a sample leaves once"
    inside = set(range(calls)) - set(left)
    assert len(inside) == size, "items in = items out + 256"
    waits = [call - index for call, index in enumerate(out) if call >= 2 * size]
    assert 0.7 * size < sum(waits) / len(waits) < 1.3 * size


def test_it_equals_a_pool_that_keeps_its_pairs():
    size, pool, slots = 8, {}, []
    from alignsr.train import pool as module

    for call in range(200):
        if call < size:
            pool[call] = call
            assert pooled_index(call, size, 5) == call
            continue
        slot = module._slot(5, call, size)
        slots.append(slot)
        assert pooled_index(call, size, 5) == pool[slot]
        pool[slot] = call
    assert set(slots) == set(range(size))
    assert pooled_index(40, 8, 5) == pooled_index(40, 8, 5)
    assert [pooled_index(c, 8, 5) for c in range(8, 40)] != [pooled_index(c, 8, 6) for c in range(8, 40)]
    assert pooled_index(40, 0, 5) == 40


def data(folder, **changes):
    config = DataConfig(folders=(str(folder),), gt_patch_px=32, augment=False, degradation="strsr", crop="fit", **changes)
    return PairData(config, 4, seed=1)


def test_pairs_stay_together_and_come_in_the_pools_order(tmp_path):
    make_pictures(tmp_path, side=40)
    plain, pooled = data(tmp_path), data(tmp_path, pair_pool=3)
    batch = pooled.batch(0, 12)
    for call in range(12):
        alone = plain.batch(pooled_index(call, 3, 1), 1)
        assert torch.equal(batch.gt[call], alone.gt[0])
        assert torch.equal(batch.lq[call], alone.lq[0])
    assert torch.equal(pooled.batch(4, 1).lq[0], batch.lq[4]), "no state: any call can be asked for again"


@pytest.mark.parametrize(("height", "width"), [(100, 60), (20, 31), (64, 200), (32, 32)])
def test_whole_pictures_are_fitted(height, width):
    image = (U("pool/fit", 3, height, width) * 255).to(torch.uint8)
    square = fitted(image, 32)
    assert square.shape == (3, 32, 32)
    assert square.dtype == torch.uint8
    if (height, width) == (32, 32):
        assert torch.equal(square, image)
    if (height, width) == (64, 200):  # halved once, then cut in the middle
        half = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((100, 32), Image.Resampling.BOX)
        middle = torch.from_numpy(np.array(half)[:, 34:66]).permute(2, 0, 1)
        assert torch.equal(square, middle)


def test_small_pictures_are_enlarged_and_25_the_same_index_gives_the_same_pair(tmp_path):
    make_pictures(tmp_path, side=20)
    one, two = data(tmp_path), data(tmp_path)
    a, b = one.batch(0, 3), two.batch(0, 3)
    assert a.gt.shape == (3, 3, 32, 32)
    assert a.lq.shape == (3, 3, 8, 8)
    assert torch.equal(a.lq, b.lq)
    assert bool(((a.lq >= 0) & (a.lq <= 1)).all())
    assert not torch.equal(one.batch(3, 3).lq, a.lq), "another process has other indices"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_size": 4}, 'data.crop: expected "random" with'),
        ({"pool_size": 4, "crop": "random", "pair_pool": 2}, "data.pair_pool: expected 0 beside data.pool_size, got 2"),
        ({"pair_pool": -1}, "data.pair_pool"),
    ],
)
def test_settings_that_exclude_each_other_are_named(tmp_path, changes, message):
    make_pictures(tmp_path, side=40)
    with pytest.raises((DataError, ValueError), match=message):
        values = {"folders": (str(tmp_path),), "gt_patch_px": 32, "degradation": "strsr", "crop": "fit"} | changes
        PairData(DataConfig(**values), 4, seed=1)
