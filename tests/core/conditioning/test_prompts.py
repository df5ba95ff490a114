"""Prompts through CLIP and T5: equal to the pipelines of diffusers, encoded once, found on disk without the encoders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alignsr.core.compat import import_diffusers, import_third_party
from alignsr.core.conditioning import PROMPT_STYLES, PromptEncoder, PromptModels, PromptStore, load_prompt_models
from alignsr.core.conditioning.prompt_files import clip_options, t5_options
from alignsr.core.conditioning.tiny import tiny_prompt_models
from alignsr.core.weights import MissingModelError, WeightsError

TEXTS = ["a cat on a wall", "", "dotted, noise, blur, lowres, smooth"]
STYLES = list(PROMPT_STYLES)


@pytest.fixture(scope="module", params=STYLES)
def models(request: pytest.FixtureRequest) -> tuple[str, PromptModels]:
    return request.param, tiny_prompt_models(request.param)


def by_pipeline(style: str, models: PromptModels) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pipelines' own functions over the same models, without building a pipeline."""
    diffusers: Any = import_diffusers()
    names = {"flux1": "FluxPipeline", "sdxl": "StableDiffusionXLPipeline"}
    kind = getattr(diffusers, names.get(style, "StableDiffusionPipeline"))
    pipeline = kind.__new__(kind)
    pipeline._internal_dict = import_third_party("diffusers.configuration_utils").FrozenDict(
        {"force_zeros_for_empty_prompt": True}
    )
    for number, (model, tokenizer) in enumerate(zip(models.model, models.tokenizers, strict=True)):
        end = "" if number == 0 else f"_{number + 1}"
        setattr(pipeline, f"text_encoder{end}", model)
        setattr(pipeline, f"tokenizer{end}", tokenizer)
    pipeline.tokenizer_max_length = 77
    if style == "flux1":
        pooled = kind._get_clip_prompt_embeds(pipeline, TEXTS, device="cpu")
        return kind._get_t5_prompt_embeds(pipeline, TEXTS, max_sequence_length=512, device="cpu"), pooled
    if style == "sdxl":
        embeddings, _, pooled, _ = kind.encode_prompt(pipeline, TEXTS, device="cpu", do_classifier_free_guidance=False)
        return embeddings, pooled
    return kind.encode_prompt(pipeline, TEXTS, "cpu", 1, False)[0], None


def test_prompts_equal_those_of_the_pipelines(models: tuple[str, PromptModels]) -> None:
    style, held = models
    found = PromptEncoder(lambda: held, style).encode(TEXTS)
    embeddings, pooled = by_pipeline(style, held)
    assert torch.allclose(found.embeddings, embeddings, atol=1e-6) and found.mask is None
    assert found.embeddings.shape == (3, 512 if style == "flux1" else 77, 32)
    if style in ("flux1", "sdxl"):
        assert found.pooled is not None and pooled is not None and torch.allclose(found.pooled, pooled, atol=1e-6)
    else:
        assert found.pooled is None


def test_each_text_is_encoded_once_and_found_on_disk_without_encoders(models: tuple[str, PromptModels], tmp_path: Path) -> None:
    style, held = models
    calls: list[int] = []

    def load() -> PromptModels:
        calls.append(1)
        return held

    store = PromptStore(tmp_path / "prompts")
    encoder = PromptEncoder(load, style, store=store)
    first = encoder.encode(TEXTS)
    assert len(calls) == 1 and sorted(path.name for path in store.folder.iterdir())[-1] == f"{style}-empty.safetensors"
    assert torch.equal(encoder.encode(TEXTS[::-1]).embeddings, first.embeddings.flip(0)) and len(calls) == 1

    def absent() -> PromptModels:
        raise AssertionError("the encoders were asked for")

    again = PromptEncoder(absent, style, store=PromptStore(tmp_path / "prompts")).encode(TEXTS)
    assert torch.equal(again.embeddings, first.embeddings)
    assert (again.pooled is None) == (first.pooled is None)
    with pytest.raises(AssertionError, match="asked for"):
        PromptEncoder(absent, style, store=store).encode(["a dog"])


def test_files_of_other_prompts_and_damaged_ones_are_named(tmp_path: Path) -> None:
    store, held = PromptStore(tmp_path), tiny_prompt_models("sd2")
    PromptEncoder(lambda: held, "sd2", store=store).encode(["a", ""])
    store.path("sd2", "a").rename(store.path("sd2", "b"))
    with pytest.raises(WeightsError, match="expected the prompt 'b' of sd2, got another; remove the file"):
        store.get("sd2", "b")
    store.path("sd2", "").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="the file is damaged or incomplete"):
        store.get("sd2", "")
    assert store.get("sd2", "a") is None and store.get("sdxl", "b") is None
    with pytest.raises(ValueError, match=r'texts: expected at least one, got none; pass \[""\] for the empty prompt'):
        PromptEncoder(lambda: held, "sd2").encode([])


def write_folder(root: Path, style: str, held: PromptModels) -> Path:
    for encoder, model, tokenizer in zip(PROMPT_STYLES[style].encoders, held.model, held.tokenizers, strict=True):
        whole: Any = model
        whole.save_pretrained(root / encoder.name)
        tokenizer.save_pretrained(root / encoder.tokenizer)
    return root


