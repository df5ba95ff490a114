"""How what one-step training made is written: an adapter with its projector, or a whole model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from ..core import lora
from ..core.adapters import merged_state
from ..core.backbones import latent
from ..core.lora_files import RELEASED, save_adapter
from ..core.weights import save_weights
from .one_step import DTYPES, OneStepModel, OneStepModelConfig, TrainedPart


@contextmanager
def showing(live: nn.Module, other: nn.Module) -> Iterator[None]:
    """Inside, the backbone works with the values of `other`: those of the moving average. Nothing is copied."""
    pairs = list(zip(live.parameters(), other.parameters(), strict=True)) if other is not live else []

    def exchange() -> None:
        for one, two in pairs:
            one.data, two.data = two.data, one.data

    exchange()
    try:
        yield
    finally:
        exchange()


def save_result(model: OneStepModel, config: OneStepModelConfig, part: TrainedPart, path: Path, info: Mapping[str, Any]) -> Path:
    """Write what was trained.

    Latent backbones give an adapter file (with the projector, as inference and stage 2 read it) or, trained whole, a model file;
    `pixel` gives a model file with its adapter merged. A projector beside a model file goes to `<name>-projector.safetensors`.

    Args:
        model: backbone and live weights.
        config: of the backbone.
        part: the weights to write, live or averaged.
        path: ends in .safetensors.
        info: facts for the header.

    Returns:
        `path`.
    """
    dtype = DTYPES[config.save_dtype]
    projector = {} if part.adapter is None else {name: tensor.detach() for name, tensor in part.adapter.state_dict().items()}
    step = {"start_sigma": config.sigma, "step_length": config.step_length}
    backbone: Any = model.backbone
    with showing(model.part, part):
        if config.backbone != "pixel" and model.facts:
            state = {name: tensor.to(dtype, copy=True) for name, tensor in lora.adapter_state(model.network).items()}
            facts = {"backbone": config.backbone, "latents": backbone.latents, "base": _base_name(config), **model.facts, **step}
            return save_adapter(path, lora.Adapter(state, {**info, **facts}, projector, str(path)))
        if projector:
            save_weights(path.with_name(f"{path.stem}-projector.safetensors"), projector, {**info, "architecture": "projector"})
        if config.backbone != "pixel":
            return latent.save(path, backbone, {**info, **step})
        attached = [lora.Adapter(lora.adapter_state(model.network), model.facts)] if model.facts else []
        state = merged_state(backbone.network, model.network, *attached)
        tensors = {name: tensor.to(dtype) for name, tensor in state.items()}
        header = {"backbone": "pixel", "architecture": "pixel", "options": dict(backbone.options), **step}
        return save_weights(path, tensors, {**info, **header})


def _base_name(config: OneStepModelConfig) -> str:
    """The base model as a person calls it: the file or folder that was chosen, without its place, else the published one."""
    chosen = config.transformer or config.source
    return PurePath(chosen).name if chosen else str(RELEASED[config.backbone]["base"])
