"""What one-step training shows while it runs: scores of held-out pictures, and samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.metrics import lr_psnr, psnr, ssim
from ..core.restore import restore
from ..core.spectral import periodic_energy_score
from .conditioning import TrainConditioner
from .data import PairData
from .validation import Watch, held_out_pairs, sample_pair, strip, unwatched

SMALLEST_FOR_PERIODS_PX = 64


def _restored(
    backbone: Any,
    lq: Tensor,
    scale: int,
    told: TrainConditioner,
    device: torch.device,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    lq = lq.to(device)
    with torch.no_grad():
        return restore(backbone, lq, scale=scale, conditioning=told(lq), on_tile=on_tile).sr.float().cpu()


def validate(
    backbone: Any, data: PairData, told: TrainConditioner, device: torch.device, watch: Watch = unwatched
) -> dict[str, float]:
    """Means over the held-out pictures under the training degradation; `watch` is told before every picture and after every tile.

    Returns:
        psnr_y and ssim_y (8 bit, border of `scale` px cropped), lr_psnr, and `periodic`: the periodic-energy score of the results
        over that of the ground truth (check 24), 1 without a grid; pictures with a side below 64 px do not enter it.
    """
    sums = dict.fromkeys(("psnr_y", "ssim_y", "lr_psnr"), 0.0)
    ratios: list[float] = []
    count = len(data.held_out)
    for index, (lq, gt) in enumerate(held_out_pairs(data, watch=watch)):
        sr = _restored(backbone, lq, data.scale, told, device, lambda *_, done=index: watch(done, count))
        sums["psnr_y"] += float(psnr(sr, gt, crop=data.scale))
        sums["ssim_y"] += float(ssim(sr, gt, crop=data.scale))
        sums["lr_psnr"] += float(lr_psnr(sr, lq, scale=data.scale))
        if min(gt.shape[-2:]) >= SMALLEST_FOR_PERIODS_PX:
            ratios.append(float(periodic_energy_score(sr) / periodic_energy_score(gt)))
    means = {name: total / count for name, total in sums.items()}
    return means | ({"periodic": sum(ratios) / len(ratios)} if ratios else {})


def samples(backbone: Any, data: PairData, told: TrainConditioner, device: torch.device) -> Any:
    """Input, result and ground truth of one picture."""
    lq, gt = sample_pair(data)
    return strip({"input": lq, "result": _restored(backbone, lq, data.scale, told, device), "ground truth": gt})
