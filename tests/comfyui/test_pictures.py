"""Pictures of every kind go through LoadImage -> One-Step SR -> SaveImage of a real server."""

from typing import Any

import numpy as np
import pytest

from comfyui.server import Server, node

pytestmark = pytest.mark.comfyui

SETTINGS = {"scale": 4, "color_fix": "wavelet", "tile_px": 0, "overlap_px": -1}


def prompt_for(*images: dict[str, Any]) -> dict[str, Any]:
    """Nodes `10`, `11`, ... lead to the picture to upscale, which is output 0 of the last one."""
    sources = {str(10 + index): image for index, image in enumerate(images)}
    return {
        "1": node("AlignSRLoadSRModel", model_name="fast.safetensors", precision="fp32", device="auto"),
        **sources,
        "3": node("AlignSROneStepSR", model=["1", 0], image=[list(sources)[-1], 0], **SETTINGS),
        "4": node("SaveImage", images=["3", 0], filename_prefix="pictures/result"),
        "5": node("SaveImage", images=["3", 1], filename_prefix="pictures/enlarged"),
    }


def run(server: Server, *images: dict[str, Any]) -> list[np.ndarray]:
    job = server.run(prompt_for(*images))
    assert job.end == "execution_success", job.why()
    assert len(job.images("4")) == len(job.images("5"))
    return [np.asarray(server.view(entry)) for entry in job.images("4")]


def test_colour(server: Server) -> None:
    (result,) = run(server, node("LoadImage", image="colour.png"))
    assert result.shape == (160, 192, 3)
    assert result.std() > 10


def test_grey_stays_without_colour_cast_at_odd_sizes(server: Server) -> None:
    (result,) = run(server, node("LoadImage", image="grey.png"))
    assert result.shape == (4 * 29, 4 * 37, 3)
    means = result.reshape(-1, 3).mean(0)
    assert np.abs(means - means.mean()).max() < 3  # the wavelet fix holds the coarse colours


def test_alpha_is_enlarged_alongside(server: Server) -> None:
    join = node("JoinImageWithAlpha", image=["10", 0], alpha=["10", 1])
    (result,) = run(server, node("LoadImage", image="alpha.png"), join)
    assert result.shape == (128, 160, 4)
    ramp = result[64, :, 3].astype(int)
    assert ramp[0] < 10
    assert ramp[-1] > 245
    assert (np.diff(ramp) >= -1).all()


def test_a_batch_gives_a_batch(server: Server) -> None:
    results = run(server, node("LoadImage", image="colour.png"), node("RepeatImageBatch", image=["10", 0], amount=3))
    assert len(results) == 3
    assert all((result == results[0]).all() for result in results)


def test_a_list_gives_a_list_of_different_sizes(server: Server) -> None:
    folder = node("AlignSRLoadImageFolder", folder="photos", start=0, limit=2, on_error="stop")
    results = run(server, folder)
    assert [result.shape for result in results] == [(448, 512, 3)] * 2
    assert (results[0] != results[1]).any()
