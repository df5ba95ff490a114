"""Perturbation Viewer: the closed-form negative of ASASR's proposition 4.1 beside a Euclidean one."""

import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.checks import check_range
from ..core.diffusion import as_multi_step
from ..core.images import bchw_to_bhwc, from_model_range, quantize_8bit
from ..core.records import Conditioning
from ..core.resize import bicubic
from ..core.sobolev import SobolevNorm as Norm
from .common import SR_MODEL, JobBar, input_names, take, to_image
from .condition import CONDITIONING
from .host import get_host
from .models import LoadedModel
from .multi_step_sampling import held, work_device
from .one_step import OneStepModel
from .prompts import told
from .sobolev import ORDER, encoded, length_input, size_of


class PerturbationViewer:
    """Node AlignSRPerturbationViewer."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Shows the negative of ASASR's proposition 4.1 for a picture: the change inside a ball of the Sobolev norm with which a "
        "model of many steps feels most at ease, beside a change of the same size along the plain gradient. One is smooth and "
        "structured, the other grainy."
    )
    FUNCTION = "view"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "sobolev", "euclidean", "figures")
    OUTPUT_TOOLTIPS = (
        "Both negatives and the picture with zoomed crops, both changes amplified, and their spectra.",
        "The closed-form negative, decoded.",
        "The negative along the plain gradient, as far from the picture, decoded.",
        "JSON: the model's residual at the picture and at both negatives, size and fine share of both changes.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": (
                    SR_MODEL,
                    {"tooltip": "From Load Multi-Step Backbone, Merge LoRA, or Load SR Model with a pixel flow: the reference."},
                ),
                "image": ("IMAGE", {"tooltip": "Ground truth: sharp pictures; the middle of each is used."}),
                "noise_level": (
                    "FLOAT",
                    {
                        "default": 0.5,
                        "min": 0.05,
                        "max": 0.9,
                        "step": 0.05,
                        "tooltip": "How noisy the state is at which the model is asked: sigma, or the share of Stable "
                        "Diffusion's timesteps. More noise, coarser changes.",
                    },
                ),
                "order": ORDER,
                "length_scale": length_input(
                    6.28, "At 64, as in training, the change is hardly more than a tint; 6.28 shows form."
                ),
                "radius": (
                    "FLOAT",
                    {
                        "default": 0.05,
                        "min": 0.0001,
                        "max": 1.0,
                        "step": 0.005,
                        "tooltip": "Of the ball, as a share of the noisy state's norm. With a large length_scale take a tenth or "
                        "less.",
                    },
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "tooltip": "Of the noise in the state."}),
                "size_px": (
                    "INT",
                    {
                        "default": 256,
                        "min": 32,
                        "max": 1024,
                        "step": 16,
                        "tooltip": "Largest side of the part that is used. Gradients need memory: FLUX.1 about 25 GB at 512.",
                    },
                ),
                "gain": (
                    "FLOAT",
                    {"default": 4.0, "min": 1.0, "max": 64.0, "step": 0.5, "tooltip": "How strongly changes are amplified."},
                ),
            },
            "optional": {
                "scale": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 16,
                        "advanced": True,
                        "tooltip": "The model sees the picture shrunk that many times (bicubic) and enlarged again.",
                    },
                ),
                "conditioning": (
                    CONDITIONING,
                    {"tooltip": "What the model is told, from Text Encode. Without it, the empty prompt."},
                ),
            },
        }

    def view(
        self,
        model: LoadedModel | OneStepModel,
        image: Tensor,
        noise_level: float = 0.5,
        order: float = 1.5,
        length_scale: float = 6.28,
        radius: float = 0.05,
        seed: int = 0,
        size_px: int = 256,
        gain: float = 4.0,
        scale: int = 4,
        conditioning: Conditioning | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        from ..core.sobolev_view import fine_share, negatives_picture

        as_multi_step(model.meta if isinstance(model, OneStepModel) else model.backbone, "model")
        host, norm = get_host(), Norm(order, length_scale)
        check_range(gain, "gain", 1.0, 64.0)
        sheets: list[Image.Image] = []
        facts: list[dict[str, Any]] = []
        negatives: dict[str, list[Tensor]] = {"Sobolev": [], "Euclidean": []}
        with torch.inference_mode(False):  # a gradient is needed
            gt = _middle(take(image, "image").rgb, size_px, model.backbone.spec.size_multiple, scale)
            says = told(model, conditioning, "") if model.backbone.spec.conditioning_dim else None
            bar = JobBar(host, "looking for negatives")
            names = input_names(level="noise_level", radius_ratio="radius")
            with held(model, gt, 1, max(gt.shape[-2:]), 1, host) as backbone, _recomputed(model.backbone), names:
                for index in range(len(gt)):
                    host.check_interrupt()
                    at = {"level": noise_level, "norm": norm, "radius_ratio": radius}
                    found, shown = _look(backbone, model, gt[index : index + 1], scale, seed, _row(says, index), **at)
                    changes = found.deltas()
                    rms = float(changes["Sobolev"].square().mean().sqrt())
                    fine = {name.lower(): round(fine_share(change), 6) for name, change in changes.items()}
                    facts.append({"residuals": dict(found.residuals), "change_rms": rms, "fine_share": fine})
                    title = f"noise level {noise_level:g}, changes of RMS {rms:.3g} in the model's latents"
                    sheets.append(negatives_picture(found, shown, gain=gain, title=title))
                    for name, kept in negatives.items():
                        kept.append(quantize_8bit(shown[name]))
                    bar(index + 1, len(gt))
        text = json.dumps({"order": order, "length_scale": length_scale, "radius": radius, "pictures": facts}, indent=2)
        sobolev, euclidean = (bchw_to_bhwc(torch.cat(kept)) for kept in negatives.values())
        return to_image(sheets), sobolev, euclidean, text


class _Cast:
    """A pixel model of half precision that is asked in float32; latent models take what they get to their own precision."""

    def __init__(self, backbone: Any) -> None:
        self.backbone, self.spec, self.process = backbone, backbone.spec, backbone.process
        self.dtype = next(next(backbone.modules())[1].parameters()).dtype
        self.decode = backbone.decode

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The model's answer, float32, with gradients to z."""
        says = None if conditioning is None else conditioning.to(z.device, self.dtype)
        return self.backbone.predict(z.to(self.dtype), time, z_lq.to(self.dtype), says).float()


