"""What torchvision's compiled part does for detectors, in plain torch, for where that part cannot be loaded (see `compat`)."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

_REGIONS_AT_ONCE = 64  # the plain form of roi_align holds four values per sample, channel and region


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, as `torchvision.ops.nms` defines it.

        keep the best box, drop every box whose IoU with it is above the threshold, go on with what is left

    Args:
        boxes: [N, 4] float, (left, top, right, bottom).
        scores: [N] float.
        iou_threshold: in [0, 1]; an IoU that equals it is kept.

    Returns:
        Indices of the kept boxes, int64, by falling score; of equal scores the first box comes first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
        [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    corners = boxes.float()[order]
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    is_left = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for index in range(len(order)):
        if not is_left[index]:
            continue
        kept.append(index)
        rest = slice(index + 1, None)
        low = torch.maximum(corners[index, :2], corners[rest, :2])
        high = torch.minimum(corners[index, 2:], corners[rest, 2:])
        shared = (high - low).clamp_min(0).prod(1)
        is_left[rest] &= ~(shared / (areas[index] + areas[rest] - shared) > iou_threshold)  # NaN of empty boxes: kept
    return order[torch.tensor(kept, dtype=torch.int64, device=boxes.device)]


def in_parts(roi_align: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torchvision's plain `_roi_align`, a few regions at a time, so that its memory does not grow with their number."""

    def aligned(features: Tensor, regions: Tensor, *options: object) -> Tensor:
        groups = cast(tuple[Tensor, ...], regions.split(_REGIONS_AT_ONCE))
        parts = [roi_align(features, some, *options) for some in groups]
        return torch.cat(parts) if parts else roi_align(features, regions, *options)

    return aligned
