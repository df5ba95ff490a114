"""What a vision-language model says about the low-resolution image, as tokens for the transformer: StrSR's conditioning."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..checks import check_image, check_positive_int
from ..records import Conditioning
from ..tiling import TilePlan
from ..weights import ASSETS, WeightsError, load_into, load_state_dict
from .folders import TOKENIZER, WEIGHTS, FolderSpec, find_folder, load_tokenizer, load_transformer
from .resident import EmbeddingCache, Keep, OnDemand, Turns

PROMPT_FILE = ASSETS / "strsr-prompt.json"
PROMPT_SHA256 = "4b0fc5618f14522852a9ddb3061cae7a4d54cd1c61d4b85aa2d52578e2c14afd"
VLM_FOLDER = FolderSpec(
    "vision-language model",
    ("Qwen3-VL-4B-Instruct",),
    (("config.json",), WEIGHTS, *TOKENIZER),
    "https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct",
)
VLM_WIDTH = 2560
ADAPTER_WIDTHS = {"flux2_klein": 7680, "z_image": 2560}
CACHED_IMAGES = 1024  # 68 x 2560 values of 16 bits each: 0.35 MB
MAX_ASPECT = 200


class Rounding(NamedTuple):
    """A rule for image sides: multiples of `factor`, between `low` and `high` pixels in all."""

    factor: int
    low: int
    high: int


UTILITY_ROUNDING = Rounding(28, 4 * 28 * 28, 16384 * 28 * 28)  # qwen-vl-utils 0.0.8
PROCESSOR_ROUNDING = Rounding(32, 65_536, 16_777_216)  # the processor of Qwen3-VL


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


def round_size(height: int, width: int, rule: Rounding) -> tuple[int, int]:
    """The size to which Qwen's preprocessing resizes an image.

        h' = round(h / f) f, at least f, likewise w';  beyond the limits both are scaled by sqrt(limit / (h w)) first and then
        rounded down (too large) or up (too small)

    Halves are rounded to even, as Python does.

    Raises:
        ValueError: a side 200 times the other.

    Source:
        strsr.md section 1.3; qwen-vl-utils 0.0.8 and transformers 4.57.0 (smart_resize).

    Example:
        >>> round_size(1080, 1920, UTILITY_ROUNDING), round_size(1092, 1932, PROCESSOR_ROUNDING)
        ((1092, 1932), (1088, 1920))
    """
    factor, low, high = rule
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"lq: expected sides within 1 : {MAX_ASPECT}, got {height}x{width}; crop the image")
    rounded = tuple(max(factor, round(side / factor) * factor) for side in (height, width))
    if math.prod(rounded) > high:
        shrink = math.sqrt(height * width / high)
        rounded = tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif math.prod(rounded) < low:
        grow = math.sqrt(low / (height * width))
        rounded = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return rounded[0], rounded[1]


def vision_sizes(height: int, width: int, *, parity: bool, factor: int = PROCESSOR_ROUNDING.factor) -> list[tuple[int, int]]:
    """Sizes through which an image goes: multiples of 28 and then of 32 as released (`parity`), or of 32 at once.

    Example:
        >>> vision_sizes(339, 510, parity=True), vision_sizes(339, 510, parity=False)
        ([(336, 504), (320, 512)], [(352, 512)])
    """
    last = PROCESSOR_ROUNDING._replace(factor=factor)
    if not parity:
        return [round_size(height, width, last)]
    first = round_size(height, width, UTILITY_ROUNDING)
    return [first, round_size(*first, last)]


def vision_pixels(image: Tensor, *, parity: bool, factor: int = PROCESSOR_ROUNDING.factor) -> Tensor:
    """One image as the vision tower sees it: 8 bits, resized with Pillow's bicubic filter, (x - 0.5) / 0.5.

    Args:
        image: [3, h, w], range [0, 1].
        parity: resize twice, as released.
        factor: patch times merge of the vision tower.

    Returns:
        [3, H, W] float32 in [-1, 1].
    """
    picture = Image.fromarray(_to_uint8(image).permute(1, 2, 0).numpy())
    for height, width in vision_sizes(*image.shape[1:], parity=parity, factor=factor):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Cut an image into the rows that Qwen's vision tower reads: patches of one merge group follow one another.

    Args:
        pixels: [3, H, W], sides multiples of patch * merge.
        patch: side of a patch.
        merge: patches per side that become one token.
        frames: a still image is shown that many times.

    Returns:
        [H / patch * W / patch, 3 * frames * patch * patch].

    Source:
        transformers 4.57.0, Qwen2VLImageProcessor.
    """
    rows, columns = pixels.shape[1] // (patch * merge), pixels.shape[2] // (patch * merge)
    grid = pixels.reshape(3, rows, merge, patch, columns, merge, patch)
    patches = grid.permute(1, 4, 2, 5, 0, 3, 6)  # rows, columns, merge, merge, colour, patch, patch
    shown = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return shown.reshape(rows * columns * merge * merge, 3 * frames * patch * patch)


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
            parity: resize twice, as released.
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
        parity: resize twice, as the released scripts do.
        cache_size: images to remember.
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
    ) -> None:
        self.models = OnDemand(load, device, keep, turns)
        self.prompt = strsr_prompt() if prompt is None else prompt
        self.parity = parity
        self.cache = EmbeddingCache(cache_size)

    def encode(self, lq: Tensor, *, batch_size: int = 1) -> Tensor:
        """Embeddings of low-resolution images, before the adapter.

        Args:
            lq: [B, 3, h, w], range [0, 1], not enlarged.
            batch_size: new images that go through the model together.

        Returns:
            [B, 68, 2560] in the model's dtype, on the CPU, without gradient.

        Source:
            StrSR, arXiv:2603.06275v1; strsr.md section 1.3 (code: test_flux.py of 4a5c99e).
        """
        check_image(lq, "lq", channels=(3,))
        check_positive_int(batch_size, "batch_size")
        images = [image.detach().cpu() for image in lq]
        keys = [_digest(image) for image in images]
        known = {key: entry for key in keys if (entry := self.cache.get(key)) is not None}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
        if new:
            with self.models.working() as held, torch.no_grad():
                for start in range(0, len(new), batch_size):
                    names = list(new)[start : start + batch_size]
                    found = held.embed([new[name] for name in names], self.prompt, parity=self.parity).cpu()
                    known |= dict(zip(names, found, strict=True))
        for key in new:
            self.cache.put(key, known[key])
        return torch.stack([known[key] for key in keys])

    def encode_tiles(self, lq: Tensor, plan: TilePlan, scale: int, *, batch_size: int = 1) -> Tensor:
        """Embeddings of what each tile shows, as in training, where model and transformer saw the same crop.

        Args:
            lq: [1, 3, h, w], range [0, 1], not enlarged.
            plan: tiles of the enlarged image.
            scale: of the enlargement.
            batch_size: new tiles that go through the model together.

        Returns:
            [tiles, 68, 2560], in the order of `plan.starts`.

        Source:
            strsr.md section 5.12, the better mode.
        """
        return self.encode(tile_crops(lq, plan, scale), batch_size=batch_size)

    def release(self) -> None:
        """Give the model up; what is remembered stays."""
        self.models.release()


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


