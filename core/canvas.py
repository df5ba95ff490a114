"""The network's answers for whole pictures: under guidance, and in tiles whose answers are blended."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .checks import check_positive_int
from .diffusion import MultiStepBackbone
from .images import from_model_range, to_model_range
from .records import Conditioning
from .restore import is_latent, parameters_like
from .staged import Rows, check_tiles
from .tiling import Box, TilePlan, blend, crop_tiles

Progress = Callable[[int, int], None]
Predict = Callable[[Tensor, Tensor, str], Tensor]
"""(state, time per sample, where this is for messages) -> velocity or epsilon."""


def guided(
    backbone: MultiStepBackbone, guidance: float, told: Conditioning | None, negative: Conditioning | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(z, time, z_lq) -> the prediction under classifier-free guidance.

        p = p_negative + guidance (p_told - p_negative)

    A guidance of 1 leaves p_told, and the network is asked once.

    Source:
        Ho, Salimans 2022, arXiv:2207.12598, Eq. (6), with guidance = 1 + w.
    """

    def predict(z: Tensor, time: Tensor, z_lq: Tensor) -> Tensor:
        conditioned = backbone.predict(z, time, z_lq, told).float()
        if guidance == 1.0:
            return conditioned
        other = backbone.predict(z, time, z_lq, negative).float()
        return other + guidance * (conditioned - other)

    return predict


class Canvas:
    """Pictures in tiles: encoded, predicted and decoded part by part, each result blended into whole pictures."""

    def __init__(
        self,
        backbone: MultiStepBackbone,
        tiles: TilePlan,
        batch_size: int,
        pictures: int,
        steps: int,
        guidance: float,
        on_tile: Progress | None = None,
    ) -> None:
        check_positive_int(batch_size, "batch_size")
        self.backbone, self.tiles, self.batch_size, self.guidance, self.on_tile = backbone, tiles, batch_size, guidance, on_tile
        self.stride = backbone.spec.latent_stride
        self.grid = _coarser(tiles, self.stride)
        self.done, self.total = 0, (steps + 2) * pictures * len(tiles.starts)

    def report(self, boxes: Sequence[Box]) -> None:
        """Tell that these tiles went through network or autoencoder."""
        self.done += len(boxes)
        if self.on_tile is not None:
            self.on_tile(self.done, self.total)

    def enter(self, x: Tensor) -> Tensor:
        """Latent backbones take their input to their modules themselves, which may not be where their parameters wait."""
        if is_latent(self.backbone):
            return x
        like = parameters_like(self.backbone)
        return x.to(like.device, like.dtype)

    def encode(self, image: Tensor) -> Tensor:
        """What conditions the model, for whole pictures: [B, C, H / s, W / s] for whatever stride s its `encode_lq` has."""

        def encode(boxes: Sequence[Box]) -> Tensor:
            z = self.backbone.encode_lq(self.enter(to_model_range(crop_tiles(image, boxes)))).to(image.device, torch.float32)
            check_tiles(z, boxes, self.backbone, "when encoding")
            self.report(boxes)
            return z

        boxes = [Box(sample, *start, *self.tiles.tile_size) for sample in range(image.shape[0]) for start in self.tiles.starts]
        parts = [encode(boxes[i : i + self.batch_size]) for i in range(0, len(boxes), self.batch_size)]
        coarse = _coarser(self.tiles, self.tiles.tile_size[1] // parts[0].shape[-1])
        empty = image.new_zeros(image.shape[0], 1, coarse.height, coarse.width)
        coded = iter(parts)  # `blend` asks for the tiles in the same order, in the same groups

        def given(_: Tensor, boxes: Sequence[Box]) -> Tensor:
            del boxes
            return next(coded)

        return blend(given, empty, coarse, batch_size=self.batch_size)

    def predictor(self, z_lq: Tensor, told: Rows, negative: Rows) -> Predict:
        """The network's answer for whole pictures, blended from those on the tiles."""

        def predict(z: Tensor, time: Tensor, where: str) -> Tensor:
            def ask(part: Tensor, boxes: Sequence[Box]) -> Tensor:
                there = _finer(boxes, self.stride)
                lq = self.enter(_cut(z_lq, boxes, self.grid))
                answer = guided(self.backbone, self.guidance, self.told(told(there), lq), self.told(negative(there), lq))
                found = answer(self.enter(part), time[: len(boxes)].to(lq.device), lq).to(z.device)
                check_tiles(found, there, self.backbone, where)
                self.report(boxes)
                return found

            return blend(ask, z, self.grid, batch_size=self.batch_size)

        return predict

    def told(self, conditioning: Conditioning | None, like: Tensor) -> Conditioning | None:
        """Pixel backbones take tokens as they are, so here they get the right device and precision."""
        return conditioning if is_latent(self.backbone) or conditioning is None else conditioning.to(like.device, like.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Whole pictures from the final state, [B, 3, H, W] float32, about [0, 1]."""

        def decode(part: Tensor, boxes: Sequence[Box]) -> Tensor:
            sr = from_model_range(self.backbone.decode(self.enter(part)).float()).to(z.device)
            check_tiles(sr, _finer(boxes, self.stride), self.backbone, "when decoding")
            self.report(boxes)
            return sr

        return blend(decode, z, self.grid, scale=self.stride, batch_size=self.batch_size)


def _coarser(tiles: TilePlan, stride: int) -> TilePlan:
    """The same tiles on a grid of elements of `stride` pixels."""
    sides = [
        replace(
            side,
            length=side.length // stride,
            tile_px=side.tile_px // stride,
            starts=tuple(start // stride for start in side.starts),
            ramps=tuple(ramp // stride for ramp in side.ramps),
        )
        for side in (tiles.rows, tiles.columns)
    ]
    return TilePlan(*sides)


def _finer(boxes: Sequence[Box], stride: int) -> list[Box]:
    return [Box(box.sample, *(side * stride for side in box[1:])) for box in boxes]


def _cut(x: Tensor, boxes: Sequence[Box], grid: TilePlan) -> Tensor:
    """The parts of `x` under boxes of a grid that is finer or coarser than it by a whole factor."""
    if x.shape[-1] >= grid.width:
        return crop_tiles(x, boxes, x.shape[-1] // grid.width)
    stride = grid.width // x.shape[-1]
    return crop_tiles(x, [Box(box.sample, *(side // stride for side in box[1:])) for box in boxes])
