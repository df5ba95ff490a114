"""Bad input, row by row: one clear message, exit code 1 or the node's error, no traceback, nothing half-written."""

import errno
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import LITE, Outcome, call, picture, results, save_tiny, tree, unchanged
from PIL import Image
from strsr_helpers import one_step_adapter, projector_for, write_adapters
from train_helpers import make_pictures

from alignsr.core.image_files import write_image
from alignsr.core.lora_files import save_adapter
from alignsr.core.restore import restore
from alignsr.core.weights import save_weights
from alignsr.nodes import NODE_CLASS_MAPPINGS
from alignsr.nodes.models import load_model
from paths import ROOT

Arguments = list[object]


@dataclass(frozen=True)
class Place:
    """A folder with a good picture, a good model and a good workflow to spoil."""

    folder: Path

    @property
    def good(self) -> Path:
        return self.folder / "good.png"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def upscale(self, source: Path, *more: object, model: Path | str | None = None) -> Arguments:
        return ["upscale", source, "-o", self.out, "-m", model or self.model, *more]

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def run(self, **changes: Any) -> Arguments:
        """A workflow that loads, degrades, restores and saves; `n2__scale=0` changes input scale of node 2."""
        nodes: dict[str, Any] = {
            "1": {"class_type": "LoadImage", "inputs": {"image": str(self.good)}},
            "2": {
                "class_type": "AlignSRDegrade",
                "inputs": {"image": ["1", 0], "preset": "realesrgan", "seed": 1, "scale": 2, "jpeg": "codec"},
            },
            "3": {
                "class_type": "AlignSRLoadSRModel",
                "inputs": {"model_name": "model.safetensors", "precision": "fp32", "device": "cpu"},
            },
            "4": {
                "class_type": "AlignSROneStepSR",
                "inputs": {"model": ["3", 0], "image": ["2", 0], "scale": 4, "color_fix": "none", "tile_px": 0, "overlap_px": -1},
            },
            "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "sr"}},
        }
        for place, value in changes.items():
            node, _, name = place.removeprefix("n").partition("__")
            if name == "class":
                nodes[node]["class_type"] = value
            elif value is None:
                del nodes[node]["inputs"][name]
            else:
                nodes[node]["inputs"][name] = value
        return ["run", self.write("workflow.json", json.dumps(nodes)), "--out", self.out]

    def train(self, text: str = "", *sets: str) -> Arguments:
        data = (self.folder / "data").as_posix()
        config = self.write("config.toml", text or f'recipe = "fidelity"\n[data]\nfolders = ["{data}"]\ngt_patch_px = 32\n')
        return ["train", config, "--out", self.out, *(part for item in sets for part in ("--set", item))]

    def aesop(self, *sets: str) -> Arguments:
        """Train against the AESOP losses on the pictures in data/, without VGG19, whose random weights take a second."""
        items = (f'data.folders=["{(self.folder / "data").as_posix()}"]', "losses.perceptual.weight=0", *sets)
        return ["train", "tiny-aesop-rrdb-128", "--out", self.out, *(part for item in items for part in ("--set", item))]

    def one_step(self, *sets: str, stage: int = 1) -> Arguments:
        """One step of StrSR's training on the pictures in data/, without LPIPS, whose random weights take a second."""
        data = f'data.folders=["{(self.folder / "data").as_posix()}"]'
        items = (data, "losses.lpips.weight=0", "data.workers=0", "data.pair_pool=0", *sets)
        config = f"tiny-strsr-flux2-klein-stage{stage}"
        return ["train", config, "--out", self.out, *(part for item in items for part in ("--set", item))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    here = Place(tmp_path)
    write_image(here.good, picture(24, 20))
    save_tiny(here.model)
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path))
    return here


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff_with_nan(place: Place, folder: str = ".") -> Path:
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 4] = np.nan
    path = place.folder / folder / "nan.tif"
    Image.fromarray(values).save(path)
    return path


class RunsCode:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


def pickled(place: Place) -> Path:
    path = place.folder / "code.pth"
    torch.save({"weight": RunsCode(place.folder / "code-was-run")}, path)
    return path


def wrong_shapes(place: Place) -> Path:
    info = {"backbone": "network", "architecture": "lite", "options": LITE}
    return save_weights(place.folder / "wrong.safetensors", {"head.weight": torch.zeros(3, 3)}, info)


def header(place: Place, **info: Any) -> Path:
    return save_weights(place.folder / "header.safetensors", {"x": torch.zeros(1)}, info)


def strsr(place: Place, **sets: str) -> Arguments:
    """The StrSR workflow on FLUX.2 klein with random miniatures: adapters of both backbones lie in the model folder."""
    write_adapters(place.folder)
    sets = {"n1__image": str(place.good), "n2__model_name": "tiny", "n5__vlm_name": "tiny", **sets}
    changes = [f"{key.removeprefix('n').replace('__', '.')}={value}" for key, value in sets.items()]
    workflow = ROOT / "workflows" / "api" / "upscale-with-strsr-flux.json"
    return ["run", workflow, "--out", place.out, *(part for item in changes for part in ("--set", item))]


def spoiled(place: Place, **changes: Any) -> Arguments:
    """The same with an adapter that has other facts, another projector, or a NaN in its last matrix."""
    arguments, good = strsr(place, n3__lora_name="spoiled.safetensors"), one_step_adapter("flux2_klein")
    save_adapter(place.folder / "loras" / "spoiled.safetensors", replace(good, **changes))
    return arguments


def with_nan() -> dict[str, torch.Tensor]:
    state = dict(one_step_adapter("flux2_klein").state)
    *_, last = state
    return state | {last: state[last] * float("nan")}


def cut_adapter(place: Place) -> Arguments:
    arguments = strsr(place)
    path = place.folder / "loras" / "StrSR-flux.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return arguments


def thin(place: Place) -> Path:
    return write_image(place.folder / "thin.png", torch.full((1, 3, 1, 280), 0.5))


def adapter_as_model(place: Place) -> Arguments:
    write_adapters(place.folder)
    return place.upscale(place.good, model=place.folder / "loras" / "StrSR-flux.safetensors")


