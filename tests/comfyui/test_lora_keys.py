"""An exported adapter in ComfyUI's own hands: every key is known, every tensor used, and the weights are those of our merge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from latent_helpers import ORIGINAL, adapter_for, original_lora
from safetensors.torch import load_file, save_file

from alignsr.core.backbones.latent import tiny
from alignsr.core.lora_files import export_for_comfy, read_adapter

SCRIPT = Path(__file__).with_name("lora_keys.py")


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI checkout at COMFYUI_PATH")
@pytest.mark.parametrize("made_by", ["us", "another trainer", "kohya"])
@pytest.mark.parametrize("kind", list(ORIGINAL))
def test_comfyui_maps_every_key_and_gets_the_weights_that_merging_gives(kind: str, made_by: str, tmp_path: Path) -> None:
    """Slow: ComfyUI is imported in a process of its own."""
    backbone, adapter = tiny(kind), adapter_for(kind)
    original = ORIGINAL[kind]
    before = original(dict(backbone.transformer.state_dict()))
    save_file({name: tensor.contiguous() for name, tensor in before.items()}, tmp_path / "base.safetensors")
    if made_by == "us":
        export_for_comfy(tmp_path / "lora.safetensors", adapter)
    else:
        save_file(original_lora(kind, flat=made_by == "kohya"), tmp_path / "lora.safetensors")
        adapter = read_adapter(tmp_path / "lora.safetensors")
    options = backbone.options["transformer"]
    config = {"depth": 1, "depth_single_blocks": 1, "hidden_size": 32}
    if kind == "z_image":
        config = {name: options[name] for name in ("n_layers", "dim", "n_refiner_layers")}
    files = [f"{name}.safetensors" for name in ("base", "lora", "out")]
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    checkout = str(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve())
    command = [python, str(SCRIPT), checkout, kind, *files, json.dumps(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["unused"] == []
    if made_by == "us":
        assert report == {"unknown": [], "patches": len(adapter.state) // 2, "unused": []}
    adapter.merge_into(backbone.transformer)
    merged = original(dict(backbone.transformer.state_dict()))
    patched = load_file(tmp_path / "out.safetensors")
    assert all(torch.allclose(patched[name], merged[name], atol=1e-5) for name in merged)
    assert sum(not torch.equal(before[name], merged[name]) for name in merged) >= 4
