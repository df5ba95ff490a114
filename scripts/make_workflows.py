"""Write workflows/*.json (for the page), workflows/api/*.json (headless twins) and workflows/*.jpg from one description.

python scripts/make_workflows.py              both JSON forms
python scripts/make_workflows.py --thumbnails also the thumbnails, from real runs of the bundled models on free pictures

Needs the bundled models: the settings saved here name them, and nothing is written that would not run.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from alignsr.core.pictures import contact_sheet, thumbnail
from alignsr.core.weights import write_atomic
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import api_to_ui, default_display_names, default_node_classes, fill_defaults, run_workflow

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
EXAMPLE = "example.png"  # the picture that comes with ComfyUI
THUMBNAIL_PX = (512, 384)

Graph = dict[str, dict[str, Any]]


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """One node of an API-format graph; links are written as `["4", 0]`."""
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def upscale_image() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "3": node("AlignSROneStepSR", model=["2", 0], image=["1", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix="alignsr/upscaled"),
        "5": node("AlignSRCompare", result=["3", 0], input=["1", 0], labels="input (bicubic), restored"),
        "6": node("PreviewImage", "Comparison", images=["5", 0]),
    }


def upscale_folder() -> Graph:
    return {
        "1": node("AlignSRLoadImageFolder", folder="photos", on_error="skip"),
        "2": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "3": node("AlignSROneStepSR", model=["2", 0], image=["1", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix=["1", 1]),
        "5": node("PreviewAny", "Files that could not be read", source=["1", 2]),
    }


def degrade_restore_score() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="realesrgan", seed=0, scale=4, target="plain"),
        "3": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "4": node("AlignSROneStepSR", model=["3", 0], image=["2", 0], scale=4),
        "5": node(
            "AlignSRIQAReward",
            images=["4", 0],
            metrics="psnr_y, ssim_y, lsd, lr_psnr",
            scale=4,
            reference=["2", 1],
            lq=["2", 0],
        ),
        "6": node("AlignSRCompare", result=["4", 0], input=["2", 0], reference=["2", 1]),
        "7": node("AlignSRSpectrum", image=["4", 0], reference=["2", 1], input=["2", 0]),
        "8": node(
            "AlignSRSaveReport",
            scores=["5", 0],
            filename_prefix="alignsr/report",
            pictures=["6", 0],
            more_pictures=["7", 0],
            params=["2", 2],
            info=["4", 2],
        ),
        "9": node("PreviewAny", "Scores", source=["5", 2]),
        "10": node("PreviewImage", "Difference", images=["6", 1]),
    }


def train_small_network() -> Graph:
    return {
        "1": node("AlignSRTrainSRNetwork", config="lite-x4", data_folder="training-pictures", out_name="my-lite-x4"),
        "2": node("LoadImage", image=EXAMPLE),
        "3": node("AlignSROneStepSR", model=["1", 1], image=["2", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix="alignsr/my-lite-x4"),
        "5": node("PreviewImage", "Loss curve", images=["1", 2]),
        "6": node("PreviewAny", "Weights", source=["1", 0]),
    }


GRAPHS: dict[str, tuple[Graph, str]] = {
    "upscale-image": (
        upscale_image(),
        "## Upscale an image\n\nChoose a picture in **Load Image** and queue. The result goes to `output/alignsr`.\n\n"
        "- blurred, noisy or compressed picture: model `lite-real-x4`\n- clean, small picture: `lite-x4` or `pixel-x4`\n"
        "- out of memory: nothing to do, smaller tiles are tried; set `tile_px` to avoid the first try",
    ),
    "upscale-folder": (
        upscale_folder(),
        "## Upscale a folder\n\nPut pictures into `input/photos` (or type another path) and queue. Sizes may differ. "
        "Results keep their "
        "names in `output`; files that cannot be read are listed at the bottom.",
    ),
    "degrade-restore-score": (
        degrade_restore_score(),
        "## Degrade, restore, score\n\nA good picture is made bad as Real-ESRGAN does, restored, and measured against the "
        "original. "
        "The report (JSON, CSV, pictures) goes to `output/alignsr`.\n\n- another `seed`: other damage\n"
        "- `target` is plain because the bundled model was trained on plain targets",
    ),
    "train-small-network": (
        train_small_network(),
        "## Train a small network\n\nPut training pictures (100 or more, at least 192 px) into `input/training-pictures` "
        "and queue. The loss "
        "curve appears while it runs. Interrupt at any time and queue again: it goes on.\n\nThe settings are those of the "
        "bundled "
        "`lite-x4`, hours on a processor. For a first look put `run.steps=200` into `overrides`.",
    ),
}


def build(name: str) -> tuple[dict[str, Any], Graph]:
    """(UI format, API format) of a workflow; asks the current host for models and the example picture."""
    graph, note = GRAPHS[name]
    classes, names = default_node_classes(), default_display_names()
    titled: Graph = {
        node_id: {**entry, "_meta": entry.get("_meta", {"title": names[entry["class_type"]]})} for node_id, entry in graph.items()
    }
    return api_to_ui(titled, classes, names, note), fill_defaults(titled, classes)


def dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def write_json(folder: Path = WORKFLOWS) -> None:
    """Write both forms of every workflow."""
    with tempfile.TemporaryDirectory() as name:
        Image.new("RGB", (8, 8)).save(Path(name) / EXAMPLE)
        with use_host(LocalHost(input_dirs=[name])):
            for workflow in GRAPHS:
                ui, api = build(workflow)
                _write_text(folder / f"{workflow}.json", dump(ui))
                _write_text(folder / "api" / f"{workflow}.json", dump(api))


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def photo(name: str, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """One of scikit-image's pictures: astronaut (NASA, public domain), coffee and chelsea (CC0)."""
    from skimage import data

    picture = Image.fromarray(getattr(data, name)())
    return picture.crop(box) if box else picture


