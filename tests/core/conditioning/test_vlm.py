"""The vision-language branch: checks 19, 20 and 29 of strsr.md section 7, on a random Qwen3-VL with the real structure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_language_models as tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from alignsr.core.backbones.offload import Residency
from alignsr.core.borrowed import nbytes
from alignsr.core.compat import import_third_party
from alignsr.core.conditioning import (
    ADAPTER_WIDTHS,
    VLM_WIDTH,
    TokenAdapter,
    VisionLanguageModel,
    VLMEncoder,
    load_adapter,
    load_vlm,
    strsr_prompt,
    tile_crops,
    vlm,
)
from alignsr.core.conditioning.resident import WORK_BYTES
from alignsr.core.conditioning.vision import to_patches, to_uint8, vision_pixels, vision_sizes
from alignsr.core.images import quantize_8bit
from alignsr.core.memory import DoesNotFitError
from alignsr.core.tiling import plan
from alignsr.core.weights import MissingModelError, WeightsError


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:  # 3 s: the first import of transformers
    tokenizer = tiny.make_tokenizer()
    return VisionLanguageModel(tiny.make_vlm(tokenizer).model.requires_grad_(False), tokenizer)


def image(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


class Loader:
    """Counts how often the model is asked for."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model, self.calls = model, 0

    def __call__(self) -> VisionLanguageModel:
        self.calls += 1
        return self.model


