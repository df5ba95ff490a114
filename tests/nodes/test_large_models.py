"""Large models on small machines: who asks for memory, what is said when it runs out, cancelling, and which files are taken."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import write_single_files
from node_helpers import picture
from strsr_helpers import NAMES, write_models

from alignsr.core.backbones import LATENT_KINDS, MULTI_STEP_KINDS
from alignsr.core.backbones.latent import tiny
from alignsr.core.borrowed import nbytes
from alignsr.core.conditioning import VisionLanguageModel, resident
from alignsr.core.memory import DoesNotFitError
from alignsr.core.networks.tiny_autoencoder import TinyAutoencoder
from alignsr.core.weights import MissingModelError
from alignsr.nodes import condition, lora
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.multi_step import LoadMultiStepBackbone
from alignsr.nodes.one_step import LoadOneStepBackbone
from alignsr.nodes.restore import OneStepSR

SMALL: dict[str, Any] = {"tile_px": 64, "overlap_px": 16}
TINY_CODERS = {"flux2_klein": "taef2_encoder.pth", "z_image": "taef1_encoder.pth"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def strsr(kind: str = "flux2_klein", device: str = "auto") -> Any:
    base, _ = LoadOneStepBackbone().load(kind, "tiny", precision="fp32", device=device)
    return lora.MergeLoRA().merge(base, lora.LoadLoRA().load(NAMES[kind])[0])[0]


class Far(LocalHost):
    """Says that it has a GPU and notes what is asked of it; nothing moves there, since `Stay` replaces what moves."""

    def __init__(self, folder: Path) -> None:
        super().__init__(models_dirs=[folder])
        self.asked: list[int] = []

    def device(self) -> torch.device:
        return torch.device("cuda")

    def free_memory(self, vram_bytes: int) -> None:
        self.asked.append(vram_bytes)

    def soft_empty_cache(self) -> None:
        """Nothing there."""


class Stay:
    def __init__(self, *_: Any) -> None:
        """Nothing moves."""

    def give_back(self) -> None:
        """Nothing moved."""


def test_room_is_asked_for_before_a_language_model_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "Borrowed", Stay)
    with use_host(Far(folder)) as host:
        model, image = strsr(device="cpu"), picture(1, 20, 24)
        vlm = replace(condition.LoadVLM().load("tiny-vlm", "fp32", device="cpu")[0], device=host.device())
        size = nbytes(vlm.load().model) + resident.WORK_BYTES
        told, _ = condition.VLMEncode().encode(vlm, model, image)
        assert host.asked == []
        OneStepSR().upscale(model, image, 4, conditioning=told, **SMALL)
        assert host.asked == [size], "inside One-Step SR"
        condition.VLMEncode().encode(vlm, model, picture(1, 9, 9), scope="image")
        assert host.asked == [size] * 2, "and in VLM Encode"
        for loaded in (LoadOneStepBackbone().load("z_image", "tiny"), LoadMultiStepBackbone().load("flux1", "tiny")):
            host.asked.clear()
            condition.TextEncode().encode(loaded[0], "a cat", "tiny", "fp32")
            assert len(host.asked) == 1 and host.asked[0] > resident.WORK_BYTES


def test_a_language_model_without_memory_is_named_and_makes_no_smaller_tiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def full(_: Any, images: Any, *__: Any, **___: Any) -> None:
        asked.append(len(images))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VisionLanguageModel, "embed", full)
    with use_host(LocalHost(models_dirs=[folder])):
        model, image = strsr(device="cpu"), picture(1, 64, 64)
        vlm, _ = condition.LoadVLM().load("tiny-vlm", "fp32", device="cpu")
        told, _ = condition.VLMEncode().encode(vlm, model, image)
        with pytest.raises(DoesNotFitError, match=r"memory: expected room for Qwen3VLModel .*offload .*keep home") as caught:
            OneStepSR().upscale(model, image, 4, conditioning=told, tile_px=128)
        inputs = {**condition.VLMEncode.INPUT_TYPES()["optional"], **condition.LoadVLM.INPUT_TYPES()["required"]}
        assert "batch_size" in inputs and "use a lower batch_size, smaller tiles" in str(caught.value)
        assert "bf16" in inputs["precision"][0] and "16 bits for its weights (bf16)" in str(caught.value)
        assert "bit or" not in str(caught.value), "Load VLM offers nothing below"
        assert asked == [1] and "trying again" not in caplog.text


def test_cancelling_stops_the_language_model_within_a_tile_and_the_bar_moves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, looked, real = list[tuple[int, int]](), list[int](), VisionLanguageModel.embed

    def embed(self: Any, images: Any, *rest: Any, **more: Any) -> Any:
        looked.append(len(images))
        if len(looked) == 2 and cancels:
            host.cancel()
        return real(self, images, *rest, **more)

    monkeypatch.setattr(VisionLanguageModel, "embed", embed)
    host = LocalHost(models_dirs=[folder], on_progress=lambda value, total, *_: seen.append((value, total)))
    with use_host(host):
        model, image = strsr(device="cpu"), picture(1, 20, 24)
        vlm, _ = condition.LoadVLM().load("tiny-vlm", "fp32", device="cpu")
        told, _ = condition.VLMEncode().encode(vlm, model, image)
        assert model.backbone is not None
        seen.clear()
        cancels = True
        with pytest.raises(Interrupted):
            OneStepSR().upscale(model, image, 4, conditioning=told, **SMALL)
        assert looked == [1, 1] and seen == [(0, 16), (1, 16)], "four tiles, each looked at, encoded, stepped, decoded"
        host.clear_cancel()
        cancels = False
        seen.clear()
        OneStepSR().upscale(model, image, 4, conditioning=told, **SMALL)
        assert looked == [1] * 4, "what was seen before is remembered"
        assert [value for value, _ in dict.fromkeys(seen)] == list(range(2, 17))


@pytest.mark.parametrize("kind", list(LATENT_KINDS))
def test_auto_never_takes_a_tiny_autoencoder_and_names_it_where_the_own_is_missing(kind: str, tmp_path: Path) -> None:
    names = [part.file_names[0] for part in LATENT_KINDS[kind].components]
    write_single_files(tmp_path, tiny(kind), (names[0], names[1]))
    (tmp_path / "vae" / names[1]).unlink()
    coder, encoder = TinyAutoencoder(latent_channels=4, width=32, blocks=1), TINY_CODERS[kind]
    with use_host(LocalHost(models_dirs=[tmp_path])):
        load = LoadOneStepBackbone().load
        with pytest.raises(MissingModelError) as caught:
            load(kind, precision="fp32")
        assert names[1] in str(caught.value) and "tae" not in str(caught.value)
        for half in ("encoder", "decoder"):
            torch.save(getattr(coder, half).state_dict(), tmp_path / "vae" / encoder.replace("encoder", half))
        with pytest.raises(MissingModelError) as caught:
            load(kind, precision="fp32")
        assert f"vae: no {names[1]} in" in str(caught.value) and f"or choose {encoder} by its name" in str(caught.value)
        assert encoder in LoadOneStepBackbone.INPUT_TYPES()["required"]["vae_name"][0]
        model, said = load(kind, vae_name=encoder, precision="fp32")
        assert type(model.meta.autoencoder).__name__ == "TinyAutoencoder"
        assert json.loads(said)["files_used"]["vae"] == str(tmp_path / "vae" / encoder)


def test_no_family_takes_a_tiny_autoencoder_by_itself() -> None:
    parts = [part for kind in (LATENT_KINDS | MULTI_STEP_KINDS).values() for part in kind.components]
    assert not [name for part in parts for name in part.file_names if name.startswith("tae")]


def test_rounded_weights_in_place_of_exact_ones_are_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exact, rounded = LATENT_KINDS["flux2_klein"].components[0].file_names
    write_single_files(tmp_path, tiny("flux2_klein"), (rounded, "flux2-vae.safetensors"))
    place = tmp_path / "diffusion_models"
    remark = f"transformer: {rounded} is used, rounded to 8 bits, since {exact} is not there"
    with use_host(LocalHost(models_dirs=[tmp_path])):
        model, said = LoadOneStepBackbone().load("flux2_klein", precision="fp32")
        files = {"transformer": str(place / rounded), "vae": str(tmp_path / "vae" / "flux2-vae.safetensors")}
        assert json.loads(said)["files_used"] == files and json.loads(said)["warning"] == remark and remark in caplog.text
        caplog.clear()
        info = json.loads(OneStepSR().upscale(model, picture(1, 8, 8), 4)[2])
        assert remark in caplog.text and info["model_file"] == rounded
        caplog.clear()
        said = LoadOneStepBackbone().load("flux2_klein", rounded, precision="fp32")[1]
        assert "warning" not in json.loads(said) and "rounded" not in caplog.text, "it was chosen"
        (place / rounded).rename(place / exact)
        said = LoadOneStepBackbone().load("flux2_klein", precision="fp32")[1]
        assert json.loads(said)["files_used"]["transformer"] == str(place / exact) and "warning" not in json.loads(said)