def cut_transformer(place: Place) -> Arguments:
    place.write("diffusion_models/cut.safetensors", place.model.read_bytes()[:3000])
    place.write("vae/flux2-vae.safetensors", place.model.read_bytes())
    return strsr(place, n2__model_name="cut.safetensors")


def started_from(place: Place, name: str, *sets: str) -> Arguments:
    """Training that starts from one of the two adapters."""
    write_adapters(place.folder)
    return place.one_step(f'model.init="{(place.folder / "loras" / name).as_posix()}.safetensors"', *sets)


def graph_of_training(place: Place, **sets: str) -> Arguments:
    """The template of StrSR's training with one thing spoiled."""
    changes = [f"{key.removeprefix('n').replace('__', '.')}={value}" for key, value in sets.items()]
    workflow = ROOT / "workflows" / "api" / "train-strsr.json"
    return [
        "run",
        workflow,
        "--out",
        place.out,
        *(part for item in (f"9.image={place.good}", *changes) for part in ("--set", item)),
    ]


LOAD, SR = "node 3 (AlignSRLoadSRModel)", "node 4 (AlignSROneStepSR)"

MERGE = "node 4 (AlignSRMergeLoRA)"
ROWS: dict[str, tuple[Callable[[Place], Arguments], str]] = {
    # pictures
    "text as image": (lambda p: p.upscale(p.write("text.png", "hello")), "text.png: expected an image"),
    "text as image, degrade": (lambda p: ["degrade", p.write("text.png", "hello"), "-o", p.out], "text.png: expected an image"),
    "text as image, evaluate": (
        lambda p: ["evaluate", "--gt", p.write("bad/a.png", "x").parent, "--sr", p.folder / "bad", "--json", p.folder / "r.json"],
        "a.png: expected an image",
    ),
    "text as image, run": (
        lambda p: p.run(n1__image=str(p.write("text.png", "hello"))),
        "node 1 (LoadImage), input 'image': expected",
    ),
    "text as image, demo": (
        lambda p: ["demo", p.write("text.png", "hello"), "-o", p.out, "-m", p.model],
        "text.png: expected an image",
    ),
    "truncated PNG": (lambda p: p.upscale(p.write("cut.png", p.good.read_bytes()[:200])), "cut.png: expected a whole image"),
    "truncated PNG, run": (
        lambda p: p.run(n1__image=str(p.write("cut.png", p.good.read_bytes()[:200]))),
        "node 1 (LoadImage), input 'image': expected a whole picture",
    ),
    **{
        f"{what}, {command}": (lambda p, a=arguments, n=name, d=data: a(p, p.write(n, d(p))), f"{name}: expected {expected}")
        for what, name, data, expected in (
            ("truncated PNG", "cut.png", lambda p: p.good.read_bytes()[:200], "a whole image"),
            ("zero-byte file", "empty.png", lambda _: b"", "an image, got an empty file"),
        )
        for command, arguments in (
            ("degrade", lambda p, path: ["degrade", path, "-o", p.out]),
            ("demo", lambda p, path: ["demo", path, "-o", p.out, "-m", p.model]),
        )
    },
    "truncated PNG, evaluate": (
        lambda p: [
            *("evaluate", "--gt", p.write("bad/a.png", p.good.read_bytes()[:200]).parent, "--sr", p.folder / "bad"),
            *("--json", p.folder / "r.json"),
        ],
        "a.png: expected a whole image",
    ),
    "empty name of a picture": (lambda p: p.upscale(""), "expected a path, got an empty text"),
    "empty name of a picture, degrade": (lambda p: ["degrade", "", "-o", p.out], "expected a path, got an empty text"),
    "zero-byte file": (lambda p: p.upscale(p.write("empty.png", b"")), "empty.png: expected an image, got an empty file"),
    "0x0 picture": (lambda p: p.upscale(p.write("none.png", png(0, 0))), "none.png: expected"),
    "0-wide picture": (lambda p: p.upscale(p.write("thin.png", png(0, 5))), "thin.png: expected"),
    "NaN pixels": (lambda p: p.upscale(tiff_with_nan(p)), "expected finite values, got 3 NaN"),
    "NaN pixels, degrade": (lambda p: ["degrade", tiff_with_nan(p), "-o", p.out], "expected finite values, got"),
    "NaN pixels, evaluate": (
        lambda p: ["evaluate", "--gt", p.folder / "bad", "--sr", tiff_with_nan(p, "bad").parent],
        "expected finite values, got",
    ),
    "100-megapixel header": (lambda p: p.upscale(p.write("bomb.png", png(10000, 10000))), "expected fewer than 100000000 pixels"),
    "1-gigapixel header": (lambda p: p.upscale(p.write("bomb.png", png(40000, 40000))), "expected fewer than 100000000 pixels"),
    "100-megapixel header, run": (
        lambda p: p.run(n1__image=str(p.write("bomb.png", png(10000, 10000)))),
        "expected fewer than 100000000 pixels",
    ),
    "no such picture": (lambda p: p.upscale(p.folder / "nothing.png"), "nothing.png: expected an image file or a folder"),
    "folder without pictures": (lambda p: p.upscale(p.write("bare/x.txt", "x").parent), "bare: expected images"),
    "result over its source": (
        lambda p: ["upscale", p.good, "-o", p.folder, "-m", p.model],
        "expected a result apart from its source",
    ),
    # numbers and names
    "unknown preset": (
        lambda p: ["degrade", "--preset", "realesrgn", p.good, "-o", p.out],
        "got 'realesrgn'; did you mean 'realesrgan'?",
    ),
    "unknown preset, run": (lambda p: p.run(n2__preset="realesrgn"), "node 2 (AlignSRDegrade), input 'preset': expected one of"),
    "unknown preset, train": (lambda p: p.train("", 'data.degradation="realesrgn"'), "did you mean 'realesrgan'?"),
    **{
        f"scale {value}, {command}": (build, expected)
        for value in ("0", "3.5", "-1")
        for command, build, expected in (
            ("upscale", lambda p, v=value: p.upscale(p.good, "--scale", v), "--scale: expected"),
            ("evaluate", lambda p, v=value: ["evaluate", "--gt", p.folder, "--sr", p.folder, "--scale", v], "scale: expected"),
            ("run", lambda p, v=value: [*p.run(), "--set", f"4.scale={v}"], f"{SR}, input 'scale': "),
        )
    },
    "scale 0, degrade": (
        lambda p: ["degrade", p.good, "-o", p.out, "--scale", "0"],
        "scale: expected a finite number >= 1, got 0",
    ),
    "scale -1, degrade": (
        lambda p: ["degrade", p.good, "-o", p.out, "--scale", "-1"],
        "scale: expected a finite number >= 1, got -1",
    ),
    "scale nan, degrade": (lambda p: ["degrade", p.good, "-o", p.out, "--scale", "nan"], "scale: expected a finite number >= 1"),
    "tile below 0": (lambda p: p.upscale(p.good, "--tile-px", "-8"), "--tile-px: expected an integer >= 0, got -8"),
    "overlap as large as the tile": (
        lambda p: p.upscale(p.good, "--tile-px", "32", "--overlap-px", "32"),
        "overlap_px: expected",
    ),
    "tile too small to be of use": (
        lambda p: p.upscale(p.good, "--tile-px", "15"),
        "--tile-px: expected 0 or at least 16, got 15; 0 takes the model's own",
    ),
    "tile too small to be of use, demo": (
        lambda p: ["demo", p.good, "-o", p.out, "-m", p.model, "--tile-px", "1"],
        "--tile-px: expected 0 or at least 16, got 1",
    ),
    "a word for a number": (lambda p: p.upscale(p.good, "--scale", "four"), "--scale: "),
    "unknown colour fix": (lambda p: p.upscale(p.good, "--color-fix", "wavelt"), "did you mean 'wavelet'?"),
    "unknown precision": (
        lambda p: p.upscale(p.good, "--precision", "fp8"),
        "--precision: expected one of fp32, bf16, fp16, got 'fp8'",
    ),
    "unknown device": (
        lambda p: p.upscale(p.good, "--device", "gpu9"),
        "--device: expected a device of this machine, got 'gpu9'",
    ),
    "unknown metric": (
        lambda p: ["evaluate", "--gt", p.folder, "--sr", p.folder, "--metrics", "psnr_z"],
        "got 'psnr_z'; did you mean 'psnr_y'?",
    ),
    # weights
    "missing weights": (
        lambda p: p.upscale(p.good, model="no-such-model"),
        "found no 'no-such-model'; put the weight file there",
    ),
    "missing weights, run": (
        lambda p: p.run(n3__model_name="gone.pth"),
        f"{LOAD}, input 'model_name': expected one of",
    ),
    "missing weights, evaluate": (
        lambda p: ["evaluate", "--gt", p.folder, "--model", "no-such-model", "--lq", p.folder],
        "found no 'no-such-model'",
    ),
    **{
        f"nearly the name of a model, {command}": (
            lambda p, arguments=arguments: [*arguments(p), "lite-X5"],
            "found no 'lite-X5'; did you mean 'lite-x4'?",
        )
        for command, arguments in (
            ("upscale", lambda p: ["upscale", p.good, "-o", p.out, "-m"]),
            ("demo", lambda p: ["demo", p.good, "-o", p.out, "-m"]),
            ("evaluate", lambda p: ["evaluate", "--gt", p.folder / "pictures", "--lq", p.folder / "pictures", "--model"]),
            ("check", lambda p: ["models", "check"]),
        )
    },
    "nearly the name of a model, run": (lambda p: p.run(n3__model_name="lite-x5"), "did you mean 'lite-x4'?"),
    "nearly the name of a model, train": (lambda p: p.train("", 'model.init="lite-x5"'), "did you mean 'lite-x4'?"),
    "nearly a file in the model folder": (
        lambda p: p.upscale(p.good, model="modle"),
        "found no 'modle'; did you mean 'model.safetensors'?",
    ),
    "nearly the path of a model": (
        lambda p: p.upscale(p.good, model=p.write("deep/weights.pth", "x").with_name("wieghts.pth")),
        "deep/weights.pth'? Otherwise",
    ),
    "a model that could be downloaded": (
        lambda p: p.upscale(p.good, model="realesr-general-x4v3"),
        "get it with `alignsr models download realesr-general-x4v3`",
    ),
    "a folder as model": (lambda p: p.upscale(p.good, model=p.folder / "pictures"), "expected a weight file, got the folder"),
    "wrong-shaped weights": (
        lambda p: p.upscale(p.good, model=wrong_shapes(p)),
        "the weights do not fit this network; missing: ",
    ),
    "wrong-shaped weights, run": (
        lambda p: p.run(n3__model_name=wrong_shapes(p).name),
        f"{LOAD}, input 'model_name': ",
    ),
    **{
        f"{what}, {command}": (lambda p, a=arguments, w=weights: a(p, w(p)), expected)
        for what, weights, expected in (
            (
                "truncated safetensors",
                lambda p: p.write("cut.safetensors", p.model.read_bytes()[:5000]),
                "cut.safetensors: expected",
            ),
            ("pickle that runs code", lambda p: pickled(p), "code.pth: expected a checkpoint of plain tensors"),
        )
        for command, arguments in (
            ("run", lambda p, path: p.run(n3__model_name=path.name)),
            (
                "evaluate",
                lambda p, path: ["evaluate", "--gt", p.folder / "pictures", "--lq", p.folder / "pictures", "--model", path],
            ),
            ("train", lambda p, path: p.train("", f'model.init="{path.as_posix()}"')),
            ("demo", lambda p, path: ["demo", p.good, "-o", p.out, "-m", path]),
        )
    },
    "truncated safetensors": (
        lambda p: p.upscale(p.good, model=p.write("cut.safetensors", p.model.read_bytes()[:5000])),
        "cut.safetensors: expected a safetensors file, got 5000 bytes",
    ),
    "text as safetensors": (lambda p: p.upscale(p.good, model=p.write("t.safetensors", "x" * 99)), "expected a safetensors file"),
    "empty safetensors": (lambda p: p.upscale(p.good, model=p.write("t.safetensors", b"")), "expected a safetensors file"),
    "pickle that runs code": (lambda p: p.upscale(p.good, model=pickled(p)), "code.pth: expected a checkpoint of plain tensors"),
    "bare pickle that runs code": (
        lambda p: p.upscale(p.good, model=p.write("bare.pth", pickle.dumps(RunsCode(p.folder / "code-was-run")))),
        "bare.pth: expected a checkpoint of plain tensors",
    ),
    "truncated pickle": (
        lambda p: p.upscale(p.good, model=p.write("cut.pth", pickled(p).read_bytes()[:100])),
        "cut.pth: expected a checkpoint of plain tensors",
    ),
    "weights of an unknown network": (
        lambda p: p.upscale(p.good, model=save_weights(p.folder / "odd.safetensors", {"odd.weight": torch.zeros(2)})),
        "odd.safetensors: expected a super-resolution network",
    ),
    "header with an unknown backbone": (
        lambda p: p.upscale(p.good, model=header(p, backbone="pixle")),
        "expected a known backbone in the header, got 'pixle'; did you mean 'pixel'?",
    ),
    "header without its options": (
        lambda p: p.upscale(p.good, model=header(p, backbone="network")),
        "header.safetensors: expected",
    ),
    "weights with NaN": (
        lambda p: p.upscale(p.good, model=nan_weights(p)),
        "produced NaN or infinity in the tile at row 0, column 0",
    ),
    "check of damaged weights": (
        lambda p: ["models", "check", p.write("cut.safetensors", p.model.read_bytes()[:5000])],
        "expected a safetensors file",
    ),
    # large one-step models
    "no transformer and no autoencoder, run": (
        lambda p: strsr(p, n2__model_name="auto"),
        "2 are missing. transformer: no flux-2-klein-base-4b.safetensors",
    ),
    "no language model, run": (
        lambda p: strsr(p, n5__vlm_name="auto"),
        "expected a folder Qwen3-VL-4B-Instruct with config.json",
    ),
    "adapter of the other backbone, run": (
        lambda p: strsr(p, n3__lora_name="StrSR-zimage"),
        f"{MERGE}, input 'lora': expected an adapter of flux2_klein, ",
    ),
    "truncated transformer, run": (cut_transformer, "cut.safetensors: expected a safetensors file, got 3000 bytes"),
    "adapter of another rank than it says, run": (
        lambda p: spoiled(p, info={**one_step_adapter("flux2_klein").info, "rank": 8}),
        "expected an adapter of rank 8, got matrices of rank 4",
    ),
    "projector of the other backbone, run": (
        lambda p: spoiled(p, projector=projector_for("z_image")),
        "expected an adapter to 48 channels, got 16",
    ),
    "adapter with NaN, run": (
        lambda p: spoiled(p, state=with_nan()),
        "produced NaN or infinity in step 1 of 1 (sigma 0.8), in the tile at row 0, column 0 of sample 0",
    ),
    "truncated adapter, run": (cut_adapter, "StrSR-flux.safetensors: expected a safetensors file, got"),
    "too thin a picture for the language model, run": (
        lambda p: strsr(p, n1__image=str(thin(p))),
        "expected sides within 1 : 200",
    ),
    "weights that are no adapter, run": (
        lambda p: strsr(p, n3__lora_name="model.safetensors"),
        "model.safetensors: expected pairs of",
    ),
    "weights that are no adapter, convert": (
        lambda p: ["models", "convert", p.model, "-o", p.out / "x.safetensors"],
        "model.safetensors: expected pairs of",
    ),
    # their training
    "no transformer and no autoencoder, train": (
        lambda p: p.one_step('model.source=""'),
        "2 are missing. transformer: no flux-2-klein-base-4b.safetensors",
    ),
    "no language model, train": (
        lambda p: p.one_step('conditioning.model=""'),
        "get it with `alignsr models download qwen3-vl`, which puts it into text_encoders/Qwen3-VL-4B-Instruct",
    ),
    "no language model, train, the setting's key": (
        lambda p: p.one_step('conditioning.model=""'),
        "conditioning.model: vision-language model: expected a folder Qwen3-VL-4B-Instruct with config.json",
    ),
    "the download's name for the language model, train": (
        lambda p: p.one_step('conditioning.model="qwen3-vl"'),
        "the folder's name is Qwen3-VL-4B-Instruct",
    ),
    "no result of stage 1, train": (
        lambda p: p.one_step('model.init="models/strsr-flux2-klein-stage1.safetensors"', stage=2),
        "model.init: expected stage 1's result to start from, a path or a file in ",
    ),
    "no text encoder, train": (
        lambda p: p.one_step('conditioning.kind="text"', 'conditioning.model=""'),
        "text encoder of FLUX.2 [klein] 4B: expected",
    ),
    "no critic, train": (
        lambda p: p.one_step('discriminator.features.weights=""'),
        "discriminator.features.weights: expected OpenCLIP's weights, the critic's backbone, a path or a file in ",
    ),
    "truncated critic, train": (
        lambda p: p.one_step(
            f'discriminator.features.weights="{p.write("clip.safetensors", p.model.read_bytes()[:3000]).as_posix()}"'
        ),
        "clip.safetensors: expected a safetensors file, got 3000 bytes",
    ),
    "another network as critic, train": (
        lambda p: p.one_step(
            f'discriminator.features.weights="{p.model.as_posix()}"', 'discriminator.features.architecture="convnext_base"'
        ),
        "model.safetensors: the weights do not fit this network; missing: head.proj.weight",
    ),
    "no heads of stage 1, train": (
        lambda p: p.one_step('discriminator.init="models/stage1-critic.safetensors"'),
        "discriminator.init: expected the critic's heads as stage 1 trained them, a path or a file in ",
    ),
    "heads of another critic, train": (
        lambda p: p.one_step(f'discriminator.init="{p.model.as_posix()}"'),
        "model.safetensors: the weights do not fit this network",
    ),
    "no LPIPS, train": (
        lambda p: p.one_step("losses.lpips.weight=3", 'losses.lpips.vgg="vgg16-397923af.pth"'),
        "losses.lpips.vgg: expected the weights of VGG16 on ImageNet, a path or a file in ",
    ),
    "no features for FDL, train": (
        lambda p: p.one_step('losses.fdl.features.weights=""', stage=2),
        "losses.fdl.features.weights: expected the weights of VGG19 on ImageNet, a path or a file in ",
    ),
    "adapter of the other backbone, train": (
        lambda p: started_from(p, "StrSR-zimage"),
        "lora: expected an adapter of flux2_klein, ",
    ),
    "adapter of another rank, train": (
        lambda p: started_from(p, "StrSR-flux", "lora.rank=8"),
        "StrSR-flux.safetensors: expected an adapter of rank 8, got matrices of rank 4",
    ),
    "weights that are no adapter, train": (
        lambda p: p.one_step(f'model.init="{p.model.as_posix()}"'),
        "model.safetensors: expected pairs of",
    ),
    "a run to go on from that is none, train": (
        lambda p: p.one_step(f'start_from="{(p.folder / "pictures").as_posix()}"'),
        "start_from: expected a run folder with checkpoints or a checkpoint, found none",
    ),
    "a checkpoint to go on from that is none, train": (
        lambda p: p.one_step(f'start_from="{p.model.as_posix()}"'),
        "config.json of a one-step run beside the checkpoint",
    ),
    "patch too small for the critic, train": (
        lambda p: p.one_step("data.gt_patch_px=64"),
        "data.gt_patch_px: expected at least 128, which the critic's features (clip) need, got 64",
    ),
    "patch too small for the FDL, train": (
        lambda p: p.one_step("data.gt_patch_px=64", 'discriminator.features.kind="network"', stage=2),
        "data.gt_patch_px: expected at least 80, which the features of losses.fdl need, got 64",
    ),
    "patch that is no multiple of 16, train": (
        lambda p: p.one_step("data.gt_patch_px=136"),
        "data.gt_patch_px: expected a multiple of what flux2_klein takes 16, got 136",
    ),
    "the other trainer's game, train": (
        lambda p: p.one_step("losses.adversarial.weight=0.1"),
        "losses.adversarial: expected off in one_step_distill, got it on; use losses.ragan",
    ),
    "StrSR's game in the other trainer": (
        lambda p: p.aesop("losses.ragan.weight=0.1"),
        "losses.ragan: expected off in perceptual_gan, got it on; use losses.adversarial",
    ),
    "no critic, run": (
        lambda p: graph_of_training(p),
        "node 1 (AlignSRLoadDiscriminator), input 'model_name': expected OpenCLIP's weights",
    ),
    "truncated critic, run": (
        lambda p: graph_of_training(p, n1__model_name=p.write("alignsr/cut.safetensors", p.model.read_bytes()[:3000]).name),
        "cut.safetensors: expected a safetensors file, got 3000 bytes",
    ),
    "no training pictures, run": (
        lambda p: graph_of_training(p, n1__features="network"),
        "node 6 (AlignSROneStepTrainer), input 'data_folder': expected",
    ),
    "an adapter as model": (adapter_as_model, "expected a whole model, got an adapter of flux2_klein"),
    "an adapter as model, what to do": (adapter_as_model, "by `alignsr run workflows/upscale-with-strsr-flux.json`, where Load"),
    "the name of an adapter on disk as model": (
        lambda p: p.upscale(p.good, model=adapter_as_model(p) and "StrSR-zimage"),
        "`alignsr run workflows/upscale-with-strsr-z.json` upscales with both",
    ),
    "the name of an absent adapter, check": (
        lambda p: ["models", "check", "StrSR-flux"],
        "get it with `alignsr models download StrSR-flux`",
    ),
    "a folder of pictures that is missing, before the base model": (
        lambda p: ["train", "strsr-flux2-klein-stage1", "--set", 'data.folders=["nofolder"]', "--out", p.out],
        "data.folders: expected a folder of images at nofolder, found none",
    ),
    "nearly the name of a tiny config": (
        lambda p: ["train", "tiny-strsr-flux2-klein-stage"],
        "did you mean 'tiny-strsr-flux2-klein-stage1'?",
    ),
    "an adapter that lies elsewhere, run": (
        lambda p: strsr(p, n3__lora_name="runs/t2/x.safetensors"),
        "/loras, under its name in there",
    ),
    "a training folder that is missing, run": (
        lambda p: graph_of_training(p, n1__features="network", n6__data_folder="strsr-pictures"),
        "input 'data_folder': expected a folder in ",
    ),
    "a picture, check": (lambda p: ["models", "check", p.good], "expected a weight file (.safetensors, .pth"),
    # outputs
    "a file in place of the output folder": (
        lambda p: ["upscale", p.folder / "pictures", "-o", p.write("out", "x"), "-m", p.model],
        "out, which is a file",
    ),
    "a file above the output folder": (
        lambda p: ["degrade", p.good, "-o", p.write("out", "x") / "deeper" / "still"],
        "expected a folder to write into",
    ),
    "a file in place of the run folder": (
        lambda p: [*p.train()[:2], "--out", p.write("out", "x")],
        "expected a folder to write into",
    ),
    "a file in place of the workflow's folder": (lambda p: [*p.run()[:2], "--out", p.write("out", "x")], "expected a folder"),
    "a file in place of the demo's folder": (
        lambda p: ["demo", p.good, "-m", p.model, "-o", p.write("out", "x")],
        "expected a folder",
    ),
    "folder as picture, demo": (
        lambda p: ["demo", p.folder / "pictures", "-o", p.out, "-m", p.model],
        "pictures: expected an image file, got a folder",
    ),
    "unknown suffix of a named result": (
        lambda p: ["upscale", p.good, "-o", p.folder / "w.xyz", "-m", p.model],
        "out: expected a folder or a name ending in .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, got",
    ),
    "unknown suffix of a named result, degrade": (
        lambda p: ["degrade", p.good, "-o", p.folder / "w.xyz"],
        "out: expected a folder or a name ending in .png",
    ),
    "JPEG as degraded result": (
        lambda p: ["degrade", p.good, "-o", p.folder / "x.jpg"],
        "--out: expected a name ending in .png, got",
    ),
    "picture name for the results of a folder": (
        lambda p: ["upscale", p.folder / "pictures", "-o", p.folder / "x.png", "-m", p.model],
        "out: expected a folder for the results of a folder",
    ),
    **{
        f"picture name for the folder of results, {command}": (build, "--out: expected a folder, got the picture name")
        for command, build in (
            ("demo", lambda p: ["demo", p.good, "-m", p.model, "-o", p.folder / "x.png"]),
            ("run", lambda p: [*p.run()[:2], "--out", p.folder / "x.png"]),
            ("train", lambda p: [*p.train()[:2], "--out", p.folder / "x.png"]),
        )
    },
    "unknown suffix of a result": (lambda p: ["upscale", p.write("a.gif", b"x"), "-o", p.out, "-m", p.model], "a.gif: expected"),
    **{
        f"a file in place of the report's folder, {command}": (
            lambda p, a=arguments: [*a(p), "--json", p.write("file", "x") / "report.json"],
            "which is a file; choose another output",
        )
        for command, arguments in (
            ("upscale", lambda p: p.upscale(p.good)),
            ("degrade", lambda p: ["degrade", p.good, "-o", p.out]),
            ("evaluate", lambda p: ["evaluate", "--gt", p.folder / "pictures", "--sr", p.folder / "pictures"]),
            ("run", lambda p: p.run()),
            ("train", lambda p: p.train()),
            ("bench", lambda _: ["bench", "tiling"]),
        )
    },
    "a folder in place of the report": (
        lambda p: [*p.upscale(p.good), "--json", p.folder / "pictures"],
        "pictures: expected the name of a file, got a folder",
    ),
    "alpha into JPEG": (
        lambda p: ["upscale", write_image(p.folder / "rgba.png", picture(8, 8, 4)), "-o", p.folder / "x.jpg", "-m", p.model],
        "expected a format with transparency",
    ),
    # workflows
    "cycle in the graph": (lambda p: p.run(n2__image=["4", 0]), "expected a graph without cycles, got 4 -> 2 -> 4"),
    "link to nowhere": (lambda p: p.run(n4__image=["9", 0]), f"{SR}, input 'image': expected a link"),
    "link to no such output": (
        lambda p: p.run(n4__image=["2", 7]),
        f"{SR}, input 'image': expected an output",
    ),
    "missing link": (lambda p: p.run(n4__image=None), f"{SR}, input 'image': expected a value"),
    "link of the wrong type": (
        lambda p: p.run(n4__image=["3", 0]),
        f"{SR}, input 'image': expected type IMAGE",
    ),
    "value of the wrong type": (
        lambda p: p.run(n4__scale="four"),
        f"{SR}, input 'scale': expected a whole number",
    ),
    "unknown node": (lambda p: p.run(n2__class="AlignSRDegrad"), "did you mean 'AlignSRDegrade'?"),
    "unknown node in --set": (lambda p: [*p.run(), "--set", "7.scale=2"], "got '7'"),
    "unknown input in --set": (lambda p: [*p.run(), "--set", "4.scal=2"], "did you mean 'scale'?"),
    "--set without a value": (lambda p: [*p.run(), "--set", "4.scale"], "--set"),
    "not JSON": (
        lambda p: ["run", p.write("w.json", "{,}"), "--out", p.out],
        "w.json: not a workflow: expected JSON, got something else (Expecting property name",
    ),
    "TOML as workflow": (
        lambda p: ["run", p.write("c.toml", 'recipe = "fidelity"'), "--out", p.out],
        "c.toml: not a workflow: expected JSON, got a TOML file; give it to `alignsr train`",
    ),
    "Markdown as workflow": (
        lambda p: ["run", p.write("n.md", "# Notes"), "--out", p.out],
        "n.md: not a workflow: expected JSON, got a Markdown file",
    ),
    "picture as workflow": (
        lambda p: ["run", p.good, "--out", p.out],
        "good.png: not a workflow: expected JSON, got a picture",
    ),
    "folder as workflow": (
        lambda p: ["run", p.folder / "pictures", "--out", p.out],
        "pictures: not a workflow: expected a JSON file, got a folder",
    ),
    "JSON that is no workflow": (
        lambda p: ["run", p.write("w.json", "[1, 2]"), "--out", p.out],
        "w.json: expected a JSON object",
    ),
    "JSON object that is no workflow": (
        lambda p: ["run", p.write("w.json", '{"a": 1}'), "--out", p.out],
        "node a: expected a node",
    ),
    "no such workflow": (
        lambda p: ["run", p.folder / "none.json", "--out", p.out],
        "none.json: expected a readable workflow file",
    ),
    # configs
    "unknown TOML key": (
        lambda p: p.train('recipe = "fidelity"\n[run]\nstep = 5\n'),
        "run.step: unknown key; did you mean 'steps'?",
    ),
    "unknown TOML table": (
        lambda p: p.train('recipe = "fidelity"\n[runs]\nsteps = 5\n'),
        "runs: unknown key; did you mean 'run'?",
    ),
    "unknown key in --set": (lambda p: p.train("", "run.stesp=5"), "run.stesp: unknown key; did you mean 'steps'?"),
    "wrong type in TOML": (
        lambda p: p.train('recipe = "fidelity"\n[run]\nsteps = "5"\n'),
        "run.steps: expected int, got str '5'",
    ),
    "unknown choice in TOML": (lambda p: p.train('recipe = "fidelity"\n[run]\nprecision = "fp23"\n'), "did you mean 'fp32'?"),
    "unknown recipe": (lambda p: p.train('recipe = "fidelty"\n'), "did you mean 'fidelity'?"),
    "not TOML": (lambda p: p.train("recipe = \n"), "config.toml: expected TOML"),
    "workflow as config": (
        lambda p: ["train", p.run()[1]],
        "workflow.json: expected a TOML file, got a JSON file; `alignsr run`",
    ),
    "folder as config": (lambda p: ["train", p.folder / "pictures"], "pictures: expected a TOML file, got a folder"),
    "no such config": (lambda p: ["train", "no-such-config"], "expected a TOML file"),
    "no training pictures": (lambda p: p.train('recipe = "fidelity"\n[data]\nfolders = ["nowhere"]\n'), "data.folders"),
    # AESOP
    "auto-encoder of another scale": (
        lambda p: p.aesop("model.scale=2"),
        "aesop.autoencoder: expected one of the network's scale 2, got random of scale 4",
    ),
    "auto-encoder that is none": (
        lambda p: p.aesop(f'losses.aesop.autoencoder="{p.model.as_posix()}"'),
        "model.safetensors: expected an auto-encoder, got a super-resolution network (lite)",
    ),
    "missing auto-encoder": (lambda p: p.aesop('losses.aesop.autoencoder="gone.pth"'), "gone.pth"),
    "patch that is no multiple of 4": (
        lambda p: p.aesop("data.gt_patch_px=34"),
        "data.gt_patch_px: expected a multiple of model.scale 4, got 34",
    ),
    "patch that is no multiple of 4, auto-encoder": (
        lambda p: ["train", "tiny-aesop-autoencoder", "--out", p.out, "--set", "data.gt_patch_px=34"],
        "data.gt_patch_px: expected a multiple of model.scale 4, got 34",
    ),
    "patch of another size than the discriminator's": (
        lambda p: p.aesop("data.gt_patch_px=48"),
        "discriminator.input_px: expected data.gt_patch_px 48, got 32",
    ),
    "batch of 1 with batch normalisation": (
        lambda p: p.aesop("run.batch_size=1"),
        "run.batch_size: expected at least 2 over all processes for the batch normalisation",
    ),
    "damaged picture among the training pictures": (
        lambda p: p.aesop() if p.write("data/a.png", p.good.read_bytes()[:20]) else [],
        "a.png: not readable as an image",
    ),
    "scale 0 in TOML": (lambda p: p.train("", "model.scale=0"), "scale: expected at least 1, got 0"),
    "scale -1 in TOML": (lambda p: p.train("", "model.scale=-1"), "scale: expected at least 1, got -1"),
    "scale 3.5 in TOML": (lambda p: p.train("", "model.scale=3.5"), "model.scale: expected int, got float 3.5"),
}


