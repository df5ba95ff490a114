"""Text encoders in single files, as ComfyUI's models/text_encoders has them: the same embeddings as from the folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models as tiny
import torch
from safetensors.torch import save_file

from alignsr.core.compat import import_transformers
from alignsr.core.conditioning import TEXT_STYLES, TextEncoder, TextModel, find_text_model, load_text_model
from alignsr.core.conditioning.single_file import infer_options
from alignsr.core.weights import MissingModelError, WeightsError

FILE = "qwen_3_4b.safetensors"
TEXTS = ["a cat on a wall", ""]


@pytest.fixture(scope="module")
def model() -> Any:
    """As deep as FLUX.2 reads it, with the rotary base of Qwen3, which no tensor tells."""
    transformers = import_transformers()
    config = tiny.make_text_model().config.to_dict()
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    changed = transformers.Qwen3Config(**{**config, "rope_parameters": rope, "max_position_embeddings": 40_960})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Qwen3ForCausalLM(changed).eval()


def file_of(model: Any, folder: Path, name: str = FILE, **more: torch.Tensor) -> Path:
    """ComfyUI's names: those of transformers, without the output layer, which is the embedding's."""
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**state, **more}, folder / name)
    return folder / name


def encode(loaded: TextModel, style: str) -> Any:
    return TextEncoder(lambda: loaded, TEXT_STYLES[style], max_tokens=48).encode(TEXTS)


@pytest.mark.parametrize("style", list(TEXT_STYLES))
@pytest.mark.parametrize("place", ["beside", "folder of the tokenizer", "folder of another model"])
def test_a_single_file_equals_the_folder(style: str, place: str, model: Any, tmp_path: Path) -> None:
    path = file_of(model, tmp_path / "text_encoders" / "qwen")
    tokens = {
        "beside": path.parent / "tokenizer",
        "folder of the tokenizer": tmp_path / "comfy" / "qwen25_tokenizer",
        "folder of another model": tmp_path / "text_encoders" / "Qwen3-VL-4B-Instruct",
    }[place]
    tiny.make_tokenizer().save_pretrained(tokens)
    found = load_text_model(
        TEXT_STYLES[style], None, [tmp_path / "text_encoders"], torch.float32, tokenizers=[tmp_path / "comfy"]
    )
    wanted = encode(TextModel(model.model, tiny.make_tokenizer()), style)
    ours = encode(found, style)
    torch.testing.assert_close(ours.embeddings, wanted.embeddings, atol=1e-5, rtol=0)
    assert (ours.mask is None) == (wanted.mask is None) and (ours.mask is None or torch.equal(ours.mask, wanted.mask))
    assert not any(p.requires_grad for p in found.model.parameters())


def test_precision_and_scaled_8_bit_floats(model: Any, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    weight = model.state_dict()[name]
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    path = file_of(model, tmp_path, "scaled.safetensors", **{name: stored, name.removesuffix(".weight") + ".weight_scale": scale})
    tiny.make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    found = load_text_model(TEXT_STYLES["z_image"], path, (), torch.bfloat16)
    read = found.model.get_submodule("layers.3.mlp.up_proj").weight
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.float(), stored.float() * scale, rtol=0.01, atol=0)


def test_the_folder_goes_before_the_file_and_a_name_before_both(model: Any, tmp_path: Path) -> None:
    path = file_of(model, tmp_path / "deep" / "er")
    style = TEXT_STYLES["z_image"]
    assert find_text_model(style, None, [tmp_path]) == path
    tiny.save_text_model(tmp_path / "Z-Image-Turbo")
    assert find_text_model(style, None, [tmp_path]) == tmp_path / "Z-Image-Turbo"
    assert find_text_model(style, f"deep/er/{FILE}", [tmp_path]) == path
    assert find_text_model(style, path) == path


def test_the_published_size_is_read_from_the_shapes() -> None:
    """Qwen3-4B: 36 layers of 2560, 32 heads and 8 groups of 128 (strsr.md 1.3; ComfyUI's own configuration)."""
    shapes = {
        "embed_tokens.weight": (151_936, 2560),
        "layers.0.self_attn.q_norm.weight": (128,),
        "layers.0.self_attn.q_proj.weight": (4096, 2560),
        "layers.0.self_attn.k_proj.weight": (1024, 2560),
        "layers.0.mlp.gate_proj.weight": (9728, 2560),
        **{f"layers.{n}.input_layernorm.weight": (2560,) for n in range(36)},
    }
    options = infer_options({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "x")
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size")
    assert [options[key] for key in sizes] == [36, 32, 8, 128, 9728, 151_936]
    transformers = import_transformers()
    with torch.device("meta"):
        whole = transformers.Qwen3Model(transformers.Qwen3Config(**options))
    assert round(sum(p.numel() for p in whole.parameters()) / 1e9, 2) == 4.02


def test_what_is_missing_or_wrong_is_named(model: Any, tmp_path: Path) -> None:
    style = TEXT_STYLES["flux2_klein"]
    with pytest.raises(MissingModelError, match=r"text_encoder/config.json.*or the single file qwen_3_4b\.safetensors with Qwen"):
        find_text_model(style, None, [tmp_path])
    path = file_of(model, tmp_path)
    with pytest.raises(MissingModelError, match=r"tokenizer: expected a folder with tokenizer_config\.json and .*Qwen3-4B"):
        load_text_model(style, path)
    tiny.make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    save_file({"encoder.block.0.weight": torch.zeros(2)}, tmp_path / "t5.safetensors")
    with pytest.raises(WeightsError, match=r"t5\.safetensors: expected a Qwen3 text encoder, found no embed_tokens"):
        load_text_model(style, tmp_path / "t5.safetensors")
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file({**state, "model.extra": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"missing: layers\.1\.mlp\.up_proj\.weight; unexpected: extra"):
        load_text_model(style, tmp_path / "part.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: expected a safetensors file, got 500 bytes"):
        load_text_model(style, tmp_path / "cut.safetensors")
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{")
    (tmp_path / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="expected a tokenizer, got"):
        load_text_model(style, path)
