"""Prompts for FLUX.1 and Stable Diffusion through CLIP and T5, remembered on disk: a prompt is encoded once.

What has been encoded is found again without the text encoders, so a machine that restores needs none, only the small files of
the prompts it uses; for most models of super-resolution that is the empty prompt alone.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..records import Conditioning
from ..weights import MissingModelError, WeightsError, load_state_dict, read_info, save_weights
from .folders import FolderSpec, find_folder, load_tokenizer, load_transformer
from .prompt_files import find_tokenizer, load_clip, load_t5
from .resident import EmbeddingCache, Keep, OnDemand, Turns

LOGGER = logging.getLogger("alignsr")
CACHED_PROMPTS = 32
CLIP_TOKENS = 77
T5_TOKENS = 512


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a base model.

    Attributes:
        name: its folder in a diffusers folder.
        class_name: of transformers.
        tokenizer: folder of its tokenizer.
        max_tokens: prompts are padded or cut to this many.
        layer: hidden state that becomes tokens, -1 the last one after the final normalisation; None: it gives no tokens.
        pooled: attribute of its output that says something of the whole prompt; empty: none.
        files: names of the encoder as a single file, best first; empty: only as a folder.
    """

    name: str
    class_name: str
    tokenizer: str
    max_tokens: int
    layer: int | None = -1
    pooled: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptStyle:
    """How a base model reads a prompt: tokens of several encoders are joined channel by channel.

    Attributes:
        encoders: in order.
        folder: what the base model's folder must hold.
    """

    encoders: tuple[Encoder, ...]
    folder: FolderSpec


_CLIP_L = ("clip_l.safetensors",)
_T5 = ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors", "t5xxl_fp8_e4m3fn.safetensors")


def _style(what: str, names: tuple[str, ...], source: str, *encoders: Encoder) -> PromptStyle:
    files: list[tuple[str, ...]] = []
    for one in encoders:
        weights = tuple(f"{one.name}/{name}" for name in ("model.safetensors", "model.safetensors.index.json"))
        tokenizer = tuple(f"{one.tokenizer}/{name}" for name in ("tokenizer.json", "vocab.json", "spiece.model"))
        files += [(f"{one.name}/config.json",), weights, (f"{one.tokenizer}/tokenizer_config.json",), tokenizer]
    page = f"https://huggingface.co/{source}" if source else "the Google Drive folder of cswry/DP2O-SR, see `alignsr models list`"
    return PromptStyle(encoders, FolderSpec(f"text encoders of {what}", names, tuple(files), page))


