"""Where pictures come from: folders, pairs of folders, shards, sub-images, raw files on disk."""

import io
import logging
import shutil
import struct
import tarfile
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from train_helpers import make_pictures, tiny

from alignsr.core.resize import imresize_uint8
from alignsr.train.data import PairData, ShardOrder
from alignsr.train.sources import DataError, Encoded, Source, expand_shards
from alignsr.train.store import ImageStore, Windows


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def data_of(folder, **sets):
    return PairData(tiny("tiny-lite-x4", folder, data__holdout=0, **sets).data, 4, seed=3)


def write_lq(pictures, folder, suffix="", scale=4):
    folder.mkdir(parents=True)
    for path in sorted(pictures.glob("*.png")):
        gt = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)
        lq = imresize_uint8(gt, 1 / scale)
        Image.fromarray(lq.movedim(0, -1).numpy()).save(folder / f"{path.stem}{suffix}.png")
    return folder


def test_low_resolution_files_from_disk_give_the_samples_that_are_made_on_the_fly(pictures, tmp_path):
    folder = write_lq(pictures, tmp_path / "lq", "x4")
    made = data_of(pictures).batch(0, 6)
    read = data_of(pictures, data__lq_folders=[folder.as_posix()], data__lq_suffix="x4").batch(0, 6)
    assert torch.equal(made.lq, read.lq)
    assert torch.equal(made.gt, read.gt)


def test_a_ground_truth_without_partner_is_named_with_what_may_help(pictures, tmp_path):
    folder = write_lq(pictures, tmp_path / "lq", "x4")
    with pytest.raises(DataError, match=r'picture_0\.\* .*3 of 3 have no partner.*set data\.lq_suffix = "x4"'):
        data_of(pictures, data__lq_folders=[folder.as_posix()])
    (folder / "picture_1x4.png").unlink()
    with pytest.raises(DataError, match=r"picture_1x4\.\* .*1 of 3"):
        data_of(pictures, data__lq_folders=[folder.as_posix()], data__lq_suffix="x4")


def test_low_resolution_files_of_another_scale_are_named(pictures, tmp_path):
    folder = write_lq(pictures, tmp_path / "lq", scale=2)
    with pytest.raises(DataError, match=r"picture_\d\.png: expected 12x1\d px, 1/4 of .*got 24x2\d"):
        data_of(pictures, data__lq_folders=[folder.as_posix()]).batch(0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__lq_folders": ["a", "b"]}, "expected one per entry of data.folders .1., got 2"),
        ({"data__lq_folders": ["nowhere"]}, "data.lq_folders: expected a folder of images"),
        ({"data__shards": ["nowhere-{0..3}.tar"]}, "data.shards: expected a tar file at nowhere-0.tar"),
        ({"data__shards": ["a-{3..0}.tar"]}, "data.shards: expected a rising range, got {3..0}"),
        ({"data__shards": ["a.tar"], "data__lq_folders": ["a"]}, "expected none beside data.shards"),
        ({"data__subimage_px": 24}, "data.subimage_px: expected an integer >= 32, got 24"),
        ({"data__subimage_px": 42}, "data.subimage_px: expected multiples of the scale 4"),
        ({"data__subimage_px": 40, "data__subimage_step_px": 0}, "data.subimage_step_px: expected an integer >= 1"),
        ({"data__workers": -1}, "data.workers: expected an integer"),
        ({"data__lq_folders": ["a"], "data__degradation": "realesrgan"}, "expected matlab beside data.lq_folders"),
        ({"data__degradation": "realesrgn"}, "did you mean 'realesrgan'"),
    ],
)
def test_unusable_settings_are_named(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        data_of(pictures, **change)


def test_grey_and_transparent_pictures_train_as_colour(tmp_path):
    picture = Image.fromarray((np.indices((48, 48)).sum(0) * 2).astype(np.uint8))
    picture.save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    batch = data_of(tmp_path).batch(0, 4)
    assert batch.gt.shape == (4, 3, 32, 32)
    assert torch.equal(batch.gt[:, 0], batch.gt[:, 2])


def test_a_picture_that_is_left_out_is_named_once(tmp_path, caplog):
    make_pictures(tmp_path, count=2)
    (tmp_path / "picture_0.png").write_bytes(b"not an image")
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    data = data_of(tmp_path, data__on_error="skip")
    with caplog.at_level(logging.WARNING, logger="alignsr"):
        assert set(data.batch(0, 16).names) == {"picture_1.png"}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert any("picture_0.png: not readable" in text for text in told)
    assert any("small.png: expected sides of at least 32 px, got 16x16" in text for text in told)


def test_turns_of_the_real_world_task_only_mirror(tmp_path):
    rows = np.repeat(np.arange(48, dtype=np.uint8)[:, None] * 5, 48, 1)
    Image.fromarray(rows).save(tmp_path / "rows.png")
    mirrored = data_of(tmp_path, data__turns="horizontal").batch(0, 16).gt
    assert bool((mirrored[:, :, 1:, :] > mirrored[:, :, :-1, :]).all()), "rows keep their order, top to bottom"
    turned = data_of(tmp_path).batch(0, 16).gt
    assert not bool((turned[:, :, 1:, :] >= turned[:, :, :-1, :]).all())
    columns = np.repeat(np.arange(48, dtype=np.uint8)[None] * 5, 48, 0)
    Image.fromarray(columns).save(tmp_path / "rows.png")
    directions = {bool(gt[0, 0, 1] > gt[0, 0, 0]) for gt in data_of(tmp_path, data__turns="horizontal").batch(0, 16).gt}
    assert directions == {True, False}


def test_windows_are_those_of_the_reference_extraction():
    """BasicSR's rule, by hand: 2040 px -> 0, 240, ..., 1440 and then 1560, where the last window ends the side."""
    windows = Windows([(1356, 2040), (480, 700), (300, 480)], 480, 240)
    assert windows.starts(2040) == [*range(0, 1441, 240), 1560]
    assert windows.starts(1356) == [0, 240, 480, 720, 876]
    assert windows.starts(480) == [0]
    assert len(windows) == 8 * 5 + 2 + 1
    places = [windows.locate(n) for n in range(len(windows))]
    assert len(set(places)) == len(places)
    assert places[39] == (0, 876, 1560)
    assert places[40:] == [(1, 0, 0), (1, 0, 220), (2, 0, 0)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_sides_are_those_of_the_decoded_picture_without_decoding_it(suffix, tmp_path, monkeypatch):
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (20, 12)).save(tmp_path / f"{orientation}{suffix}", exif=exif)
        picture = Encoded(tmp_path / f"{orientation}{suffix}")
        expected = tuple(picture.read().pixels.shape[-2:])
        assert expected == ((12, 20) if orientation == 1 else (20, 12))
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
            assert picture.sides() == expected


def test_a_png_that_tells_its_orientation_behind_the_pixels_is_turned_too(tmp_path):
    Image.new("RGB", (20, 12)).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "late.png").write_bytes(data[:-12] + chunk + data[-12:])
    late = Encoded(tmp_path / "late.png")
    assert late.sides() == tuple(late.read().pixels.shape[-2:]) == (20, 12)


