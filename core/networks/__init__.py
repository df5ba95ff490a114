"""Networks that this project trains. `NETWORKS` lists the super-resolution ones; a weight file's header says which one it is."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..checks import did_you_mean
from .compact import LiteSR
from .rrdb import RRDBNet
from .srresnet import MSRResNet
from .transformers import drct, swinir

# each builds a module [B, 3, h, w] -> [B, 3, scale * h, scale * w] with the attributes `scale` and `size_multiple`
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lite": LiteSR,
    "rrdb": RRDBNet,
    "srresnet": MSRResNet,
    "swinir": swinir,
    "drct": drct,
}

__all__ = ["NETWORKS", "build_network"]


def build_network(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """A randomly initialised super-resolution network.

    Args:
        architecture: a name in `NETWORKS`.
        options: its keyword arguments.

    Raises:
        ValueError: unknown architecture, or options it does not take.
    """
    if architecture not in NETWORKS:
        raise ValueError(
            f"architecture: expected one of ours, got {architecture!r}; {did_you_mean(architecture, list(NETWORKS))}"
        )
    try:
        return NETWORKS[architecture](**options)
    except TypeError as error:
        raise ValueError(f"options: {architecture} does not take them: {error}; compare with its docstring") from error
