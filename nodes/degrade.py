"""Degrade: make a realistic bad picture from a good one, with a record of what was done."""

import json
from typing import Any

import torch
from torch import Tensor

from ..core.channels import Channels
from ..core.checks import check_positive_int
from ..core.degradation import PRESETS, degrade
from ..core.images import crop_to_multiple
from ..core.resize import bicubic
from .common import give, take
from .host import get_host

JPEG_FORMS = ("codec", "differentiable")
TARGETS = {"as preset": None, "plain": False, "sharpened": True}
SEED_MAX = 2**64 - 1


class Degrade:
    """Node AlignSRDegrade."""

    CATEGORY = "AlignSR/data"
    DESCRIPTION = (
        "Degrades pictures the way the super-resolution papers do: blur, resizing, noise, JPEG, twice over, with random "
        "parameters. "
        "Gives the bad picture, the target to compare with, and the drawn parameters."
    )
    FUNCTION = "degrade"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("lq", "gt", "params")
    OUTPUT_TOOLTIPS = (
        "The degraded pictures, smaller by the scale.",
        "The target of the same pictures: cut to a multiple of the scale, and sharpened where the preset says so.",
        "What was drawn for every picture, as JSON; the core's replay() repeats it exactly.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "Clean pictures. Grey stays grey; alpha is kept and shrunk alongside."}),
                "preset": (
                    list(PRESETS),
                    {
                        "default": "realesrgan",
                        "tooltip": "realesrgan, strsr, asasr: second-order chains of the papers, heavy. aesop_realworld: "
                        "the same, milder. "
                        "dp2o: one order. mild: one order, much less. bicubic: only shrink, as the classical benchmarks do.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": SEED_MAX,
                        "control_after_generate": True,
                        "tooltip": "Same seed, same result. Picture number k of a batch uses seed + k.",
                    },
                ),
                "scale": (
                    "INT",
                    {"default": 4, "min": 1, "max": 16, "tooltip": "How many times smaller the result is. 1 keeps the size."},
                ),
                "jpeg": (
                    list(JPEG_FORMS),
                    {
                        "default": "codec",
                        "tooltip": "codec: a real JPEG encoder. differentiable: its smooth model as used inside training; "
                        "differs by "
                        "about one grey level.",
                    },
                ),
            },
            "optional": {
                "target": (
                    list(TARGETS),
                    {
                        "default": "as preset",
                        "advanced": True,
                        "tooltip": "Whether gt is sharpened (unsharp mask). Compare like with like: a model trained on "
                        "plain targets "
                        "scores lower against sharpened ones.",
                    },
                )
            },
        }

    def degrade(
        self, image: Tensor, preset: str, seed: int, scale: int, jpeg: str = "codec", target: str = "as preset"
    ) -> tuple[Tensor, Tensor, str]:
        if target not in TARGETS:
            raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}; choose one of them")
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}; choose one of them")
        check_positive_int(scale, "scale", high=16)
        whole = take(image, "image")
        if min(whole.size) < scale:
            raise ValueError(
                f"image: expected sides of at least {scale} px for scale {scale}, got {whole.size}; use a larger picture"
            )
        alpha = None if whole.alpha is None else crop_to_multiple(whole.alpha, scale)
        clean = Channels(crop_to_multiple(whole.rgb, scale), alpha, whole.is_grey)
        bar = get_host().progress(clean.rgb.shape[0], "degrading")
        parts = []
        for index, sample in enumerate(clean.rgb.split(1)):
            seeds = [(seed + index) % (SEED_MAX + 1)]
            parts.append(degrade(sample, preset, seeds=seeds, scale=scale, jpeg=jpeg, sharpen_target=TARGETS[target]))  # type: ignore[arg-type]
            bar.update(index + 1)
        lq = torch.cat([part.lq for part in parts])
        small = None if clean.alpha is None else bicubic(clean.alpha, (lq.shape[-2], lq.shape[-1])).clamp(0, 1)
        params = json.dumps([record for part in parts for record in part.params], indent=2)
        return give(lq, Channels(lq, small, clean.is_grey)), give(torch.cat([part.gt for part in parts]), clean), params
