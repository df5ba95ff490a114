"""The command line: what each command promises its users."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import call, picture, results, save_tiny, tree
from PIL import Image
from strsr_helpers import one_step_adapter
from train_helpers import make_pictures

from alignsr.core import batch
from alignsr.core.image_files import ImageFile, read_image, write_image
from alignsr.core.lora_files import save_adapter
from alignsr.core.networks.clip_heads import CriticHeads
from alignsr.core.resize import bicubic
from alignsr.core.weights import load_state_dict, save_weights
from paths import ROOT, SHARED

COMMANDS = ("demo", "upscale", "degrade", "evaluate", "run", "train", "models", "nodes", "bench")
EXIF = Image.Exif()
EXIF[0x010E] = "a description"  # ImageDescription
ICC = b"\0" * 12 + b"mntrRGB XYZ " + b"\0" * 104


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-x4.safetensors")


@pytest.fixture(autouse=True)
def _no_user_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "no-models"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, one of them in a subfolder."""
    folder = tmp_path / "photos"
    for index, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        write_image(folder / name, picture(10 + index, 14, name=name))
    return folder


# the whole


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), ("models", "check"), ("models", "download"), ("models", "export")]
)
def test_help_everywhere(command: tuple[str, ...]) -> None:
    done = call(*command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: alignsr{''.join(f' {part}' for part in command)} ")
    assert done.err == ""
    assert not re.search(r"<\w+>|\[\[|\{", done.out), "types of the program behind it"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'rich'}"
    code = f"import sys, alignsr.cli; alignsr.cli.main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert call("--version").out.split()[0] == "alignsr"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Commands:"),
        (("upscale",), "FILE_OR_FOLDER"),
        (("upscale", "x.png"), "Missing option '--out'"),
        (("upscale", "x.png", "-o", "y", "--sale", "2"), "--scale"),
        (("upscal",), "Did you mean 'upscale'?"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2_and_goes_to_stderr(arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize("options", [("--scale", "four"), ("--scale", "3.5"), ("--tile-px", "much"), ("--precision", "fp8")])
def test_a_value_that_is_not_accepted_is_exit_code_1_whoever_refuses_it(options: tuple[str, str], photos: Path) -> None:
    done = call("upscale", photos, "-o", photos / "out", *options)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {options[0]}: ")
    assert len(done.err.splitlines()) == 1


def test_help_and_readme_agree_with_the_exit_codes() -> None:
    sentence = "0 done; 1 error, a value that is not accepted included; 2 no such command or option, or one left out; 130 stopped"
    assert sentence in " ".join(call("--help").out.split())
    assert sentence in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_no_command_hides_another() -> None:
    from alignsr.cli.app import app

    names = [entry.name for entry in (*app.registered_commands, *app.registered_groups)]
    assert len(set(names)) == len(names)


def test_completion_knows_the_commands() -> None:
    environment = os.environ | {"_ALIGNSR_COMPLETE": "complete_bash", "COMP_WORDS": "alignsr up", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "alignsr"], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["upscale"], done.stderr


def test_an_unexpected_error_is_one_line_and_with_debug_a_traceback(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(batch, "plan_jobs", broken)
    plain = call("upscale", photos, "-o", tmp_path / "out")
    assert (plain.code, plain.out, plain.err) == (1, "", "error: KeyError: 'surprise'\n")
    assert "Traceback" in call("upscale", photos, "-o", tmp_path / "out", "--debug").err


# upscale


def test_a_folder_keeps_its_structure_and_names(photos: Path, model: Path, tmp_path: Path) -> None:
    done = call("upscale", photos, "-o", tmp_path / "out", "--model", model, "--json", "-")
    assert done.code == 0, done.err
    assert results(tmp_path / "out") == ["a.png", "b.jpg", "sub/c.png"]
    for name in tree(photos):
        source, result = Image.open(photos / name), Image.open(tmp_path / "out" / name)
        assert result.size == (source.width * 4, source.height * 4)
        assert result.format == source.format
    report = json.loads(done.out)  # stdout holds the JSON and nothing else
    assert (report["done"], report["failed"], report["complete"]) == (3, 0, True)
    assert {entry["status"] for entry in report["files"]} == {"done"}


def test_quiet_says_nothing(photos: Path, model: Path, tmp_path: Path) -> None:
    done = call("upscale", photos, "-o", tmp_path / "out", "-m", model, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_survives(suffix: str, channels: int, depth: int, model: Path, tmp_path: Path) -> None:
    """Bit depth, channels, EXIF and ICC profile; alpha is the bicubic enlargement of the source's."""
    icc = ICC if channels > 1 else ICC.replace(b"RGB ", b"GRAY")
    pixels = picture(9, 11, channels)
    source = write_image(tmp_path / f"in{suffix}", pixels, like=ImageFile(pixels, depth, EXIF.tobytes(), icc))
    assert call("upscale", source, "-o", tmp_path / "out", "-m", model).code == 0
    result = read_image(tmp_path / "out" / source.name)
    assert tuple(result.pixels.shape) == (1, channels, 36, 44)
    assert result.bit_depth == depth
    assert result.icc == icc
    if not (suffix == ".tif" and depth == 16 and channels > 1):  # tifffile writes its own tags
        kept = Image.Exif()
        kept.load(result.exif or b"")
        assert kept[0x010E] == "a description"
    if depth == 16:
        grid = result.pixels * 65535
        assert (grid - grid.round()).abs().max() < 0.01
        assert ((grid / 257 - (grid / 257).round()).abs() > 0.01).any(), "the values are those of an 8-bit picture"
    if channels == 4:
        alpha = bicubic(read_image(source).pixels[:, 3:], (36, 44)).clamp(0, 1)
        assert (result.pixels[:, 3:] - alpha).abs().max() <= 0.51 / (2**depth - 1)


def test_a_file_name_as_output_chooses_the_format(photos: Path, model: Path, tmp_path: Path) -> None:
    assert call("upscale", photos / "a.png", "-o", tmp_path / "x" / "big.webp", "-m", model, "--scale", "2").code == 0
    assert Image.open(tmp_path / "x" / "big.webp").size == (28, 20)


def test_finished_results_are_skipped_unless_told_otherwise(photos: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "a.png").write_bytes(b"mine")
    first = call("upscale", photos, "-o", out, "-m", model)
    assert "2 done, 1 skipped (1 of them not known to be as asked for), 0 failed" in first.err
    assert "a.png exists, but is no picture that can be read; skipped" in first.err
    assert (out / "a.png").read_bytes() == b"mine"
    before = tree(out)
    again = call("upscale", photos, "-o", out, "-m", model)
    assert "0 done, 3 skipped" in again.err
    assert tree(out) == before
    assert "3 done, 0 skipped" in call("upscale", photos, "-o", out, "-m", model, "--overwrite").err
    assert (out / "a.png").read_bytes() != b"mine"


def test_results_inside_the_source_folder_are_not_upscaled_again(photos: Path, model: Path) -> None:
    for expected in ("3 done, 0 skipped", "0 done, 3 skipped"):
        assert expected in call("upscale", photos, "-o", photos / "large", "-m", model).err


def test_one_bad_file_does_not_stop_the_folder(photos: Path, model: Path, tmp_path: Path) -> None:
    (photos / "aa.png").write_text("no picture")
    done = call("upscale", photos, "-o", tmp_path / "out", "-m", model, "--json", tmp_path / "report.json")
    assert done.code == 1
    assert results(tmp_path / "out") == ["a.png", "b.jpg", "sub/c.png"]
    assert len(done.errors) == 1
    assert "aa.png: expected an image" in done.errors[0]
    assert "3 done, 0 skipped, 1 failed" in done.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["status"] for entry in report["files"]] == ["done", "failed", "done", "done"]


def test_ctrl_c_keeps_finished_results(photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = batch.restore, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(batch, "restore", interrupted)
    done = call("upscale", photos, "-o", tmp_path / "out", "-m", model, "--json", tmp_path / "report.json")
    assert done.code == 130
    assert results(tmp_path / "out") == ["a.png"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["done"], report["complete"]) == (1, False)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_sigint_leaves_whole_files_only(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for index in range(60):
        write_image(source / f"{index:02}.png", picture(96, 96, name=str(index)))
    command = [sys.executable, "-m", "alignsr", "upscale", str(source), "-o", str(out), "-m", str(model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("[0-9]*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    finished = results(out)
    assert 0 < len(finished) < 60
    for name in finished:  # no temporary neighbours, and every file is a whole picture
        assert read_image(out / name).pixels.shape[-1] == 384


def test_out_of_memory_halves_the_tile_aloud_and_remembers(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.jpg"):
        write_image(photos / name, picture(20, 300, name=name))
    original, tiles = batch.restore, []

    def small_memory(*arguments: Any, **options: Any) -> Any:
        tiles.append(options["tile_px"])
        if not 0 < options["tile_px"] <= 64 and arguments[1].shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **options)

    monkeypatch.setattr(batch, "restore", small_memory)
    done = call("upscale", photos, "-o", tmp_path / "out", "-m", model)
    assert done.code == 0, done.err
    assert "out of memory with tiles of 256 px; trying again with 128 px" in done.err
    assert tiles == [0, 128, 64, 64, 64]


def test_any_color_fix_and_tile(photos: Path, model: Path, tmp_path: Path) -> None:
    options = ("--tile-px", "16", "--overlap-px", "4", "--precision", "bf16", "--device", "cpu")
    for fix in ("none", "wavelet", "adain"):
        assert call("upscale", photos, "-o", tmp_path / fix, "-m", model, "--color-fix", fix, *options).code == 0


def test_pixel_models_upscale_too(photos: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "pixel.safetensors", "pixel")
    assert (
        call("upscale", photos, "-o", tmp_path / "out", "-m", model, "--scale", "3", "--tile-px", "24", "--overlap-px", "8").code
        == 0
    )
    assert Image.open(tmp_path / "out" / "a.png").size == (42, 30)


def test_a_factor_that_was_not_trained_is_said_aloud_once(photos: Path, model: Path, tmp_path: Path) -> None:
    """Of flow models, above 4; also where nothing else is said."""
    pixel = save_tiny(tmp_path / "pixel.safetensors", "pixel")
    for name, weights, scale, times in (("over", pixel, "5", 1), ("at", pixel, "4", 0), ("network", model, "5", 0)):
        report = tmp_path / f"{name}.json"
        done = call("upscale", photos, "-o", tmp_path / name, "-m", weights, "--scale", scale, "--quiet", "--json", report)
        assert done.code == 0 and done.err.count("warning: --scale: scale 5 is above 4") == times
        assert ("warning" in json.loads(report.read_text(encoding="utf-8"))) == bool(times)


def test_one_pixel(model: Path, tmp_path: Path) -> None:
    source = write_image(tmp_path / "one.png", torch.full((1, 3, 1, 1), 0.25))
    assert call("upscale", source, "-o", tmp_path / "out", "-m", model).code == 0
    assert Image.open(tmp_path / "out" / "one.png").size == (4, 4)


# degrade


def test_degrade_repeats_and_tells_what_it_drew(photos: Path, tmp_path: Path) -> None:
    from alignsr.core.degradation import replay
    from alignsr.core.images import quantize_8bit

    for out in ("x", "y"):
        assert call("degrade", "--preset", "realesrgan", "--seed", "5", photos, "-o", tmp_path / out, "--scale", "2").code == 0
    assert tree(tmp_path / "x") == tree(tmp_path / "y")
    assert sorted(tree(tmp_path / "x")) == ["a.json", "a.png", "b.json", "b.png", "sub/c.json", "sub/c.png"]
    params = json.loads((tmp_path / "x" / "sub" / "c.json").read_text())
    assert params["seed"] == 7  # third file of the folder
    gt = read_image(photos / "sub" / "c.png").pixels
    assert torch.equal(quantize_8bit(replay(gt, [params]).lq), read_image(tmp_path / "x" / "sub" / "c.png").pixels)
    assert call("degrade", "--seed", "7", photos / "sub" / "c.png", "-o", tmp_path / "alone.png", "--scale", "2").code == 0
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "x" / "sub" / "c.png").read_bytes()


def test_degrade_refuses_two_sources_for_one_result(photos: Path, tmp_path: Path) -> None:
    write_image(photos / "a.jpg", picture(8, 8))
    done = call("degrade", photos, "-o", tmp_path / "out")
    assert done.code == 1
    assert "one source per result" in done.errors[0]
    assert not (tmp_path / "out").exists()


# evaluate


def test_evaluate_two_folders(photos: Path, tmp_path: Path) -> None:
    gt = make_pictures(tmp_path / "gt")
    files = {kind: tmp_path / f"scores.{kind}" for kind in ("json", "csv", "md")}
    done = call("evaluate", "--gt", gt, "--sr", gt, "--json", files["json"], "--csv", files["csv"], "--markdown", files["md"])
    assert done.code == 0, done.err
    report = json.loads(files["json"].read_text())
    assert report["mean"] == {"psnr_y": 80.0, "ssim_y": 1.0}
    assert files["csv"].read_text().splitlines()[0] == "name,psnr_y,ssim_y"
    assert files["md"].read_text().startswith("### gt\n\n| image |")
    assert "80.00" in done.out


def test_evaluate_a_model_against_bicubic(tmp_path: Path, model: Path) -> None:
    gt = make_pictures(tmp_path / "gt")
    assert call("degrade", "--preset", "bicubic", gt, "-o", tmp_path / "lq").code == 0
    means = {}
    for name in ("bicubic", str(model)):
        done = call(
            "evaluate",
            "--gt",
            gt,
            "--model",
            name,
            "--lq",
            tmp_path / "lq",
            "--metrics",
            "psnr_y,lr_psnr",
            "--crop",
            "6",
            "--json",
            "-",
        )
        assert done.code == 0, done.err
        report = json.loads(done.out)
        means[name] = report["mean"]
        assert report["crop"] == 6
        assert set(report["mean"]) == {"psnr_y", "lr_psnr"}
    assert means["bicubic"] != means[str(model)]


@pytest.mark.skipif(not (SHARED / "data" / "set5").is_dir(), reason="../shared/data/set5 is absent")
def test_evaluate_knows_the_published_figure_of_bicubic() -> None:
    data = SHARED / "data" / "set5"
    report = json.loads(call("evaluate", "--gt", data / "hr", "--model", "bicubic", "--lq", data / "lr_x4", "--json", "-").out)
    assert report["mean"]["psnr_y"] == pytest.approx(28.425, abs=0.015)
    assert report["mean"]["ssim_y"] == pytest.approx(0.810, abs=0.002)


def test_evaluate_wants_one_kind_of_results(tmp_path: Path) -> None:
    gt = make_pictures(tmp_path / "gt", 1)
    for arguments in ((), ("--sr", gt, "--model", "bicubic"), ("--model", "bicubic")):
        assert "either --sr DIR, or --model NAME with --lq DIR" in call("evaluate", "--gt", gt, *arguments).errors[0]


# run


def workflow(path: Path, **nodes: Any) -> Path:
    path.write_text(json.dumps({name.removeprefix("n"): node for name, node in nodes.items()}))
    return path


def test_run_a_workflow(photos: Path, tmp_path: Path) -> None:
    file = workflow(
        tmp_path / "wf.json",
        n1={"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        n2={"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    )
    done = call(
        "run", file, "--set", "2.filename_prefix=copy", "--input", photos, "--out", tmp_path / "out", "--json", "-", "--quiet"
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["files"] == [str(tmp_path / "out" / "copy_00001_.png")]
    assert Image.open(report["files"][0]).tobytes() == Image.open(photos / "a.png").tobytes()
    failed = call("run", file, "--set", "1.image=nothing.png", "--out", tmp_path / "out")
    assert failed.code == 1
    assert "node 1 (LoadImage), input 'image': " in failed.errors[0]


# train


def training(tmp_path: Path, steps: int = 4) -> list[str]:
    data = make_pictures(tmp_path / "data")
    sets = [f'data.folders=["{data.as_posix()}"]', f"run.steps={steps}", "run.checkpoint_every=100", "run.validate_every=0"]
    return ["train", "tiny-lite-x4", *(part for item in sets for part in ("--set", item))]


def test_train_writes_weights_that_upscale(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*training(tmp_path), "--json", "report.json")
    assert done.code == 0, done.err
    assert "step 4/4" in done.err
    report = json.loads(Path("report.json").read_text())
    folder = Path(report["folder"])
    assert folder.parent == Path("runs")
    assert folder.name.startswith("tiny-lite-x4-")
    assert report["step"] == 4
    assert call("upscale", photos / "a.png", "-o", tmp_path / "out", "-m", report["weights"]).code == 0
    again = call(*training(tmp_path))
    assert again.code == 1
    assert "--resume" in again.errors[0]


def test_ctrl_c_stops_training_within_a_step_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignsr.cli import jobs

    original: Callable[..., None] = jobs.TerminalHooks.progress

    def press(self: Any, step: int, total: int, logs: Any) -> None:
        original(self, step, total, logs)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(jobs.TerminalHooks, "progress", press)
    arguments, run = training(tmp_path), tmp_path / "run"
    stopped = call(*arguments, "--out", run)
    assert stopped.code == 130, stopped.err
    assert (run / "state-00000002.safetensors").is_file()
    assert "alignsr train tiny-lite-x4" in stopped.err
    assert f"--out {run} --resume" in stopped.err
    monkeypatch.setattr(jobs.TerminalHooks, "progress", original)
    resumed = call(*arguments, "--out", run, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming from" in resumed.err
    whole = tmp_path / "whole"
    assert call(*arguments, "--out", whole).code == 0
    both = [load_state_dict(folder / "tiny-lite-x4.safetensors") for folder in (run, whole)]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    done = call(*training(tmp_path, 1), "--out", tmp_path / "run", "--resume")
    assert done.code == 0, done.err
    assert "no checkpoint" in done.err


# demo


def test_demo(tmp_path: Path, model: Path) -> None:
    other = save_tiny(tmp_path / "pixel.safetensors", "pixel")
    source = write_image(tmp_path / "mine.png", picture(30, 40))
    done = call("demo", source, "-o", tmp_path / "out", "-m", model, "-m", other)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["output_size"] == [160, 120]
    assert [entry["model"] for entry in report["models"]] == ["tiny-x4", "pixel"]
    for entry in report["models"]:
        assert Image.open(tmp_path / "out" / entry["result"]).size == (160, 120)
    assert (tmp_path / "out" / report["side_by_side"]).is_file()


# models, nodes, bench


def test_models_are_listed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    monkeypatch.setenv("ALIGNSR_MODELS", str(folder))
    save_tiny(folder / "mine.safetensors", "pixel")
    (folder / "broken.safetensors").write_bytes(b"no weights")
    listed = json.loads(call("models", "list", "--json").out)
    found = {item["name"]: item for item in listed["models"]}
    assert found["mine.safetensors"]["backbone"] == "pixel"
    assert found["mine.safetensors"]["licence"] == "Apache-2.0"
    assert found["broken.safetensors"]["backbone"] == "damaged"
    assert "mine.safetensors" in call("models").out
    checked = json.loads(call("models", "check", "mine", "--json").out)
    assert checked["parameters"] == found["mine.safetensors"]["parameters"]
    assert len(checked["sha256"]) == 64
    assert call("models", "check", "broken").code == 1


def test_parts_of_large_models_are_listed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    monkeypatch.setenv("ALIGNSR_MODELS", str(folder))
    listed = json.loads(call("models", "list", "--json").out)
    assert not any(item["on_disk"] for item in listed["downloads"])
    adapter = one_step_adapter("z_image")
    adapter = replace(adapter, info={**adapter.info, "base": "tiny"})  # as training on the miniature says
    save_adapter(folder / "loras" / "StrSR-zimage.safetensors", adapter)
    for name in ("FLUX.2-klein-base-4B/transformer/x.safetensors", "FLUX.2-klein-base-4B/vae/x.safetensors"):
        save_weights(folder / "diffusers" / name, {"x": torch.zeros(1)})
    heads = CriticHeads((8, 8, 8, 8), 8)
    save_weights(folder / "critic.safetensors", heads.state_dict(), {"architecture": "critic_heads", "options": {}})
    listed = json.loads(call("models", "list", "--json").out)
    assert {str(folder / "loras"), str(folder / "diffusers")} <= set(listed["folders"])
    places = {item["name"]: item["on_disk"] for item in listed["downloads"] if item["on_disk"]}
    assert places == {
        "StrSR-zimage": str(folder / "loras" / "StrSR-zimage.safetensors"),
        "flux2-klein": str(folder / "diffusers" / "FLUX.2-klein-base-4B"),
    }
    rows = {line.split()[0]: line for line in call("models").out.splitlines() if line}
    assert "adapter of z_image" in rows["loras/StrSR-zimage.safetensors"] and "critic_heads" in rows["critic.safetensors"]
    assert rows["StrSR-zimage"].split()[1] == "yes" and rows["StrSR-flux"].split()[1] == "-"

    for name in ("StrSR-zimage", "loras/StrSR-zimage.safetensors", folder / "loras" / "StrSR-zimage.safetensors"):
        done = call("models", "check", name)
        assert done.code == 0 and "fits its tiny base model: every matrix is there" in done.out, done.err
        assert all(words in done.out for words in ("adapter", "z_image", "rank"))
    state = dict(adapter.state)
    state.popitem()
    save_adapter(folder / "loras" / "StrSR-zimage.safetensors", replace(adapter, state=state))
    broken = call("models", "check", "StrSR-zimage")
    assert broken.code == 1 and "the weights do not fit this network; missing: " in broken.err
    assert "the heads of StrSR's critic" in call("models", "check", "critic").out


def test_models_are_exported_for_comfyuis_own_loader(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignsr.core.compat import import_spandrel
    from alignsr.core.networks import build_network

    options = {"scale": 4, "features": 8, "growth": 32, "blocks": 1}
    torch.manual_seed(0)
    network = build_network("rrdb", options)
    source, target = tmp_path / "models" / "net.pth", tmp_path / "upscale_models" / "net.safetensors"
    source.parent.mkdir()
    torch.save({"params": {}, "params_ema": {f"module.{key}": value for key, value in network.state_dict().items()}}, source)
    monkeypatch.setenv("ALIGNSR_MODELS", str(source.parent))
    done = call("models", "export", "net.pth", "--to", target)
    assert (done.code, done.errors) == (0, []), done.err
    assert str(target) in done.err
    loaded = import_spandrel().ModelLoader(device="cpu").load_from_file(target).model.eval()
    lq = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(loaded(lq), network(lq), atol=1e-6)
    again = call("models", "export", "net.pth", "--to", target)
    assert again.code == 1
    assert "which exists; choose another name or pass --overwrite" in again.err
    assert call("models", "export", "net.pth", "--to", target, "--overwrite", "--quiet").err == ""
    for name, to, said in (
        (model, tmp_path / "x.safetensors", "expected a network of rrdb, swinir, drct, got a super-resolution network (lite)"),
        (source, tmp_path / "x.pth", "--to: expected a name ending in .safetensors"),
        ("gone.pth", tmp_path / "x.safetensors", "gone.pth"),
    ):
        refused = call("models", "export", name, "--to", to)
        assert (refused.code, len(refused.errors)) == (1, 1)
        assert said in refused.errors[0]
        assert not to.exists()


def test_nodes_are_described_as_object_info_would() -> None:
    from alignsr.nodes import NODE_CLASS_MAPPINGS

    described = json.loads(call("nodes", "--json").out)
    assert set(described) == set(NODE_CLASS_MAPPINGS)
    assert all({"input", "output", "category", "display_name"} <= set(item) for item in described.values())
    assert "AlignSRDegrade" in call("nodes").out


def test_bench_finds_the_scripts_of_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alignsr.cli import measure

    listed = call("bench", "--list").out
    files = {path.stem.replace("_", "-") for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(measure.BENCHMARKS) == files
    assert all(name in listed for name in files)
    (tmp_path / "upscale.py").write_text(
        "import json, sys; print('table'); open(sys.argv[-1], 'w').write(json.dumps(sys.argv[1:-1]))"
    )
    monkeypatch.setattr(measure, "BENCHMARK_FOLDER", tmp_path)
    assert json.loads(call("bench", "upscale", "--json", "-", "--quiet", "--", "--side", "8").out) == ["--side", "8", "--json"]
    absent = call("bench", "degradation")
    assert absent.code == 1
    assert "clone the repository" in absent.errors[0]
    assert "did you mean 'upscale'?" in call("bench", "upscal").errors[0]


def test_the_upscale_benchmark_measures(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    done = call(
        "bench", "upscale", "--json", report, "--quiet", "--", "--model", model, "--side", "16", "--rounds", "1", "--threads", "1"
    )
    assert done.code == 0, done.err
    rows = json.loads(report.read_text())["models"]
    assert set(rows) == {"bicubic", "tiny-x4"}
    assert all(row["megapixels_per_second"] > 0 for row in rows.values())
