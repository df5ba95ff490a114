"""Sobolev Norm: how far two pictures or latents are apart by the norm of ASASR, and where."""

import json
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.checks import describe
from ..core.diffusion import as_multi_step
from ..core.images import to_model_range
from ..core.sobolev import SobolevNorm as Norm
from .common import SR_MODEL, match_batch, take, to_image
from .host import get_host
from .models import LoadedModel
from .multi_step_sampling import held, work_device
from .one_step import OneStepModel

LATENT = "LATENT"
ORDER = (
    "FLOAT",
    {
        "default": 1.5,
        "min": 0.0,
        "max": 8.0,
        "step": 0.1,
        "tooltip": "s: how much more fine detail weighs than coarse. 0: all alike, the mean square. 1.5: the paper's.",
    },
)


def length_input(default: float, more: str) -> tuple[str, dict[str, Any]]:
    tooltip = f"L, in pixels or latent elements: what is coarser than about L weighs as little as a constant. {more}"
    return ("FLOAT", {"default": default, "min": 0.1, "max": 4096.0, "step": 0.01, "tooltip": tooltip})


class SobolevNorm:
    """Node AlignSRSobolevNorm."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Measures how far two pictures, or two latents, are apart in the norm by which ASASR judges: the difference weighed by "
        "spatial frequency. Says how much, in which bands, and shows where, beside the plain mean square."
    )
    FUNCTION = "measure"
    RETURN_TYPES = ("FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("energy", "figures", "energy_map")
    OUTPUT_TOOLTIPS = (
        "The energy, averaged over the batch: 0 where both agree, the variance where they differ by white noise.",
        "JSON per picture: energy, mean square, and the share of each in the low, middle and high band.",
        "Where the difference lies by the norm and by the mean square, beside what was compared: one sheet per picture.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "order": ORDER,
                "length_scale": length_input(64.0, "64: as in training."),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "Pictures to measure; with reference, instead of latents."}),
                "reference": ("IMAGE", {"tooltip": "What they should be, of the same size; one for all, or one each."}),
                "latent": (LATENT, {"tooltip": "Latents to measure, instead of pictures: of FLUX.1 or Stable Diffusion, say."}),
                "reference_latent": (LATENT, {"tooltip": "What they should be, of the same shape."}),
                "model": (
                    SR_MODEL,
                    {"tooltip": "Pictures only: encode both with this model's autoencoder first, and measure as in training."},
                ),
            },
        }

    def measure(
        self,
        order: float = 1.5,
        length_scale: float = 64.0,
        image: Tensor | None = None,
        reference: Tensor | None = None,
        latent: Any = None,
        reference_latent: Any = None,
        model: LoadedModel | OneStepModel | None = None,
    ) -> tuple[float, str, Tensor]:
        from ..core.sobolev_view import energy_picture, sobolev_figures

        norm, views = Norm(order, length_scale), dict[str, Tensor]()
        pictures, latents = (image, reference), (latent, reference_latent)
        if all(part is not None for part in pictures) and latents == (None, None):
            sr = take(image, "image").rgb
            gt = match_batch(take(reference, "reference").rgb, sr.shape[0], "reference")
            if sr.shape != gt.shape:
                raise ValueError(
                    f"reference: expected the size of image {size_of(sr)}, got {size_of(gt)}; check scale and cropping"
                )
            views = {"image": sr, "reference": gt}
            apart = sr - gt if model is None else _difference(model, sr, gt)
        elif all(part is not None for part in latents) and pictures == (None, None) and model is None:
            x, y = _samples(latent, "latent"), _samples(reference_latent, "reference_latent")
            if x.shape != y.shape:
                shapes = tuple(x.shape), tuple(y.shape)
                raise ValueError(f"reference_latent: expected the shape of latent {shapes[0]}, got {shapes[1]}; use one model")
            apart = x - y
        else:
            raise ValueError(
                "image, reference: expected two pictures (and a model, if their latents are meant), or two latents in latent and "
                "reference_latent; connect one pair"
            )
        figures = sobolev_figures(apart, norm)
        bar = get_host().progress(len(figures), "measuring")
        sheets: list[Image.Image] = []
        for index, each in enumerate(figures):
            shown = {name: view[index : index + 1] for name, view in views.items()}
            title = f"energy {each.energy:.4g}, mean square {each.euclidean:.4g}"
            sheets.append(energy_picture(apart[index : index + 1], norm, shown, title))
            bar.update(index + 1)
        facts = {"order": order, "length_scale": length_scale, "pictures": [each.to_dict() for each in figures]}
        return sum(each.energy for each in figures) / len(figures), json.dumps(facts, indent=2), to_image(sheets)


def size_of(x: Tensor) -> str:
    """Width and height for messages."""
    return f"{x.shape[-1]}x{x.shape[-2]}"


def _samples(latent: Any, name: str) -> Tensor:
    """Latents of ComfyUI as [B, C, h, w] float32 on the CPU."""
    samples: Any = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or samples.ndim != 4 or 0 in samples.shape:
        what = tuple(samples.shape) if isinstance(samples, Tensor) else describe(latent)
        raise ValueError(f"{name}: expected latents [B, C, h, w] of pictures, got {what}; connect a node that encodes pictures")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; look at the node before")
    return samples.detach().float().cpu()


def _difference(model: LoadedModel | OneStepModel, sr: Tensor, gt: Tensor) -> Tensor:
    """Difference of both pictures' latents, cut right and below to what the model takes."""
    as_multi_step(model.meta if isinstance(model, OneStepModel) else model.backbone, "model")
    host, multiple = get_host(), model.backbone.spec.size_multiple
    height, width = (side // multiple * multiple for side in sr.shape[-2:])
    if not height or not width:
        raise ValueError(
            f"image: expected sides of at least {multiple} px for this model, got {size_of(sr)}; use larger pictures"
        )
    with held(model, sr, 1, max(height, width), 1, host) as backbone, torch.no_grad():
        sides = [
            torch.cat([encoded(backbone, model, x[i : i + 1, :, :height, :width], "encode") for i in range(len(x))])
            for x in (sr, gt)
        ]
    return sides[0] - sides[1]


def encoded(backbone: Any, model: LoadedModel | OneStepModel, pixels: Tensor, way: str) -> Tensor:
    """Pictures in [0, 1] through `encode` or `encode_lq`, float32 on the CPU."""
    like = next(next(backbone.modules())[1].parameters())
    place = work_device(model, get_host())
    image = to_model_range(pixels).to(place, torch.float32 if isinstance(model, OneStepModel) else like.dtype)
    return getattr(backbone, way)(image).float().cpu()
