"""`data.gt_scale_min`: ground truth at several sizes, drawn per sample, never smaller than the patch."""

from dataclasses import replace

import torch
from train_helpers import make_pictures

from alignsr.train.config import DataConfig
from alignsr.train.data import PairData

SETTINGS = DataConfig(gt_patch_px=32, degradation="bicubic", augment=False)


def patches(folder, **changes):
    data = PairData(replace(SETTINGS, folders=(str(folder),), **changes), scale=4, seed=3)
    return data.batch(0, 12)


def test_shrunk_ground_truth_is_another_picture_of_the_same_size(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    plain, shrunk = patches(folder), patches(folder, gt_scale_min=0.6)
    assert plain.gt.shape == shrunk.gt.shape and plain.names == shrunk.names
    changed = [not torch.equal(a, b) for a, b in zip(plain.gt, shrunk.gt, strict=True)]
    assert sum(changed) >= 10
    levels = shrunk.gt * 255
    assert torch.equal(levels, levels.round()), "still pictures of 8 bit"


def test_a_sample_does_not_depend_on_the_batch(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    config = replace(SETTINGS, folders=(str(folder),), gt_scale_min=0.6)
    whole = PairData(config, scale=4, seed=3).batch(0, 8)
    part = PairData(config, scale=4, seed=3).batch(4, 4)
    assert torch.equal(whole.gt[4:], part.gt) and torch.equal(whole.lq[4:], part.lq)


def test_a_picture_is_never_shrunk_below_the_patch(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    assert patches(folder, gt_scale_min=0.01).gt.shape[-2:] == (32, 32)


def test_one_changes_nothing(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    assert torch.equal(patches(folder).gt, patches(folder, gt_scale_min=1.0).gt)
