"""What a finished training of a model of many steps gives to the graph: the model with its adapters, and these themselves."""

from pathlib import Path
from typing import Any

import torch

from ..core.lora import Adapter
from .host import get_host
from .lora import check_adapter
from .models import LoadedModel, load_model
from .one_step import TINY, OneStepModel, Request
from .train import FinishedRun

RANDOM = "random"


def adapter_path(weights: Path, kind: str) -> Path:
    """The file of the trained adapter beside or at a run's weights: `pixel` writes whole models, and adapters beside them."""
    return weights.with_name(f"{weights.stem}-adapter.safetensors") if kind == "pixel" else weights


def read_trained(run: FinishedRun) -> Adapter | None:
    """The adapter of a finished run, None where the whole model was trained."""
    from ..core.lora_files import read_adapter

    path = adapter_path(run.weights, run.config.model.backbone)
    with torch.inference_mode(False):
        return read_adapter(path) if path.is_file() and run.config.lora.rank else None


def with_supervised(run: FinishedRun, adapter: Adapter | None) -> Adapter | None:
    """The adapter joined with the frozen one that it was trained on, as it is used; itself where there is none."""
    from ..core.lora_files import read_adapter

    joined = run.weights.with_name(f"{run.weights.stem}-with-sft.safetensors")
    if adapter is None or not joined.is_file():
        return adapter
    with torch.inference_mode(False):
        return read_adapter(joined)


def trained_multi_step(run: FinishedRun, joined: Adapter | None) -> OneStepModel | LoadedModel:
    """The model of a finished run for Multi-Step SR.

    Latent backbones are opened anew when they are needed, with the adapters merged; `pixel` is whole in its file.
    """
    from ..core.backbones import MULTI_STEP_KINDS
    from ..train.start import named_source

    config = run.config.model
    if config.backbone == "pixel":
        return load_model(run.weights)
    folders, adapters = get_host().training_dirs(), () if joined is None else ((joined, 1.0),)
    if config.source == RANDOM or (config.source == TINY and config.options):
        return _untrained_with(run, joined, folders)
    kind = MULTI_STEP_KINDS[config.backbone]
    facts: dict[str, Any] = {"version": config.version} if config.version else {}
    if config.condition_stride:
        facts["condition_stride"] = config.condition_stride
    parts = (*kind.components, *(() if kind.control is None else (kind.control,)))
    chosen = {"version": config.version, "network": config.network, "autoencoder": config.autoencoder}
    request = Request(
        config.backbone,
        named_source(config.backbone, config.source, folders, **chosen),
        {part.folder: folders for part in parts},
        transformer=config.network or None,
        autoencoder=config.autoencoder or None,
        control=config.control or None,
        precision=config.precision,
        facts=facts,
    )
    return OneStepModel(request, "auto", True, adapters)


def file_of(lora: Any, name: str) -> str:
    """The file of an adapter: a config names what training starts from.

    Args:
        lora: of a LORA socket.
        name: of the input, for messages.

    Raises:
        TypeError: no adapter.
        ValueError: one that is in no file.
    """
    check_adapter(lora)
    if not Path(lora.source).is_file():
        raise ValueError(f"{name}: expected an adapter from a file, got {lora.source}; save it with Save LoRA and load it")
    return lora.source


def _untrained_with(run: FinishedRun, adapter: Adapter | None, folders: list[Path]) -> LoadedModel:
    """A random base that no loader node makes, with the adapter merged: for experiments and measurements."""
    from dataclasses import replace

    from ..train.multi_step import build_trainee

    with torch.inference_mode(False):
        trainee = build_trainee(replace(run.config.model, adapter=""), run.config.name, run.config.licence, folders)
        if adapter is not None:
            trainee.stack.load("trained", adapter)
            trainee.stack.use("trained")
    return LoadedModel(trainee.backbone, run.config.name, run.weights, offload=True)  # pyright: ignore[reportArgumentType]
