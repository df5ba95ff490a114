"""The experiments run from end to end, one or a few steps on tiny pictures; what they find with real ones is in PAPERS.md."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from train_helpers import make_pictures

from alignsr.core.networks.tiny_autoencoder import TinyAutoencoder
from alignsr.core.weights import WeightsError
from paths import ROOT

FOLDER = ROOT / "benchmarks" / "experiments"
SMALL = ["run.batch_size=2", "data.gt_patch_px=32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the experiments want them: training photographs, one test set of two pairs, and an untrained autoencoder."""
    root = tmp_path_factory.mktemp("data")
    for part in ("train", "test"):
        make_pictures(root / "bsds500" / part, count=2, side=64)
    for name in ("set5", "set14"):
        for path in make_pictures(root / name / "hr", count=2, side=64).iterdir():
            (root / name / "lr_x4").mkdir(exist_ok=True)
            with Image.open(path) as picture:
                picture.reduce(4).save(root / name / "lr_x4" / path.name)
    torch.manual_seed(0)
    coder = TinyAutoencoder(width=32, blocks=1)
    (root / "taef2").mkdir()
    for half in ("encoder", "decoder"):
        torch.save(getattr(coder, half).state_dict(), root / "taef2" / f"taef2_{half}.pth")
    return root


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(data: Path, out: Path, *sets: str) -> list[str]:
    words = ["--data", str(data), "--out", str(out / "runs"), "--json", str(out / "rows.json")]
    return [*words, *(word for item in sets for word in ("--set", item))]


def test_papers_tells_the_weights_of_strsrs_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = script("strsr", monkeypatch)
    section = (ROOT / "PAPERS.md").read_text(encoding="utf-8").partition("### StrSR: does it learn here?")[2].partition("\n##")[0]
    told = " ".join(section.split())
    ((_, fdl), (_, grid)) = (experiment.STAGE_2[method] for method in (experiment.FDL, experiment.GRID))
    assert experiment.STAGE_1[experiment.GAN] == ["losses.ragan.weight=1.0"] and "the adversary has weight 1 and not 0.1" in told
    assert fdl[:2] == ["losses.fdl.weight=0.05", "losses.fdl.projections=64"] and "FDL 0.05 and not 0.002" in told
    assert grid == ["losses.grid.weight=0.3", "losses.grid.period_px=8"] and "weight 0.3 and a period of 8" in told


def test_strsr_on_the_pixel_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("strsr", monkeypatch)
    words = options(data, tmp_path, "run.batch_size=2", "data.gt_patch_px=64", "discriminator.hidden=8")
    words += ["--seeds", "0", "--steps", "1", "--more", "1", "--sets", "set5", "--picture", str(tmp_path / "rows.png")]
    assert experiment.main(words) == 0
    report = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in report["rows"]] == [experiment.START, *experiment.STAGE_2]
    assert all(len(row["spectrum"]) == experiment.BINS for row in report["rows"])
    assert {line["method"] for line in report["differences"]} == set(experiment.STAGE_2) - {experiment.L1}
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(f"| {method} |" in printed for method in experiment.STAGE_2)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert experiment.main([*words, "--train-only"]) == 0  # finds every training finished
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    with pytest.raises(WeightsError, match=r"optimizer\.learning_rate"):  # of another config: not mistaken for this one
        experiment.main([*words, "--train-only", "--set", "optimizer.learning_rate=1e-5"])


