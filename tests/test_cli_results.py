"""What the command line says about results that exist, where results go, and how it speaks where nobody watches."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import call, picture, results, save_tiny, tree
from PIL import Image

from alignsr.cli import terminal
from alignsr.cli.made import RECORD, Records, differences
from alignsr.core.image_files import write_image


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a picture and two models; no models of the user."""
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "no-models"))
    monkeypatch.chdir(tmp_path)
    write_image("a.png", picture(10, 14))
    save_tiny(Path("one.safetensors"))
    save_tiny(Path("two.safetensors"), "pixel")
    return tmp_path


def upscale(*options: object, model: str = "one.safetensors", **more: Any) -> Any:
    return call("upscale", "a.png", "-o", "out", "-m", model, *options)


# results that exist


def test_the_same_again_is_skipped_without_a_doubt() -> None:
    assert upscale().code == 0
    again = upscale()
    assert again.code == 0
    assert again.err.splitlines()[-2:] == [
        f"{Path('out/a.png')} exists, skipped",
        "0 done, 1 skipped, 0 failed; --overwrite redoes them",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 2}, "made with scale 4, not 2"),
        ({"model": "two.safetensors"}, "made with model one, not two"),
        ({"color-fix": "wavelet"}, "made with color-fix none, not wavelet"),
        ({"scale": 2, "model": "two.safetensors"}, "made with model one, not two; scale 4, not 2"),
    ],
)
def test_a_result_of_other_settings_is_skipped_aloud(options: dict[str, Any], said: str) -> None:
    assert upscale().code == 0
    before = tree(Path("out"))
    chosen = {"model": "one.safetensors", **options}
    model = chosen.pop("model")
    flags = [part for key, value in chosen.items() for part in (f"--{key}", value)]
    done = upscale(*flags, "--json", "report.json", model=model)
    assert done.code == 0
    assert f"a.png exists, {said}; skipped" in done.err
    assert "1 skipped (1 of them not known to be as asked for)" in done.err
    assert json.loads(Path("report.json").read_text())["files"][0]["note"] == said
    assert tree(Path("out")) == before
    assert upscale(*flags, "--overwrite", model=model).code == 0
    assert f"{Path('out/a.png')} exists, skipped" in upscale(*flags, model=model).err.splitlines()


def test_other_weights_of_the_same_name_are_told() -> None:
    assert upscale().code == 0
    save_tiny(Path("one.safetensors"), licence="another file")
    assert "exists, made with another version of the weights; skipped" in upscale().err


@pytest.mark.parametrize(
    ("size", "said"),
    [((56, 40), "with no record of what made it"), ((28, 20), "with 28x20 px, not 56x40 px")],
)
def test_a_result_without_a_record_is_judged_by_its_size(size: tuple[int, int], said: str) -> None:
    Path("out").mkdir()
    Image.new("RGB", size).save("out/a.png")
    assert f"a.png exists, {said}; skipped" in upscale().err


def test_a_result_that_was_changed_since_has_no_record() -> None:
    assert upscale().code == 0
    Image.new("RGB", (56, 40)).save("out/a.png")
    assert "with no record of what made it" in upscale("--scale", "4").err


def test_a_record_that_was_cut_off_says_nothing_and_stops_nothing() -> None:
    assert upscale().code == 0
    record = Path("out", RECORD)
    record.write_text(record.read_text()[:20])
    assert "with no record of what made it" in upscale().err
    assert Records().of(Path("out/a.png")) is None


def test_differences_leave_out_what_follows_from_another_model() -> None:
    made = {"model": "a", "weights": "1", "scale": 4}
    assert differences(made, made) == ""
    assert differences(made, {"model": "b", "weights": "2", "scale": 4}) == "made with model a, not b"


