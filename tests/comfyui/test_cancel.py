"""Cancelling works within one step of a long node, and the server is well afterwards."""

import threading
import time
from typing import Any

import pytest

from comfyui.server import Job, Server, node, trouble

pytestmark = pytest.mark.comfyui

IN_FLIGHT_S = 0.05  # a step that ended before the server heard of the interruption may still be on its way to us


class InterruptAt:
    """Interrupts when a node's bar reaches a value, from another thread, so that messages are read meanwhile."""

    def __init__(self, server: Server, node_id: str, value: int) -> None:
        self.server, self.node_id, self.value = server, node_id, value
        self.thread: threading.Thread | None = None
        self.heard = float("inf")  # when the server had answered

    def __call__(self, job: Job) -> None:
        if self.thread is None and self.value in job.progress(self.node_id)[-1:]:
            self.thread = threading.Thread(target=self._interrupt)
            self.thread.start()

    def _interrupt(self) -> None:
        self.server.interrupt()
        self.heard = time.monotonic()

    def steps_afterwards(self, job: Job) -> int:
        assert self.thread is not None, f"the bar of node {self.node_id} never came to {self.value}: {job.why()}"
        self.thread.join()
        return job.progress_after(self.heard + IN_FLIGHT_S)


def upscale(model: str, image: str, **inputs: Any) -> dict[str, Any]:
    settings = {"scale": 4, "color_fix": "none", "tile_px": 0, "overlap_px": -1, **inputs}
    return {
        "1": node("AlignSRLoadSRModel", model_name=f"{model}.safetensors", precision="fp32", device="auto"),
        "2": node("LoadImage", image=image),
        "3": node("AlignSROneStepSR", model=["1", 0], image=["2", 0], **settings),
        "4": node("SaveImage", images=["3", 0], filename_prefix="cancel"),
    }


def test_tiled_upscaling_stops_within_one_tile(server: Server) -> None:
    prompt = upscale("slow", "wide.png", tile_px=32, overlap_px=8)
    stop = InterruptAt(server, "3", 2)
    job = server.run(prompt, stop)
    assert job.end == "execution_interrupted", job.why()
    assert stop.steps_afterwards(job) <= 1
    assert job.progress("3")[-1] < job.of_type("progress")[-1]["max"] - 5, "nothing left to cancel: the test proves nothing"
    assert not list((server.base / "output").glob("cancel*")), "a cancelled run saved a picture"


def test_the_server_goes_on_after_a_cancelled_run(server: Server) -> None:
    said = len(server.log)
    job = server.run(upscale("fast", "colour.png"))
    assert job.end == "execution_success", job.why()
    assert server.view(job.images("4")[0]).size == (4 * 48, 4 * 40)
    assert not trouble(server.log[said:])