def test_a_spectrum_is_zero_beside_itself_and_falls_with_blur(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = script("strsr", monkeypatch)
    gt = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert experiment.relative_spectrum(gt, gt) == [0.0] * experiment.BINS
    assert experiment.relative_spectrum(0.5 * gt + 0.25, gt)[-1] == pytest.approx(-6.02, abs=0.01)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(gt, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    levels = experiment.relative_spectrum(blurred, gt)
    assert levels[0] > -1 and levels[-1] < -6


def test_klein_in_small(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("klein_small", monkeypatch)
    sizes = "num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=[4,4,4,4]"
    words = options(data, tmp_path, *SMALL, f"model.options={{{sizes}}}", "run.log_every=1")
    assert experiment.main([*words, "--steps", "2", "--picture", str(tmp_path / "look.png")]) == 0
    assert (tmp_path / "look.png").is_file()
    figures = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    # a transformer that answers nothing gives the round trip of its input
    assert figures["zero velocity"] == pytest.approx(figures["bicubic input after the round trip"], abs=0.02)
    assert "| trained |" in capsys.readouterr().out


def test_aesop_from_lite(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("aesop", monkeypatch)
    words = options(data, tmp_path, *SMALL, "discriminator.features=4")
    words += ["--seeds", "0", "--steps", "3", "--methods", experiment.L1, experiment.AESOP]
    assert experiment.main(words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 1, 2, 3]
    assert "| AESOP + GAN |" in capsys.readouterr().out


def test_asasr_on_synthetic_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("asasr_synthetic", monkeypatch)
    words = ["--out", str(tmp_path / "runs"), "--seeds", "3", "11", "--shorter", "600", "--held-out", "4"]
    files = {"--json": "rows.json", "--picture": "rows.png", "--look": "look.png"}
    words += [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    assert experiment.main(words) == 0
    report = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in report["rows"]][:2] == [experiment.SFT, experiment.ADVERSARY]
    assert len(report["rows"]) == 2 * (2 + len(experiment.SETTINGS))
    assert len(report["directions"]) == len(experiment.DIRECTIONS)
    assert all(len(line["seeds"]) == 2 for line in report["directions"])
    closed = report["E3"]["closed form"]
    assert closed["J 1.0"] < closed["J 0.3"] < report["E3"]["the state itself"]["J 0.3"]
    assert min((tmp_path / name).stat().st_size for name in ("rows.png", "look.png")) > 5_000
    assert f"| {experiment.CYCLES} |" in capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    again = experiment.supervised(tmp_path / "runs", 3, 600)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_the_synthetic_worlds_network_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    script("asasr_synthetic", monkeypatch)
    import asasr_toy as toy

    assert sum(p.numel() for p in toy.UNet().parameters()) == 151_585
    tests = toy.HeldOut(8)
    perfect = tests.measure(tests.gt)
    assert perfect["low"] == perfect["mid"] == perfect["high"] == perfect["lsd"] == 0 and perfect["detail"] == 1
    bands = tests.measure(tests.lq)
    error = float((tests.lq - tests.gt).square().mean())
    assert bands["low"] + bands["mid"] + bands["high"] == pytest.approx(error, rel=1e-5)
    assert bands["detail"] < 0.1  # the input has lost the high band
    assert tests.measure(toy.artefacts(tests.gt))["psnr"] < 30


def test_dp2o_on_a_pixel_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    experiment = script("dp2o_pixel", monkeypatch)
    words = ["--data", str(data), "--out", str(tmp_path / "runs"), "--model", "tiny", "--seeds", "0", "--pictures", "3"]
    words += ["--candidates", "8", "--side", "32", "--steps", "1", "--sets", "set5", "--sample-set", "sampling.steps=2"]
    words += ["--set", "run.batch_size=2", "--set", "guard.pictures=1", "--set", "lora.rank=2"]
    files = ["--json", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "rows.png")]
    assert experiment.main([*words, *files]) == 0
    report = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in report["rows"]] == [experiment.START, *experiment.METHODS]
    assert len(report["directions"]) == len(experiment.DIRECTIONS) + 1
    assert {line["verdict"] for line in report["directions"]} == {"within noise"}, "one seed says nothing"
    assert experiment.verdict([0.1, 0.12, 0.11], 1) == "reproduces" and experiment.verdict([0.1, 0.12, 0.11], -1) == "contradicts"
    assert experiment.verdict([0.1, -0.05, 0.02], 1) == experiment.verdict([0.0, 0.0], 1) == "within noise"
    assert all(len(line["differences"]) == 1 for line in report["directions"])
    assert all(row["worst"] <= row["reward"] <= row["best"] for row in report["rows"])
    assert (tmp_path / "rows.png").stat().st_size > 5_000
    printed = capsys.readouterr().out
    assert f"| {experiment.START} |" in printed and "| psnr_y |" in printed
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert experiment.main([*words, *files]) == 0  # finds every part finished
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
