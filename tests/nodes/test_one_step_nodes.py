"""The nodes of one-step restoration with large models, in miniature: what they pass on, who is in memory, and bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import adapter_for, seed, write_diffusers_folder, write_single_files
from node_helpers import picture, save_tiny_network
from safetensors.torch import load_file, save_file
from strsr_helpers import LATENTS, NAMES, one_step_adapter, projector_for, write_models, write_released
from tiny_language_models import make_text_model, make_tokenizer

from alignsr.core.backbones import LATENT_KINDS, load_backbone, offload, open_backbone
from alignsr.core.backbones.latent import tiny
from alignsr.core.backbones.published import PUBLISHED
from alignsr.core.conditioning import resident
from alignsr.core.images import quantize_8bit
from alignsr.core.restore import restore, scale_warning
from alignsr.core.weights import MissingModelError, WeightsError, save_weights
from alignsr.nodes import condition, lora, models, one_step
from alignsr.nodes.host import LocalHost, use_host
from alignsr.nodes.restore import OneStepSR
from alignsr.train.conditioning import ConditioningConfig, TrainConditioner

KINDS = list(LATENT_KINDS)
FILES = {kind: (LATENT_KINDS[kind].components[0].file_names[0], LATENT_KINDS[kind].components[1].file_names[0]) for kind in KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), text=True)


@pytest.fixture
def host(folder: Path, tmp_path: Path) -> Any:
    with use_host(LocalHost(models_dirs=[folder, tmp_path / "own"], output_dir=tmp_path / "out")) as found:
        yield found


def load(kind: str, *, name: str = "", strength: float = 1.0, **options: Any) -> Any:
    base, info = one_step.LoadOneStepBackbone().load(kind, **({"model_name": "tiny", "precision": "fp32"} | options))
    assert json.loads(info)["backbone"] == kind
    adapter, _ = lora.LoadLoRA().load(name or NAMES[kind])
    return lora.MergeLoRA().merge(base, adapter, strength)[0]


def look(model: Any, image: torch.Tensor, **options: Any) -> Any:
    vlm, _ = condition.LoadVLM().load("tiny-vlm", "fp32")
    return condition.VLMEncode().encode(vlm, model, image, **options)


SMALL: dict[str, Any] = {"tile_px": 64, "overlap_px": 16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["best", "parity"])
def test_the_chain_is_what_core_does(kind: str, mode: str, host: Any) -> None:
    model, image = load(kind, strength=0.8), picture(2, 20, 24)
    assert model.backbone.latents == LATENTS[kind]
    told, info = look(model, image, mode=mode)
    assert json.loads(info)["scope"] == ("tile" if mode == "best" else "image")
    sr, up, said = OneStepSR().upscale(model, image, 4, conditioning=told, mode=mode, seed=7, **SMALL)
    facts = json.loads(said)
    assert sr.shape == up.shape == (2, 80, 96, 3) and facts["tiles"] == 8 and facts["mode"] == mode
    assert ("seed" in facts) == (mode == "parity")
    by_hand = open_backbone(kind, "tiny", lora=host.model_dirs("loras")[0] / f"{NAMES[kind]}.safetensors", lora_strength=0.8,
                            precision="fp32")  # fmt: skip
    with torch.no_grad():
        wanted = restore(
            by_hand, image.movedim(-1, 1), conditioning=told, mode=mode, generator=seed(7) if mode == "parity" else None, **SMALL
        ).sr
    assert torch.equal(sr, quantize_8bit(wanted).movedim(1, -1)), "an IMAGE is on the grid of 8 bits: rounded, or cut off"
    without = OneStepSR().upscale(model, image, 4, mode=mode, seed=7, **SMALL)[0]
    assert not torch.equal(sr, without)


def test_offloaded_parts_are_never_on_the_device_together(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Language model, autoencoder, transformer, autoencoder: each comes when the one before it has left, once per try."""
    events: list[tuple[str, str]] = []
    use, leave, working = offload.Residency.use, offload.Residency.leave, resident.OnDemand.working

    def come(self: Any, module: Any) -> None:
        if module is not self.resident:
            use(self, module)
            events.append(("in", type(module).__name__))

    def go(self: Any) -> None:
        if self.resident is not None:
            events.append(("out", type(self.resident).__name__))
        leave(self)

    class Watched:
        def __init__(self, held: Any) -> None:
            self.held = held

        def __enter__(self) -> Any:
            events.append(("in", "VLM"))
            return self.held.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.held.__exit__(*error)
            events.append(("out", "VLM"))

    monkeypatch.setattr(offload.Residency, "use", come)
    monkeypatch.setattr(offload.Residency, "leave", go)
    monkeypatch.setattr(resident.OnDemand, "working", lambda self: Watched(working(self)))
    model, image = load("flux2_klein"), picture(1, 20, 24)
    OneStepSR().upscale(model, image, 4, conditioning=look(model, image)[0], **SMALL)
    kinds = ["VLM", "AutoencoderKLFlux2", "Flux2Transformer2DModel", "AutoencoderKLFlux2"]
    assert events == [(move, kind) for kind in kinds for move in ("in", "out")]
    events.clear()
    image, real, tries = picture(1, 40, 40), model.backbone.velocity, list[int]()

    def full_once(*args: Any) -> torch.Tensor:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args)

    model.backbone.velocity = full_once
    OneStepSR().upscale(model, image, 4, conditioning=look(model, image)[0], tile_px=128, overlap_px=16)
    assert events == [(move, kind) for kind in (*kinds[:3], *kinds) for move in ("in", "out")], "also when tiles become smaller"
    events.clear()
    OneStepSR().upscale(load("flux2_klein", offload="none"), image, 4, **SMALL)
    assert events == []


