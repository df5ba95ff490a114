"""The node Evaluate Folders: the same figures as the core, cancel, changed folders, and what Save Report makes of it."""

import csv
import json

import pytest
import torch
from cli_helpers import picture

from alignsr.core.image_files import write_image
from alignsr.core.metrics import ae_psnr, psnr
from alignsr.core.networks.autoencoder import AutoEncoder
from alignsr.nodes import NODE_CLASS_MAPPINGS
from alignsr.nodes.autoencoder import LoadedAutoEncoder
from alignsr.nodes.host import Interrupted, LocalHost, use_host

NODE = NODE_CLASS_MAPPINGS["AlignSREvaluateFolders"]


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for index in range(2):
        gt = picture(40, 48, name=f"node/{index}")
        for folder, image in (("gt", gt), ("dim", gt * 0.9), ("flat", gt * 0 + gt.mean())):
            write_image(tmp_path / "in" / folder / f"p{index}.png", image)
    events = []
    local = LocalHost(
        output_dir=tmp_path / "out",
        input_dirs=[tmp_path / "in"],
        models_dirs=[tmp_path],
        on_progress=lambda value, total, *_: events.append((value, total)),
    )
    local.events = events
    with use_host(local), torch.inference_mode():
        yield local


def read(host, name):
    from alignsr.core.image_files import read_image

    return read_image(host.input_dirs()[0] / name).pixels


def test_folders_of_the_input_folder_and_published_numbers(host):
    scores, text, table, sheet, plane = NODE().evaluate("dim\nother = flat", "psnr_y, ssim_y, lsd", 4, "Set14", gt="gt")
    record = json.loads(scores)
    assert [method["title"] for method in record["methods"]] == ["dim", "other"]
    expected = psnr(read(host, "dim/p1.png"), read(host, "gt/p1.png"), crop=4).item()
    assert record["methods"][0]["images"][1]["scores"]["psnr_y"] == pytest.approx(expected)
    assert [row["method"] for row in csv.DictReader(text.splitlines())][:4] == ["dim", "dim", "dim", "other"]
    assert "published, Tab. 1" in table and table.startswith("Set14")
    for image in (sheet, plane):
        assert image.ndim == 4 and image.shape[3] == 3 and 0 <= image.min() < image.max() <= 1
    assert plane.shape[1:3] == (600, 900)
    assert host.events[-1] == (4, 4)


def test_without_metrics_the_published_set_says_what_is_measured(host):
    record = json.loads(NODE().evaluate("dim", "", 4, "ASASR DIV2K-Val", gt="gt")[0])
    assert list(record["metrics"])[:2] == ["psnr_y", "ssim_y"] and "clipiqa+" in record["metrics"]
    expected = [psnr(read(host, f"dim/p{i}.png"), read(host, f"gt/p{i}.png"), crop=0).item() for i in range(2)]
    assert record["mean"]["psnr_y"] == pytest.approx(sum(expected) / 2)
    with pytest.raises(ValueError, match="metrics: expected at least one name"):
        NODE().evaluate("dim", "", 4, "none", gt="gt")


def test_ae_psnr_through_the_socket(host):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        options = {"features": 8, "growth": 4, "blocks": 1}
        module = AutoEncoder(blocks=1, growth=8, features=48, decoder_options=options).eval().requires_grad_(False)
    loaded = LoadedAutoEncoder(module, "ae", host.output_dir() / "ae")
    record = json.loads(NODE().evaluate("dim", "ae_psnr", 4, "none", gt="gt", autoencoder=loaded)[0])
    pairs = [(read(host, f"dim/p{i}.png"), read(host, f"gt/p{i}.png")) for i in range(2)]
    values = [ae_psnr(sr, gt, module, crop=4).item() for sr, gt in pairs]
    assert record["mean"]["ae_psnr"] == pytest.approx(sum(values) / 2, abs=1e-6)


def test_missing_weights_are_listed_and_without_any_score_it_is_an_error(host):
    table = NODE().evaluate("dim", "psnr_y lpips", 4, "none", gt="gt")[2]
    assert "missing: lpips: LPIPS_v0.1_alex" in table
    with pytest.raises(ValueError, match="metrics: expected at least one that can run here"):
        NODE().evaluate("dim", "aesop-real", 4, "none")


@pytest.mark.parametrize(
    ("sr", "changes", "text"),
    [
        ("", {}, "sr: expected at least one folder"),
        ("dim\ndim", {}, "got dim twice"),
        ("nowhere", {}, "sr: "),
        ("dim", {"gt": "nowhere"}, "gt: "),
        ("dim", {"metrics": "psnr"}, "did you mean"),
    ],
)
def test_refusals(host, sr, changes, text):
    inputs = {"sr": sr, "metrics": "psnr_y", "scale": 4, "published": "none", "gt": "gt"} | changes
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        NODE().evaluate(**inputs)


def test_cancel_stops_it(host):
    host.cancel()
    with pytest.raises(Interrupted):
        NODE().evaluate("dim\nflat", "psnr_y", 4, "none", gt="gt")


def test_a_new_file_counts_as_changed(host):
    before = NODE.IS_CHANGED("dim", "psnr_y", 4, "none", gt="gt")
    assert before == NODE.IS_CHANGED("dim", "psnr_y", 4, "none", gt="gt")
    write_image(host.input_dirs()[0] / "dim" / "p2.png", picture(8, 8))
    assert before != NODE.IS_CHANGED("dim", "psnr_y", 4, "none", gt="gt")
    assert NODE.IS_CHANGED(None, "psnr_y", 4, "none") != NODE.IS_CHANGED(None, "psnr_y", 4, "none")  # NaN: always again


@pytest.mark.parametrize(
    ("folders", "names"), [("dim", ["p0", "p1", "mean"]), ("dim\nflat", ["dim: p0", "dim: p1", "flat: p0", "flat: p1"])]
)
def test_save_report_takes_the_scores(host, folders, names):
    scores, _, _, sheet, plane = NODE().evaluate(folders, "psnr_y, lsd", 4, "none", gt="gt")
    save = NODE_CLASS_MAPPINGS["AlignSRSaveReport"]()
    shown = save.save(scores=[scores], filename_prefix=["r"], pictures=[sheet, plane])
    rows = list(csv.DictReader((host.output_dir() / "r_00001_.csv").open()))
    assert [row["name"] for row in rows] == names
    assert list(rows[0]) == ["name", "psnr_y", "lsd"]
    assert len(shown["ui"]["images"]) == 2
    assert len(save.save(scores=[scores], filename_prefix=["t"])["ui"]["images"]) == 1