def _look(
    backbone: Any,
    model: LoadedModel | OneStepModel,
    picture: Tensor,
    scale: int,
    seed: int,
    says: Conditioning | None,
    **how: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Negatives of one picture, and what they look like."""
    from ..core.sobolev_view import find_negatives

    place, size = work_device(model, get_host()), (picture.shape[-2], picture.shape[-1])
    lq = bicubic(picture, (size[0] // scale, size[1] // scale)).clamp(0, 1)
    lq_up = bicubic(lq, size, antialias=model.backbone.spec.is_antialiased).clamp(0, 1)
    with torch.no_grad():
        clean, z_lq = encoded(backbone, model, picture, "encode"), encoded(backbone, model, lq_up, "encode_lq")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    told_here = None if says is None else says.to(place, torch.float32)
    clean, noise, z_lq = (x.to(place) for x in (clean, noise, z_lq))
    asked = backbone if isinstance(model, OneStepModel) else _Cast(backbone)
    found = find_negatives(asked, clean, noise, how.pop("level"), z_lq, told_here, **how)
    ends = {"picture": found.clean, "Sobolev": found.sobolev, "Euclidean": found.euclidean}
    with torch.no_grad():
        return found, {name: from_model_range(backbone.decode(z).float().cpu()).clamp(0, 1) for name, z in ends.items()}


def _middle(pixels: Tensor, size_px: int, multiple: int, scale: int) -> Tensor:
    """The middle of pictures, at most `size_px` a side and a multiple of what model and scale take."""
    cell = math.lcm(multiple, scale)
    height, width = (min(side, size_px) // cell * cell for side in pixels.shape[-2:])
    if not height or not width:
        raise ValueError(f"image: expected sides of at least {cell} px, got {size_of(pixels)} and size_px {size_px}; use more")
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width].contiguous()


def _row(says: Conditioning | None, index: int) -> Conditioning | None:
    return None if says is None else says.rows([index if says.embeddings.shape[0] > 1 else 0])


@contextmanager
def _recomputed(backbone: Any) -> Generator[None]:
    """Inside, blocks are run again in the backward pass instead of being kept, where the model can."""
    from ..train.one_step import use_checkpointing

    use_checkpointing(backbone)
    try:
        yield
    finally:
        for _, module in backbone.modules():
            for part in module.modules():
                if getattr(part, "is_gradient_checkpointing", False):
                    part.disable_gradient_checkpointing()  # type: ignore[operator]