class TestPrompt:
    def test_20_bytes_of_the_prompt(self) -> None:
        text = strsr_prompt()
        assert len(text) == 271
        assert text.startswith("Descibe this image") and "Color. Grading" in text

    def test_a_corrected_prompt_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "prompt.json"
        file.write_text(json.dumps({"prompt": strsr_prompt().replace("Descibe", "Describe")}))
        monkeypatch.setattr(vlm, "PROMPT_FILE", file)
        with pytest.raises(WeightsError, match=r"expected a prompt of SHA-256 4b0fc5618f.*restore the file"):
            strsr_prompt()


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "sizes", "tokens"),
        [
            ((256, 256), [(252, 252), (256, 256)], 64),
            ((512, 512), [(504, 504), (512, 512)], 256),
            ((339, 510), [(336, 504), (320, 512)], 160),
            ((1080, 1920), [(1092, 1932), (1088, 1920)], 2040),
        ],
    )
    def test_19_table_of_the_specification(self, size, sizes, tokens) -> None:
        found = vision_sizes(*size, parity=True)
        assert found == sizes
        assert math.prod(found[-1]) // 32**2 == tokens

    def test_one_resize_without_parity(self) -> None:
        assert vision_sizes(339, 510, parity=False) == [(352, 512)]

    def test_limits(self) -> None:
        for parity in (True, False):
            for size in ((8, 8), (40, 300), (200, 64)):
                assert math.prod(vision_sizes(*size, parity=parity)[-1]) >= 65_536
            height, width = vision_sizes(9000, 6000, parity=parity)[-1]
            assert height * width <= 16_777_216 and height % 32 == width % 32 == 0
        with pytest.raises(ValueError, match="lq: expected sides within 1 : 200, got 4x1000"):
            vision_sizes(4, 1000, parity=False)

    def test_pixels_and_patches_equal_the_processor_of_transformers(self) -> None:
        x = image(96, 64)[0]
        processor = import_third_party("transformers").Qwen2VLImageProcessor(
            patch_size=16, merge_size=2, temporal_patch_size=2, size=dict(shortest_edge=65_536, longest_edge=16_777_216),
            image_mean=[0.5] * 3, image_std=[0.5] * 3,
        )  # fmt: skip
        picture = Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        wanted = processor(images=[picture], return_tensors="pt")
        pixels = vision_pixels(x, parity=False)
        assert wanted["image_grid_thw"].tolist() == [[1, pixels.shape[1] // 16, pixels.shape[2] // 16]]
        ours = to_patches(pixels, 16, 2, 2)
        assert ours.shape == wanted["pixel_values"].shape
        assert (ours - wanted["pixel_values"]).abs().max() <= 2 / 127.5  # two implementations of 8-bit bicubic
        assert (ours - wanted["pixel_values"]).abs().mean() < 0.2 / 127.5

    def test_parity_cuts_8_bits_off_and_pictures_of_8_bits_stay(self) -> None:
        levels = torch.arange(256).reshape(1, 16, 16).expand(3, 16, 16)
        assert all(torch.equal(to_uint8(levels / 255.0, parity=parity), levels.to(torch.uint8)) for parity in (False, True))
        between = (levels[:, :15] + 0.75) / 255
        assert torch.equal(to_uint8(between, parity=True), levels[:, :15].to(torch.uint8))
        assert torch.equal(to_uint8(between), levels[:, :15].to(torch.uint8) + 1)

    def test_parity_resizes_twice(self) -> None:
        x = image(339, 510)[0]
        once, twice = (vision_pixels(x, parity=parity) for parity in (False, True))
        assert once.shape[1:] == (352, 512) and twice.shape[1:] == (320, 512)
        picture = Image.fromarray((x * 255).to(torch.uint8).permute(1, 2, 0).numpy())
        by_hand = np.array(picture.resize((504, 336), Image.Resampling.BICUBIC).resize((512, 320), Image.Resampling.BICUBIC))
        assert torch.equal(twice, torch.from_numpy(by_hand).permute(2, 0, 1).float() / 127.5 - 1)


class TestEncoding:
    def test_19_68_tokens_for_any_size_and_four_constant_ones(self, model: VisionLanguageModel) -> None:
        encoder = VLMEncoder(lambda: model)
        found = [encoder.encode(image(*size, seed=n)) for n, size in enumerate(((256, 256), (64, 96), (300, 200)))]
        assert [tuple(one.shape) for one in found] == [(1, 68, 32)] * 3
        for one in found[1:]:
            assert torch.allclose(one[:, :4], found[0][:, :4], atol=1e-6)
            assert (one[:, 4:] - found[0][:, 4:]).abs().amax(-1).min() > 1e-6

    def test_equals_the_processor_and_the_whole_model_of_transformers(self, model: VisionLanguageModel) -> None:
        x = image(256, 288)
        tokenizer = model.tokenizer
        ids = tokenizer(
            "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 72 + "<|vision_end|>" + strsr_prompt()
            + "<|im_end|>\n<|im_start|>assistant\n",
            return_tensors="pt", add_special_tokens=False,
        )["input_ids"]  # fmt: skip
        pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        wanted = model.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == pad).int(),
            pixel_values=to_patches(vision_pixels(x[0], parity=False), 16, 2, 2), image_grid_thw=torch.tensor([[1, 16, 18]]),
        ).last_hidden_state[0][ids[0] != pad]  # fmt: skip
        names = tokenizer.convert_ids_to_tokens(ids[0][ids[0] != pad])
        assert names[0] == names[65] == "<|im_start|>" and names[3] == "<|vision_start|>" and names[4] == "<|vision_end|>"
        assert names[1] == "user" and names[63] == "<|im_end|>" and names[66] == "assistant"
        found = VLMEncoder(lambda: model).encode(x)
        assert torch.allclose(found[0], wanted, atol=1e-6)

    def test_a_batch_equals_one_by_one(self, model: VisionLanguageModel) -> None:
        images = torch.cat([image(64, 64, seed=n) for n in range(3)])
        together = VLMEncoder(lambda: model).encode(images, batch_size=2)
        alone = torch.cat([VLMEncoder(lambda: model).encode(images[n : n + 1]) for n in range(3)])
        assert torch.allclose(together, alone, atol=1e-5)

    def test_known_images_do_not_need_the_model(self, model: VisionLanguageModel) -> None:
        loader = Loader(model)
        encoder = VLMEncoder(loader, keep="nothing")
        levels = quantize_8bit(image(64, 64))
        first = encoder.encode(levels)
        assert loader.calls == 1 and encoder.models.held is None
        assert torch.equal(encoder.encode(levels + 1e-4), first)  # equal at 8 bits
        assert loader.calls == 1
        assert not torch.equal(encoder.encode(image(64, 64, seed=5)), first)
        assert loader.calls == 2

    def test_the_cache_forgets_what_was_used_least_recently(self, model: VisionLanguageModel) -> None:
        loader = Loader(model)
        encoder = VLMEncoder(loader, keep="nothing", cache_size=1)
        for seed in (0, 1, 0):
            encoder.encode(image(64, 64, seed=seed))
        assert loader.calls == 3

    def test_says_how_far_it_is_and_remembers_what_it_saw_before_it_was_stopped(self, model: VisionLanguageModel) -> None:
        loader, images, seen = Loader(model), torch.cat([image(64, 64, seed=n) for n in range(3)]), list[tuple[int, int]]()
        encoder = VLMEncoder(loader, keep="nothing")

        def stop(done: int, total: int) -> None:
            seen.append((done, total))
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            encoder.encode(images, on_image=stop)
        assert seen == [(0, 3), (1, 3), (2, 3)] and encoder.models.held is None
        encoder.encode(images[:2])
        assert loader.calls == 1
        seen.clear()
        encoder.encode(images, batch_size=2, on_image=lambda done, total: seen.append((done, total)))
        assert seen == [(2, 3), (3, 3)]

    def test_asks_for_room_before_it_comes_and_says_what_did_not_fit(
        self, model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        encoder = VLMEncoder(lambda: model, make_room=asked.append)
        encoder.encode(image(64, 64))
        encoder.encode(image(64, 64))
        assert asked == [nbytes(model.model) + WORK_BYTES]

        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(VisionLanguageModel, "embed", full)
        with pytest.raises(DoesNotFitError, match=r"room for Qwen3VLModel \(0\.00 GiB of weights\) at work on cpu, got out of"):
            encoder.encode(image(64, 64, seed=1))

    def test_takes_turns_with_the_backbone(self, model: VisionLanguageModel) -> None:
        turns, other = Residency("cpu"), torch.nn.Linear(1, 1)
        turns.use(other)
        encoder = VLMEncoder(lambda: model, turns=turns)
        encoder.encode(image(64, 64))
        assert turns.resident is None  # the backbone left for it, and it left afterwards

    def test_a_tile_is_encoded_as_the_crop_it_shows(self, model: VisionLanguageModel) -> None:
        lq = image(48, 80)
        tiles = plan(192, 320, 128, 32, multiple=16)
        crops = tile_crops(lq, tiles, 4)
        assert len(crops) == len(tiles.starts)
        for crop, (top, left) in zip(crops, tiles.starts, strict=True):
            assert torch.equal(crop, lq[0, :, top // 4 : top // 4 + crop.shape[1], left // 4 : left // 4 + crop.shape[2]])
        encoder = VLMEncoder(lambda: model)
        assert torch.equal(encoder.encode_tiles(lq, tiles, 4)[1], encoder.encode(crops[1:2])[0])

    def test_tiles_that_reach_into_padding_are_moved_inside(self) -> None:
        lq = image(50, 83)
        crops = tile_crops(lq, plan(208, 336, 128, 32, multiple=16), 4)
        assert torch.equal(crops[-1], lq[0, :, -crops.shape[2] :, -crops.shape[3] :])

    def test_wrong_arguments_are_named(self, model: VisionLanguageModel) -> None:
        with pytest.raises(ValueError, match="keep: expected one of device, home, nothing, got 'hme'; did you mean 'home'"):
            VLMEncoder(lambda: model, keep="hme")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"lq: expected \[B, 3, H, W\]"):
            VLMEncoder(lambda: model).encode(torch.rand(1, 1, 8, 8))
        with pytest.raises(ValueError, match="lq: expected one image, got 2"):
            tile_crops(torch.rand(2, 3, 8, 8), plan(32, 32, 16, 4), 4)


class TestAdapter:
    @pytest.mark.parametrize(("backbone", "shapes", "millions"), [
        ("flux2_klein", [(3840, 2560), (3840,), (7680, 3840), (7680,)], 39.33),
        ("z_image", [(1280, 2560), (1280,), (2560, 1280), (2560,)], 6.56),
    ])  # fmt: skip
    def test_20_shapes_and_counts(self, backbone: str, shapes: list[tuple[int, ...]], millions: float) -> None:
        with torch.device("meta"):
            adapter = TokenAdapter(VLM_WIDTH, ADAPTER_WIDTHS[backbone])
        assert [tuple(value.shape) for value in adapter.state_dict().values()] == shapes
        assert list(adapter.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert round(sum(p.numel() for p in adapter.parameters()) / 1e6, 2) == millions

    def test_29_it_moves(self) -> None:
        """50 steps at 5e-6 with constant gradients; the same in bf16, as released, moves a tenth."""
        shares: dict[torch.dtype, float] = {}
        for dtype in (torch.float32, torch.bfloat16):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                adapter = TokenAdapter(2560, 64)
            weight = torch.nn.Parameter(adapter[0].weight.detach().to(dtype))
            before = weight.detach().clone()
            optimizer = torch.optim.AdamW([weight], 5e-6)
            weight.grad = torch.ones_like(weight)
            for _ in range(50):
                optimizer.step()
            shares[dtype] = (weight != before).float().mean().item()
        assert shares[torch.float32] > 0.99
        assert shares[torch.bfloat16] < 0.2

    def test_16_bit_tokens_are_multiplied_in_16_bits_and_the_gradient_is_float32(self) -> None:
        adapter = TokenAdapter(8, 12)
        tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        exact, half = adapter(tokens), adapter(tokens.bfloat16())
        assert half.dtype == torch.bfloat16
        assert torch.allclose(half.float(), exact, atol=0.03)
        assert torch.allclose(exact, torch.nn.Sequential(*adapter)(tokens))
        half.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters())

    def test_round_trip_of_released_and_own_files(self, tmp_path: Path) -> None:
        adapter = TokenAdapter(8, 12)
        released = {name: value.bfloat16() for name, value in adapter.state_dict().items()}
        torch.save(released, tmp_path / "projector.pth")
        save_file(adapter.state_dict(), tmp_path / "adapter.safetensors")
        own = load_adapter(tmp_path / "adapter.safetensors", outputs=12)
        theirs = load_adapter(tmp_path / "projector.pth")
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), adapter.state_dict().values(), strict=True))
        assert all(value.dtype == torch.float32 for value in theirs.state_dict().values())
        tokens = torch.randn(1, 68, 8)
        assert torch.equal(own.condition(tokens).embeddings, adapter(tokens))

    def test_the_adapter_of_another_backbone_is_named(self, tmp_path: Path) -> None:
        save_file({"0.weight": torch.zeros(1280, 4), "0.bias": torch.zeros(1280), "2.weight": torch.zeros(2560, 1280),
                   "2.bias": torch.zeros(2560)}, tmp_path / "z.safetensors")  # fmt: skip
        with pytest.raises(WeightsError, match=r"expected an adapter to 7680 channels, got 2560 \(that of z_image\)"):
            load_adapter(tmp_path / "z.safetensors", outputs=7680)

    def test_other_files_are_named(self, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match=r"expected an adapter with 0.weight and 2.weight, got weight"):
            load_adapter(tmp_path / "other.safetensors")
        save_file({"0.weight": torch.zeros(6, 4), "2.weight": torch.zeros(12, 6)}, tmp_path / "partly.safetensors")
        with pytest.raises(WeightsError, match=r"missing: 0.bias, 2.bias"):
            load_adapter(tmp_path / "partly.safetensors")


