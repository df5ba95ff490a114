"""The server and our runner give the same tensors for the same API-format prompt, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from workflow_helpers import (
    TINY_ASASR,
    TINY_DP2O,
    TINY_MULTI_STEP,
    TINY_STRSR,
    TINY_STRSR_TRAINERS,
    TINY_TRAINERS,
    three_stages,
    tiny_asasr_training,
    tiny_inputs,
    tiny_strsr_training,
)

from comfyui.runner import differences, run_locally, tensor_differences, with_dumps
from comfyui.server import Server, node
from paths import ROOT

pytestmark = pytest.mark.comfyui


WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))
SMALL: dict[str, dict[str, dict[str, Any]]] = {  # workflow -> node id -> inputs; the saved ones hold settings for real work
    **{name: tiny_inputs(name, "photos") for name in TINY_TRAINERS},
    **{
        name: tiny_strsr_training(
            name, json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")), "photos"
        )
        for name in TINY_STRSR_TRAINERS
    },
    "evaluate-folders": {
        "2": {"sr": "same = photos\ndim = dimmed", "gt": "photos", "metrics": "psnr_y, ssim_y, ae_psnr, lr_psnr, lsd"},
    },
    "degrade-restore-score": {"1": {"image": "wide.png"}},
    "train-small-network": {
        "1": {"config": "tiny-lite-x4", "data_folder": "photos", "overrides": "run.steps=4"},
        "2": {"image": "colour.png"},
    },
    "upscale-folder": {"1": {"folder": "photos"}},
    "upscale-image": {"1": {"image": "colour.png"}},
    "upscale-with-aesop": {"1": {"image": "colour.png"}},
    **{name: {"1": {"image": "colour.png"}, **nodes} for name, nodes in TINY_MULTI_STEP.items()},
    **{
        name: tiny_asasr_training(
            name, json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")), "photos"
        )
        for name in TINY_ASASR
    },
    **{
        name: {
            key: inputs | ({"data_folder": "photos"} if "candidates" in inputs.get("config", "") else {})
            for key, inputs in nodes.items()
        }
        for name, nodes in TINY_DP2O.items()
    },
    "upscale-with-strsr-flux": {"1": {"image": "colour.png"}, **TINY_STRSR},
    "upscale-with-strsr-z": {"1": {"image": "colour.png"}, **TINY_STRSR},
    "spectral-comparison": {"1": {"image": "wide.png"}},
    "view-autoencoder": {},
}


def compare(prompt: dict[str, Any], server: Server, tmp_path: Path) -> list[str]:
    job = server.run(with_dumps(prompt, tmp_path / "server"), timeout_s=240)
    assert job.end == "execution_success", job.why()
    run_locally(with_dumps(prompt, tmp_path / "runner"), server, tmp_path / "output")
    assert list((tmp_path / "server").iterdir())
    return differences(tmp_path / "server", tmp_path / "runner")


def test_every_workflow_has_small_settings() -> None:
    assert sorted(SMALL) == WORKFLOWS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_bundled_workflow(server: Server, tmp_path: Path, name: str) -> None:
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node_id, inputs in SMALL[name].items():
        assert inputs.keys() <= prompt[node_id]["inputs"].keys()
        prompt[node_id]["inputs"] |= inputs
    assert compare(prompt, server, tmp_path) == []


def test_three_stages_of_aesop_in_one_graph(server: Server, tmp_path: Path) -> None:
    """Train the auto-encoder, train a network by its loss, upscale a picture: the two templates joined, as a user would."""
    saved = (ROOT / "workflows" / "api" / f"{name}.json" for name in ("pretrain-aesop-autoencoder", "train-aesop"))
    prompt = three_stages(*(json.loads(path.read_text(encoding="utf-8")) for path in saved), data_folder="photos")
    names = {"AlignSRTrainAutoEncoder": "stage-one", "AlignSRTrainPerceptualSR": "stage-two"}  # other tests train the templates
    for entry in prompt.values():
        if entry["class_type"] in names:
            entry["inputs"]["out_name"] = names[entry["class_type"]]
    assert compare(prompt, server, tmp_path) == []
    for name in names.values():
        (there,) = (server.base / "output" / "alignsr" / "training").rglob(f"{name}.safetensors")
        (here,) = (tmp_path / "output" / "alignsr" / "training").rglob(f"{name}.safetensors")
        assert tensor_differences(name, load_file(there), load_file(here)) == []
    upscaled = load_file(tmp_path / "server" / "t8_0.safetensors")
    assert next(iter(upscaled.values())).shape == (1, 256, 384, 3)


def test_degrade_restore_score_and_compare(server: Server, tmp_path: Path) -> None:
    prompt = {
        "1": node("LoadImage", image="wide.png"),
        "2": node("AlignSRDegrade", image=["1", 0], preset="realesrgan", seed=7, scale=4, jpeg="codec"),
        "3": node("AlignSRLoadSRModel", model_name="fast.safetensors", precision="fp32", device="auto"),
        "4": node("AlignSROneStepSR", model=["3", 0], image=["2", 0], scale=4, color_fix="adain", tile_px=24, overlap_px=8),
        "5": node("AlignSRColorFix", image=["4", 0], reference=["2", 0], method="wavelet"),
        "6": node("AlignSRIQAReward", images=["5", 0], reference=["2", 1], metrics="psnr_y, ssim_y, lsd", scale=4),
        "7": node("AlignSRCompare", result=["5", 0], input=["2", 0], reference=["2", 1], num_crops=2, crop_px=0, panel_px=200),
        "8": node("AlignSRSaveReport", scores=["6", 0], filename_prefix="same/report", pictures=["7", 0], params=["2", 2]),
    }
    assert compare(prompt, server, tmp_path) == []


def test_lists_of_pictures(server: Server, tmp_path: Path) -> None:
    prompt = {
        "1": node("AlignSRLoadImageFolder", folder="photos", start=0, limit=0, on_error="stop"),
        "2": node("AlignSRDegrade", image=["1", 0], preset="bicubic", seed=0, scale=4, jpeg="codec"),
        "3": node("AlignSRLoadSRModel", model_name="fast.safetensors", precision="fp32", device="auto"),
        "4": node("AlignSROneStepSR", model=["3", 0], image=["2", 0], scale=4, color_fix="none", tile_px=0, overlap_px=-1),
        "5": node("AlignSRIQAReward", images=["4", 0], reference=["1", 0], names=["1", 1], metrics="psnr_y", scale=4),
        "6": node("SaveImage", images=["4", 0], filename_prefix="same/lists"),
    }
    assert compare(prompt, server, tmp_path) == []


def test_alpha_from_load_image(server: Server, tmp_path: Path) -> None:
    """LoadImage itself is ours in the runner: its picture and mask must be ComfyUI's."""
    prompt = {"1": node("LoadImage", image="alpha.png")}
    for name, index in (("image", 0), ("mask", 1)):
        prompt[name] = node("AlignSRTestTensorDump", value=["1", index], folder="", name=name)

    def into(folder: Path) -> dict[str, Any]:
        copy = json.loads(json.dumps(prompt))
        for name in ("image", "mask"):
            copy[name]["inputs"]["folder"] = str(folder)
        return copy

    assert server.run(into(tmp_path / "server")).end == "execution_success"
    run_locally(into(tmp_path / "runner"), server, tmp_path / "output")
    assert differences(tmp_path / "server", tmp_path / "runner") == []