def write_thumbnails(folder: Path = WORKFLOWS) -> None:
    """Run every workflow on small public-domain pictures and make its thumbnail from what came out."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        inputs = root / "input"
        for sub in ("photos", "training-pictures"):
            (inputs / sub).mkdir(parents=True)
        portrait = photo("astronaut", (120, 0, 376, 192))
        portrait.resize((128, 96), Image.Resampling.BICUBIC).save(inputs / EXAMPLE)
        for title in ("astronaut", "chelsea", "coffee", "rocket"):
            whole = photo(title)
            whole.save(inputs / "training-pictures" / f"{title}.png")
            whole.resize((whole.width // 4, whole.height // 4), Image.Resampling.BICUBIC).save(inputs / "photos" / f"{title}.png")
        sheets = {
            "upscale-image": _run(
                "upscale-image", root, inputs, ["5.crop_centers=205,190", "5.crop_px=120", "5.panel_px=240"], "6"
            ),
            "upscale-folder": _folder_sheet(root, inputs),
            "degrade-restore-score": _degrade_sheet(root, inputs, portrait),
            "train-small-network": _run("train-small-network", root, inputs, [f"1.overrides={FAST}"], "5"),
        }
    for workflow, sheet in sheets.items():
        picture = _on_paper(sheet)
        write_atomic(folder / f"{workflow}.jpg", lambda part, picture=picture: picture.save(part, format="JPEG", quality=88))


FAST = "\n".join(  # a network that learns something in half a minute
    (
        "run.steps=500",
        "run.log_every=1",
        "run.validate_every=50",
        "run.ema_decay=0.98",
        "run.precision='fp32'",
        "data.gt_patch_px=96",
        "data.holdout=1",
        "model.options={ features = 24, blocks = 2 }",
        "optimizer.learning_rate=1e-3",
        "schedule.warmup_steps=20",
    )
)


def _run(workflow: str, root: Path, inputs: Path, sets: list[str], shown: str) -> Image.Image:
    """The first picture that node `shown` gave."""
    host = LocalHost(output_dir=root / workflow, input_dirs=[inputs])
    result = run_workflow(WORKFLOWS / "api" / f"{workflow}.json", sets=sets, out_dir=root / workflow, quiet=True, host=host)
    entry = result.outputs[shown]["images"][0]
    base = host.temp_dir() if entry["type"] == "temp" else host.output_dir()
    with Image.open(base / entry["subfolder"] / entry["filename"]) as opened:
        return opened.convert("RGB")


def _folder_sheet(root: Path, inputs: Path) -> Image.Image:
    _run("upscale-folder", root, inputs, [], "4")
    pictures = {path.stem.removesuffix("_00001_"): Image.open(path) for path in sorted((root / "upscale-folder").glob("*.png"))}
    return contact_sheet(pictures, columns=2, cell_px=240)


def _degrade_sheet(root: Path, inputs: Path, portrait: Image.Image) -> Image.Image:
    portrait.save(inputs / EXAMPLE)
    return _run("degrade-restore-score", root, inputs, ["6.crop_centers=103,95", "6.crop_px=60", "6.panel_px=240"], "8")


def _on_paper(sheet: Image.Image) -> Image.Image:
    """The whole sheet inside a thumbnail on white."""
    width, height = THUMBNAIL_PX
    ratio = min(width / sheet.width, height / sheet.height)
    fitted = sheet.resize((round(sheet.width * ratio), round(sheet.height * ratio)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", THUMBNAIL_PX, (255, 255, 255))
    page.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return thumbnail(page, width, height)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", action="store_true", help="make the thumbnails too (a minute on a processor)")
    arguments = parser.parse_args()
    write_json()
    if arguments.thumbnails:
        write_thumbnails()