class TestLoading:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "Qwen3-VL-4B-Instruct"
        tiny.save_vlm(folder)
        return folder

    def test_a_folder_gives_the_same_embeddings(self, folder: Path, model: VisionLanguageModel) -> None:
        loaded = load_vlm(folders=[folder.parent], dtype=torch.float32)
        assert loaded.model.config._attn_implementation == "sdpa"
        assert not any(p.requires_grad for p in loaded.model.parameters())
        wanted = VLMEncoder(lambda: model, parity=True).encode(image(64, 64))
        assert torch.allclose(VLMEncoder(lambda: loaded, parity=True).encode(image(64, 64)), wanted, atol=1e-6)

    def test_16_bits(self, folder: Path) -> None:
        loaded = load_vlm(folder, dtype=torch.bfloat16)
        found = VLMEncoder(lambda: loaded).encode(image(64, 64))
        assert found.dtype == torch.bfloat16 and torch.isfinite(found.float()).all()

    def test_missing_folders_and_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(MissingModelError, match=r"Qwen3-VL-4B-Instruct with config.json.*searched .*huggingface.co/Qwen"):
            load_vlm(folders=[tmp_path])
        where = r"`alignsr models download qwen3-vl`, which puts it into text_encoders/Qwen3-VL-4B-Instruct, or"
        with pytest.raises(MissingModelError, match=where):
            load_vlm(folders=[tmp_path])
        with pytest.raises(MissingModelError, match=r"'qwen3-vl' is what the download is called, the folder's name is Qwen3-VL"):
            load_vlm("qwen3-vl", folders=[tmp_path])
        folder = tmp_path / "Qwen3-VL-4B-Instruct"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
        with pytest.raises(MissingModelError, match=r"lacks .*tokenizer_config.json.*model-1.safetensors; get the whole folder"):
            load_vlm(folders=[tmp_path])

    def test_incomplete_weights_are_refused(self, folder: Path, tmp_path: Path) -> None:
        import shutil

        from safetensors.torch import load_file

        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        state = load_file(broken / "model.safetensors")
        state.pop("model.language_model.layers.1.mlp.up_proj.weight")
        save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"1 are missing or of another shape: model.language_model.layers.1.mlp"):
            load_vlm(broken)
        (broken / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(WeightsError, match="expected a Qwen3VLForConditionalGeneration, got"):
            load_vlm(broken)