WHILE_TRAINING: dict[str, tuple[Callable[[Place], Arguments], str]] = {
    "ground truth smaller than the patch": (
        lambda p: p.aesop("data.gt_patch_px=64", "discriminator.input_px=64", "data.subimage_px=0"),
        "picture_0.png: expected sides of at least 64 px, got 48x48",
    ),
    "training that diverges": (
        lambda p: p.aesop("optimizer.learning_rate=1e30", "run.steps=3", "run.validate_every=0", "run.preview_every=0"),
        "step 2: term aesop of generator is not finite for picture_0.png",
    ),
}


def nan_weights(place: Place) -> Path:
    from safetensors.torch import load_file

    from alignsr.core.weights import read_info

    tensors = load_file(place.model)
    tensors["tail.bias"][0] = float("nan")
    return save_weights(place.folder / "nan.safetensors", tensors, read_info(place.model))


TEMPORARY = re.compile(r"/\S*?/pytest-\d+/(popen-gw\d+/)?[^/\s]+")


def check_refused(done: Outcome, expected: str) -> None:
    """One error on stderr, the exit code, no traceback."""
    assert done.code == 1, (done.code, done.err)
    assert "Traceback" not in done.err + done.out
    assert len(done.errors) == 1, done.err
    assert expected in done.errors[0]
    assert len(TEMPORARY.sub("/models", done.errors[0])) < 700  # whatever the length of the test folder's own path


