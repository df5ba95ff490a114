"""What a vision-language model says about the low-resolution image, as tokens for the transformer: StrSR's conditioning."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_image, check_positive_int
from ..tiling import TilePlan
from ..weights import ASSETS, WeightsError
from .folders import TOKENIZER, WEIGHTS, FolderSpec, find_folder, load_tokenizer, load_transformer
from .resident import EmbeddingCache, Keep, OnDemand, Turns
from .vision import to_patches, to_uint8, vision_pixels

PROMPT_FILE = ASSETS / "strsr-prompt.json"
PROMPT_SHA256 = "4b0fc5618f14522852a9ddb3061cae7a4d54cd1c61d4b85aa2d52578e2c14afd"
VLM_FOLDER = FolderSpec(
    "vision-language model",
    ("Qwen3-VL-4B-Instruct",),
    (("config.json",), WEIGHTS, *TOKENIZER),
    "https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct",
    download="qwen3-vl",
    key="text_encoders",
)
LESS_WORK = "use a lower batch_size, smaller tiles where one shows more than 256 px of the input (or scope tile)"
CACHED_IMAGES = 1024  # 68 x 2560 values of 16 bits each: 0.35 MB


def strsr_prompt() -> str:
    """The fixed prompt of StrSR, from its data file.

    Raises:
        WeightsError: its bytes are not those the released weights were trained with.
    """
    text = str(json.loads(PROMPT_FILE.read_text(encoding="utf-8"))["prompt"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != PROMPT_SHA256:
        raise WeightsError(f"{PROMPT_FILE}: expected a prompt of SHA-256 {PROMPT_SHA256}, got {digest}; restore the file")
    return text


@dataclass(frozen=True)
class VisionLanguageModel:
    """Qwen3-VL without its output layer, and its tokenizer.

    Attributes:
        model: `Qwen3VLModel`: pixels and tokens to `last_hidden_state`.
        tokenizer: with Qwen's special tokens.
    """

    model: nn.Module
    tokenizer: Any

    def embed(self, images: list[Tensor], prompt: str, *, parity: bool) -> Tensor:
        """What the model holds at the text tokens after it has seen an image: [B, tokens, width], on its device.

        One user turn: image, then prompt, with the generation prompt added and no system turn. Kept is the last hidden state,
        after the final normalisation, of every token that is not an image token: 68 with the prompt of StrSR, whatever the size.

        Args:
            images: [3, h, w] each, range [0, 1], all of one size.
            prompt: the text.
            parity: resize twice and cut 8 bits off, as released.
        """
        facts: Any = self.model.config
        vision = facts.vision_config
        patch, merge, frames = int(vision.patch_size), int(vision.spatial_merge_size), int(vision.temporal_patch_size)
        pixels = [vision_pixels(image, parity=parity, factor=patch * merge) for image in images]
        height, width = pixels[0].shape[1] // patch, pixels[0].shape[2] // patch
        ids = self._tokens(prompt, height * width // merge**2).expand(len(images), -1)
        weight = next(self.model.parameters())
        is_image = ids == facts.image_token_id
        output = self.model(
            input_ids=ids.to(weight.device),
            attention_mask=torch.ones_like(ids).to(weight.device),
            mm_token_type_ids=is_image.int().to(weight.device),
            pixel_values=torch.cat([to_patches(one, patch, merge, frames) for one in pixels]).to(weight),
            image_grid_thw=torch.tensor([[1, height, width]] * len(images), device=weight.device),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[:, ~is_image[0].to(hidden.device)]

    def _tokens(self, prompt: str, count: int) -> Tensor:
        image = "<|image_pad|>" * count
        turn = f"<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids: Tensor = self.tokenizer(turn, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids


class VLMEncoder:
    """Encodes images once, remembers them by their pixels, and lets the model go between uses.

    Args:
        load: gives the model; see `load_vlm`. Not called while all images asked for are known.
        device: where the model works.
        keep: what stays between uses, see `OnDemand`.
        turns: shared with the backbone so that the two are never on the device together, see `OnDemand`.
        prompt: what is asked; the released weights know only that of StrSR.
        parity: resize twice and cut 8 bits off, as the released scripts do.
        cache_size: images to remember.
        make_room: see `OnDemand`.
    """

    def __init__(
        self,
        load: Callable[[], VisionLanguageModel],
        device: str | torch.device = "cpu",
        keep: Keep = "home",
        turns: Turns | None = None,
        *,
        prompt: str | None = None,
        parity: bool = False,
        cache_size: int = CACHED_IMAGES,
        make_room: Callable[[int], None] | None = None,
    ) -> None:
        self.models = OnDemand(load, device, keep, turns, make_room, LESS_WORK)
        self.prompt = strsr_prompt() if prompt is None else prompt
        self.parity = parity
        self.cache = EmbeddingCache(cache_size)

    def encode(self, lq: Tensor, *, batch_size: int = 1, on_image: Callable[[int, int], None] | None = None) -> Tensor:
        """Embeddings of low-resolution images, before the adapter.

        Args:
            lq: [B, 3, h, w], range [0, 1], not enlarged.
            batch_size: new images that go through the model together.
            on_image: called as on_image(done, total) before the model is needed and after each of its passes; may raise to
                cancel: what has been seen until then is remembered.

        Returns:
            [B, 68, 2560] in the model's dtype, on the CPU, without gradient.

        Source:
            StrSR, arXiv:2603.06275v1; strsr.md section 1.3 (code: test_flux.py of 4a5c99e).
        """
        check_image(lq, "lq", channels=(3,))
        check_positive_int(batch_size, "batch_size")
        images = [image.detach().cpu() for image in lq]
        keys = [_digest(image, self.parity) for image in images]
        known = {key: entry for key in keys if (entry := self.cache.get(key)) is not None}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        _report(on_image, len(images) - len(new), len(images))
        if new:
            with self.models.working() as held, torch.no_grad():
                for start in range(0, len(new), batch_size):
                    names = list(new)[start : start + batch_size]
                    found = held.embed([new[name] for name in names], self.prompt, parity=self.parity).cpu()
                    known |= dict(zip(names, found, strict=True))
                    for name in names:
                        self.cache.put(name, known[name])
                    _report(on_image, len(images) - len(new) + start + len(names), len(images))
        return torch.stack([known[key] for key in keys])

    def encode_tiles(
        self,
        lq: Tensor,
        plan: TilePlan,
        scale: int,
        *,
        batch_size: int = 1,
        on_image: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Embeddings of what each tile shows, as in training, where model and transformer saw the same crop.

        Args:
            lq: [1, 3, h, w], range [0, 1], not enlarged.
            plan: tiles of the enlarged image.
            scale: of the enlargement.
            batch_size: new tiles that go through the model together.
            on_image: see `encode`.

        Returns:
            [tiles, 68, 2560], in the order of `plan.starts`.

        Source:
            strsr.md section 5.12, the better mode.
        """
        return self.encode(tile_crops(lq, plan, scale), batch_size=batch_size, on_image=on_image)

    def release(self) -> None:
        """Give the model up; what is remembered stays."""
        self.models.release()


