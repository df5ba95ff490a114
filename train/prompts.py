"""What multi-step models are told while they are sampled or trained: prompts, each encoded once and kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.records import Conditioning

TINY, NO_TEXT = "tiny", "none"
PROMPTS = "prompts"  # folder of encoded prompts inside a run folder
Tell = Callable[[Sequence[str]], Conditioning | None]


def prompt_teller(
    text: str, backbone: Any, kind: str, *, folder: Path, dtype: torch.dtype, device: torch.device, folders: Sequence[str | Path]
) -> Tell:
    """Prompts to embeddings on the device. What is on disk already needs no text encoder.

    Args:
        text: of a config: folder of the text encoders; empty: the published ones; `tiny`: random; `none`: no text, zeros.
        backbone: the model that is told.
        kind: `pixel` (told nothing), `flux1` or `stable_diffusion`.
        folder: where encoded prompts are kept.
        dtype: of the text encoders, where they do not work on the CPU.
        device: where they work and the embeddings go.
        folders: where models are looked for.

    Returns:
        One prompt per sample in, embeddings [B, N, D] or None out. Missing files are named at the first new prompt.
    """
    if text == NO_TEXT or kind == "pixel":
        return lambda _: None
    from ..core.conditioning import PromptEncoder, PromptStore, load_prompt_models
    from ..core.conditioning.tiny import tiny_prompt_models

    style = getattr(backbone, "version", "") or kind
    dtype = dtype if device.type != "cpu" else torch.float32

    def load() -> Any:
        if text == TINY:
            return tiny_prompt_models(style, backbone.conditioning_dim, getattr(backbone, "pooled_dim", 0) or 16)
        return load_prompt_models(style, text or None, folders, dtype, device)

    encoder = PromptEncoder(load, style, device, store=PromptStore(folder))
    return lambda texts: encoder.encode(texts).to(device)
