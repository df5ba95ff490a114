"""One-Step Trainer in a real server: two stages in one graph; the second is interrupted, goes on, is cached, is found on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from comfyui.runner import run_locally, tensor_differences
from comfyui.server import Job, Server, node, trouble
from comfyui.test_cancel import InterruptAt

pytestmark = pytest.mark.comfyui

STEPS = 16
OVERRIDES = """data.gt_patch_px=64
data.pair_pool=0
data.workers=0
data.holdout=1
optimizer.learning_rate=1e-3
run.log_every=1
run.preview_every=2
run.checkpoint_every=1000
run.validate_every=8
run.steps={}"""
STAGE_1, STAGE_2 = "6", "7"


def prompt_for(name: str, steps: int = STEPS) -> dict[str, Any]:
    def stage(number: int, steps: int, loss: str, **more: Any) -> dict[str, Any]:
        return node(
            "AlignSROneStepTrainer",
            config=f"tiny-strsr-flux2-klein-stage{number}",
            data_folder="photos",
            overrides=OVERRIDES.format(steps),
            out_name=f"{name}-{number}",
            resume=True,
            loss=[loss, 0],
            discriminator=["1", 0],
            **more,
        )

    return {
        "1": node("AlignSRLoadDiscriminator", features="network", model_name="random", hidden=8, precision="fp32"),
        "2": node("AlignSRPixelLoss", weight=1.0, kind="l1", model_range=True),
        "3": node("AlignSRRaGANLoss", **defaults("RaGANLoss"), loss=["2", 0]),
        "4": node("AlignSRFDLLoss", **defaults("FDLLoss") | {"features": "network", "features_file": "random"}, loss=["3", 0]),
        STAGE_1: stage(1, 2, "3"),
        STAGE_2: stage(2, steps, "4", start_from=[STAGE_1, 7]),
        "8": node("PreviewAny", source=[STAGE_2, 0]),
        "9": node("AlignSRSaveLoRA", lora=[STAGE_2, 5], filename_prefix=f"loras/{name}", file_format="comfyui", precision="bf16"),
    }


def defaults(name: str) -> dict[str, Any]:
    from alignsr.nodes import NODE_CLASS_MAPPINGS

    node_class: Any = NODE_CLASS_MAPPINGS[f"AlignSR{name}"]
    return {key: options["default"] for key, (_, options) in node_class.INPUT_TYPES()["required"].items()}


def weights_of(job: Job) -> Path:
    return Path(job.history["outputs"]["8"]["text"][0])


def logged_steps(job: Job) -> list[int]:
    lines = (weights_of(job).parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [int(json.loads(line)["step"]) for line in lines]


def test_two_stages_survive_an_interruption_in_the_second(server: Server, tmp_path: Path) -> None:
    prompt = prompt_for("interrupted")
    stop = InterruptAt(server, STAGE_2, 5)
    first = server.run(prompt, stop, timeout_s=240)
    assert first.end == "execution_interrupted", first.why()
    assert stop.steps_afterwards(first) <= 1
    assert first.progress(STAGE_1, 2) == [1, 2], "stage 1 was finished"
    assert 0 in first.progress(STAGE_1, 1), "the validation of its one held-out picture showed no progress"
    reached = first.progress(STAGE_2, STEPS)[-1]
    assert 5 <= reached < STEPS - 3
    shown = [preview.image for preview in first.previews if preview.node_id == STAGE_2]
    assert len(shown) >= 2, "no curve and samples while it ran"
    assert all(min(image.size) > 100 and image.format == "JPEG" for image in shown)

    second = server.run(prompt, timeout_s=240)
    assert second.end == "execution_success", second.why()
    assert STAGE_1 in second.cached
    assert second.progress(STAGE_2, STEPS)[0] in (reached + 1, reached + 2), "did not go on where it stood"
    assert second.progress(STAGE_2, STEPS)[-1] == STEPS
    assert logged_steps(second) == list(range(1, STEPS + 1))

    run_locally(json.loads(json.dumps(prompt)), server, tmp_path)
    for name in ("interrupted-1", "interrupted-2", "interrupted-2-critic"):
        (here,) = tmp_path.rglob(f"{name}.safetensors")
        (there,) = (server.base / "output").rglob(f"{name}.safetensors")
        assert tensor_differences(name, load_file(there), load_file(here)) == []
    (lora,) = (server.base / "output" / "loras").glob("interrupted_*.safetensors")
    assert {key.split(".")[0] for key in load_file(lora)} == {"transformer", "diffusion_model"}


def test_finished_stages_are_cached_and_then_found_on_disk(server: Server) -> None:
    said = len(server.log)
    prompt = prompt_for("finished", 3)
    first = server.run(prompt, timeout_s=240)
    assert first.end == "execution_success", first.why()
    images = {entry["filename"] for entry in first.images(STAGE_2)}
    assert images == {"curve.png", "samples.png"}
    written = weights_of(first).stat().st_mtime_ns

    again = server.run(prompt)
    assert again.end == "execution_success", again.why()
    assert {STAGE_1, STAGE_2} <= again.cached

    server.forget_results()
    evicted = server.run(prompt)
    assert evicted.end == "execution_success", evicted.why()
    assert {STAGE_1, STAGE_2} <= set(evicted.executed), "still cached: the test proves nothing"
    assert evicted.progress(STAGE_1) == evicted.progress(STAGE_2) == [], "trained again"
    assert weights_of(evicted) == weights_of(first)
    assert weights_of(evicted).stat().st_mtime_ns == written
    assert not trouble(server.log[said:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({STAGE_1: {"overrides": "lora.rnak=8"}}, "lora.rnak: unknown key; did you mean 'rank'"),
        ({STAGE_1: {"overrides": "model.source=''"}}, "no flux-2-klein-base-4b.safetensors"),
        ({"1": {"features": "clip", "model_name": "auto"}}, "laion/CLIP-convnext_xxlarge"),
        ({STAGE_1: {"overrides": "conditioning.model=''"}}, "Qwen3-VL-4B-Instruct"),
    ],
)
def test_what_is_wrong_is_said_by_the_node(changes: dict[str, dict[str, str]], said: str, server: Server) -> None:
    prompt = prompt_for("wrong", 1)
    for node_id, inputs in changes.items():
        prompt[node_id]["inputs"] |= inputs
    job = server.run(prompt)
    assert job.end == "execution_error"
    assert said in job.why()