@pytest.mark.parametrize("length", [0, 20, 40, 60, 100, 140])
def test_a_cut_picture_is_named_with_sub_images_too(length, tmp_path):
    """At whatever place it is cut: where the size is still told, decoding finds out."""
    make_pictures(tmp_path, count=2)
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture_0.png").read_bytes()[:length])
    windows = {"data__subimage_px": 40, "data__subimage_step_px": 8}
    with pytest.raises(DataError, match=r"cut\.png: not readable as an image"):
        data_of(tmp_path, **windows).batch(0, 32)
    assert set(data_of(tmp_path, **windows, data__on_error="skip").batch(0, 32).names) == {"picture_0.png", "picture_1.png"}


def test_sub_images_cut_pairs_from_the_grid_and_stay_aligned(pictures):
    whole = data_of(pictures, data__gt_patch_px=32)
    data = data_of(pictures, data__gt_patch_px=32, data__subimage_px=32, data__subimage_step_px=8, data__augment=False)
    images = {source.gt.name: whole.store.pair(i) for i, source in enumerate(whole.store.sources)}
    for i in range(12):
        batch = data.batch(i, 1)
        gt, lq = images[batch.names[0]]
        places = [
            (top, left)
            for top in range(0, gt.shape[1] - 31, 4)
            for left in range(0, gt.shape[2] - 31, 4)
            if torch.equal(gt[:, top : top + 32, left : left + 32].float() / 255, batch.gt[0])
        ]
        assert places, "a window of the grid"
        top, left = places[0]
        assert top in data._windows.starts(gt.shape[1])
        assert left in data._windows.starts(gt.shape[2])
        assert torch.equal(lq[:, top // 4 : top // 4 + 8, left // 4 : left // 4 + 8].float() / 255, batch.lq[0])


def test_decoded_pictures_on_disk_change_no_sample_and_survive_damage(pictures, tmp_path):
    folder = tmp_path / "cache"
    plain = data_of(pictures).batch(0, 8)
    first = data_of(pictures, data__decoded_cache=folder.as_posix())
    assert torch.equal(first.batch(0, 8).lq, plain.lq)
    files = sorted(folder.glob("*.npy"))
    assert len(files) == 6
    stamps = [path.stat().st_mtime_ns for path in files]
    files[0].write_bytes(files[0].read_bytes()[:200])
    again = data_of(pictures, data__decoded_cache=folder.as_posix()).batch(0, 8)
    assert torch.equal(again.gt, plain.gt)
    assert torch.equal(again.lq, plain.lq)
    assert [path.stat().st_mtime_ns for path in files][1:] == stamps[1:], "what is whole is not made again"
    assert not list(folder.glob(".*")), "nothing half-written is left"


def test_a_changed_picture_is_decoded_again(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "a.png")
    store = ImageStore([Source(Encoded(tmp_path / "a.png"))], 4, folder=tmp_path / "cache")
    assert store.image(0)[0].float().mean() == 255
    Image.new("RGB", (52, 48), "blue").save(tmp_path / "a.png")
    assert store.image(0)[0].float().mean() == 0


def make_shards(pictures, folder, lq=None):
    """Three shards as the webdataset package writes them: the pictures, their partners and a text field."""
    folder.mkdir()
    files = sorted(pictures.glob("*.png"))
    for number, path in enumerate(files):
        with tarfile.open(folder / f"train-{number:03d}.tar", "w") as archive:
            for copy in range(number + 1):
                add(archive, f"pictures/{path.stem}_{copy}.gt.png", path.read_bytes())
                add(archive, f"pictures/{path.stem}_{copy}.txt", b"a caption")
                if lq:
                    add(archive, f"pictures/{path.stem}_{copy}.lq.png", (lq / path.name).read_bytes())
    return f"{folder.as_posix()}/train-{{000..{len(files) - 1:03d}}}.tar"


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_shards_give_every_picture_once_per_epoch_and_the_same_from_any_start(pictures, tmp_path):
    pattern = make_shards(pictures, tmp_path / "shards")
    data = data_of(pictures, data__shards=[pattern])
    epoch = data.batch(0, 6)
    assert len(set(epoch.names)) == 6
    assert epoch.names[0].endswith(".gt.png")
    assert sorted(data.batch(6, 6).names) == sorted(epoch.names)
    assert data.batch(6, 6).names != epoch.names, "every epoch has its own order"
    late = data_of(pictures, data__shards=[pattern])
    assert torch.equal(late.batch(4, 2).gt, epoch.gt[4:])
    parts = [data_of(pictures, data__shards=[pattern]).batch(i, 2) for i in (0, 2, 4)]  # as three processes take turns
    assert torch.equal(torch.cat([part.gt for part in parts]), epoch.gt)


def test_a_shard_is_read_before_the_next_one():
    shards = [0] * 5 + [1] * 3 + [2] * 4
    order = ShardOrder(shards, seed=1)
    seen = [shards[order(index)] for index in range(12, 24)]
    assert sorted(order(index) for index in range(12, 24)) == list(range(12))
    assert sum(a != b for a, b in pairwise(seen)) == 2


def test_low_resolution_members_of_shards_are_used(pictures, tmp_path):
    lq = write_lq(pictures, tmp_path / "lq")
    with_files = data_of(pictures, data__shards=[make_shards(pictures, tmp_path / "with", lq)])
    made = data_of(pictures, data__shards=[make_shards(pictures, tmp_path / "without")])
    assert all(source.lq is not None for source in with_files.store.sources)
    assert torch.equal(with_files.batch(0, 6).lq, made.batch(0, 6).lq)


def test_shards_agree_with_the_webdataset_package(pictures, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for file in sorted(pictures.glob("*.png")):
            writer.write({"__key__": file.stem, "gt.png": file.read_bytes(), "json": {"n": 1}})
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    ours = data_of(pictures, data__shards=[path.as_posix()]).store
    assert [source.gt.member.split(".")[0] for source in ours.sources] == theirs
    assert torch.equal(ours.image(0), data_of(pictures).store.image(0))


def test_damaged_and_empty_shards_are_named(pictures, tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 50)
    with pytest.raises(DataError, match=r"bad\.tar: expected an uncompressed tar file"):
        data_of(pictures, data__shards=[(tmp_path / "bad.tar").as_posix()])
    with tarfile.open(tmp_path / "text.tar", "w") as archive:
        add(archive, "a.txt", b"text")
    with pytest.raises(DataError, match=r"text\.tar: expected pictures named KEY\.png"):
        data_of(pictures, data__shards=[(tmp_path / "text.tar").as_posix()])
    with tarfile.open(tmp_path / "corrupt.tar", "w") as archive:
        add(archive, "a.png", b"not a picture")
    with pytest.raises(DataError, match=r"corrupt\.tar:a\.png: not readable as an image"):
        data_of(pictures, data__shards=[(tmp_path / "corrupt.tar").as_posix()]).batch(0, 1)


def test_shard_patterns_expand_in_order(tmp_path):
    for name in ("a-1-00.tar", "a-1-01.tar", "a-2-00.tar", "a-2-01.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    expanded = expand_shards([f"{tmp_path}/a-{{1..2}}-{{00..01}}.tar", f"{tmp_path}/b*.tar"])
    assert [path.name for path in expanded] == ["a-1-00.tar", "a-1-01.tar", "a-2-00.tar", "a-2-01.tar", "b.tar"]


def test_pictures_in_shards_lose_no_bit_depth(tmp_path):
    """16-bit colour is read by another library, from memory here."""
    from alignsr.core.image_files import read_image, write_image

    write_image(tmp_path / "deep.png", torch.rand(1, 3, 8, 8), like=None)
    content = (tmp_path / "deep.png").read_bytes()
    shutil.move(tmp_path / "deep.png", tmp_path / "moved.png")
    assert torch.equal(read_image("deep.png", content).pixels, read_image(tmp_path / "moved.png").pixels)
