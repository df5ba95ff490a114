"""Load SR Model: a bundled network or a file of the user's, ready for One-Step SR."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .common import SR_MODEL, file_stamp, input_names
from .host import get_host

LOGGER = logging.getLogger("alignsr")
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class LoadedModel:
    """The value of an ALIGNSR_MODEL socket.

    Attributes:
        backbone: from `core.backbones.load_backbone`; rests on the CPU between runs, parameters frozen.
        name: for reports.
        path: the weight file.
        device: where to run: `auto` (what the host offers) or `cpu`.
        offload: modules take turns on the device; only large models do, see `nodes.one_step`.
        projector: `TokenAdapter` of a one-step model that was trained whole and is told about pictures, or None.
    """

    backbone: Any
    name: str
    path: Path
    device: str = "auto"
    offload: bool = False
    projector: Any = None

    @property
    def spec(self) -> Any:
        """Facts of the backbone."""
        return self.backbone.spec


def load_model(name: str | Path, precision: str = "fp32", device: str = "auto") -> LoadedModel:
    """Find, read and freeze a model; usable under inference mode.

    Raises:
        MissingModelError, WeightsError: see `core.weights`.
        ValueError: unknown precision or device.
    """
    from ..core.backbones import load_backbone
    from ..core.restore import move

    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}; choose one of them")
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}; choose one of them")
    path = get_host().resolve_model(name)
    with torch.inference_mode(False):  # otherwise every parameter becomes an inference tensor, which nothing can train later
        backbone = load_backbone(path)
        for _, module in backbone.modules():
            module.requires_grad_(False)
        if precision != "fp32":
            move(backbone, "cpu", PRECISIONS[precision])
        projector = _projector_beside(path, backbone.spec.conditioning_dim)
    return LoadedModel(backbone, backbone.spec.name, path, device, projector=projector)


def _projector_beside(path: Path, width: int) -> Any:
    """The bridge that training a whole model with a vision-language model leaves beside its weights, or None."""
    from ..core.conditioning import load_adapter

    file = path.with_name(f"{path.stem}-projector.safetensors")
    return load_adapter(file, width).requires_grad_(False) if file.is_file() else None


class LoadSRModel:
    """Node AlignSRLoadSRModel."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Loads a super-resolution model: one of the bundled ones, or a file from models/alignsr or models/upscale_models "
        "(AlignSR files, and any architecture that spandrel knows)."
    )
    MODEL_FOLDERS = (("model_name", "alignsr"),)
    FUNCTION = "load"
    RETURN_TYPES = (SR_MODEL, "STRING")
    RETURN_NAMES = ("model", "info")
    OUTPUT_TOOLTIPS = (
        "The loaded model, for One-Step SR.",
        "Facts as JSON: file, kind, scale, parameters, tile size, licence of the weights.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model_name": (
                    get_host().list_models(),
                    {
                        "tooltip": "Bundled: lite-x4 (clean pictures), pixel-x4 (one-step transformer, clean pictures), "
                        "lite-real-x4 "
                        "(blurred, noisy, compressed pictures), pixel-flow-x4 (for Multi-Step SR: every seed another result). "
                        "Own files: put them into models/alignsr or "
                        "models/upscale_models."
                    },
                ),
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": "fp32",
                        "tooltip": "Number format of the weights. fp32 is exact and fine for the bundled models; fp16 and "
                        "bf16 halve "
                        "memory on a GPU and cost a little accuracy. A model that overflows in fp16 stops with an error "
                        "that says so.",
                    },
                ),
                "device": (
                    list(DEVICES),
                    {
                        "default": "auto",
                        "tooltip": "auto: the GPU if there is one. cpu: stay on the processor, slower but needs no video memory.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None, precision: str, device: str) -> str | float:  # noqa: N802
        """Reload when the file itself was replaced; always where its name comes through a link."""
        if model_name is None:
            return math.nan
        return file_stamp(get_host().resolve_model(model_name))

    def load(self, model_name: str, precision: str = "fp32", device: str = "auto") -> tuple[LoadedModel, str]:
        import json
        from dataclasses import asdict

        with input_names("model_name", model="model_name", precision="precision", device="device"):
            model = self._read(model_name, precision, device)
        facts = {"file": model.path.name, "precision": precision, "device": device, **asdict(model.backbone.spec)}
        return model, json.dumps(facts, indent=2)

    def _read(self, model_name: str, precision: str, device: str) -> LoadedModel:
        """Aloud: a model may take seconds, `pixel-x4` for what diffusers imports (see `core.backbones.pixel`)."""
        name = Path(model_name).name
        LOGGER.info("Load SR Model: loading %s ...", name)
        bar = get_host().progress(1, f"loading {name}")
        bar.update(0)
        model = load_model(model_name, precision, device)
        bar.update(1)
        return model
