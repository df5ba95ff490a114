"""Folders of other methods' outputs: what is checked before training, and what samples are made of them."""

import json
from pathlib import Path

import pytest
import torch
from artefact_helpers import METHODS, make_artefacts, save

from alignsr.core.resize import bicubic
from alignsr.train.artefacts import ArtefactData, ArtefactsConfig, contact, open_artefacts
from alignsr.train.config import ConfigError, from_mapping
from alignsr.train.sources import DataError
from paths import SHARED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefacts(tmp_path_factory.mktemp("artefacts"), count=4)


def data(folder: Path, seed: int = 0, patch_px: int = 48, **changes: object) -> ArtefactData:
    return ArtefactData(from_mapping(ArtefactsConfig, {"folders": [str(folder)], **changes}), 4, patch_px, seed)


def test_a_folder_says_what_it_holds(folder: Path, tmp_path: Path) -> None:
    opened = open_artefacts(folder)
    assert (opened.methods, opened.scale, len(opened.pictures)) == (METHODS, 4, 4)
    assert [p.name for p in opened.pictures] == [f"picture_{i}" for i in range(4)]
    assert opened.pictures[1].sides == (24, 26)
    assert all(p.gt is None for p in opened.pictures)
    assert open_artefacts(folder, methods=["smooth"]).methods == ("smooth",)
    with_gt = open_artefacts(make_artefacts(tmp_path, count=1, with_gt=True))
    assert with_gt.pictures[0].gt == tmp_path / "gt" / "picture_0.png"
    shown = contact(with_gt)["picture_0"]
    assert list(shown) == ["input", *METHODS, "ground truth"]
    assert shown["rough"].shape == (1, 3, 96, 96)