@pytest.mark.parametrize(
    "options",
    [
        ("--tile-px", "8"),
        ("--tile-px", "32", "--overlap-px", "32"),
        ("--color-fix", "wavelt"),
        ("--precision", "fp8"),
        ("--device", "gpu9"),
        ("-m", "no-such-model"),
        ("-m", "damaged.safetensors"),
    ],
)
def test_options_are_checked_although_everything_is_there(options: tuple[str, ...]) -> None:
    assert upscale().code == 0
    Path("damaged.safetensors").write_bytes(b"no weights")
    done = upscale(*options)
    assert done.code == 1
    assert len(done.errors) == 1
    assert "skipped" not in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "3"), "made with seed 0, not 3"),
        (("--preset", "bicubic"), "made with preset realesrgan, not bicubic"),
        (("--scale", "2"), "made with scale 4.0, not 2.0"),
        (("--jpeg", "diffjpeg"), "made with jpeg codec, not diffjpeg"),
    ],
)
def test_a_degraded_picture_of_other_settings_is_skipped_aloud(options: tuple[str, str], said: str) -> None:
    assert call("degrade", "a.png", "-o", "lq").code == 0
    assert f"a.png exists, {said}; skipped" in call("degrade", "a.png", "-o", "lq", *options).err
    assert "a.png exists, skipped" in call("degrade", "a.png", "-o", "lq").err
    Path("lq/a.json").unlink()
    assert "without a JSON file that says how it was made" in call("degrade", "a.png", "-o", "lq").err
    refused = call("degrade", "a.png", "-o", "lq", "--jpeg", "codce")
    assert refused.code == 1
    assert "jpeg: expected one of" in refused.errors[0]


# where results go


def test_a_slash_or_an_existing_folder_makes_a_folder_of_any_name() -> None:
    for out, command in (("w.xyz/", "upscale"), ("x.png/", "degrade")):
        model = ("-m", "one.safetensors") if command == "upscale" else ()
        assert call(command, "a.png", "-o", out, *model).code == 0
        assert "a.png" in results(Path(out))
    Path("v1.5").mkdir()
    assert call("upscale", "a.png", "-o", "v1.5", "-m", "one.safetensors").code == 0
    assert results(Path("v1.5")) == ["a.png"]


def test_a_source_whose_type_cannot_be_written_is_refused_before_the_work() -> None:
    Image.new("RGB", (4, 4)).save("b.gif")
    done = call("upscale", "b.gif", "-o", "out", "-m", "one.safetensors")
    assert done.code == 1
    assert "b.gif: expected a picture (.png" in done.errors[0]
    assert call("upscale", "b.gif", "-o", "out/b.png", "-m", "one.safetensors").code == 0


# small tiles


def test_small_tiles_are_warned_of() -> None:
    done = upscale("--tile-px", "32")
    assert done.code == 0
    assert "warning: tiles of 32 px take longer" in done.err
    assert "warning" not in upscale("--tile-px", "64", "--overwrite").err


# where nobody watches


def test_a_long_job_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
    assert "100% done, at a.png" in upscale().err
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 1000.0)
    assert "%" not in upscale("--overwrite").err
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
    assert upscale("--overwrite", "--quiet").err == ""


def test_what_a_workflow_only_shows_is_printed_and_kept_on_request() -> None:
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "My (first) view"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}, "_meta": {"title": "Mask"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    Path("wf.json").write_text(json.dumps(nodes))
    done = call("run", "wf.json", "--out", "out")
    assert done.code == 0
    assert "previews not kept: My (first) view; --previews saves them in previews/" in done.err.splitlines()
    assert any(line.startswith("Mask:") for line in done.err.splitlines())
    assert not Path("out/previews").exists()
    for number in (1, 2):
        kept = call("run", "wf.json", "--out", "out", "--previews", "--json", "-")
        assert "not kept" not in kept.err
        files = json.loads(kept.out)["files"]
        assert files == [str(Path(f"out/x_{number + 1:05}_.png")), str(Path(f"out/previews/my-first-view_{number:05}_.png"))]
        assert Image.open(files[1]).size == Image.open("a.png").size
    assert call("run", "wf.json", "--out", "out", "--quiet").err == ""


def test_long_texts_are_cut_and_empty_ones_left_out() -> None:
    from alignsr.cli.shown import MAX_LINES, texts

    long = "\n".join(map(str, range(MAX_LINES + 5)))
    shown = texts({"1": {"text": [long]}, "2": {"text": [""]}, "3": {"text": ["one line"]}}, {"1": "Log", "3": "Weights"})
    assert shown[1:] == ["Weights: one line"]
    assert shown[0].splitlines()[0] == "Log:"
    assert shown[0].splitlines()[-1] == "... 5 more lines; --json FILE holds them"
    assert len(shown[0].splitlines()) == MAX_LINES + 2


def test_a_workflow_names_its_nodes_where_stderr_is_no_terminal() -> None:
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "My photo"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    Path("wf.json").write_text(json.dumps(nodes))
    done = call("run", "wf.json", "--out", "out")
    assert done.code == 0
    assert done.err.splitlines()[:2] == ["[1/2] 1 My photo", "[2/2] 2 SaveImage"]
