"""The model that pipeline A samples, from a config."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import CandidatesConfig
from .sources import Group

TINY = "tiny"
TINY_PIXEL: dict[str, Any] = {
    "patch_px": 4, "width": 8, "heads": 2, "layers": 1, "mlp_ratio": 1.0, "conditioning_dim": 4, "start_sigma": 0.8
}  # fmt: skip


def open_model(
    config: CandidatesConfig, device: torch.device, folders: Sequence[str | Path] = ()
) -> tuple[Callable[[Group, Sequence[int]], tuple[Tensor, Tensor]], dict[str, Any]]:
    """What draws candidates with the config's model, and facts about that.

    Raises:
        MissingModelError, WeightsError: the model is missing or does not fit.
    """
    from ...core.restore import move
    from ...core.sampling import restore_multi_step

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    backbone: Any = move(_backbone(config, folders), device, dtypes[config.model.precision])
    sampling = config.sampling

    def draw(group: Group, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        lq = group.lq[None].float() / 255
        restored = restore_multi_step(
            backbone,
            lq.to(device),
            scale=config.model.scale,
            steps=sampling.steps,
            sampler=sampling.sampler,
            seeds=list(seeds),
            guidance=None if sampling.guidance < 0 else sampling.guidance,
            color_fix=sampling.color_fix,
            batch_size=len(seeds),
        )
        assert restored.z is not None
        return restored.sr, restored.z

    return draw, {"name": backbone.spec.name, "parameters": backbone.spec.parameters, "licence": backbone.spec.licence}


def _backbone(config: CandidatesConfig, folders: Sequence[str | Path]) -> Any:
    from ...core.backbones import load_backbone
    from ...core.backbones.pixel import PixelBackbone

    model = config.model
    if model.backbone == "pixel" and model.source == TINY:
        backbone = PixelBackbone({**TINY_PIXEL, **model.options}, "tiny pixel")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in backbone.network.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        backbone.network.eval().requires_grad_(False)
        return backbone
    return load_backbone(model.source, folders)
