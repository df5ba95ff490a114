"""`alignsr evaluate-task`: rows of ground truth, input and methods beside published ones, and one line for each mistake."""

import csv
import json
from pathlib import Path

import pytest
import torch
from cli_helpers import call, picture
from PIL import Image

from alignsr.core.image_files import write_image
from alignsr.core.resize import imresize
from alignsr.core.tasks.mask_rcnn import Detections, MaskRCNN
from alignsr.core.tasks.ocr import PaddleReader
from alignsr.core.tasks.semantic import SegFormer
from alignsr.core.tasks.words import Word


def bright(image: torch.Tensor) -> torch.Tensor:
    return (image.mean((0, 1)) > 0.5).long()


class ToySegFormer:
    classes, short_side_px = 2, 640

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return bright(image)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gt, lq, mine (a little noise), labels of what is bright; the networks are toys."""
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(SegFormer, "load", classmethod(lambda cls, folder, device="cpu": ToySegFormer()))
    for index in range(2):
        gt = picture(48, 56, name=f"task/{index}")
        write_image(tmp_path / "gt" / f"p{index}.png", gt)
        write_image(tmp_path / "lq" / f"p{index}.png", imresize(gt, 0.25).clamp(0, 1))
        write_image(tmp_path / "mine" / f"p{index}_x4.png", (gt + 0.02).clamp(0, 1))
        gt = torch.round(gt * 255) / 255
        write_image(tmp_path / "labels" / f"p{index}.png", (bright(gt)[None, None] + 1.0) / 255)
    return tmp_path


def test_semantic(folders: Path) -> None:
    files = {kind: folders / f"out.{kind}" for kind in ("json", "csv", "md", "png")}
    done = call(
        *("evaluate-task", "semantic", "--labels", folders / "labels", "--gt", folders / "gt", "--lq", folders / "lq"),
        *("--sr", f"mine={folders / 'mine'}", "--weights", "segformer-b5", "--json", files["json"], "--csv", files["csv"]),
        *("--markdown", files["md"], "--picture", files["png"]),
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "ASASR ADE20K"
    assert lines[3].split() == ["ground", "truth", "100.00", "100.00", "measured,", "2", "images"]
    assert lines[4].startswith("input ") and lines[5].startswith("mine ")
    assert next(line for line in lines if line.startswith("ASASR  ")).split()[:3] == ["ASASR", "43.33", "80.24"]
    assert any("SegFormer: segformer-b5, short side 640 px" in line for line in lines)
    assert any("input: note: enlarged by bicubic interpolation first" in line for line in lines)
    means = {table["title"]: table["mean"] for table in json.loads(files["json"].read_text())["methods"]}
    assert means["ground truth"]["pix_acc"] == 100 > max(means["mine"]["pix_acc"], means["input"]["pix_acc"])
    rows = list(csv.DictReader(files["csv"].open()))
    assert [row["image"] for row in rows if row["method"] == "mine"] == ["p0_x4", "p1_x4", "mean"]
    assert "| *SeeSR* | *39.11* | *77.75* |" in files["md"].read_text()
    with Image.open(files["png"]) as drawn:
        assert drawn.width > 300


def test_detection(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools, `python -m pip install 'alignsr[downstream]'`")
    outline = [8, 8, 40, 8, 40, 40, 8, 40]
    facts = {"bbox": [8, 8, 32, 32], "area": 1024, "segmentation": [outline], "iscrowd": 0, "category_id": 1}
    data = {
        "images": [{"id": k, "file_name": f"p{k}.jpg", "width": 56, "height": 48} for k in range(2)],
        "annotations": [facts | {"id": 1 + k, "image_id": k} for k in range(2)],
        "categories": [{"id": 1, "name": "square"}],
    }
    (folders / "coco.json").write_text(json.dumps(data))

    def detect(image: torch.Tensor) -> Detections:
        mask = torch.zeros(1, 48, 56, dtype=torch.bool)
        mask[:, 8:40, 8:40] = True
        return Detections(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.tensor([0.9]), mask)

    monkeypatch.setattr(MaskRCNN, "load", classmethod(lambda cls, path, device="cpu": detect))
    (folders / "models").mkdir()
    (folders / "models" / "detector.pth").write_bytes(b"")
    done = call(
        *("evaluate-task", "detection", "--labels", folders / "coco.json", "--sr", folders / "mine", "--weights", "detector.pth"),
        *("--csv", folders / "out.csv", "--json", "-"),
    )
    assert done.code == 0, done.err
    (table,) = json.loads(done.out)["methods"]
    assert set(table["mean"]) == {"ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask"}
    assert table["mean"]["ap_box"] == pytest.approx(100) == table["mean"]["ap_mask"]
    assert "ASASR COCO" in done.err and "APb, APm: box and mask AP" in done.err
    measured = [row for row in csv.DictReader((folders / "out.csv").open()) if row["method"] == "mine"]
    assert [row["image"] for row in measured] == ["mean"], "a picture alone has no AP"


def test_ocr_by_an_engine_and_from_files(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, text in (("words", "one"), ("read", "ONE")):
        (folders / folder).mkdir()
        for index in range(2):
            (folders / folder / f"p{index}.txt").write_text(f"2,2,20,10,{text}\n")
    (folders / "read" / "p1.txt").write_text("")
    place = ((2.0, 2.0), (20.0, 2.0), (20.0, 10.0), (2.0, 10.0))
    monkeypatch.setattr(PaddleReader, "load", classmethod(lambda cls, folder: lambda image: [Word(place, "one")]))
    base = ("evaluate-task", "ocr", "--labels", folders / "words", "--published", "asasr-ablation")
    done = call(*base, "--lq", folders / "lq", "--sr", folders / "mine", "--weights", "paddle", "--json", "-")
    assert done.code == 0, done.err
    assert [table["mean"]["ocr_recall"] for table in json.loads(done.out)["methods"]] == [100, 100]
    assert "full: Sobolev + adversarial" in done.err and "45.91" in done.err
    words = call(*base, "--words", f"mine={folders / 'read'}")
    assert words.code == 0, words.err
    assert words.out.splitlines()[3].split() == ["mine", "100.00", "50.00", "measured,", "2", "images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("detections", "--labels", "labels"),
            "TASK: expected detection, semantic, ocr, got 'detections'; did you mean",
        ),
        (("semantic", "--labels", "labels"), "--sr: expected pictures to score, got none"),
        (("semantic", "--labels", "labels", "--sr", "mine"), "--weights: expected the network's files for semantic, got none"),
        (("ocr", "--labels", "labels", "--sr", "mine"), "or give the words that were read with --words"),
        (("semantic", "--labels", "labels", "--words", "mine"), "--words: expected the task ocr, got semantic"),
        (("ocr", "--labels", "labels", "--words", "mine", "--gt", "gt"), "--words: expected no --sr, --gt"),
        (("semantic", "--labels", "labels", "--sr", "input=mine", "--weights", "w"), "--sr: expected another name, got input"),
        (
            ("semantic", "--labels", "labels", "--sr", "mine", "--sr", "mine", "--weights", "w"),
            "got mine twice; write --sr",
        ),
        (("semantic", "--labels", "nowhere", "--sr", "mine", "--weights", "w"), "labels: expected a folder at nowhere"),
        (("semantic", "--labels", "labels", "--sr", "lq", "--weights", "w"), "expected the size of its labels 56x48, got 14x12"),
        (("detection", "--labels", "none.json", "--sr", "mine", "--weights", "w"), "labels: expected a JSON file of annotations"),
        (("semantic", "--labels", "labels", "--sr", "mine", "--published", "coco17"), "published: expected a set"),
        (("semantic", "--labels", "labels", "--sr", "mine", "--picture", "t.jpg"), "--picture: expected the name of a PNG file"),
        (("semantic", "--sr", "mine"), "Missing option '--labels'"),
    ],
)
def test_one_clear_line_for_each_mistake(
    arguments: tuple[str, ...], message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    done = call("evaluate-task", *arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert "Traceback" not in done.err
