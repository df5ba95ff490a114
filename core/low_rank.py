"""Adapters that stay beside the weights at inference, where they act on some tokens only and cannot be folded in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = W x + b + up (down x): a linear layer, of any precision or quantisation, with a frozen adapter.

    Several adapters of one layer are one of the sum of their ranks.

    Args:
        base_layer: the layer; kept as it is.
        down: [rank, in].
        up: [out, rank], strength and scale already in it.

    Shapes:
        [..., in] -> [..., out].
    """

    def __init__(self, base_layer: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    @property
    def in_features(self) -> int:
        """As of the base layer."""
        return self.down.shape[1]

    @property
    def out_features(self) -> int:
        """As of the base layer."""
        return self.up.shape[0]

    @property
    def weight(self) -> Tensor:
        """Of the base layer."""
        base: Any = self.base_layer
        return base.weight

    def get_base_layer(self) -> nn.Module:
        """The layer without what the adapter adds, by the name that PEFT has for it."""
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        """See the class for shapes."""
        added = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return self.base_layer(x) + added


def put_beside(network: nn.Module, name: str, down: Tensor, up: Tensor) -> None:
    """Add an adapter to the layer of that name, in place; one that is there already is joined by it.

    Args:
        network: has the layer.
        name: dotted, of a linear layer or a `LowRankLinear`.
        down: [rank, in].
        up: [out, rank], times strength and scale.
    """
    layer = network.get_submodule(name)
    if isinstance(layer, LowRankLinear):
        layer, down, up = layer.base_layer, torch.cat((layer.down.data, down)), torch.cat((layer.up.data, up), 1)
    parent, _, child = name.rpartition(".")
    network.get_submodule(parent).register_module(child, LowRankLinear(layer, down, up))
