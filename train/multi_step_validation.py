"""What training of multi-step models shows while it runs: scores of held-out pictures sampled from noise, samples and spectra."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.drawing import paste_rows
from ..core.metrics import lr_psnr, psnr, ssim
from ..core.records import Conditioning
from ..core.sampling import restore_multi_step
from ..core.spectral import log_spectral_distance
from ..core.spectral_view import SpectralComparison
from .data import PairData
from .validation import Watch, held_out_pairs, strip, unwatched


@dataclass(frozen=True)
class SamplingConfig:
    """How held-out pictures are sampled."""

    steps: int = 0  # network steps; 0: the model's own
    sampler: str = "auto"
    seed: int = 0  # of the noise, the same for every picture
    color_fix: Literal["adain", "wavelet", "none"] = "none"  # none measures the model itself


@torch.no_grad()
def sampled(
    backbone: Any, lq: Tensor, scale: int, config: SamplingConfig, told: Conditioning | None, device: torch.device
) -> Tensor:
    """One sample of each picture, [B, 3, H, W] on the CPU."""
    restored = restore_multi_step(
        backbone,
        lq.to(device),
        scale=scale,
        steps=config.steps,
        sampler=config.sampler,
        seeds=config.seed,
        color_fix=config.color_fix,
        conditioning=told,
    )
    return restored.sr.float().cpu()


def validate(
    backbone: Any,
    data: PairData,
    config: SamplingConfig,
    told: Conditioning | None,
    device: torch.device,
    watch: Watch = unwatched,
) -> dict[str, float]:
    """Means over the held-out pictures under the training degradation, see `scores`; `watch` is told before every picture."""
    return scores(backbone, held_out_pairs(data, watch=watch), data.scale, config, told, device)


def scores(
    backbone: Any,
    pairs: Iterable[tuple[Tensor, Tensor]],
    scale: int,
    config: SamplingConfig,
    told: Conditioning | None,
    device: torch.device,
) -> dict[str, float]:
    """Means over pairs (lq, gt), at least one.

    Returns:
        psnr_y and ssim_y (8 bit, border of `scale` px cropped), lr_psnr, and lsd: the log-spectral distance in dB.
    """
    sums, count = dict.fromkeys(("psnr_y", "ssim_y", "lr_psnr", "lsd"), 0.0), 0
    for lq, gt in pairs:
        sr = sampled(backbone, lq, scale, config, told, device)
        sums["psnr_y"] += float(psnr(sr, gt, crop=scale))
        sums["ssim_y"] += float(ssim(sr, gt, crop=scale))
        sums["lr_psnr"] += float(lr_psnr(sr, lq, scale=scale))
        sums["lsd"] += float(log_spectral_distance(sr, gt))
        count += 1
    return {name: total / count for name, total in sums.items()}


def preview(results: Mapping[str, Tensor], lq: Tensor, gt: Tensor, target: str = "ground truth") -> Any:
    """Input, results and ground truth in a row, their radial spectra below: a PIL picture.

    Args:
        results: label -> [1, 3, H, W].
        lq: [1, 3, h, w].
        gt: [1, 3, H, W].
        target: what gt is called.
    """
    seen = SpectralComparison()
    for label, sr in results.items():
        seen.add(label, sr, gt)
    return paste_rows([strip({"input": lq, **results, target: gt}), seen.picture("radial power spectra")])