PROMPT_STYLES: Mapping[str, PromptStyle] = MappingProxyType(
    {
        "flux1": _style(
            "FLUX.1 [dev]", ("FLUX.1-dev",), "black-forest-labs/FLUX.1-dev",
            Encoder("text_encoder", "CLIPTextModel", "tokenizer", CLIP_TOKENS, None, "pooler_output", _CLIP_L),
            Encoder("text_encoder_2", "T5EncoderModel", "tokenizer_2", T5_TOKENS, files=_T5),
        ),
        "sd15": _style(
            "Stable Diffusion 1.5", ("stable-diffusion-v1-5",), "stable-diffusion-v1-5/stable-diffusion-v1-5",
            Encoder("text_encoder", "CLIPTextModel", "tokenizer", CLIP_TOKENS, files=_CLIP_L),
        ),
        "sd2": _style(
            "Stable Diffusion 2 base", ("stable-diffusion-2-base",), "",
            Encoder("text_encoder", "CLIPTextModel", "tokenizer", CLIP_TOKENS),
        ),
        "sdxl": _style(
            "Stable Diffusion XL", ("stable-diffusion-xl-base-1.0",), "stabilityai/stable-diffusion-xl-base-1.0",
            Encoder("text_encoder", "CLIPTextModel", "tokenizer", CLIP_TOKENS, -2, files=_CLIP_L),
            Encoder(
                "text_encoder_2", "CLIPTextModelWithProjection", "tokenizer_2", CLIP_TOKENS, -2, "text_embeds",
                ("clip_g.safetensors",),
            ),
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class PromptModels:
    """The text encoders of a base model.

    Attributes:
        model: one module per encoder, in order.
        tokenizers: one per encoder.
    """

    model: nn.ModuleList
    tokenizers: tuple[Any, ...]


def prompt_folder() -> Path:
    """Where prompts are remembered: ALIGNSR_PROMPTS of the environment, else ~/.cache/alignsr/prompts."""
    return Path(os.environ.get("ALIGNSR_PROMPTS") or "~/.cache/alignsr/prompts").expanduser()


class PromptStore:
    """Encoded prompts on disk: one small safetensors file per base model and text.

    Args:
        folder: where they lie; made when the first one is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, style: str, text: str) -> Path:
        """The file of a prompt; the empty one has a name that says so."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:20] if text else "empty"
        return self.folder / f"{style}-{digest}.safetensors"

    def get(self, style: str, text: str) -> Conditioning | None:
        """A prompt that was encoded, or None.

        Raises:
            WeightsError: a damaged file, or one of another prompt.
        """
        path = self.path(style, text)
        if not path.is_file():
            return None
        info, state = read_info(path), load_state_dict(path)
        if info.get("style") != style or info.get("text") != text or "embeddings" not in state:
            raise WeightsError(f"{path}: expected the prompt {text!r} of {style}, got another; remove the file")
        return Conditioning(state["embeddings"], pooled=state.get("pooled"))

    def put(self, style: str, text: str, told: Conditioning) -> Path:
        """Write one prompt, [1, N, D] and [1, P]."""
        tensors = {"embeddings": told.embeddings} | ({} if told.pooled is None else {"pooled": told.pooled})
        return save_weights(self.path(style, text), tensors, {"style": style, "text": text, "architecture": "prompt"})


class PromptEncoder:
    """Encodes prompts, remembers them here and on disk, and lets its models go between uses.

    Args:
        load: gives the models; see `load_prompt_models`. Not called while all texts asked for are known.
        style: a key of PROMPT_STYLES.
        device: where the models work.
        keep: what stays between uses, see `OnDemand`.
        turns: shared with other large models, see `OnDemand`.
        store: prompts on disk; None: remembered here alone.
        max_tokens: shorter than the encoders' own, for tests.
        make_room: see `OnDemand`.
    """

    def __init__(
        self,
        load: Callable[[], PromptModels],
        style: str,
        device: str | torch.device = "cpu",
        keep: Keep = "nothing",
        turns: Turns | None = None,
        store: PromptStore | None = None,
        max_tokens: int = T5_TOKENS,
        make_room: Callable[[int], None] | None = None,
    ) -> None:
        self.models = OnDemand(load, device, keep, turns, make_room)
        self.name, self.style, self.store, self.max_tokens = style, PROMPT_STYLES[style], store, max_tokens
        self.tokens, self.pooled = EmbeddingCache(CACHED_PROMPTS), EmbeddingCache(CACHED_PROMPTS)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Embeddings of prompts; "" is the empty prompt.

            embeddings = [ h_1 | h_2 | ... ] over the encoders that give tokens

        Args:
            texts: at least one.

        Returns:
            embeddings [B, N, D] with N = 512 (FLUX.1) or 77, and pooled embeddings [B, P] where the base model takes them (768 of
            CLIP for FLUX.1, 1280 for SDXL), in the models' dtype, on the CPU.

        Raises:
            ValueError: no text.

        Source:
            asasr.md 1.2 row 9 and 1.3, dp2o-sr.md 1.2; FluxPipeline, StableDiffusionPipeline and StableDiffusionXLPipeline of
            diffusers: padded to the full length, no attention mask.
        """
        if not texts:
            raise ValueError('texts: expected at least one, got none; pass [""] for the empty prompt')
        known: dict[str, Conditioning] = {}
        for text in dict.fromkeys(texts):
            if (found := self._known(text)) is not None:
                known[text] = found
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            with self.models.working() as held, torch.no_grad():
                for text in new:
                    known[text] = self._encode(held, text)
                    if self.store is not None:
                        self.store.put(self.name, text, known[text])
        for text, told in known.items():
            self.tokens.put(text, told.embeddings)
            if told.pooled is not None:
                self.pooled.put(text, told.pooled)
        pooled = [told.pooled for text in texts if (told := known[text]).pooled is not None]
        return Conditioning(torch.cat([known[text].embeddings for text in texts]), pooled=torch.cat(pooled) if pooled else None)

    def _known(self, text: str) -> Conditioning | None:
        if (tokens := self.tokens.get(text)) is not None:
            return Conditioning(tokens, pooled=self.pooled.get(text))
        return None if self.store is None else self.store.get(self.name, text)

    def _encode(self, held: PromptModels, text: str) -> Conditioning:
        tokens: list[Tensor] = []
        pooled: Tensor | None = None
        for encoder, model, tokenizer in zip(self.style.encoders, held.model, held.tokenizers, strict=True):
            length = min(encoder.max_tokens, self.max_tokens)
            ids: Tensor = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")[
                "input_ids"
            ]
            output: Any = model(ids.to(next(model.parameters()).device), output_hidden_states=encoder.layer not in (None, -1))
            if encoder.layer == -1:
                tokens.append(output.last_hidden_state.cpu())
            elif encoder.layer is not None:
                tokens.append(output.hidden_states[encoder.layer].cpu())
            if encoder.pooled:
                pooled = getattr(output, encoder.pooled).cpu()
        return Conditioning(torch.cat(tokens, -1), pooled=pooled)


def find_prompt_models(style: str, name: str | Path | None = None, folders: Iterable[str | Path] = ()) -> Path | tuple[Path, ...]:
    """The text encoders of a base model on disk: its diffusers folder, or one file per encoder as ComfyUI has them.

    Args:
        style: a key of PROMPT_STYLES.
        name: folder (path, or name in one of `folders`); None: the published folder, else the published files.
        folders: places to search; single files also in their sub-folders.

    Raises:
        MissingModelError: names every missing file, the places searched and the source.
    """
    found = PROMPT_STYLES[style]
    places = [Path(place).expanduser() for place in folders]
    if name is not None:
        return find_folder(found.folder, name, places)
    try:
        return find_folder(found.folder, None, places)
    except MissingModelError as error:
        wanted = [encoder.files for encoder in found.encoders]
        paths = [next((path for name in names for path in _below(places, name)), None) for names in wanted]
        if all(paths):
            return tuple(path for path in paths if path is not None)
        if not all(wanted):
            raise
        lacking = [" or ".join(names) for names, path in zip(wanted, paths, strict=True) if path is None]
        raise MissingModelError(f"{error}, or as single files: {', '.join(lacking)} is missing") from error


def _below(places: Iterable[Path], name: str) -> list[Path]:
    return [path for place in places if place.is_dir() for path in sorted(place.rglob(name))]


def load_prompt_models(
    style: str,
    name: str | Path | None = None,
    folders: Iterable[str | Path] = (),
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    tokenizers: Iterable[str | Path] = (),
) -> PromptModels:
    """The text encoders and tokenizers of a base model.

    Args:
        style: a key of PROMPT_STYLES.
        name: see `find_prompt_models`.
        folders: places to search.
        dtype: of the weights.
        device: where they will work; decides the attention.
        tokenizers: for single files, where the tokenizers may lie besides `folders` and the files' own folders.

    Raises:
        MissingModelError: names every missing file and where to get it. Nothing is ever downloaded.
        WeightsError: damaged or incomplete files.
    """
    places = [Path(place).expanduser() for place in folders]
    found, encoders = find_prompt_models(style, name, places), PROMPT_STYLES[style].encoders
    if isinstance(found, Path):
        models = [  # flash attention knows no relative positions
            load_transformer(one.class_name, found / one.name, dtype, "cpu" if one.class_name == "T5EncoderModel" else device)
            for one in encoders
        ]
        return PromptModels(nn.ModuleList(models), tuple(load_tokenizer(found / one.tokenizer) for one in encoders))
    models, read = list[nn.Module](), list[Any]()
    for encoder, path in zip(encoders, found, strict=True):
        is_t5 = encoder.class_name == "T5EncoderModel"
        if path.name in _T5[1:]:
            LOGGER.warning("%s: %s is used, rounded to 8 bits, since %s is not there", encoder.name, path.name, _T5[0])
        searched = [path.parent, *places, *map(Path, tokenizers)]
        read.append(load_tokenizer(find_tokenizer(searched, "t5" if is_t5 else "clip", encoder.tokenizer)))
        if encoder.name == "text_encoder_2" and not is_t5:
            read[-1].pad_token = "!"  # of SDXL's second encoder, whose tokenizer is otherwise the first one's
        load = load_t5 if is_t5 else load_clip
        models.append(load(path, encoder.class_name, dtype, device))
    return PromptModels(nn.ModuleList(models), tuple(read))
