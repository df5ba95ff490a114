"""The stand-ins for ComfyUI's own nodes, run by the runner."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_nodes import NODES, node

from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import Executor, WorkflowError, object_info, run_workflow
from alignsr.runner.builtins import BUILTIN_CLASSES, read_frames, save_pictures

CLASSES = NODES | BUILTIN_CLASSES
COPY = {"1": node("LoadImage", image="in.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="sub/out")}


def picture(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def test_load_and_save_round_trip_bit_for_bit_with_metadata_and_counters(tmp_path: Path) -> None:
    pixels = picture((6, 9, 3))
    Image.fromarray(pixels).save(tmp_path / "in.png")
    results = [
        run_workflow(COPY, out_dir=tmp_path / "o", input_dirs=[tmp_path], node_classes=CLASSES, progress=False) for _ in range(2)
    ]
    assert [result.files for result in results] == [[tmp_path / f"o/sub/out_0000{n}_.png"] for n in (1, 2)]
    assert results[0].outputs["2"]["images"] == [{"filename": "out_00001_.png", "subfolder": "sub", "type": "output"}]
    with Image.open(results[0].files[0]) as saved:
        assert np.array_equal(np.asarray(saved), pixels)
        assert json.loads(saved.info["prompt"]) == COPY
    assert sorted(path.name for path in (tmp_path / "o/sub").iterdir()) == ["out_00001_.png", "out_00002_.png"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_loads_as_rgb_with_mask(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    source = Image.fromarray(picture((5, 7, 4 if "A" in mode else 3))).convert(mode)
    source.save(path)
    image, mask = read_frames(path)
    expected = np.asarray(source.convert("RGB"), dtype=np.float32) / 255
    assert image.shape == (1, 5, 7, 3)
    assert image.dtype == torch.float32
    assert torch.equal(image[0], torch.from_numpy(expected))
    if "A" in mode:
        assert torch.allclose(mask[0], 1 - torch.from_numpy(np.asarray(source.getchannel("A"), dtype=np.float32) / 255))
    else:
        assert mask.shape == (1, 64, 64)
        assert not mask.any()


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = picture((5, 7), np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, _ = read_frames(tmp_path / "a.png")
    assert np.allclose(image[0, ..., 1].numpy() * 65535, pixels, atol=1e-2)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((4, 9, 3))).save(tmp_path / "a.png", exif=exif)
    assert read_frames(tmp_path / "a.png")[0].shape == (1, 9, 4, 3)


def test_every_frame_is_loaded(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture((4, 5, 3)) // (index + 1)) for index in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    image, mask = read_frames(tmp_path / "a.tif")
    assert image.shape == (3, 4, 5, 3)
    assert mask.shape == (3, 64, 64)
    assert torch.equal(image[2], torch.from_numpy(np.asarray(frames[2], dtype=np.float32) / 255))


def _png_with_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is text, not a picture", "no known picture format"),
        (b"", "no known picture format"),
        ("truncated", "damaged"),
        (_png_with_header(10000, 10001), "fewer than"),
        (_png_with_header(60000, 60000), "fewer than"),
    ],
)
def test_bad_picture_is_one_line_and_nothing_is_written(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    if content == "truncated":
        Image.fromarray(picture((64, 64, 3))).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(WorkflowError, match=words) as caught:
        run_workflow(COPY, out_dir=tmp_path / "o", input_dirs=[tmp_path], node_classes=CLASSES, progress=False)
    assert (caught.value.node_id, caught.value.input_name) == ("1", "image")
    assert not list((tmp_path / "o").iterdir())


def test_missing_picture_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"node 1 \(LoadImage\), input 'image': expected a file in"):
        run_workflow(COPY, out_dir=tmp_path / "o", input_dirs=[tmp_path], node_classes=CLASSES)


def test_a_changed_picture_is_loaded_again(tmp_path: Path) -> None:
    host = LocalHost(output_dir=tmp_path / "o", input_dirs=[tmp_path])
    graph = {"1": node("LoadImage", image="in.png"), "2": node("PreviewImage", images=["1", 0])}
    executor = Executor(CLASSES)
    with use_host(host):
        Image.fromarray(picture((4, 5, 3))).save(tmp_path / "in.png")
        assert executor.run(graph).executed == ["1", "2"]
        assert executor.run(graph).executed == []
        Image.fromarray(picture((4, 6, 3))).save(tmp_path / "in.png")
        result = executor.run(graph)
    assert result.executed == ["1", "2"]
    assert result.files == []  # previews are no results
    assert (host.temp_dir() / result.outputs["2"]["images"][0]["filename"]).is_file()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 4, 4, 3), float("nan")), "finite"),
        (torch.zeros(1, 4, 4, 2), "C = 1, 3 or 4"),
        (torch.zeros(1, 4, 4, 5), "C = 1, 3 or 4"),
        (torch.zeros(1, 0, 4, 3), "C = 1, 3 or 4"),
        (torch.zeros(4, 4, 3), "C = 1, 3 or 4"),
    ],
)
def test_bad_tensors_are_not_saved(images: torch.Tensor, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        save_pictures(images, "x", tmp_path, "output", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_saved_modes_and_rounding(channels: int, mode: str, tmp_path: Path) -> None:
    images = torch.full((2, 3, 4, channels), 0.5)  # 127.5 rounds to even: 128; cutting off would give 127
    entries = save_pictures(images, "a%batch_num%_%width%x%height%", tmp_path, "output", {})
    assert [entry["filename"] for entry in entries] == ["a0_4x3_00001_.png", "a1_4x3_00002_.png"]
    with Image.open(tmp_path / entries[0]["filename"]) as saved:
        assert saved.mode == mode
        assert saved.getpixel((0, 0)) in (128, (128,) * channels)


@pytest.mark.parametrize("prefix", ["../x", "/etc/x", "", "a/"])
def test_prefix_stays_in_the_folder(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="filename_prefix"):
        save_pictures(torch.zeros(1, 2, 2, 3), prefix, tmp_path / "o", "output", {})


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    Image.fromarray(picture((4, 5, 3))).save(tmp_path / "in.png")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WorkflowError, match=r"node 2 \(SaveImage\).*No space left"):
        run_workflow(COPY, out_dir=tmp_path / "o", input_dirs=[tmp_path], node_classes=CLASSES, progress=False)
    assert not list((tmp_path / "o/sub").iterdir())


def test_primitives_and_preview_of_text(tmp_path: Path) -> None:
    graph = {
        "1": node("PrimitiveInt", value=5),
        "2": node("Make", number=["1", 0], mode="plain"),
        "3": node("PreviewAny", source=["2", 0]),
        "4": node("PrimitiveString", value="hello"),
        "5": node("PreviewAny", source=["4", 0]),
    }
    result = run_workflow(graph, out_dir=tmp_path, node_classes=CLASSES, progress=False)
    assert (result.outputs["3"], result.outputs["5"]) == ({"text": ["5"]}, {"text": ["hello"]})


def test_object_info() -> None:
    info = object_info(CLASSES, {"Make": "Make a number"})
    assert info["Make"]["display_name"] == "Make a number"
    assert info["Make"]["input_order"] == {"required": ["number", "mode"], "optional": ["text", "exact"]}
    assert info["Make"]["output_name"] == ["number", "image"]
    assert info["Split"]["output_is_list"] == [True]
    assert info["SaveImage"]["output_node"] is True
    json.dumps(info)