def _report(on_image: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if on_image is not None:
        on_image(done, total)


def tile_crops(lq: Tensor, plan: TilePlan, scale: int) -> Tensor:
    """The part of one low-resolution image under each tile of the enlarged one, [tiles, 3, h, w], all of one size.

    A tile that does not start on a whole pixel of `lq`, or reaches into padding, is moved to where it fits.
    """
    check_image(lq, "lq")
    check_positive_int(scale, "scale")
    if lq.shape[0] != 1:
        raise ValueError(f"lq: expected one image, got {lq.shape[0]}; encode image by image")
    height, width = (min(math.ceil(side / scale), full) for side, full in zip(plan.tile_size, lq.shape[2:], strict=True))
    places = [(min(top // scale, lq.shape[2] - height), min(left // scale, lq.shape[3] - width)) for top, left in plan.starts]
    return torch.cat([lq[:, :, top : top + height, left : left + width] for top, left in places])


def load_vlm(
    name: str | Path | None = None,
    folders: Iterable[str | Path] = (),
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> VisionLanguageModel:
    """Qwen3-VL from its transformers folder.

    Args:
        name: folder (path, or name in one of `folders`) instead of Qwen3-VL-4B-Instruct.
        folders: places to search.
        dtype: of the weights.
        device: where it will work; flash-attention 2 is used there if it is installed and fits, SDPA otherwise.

    Raises:
        MissingModelError: names every missing file and where to get it. Nothing is ever downloaded.
        WeightsError: damaged or incomplete files.
    """
    folder = find_folder(VLM_FOLDER, name, folders)
    whole: Any = load_transformer("Qwen3VLForConditionalGeneration", folder, dtype, device)
    return VisionLanguageModel(whole.model, load_tokenizer(folder))


def _digest(image: Tensor, parity: bool) -> str:
    """Images that are equal at 8 bits are equal to the vision tower."""
    pixels = to_uint8(image, parity=parity).contiguous()
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