@pytest.mark.parametrize("row", WHILE_TRAINING)
def test_bad_input_that_shows_while_training_is_one_clear_message(row: str, place: Place) -> None:
    build, expected = WHILE_TRAINING[row]
    make_pictures(place.folder / "data", 2)
    check_refused(call(*build(place)), expected)


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_clear_message(row: str, place: Place) -> None:
    build, expected = ROWS[row]
    for name in ("bad", "bare", "deep", "pictures"):
        (place.folder / name).mkdir()
    write_image(place.folder / "pictures" / "a.png", picture(8, 8))
    make_pictures(place.folder / "data", 2)
    arguments = build(place)
    with unchanged(place.folder):
        check_refused(call(*arguments), expected)
    assert not (place.folder / "code-was-run").exists()


@pytest.mark.parametrize("kind", ["network", "pixel"])
@pytest.mark.parametrize(
    ("shape", "fill", "expected"),
    [
        ((1, 2, 8, 8), 0.5, r"lq: expected \[B, 3, H, W\] float, got \(1, 2, 8, 8\)"),
        ((1, 5, 8, 8), 0.5, r"lq: expected \[B, 3, H, W\] float, got \(1, 5, 8, 8\)"),
        ((1, 8, 8, 3), 0.5, "looks channels-last"),
        ((3, 8, 8), 0.5, "add or remove dimensions"),
        ((1, 3, 0, 8), 0.5, "at least one image of at least 1x1 pixels"),
        ((0, 3, 8, 8), 0.5, "at least one image of at least 1x1 pixels"),
        ((1, 3, 8, 8), float("nan"), "lq: expected finite values, got 192 NaN"),
        ((1, 3, 8, 8), float("inf"), "lq: expected finite values"),
    ],
)
def test_bad_tensors_in_the_library(kind: str, shape: tuple[int, ...], fill: float, expected: str, tmp_path: Path) -> None:
    from alignsr.core.backbones import load_backbone

    backbone = load_backbone(save_tiny(tmp_path / "m.safetensors", kind))
    with pytest.raises(ValueError, match=expected):
        restore(backbone, torch.full(shape, fill))