def test_one_message_lists_everything_that_is_wrong(tmp_path: Path) -> None:
    make_artefacts(tmp_path, count=6)
    for number in range(5):
        (tmp_path / "rough" / f"picture_{number}.png").unlink()
    save(torch.zeros(1, 3, 50, 96), tmp_path / "smooth" / "picture_0.png")
    save(torch.zeros(1, 3, 8, 8), tmp_path / "smooth" / "other.png")
    (tmp_path / "third").mkdir()
    (tmp_path / "smooth" / "picture_1.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        open_artefacts(tmp_path)
    message = str(caught.value)
    assert "rough/ lacks picture_0, picture_1, picture_2, picture_3 and 1 more (5 of 6)" in message
    assert "smooth/ has other, which lq/ has not" in message
    assert "smooth/ has picture_0 50x96 instead of 96x96" in message
    assert "third/ is empty" in message
    assert "picture_1.png is not readable as an image" in message
    assert "\n" not in message


def test_folders_that_hold_nothing(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="expected a folder at"):
        open_artefacts(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected pictures in .*lq, found none"):
        open_artefacts(tmp_path)
    make_artefacts(tmp_path / "alone", count=1)
    for method in METHODS:
        (tmp_path / "alone" / method / "picture_0.png").unlink()
        (tmp_path / "alone" / method).rmdir()
    with pytest.raises(DataError, match="expected a folder per method"):
        open_artefacts(tmp_path / "alone")
    with pytest.raises(DataError, match=r"artefacts.methods: expected one of rough, smooth, got 'smoth'; did you mean 'smooth'"):
        open_artefacts(folder, methods=["smoth"])
    with pytest.raises(DataError, match=r"instead of 48x48"):
        open_artefacts(folder, scale=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folders": []}, "artefacts.folders: expected at least one"),
        ({"share": 0.0}, "artefacts.share: expected more than 0"),
        ({"share": 1.5}, "artefacts.share: expected more than 0 and at most 1"),
        ({"holdout": -1}, "artefacts.holdout: expected at least 0"),
        ({"crop": "left"}, "crop: expected one of 'random', 'middle'"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(ArtefactsConfig, values)


def test_every_epoch_has_every_picture_of_every_method_once_in_another_order(folder: Path) -> None:
    samples = data(folder)
    assert len(samples) == 8
    epochs = [samples.batch(8 * epoch, 8).names for epoch in range(3)]
    assert {name for name in epochs[0]} == {f"picture_{i} ({m})" for i in range(4) for m in METHODS}
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert data(folder, seed=1).batch(0, 8).names != epochs[0]


def test_a_sample_is_a_function_of_seed_and_number_alone(folder: Path) -> None:
    samples, again = data(folder), data(folder)
    whole = samples.batch(0, 12)
    parts = [again.batch(first, 3) for first in (9, 0, 6, 3)]
    assert torch.equal(whole.gt[9:], parts[0].gt)
    assert torch.equal(whole.lq[:3], parts[1].lq)
    assert whole.names[3:6] == parts[3].names
    assert not torch.equal(data(folder, seed=1).batch(0, 12).gt, whole.gt)


@pytest.mark.parametrize("crop", ["random", "middle"])
def test_input_and_output_show_the_same_part_flipped_the_same_way(folder: Path, crop: str) -> None:
    """Check 21: `smooth` is the enlarged input, so away from the border every crop of it is the enlarged crop."""
    samples = data(folder, methods=["smooth"], crop=crop)
    batch = samples.batch(0, 24)
    assert batch.gt.shape == (24, 3, 48, 48)
    assert batch.lq.shape == (24, 3, 12, 12)
    up = bicubic(batch.lq, (48, 48)).clamp(0, 1)
    inner = (slice(None), slice(None), slice(12, 36), slice(12, 36))
    assert float((up - batch.gt)[inner].abs().max()) < 0.6 / 255
    assert float((up.flip(-1) - batch.gt)[inner].abs().mean()) > 0.01
    flips = {bool(torch.equal(batch.lq[i], other.flip(-1))) for i in range(24) for other in batch.lq if crop == "middle"}
    assert crop == "random" or True in flips


def test_middle_crops_repeat_and_random_ones_do_not(folder: Path) -> None:
    middle = data(folder, crop="middle", augment=False)
    first, second = middle.batch(0, 8), middle.batch(8, 8)
    place = {name: i for i, name in enumerate(second.names)}
    assert all(torch.equal(first.gt[i], second.gt[place[name]]) for i, name in enumerate(first.names))
    moving = data(folder, augment=False)
    first, second = moving.batch(0, 8), moving.batch(8, 8)
    place = {name: i for i, name in enumerate(second.names)}
    assert not all(torch.equal(first.gt[i], second.gt[place[name]]) for i, name in enumerate(first.names))


def test_a_share_of_the_pictures_is_drawn_once(tmp_path: Path) -> None:
    make_artefacts(tmp_path, count=12, side=12)
    quarter = data(tmp_path, share=0.25)
    assert len(quarter.pictures) == 3
    assert [p.name for p in data(tmp_path, seed=5, share=0.25).pictures] == [p.name for p in quarter.pictures]
    assert {p.name for p in quarter.pictures} < {p.name for p in data(tmp_path, share=0.5).pictures}
    assert len(data(tmp_path, share=0.01).pictures) == 1
    assert len(data(tmp_path).pictures) == 12
    names = sorted(int(p.name.removeprefix("picture_")) for p in quarter.pictures)
    assert names != [0, 1, 2]


def test_held_out_pictures_take_no_part(folder: Path) -> None:
    samples = data(folder, holdout=2)
    assert {name.split()[0] for name in samples.batch(0, 8).names} == {"picture_0", "picture_1"}
    held = list(samples.pairs_of_held_out())
    assert [(lq.shape[-1], gt.shape[-1]) for lq, gt in held] == [(28, 112), (30, 120)]
    with pytest.raises(DataError, match=r"artefacts.holdout: expected fewer than 4"):
        data(folder, holdout=4)
    with pytest.raises(DataError, match=r"expected pictures of at least 128 px, smaller are picture_0"):
        data(folder, patch_px=128)


def test_several_folders_are_one_set(folder: Path, tmp_path: Path) -> None:
    other = make_artefacts(tmp_path, count=2)
    assert len(data(folder, folders=[str(folder), str(other)])) == 12


@pytest.mark.skipif(not (SHARED / "data" / "realsrset").is_dir(), reason="needs RealSRSet with the outputs of three methods")
def test_real_outputs_of_three_methods() -> None:
    opened = open_artefacts(SHARED / "data" / "realsrset")
    assert opened.methods == ("bsrgan", "esrgan", "realsr_jpeg")
    batch = data(opened.folder, patch_px=128).batch(0, 6)
    assert batch.gt.shape == (6, 3, 128, 128)
    up = bicubic(batch.lq, (128, 128))
    near, mirrored = ((image - batch.gt).square().mean((1, 2, 3)) for image in (up, up.flip(-1)))
    assert bool((near < mirrored).all())


def test_the_command_says_what_a_folder_holds_and_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignsr.cli import main

    assert main(["artefacts", str(folder), "--method", "smooth", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == [f"picture_{i}" for i in range(4)]
    assert main(["artefacts", str(folder)]) == 0
    assert "4 pictures by rough, smooth" in capsys.readouterr().err
    make_artefacts(tmp_path, count=2)
    (tmp_path / "rough" / "picture_0.png").unlink()
    assert main(["artefacts", str(tmp_path)]) == 1
    assert "rough/ lacks picture_0 (1 of 2)" in capsys.readouterr().err
