"""Prompts, the empty prompt and tags through each base model's own encoder, against the pipelines of diffusers."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_language_models as tiny
import torch

from alignsr.core.compat import import_third_party
from alignsr.core.conditioning import TEXT_STYLES, TextEncoder, TextModel, as_prompt, load_text_model, tags_to_text
from alignsr.core.weights import MissingModelError

TEXTS = ["a cat on a wall", ""]


@pytest.fixture(scope="module")
def whole():  # 3 s: the first import of transformers
    return tiny.make_text_model(), tiny.make_tokenizer()


@pytest.fixture()
def encoder(whole):
    model, tokenizer = whole
    return lambda style: TextEncoder(lambda: TextModel(model.model, tokenizer), TEXT_STYLES[style], max_tokens=96)


def test_flux2_klein_equals_its_pipeline(whole, encoder) -> None:  # 3 s: diffusers
    model, tokenizer = whole
    pipeline = import_third_party("diffusers").Flux2KleinPipeline
    wanted = pipeline._get_qwen3_prompt_embeds(model, tokenizer, list(TEXTS), max_sequence_length=96)
    found = encoder("flux2_klein").encode(TEXTS)
    assert found.mask is None
    assert found.embeddings.shape == (2, 96, 3 * 16)
    assert torch.allclose(found.embeddings, wanted, atol=1e-6)


def test_z_image_equals_its_pipeline(whole, encoder) -> None:
    model, tokenizer = whole
    kind = import_third_party("diffusers").ZImagePipeline
    pipeline = kind.__new__(kind)
    pipeline.tokenizer, pipeline.text_encoder = tokenizer, model
    wanted = kind._encode_prompt(pipeline, list(TEXTS), device="cpu", max_sequence_length=96)
    found = encoder("z_image").encode(TEXTS)
    assert found.mask is not None
    for embedding, mask, theirs in zip(found.embeddings, found.mask, wanted, strict=True):
        assert torch.allclose(embedding[mask], theirs, atol=1e-6)


def test_each_text_is_encoded_once(whole) -> None:
    model, tokenizer = whole
    calls = []

    def load() -> TextModel:
        calls.append(1)
        return TextModel(model.model, tokenizer)

    encoder = TextEncoder(load, TEXT_STYLES["z_image"], keep="nothing", max_tokens=32)
    first = encoder.encode(["a", "b", "a"])
    assert torch.equal(first.embeddings[0], first.embeddings[2]) and not torch.equal(first.embeddings[0], first.embeddings[1])
    assert torch.equal(encoder.encode(["b"]).embeddings[0], first.embeddings[1])
    assert len(calls) == 1
    encoder.encode(["c"])
    assert len(calls) == 2


def test_more_texts_than_are_remembered(whole, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = whole
    encoder = TextEncoder(lambda: TextModel(model.model, tokenizer), TEXT_STYLES["z_image"], max_tokens=16)
    encoder.cache.size = encoder.masks.size = 1
    assert encoder.encode(["a", "b", "c"]).embeddings.shape[0] == 3


def test_nothing_to_encode_is_named(encoder) -> None:
    with pytest.raises(ValueError, match=r'texts: expected at least one, got none; pass \[""\] for the empty prompt'):
        encoder("z_image").encode([])


def test_loads_from_a_diffusers_folder(whole, tmp_path: Path) -> None:
    tiny.save_text_model(tmp_path / "Z-Image-Turbo")
    style = TEXT_STYLES["z_image"]
    loaded = load_text_model(style, folders=[tmp_path], dtype=torch.float32)
    model, tokenizer = whole
    wanted = TextEncoder(lambda: TextModel(model.model, tokenizer), style, max_tokens=32).encode(TEXTS)
    found = TextEncoder(lambda: loaded, style, max_tokens=32).encode(TEXTS)
    assert torch.allclose(found.embeddings, wanted.embeddings, atol=1e-6)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name, source in (("flux2_klein", "black-forest-labs"), ("z_image", "Tongyi-MAI")):
        with pytest.raises(MissingModelError, match=rf"text_encoder/config.json.*searched .*{source}"):
            load_text_model(TEXT_STYLES[name], folders=[tmp_path])
    (tmp_path / "Z-Image-Turbo" / "text_encoder").mkdir(parents=True)
    with pytest.raises(MissingModelError, match=r"lacks .*text_encoder/model.safetensors or .*tokenizer/tokenizer_config.json"):
        load_text_model(TEXT_STYLES["z_image"], folders=[tmp_path])


def test_styles_differ_where_the_base_models_do() -> None:
    flux, z_image = TEXT_STYLES["flux2_klein"], TEXT_STYLES["z_image"]
    assert (flux.layers, flux.thinks, flux.drops_padding) == ((9, 18, 27), False, False)
    assert (z_image.layers, z_image.thinks, z_image.drops_padding) == ((-2,), True, True)
    assert replace(flux, layers=(1,)).layers == (1,)


def test_tags_become_plain_text() -> None:
    assert tags_to_text(["cat", " sharp  focus ", "", "Cat"]) == "cat, sharp focus"
    assert tags_to_text("a; b,\nc,,A") == "a, b, c"
    assert tags_to_text("") == tags_to_text([]) == ""


def test_prose_with_commas_is_not_taken_for_tags() -> None:
    prose = (
        "Two people.\n\nOne stands, one sits.",
        "A red barn stands in a field of wheat,  under heavy clouds",
        "cat,\ndog",
        "Cars: red,  blue, Red",
        "Who sits, who stands?",
    )
    for text in prose:
        assert as_prompt(text) == text
    assert as_prompt(" red barn,  field of wheat; Red Barn,, f/1.8 lens\n") == "red barn, field of wheat, f/1.8 lens"
