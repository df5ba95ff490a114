"""Train SR Network in a real server: live curve, interruption, resume, and results that are found again."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from comfyui.browser import Browser
from comfyui.runner import run_locally, tensor_differences
from comfyui.server import Job, Server, node, trouble
from comfyui.test_cancel import InterruptAt

pytestmark = pytest.mark.comfyui

STEPS = 24
CONFIG = f"""
base = "tiny-lite-x4"
[model]
options = {{ features = 32, blocks = 4 }}
[data]
gt_patch_px = 64
holdout = 1
[run]
steps = {STEPS}
batch_size = 4
log_every = 1
preview_every = 2
checkpoint_every = 1000
validate_every = 12
"""
# the picture that the page draws inside the node now
CURVE = "app.graph._nodes.find(node => node.type === 'AlignSRTrainSRNetwork')?.imgs?.[0]"


def train(config: str, overrides: str = "", name: str = "") -> dict[str, Any]:
    return node("AlignSRTrainSRNetwork", config=config, data_folder="photos", overrides=overrides, out_name=name, resume=True)


def prompt_for(name: str, overrides: str = "") -> dict[str, Any]:
    return {
        "1": train(CONFIG, overrides, name),
        "2": node("PreviewAny", source=["1", 0]),
        "3": node("PreviewImage", images=["1", 2]),
    }


def weights_of(job: Job) -> Path:
    return Path(job.history["outputs"]["2"]["text"][0])


def logged_steps(job: Job) -> list[int]:
    lines = (weights_of(job).parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [int(json.loads(line)["step"]) for line in lines]


def test_training_shows_its_curve_survives_interruption_and_resumes(server: Server, tmp_path: Path) -> None:
    prompt = prompt_for("interrupted")
    stop = InterruptAt(server, "1", 6)
    first = server.run(prompt, stop)
    assert first.end == "execution_interrupted", first.why()
    assert stop.steps_afterwards(first) <= 1
    reached = first.progress("1")[-1]
    assert 6 <= reached < STEPS - 5

    assert len(first.previews) >= 2, "no curve while it ran"
    for preview in first.previews:
        assert preview.node_id == "1"
        assert preview.image.format == "JPEG"
        preview.image.load()
        assert preview.image.convert("L").getextrema()[0] < 128 < preview.image.convert("L").getextrema()[1]
    assert first.previews[0].after < len(first.messages) - 2, "the first curve came only at the end"

    second = server.run(prompt)
    assert second.end == "execution_success", second.why()
    assert second.progress("1")[0] in (reached + 1, reached + 2), "did not go on where it stood"
    assert second.progress("1")[-1] == STEPS
    assert logged_steps(second) == list(range(1, STEPS + 1))

    run_locally(json.loads(json.dumps(prompt)), server, tmp_path)
    (uninterrupted,) = tmp_path.rglob("interrupted.safetensors")
    assert tensor_differences("weights", load_file(weights_of(second)), load_file(uninterrupted)) == []


def test_a_finished_run_is_cached_and_then_found_on_disk(server: Server) -> None:
    said = len(server.log)
    prompt = prompt_for("finished", "run.steps=4\nrun.validate_every=4")
    first = server.run(prompt)
    assert first.end == "execution_success", first.why()
    written = weights_of(first).stat().st_mtime_ns

    again = server.run(prompt)
    assert again.end == "execution_success", again.why()
    assert "1" in again.cached
    assert again.progress("1") == []

    server.forget_results()
    evicted = server.run(prompt)
    assert evicted.end == "execution_success", evicted.why()
    assert "1" in evicted.executed, "still cached: the test proves nothing"
    assert evicted.progress("1") == [], "trained again"
    assert weights_of(evicted) == weights_of(first)
    assert weights_of(evicted).stat().st_mtime_ns == written
    assert not trouble(server.log[said:])


def test_the_page_shows_the_curve_inside_the_node(server: Server, browser: Browser, tmp_path: Path) -> None:
    browser.open(server.url)
    browser.wait_for("window.app?.graph && app.vueAppReady")
    browser.evaluate(f"app.loadApiJson({json.dumps(prompt_for('shown', 'run.steps=200'))}, 'training')")
    browser.evaluate("app.queuePrompt(0, 1)")
    try:
        browser.wait_for(f"{CURVE}?.naturalWidth > 100")
        browser.screenshot(tmp_path / "training.png")
        assert browser.evaluate("Object.keys(app.nodePreviewImages)") == ["1"]
    finally:
        server.interrupt()


def test_a_broken_config_names_the_key(server: Server) -> None:
    job = server.run({"1": train("lite-x4", overrides="run.stepz=3")})
    assert job.end == "execution_error"
    assert "stepz" in job.why()
    assert "steps" in job.why()
