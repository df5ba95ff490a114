"""`alignsr models convert`: random files with the names and shapes of the full models, and everything that can be wrong.

A tensor that repeats one value takes no room on disk in a pickle, so that files of 299 and 635 million values are small.
"""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import call

from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.backbones.latent import make_transformer
from alignsr.core.conditioning import load_adapter, make_adapter
from alignsr.core.convert import check_released
from alignsr.core.lora import LORA_TARGETS, expected_state
from alignsr.core.lora_files import read_adapter
from alignsr.core.weights import WeightsError, read_info

KINDS = list(LATENT_KINDS)
WIDTHS = {"flux2_klein": 7680, "z_image": 2560}
VALUES = {"flux2_klein": (80, 298_844_160, 39_333_120), "z_image": (238, 635_043_840, 6_557_440)}


def shapes_of(kind: str, rank: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = make_transformer(LATENT_KINDS[kind], LATENT_KINDS[kind].transformer)
    return {name: tensor.shape for name, tensor in expected_state(network, LORA_TARGETS[kind], rank).items()}


def write(folder: Path, kind: str, rank: int = 256, *, same: bool = True, width: int = 0) -> Path:
    """`state_dict.pth` and `projector.pth` as released; with `same` every tensor is one value, seen from everywhere."""

    def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.rand(1, dtype=torch.float32).to(dtype).expand(*shape) if same else torch.randn(*shape).to(dtype)

    folder.mkdir(parents=True)
    state = {
        f"base_model.model.{name.removesuffix('.weight')}.default.weight": values(*shape, dtype=torch.float32)
        for name, shape in shapes_of(kind, rank).items()
    }
    out = width or WIDTHS[kind]
    parts = {"0.weight": (out // 2, 2560), "0.bias": (out // 2,), "2.weight": (out, out // 2), "2.bias": (out,)}
    torch.save(state, folder / "state_dict.pth")
    torch.save({name: values(*shape, dtype=torch.bfloat16) for name, shape in parts.items()}, folder / "projector.pth")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_the_full_size_are_read_and_checked(kind: str, tmp_path: Path) -> None:
    """Spec 1.7: 80 and 238 layers of rank 256, 298.84 and 635.04 million values, projectors of 39.33 and 6.56 million."""
    folder = write(tmp_path / "released", kind)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    adapter = read_adapter(folder)
    check_released(adapter)
    layers, values, projector = VALUES[kind]
    assert len(adapter.state) == 2 * layers and sum(t.numel() for t in adapter.state.values()) == values
    assert sum(t.numel() for t in adapter.projector.values()) == projector
    assert adapter.info["backbone"] == kind and adapter.rank == 256 and adapter.scale == 1.0
    own = make_adapter(adapter.projector, "projector", WIDTHS[kind])
    assert sum(p.numel() for p in own.parameters()) == projector
    assert all(
        torch.equal(a, b) for a, b in zip(own.parameters(), load_adapter(folder / "projector.pth").parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_command_writes_one_file_with_facts(kind: str, tmp_path: Path) -> None:
    """All names, at rank 1 and with another width inside the projector, to keep the file small."""
    folder = write(tmp_path / "StrSR-x", kind, 1)
    done = call("models", "convert", folder, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    path = folder / "StrSR-x.safetensors"
    assert facts["file"] == str(path) and facts["layers"] == VALUES[kind][0] and facts["bytes"] == path.stat().st_size
    info = read_info(path)
    assert info["architecture"] == "lora" and info["backbone"] == kind and info["rank"] == 1 and info["start_sigma"] == 0.8
    assert info["latents"] == ("raw" if kind == "z_image" else "native")
    assert info["converted_from"].keys() == {"state_dict.pth", "projector.pth"}
    before, after = read_adapter(folder), read_adapter(path)
    for a, b in ((before.state, after.state), (before.projector, after.projector)):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    again = call("models", "convert", path, "-o", tmp_path / "comfy.safetensors", "--format", "comfyui", "--precision", "bf16")
    assert again.code == 0 and read_info(tmp_path / "comfy.safetensors")["layout"] == "comfyui"
    assert read_adapter(tmp_path / "comfy.safetensors").info["latents"] == info["latents"]
    assert "no projector" not in again.err and f"{VALUES[kind][0]} layers" in again.err


def spoil(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "state_dict.pth", weights_only=True)
    names = list(state)
    if "missing" in changes:
        del state[names[0]]
    if "extra" in changes:
        state["base_model.model.extra.lora_A.default.weight"] = torch.zeros(1)
    if "shape" in changes:
        state[names[3]] = state[names[3]][:1]
    if "nan" in changes:
        state[names[4]] = torch.full(state[names[4]].shape, float("nan"))
    torch.save(state, folder / "state_dict.pth")
    return state


def test_everything_that_differs_is_said_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", "flux2_klein", 2)
    spoil(folder, missing=1, extra=1, shape=1)
    done = call("models", "convert", folder)
    assert done.code == 1 and not list(folder.glob("*.safetensors"))
    (line,) = done.errors
    first = "transformer_blocks.0.attn"
    for words in (f"missing: {first}", "unexpected: extra.lora_A.weight", "wrong shape: ", "(1, 2) instead of (3072, 2)"):
        assert words in line, line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: spoil(f, nan=1), "expected finite weights, 1 tensors hold NaN"),
        (lambda f: (f / "state_dict.pth").write_bytes(b"x" * 99), "expected a weight file"),
        (
            lambda f: (f / "projector.pth").write_bytes((f / "projector.pth").read_bytes()[:-300]),
            "projector.pth: expected a check",
        ),
        (lambda f: torch.save({"0.weight": torch.zeros(3, 2)}, f / "projector.pth"), "missing: 0.bias, 2.bias, 2.weight"),
        (lambda f: (f / "state_dict.pth").unlink(), "found no"),
    ],
)
def test_files_that_are_not(change, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "r", "flux2_klein", 1)
    change(folder)
    done = call("models", "convert", folder, "-o", tmp_path / "out.safetensors")
    assert done.code == 1 and words in done.errors[0], done.errors
    assert not (tmp_path / "out.safetensors").exists()


def test_files_of_the_other_backbone_and_of_another_rank(tmp_path: Path) -> None:
    flux = write(tmp_path / "flux", "flux2_klein", 1, width=2560)
    with pytest.raises(WeightsError, match=r"\(projector\): expected a projector to 7680 channels, got one to 2560"):
        check_released(read_adapter(flux))
    mixed = write(tmp_path / "mixed", "z_image", 1)
    state = torch.load(mixed / "state_dict.pth", weights_only=True)
    more = torch.load(flux / "state_dict.pth", weights_only=True)
    torch.save({**state, **more}, mixed / "state_dict.pth")
    with pytest.raises(WeightsError, match="expected an adapter of flux2_klein or z_image"):
        read_adapter(mixed)
    name = next(name for name in state if "lora_B" in name)
    torch.save({**state, name: state[name].expand(-1, 2)}, mixed / "state_dict.pth")
    with pytest.raises(WeightsError, match=r"wrong shape: .*lora_B\.weight \(3840, 2\) instead of \(3840, 1\)"):
        check_released(read_adapter(mixed))


def test_bad_names_and_places(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", "flux2_klein", 1)
    for arguments, words in (
        ((tmp_path / "none",), "found nothing; check the path"),
        ((folder, "-o", tmp_path / "x.pth"), "--out: expected a name ending in .safetensors"),
        ((folder, "--precision", "int8"), "--precision: expected one of keep, bf16, fp16, fp32"),
        ((folder, "--format", "kohya"), "expected one of alignsr, comfyui, diffusers, got 'kohya'"),
    ):
        done = call("models", "convert", *arguments)
        assert done.code == 1 and words in done.errors[0], done.errors
