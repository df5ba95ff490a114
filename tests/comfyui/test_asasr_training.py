"""ASASR's three stages in one graph of a real server: interrupted in the third, queued again, equal to the headless run."""

import json
from pathlib import Path
from typing import Any

import pytest
from train_helpers import equal_files

from comfyui.runner import run_locally
from comfyui.server import Server, node, trouble
from comfyui.test_cancel import InterruptAt

pytestmark = pytest.mark.comfyui

STEPS, POLICY = 12, "4"
SHORT = "data.gt_patch_px=32\nrun.log_every=1\nrun.preview_every=4\nrun.validate_every=0\nrun.checkpoint_every=1000"
LONG = f"{SHORT}\nrun.steps={STEPS}\noptimizer.learning_rate=1e-3\nschedule.warmup_steps=0\nguard.max_drift=0.0"


def prompt_for(name: str) -> dict[str, Any]:
    return {
        "1": node(
            "AlignSRSFTTrainer", config="tiny-asasr-sft-flux", data_folder="photos", overrides=SHORT, out_name=f"{name}-sft",
            resume=True,
        ),
        "2": node("AlignSRArtefactFolder", folder="artefacts"),
        "3": node(
            "AlignSRAdversaryTrainer", config="tiny-asasr-adversary-flux", overrides=f"{SHORT}\nartefacts.holdout=0",
            out_name=f"{name}-adversary", sft=["1", 5], artefacts=["2", 0],
            resume=True,
        ),
        POLICY: node(
            "AlignSRSobolevDPOTrainer", config="tiny-asasr-flux", data_folder="photos", overrides=LONG, out_name=name,
            resume=True,
            sft=["1", 5], adversary=["3", 5], order=1.0,
        ),
        "5": node("LoadImage", image="wide.png"),
        "6": node(
            "AlignSRMultiStepSR", model=[POLICY, 1], image=["5", 0], scale=4, steps=2, tile_px=128, overlap_px=16, seed=0,
            sampler="auto", color_fix="adain", guidance=-1.0, control_scale=1.0, shift=0.0, seeds="same", batch_size=1,
        ),
        "7": node("PreviewImage", images=["6", 0]),
        "8": node("PreviewAny", source=[POLICY, 0]),
        "9": node(
            "AlignSRSaveLoRA", lora=[POLICY, 6], filename_prefix=f"alignsr/{name}", file_format="alignsr", precision="as it is"
        ),
    }  # fmt: skip


def test_three_stages_survive_an_interruption_of_the_third(server: Server, tmp_path: Path) -> None:
    said, prompt = len(server.log), prompt_for("asasr")
    stop = InterruptAt(server, POLICY, 5)
    first = server.run(prompt, stop, timeout_s=240)
    assert first.end == "execution_interrupted", first.why()
    assert 5 <= first.progress(POLICY)[-1] < STEPS
    second = server.run(prompt, timeout_s=240)
    assert second.end == "execution_success", second.why()
    weights = Path(second.history["outputs"]["8"]["text"][0])
    log = [json.loads(line) for line in (weights.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [int(entry["step"]) for entry in log] == list(range(1, STEPS + 1)), "it went on"
    assert log[0]["margin"] == 0 and log[-1]["margin"] != 0
    assert server.view(second.images("7")[0]).width > 100
    run_locally(prompt, server, tmp_path)
    (local,) = tmp_path.rglob("asasr.safetensors")
    assert equal_files(weights, local), "the same policy as without the server and without an interruption"
    assert not trouble(server.log[said:])