@pytest.mark.parametrize("offloads", one_step.OFFLOADS)
def test_what_runs_in_inference_mode_is_of_use_outside(offloads: str, host: Any) -> None:
    """ComfyUI runs nodes under inference mode; parameters made or moved there could not be trained later."""
    with torch.inference_mode():
        model, image = load("flux2_klein", offload=offloads), picture(1, 12, 12)
        told, _ = look(model, image)
        inside = OneStepSR().upscale(model, image, 4, conditioning=told)[0]
    parts = [*(module for _, module in model.backbone.modules()), told.encoder.models.held.model, told.adapter]
    assert not any(p.is_inference() for part in parts for p in part.parameters())
    assert torch.equal(inside, OneStepSR().upscale(model, image.clone(), 4, conditioning=told)[0])


def test_pictures_are_looked_at_once(host: Any) -> None:
    model, image = load("z_image"), picture(1, 20, 24)
    vlm, _ = condition.LoadVLM().load("tiny-vlm", "fp32", keep="nothing")
    reads: list[int] = []
    read = vlm.load
    vlm = replace(vlm, load=lambda: reads.append(1) or read())
    for _ in range(2):
        told, _ = condition.VLMEncode().encode(vlm, model, image)
        OneStepSR().upscale(model, image, 4, conditioning=told, **SMALL)
    assert reads == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_when_needed_and_checked_before(kind: str, host: Any, tmp_path: Path) -> None:
    """From single files and from a diffusers folder, found by themselves; the spec is known without reading."""
    source = tiny(kind)
    write_single_files(tmp_path / "own", source, FILES[kind])
    model = load(kind, model_name="auto")
    assert "backbone" not in vars(model) and model.spec.parameters == source.spec.parameters
    assert next(model.meta.transformer.parameters()).is_meta
    image = picture(1, 8, 8)
    sr = OneStepSR().upscale(model, image, 4)[0]
    assert same_to_8_bits(sr, OneStepSR().upscale(load(kind), image, 4)[0])
    for part in ("diffusion_models", "vae"):
        for file in (tmp_path / "own" / part).iterdir():
            file.unlink()
    name = PUBLISHED[kind].folders[0]
    write_diffusers_folder(tmp_path / "own" / "diffusers" / name, source)
    assert name in one_step.LoadOneStepBackbone.INPUT_TYPES()["required"]["model_name"][0]
    for chosen in ("auto", name):
        assert same_to_8_bits(sr, OneStepSR().upscale(load(kind, model_name=chosen), image, 4)[0])


