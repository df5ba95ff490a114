"""The model that pipeline A samples, and what it is told, from a config."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.records import Conditioning
from ..prompts import PROMPTS, TINY, prompt_teller
from ..start import KEYS, named_adapter, named_source
from .config import CandidatesConfig
from .sources import Group

TINY_PIXEL: dict[str, Any] = {
    "patch_px": 4, "width": 8, "heads": 2, "layers": 1, "mlp_ratio": 1.0, "conditioning_dim": 4, "start_sigma": 0.8
}  # fmt: skip
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Tell = Callable[[str], Conditioning | None]


def open_model(
    config: CandidatesConfig, folder: Path, device: torch.device, folders: Sequence[str | Path] = ()
) -> tuple[Callable[[Group, Sequence[int]], tuple[Tensor, Tensor]], dict[str, Any]]:
    """What draws candidates with the config's model, and facts about that.

    Args:
        config: the whole config.
        folder: run folder; encoded prompts are kept there.
        device: where the model works.
        folders: where models are looked for.

    Raises:
        MissingModelError, WeightsError: the model is missing or does not fit.
    """
    backbone, tell = _open(config, folder, device, folders)
    draw = drawer(config, backbone, tell, device)
    spec = backbone.spec
    return draw, {"name": spec.name, "parameters": spec.parameters, "licence": spec.licence}


def drawer(
    config: CandidatesConfig, backbone: Any, tell: Tell, device: torch.device
) -> Callable[[Group, Sequence[int]], tuple[Tensor, Tensor]]:
    """What draws candidates with a model as a config says.

    Args:
        config: the whole config.
        backbone: the model, wherever it comes from.
        tell: a prompt to embeddings.
        device: where the model works.
    """
    from ...core.sampling import restore_multi_step

    sampling = config.sampling
    negative = tell(sampling.negative_prompt)

    def draw(group: Group, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        restored = restore_multi_step(
            backbone,
            group.lq[None].to(device).float() / 255,
            scale=config.model.scale,
            steps=sampling.steps,
            sampler=sampling.sampler,
            seeds=list(seeds),
            guidance=None if sampling.guidance < 0 else sampling.guidance,
            control_scale=sampling.control_scale if config.model.control else None,
            color_fix=sampling.color_fix,
            conditioning=tell(group.prompt),
            negative=negative,
            batch_size=len(seeds),
        )
        assert restored.z is not None
        return restored.sr, restored.z

    return draw


def _open(config: CandidatesConfig, folder: Path, device: torch.device, folders: Sequence[str | Path]) -> tuple[Any, Tell]:
    from ...core.restore import move

    model = config.model
    if model.backbone == "pixel":
        backbone: Any = tiny_pixel(model.options) if model.source == TINY else _load_pixel(model.source, folders)
        return move(backbone, device, _DTYPES[model.precision]), lambda _: None
    from ...core.backbones import open_multi_step

    facts: dict[str, Any] = {"version": model.version} if model.version else {}
    chosen = {"version": model.version, "network": model.network, "autoencoder": model.autoencoder}
    backbone = open_multi_step(
        model.backbone,
        named_source(model.backbone, model.source, folders, **chosen),
        folders=dict.fromkeys(KEYS, tuple(folders)),
        network=model.network or None,
        autoencoder=model.autoencoder or None,
        control=model.control or None,
        precision=model.precision,
        adapters=[(named_adapter(model.adapter, folders), 1.0)] if model.adapter else [],
        device=device,
        **facts,
    )
    tell = prompt_teller(
        model.text, backbone, model.backbone,
        folder=folder / PROMPTS, dtype=_DTYPES[model.precision], device=device, folders=folders,
    )  # fmt: skip
    return backbone, lambda text: tell([text])


def tiny_pixel(options: dict[str, Any]) -> Any:
    """An untrained pixel model of a few thousand weights, none of them zero."""
    from ...core.backbones.pixel import PixelBackbone

    backbone = PixelBackbone({**TINY_PIXEL, **options}, "tiny pixel")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    backbone.network.eval().requires_grad_(False)
    return backbone


def _load_pixel(source: str, folders: Sequence[str | Path]) -> Any:
    from ...core.backbones import load_backbone
    from ...core.diffusion import MultiStepBackbone
    from ..config import ConfigError

    backbone = load_backbone(source, folders)
    if not isinstance(backbone, MultiStepBackbone):
        raise ConfigError(
            f"model.source: expected a model that is sampled from noise, got {source}; choose one trained as a flow"
        )
    return backbone
