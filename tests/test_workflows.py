"""The shipped workflows: both forms agree, come from one description, and run headless with tiny models and pictures."""

import importlib.util
import json
import re

import pytest
from node_helpers import picture, save_tiny_network, save_tiny_pixel
from PIL import Image
from train_helpers import make_pictures

from alignsr.core import weights
from alignsr.core.image_files import to_pil
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import default_display_names, default_node_classes, load_workflow, run_workflow
from alignsr.runner.convert import convert
from paths import ROOT

FOLDER = ROOT / "workflows"
NAMES = ("degrade-restore-score", "train-small-network", "upscale-folder", "upscale-image")
SMALL = {
    "upscale-image": ["5.panel_px=100"],
    "upscale-folder": [],
    "degrade-restore-score": ["6.panel_px=100"],
    "train-small-network": [
        "1.overrides=run.steps=2\nrun.batch_size=2\ndata.gt_patch_px=32\ndata.holdout=1\n"
        "model.options={ features = 4, blocks = 1 }"
    ],
}


def load_script():
    spec = importlib.util.spec_from_file_location("make_workflows", ROOT / "scripts" / "make_workflows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An input folder with what the workflows name."""
    folder = tmp_path_factory.mktemp("input")
    to_pil(picture(1, 72, 68).movedim(-1, 1)).save(folder / "example.png")
    (folder / "photos" / "sub").mkdir(parents=True)
    to_pil(picture(1, 9, 7).movedim(-1, 1)).save(folder / "photos" / "grey_or_not.png")
    to_pil(picture(1, 6, 11, 4).movedim(-1, 1)).save(folder / "photos" / "sub" / "alpha.png")
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    make_pictures(folder / "training-pictures")
    return folder


@pytest.fixture
def tiny(inputs, tmp_path, monkeypatch):
    """Tiny models under the names of the bundled ones, and a host that sees them and the inputs."""
    assets = tmp_path / "assets"
    for name in ("lite-x4", "lite-real-x4"):
        save_tiny_network(assets / f"{name}.safetensors")
    save_tiny_pixel(assets / "pixel-x4.safetensors")
    monkeypatch.setattr(weights, "ASSETS", assets)
    host = LocalHost(output_dir=tmp_path / "out", input_dirs=[inputs], models_dirs=[tmp_path / "models"])
    with use_host(host):
        yield host


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_folder_holds_whole_sets_with_names_that_open_by_address():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.json"))) == NAMES
    assert tuple(sorted(path.stem for path in (FOLDER / "api").glob("*.json"))) == NAMES
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.jpg"))) == NAMES
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as opened:
        assert opened.format == "JPEG" and opened.size == (512, 384)
        assert len(opened.convert("RGB").resize((64, 48)).getcolors(64 * 48)) > 50, "shows something"
    assert (FOLDER / f"{name}.jpg").stat().st_size < 150_000


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name, tiny):
    api = read(FOLDER / "api" / f"{name}.json")
    assert convert(read(FOLDER / f"{name}.json"), default_node_classes(), default_display_names()) == api
    assert all("class_type" in node for node in api.values())


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_script_writes(name, tiny):
    script = load_script()
    assert set(script.GRAPHS) == set(NAMES)
    ui, api = script.build(name)
    hint = "run scripts/make_workflows.py and look at the difference"
    assert script.dump(ui) == (FOLDER / f"{name}.json").read_text(encoding="utf-8"), hint
    assert script.dump(api) == (FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"), hint


@pytest.mark.parametrize("name", NAMES)
def test_ui_form_has_a_note_and_no_crossed_nodes(name):
    nodes = read(FOLDER / f"{name}.json")["nodes"]
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0].isascii() for node in nodes)
    boxes = [(*node["pos"], *node["size"]) for node in nodes]
    for index, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, high in boxes[index + 1 :]:
            assert x + width <= left or left + wide <= x or y + height <= top or top + high <= y


def test_saved_settings_are_those_of_the_bundled_models(tiny):
    """Workflows hold the real settings; only tests make them small."""
    graphs = {name: load_workflow(FOLDER / f"{name}.json")[0] for name in NAMES}
    for name in ("upscale-image", "upscale-folder", "degrade-restore-score"):
        inputs = {node["class_type"]: node["inputs"] for node in graphs[name].values()}
        assert inputs["AlignSRLoadSRModel"]["model_name"] == "lite-real-x4"
        assert inputs["AlignSROneStepSR"]["scale"] == 4
    degrade = graphs["degrade-restore-score"]["2"]["inputs"]
    assert (degrade["preset"], degrade["scale"], degrade["target"]) == ("realesrgan", 4, "plain")
    train = graphs["train-small-network"]["1"]["inputs"]
    assert (train["config"], train["overrides"], train["resume"]) == ("lite-x4", "", True)


@pytest.mark.parametrize("form", ["ui", "api"])
@pytest.mark.parametrize("name", NAMES)
def test_runs_headless(name, form, tiny, tmp_path):
    path = FOLDER / f"{name}.json" if form == "ui" else FOLDER / "api" / f"{name}.json"
    result = run_workflow(path, sets=SMALL[name], out_dir=tmp_path / "out", quiet=True, host=tiny)
    written = {file.relative_to(tmp_path / "out").as_posix() for file in result.files}
    assert all((tmp_path / "out" / file).is_file() for file in written)
    if name == "upscale-image":
        assert written == {"alignsr/upscaled_00001_.png"}
        assert Image.open(result.files[0]).size == (68 * 4, 72 * 4)
    elif name == "upscale-folder":
        assert written == {"grey_or_not_00001_.png", "sub/alpha_00001_.png"}
        assert {Image.open(file).mode for file in result.files} == {"RGB", "RGBA"}
        assert "broken.png" in result.outputs["5"]["text"][0]
    elif name == "degrade-restore-score":
        assert {"alignsr/report_00001_.json", "alignsr/report_00001_.csv", "alignsr/report_00001_.png"} <= written
        record = read(tmp_path / "out" / "alignsr" / "report_00001_.json")
        assert set(record["scores"]["mean"]) == {"psnr_y", "ssim_y", "lsd", "lr_psnr"}
        assert record["degradation"][0][0]["config"] == "realesrgan" and record["restoration"][0]["backbone"] == "lite-real-x4"
        assert len(record["pictures"]) == 2
    else:
        assert any(file.endswith("curve.png") for file in written) and "alignsr/my-lite-x4_00001_.png" in written
        assert any(file.name == "my-lite-x4.safetensors" for file in (tmp_path / "out").rglob("*"))
