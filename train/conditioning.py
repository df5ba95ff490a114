"""What a one-step model is told about each picture while it is trained: a vision-language model's tokens, text, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.conditioning import (
    TEXT_STYLES,
    VLM_WIDTH,
    TextEncoder,
    TokenAdapter,
    VLMEncoder,
    as_prompt,
    load_text_model,
    load_vlm,
)
from ..core.conditioning.folders import find_folder
from ..core.conditioning.tiny import tiny_text_model, tiny_vlm
from ..core.conditioning.vlm import VLM_FOLDER
from ..core.records import Conditioning
from .config import ConfigError, setting

TINY = "tiny"


@dataclass(frozen=True)
class ConditioningConfig:
    """What the transformer is told besides the picture."""

    kind: Literal["vlm", "text", "empty"] = "vlm"  # text: one prompt for all, through the base model's own encoder; empty: zeros
    model: str = ""  # folder of the model, or its name in a model folder; empty: the published one; "tiny": random, for tests
    prompt: str = ""  # of kind text; tags: one line, commas between, up to four words each
    width: int = VLM_WIDTH  # of kind vlm: of its tokens
    init: str = ""  # of kind vlm: projector to start from; empty: random, or the one in model.init
    keep: Literal["device", "home", "nothing"] = "device"  # where the model's weights wait between steps
    cached_images: int = 1024  # of kind vlm: pictures whose tokens are remembered, 0.35 MB each; useful where inputs repeat
    is_parity: bool = False  # of kind vlm: resize its input twice and cut its 8 bits off, as released


class TrainConditioner:
    """Low-resolution pictures to what the backbone takes; gradient flows to the adapter.

    Args:
        config: what to tell.
        backbone: `flux2_klein`, `z_image` or `pixel`: which text encoder.
        width: of the tokens that the backbone takes.
        adapter: the trained bridge of kind vlm, None for the others.
        device: where models work.
        folders: model folders.

    Raises:
        MissingModelError: the model is missing.
        WeightsError: it is damaged; text is encoded here, pictures when they come.
        ConfigError: tokens of another width than the backbone takes.
    """

    def __init__(
        self,
        config: ConditioningConfig,
        backbone: str,
        width: int,
        adapter: nn.Module | None,
        device: torch.device,
        folders: Sequence[str | Path] = (),
    ) -> None:
        self.config, self.adapter, self.device = config, adapter, device
        self.fixed: Conditioning | None = None
        self.encoder: VLMEncoder | None = None
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        if config.kind == "text":
            self.fixed = self._encode_prompt(backbone, width, dtype, folders)
        elif config.kind == "vlm":
            name = config.model or None
            if name == TINY:
                load = partial(tiny_vlm, config.width)
            else:  # found here, read when the first pictures come
                with setting("conditioning.model"):
                    load = partial(load_vlm, find_folder(VLM_FOLDER, name, folders), (), dtype, device)
            self.encoder = VLMEncoder(load, device, config.keep, parity=config.is_parity, cache_size=config.cached_images)

    def __call__(self, lq: Tensor) -> Conditioning | None:
        """What is told about a batch [B, 3, h, w] in [0, 1]; None is told as zeros.

        Raises:
            ConfigError: the vision-language model's tokens have another width than `conditioning.width`.
        """
        if self.encoder is None:
            return self.fixed and _repeated(self.fixed, lq.shape[0])
        tokens = self.encoder.encode(lq, batch_size=lq.shape[0])
        if tokens.shape[-1] != self.config.width:
            raise ConfigError(
                f"conditioning.width: expected {tokens.shape[-1]} as the model's tokens have, got {self.config.width}; change it"
            )
        adapter = self.adapter
        assert isinstance(adapter, TokenAdapter)
        return adapter.condition(tokens)

    def using(self, adapter: nn.Module | None) -> "TrainConditioner":
        """The same, models and memory included, with another adapter: the moving average's, for validation."""
        twin = object.__new__(TrainConditioner)
        twin.__dict__ |= self.__dict__
        twin.adapter = adapter
        return twin

    def _encode_prompt(self, backbone: str, width: int, dtype: torch.dtype, folders: Sequence[str | Path]) -> Conditioning:
        config, style = self.config, TEXT_STYLES[backbone]
        name = config.model or None
        share = width // len(style.layers)
        load = (
            (lambda: tiny_text_model(share))
            if name == TINY
            else (lambda: load_text_model(style, name, folders, dtype, self.device))
        )
        encoder = TextEncoder(load, style, self.device, "nothing")
        with setting("conditioning.model"):
            found = encoder.encode([as_prompt(config.prompt)])
        if found.embeddings.shape[-1] != width:
            raise ConfigError(
                f"conditioning.model: expected tokens of width {width} as the backbone takes, got {found.embeddings.shape[-1]}; "
                "use the text encoder of this backbone"
            )
        mask = None if found.mask is None else found.mask.to(self.device)
        return Conditioning(found.embeddings.to(self.device), mask)


def _repeated(told: Conditioning, count: int) -> Conditioning:
    mask = None if told.mask is None else told.mask.expand(count, -1)
    return Conditioning(told.embeddings.expand(count, -1, -1), mask)
