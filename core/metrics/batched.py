"""Networks of pyiqa called for many pictures at once: one reference for a batch is looked at once, and A-FINE takes batches.

The candidates of one picture share their ground truth. pyiqa's full-reference metrics compute its features for every one of them;
its A-FINE takes one picture at a time and computes features of a reference even where it has none. Same layers, same numbers up
to rounding, less work.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OncePerReference(nn.Module):
    """A feature network that computes the features of a batch of equal pictures once, and remembers them for the next batch.

    Args:
        inner: picture [B, C, H, W] -> features, a sequence of tensors with B first.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._picture: Tensor | None = None
        self._features: list[Tensor] = []
        self._make: Callable[[list[Tensor]], Any] = list

    def forward(self, x: Tensor) -> Any:
        """Features as those of `inner`; of a batch of equal pictures, as views of those of one."""
        if self._picture is not None and self._picture.shape == x[:1].shape and _equal_rows(x, self._picture):
            return self._make([part.expand(x.shape[0], *part.shape[1:]) for part in self._features])
        if x.shape[0] == 1 or not _equal_rows(x[1:], x[:1]):
            return self.inner(x)
        found: Any = self.inner(x[:1])
        kind = cast(Any, type(found))  # a named tuple is made from its values, other sequences from a list of them
        self._make = kind._make if hasattr(kind, "_make") else kind
        self._picture, self._features = x[:1].clone(), list(found)
        return self.forward(x)


def _equal_rows(x: Tensor, row: Tensor) -> bool:
    return bool(torch.equal(x, row.expand_as(x)))


class BatchedAFine(nn.Module):
    """A-FINE's fidelity or naturalness term for a batch.

        f = CLIP(x);   naturalness: scale(head(x, f(x)));   fidelity: scale(head(x, y, f(x), f(y)))

    Inputs are normalised in a copy: pyiqa's own forward overwrites them.

    Args:
        network: pyiqa's `InferenceModel` of afine_fr or afine_nr.
        needs_reference: the fidelity term.

    Source:
        pyiqa 0.1.16 archs/afine_arch.py: AFINE.forward, term by term.
    """

    def __init__(self, network: Any, needs_reference: bool) -> None:
        super().__init__()
        self.network, self.needs_reference = network, needs_reference

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [0, 1], sides in multiples of 32 -> [B]."""
        net = self.network.net
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        x = (x - mean) / std
        features = net.clip_model.encode_image(x)[1]
        if not self.needs_reference:
            raw, scale = net.net_qhead(x, features), net.net_scale_nr
        else:
            assert y is not None
            shared = y.shape[0] > 1 and _equal_rows(y[1:], y[:1])
            y = (y[:1] if shared else y).sub(mean).div(std)
            references = net.clip_model.encode_image(y)[1]
            if shared:
                y, references = y.expand_as(x), [part.expand(x.shape[0], *part.shape[1:]) for part in references]
            raw, scale = net.net_dhead(x, y, features, references), net.net_scale_fr
        return torch.stack([scale(value) for value in raw.reshape(-1)])  # its branch on the value takes one at a time


def _share(part: str) -> Callable[[Any], Any]:
    def wrap(network: Any) -> Any:
        setattr(network.net, part, OncePerReference(getattr(network.net, part)))
        return network

    return wrap


BATCHED: dict[str, Callable[[Any], Any]] = {
    "lpips": _share("net"),
    "lpips-vgg": _share("net"),
    "topiq_fr": _share("semantic_model"),
    "afine_fr": lambda network: BatchedAFine(network, needs_reference=True),
    "afine_nr": lambda network: BatchedAFine(network, needs_reference=False),
}
