"""Folders and lists of pairs become a table in which nothing is missing without a reason."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignsr.core.evaluate import Pair, evaluate_pairs, pairs_from_folders
from alignsr.core.metrics import METRICS, LearnedMetric, Scorer, SetDistance, psnr, ssim
from alignsr.core.metrics.table import Row, Table
from reference.formula import S, U


def save(path: Path, image: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
    return path


def images(count: int = 3, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """(sr, gt) on the 8-bit grid, each a little worse than the one before."""
    result: list[tuple[Tensor, Tensor]] = []
    for index in range(count):
        gt = U(f"evaluate/{index}", 1, 3, size, size + 4)
        sr = gt + 0.02 * (index + 1) * S(f"evaluate/noise{index}", 1, 3, size, size + 4)
        result.append(((sr.clamp(0, 1) * 255).round() / 255, (gt * 255).round() / 255))
    return result


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for index, (sr, gt) in enumerate(images()):
        save(tmp_path / "sr" / f"photo_{index}_x4.png", sr)
        save(tmp_path / "gt" / f"photo_{index}.png", gt)
    return tmp_path / "sr", tmp_path / "gt"


def test_folder_scores_are_the_metrics_of_the_files(folders: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int | None, str]] = []
    table = evaluate_pairs(pairs_from_folders(*folders), ["psnr_y", "ssim_y"], scale=4, progress=lambda *call: seen.append(call))
    assert [row.name for row in table.rows] == ["photo_0_x4", "photo_1_x4", "photo_2_x4"]
    assert seen == [(1, 3, "photo_0_x4"), (2, 3, "photo_1_x4"), (3, 3, "photo_2_x4")]
    for row, (sr, gt) in zip(table.rows, images(), strict=True):
        assert row.values["psnr_y"] == pytest.approx(psnr(sr, gt, crop=4).item(), abs=1e-9)
        assert row.values["ssim_y"] == pytest.approx(ssim(sr, gt, crop=4).item(), abs=1e-9)
    assert table.mean()["psnr_y"] == pytest.approx(sum(row.values["psnr_y"] for row in table.rows) / 3)
    assert table.complete
    assert table.notes() == []


def test_float_images_score_like_their_files(folders: tuple[Path, Path]) -> None:
    fine = [Pair(str(i), sr + 0.3 / 255, gt) for i, (sr, gt) in enumerate(images())]
    from_files = evaluate_pairs(pairs_from_folders(*folders), scale=4)
    assert evaluate_pairs(fine, scale=4).mean() == pytest.approx(from_files.mean())


def test_crop_is_the_scale_unless_said_otherwise(folders: tuple[Path, Path]) -> None:
    pairs = pairs_from_folders(*folders)
    assert evaluate_pairs(pairs, ["psnr_y"], scale=2).mean() == evaluate_pairs(pairs, ["psnr_y"], scale=4, crop=2).mean()
    assert evaluate_pairs(pairs, ["psnr_y"], crop=0).crop == 0
    assert evaluate_pairs(pairs, ["psnr_y"]).crop == 4


def test_a_generator_is_consumed_one_pair_at_a_time() -> None:
    alive: list[int] = []

    def generate() -> Iterator[Pair]:
        for index, (sr, gt) in enumerate(images()):
            alive.append(index)
            yield Pair(str(index), sr, gt)

    def progress(done: int, total: int | None, _: str) -> None:
        assert total is None
        assert alive == list(range(done))

    assert len(evaluate_pairs(generate(), ["psnr_y"], progress=progress).rows) == 3


def test_stopping_keeps_what_was_done() -> None:
    pairs = [Pair(str(i), sr, gt) for i, (sr, gt) in enumerate(images())]
    done: list[str] = []
    table = evaluate_pairs(pairs, ["psnr_y"], progress=lambda *call: done.append(call[2]), should_stop=lambda: len(done) == 2)
    assert [row.name for row in table.rows] == ["0", "1"]
    assert not table.complete
    assert table.notes() == ["stopped after 2 images"]
    assert table.to_dict()["complete"] is False


def test_grey_and_alpha_files_are_compared_as_rgb(tmp_path: Path) -> None:
    sr, gt = images(1)[0]
    grey_pair = Pair("grey", save(tmp_path / "sr.png", sr[:, :1]), save(tmp_path / "gt.png", gt[:, :1].expand(-1, 3, -1, -1)))
    alpha = torch.cat([sr, U("evaluate/alpha", 1, 1, 32, 36)], dim=1)
    alpha_pair = Pair("alpha", save(tmp_path / "rgba.png", alpha), save(tmp_path / "rgb.png", gt))
    table = evaluate_pairs([grey_pair, alpha_pair], ["psnr_rgb"])
    assert table.rows[0].values["psnr_rgb"] == pytest.approx(psnr(sr[:, :1], gt[:, :1], crop=4, channel="rgb").item(), abs=1e-6)
    assert table.rows[1].values["psnr_rgb"] == pytest.approx(psnr(sr, gt, crop=4, channel="rgb").item(), abs=1e-6)


def test_missing_weights_are_listed_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    sr, gt = images(1)[0]
    table = evaluate_pairs([Pair("a", sr, gt)], ["lpips", "psnr_y", "fid"])
    assert set(table.missing) == {"lpips", "fid"}
    assert "alexnet-owt-7be5be79.pth" in table.missing["lpips"]
    assert list(table.mean()) == ["psnr_y"]
    for text in (table.to_text(), table.to_markdown(), table.to_json()):
        assert "pt_inception" in text
    assert table.to_csv().splitlines()[0] == "name,lpips,psnr_y,fid"


def test_metrics_without_their_partner_image_say_so() -> None:
    sr, gt = images(1)[0]
    table = evaluate_pairs([Pair("a", sr)], ["psnr_y", "lr_psnr"])
    assert "needs a reference image (gt)" in table.missing["psnr_y"]
    assert "needs the low-resolution input (lq)" in table.missing["lr_psnr"]
    mixed = evaluate_pairs([Pair("a", sr, gt), Pair("b", sr)], ["psnr_y"])
    assert mixed.missing == {}
    assert mixed.problems == ("psnr_y: needs a reference image (gt), which was not given for 1 of 2 images",)
    assert "psnr_y" not in mixed.rows[1].values


def test_an_image_that_a_metric_cannot_take_is_named() -> None:
    sr, gt = images(1)[0]
    table = evaluate_pairs([Pair("small", sr[..., :12, :12], gt[..., :12, :12]), Pair("large", sr, gt)], ["ssim_y", "psnr_y"])
    assert len(table.problems) == 1
    assert table.problems[0].startswith("small, ssim_y: sr: expected at least 11 pixels")
    assert table.mean()["ssim_y"] == table.rows[1].values["ssim_y"]


def test_scores_that_are_not_finite_are_named_and_left_out_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: LearnedMetric, sr: Tensor, gt: Tensor | None = None, *, quantize: bool = True) -> Tensor:
        return torch.tensor([math.nan if sr.mean() < 0.5 else 3.0], dtype=torch.float64)

    monkeypatch.setattr(LearnedMetric, "load", classmethod(lambda cls, spec, device="cpu": cls(spec, None)))
    monkeypatch.setattr(LearnedMetric, "__call__", broken)
    dark, bright = torch.full((1, 3, 32, 32), 0.2), torch.full((1, 3, 32, 32), 0.8)
    table = evaluate_pairs([Pair("dark", dark), Pair("bright", bright)], ["niqe"])
    assert table.mean() == {"niqe": 3.0}
    assert table.notes() == ["not finite (left out of the mean): dark: niqe = nan"]
    assert json.loads(table.to_json())["images"][0]["scores"] == {"niqe": None}


def test_set_metrics_have_one_score_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cls: type[SetDistance], spec: object, device: str = "cpu") -> SetDistance:
        return cls(METRICS["fid"], lambda x: [x[:, :, ::100, ::100].flatten(1)])

    monkeypatch.setattr(SetDistance, "load", classmethod(load))
    table = evaluate_pairs([Pair(str(i), sr, gt) for i, (sr, gt) in enumerate(images())], ["psnr_y", "fid"])
    assert table.mean()["fid"] > 0
    assert all("fid" not in row.values for row in table.rows)
    alone = evaluate_pairs([Pair("0", *images(1)[0])], ["fid"])
    assert "at least two images" in alone.missing["fid"]


def test_size_mismatch_names_both_files(tmp_path: Path) -> None:
    sr, gt = images(1)[0]
    pair = Pair("a", save(tmp_path / "restored.png", sr[..., :30]), save(tmp_path / "truth.png", gt))
    with pytest.raises(ValueError, match=r"32x30 for .*restored\.png and 32x36 for .*truth\.png"):
        evaluate_pairs([pair])


def bad_file(tmp_path: Path) -> Callable[[], object]:
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    return lambda: evaluate_pairs([Pair("a", tmp_path / "text.png")], ["psnr_y"])


def bad_folder(layout: str) -> Callable[[Path], Callable[[], object]]:
    def prepare(tmp_path: Path) -> Callable[[], object]:
        for name in layout.split():
            save(tmp_path / name, torch.zeros(1, 3, 4, 4))
        (tmp_path / "empty").mkdir()
        gt = "empty" if layout.endswith("!.png") else "gt"
        return lambda: pairs_from_folders(tmp_path / "sr", tmp_path / gt)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (bad_file, "text.png"),
        (bad_folder("gt/a.png"), "sr: expected a folder of images"),
        (bad_folder("sr/!.png"), "gt: expected images in"),
        (bad_folder("sr/a.png sr/b.png gt/a.png"), "got none for 1 of 2: b.png; names must agree"),
        (
            bad_folder("sr/a.png gt/a.png gt/b.png"),
            "sr: expected a restored image for every file .*, got none for 1 of 2: b; restore",
        ),
        (bad_folder("sr/a.png sr/a.jpg gt/a.png"), "sr: expected one file per name"),
        (lambda _: lambda: evaluate_pairs([], ["psnr"]), "did you mean"),
        (lambda _: lambda: evaluate_pairs([], scale=0), "scale: expected an integer"),
        (lambda _: lambda: evaluate_pairs([], crop=-1), "crop: expected an integer"),
        (lambda _: lambda: evaluate_pairs([Pair("a", torch.zeros(2, 3, 16, 16))]), "got a batch of 2"),
        (lambda _: lambda: Scorer("pfid"), "metric of single images"),
    ],
)
def test_one_clear_error_for_each_bad_input(
    prepare: Callable[[Path], Callable[[], object]], message: str, tmp_path: Path
) -> None:
    call = prepare(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()


def test_longest_matching_name_wins_and_subfolders_count(tmp_path: Path) -> None:
    for name in ("sr/a/cat_x4.png", "sr/a/cat_big_x4.png", "gt/a/cat.png", "gt/a/cat_big.png"):
        save(tmp_path / name, torch.zeros(1, 3, 4, 4))
    pairs = {pair.name: pair.gt for pair in pairs_from_folders(tmp_path / "sr", tmp_path / "gt")}
    assert pairs == {"a/cat_x4": tmp_path / "gt/a/cat.png", "a/cat_big_x4": tmp_path / "gt/a/cat_big.png"}


def example() -> Table:
    rows = (Row("a|b", {"psnr_y": 30.126, "ssim_y": 0.8}), Row("second", {"psnr_y": 32.0}))
    return Table(
        ("psnr_y", "ssim_y", "lpips"), rows, missing={"lpips": "no file"}, problems=("second, ssim_y: too small",), title="run"
    )


def test_text_forms() -> None:
    table = example()
    text = table.to_text().splitlines()
    assert text[0] == "run"
    assert text[1].split() == ["image", "PSNR", "(Y)", "^", "SSIM", "(Y)", "^"]
    assert text[3].split() == ["a|b", "30.13", "0.8000"]
    assert text[6].split() == ["mean", "31.06", "0.8000"]
    assert text[7:] == ["missing: lpips: no file", "problem: second, ssim_y: too small"]
    assert table.to_text().isascii()
    markdown = table.to_markdown().splitlines()
    assert markdown[:4] == ["### run", "", "| image | PSNR (Y) ^ | SSIM (Y) ^ |", "|---|---:|---:|"]
    assert markdown[4] == r"| a\|b | 30.13 | 0.8000 |"
    assert markdown[6] == "| **mean** | **31.06** | **0.8000** |"
    assert "- missing: lpips: no file" in markdown


def test_data_forms_hold_the_numbers() -> None:
    table = example()
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["name"] for row in rows] == ["a|b", "second", "mean"]
    assert float(rows[0]["psnr_y"]) == 30.126
    assert rows[1]["ssim_y"] == ""
    assert rows[2]["lpips"] == ""
    data = json.loads(table.to_json())
    assert data["mean"] == {"psnr_y": pytest.approx(31.063), "ssim_y": 0.8}
    assert data["metrics"]["lpips"] == {"title": "LPIPS (alex)", "higher_is_better": False, "missing": "no file"}
    assert data["notes"] == table.notes()
    assert np.isfinite(data["images"][0]["scores"]["psnr_y"])
