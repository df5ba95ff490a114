"""Adapters as they were released, or in our own form, to one safetensors file that says what it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .backbones.latent import find_kind, make_transformer
from .lora import Adapter
from .lora_files import FORMATS, check_projector, read_adapter, write_adapter
from .weights import WeightsError


def check_released(adapter: Adapter) -> None:
    """Compare an adapter with the full model it belongs to, which is built without memory.

    Raises:
        WeightsError: missing, unexpected and wrong-shaped entries, all at once; a projector of another width; NaN or infinity.

    Source:
        strsr.md sections 1.3, 1.7 and 2.6: 80 and 238 layers, projector 2560 -> 3840 -> 7680 and 2560 -> 1280 -> 2560.
    """
    kind = find_kind(str(adapter.info["backbone"]))
    with torch.device("meta"):
        transformer = make_transformer(kind, kind.transformer)
    adapter.check(transformer)
    if adapter.projector:
        width = kind.transformer["joint_attention_dim" if "joint_attention_dim" in kind.transformer else "cap_feat_dim"]
        check_projector(adapter.projector, f"{adapter.source} (projector)", int(width))
    check_values(adapter)


def check_fitting(adapter: Adapter) -> str:
    """As `check_released`, with the miniature base model for adapters that say they were trained on it.

    Returns:
        The base model: `full` or `tiny`.

    Raises:
        WeightsError: see `check_released`.
    """
    if not str(adapter.info.get("base", "")).startswith("tiny"):
        check_released(adapter)
        return "full"
    kind = find_kind(str(adapter.info["backbone"]))
    with torch.device("meta"):
        transformer = make_transformer(kind, kind.tiny["transformer"])
    adapter.check(transformer)
    if adapter.projector:
        check_projector(adapter.projector, f"{adapter.source} (projector)")
    check_values(adapter)
    return "tiny"


def check_values(adapter: Adapter) -> None:
    """Raise WeightsError when a matrix holds NaN or infinity; the message names the first few."""
    everything = {**adapter.state, **{f"projector.{name}": tensor for name, tensor in adapter.projector.items()}}
    bad = [name for name, tensor in everything.items() if not bool(torch.isfinite(tensor.float().sum()))]
    bad = [name for name in bad if not bool(torch.isfinite(everything[name].float()).all())]  # a sum may overflow on its own
    if bad:
        raise WeightsError(
            f"{adapter.source}: expected finite weights, {len(bad)} tensors hold NaN or infinity: {', '.join(bad[:8])}; "
            "get the file again"
        )


def convert(
    source: str | Path,
    out: str | Path,
    *,
    file_format: str = "alignsr",
    dtype: torch.dtype | None = None,
    notes: dict[str, Any] | None = None,
) -> Adapter:
    """Read, check and write an adapter.

    Args:
        source: `state_dict.pth`, the folder it lies in with `projector.pth`, or any other that `read_adapter` takes.
        out: a .safetensors file.
        file_format: `alignsr` (with projector and facts), `comfyui` (for ComfyUI's LoRA loader, matrices alone) or `diffusers`
            (for its pipelines).
        dtype: of the matrices; None keeps theirs.
        notes: further facts for the header.

    Returns:
        What was written.

    Raises:
        MissingModelError, WeightsError: nothing there, damaged, or not an adapter of the full model.
        ValueError: an unknown format.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format: expected one of {', '.join(FORMATS)}, got {file_format!r}; choose one of them")
    adapter = read_adapter(source)
    check_released(adapter)
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in adapter.state.items()}
    adapter = replace(adapter, state=state, info={**adapter.info, **(notes or {})})
    write_adapter(out, adapter, file_format)
    return adapter
