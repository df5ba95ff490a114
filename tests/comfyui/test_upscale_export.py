"""Networks that we export are loaded by ComfyUI's own Load Upscale Model and give there what they give here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignsr.core.backbones import load_backbone
from alignsr.core.image_files import read_image
from alignsr.core.images import bchw_to_bhwc
from alignsr.core.networks import build_network
from alignsr.core.networks.official import export_for_comfy
from alignsr.core.weights import save_weights
from comfyui.runner import DUMP
from comfyui.server import Server, node

pytestmark = pytest.mark.comfyui

SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
NETWORKS = {
    "rrdb": {"features": 16, "growth": 32, "blocks": 2},
    "swinir": {**SWIN, "img_size": 16, "window_size": 4},
    "drct": {**SWIN, "depths": [6, 6], "img_size": 32, "window_size": 16, "growth": 4},
}


def weights_of_others(name: str, folder: Path) -> Path:
    """A .pth as the released code writes it: averaged and live weights, DRCT's `adjust` flat."""
    torch.manual_seed(0)
    state = build_network(name, {"scale": 4, **NETWORKS[name]}).state_dict()
    named = {key: t[:, :, 0, 0] if "adjust" in key and t.ndim == 4 else t for key, t in state.items()}
    torch.save({"params": {key: t * 0 for key, t in named.items()}, "params_ema": named}, folder / f"{name}.pth")
    return folder / f"{name}.pth"


@pytest.mark.parametrize("name", NETWORKS)
def test_load_upscale_model_takes_what_we_export(server: Server, tmp_path: Path, name: str) -> None:
    source = weights_of_others(name, tmp_path)
    exported = export_for_comfy(source, server.base / "models" / "upscale_models" / f"{name}.safetensors")
    job = server.run(
        {
            "1": node("LoadImage", image="colour.png"),
            "2": node("UpscaleModelLoader", model_name=exported.name),
            "3": node("ImageUpscaleWithModel", upscale_model=["2", 0], image=["1", 0]),
            "4": node(DUMP, value=["3", 0], folder=str(tmp_path / "dump"), name="sr"),
        }
    )
    assert job.end == "execution_success", job.why()
    theirs = load_file(tmp_path / "dump" / "sr.safetensors")["0"]
    lq = read_image(server.base / "input" / "colour.png").pixels
    ours = bchw_to_bhwc(load_backbone(source).upscale(lq)).clamp(0, 1)
    assert theirs.shape == (1, 160, 192, 3)
    assert theirs.std() > 1e-3
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_a_file_of_our_trainer_needs_no_export(server: Server, tmp_path: Path) -> None:
    """Our own RRDBNet files carry the official names already; the header does not disturb ComfyUI."""
    torch.manual_seed(1)
    options = {"scale": 2, **NETWORKS["rrdb"]}
    info = {"backbone": "network", "architecture": "rrdb", "options": options, "name": "ours", "licence": "CC0"}
    state = build_network("rrdb", options).state_dict()
    path = save_weights(server.base / "models" / "upscale_models" / "ours.safetensors", state, info)
    job = server.run(
        {
            "1": node("LoadImage", image="colour.png"),
            "2": node("UpscaleModelLoader", model_name="ours.safetensors"),
            "3": node("ImageUpscaleWithModel", upscale_model=["2", 0], image=["1", 0]),
            "4": node(DUMP, value=["3", 0], folder=str(tmp_path), name="sr"),
        }
    )
    assert job.end == "execution_success", job.why()
    lq = read_image(server.base / "input" / "colour.png").pixels
    ours = bchw_to_bhwc(load_backbone(path).upscale(lq)).clamp(0, 1)
    assert torch.allclose(load_file(tmp_path / "sr.safetensors")["0"], ours, atol=1e-5)