@pytest.mark.parametrize(
    ("shape", "fill", "expected"),
    [
        ((1, 8, 8, 2), 0.5, "image: expected"),
        ((1, 8, 8, 5), 0.5, "image: expected"),
        ((1, 0, 8, 3), 0.5, "image: expected"),
        ((0, 8, 8, 3), 0.5, "image: expected"),
        ((8, 8, 3), 0.5, "image: expected"),
        ((1, 8, 8, 3), float("nan"), "image: expected finite values"),
    ],
)
@pytest.mark.parametrize("node", ["AlignSROneStepSR", "AlignSRDegrade", "AlignSRColorFix"])
def test_bad_tensors_in_the_nodes(node: str, shape: tuple[int, ...], fill: float, expected: str, place: Place) -> None:
    image = torch.full(shape, fill)
    arguments: dict[str, dict[str, Any]] = {
        "AlignSROneStepSR": {"model": load_model(place.model, device="cpu"), "image": image, "scale": 4},
        "AlignSRDegrade": {"image": image, "preset": "bicubic", "seed": 0, "scale": 2, "jpeg": "codec"},
        "AlignSRColorFix": {"image": image, "reference": torch.full((1, 8, 8, 3), 0.5), "method": "wavelet"},
    }
    instance: Any = NODE_CLASS_MAPPINGS[node]()
    with torch.inference_mode(), pytest.raises((ValueError, TypeError), match=expected):
        getattr(instance, instance.FUNCTION)(**arguments[node])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_pixel_is_good_input(channels: int, place: Place) -> None:
    one = write_image(place.folder / "one.png", torch.full((1, channels, 1, 1), 0.5))
    done = call(*place.upscale(one))
    assert done.code == 0, done.err
    with Image.open(place.out / "one.png") as result:
        assert result.size == (4, 4)


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_large_one_step_models_take_pictures_below_their_size_multiple(size: tuple[int, int], place: Place) -> None:
    """4 px of 16 that one token covers: padded, restored, cut back."""
    small = write_image(place.folder / "small.png", picture(*size))
    done = call(*strsr(place, n1__image=str(small)))
    assert done.code == 0, done.err
    (result,) = place.out.rglob("*.png")
    with Image.open(result) as opened:
        assert opened.size == (4 * size[1], 4 * size[0])