def test_loads_from_the_base_models_folder(models: tuple[str, PromptModels], tmp_path: Path) -> None:
    style, held = models
    write_folder(tmp_path / PROMPT_STYLES[style].folder.names[0], style, held)
    loaded = load_prompt_models(style, folders=[tmp_path], dtype=torch.float32)
    wanted = PromptEncoder(lambda: held, style).encode(TEXTS)
    found = PromptEncoder(lambda: loaded, style).encode(TEXTS)
    assert torch.allclose(found.embeddings, wanted.embeddings, atol=1e-6)
    if wanted.pooled is not None and found.pooled is not None:
        assert torch.allclose(found.pooled, wanted.pooled, atol=1e-6)


def published_names(model: Any) -> dict[str, torch.Tensor]:
    """As published files have them: CLIP's layers under `text_model`, whatever the class."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "encoder.embed_tokens.weight"}
    if type(model).__name__ != "CLIPTextModel":
        return state
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def test_published_folders_have_the_old_names_of_clip(tmp_path: Path) -> None:
    held = tiny_prompt_models("sd2")
    root = write_folder(tmp_path / "stable-diffusion-2-base", "sd2", held)
    save_file(published_names(held.model[0]), root / "text_encoder" / "model.safetensors", {"format": "pt"})
    loaded = load_prompt_models("sd2", folders=[tmp_path], dtype=torch.float32)
    wanted = PromptEncoder(lambda: held, "sd2").encode(TEXTS).embeddings
    assert torch.allclose(PromptEncoder(lambda: loaded, "sd2").encode(TEXTS).embeddings, wanted, atol=1e-6)


QUICK = {"hidden_act": "quick_gelu"}


@pytest.mark.parametrize("style", ["flux1", "sd15", "sdxl"])
def test_loads_single_files(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """clip_l, clip_g and t5xxl as ComfyUI users have them; what shapes do not tell is that of the published sizes."""
    monkeypatch.setattr("alignsr.core.conditioning.prompt_files._HEAD", 8)
    monkeypatch.setattr("alignsr.core.conditioning.prompt_files._LARGE", 32 if style == "sd15" else 16)
    held = tiny_prompt_models(style)
    parts: list[Any] = list(held.model)
    for encoder, model, tokenizer in zip(PROMPT_STYLES[style].encoders, parts, held.tokenizers, strict=True):
        is_t5 = encoder.class_name == "T5EncoderModel"
        if not is_t5:  # with the heads and the activation that a file of this width stands for
            config = type(model.config)(
                **{**model.config.to_dict(), "num_attention_heads": model.config.hidden_size // 8, **QUICK}
            )
            rebuilt = type(model)(config).eval().requires_grad_(False)
            rebuilt.load_state_dict(model.state_dict())
            held.model[list(held.model).index(model)] = rebuilt
        (tmp_path / "text_encoders").mkdir(exist_ok=True)
        save_file(published_names(model), tmp_path / "text_encoders" / encoder.files[0])
        tokenizer.save_pretrained(tmp_path / "tokenizers" / ("t5_tokenizer" if is_t5 else "clip_tokenizer"))
        assert isinstance((t5_options if is_t5 else clip_options)(published_names(model), "file"), dict)
    loaded = load_prompt_models(
        style, folders=[tmp_path / "text_encoders"], dtype=torch.float32, tokenizers=[tmp_path / "tokenizers"]
    )
    for tokenizer in loaded.tokenizers:
        tokenizer.pad_token = "<|endoftext|>"
    wanted, found = (PromptEncoder(lambda one=one: one, style).encode(TEXTS) for one in (held, loaded))
    assert torch.allclose(found.embeddings, wanted.embeddings, atol=1e-5)
    assert "rounded" not in caplog.text
    exact, rounded = (tmp_path / "text_encoders" / name for name in ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn.safetensors"))
    if exact.exists():
        exact.rename(rounded)
        load_prompt_models(style, folders=[tmp_path / "text_encoders"], tokenizers=[tmp_path / "tokenizers"])
        assert f"text_encoder_2: {rounded.name} is used, rounded to 8 bits, since {exact.name} is not there" in caplog.text


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        MissingModelError, match=r"text_encoder_2/config.json.*searched .*black-forest-labs.*clip_l.safetensors, t5xxl"
    ):
        load_prompt_models("flux1", folders=[tmp_path])
    with pytest.raises(
        MissingModelError, match=r"text encoders of Stable Diffusion 2 base.*Google Drive folder of cswry/DP2O-SR"
    ):
        load_prompt_models("sd2", folders=[tmp_path])
    save_file({"x": torch.zeros(1)}, tmp_path / "clip_l.safetensors")
    with pytest.raises(
        MissingModelError, match=r"tokenizer: expected a folder clip_tokenizer with .*openai/clip-vit-large-patch14"
    ):
        load_prompt_models("sd15", folders=[tmp_path])
    with pytest.raises(
        WeightsError, match=r"expected a CLIP text encoder, found no text_model.*but x; choose clip_l.safetensors"
    ):
        clip_options({"x": torch.zeros(1)}, "file")
    with pytest.raises(WeightsError, match=r"expected a T5 encoder, found no shared.weight but x"):
        t5_options({"x": torch.zeros(1)}, "file")
