"""Our own metrics: their facts (OWN) and how each is computed from the pictures at hand (COMPUTE)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import quantize_8bit, to_float64, to_rgb
from .autoencoded import ImageAutoEncoder, ae_psnr
from .distortion import Channel, lr_psnr, psnr, ssim
from .inputs import check_picture
from .spec import INF, MetricSpec
from .statistics import POWER_FLOOR, content_q

NO_AUTOENCODER = "an auto-encoder: none was given; name its file with `alignsr evaluate --autoencoder FILE`, or pass autoencoder="


def _lr_psnr_spec(name: str, title: str, channel: Channel, note: str) -> MetricSpec:
    note = f"dB, after downscaling; {note}"
    return MetricSpec(name, title, "distortion", True, (0.0, 80.0), "none", channel, needs_input=True, note=note)


OWN: dict[str, MetricSpec] = {
    "psnr_y": MetricSpec(
        "psnr_y", "PSNR (Y)", "distortion", True, (0.0, 80.0), "scale", "y", needs_reference=True, note="dB; 80 for equal images"
    ),
    "psnr_rgb": MetricSpec(
        "psnr_rgb", "PSNR (RGB)", "distortion", True, (0.0, 80.0), "scale", "rgb", needs_reference=True, note="dB"
    ),
    "ssim_y": MetricSpec(
        "ssim_y", "SSIM (Y)", "distortion", True, (-1.0, 1.0), "scale", "y", needs_reference=True, min_side_px=11
    ),
    "ssim_rgb": MetricSpec(
        "ssim_rgb", "SSIM (RGB)", "distortion", True, (-1.0, 1.0), "scale", "rgb", needs_reference=True, min_side_px=11
    ),
    "ae_psnr": MetricSpec(
        "ae_psnr",
        "AE-PSNR",
        "autoencoded",
        True,
        (0.0, 80.0),
        "scale",
        "y",
        needs_reference=True,
        needs_autoencoder=True,
        note="dB, after AESOP's auto-encoder, whose file you name",
    ),
    "lr_psnr": _lr_psnr_spec("lr_psnr", "LR-PSNR", "y", "crops one input pixel"),
    "lr_psnr_crop0": _lr_psnr_spec("lr_psnr_crop0", "LR-PSNR c0", "y", "whole images"),
    "lr_psnr_rgb": _lr_psnr_spec("lr_psnr_rgb", "LR-PSNR RGB", "rgb", "crops one input pixel"),
    "lr_psnr_rgb_crop0": _lr_psnr_spec("lr_psnr_rgb_crop0", "LR-PSNR RGB c0", "rgb", "whole images"),
    "lsd": MetricSpec(
        "lsd",
        "LSD",
        "spectral",
        False,
        (0.0, INF),
        "none",
        "y",
        needs_reference=True,
        min_side_px=4,
        note="dB between radial power spectra",
    ),
    "hf_energy": MetricSpec(
        "hf_energy",
        "HF energy",
        "spectral",
        False,
        (0.0, INF),
        "none",
        "y",
        needs_reference=True,
        min_side_px=4,
        note="|dB| between the energies of detail finer than the input can hold; needs the scale, 2 or more",
    ),
    "sharpness": MetricSpec(
        "sharpness",
        "Sharpness (Q)",
        "statistic",
        True,
        (0.0, INF),
        "none",
        "y",
        min_side_px=10,
        note="Zhu and Milanfar's Q: gradients across coherent edges; blur and noise lower it, oversharpening does not",
    ),
}


@dataclass(frozen=True)
class Pictures:
    """What one of our own metrics may look at; whoever calls has checked that the needed ones are there."""

    sr: Tensor
    gt: Tensor | None
    lq: Tensor | None
    scale: int | None
    crop: int
    quantize: bool
    autoencoder: ImageAutoEncoder | None


def _pairwise(metric: Callable[..., Tensor], channel: Channel) -> Callable[[Pictures], Tensor]:
    return lambda x: metric(x.sr, x.gt, crop=x.crop, channel=channel, quantize=x.quantize)


def _lr_psnr(crop: int, channel: Channel) -> Callable[[Pictures], Tensor]:
    def measure(x: Pictures) -> Tensor:
        assert x.lq is not None
        scale = x.scale or max(1, x.sr.shape[-2] // x.lq.shape[-2])
        return lr_psnr(x.sr, x.lq, scale=scale, crop=crop, channel=channel, quantize=x.quantize)

    return measure


def _ae_psnr(x: Pictures) -> Tensor:
    assert x.gt is not None and x.autoencoder is not None
    return ae_psnr(x.sr, x.gt, x.autoencoder, crop=x.crop, quantize=x.quantize)


def _lsd(x: Pictures) -> Tensor:
    from ..spectral import log_spectral_distance

    assert x.gt is not None
    return log_spectral_distance(_rgb(x.sr, "sr", x.quantize), _rgb(x.gt, "gt", x.quantize))


def _hf_energy(x: Pictures) -> Tensor:
    """|10 log10(energy of sr / energy of gt)| above the input's band."""
    from ..spectral import high_frequency_ratio

    assert x.gt is not None
    if x.scale is None:
        raise ValueError("scale: expected the upscale factor for hf_energy (what the input cannot hold), got None; pass scale")
    ratio = high_frequency_ratio(_rgb(x.sr, "sr", x.quantize), _rgb(x.gt, "gt", x.quantize), scale=x.scale)
    return (10 * torch.log10(ratio.double().clamp_min(POWER_FLOOR))).abs()


def _sharpness(x: Pictures) -> Tensor:
    return content_q(_rgb(x.sr, "sr", x.quantize))


def _rgb(image: Tensor, name: str, quantize: bool) -> Tensor:
    rgb = to_float64(to_rgb(check_picture(image, name)))
    return quantize_8bit(rgb) if quantize else rgb


COMPUTE: dict[str, Callable[[Pictures], Tensor]] = {
    "psnr_y": _pairwise(psnr, "y"),
    "psnr_rgb": _pairwise(psnr, "rgb"),
    "ssim_y": _pairwise(ssim, "y"),
    "ssim_rgb": _pairwise(ssim, "rgb"),
    "ae_psnr": _ae_psnr,
    "lr_psnr": _lr_psnr(1, "y"),
    "lr_psnr_crop0": _lr_psnr(0, "y"),
    "lr_psnr_rgb": _lr_psnr(1, "rgb"),
    "lr_psnr_rgb_crop0": _lr_psnr(0, "rgb"),
    "lsd": _lsd,
    "hf_energy": _hf_energy,
    "sharpness": _sharpness,
}
