"""The benchmark compares like with like: its OpenCV chain gives our result where both resample alike."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from alignsr.core.degradation import replay
from paths import ROOT

pytest.importorskip("cv2", reason="needs OpenCV, which the benchmark compares with")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("degradation_benchmark", ROOT / "benchmarks" / "degradation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_chains_give_the_same_picture_without_noise(benchmark: ModuleType) -> None:
    gt = benchmark.photographs(3, 96)
    kernels = [
        {"kind": "iso", "size": 9, "sigma_x": 1.3},
        {"kind": "aniso", "size": 21, "sigma_x": 2.0, "sigma_y": 0.7, "rotation": 0.4},
        {"kind": "sinc", "size": 13, "cutoff": 2.0},
    ]
    for mode in ("bilinear", "bicubic"):
        records = [
            {
                "sharpen_input": True,
                "steps": [
                    {"op": "blur", "kernel": kernel},
                    {"op": "resize", "mode": mode, "factor": None, "size": [57, 64]},
                    {"op": "jpeg", "quality": 70},
                    {"op": "resize", "mode": mode, "factor": None, "size": [24, 24]},
                ],
            }
            for kernel in kernels
        ]
        ours = replay(gt, records).lq
        for image, record, lq in zip(gt, records, ours, strict=True):
            other = benchmark.opencv_degrade(image.flip(0).permute(1, 2, 0).numpy().copy(), record, np.random.default_rng(0))
            assert float((torch.from_numpy(other).permute(2, 0, 1).flip(0) - lq).abs().mean()) * 255 < 0.5


def test_it_prints_a_table_and_writes_json(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert benchmark.main(["--batch", "2", "--gt", "48", "--rounds", "1", "--threads", "1", "--json", str(out)]) == 0
    assert "x OpenCV" in capsys.readouterr().out
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result) == {"settings", "speed", "jpeg_mean_abs_difference_255"}
    assert all(row["images_per_second"] > 0 for row in result["speed"].values())
