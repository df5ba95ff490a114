import pytest
import torch
from train_helpers import make_pictures, tiny

from alignsr.core.resize import imresize_uint8
from alignsr.train.data import DataError, ImageStore, PairData, dihedral
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
