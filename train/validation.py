"""Held-out pictures as pairs, and strips of samples: what recipes show while they train."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .data import PairData

Watch = Callable[[int, int], None]  # told how many of how many pictures are done; may raise to end the validation
SMALLEST_HELD_OUT_PX = 32
_STRIP_PX = 256  # side of the middle of the picture that a strip shows
_PANEL_PX = 264


def unwatched(done: int, total: int) -> None:
    """A `Watch` that nobody looks at."""


def held_out_pairs(data: PairData, multiple: int = 1, watch: Watch = unwatched) -> Iterator[tuple[Tensor, Tensor]]:
    """(lq, gt) of every held-out picture under the training degradation, [1, 3, h, w] and [1, 3, H, W] in [0, 1] on the CPU.

    Args:
        data: the training data with its held-out pictures.
        multiple: lq's sides are cut to multiples of it.
        watch: told before every picture.
    """
    store = data.store.of(data.held_out)
    for index in range(len(data.held_out)):
        watch(index, len(data.held_out))
        if data.config.degradation == "matlab":
            gt, lq = (image[None].float() / 255 for image in store.pair(index))
        else:
            from ..core.degradation import degrade

            gt = store.image(index)[None].float() / 255
            lq = degrade(gt, data.config.degradation, seeds=[index], scale=data.scale, jpeg=data.config.jpeg).lq
        height, width = (side // data.scale // multiple * multiple for side in gt.shape[-2:])
        yield lq[..., :height, :width], gt[..., : height * data.scale, : width * data.scale]


def sample_pair(data: PairData, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """The pair that strips show: the middle of the first held-out picture, or the first training sample."""
    if not data.held_out:
        batch = data.batch(0, 1)
        return batch.lq, batch.gt
    lq, gt = next(held_out_pairs(data, multiple))
    side = min(_STRIP_PX // data.scale, *lq.shape[-2:]) // multiple * multiple
    top, left = ((length - side) // 2 for length in lq.shape[-2:])
    s = data.scale
    return lq[..., top : top + side, left : left + side], gt[..., top * s : (top + side) * s, left * s : (left + side) * s]


def strip(images: Mapping[str, Tensor]) -> Any:
    """Labelled images in a row as a PIL picture; smaller ones are enlarged to the last one's size."""
    from ..core.pictures import side_by_side

    return side_by_side({label: image.float().cpu().clamp(0, 1) for label, image in images.items()}, crops=0, panel_px=_PANEL_PX)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Eval mode without gradients; the mode comes back at the end."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield network
    finally:
        network.train(was_training)
