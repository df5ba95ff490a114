"""The vision-language branch as a `staged.Conditioner`: what each tile of an enlarged picture is told."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checks import check_image, check_positive_int
from ..records import Conditioning
from ..tiling import TilePlan
from .projector import TokenAdapter
from .vlm import VLMEncoder

_PADDING_PX = 64  # of an enlarged picture: no backbone pads further


class VLMConditioner:
    """Shows pictures, or the parts of them that lie under the tiles, to a vision-language model.

    The encoder remembers what it has seen, so that a second run, or one with other settings of the backbone, is free.

    Args:
        encoder: gives the tokens.
        adapter: brings them to the backbone's width.
        lq: the pictures, [B, 3, h, w] in [0, 1], not enlarged; one serves for all samples.
        per_tile: every tile gets tokens of its own part, as in training, where model and transformer saw the same crop; otherwise
            all tiles share those of the whole picture, as in the released scripts.
        batch_size: crops that go through the model together.

    Source:
        StrSR, arXiv:2603.06275v1; strsr.md sections 1.3 and 5 item 12.
    """

    def __init__(self, encoder: VLMEncoder, adapter: TokenAdapter, lq: Tensor, *, per_tile: bool, batch_size: int = 1) -> None:
        self.encoder, self.adapter = encoder, adapter
        self.lq = check_image(lq, "lq", channels=(3,))
        self.per_tile = per_tile
        self.batch_size = check_positive_int(batch_size, "batch_size")
        self.on_part: Callable[[int, int], None] | None = None

    def watched(self, on_part: Callable[[int, int], None]) -> "VLMConditioner":
        """The same one, which calls on_part(done, total) between the parts of a sample; that may raise to cancel."""
        made = copy.copy(self)
        made.on_part = on_part
        return made

    def __call__(self, sample: int, tiles: TilePlan, scale: int) -> Conditioning:
        """Tokens of one sample: one row per tile, or one row.

        Raises:
            ValueError: made from other pictures than those that are restored, or an adapter for another model's tokens.
        """
        if not (self.lq.shape[0] == 1 or sample < self.lq.shape[0]):
            raise ValueError(
                f"conditioning: expected one from as many pictures as are restored, got one from {self.lq.shape[0]}; "
                "encode the same pictures"
            )
        lq = self.lq[sample % self.lq.shape[0]][None]
        height, width = (side * scale for side in lq.shape[-2:])
        if not (0 <= tiles.height - height < _PADDING_PX and 0 <= tiles.width - width < _PADDING_PX):
            raise ValueError(
                f"conditioning: expected one from the pictures that are restored, got one from {lq.shape[-1]}x{lq.shape[-2]} "
                f"pixels for a result of about {tiles.width}x{tiles.height}; encode the same pictures, at the same scale"
            )
        if not self.per_tile:
            return self._adapt(self.encoder.encode(lq, on_image=self.on_part))
        found = self.encoder.encode_tiles(lq, tiles, scale, batch_size=self.batch_size, on_image=self.on_part)
        return self._adapt(found)

    def _adapt(self, tokens: Tensor) -> Conditioning:
        first = self.adapter[0]
        assert isinstance(first, nn.Linear)
        if tokens.shape[-1] != first.in_features:
            raise ValueError(
                f"vlm: expected tokens of width {first.in_features} as the projector takes, got {tokens.shape[-1]}; "
                "use the vision-language model that the adapter was trained with"
            )
        with torch.no_grad():
            return self.adapter.condition(tokens)
