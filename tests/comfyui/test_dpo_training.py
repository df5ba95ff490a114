"""Perceptual DPO Trainer in a real server: pairs, training that is interrupted and goes on, and both models compared by seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from train_helpers import equal_files

from comfyui.runner import run_locally
from comfyui.server import Server, node, trouble
from comfyui.test_cancel import InterruptAt

pytestmark = pytest.mark.comfyui

STEPS, TRAINER = 16, "4"
TRAINING = f"""run.steps={STEPS}
run.log_every=1
run.preview_every=4
run.checkpoint_every=1000
guard.pictures=1
guard.every=4
optimizer.learning_rate=1e-3"""


def prompt_for(name: str) -> dict[str, Any]:
    def sampled(title: str, weights: Any) -> dict[str, Any]:
        return node(
            "AlignSRSampleCandidates", config="tiny-dp2o-candidates-pixel", data_folder="photos", out_name=f"{name}-{title}",
            overrides="", weights=weights,
        )  # fmt: skip

    scored = {"metrics": ""}
    return {
        "1": sampled("pairs", ""),
        "2": node("AlignSRScoreCandidates", candidates=["1", 0], **scored),
        "3": node("AlignSRCuratePreferences", candidates=["2", 0], picks=2),
        TRAINER: node(
            "AlignSRPerceptualDPOTrainer", config="tiny-dp2o-pixel", preferences=["3", 0], overrides=TRAINING, out_name=name,
            resume=True,
        ),
        "5": sampled("after", [TRAINER, 0]),
        "6": node("AlignSRScoreCandidates", candidates=["5", 0], **scored),
        "7": node("AlignSRCompareSeeds", before=["2", 0], after=["6", 0], labels="before, after"),
        "8": node("PreviewAny", source=[TRAINER, 0]),
        "9": node("PreviewAny", source=["7", 0]),
        "10": node("PreviewImage", images=["7", 1]),
    }  # fmt: skip


def test_training_survives_an_interruption_and_seeds_are_compared(server: Server, tmp_path: Path) -> None:
    said, prompt = len(server.log), prompt_for("dpo")
    stop = InterruptAt(server, TRAINER, 5)
    first = server.run(prompt, stop, timeout_s=240)
    assert first.end == "execution_interrupted", first.why()
    assert 5 <= first.progress(TRAINER)[-1] < STEPS

    second = server.run(prompt, timeout_s=240)
    assert second.end == "execution_success", second.why()
    weights = Path(second.history["outputs"]["8"]["text"][0])
    log = [json.loads(line) for line in (weights.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [int(entry["step"]) for entry in log] == list(range(1, STEPS + 1)), "it went on"
    assert [int(entry["step"]) for entry in log if "probe_reward" in entry] == [4, 8, 12, 16]
    table = second.history["outputs"]["9"]["text"][0]
    assert table.startswith("4 seeds of 3 pictures") and "deviation, last / first" in table
    assert server.view(second.images("10")[0]).width > 400
    run_locally(prompt, server, tmp_path)
    (local,) = tmp_path.rglob("dpo.safetensors")
    assert equal_files(weights, local), "the same weights as without the server and without an interruption"
    assert not trouble(server.log[said:])
