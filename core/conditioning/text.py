"""Prompts through each base model's own text encoder; the empty prompt and tags are prompts too."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..records import Conditioning
from ..weights import MissingModelError
from .folders import TOKENIZER, WEIGHTS, FolderSpec, find_folder, load_tokenizer, load_transformer
from .resident import EmbeddingCache, Keep, OnDemand, Turns
from .single_file import find_tokenizer, load_qwen3, read_tokenizer

MAX_TOKENS = 512
CACHED_TEXTS = 32  # 512 x 7680 values each


@dataclass(frozen=True)
class TextStyle:
    """How a base model reads a prompt.

    Attributes:
        layers: hidden states of Qwen3 that are concatenated; 0 is the embedding, negative ones count from the end.
        thinks: whether the chat template leaves room for thinking.
        drops_padding: only the prompt's tokens count; otherwise all 512 go to the transformer.
        folder: what the base model's folder must hold.
        file: name of the text encoder as a single file.
    """

    layers: tuple[int, ...]
    thinks: bool
    drops_padding: bool
    folder: FolderSpec
    file: str = "qwen_3_4b.safetensors"


def _folder(what: str, names: tuple[str, ...], source: str, download: str) -> FolderSpec:
    weights = tuple(f"text_encoder/{name}" for name in WEIGHTS)
    tokenizer = tuple(tuple(f"tokenizer/{name}" for name in options) for options in TOKENIZER)
    return FolderSpec(f"text encoder of {what}", names, (("text_encoder/config.json",), weights, *tokenizer), source, download)


TEXT_STYLES: Mapping[str, TextStyle] = MappingProxyType(
    {
        "flux2_klein": TextStyle(
            (9, 18, 27), False, False,
            _folder(
                "FLUX.2 [klein] 4B", ("FLUX.2-klein-base-4B", "FLUX.2-klein-4B"),
                "https://huggingface.co/black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein-text",
            ),
        ),
        "z_image": TextStyle(
            (-2,), True, True,
            _folder("Z-Image-Turbo", ("Z-Image-Turbo",), "https://huggingface.co/Tongyi-MAI/Z-Image-Turbo", "z-image-text"),
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class TextModel:
    """A causal language model's layers and its tokenizer.

    Attributes:
        model: Qwen3 without its output layer, whose logits nobody reads.
        tokenizer: with a chat template.
    """

    model: nn.Module
    tokenizer: Any


class TextEncoder:
    """Encodes prompts, remembers them, and lets its model go between uses.

    Args:
        load: gives the model; see `load_text_model`.
        style: an entry of TEXT_STYLES.
        device: where the model works.
        keep: what stays between uses, see `OnDemand`.
        turns: shared with the other large models, see `OnDemand`.
        max_tokens: prompts are padded or cut to this many tokens.
        make_room: see `OnDemand`.
    """

    def __init__(
        self,
        load: Callable[[], TextModel],
        style: TextStyle,
        device: str | torch.device = "cpu",
        keep: Keep = "home",
        turns: Turns | None = None,
        max_tokens: int = MAX_TOKENS,
        make_room: Callable[[int], None] | None = None,
    ) -> None:
        self.models = OnDemand(load, device, keep, turns, make_room)
        self.style, self.max_tokens = style, max_tokens
        self.cache, self.masks = EmbeddingCache(CACHED_TEXTS), EmbeddingCache(CACHED_TEXTS)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Embeddings of prompts; "" is the empty prompt.

            embeddings = [ h_l1 | h_l2 | ... ],  h_l = hidden state l of Qwen3 on the prompt as one user turn

        Args:
            texts: at least one.

        Returns:
            embeddings [B, max_tokens, len(layers) * width] in the model's dtype, on the CPU; the mask names the prompt's own
            tokens where the base model drops padding, and is None where it reads everything.

        Raises:
            ValueError: no text.

        Source:
            strsr.md section 1.3: FLUX.2 [klein] hidden states 9, 18 and 27, thinking off, padded to 512; Z-Image the
            second-to-last, thinking on, padding removed.
        """
        if not texts:
            raise ValueError('texts: expected at least one, got none; pass [""] for the empty prompt')
        new = [text for text in dict.fromkeys(texts) if self.cache.get(text) is None]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        if new:
            with self.models.working() as held, torch.no_grad():
                for text in new:
                    found[text] = self._encode(held, text)
        for text in dict.fromkeys(texts):
            if text not in found:
                embedding, mask = self.cache.get(text), self.masks.get(text)
                assert embedding is not None and mask is not None
                found[text] = embedding, mask
        for text, (embedding, mask) in found.items():
            self.cache.put(text, embedding)
            self.masks.put(text, mask)
        embeddings = torch.stack([found[text][0] for text in texts])
        return Conditioning(embeddings, torch.stack([found[text][1] for text in texts]) if self.style.drops_padding else None)

    def _encode(self, held: TextModel, text: str) -> tuple[Tensor, Tensor]:
        turn = [{"role": "user", "content": text}]
        tokenizer = held.tokenizer
        prompt = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=self.style.thinks
        )
        tokens = tokenizer(prompt, return_tensors="pt", padding="max_length", truncation=True, max_length=self.max_tokens)
        mask: Tensor = tokens["attention_mask"]
        device = next(held.model.parameters()).device
        output = held.model(
            input_ids=tokens["input_ids"].to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
        )
        chosen = torch.cat([output.hidden_states[layer][0] for layer in self.style.layers], dim=-1)
        return chosen.cpu(), mask[0].bool()