@pytest.mark.parametrize("size", [(1, 1), (2, 30)])
def test_the_demo_takes_the_smallest_pictures_too(size: tuple[int, int], place: Place) -> None:
    small = write_image(place.folder / "small.png", picture(*size))
    done = call("demo", small, "-o", place.out, "-m", place.model)
    assert done.code == 0, done.err
    report = json.loads((place.out / "report.json").read_text(encoding="utf-8"))
    assert report["models"][0]["lr_psnr"] is None  # nothing is left to compare once the border is cut off
    assert (place.out / report["side_by_side"]).is_file()


@pytest.mark.parametrize("scale", [0, -1, 3.5, 17])
def test_scales_that_the_degrade_node_refuses(scale: float) -> None:
    instance: Any = NODE_CLASS_MAPPINGS["AlignSRDegrade"]()
    with pytest.raises((ValueError, TypeError), match=r"scale: expected an integer in 1\.\.16, got"):
        getattr(instance, instance.FUNCTION)(
            image=torch.full((1, 8, 8, 3), 0.5), preset="bicubic", seed=0, scale=scale, jpeg="codec"
        )


@pytest.mark.parametrize("degradation", ["matlab", "realesrgan"])
def test_a_training_picture_below_the_scale(degradation: str, place: Place) -> None:
    write_image(place.folder / "bad" / "dot.png", picture(1, 3))
    folder = (place.folder / "bad").as_posix()
    done = call(*place.train("", f'data.folders=["{folder}"]', f'data.degradation="{degradation}"'))
    check_refused(done, "dot.png: expected sides of at least 4 px, one pixel of its low-resolution form, got 1x3")