def same_to_8_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Weights from other files lie elsewhere in memory, where sums round otherwise: a value between two levels may fall anew."""
    differs = (one - other).abs()
    return float(differs.max()) < 1.5 / 255 and float((differs > 0).float().mean()) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_name_each_file_its_folders_and_the_command(kind: str, host: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingModelError) as caught:
        one_step.LoadOneStepBackbone().load(kind)
    text = str(caught.value)
    for part, file in zip(("diffusion_models", "vae"), FILES[kind], strict=True):
        assert file in text and str(folder / part) in text and str(tmp_path / "own" / part) in text
    assert PUBLISHED[kind].folders[0] in text and str(folder / "diffusers") in text
    assert f"alignsr models download {PUBLISHED[kind].download}" in text and "Hugging Face" in text


def test_corrupt_files_are_said_when_they_are_chosen(host: Any, tmp_path: Path) -> None:
    folders = write_single_files(tmp_path / "own", tiny("z_image"), FILES["z_image"])
    path = folders["diffusion_models"][0] / FILES["z_image"][0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        WeightsError, match=r"model_name: .*z_image_turbo_bf16\.safetensors: expected a safetensors file, got \d+ by"
    ):
        load("z_image", model_name="auto")
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="expected a safetensors file, got 11 bytes"):
        load("z_image", model_name=FILES["z_image"][0])


def test_adapters_that_do_not_fit_are_refused_by_merge(host: Any, tmp_path: Path) -> None:
    merge = lora.MergeLoRA().merge
    flux, _ = one_step.LoadOneStepBackbone().load("flux2_klein", "tiny")
    with pytest.raises(ValueError, match=r"lora: expected an adapter of flux2_klein, .* is one of z_image; choose the file made"):
        merge(flux, one_step_adapter("z_image"))
    good = one_step_adapter("flux2_klein")
    with pytest.raises(WeightsError, match=r"lora: .*expected an adapter of rank 8, got matrices of rank 4"):
        merge(flux, replace(good, info={**good.info, "rank": 8}))
    first = next(iter(good.state))
    with pytest.raises(WeightsError, match=f"missing: {first}"):
        merge(flux, replace(good, state={name: tensor for name, tensor in good.state.items() if name != first}))
    z, _ = one_step.LoadOneStepBackbone().load("z_image", "tiny", latents="scaled")
    with pytest.raises(ValueError, match=r"latents: expected 'raw', which .* was made with, got 'scaled'"):
        merge(z, one_step_adapter("z_image"))
    other = models.load_model(save_tiny_network(tmp_path / "net.safetensors"))
    with pytest.raises(TypeError, match="model: expected one of Load One-Step Backbone"):
        merge(other, good)
    assert merge(merge(flux, good)[0], good, 0.5)[0].adapters[1][1] == 0.5


def test_the_projector_of_the_other_backbone_is_refused(host: Any) -> None:
    base, _ = one_step.LoadOneStepBackbone().load("flux2_klein", "tiny")
    mixed = replace(one_step_adapter("flux2_klein"), projector=projector_for("z_image"))
    model, _ = lora.MergeLoRA().merge(base, mixed)
    with pytest.raises(WeightsError, match="expected an adapter to 48 channels, got 16"):
        look(model, picture())
    none, _ = lora.MergeLoRA().merge(base, adapter_for("flux2_klein"))
    with pytest.raises(ValueError, match="model: expected a model whose LoRA has a projector"):
        look(none, picture())
    wide = replace(mixed, projector=projector_for("flux2_klein", inputs=24))
    with pytest.raises(ValueError, match="vlm: expected tokens of width 24 as the projector takes, got 32"):
        OneStepSR().upscale(
            lora.MergeLoRA().merge(base, wide)[0],
            picture(),
            4,
            conditioning=look(lora.MergeLoRA().merge(base, wide)[0], picture())[0],
        )


def test_a_missing_language_model_names_files_folders_and_source(host: Any, folder: Path) -> None:
    with pytest.raises(MissingModelError) as caught:
        condition.LoadVLM().load()
    text = str(caught.value)
    for part in (
        "Qwen3-VL-4B-Instruct",
        "config.json",
        "model.safetensors",
        str(folder / "text_encoders"),
        "huggingface.co/Qwen",
    ):
        assert part in text
    (folder / "text_encoders" / "half").mkdir(exist_ok=True)
    with pytest.raises(MissingModelError, match=r"lacks .*half/config\.json.*tokenizer"):
        condition.LoadVLM().load("half")


def test_a_missing_adapter_names_folders_and_command(tmp_path: Path) -> None:
    with use_host(LocalHost(models_dirs=[tmp_path])):
        with pytest.raises(MissingModelError) as caught:
            lora.LoadLoRA().load("StrSR-flux")
        text = str(caught.value)
        assert str(tmp_path / "loras") in text and "alignsr models download StrSR-flux" in text and "state_dict.pth" in text
        write_released(tmp_path / "loras" / "StrSR-flux", one_step_adapter("flux2_klein"))
        adapter, info = lora.LoadLoRA().load("StrSR-flux")
        assert adapter.rank == 4 and json.loads(info)["backbone"] == "flux2_klein" and adapter.projector
        assert "StrSR-flux" in lora.LoadLoRA.INPUT_TYPES()["required"]["lora_name"][0]


def test_conditions_of_other_pictures_are_refused(host: Any) -> None:
    model = load("flux2_klein")
    told, _ = look(model, picture(1, 20, 24))
    with pytest.raises(ValueError, match=r"conditioning: expected one from the pictures that are restored, got one from 24x20"):
        OneStepSR().upscale(model, picture(1, 40, 24), 4, conditioning=told)
    with pytest.raises(ValueError, match="as many pictures as are restored, got one from 2"):
        OneStepSR().upscale(model, picture(3, 8, 8), 4, conditioning=look(model, picture(2, 8, 8))[0])
    z = load("z_image")
    with pytest.raises(ValueError, match=r"conditioning: expected embeddings \[1 or 1, N, 16\], got \(1, 68, 48\)"):
        OneStepSR().upscale(z, picture(1, 20, 24), 4, conditioning=told)
    with pytest.raises(ValueError, match="sides within 1 : 200"):
        OneStepSR().upscale(model, picture(1, 1, 300), 1, conditioning=look(model, picture(1, 1, 300), scope="image")[0])


def test_nan_names_tile_and_step_and_memory_that_runs_out_makes_tiles_smaller(
    host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, image = load("flux2_klein"), picture(1, 40, 40)
    real = model.backbone.velocity

    def small_only(z: torch.Tensor, *rest: Any) -> torch.Tensor:
        if z.shape[-1] > 5:
            raise torch.OutOfMemoryError("out of memory")
        return real(z, *rest)

    model.backbone.velocity = small_only
    sr, _, said = OneStepSR().upscale(model, image, 4)
    assert json.loads(said)["tile_px"] == 80 and "trying again with 80 px" in caplog.text and torch.isfinite(sr).all()
    model.backbone.velocity = lambda z, *rest: real(z, *rest) * float("nan")
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in step 1 of 1 \(sigma 0.8\), in the tile at row 0, column 0"):
        OneStepSR().upscale(model, image, 4)


@pytest.mark.parametrize(("file_format", "precision"), [("alignsr", "as it is"), ("alignsr", "bf16"), ("comfyui", "fp16")])
def test_saved_adapters(file_format: str, precision: str, host: Any, tmp_path: Path) -> None:
    adapter = one_step_adapter("z_image")
    saved = lora.SaveLoRA().save(adapter, "sub/mine", file_format, precision)
    path = Path(saved["result"][0])
    assert path == tmp_path / "out" / "sub" / "mine_00001_.safetensors" and saved["ui"]["text"] == [str(path)]
    if file_format == "alignsr":
        again = lora.LoadLoRA().load("StrSR-flux", str(path))[0]
        assert again.info["latents"] == "raw" and again.projector.keys() == adapter.projector.keys()
        wanted = torch.bfloat16 if precision == "bf16" else torch.float32
        assert all(t.dtype == wanted and torch.equal(t, adapter.state[name].to(wanted)) for name, t in again.state.items())
    else:
        exported = load_file(path)
        assert all(name.startswith("diffusion_model.") for name in exported) and len(exported) == 3 * len(adapter.state) // 2


def test_text_and_empty_conditions(host: Any) -> None:
    model, image = load("z_image"), picture(1, 8, 8)
    node = condition.TextEncode()
    prompts = [node.encode(model, text, "tiny-text", "fp32")[0] for text in ("user", "")]
    pictures = [OneStepSR().upscale(model, image, 4, conditioning=told)[0] for told in prompts]
    assert not torch.equal(*pictures) and len(node.encoders) == 1
    (empty,) = condition.EmptyConditioning().make(model)
    assert empty.embeddings.shape == (1, 68, 16)
    assert torch.equal(OneStepSR().upscale(model, image, 4, conditioning=empty)[0], OneStepSR().upscale(model, image, 4)[0])
    with pytest.raises(MissingModelError, match="text encoder of Z-Image-Turbo: expected a folder Z-Image-Turbo"):
        node.encode(model, "user")


def test_a_factor_that_was_not_trained_is_said_aloud_once(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = load("z_image")
    for scale, times in ((4, 0), (5, 1)):
        caplog.clear()
        info = json.loads(OneStepSR().upscale(model, picture(2, 16, 16), scale, tile_px=32)[2])
        said = [record.message for record in caplog.records if "scale 5 is above 4" in record.message]
        assert len(said) == times and ("warning" in info) == bool(times)
    assert "warn above the one they were trained for" in OneStepSR.INPUT_TYPES()["required"]["scale"][1]["tooltip"]


def test_the_factor_that_was_trained_is_the_headers(host: Any, tmp_path: Path) -> None:
    """Of an adapter, of the last of several, and of a whole model."""
    base, adapter = one_step.LoadOneStepBackbone().load("z_image", "tiny")[0], one_step_adapter("z_image")
    twice = replace(adapter, info={**adapter.info, "scale": 2})
    assert (base.spec.trained_scale, base.with_adapter(adapter, 1.0).spec.trained_scale) == (4, 4)
    model = base.with_adapter(twice, 1.0)
    assert model.spec.trained_scale == model.backbone.spec.trained_scale == 2
    assert model.with_adapter(adapter, 1.0).spec.trained_scale == 2, "one that says nothing changes nothing"
    assert scale_warning(model.backbone, 2) == "" and "scale 3 is above 2, the factor" in scale_warning(model.backbone, 3)
    pixel = load_backbone("pixel-x4")
    header = {"backbone": "pixel", "architecture": "pixel", "options": pixel.options, "scale": 3}
    save_weights(tmp_path / "p.safetensors", pixel.network.state_dict(), header)
    assert "above 3" in scale_warning(load_backbone(tmp_path / "p.safetensors"), 4) and not scale_warning(pixel, 4)


def test_an_adapter_that_saw_two_resizes_is_told_of_in_best_mode(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    base, adapter = one_step.LoadOneStepBackbone().load("z_image", "tiny")[0], one_step_adapter("z_image")
    for told, mode, times in ((True, "best", 1), (True, "parity", 0), (False, "best", 0), (None, "best", 0)):
        config = {} if told is None else {"config": {"conditioning": {"is_parity": told}}}
        caplog.clear()
        look(base.with_adapter(replace(adapter, info={**adapter.info, **config}), 1.0), picture(), mode=mode)
        assert caplog.text.count("trained with conditioning.is_parity") == times


def test_tags_are_told_as_in_training(host: Any) -> None:
    """Trimmed, once each, one line: the node and the recipe make the same text of them."""
    model, node, prompt = load("z_image"), condition.TextEncode(), " cat,wall,,  Cat\n"
    (told,) = node.encode(model, prompt, "tiny-text", "fp32")
    (plain,) = node.encode(model, "cat, wall", "tiny-text", "fp32")
    assert torch.equal(told.embeddings, plain.embeddings)
    config = ConditioningConfig("text", "tiny", prompt)
    trained = TrainConditioner(config, "z_image", 16, None, torch.device("cpu"))(torch.rand(1, 3, 8, 8))
    (of_node,) = node.encode(model, prompt, "tiny", "fp32")
    assert trained is not None and torch.equal(trained.embeddings, of_node.embeddings)


def test_a_text_encoder_in_a_single_file_takes_the_tokenizer_of_the_host(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, node = load("z_image"), condition.TextEncode()
    wanted = make_text_model()
    state = {name: tensor.contiguous() for name, tensor in wanted.state_dict().items() if name != "lm_head.weight"}
    place = tmp_path / "own" / "text_encoders"
    place.mkdir(parents=True)
    save_file(state, place / "qwen_3_4b.safetensors")
    assert "qwen_3_4b.safetensors" in condition.TextEncode.INPUT_TYPES()["required"]["encoder_name"][0]
    for name in ("auto", "qwen_3_4b.safetensors"):
        with pytest.raises(MissingModelError, match=r"encoder_name: expected a folder with tokenizer_config\.json"):
            node.encode(model, "user", name, "fp32")
    make_tokenizer().save_pretrained(tmp_path / "program" / "qwen25_tokenizer")
    monkeypatch.setattr(type(host), "tokenizer_dirs", lambda self: [tmp_path / "program"])
    (told,) = condition.TextEncode().encode(model, "user", "auto", "fp32")
    assert told.embeddings.shape == (1, 512, 16) and told.mask is not None
    sr = OneStepSR().upscale(model, picture(1, 8, 8), 4, conditioning=told)[0]
    assert torch.isfinite(sr).all()


def test_wrong_choices_are_named(host: Any) -> None:
    model = load("z_image")
    for call, words in (
        (lambda: one_step.LoadOneStepBackbone().load("z-image"), "backbone: expected one of flux2_klein, z_image, got 'z-image'"),
        (lambda: load("z_image", precision="fp8"), "precision: expected fp32, bf16"),
        (lambda: load("z_image", latents="raws"), "latents: expected scaled or raw"),
        (lambda: load("flux2_klein", latents="raw"), "latents: expected 'native'"),
        (lambda: load("z_image", vae_tile_px=60), "vae_tile_px: expected a multiple of 8"),
        (lambda: load("z_image", offload="disk"), "offload: expected one of"),
        (lambda: look(model, picture(), scope="tiles"), "scope: expected one of"),
        (lambda: OneStepSR().upscale(model, picture(), 4, mode="exact"), "mode: expected best or parity"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