class TokenAdapter(nn.Sequential):
    """The trainable bridge from the vision-language model's tokens to the transformer's: linear, SiLU, linear.

    Parameters are float32 whatever the model's precision (at 16 bits a step of 5e-6 is lost to rounding on 9 of 10 weights,
    strsr.md 6.2 item 1); the products run in the dtype of the input.

    Args:
        inputs: width of the vision-language model.
        outputs: width of the transformer's text tokens: 7680 (FLUX.2 klein, 39.33 M parameters) or 2560 (Z-Image, 6.56 M).

    Shapes:
        [B, N, inputs] -> [B, N, outputs].

    Source:
        StrSR, arXiv:2603.06275v1 (f_adapt); strsr.md sections 1.3 and 5.8. Names of parameters as in `projector.pth`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        check_positive_int(inputs, "inputs")
        check_positive_int(outputs, "outputs", low=2)
        super().__init__(nn.Linear(inputs, outputs // 2), nn.SiLU(), nn.Linear(outputs // 2, outputs))
        self.float()

    def forward(self, input: Tensor) -> Tensor:  # nn.Sequential's name
        """See the class for shapes."""
        first, _, last = self
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        hidden = F.silu(F.linear(input, first.weight.to(input), first.bias.to(input)))
        return F.linear(hidden, last.weight.to(hidden), last.bias.to(hidden))

    def condition(self, tokens: Tensor) -> Conditioning:
        """Tokens of `VLMEncoder.encode` -> what the backbone takes, on the adapter's device."""
        return Conditioning(self(tokens.to(next(self.parameters()).device)))


def load_adapter(path: str | Path, outputs: int | None = None) -> TokenAdapter:
    """Read a trained adapter, `projector.pth` of the released weights or our own.

    Args:
        path: .pth (read with weights_only=True) or .safetensors, with the keys 0.weight, 0.bias, 2.weight and 2.bias.
        outputs: what the backbone takes (`ADAPTER_WIDTHS`, or its spec's conditioning_dim); checked.

    Returns:
        The adapter in float32 and eval mode.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: other keys or shapes, or the adapter of another backbone.
    """
    return make_adapter(load_state_dict(path), str(path), outputs)


def make_adapter(tensors: Mapping[str, Tensor], source: str, outputs: int | None = None) -> TokenAdapter:
    """The same from tensors, for example from those that lie beside a LoRA in one file.

    Raises:
        WeightsError: other keys or shapes, or the adapter of another backbone.
    """
    state = {name: value.float() for name, value in tensors.items()}
    first, last = state.get("0.weight"), state.get("2.weight")
    if first is None or last is None or first.ndim != 2 or last.ndim != 2:
        raise WeightsError(
            f"{source}: expected an adapter with 0.weight and 2.weight, got {', '.join(sorted(state))[:200]}; "
            "choose projector.pth"
        )
    if outputs is not None and last.shape[0] != outputs:
        fits = [name for name, width in ADAPTER_WIDTHS.items() if width == last.shape[0]]
        raise WeightsError(
            f"{source}: expected an adapter to {outputs} channels, got {last.shape[0]}"
            f"{f' (that of {fits[0]})' if fits else ''}; choose the one that was trained with this backbone"
        )
    adapter = TokenAdapter(first.shape[1], last.shape[0])
    load_into(adapter, state, source)
    return adapter.eval()


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


def _to_uint8(image: Tensor) -> Tensor:
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _digest(image: Tensor) -> str:
    """Images that are equal at 8 bits are equal to the vision tower."""
    pixels = _to_uint8(image).contiguous()
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
