import dataclasses

import pytest
import torch
from train_helpers import make_pictures, tiny

from alignsr.core.resize import imresize_uint8
from alignsr.train.data import DataError, ImageStore, PairData, dihedral
from alignsr.train.recipes import load_config
from alignsr.train.sources import Encoded, Source


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def test_samples_do_not_depend_on_how_they_are_batched(pictures):
    config = tiny("tiny-lite-x4", pictures).data
    whole = PairData(config, 4, seed=3).batch(0, 6)
    parts = [PairData(config, 4, seed=3).batch(i, 2) for i in (4, 0, 2)]
    again = torch.cat([parts[1].gt, parts[2].gt, parts[0].gt])
    assert torch.equal(whole.gt, again)
    assert whole.names == parts[1].names + parts[2].names + parts[0].names


def test_another_seed_gives_other_samples(pictures):
    config = tiny("tiny-lite-x4", pictures).data
    assert not torch.equal(PairData(config, 4, 0).batch(0, 4).gt, PairData(config, 4, 1).batch(0, 4).gt)


def test_pairs_are_aligned_and_turned_alike(pictures):
    """Away from the border, the low-resolution patch is the reduction of the patch itself, whatever the turn."""
    config = tiny("tiny-lite-x4", pictures, data__gt_patch_px=40).data
    batch = PairData(config, 4, 0).batch(0, 8)
    for gt, lq in zip(batch.gt, batch.lq, strict=True):
        direct = imresize_uint8((gt * 255).round().to(torch.uint8), 0.25)
        difference = (direct.float() - lq * 255)[:, 2:-2, 2:-2].abs()
        assert difference.max() <= 1.01


def test_lq_is_the_matlab_reduction_of_the_whole_picture(pictures):
    store = ImageStore([Source(Encoded(path)) for path in sorted(pictures.glob("*.png"))], 4)
    gt, lq = store.pair(1)
    assert gt.shape == (3, 48, 52)
    assert torch.equal(lq, imresize_uint8(gt, 0.25))


def test_the_eight_turns_are_different_and_turn_zero_is_the_identity():
    x = torch.arange(6.0).view(1, 2, 3)
    turned = [dihedral(x, turn) for turn in range(8)]
    assert torch.equal(turned[0], x)
    assert len({(tuple(t.shape), tuple(t.flatten().tolist())) for t in turned}) == 8


def test_pool_slides_once_per_step_and_is_the_same_from_any_start(pictures):
    config = tiny("tiny-lite-real-x4", pictures, data__pool_size=3, data__pool_patch_px=32).data
    straight = PairData(config, 4, 0, samples_per_step=2)
    batches = [straight.batch(2 * step, 2) for step in range(4)]
    late = PairData(config, 4, 0, samples_per_step=2).batch(6, 2)
    assert torch.equal(batches[3].lq, late.lq)
    assert torch.equal(batches[3].gt, late.gt)


def test_pool_of_the_real_world_task(pictures, monkeypatch):
    """aesop.md check 14 for one process: 144 pairs, 12 per step. The released pool fills in steps 1 to 12 and swaps random pairs
    from step 13 on; ours has its 144 pairs at once, and the 12 oldest go after every step.
    """
    real = load_config("aesop-real")[1].data
    config = dataclasses.replace(
        real, folders=(pictures.as_posix(),), holdout=0, pool_size=144, pool_refresh=12, decoded_cache=""
    )
    data, seen = PairData(config, 4, 0, samples_per_step=12), []
    pair = torch.zeros(3, 400, 400, dtype=torch.uint8), torch.zeros(3, 100, 100, dtype=torch.uint8), "x"
    monkeypatch.setattr(data, "_pooled_pair", lambda number: (seen.append(number), pair)[1])
    for step in range(40):
        batch = data.batch(12 * step, 12)
        assert (batch.gt.shape, batch.lq.shape) == ((12, 3, 256, 256), (12, 3, 64, 64))
    by_step = [seen[12 * step : 12 * step + 12] for step in range(40)]
    assert all(12 * step <= number < 12 * step + 144 for step, numbers in enumerate(by_step) for number in numbers)
    ages = sorted((number - 12 * step) // 12 for step, numbers in enumerate(by_step) for number in numbers)
    assert set(ages) == set(range(12)), "old and new pairs alike"


def test_a_pooled_sample_of_the_real_world_task_is_a_crop_on_the_8_bit_grid(tmp_path):
    """aesop.md check 14: a 400 px crop is degraded, 64 px of it are taken. Degrading it takes a second."""
    make_pictures(tmp_path, count=1, side=412)
    real = load_config("aesop-real")[1].data
    config = dataclasses.replace(real, folders=(tmp_path.as_posix(),), holdout=0, decoded_cache="")
    batch = PairData(config, 4, 0, samples_per_step=48).batch(0, 1)
    assert (batch.gt.shape, batch.lq.shape) == ((1, 3, 256, 256), (1, 3, 64, 64))
    levels = batch.lq * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    again = PairData(config, 4, 0, samples_per_step=48).batch(0, 1)
    assert torch.equal(again.lq, batch.lq), "one seed, one picture"


def test_degraded_samples_keep_the_plain_ground_truth(pictures):
    config = tiny("tiny-lite-real-x4", pictures, data__pool_size=0, data__augment=False, data__gt_scale_min=1.0).data
    data = PairData(config, 4, 0)
    batch = data.batch(0, 2)
    assert batch.lq.shape == (2, 3, 8, 8)
    source = data.store.image([source.gt.name for source in data.store.sources].index(batch.names[0])).float() / 255
    patches = source.unfold(1, 32, 1).unfold(2, 32, 1).movedim(0, 2)
    assert bool(((patches - batch.gt[0]).abs().amax((2, 3, 4)) < 1e-6).any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__folders": "MISSING"}, "expected a folder of images"),
        ({"data__gt_patch_px": 64}, "expected sides of at least 64 px"),
        ({"data__holdout": 3}, "expected fewer than 3 files"),
        ({"data__holdout": -1}, "data.holdout: expected an integer >= 0, got -1"),
        (
            {"data__pool_patch_px": 28},
            "data.pool_patch_px: expected a multiple of 4 from data.gt_patch_px 32 on, got 28",
        ),
        ({"data__pool_patch_px": 34}, "data.pool_patch_px: expected a multiple of 4 from"),
        ({"data__pool_refresh": -1}, "data.pool_refresh: expected an integer >= 0"),
    ],
)
def test_unusable_data_is_named(pictures, change, message):
    change = {key: [(pictures / value).as_posix()] if value == "MISSING" else value for key, value in change.items()}
    config = tiny("tiny-lite-real-x4", pictures, **change).data
    with pytest.raises(ValueError, match=message):  # DataError is one
        PairData(config, 4, 0).batch(0, 1)


def test_a_damaged_file_stops_or_is_skipped_as_configured(tmp_path):
    make_pictures(tmp_path, count=2)
    (tmp_path / "picture_0.png").write_bytes((tmp_path / "picture_0.png").read_bytes()[:100])
    stop = PairData(tiny("tiny-lite-x4", tmp_path, data__holdout=0).data, 4, 0)
    with pytest.raises(DataError, match=r"picture_0\.png: not readable"):
        stop.batch(0, 16)
    skip = PairData(tiny("tiny-lite-x4", tmp_path, data__holdout=0, data__on_error="skip").data, 4, 0)
    assert set(skip.batch(0, 16).names) == {"picture_1.png"}