def find_text_model(style: TextStyle, name: str | Path | None = None, folders: Iterable[str | Path] = ()) -> Path:
    """The text encoder of a base model on disk: its diffusers folder, or a single file as ComfyUI has it.

    Args:
        style: an entry of TEXT_STYLES.
        name: folder or file (path, or name in one of `folders`); None: the published folder, else the published file.
        folders: places to search; the single file also in their sub-folders.

    Raises:
        MissingModelError: names every missing file, the places searched and the source.
    """
    places = [Path(place).expanduser() for place in folders]
    if name is not None:
        for path in (Path(name).expanduser(), *(place / name for place in places)):
            if path.is_file():
                return path
        return find_folder(style.folder, name, places)
    try:
        return find_folder(style.folder, None, places)
    except MissingModelError as error:
        found = (path for place in places if place.is_dir() for path in sorted(place.rglob(style.file)))
        if (path := next(found, None)) is not None:
            return path
        raise MissingModelError(f"{error}, or the single file {style.file} with Qwen's tokenizer") from error


def load_text_model(
    style: TextStyle,
    name: str | Path | None = None,
    folders: Iterable[str | Path] = (),
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    tokenizers: Iterable[str | Path] = (),
) -> TextModel:
    """The text encoder and tokenizer of a base model: from its diffusers folder, or from a single file.

    Args:
        style: an entry of TEXT_STYLES.
        name: see `find_text_model`.
        folders: places to search.
        dtype: of the weights.
        device: where it will work; decides the attention.
        tokenizers: for single files, where Qwen's tokenizer may lie besides `folders` and the file's own folder.

    Raises:
        MissingModelError: names every missing file and where to get it. Nothing is ever downloaded.
        WeightsError: damaged or incomplete files.
    """
    places = [Path(place).expanduser() for place in folders]
    found = find_text_model(style, name, places)
    if found.is_file():
        tokenizer = read_tokenizer(find_tokenizer([found.parent, *places, *map(Path, tokenizers)]))
        return TextModel(load_qwen3(found, dtype, device), tokenizer)
    whole: Any = load_transformer("Qwen3ForCausalLM", found / "text_encoder", dtype, device)
    return TextModel(whole.model, load_tokenizer(found / "tokenizer"))