def test_the_good_workflow_and_config_pass(place: Place) -> None:
    """The rows above differ from these in one thing each, so it is that thing that is refused."""
    done = call(*place.run())
    assert done.code == 0, done.err
    make_pictures(place.folder / "data", 2)
    sets = ("run.steps=1", "run.batch_size=1", "model.options={features=8, blocks=1}")
    done = call(*place.train("", *sets)[:2], "--out", place.folder / "run", *(part for item in sets for part in ("--set", item)))
    assert done.code == 0, done.err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder(place: Place) -> None:
    place.out.mkdir()
    place.out.chmod(0o555)
    check_refused(call(*place.upscale(place.good)), "which is not writable")


def test_a_read_only_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: real(path, mode, **more) and not mode & os.W_OK)
    with unchanged(place.folder):
        check_refused(call(*place.upscale(place.good)), "which is not writable; choose another output")


@pytest.mark.parametrize("command", ["upscale", "degrade", "run", "train", "demo"])
def test_a_full_disk_leaves_nothing_half_written(command: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of the second file do not reach the disk any more: what is finished stays, the rest is not begun."""
    pictures = make_pictures(place.folder / "pictures", 3, 24)
    make_pictures(place.folder / "data", 2)
    allowed = [{"upscale": 1, "degrade": 2}.get(command, 0)]

    def fsync(_: int) -> None:
        if not allowed[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allowed[0] -= 1

    arguments: dict[str, Arguments] = {
        "upscale": place.upscale(pictures),
        "degrade": ["degrade", pictures, "-o", place.out],
        "run": place.run(),
        "train": place.train("", "run.steps=1", "run.batch_size=1", "model.options={features=8, blocks=1}"),
        "demo": ["demo", place.good, "-o", place.out, "-m", place.model],
    }
    before = tree(place.folder)
    monkeypatch.setattr(os, "fsync", fsync)
    done = call(*arguments[command])
    check_refused(done, "No space left on device")
    made = [name for name in results(place.folder) if name not in before]
    expected = {"upscale": ["out/picture_0.png"], "degrade": ["out/picture_0.json", "out/picture_0.png"]}
    assert made == expected.get(command, [])
    if made:
        with Image.open(place.folder / made[-1]) as result:
            result.load()


def test_a_file_size_limit_leaves_nothing_half_written(place: Place) -> None:
    """A real refusal by the system in the middle of a file."""
    resource = pytest.importorskip("resource")
    import subprocess
    import sys

    write_image(place.good, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    done = subprocess.run(
        [sys.executable, "-m", "alignsr", *map(str, place.upscale(place.good))],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),  # one thread here
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert not list(place.out.iterdir())
