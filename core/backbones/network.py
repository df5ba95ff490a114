"""`network`: any single-image super-resolution network; ours for what we train, spandrel for the architectures it knows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image
from ..images import pad_to_multiple
from ..networks import build_network
from ..networks.autoencoder import ARCHITECTURE as AUTOENCODER
from ..networks.official import (
    SPANDREL_MISFITS,
    describe_network,
    identify,
    is_autoencoder,
    misfit,
    network_options,
    read_official,
)
from ..weights import WeightsError, load_into
from .base import BackboneSpec, parameter_count


class NetworkBackbone:
    """The `DirectBackbone` protocol over a module that maps [B, 3, h, w] in [0, 1] to [B, 3, scale * h, scale * w].

    Args:
        network: the module.
        scale: its upscaling factor.
        name: for reports.
        size_multiple: what the module needs its input's sides to be multiples of; `upscale` pads and crops.
        minimum: smallest side the module accepts; smaller inputs are padded.
        channels: 3, or 1 for networks that take grey images (then each colour channel is upscaled on its own).
        licence: of the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        scale: int,
        name: str,
        *,
        size_multiple: int = 1,
        minimum: int = 1,
        channels: int = 3,
        licence: str = "unknown",
        architecture: str = "",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.minimum = minimum
        self.channels = channels
        self.architecture = architecture
        self.options = options or {}
        self.spec = BackboneSpec(
            name=name,
            kind="network",
            scale=scale,
            size_multiple=size_multiple,
            tile_px=256,
            overlap_px=16,
            start_sigma=None,
            latent_channels=channels,
            latent_stride=1,
            conditioning_dim=0,
            bytes_per_pixel=4 * 64 * 8,
            parameters=parameter_count(network),
            licence=licence,
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The one network, as `network`."""
        yield "network", self.network

    def upscale(self, lq: Tensor) -> Tensor:
        """Upscale a batch; pads to what the network needs and crops back.

        Args:
            lq: [B, 3, h, w] in [0, 1].

        Returns:
            [B, 3, scale * h, scale * w], not clamped.
        """
        check_image(lq, "lq", channels=(3,))
        batch, _, height, width = lq.shape
        x = lq if self.channels == 3 else lq.reshape(batch * 3, 1, height, width)
        short = (0, max(0, self.minimum - width), 0, max(0, self.minimum - height))
        x = F.pad(x, short, mode="replicate") if any(short) else x
        x, _ = pad_to_multiple(x, self.spec.size_multiple)
        scale = self.spec.scale or 1
        sr = self.network(x)[..., : height * scale, : width * scale]
        return sr if self.channels == 3 else sr.reshape(batch, 3, height * scale, width * scale)


def build(architecture: str, options: dict[str, Any], name: str = "network", licence: str = "Apache-2.0") -> NetworkBackbone:
    """A randomly initialised backbone of one of our own architectures.

    Raises:
        ValueError: unknown architecture, or options it does not take.
    """
    network: Any = build_network(architecture, options)
    return NetworkBackbone(
        network,
        network.scale,
        name,
        size_multiple=network.size_multiple,
        licence=licence,
        architecture=architecture,
        options=options,
    )


def load(path: Path, info: dict[str, Any]) -> NetworkBackbone:
    """Load our own file by its header, RRDBNet and MSRResNet by their names, any other file by spandrel, which detects it.

    Raises:
        WeightsError: damaged or unsafe file, weights that do not fit, an auto-encoder, or an architecture nobody here knows.
    """
    state = read_official(path)
    if is_autoencoder(state) or info.get("architecture") == AUTOENCODER:
        raise WeightsError(
            f"{path}: expected a super-resolution network, got {describe_network(state, info)}; it is for training losses "
            "(load it with AESOP Auto-Encoder), give the file of a super-resolution network here"
        )
    if info:
        backbone = build(
            info["architecture"], info["options"], str(info.get("name", path.stem)), str(info.get("licence", "unknown"))
        )
        load_into(backbone.network, _float32(state), str(path))
    elif (kind := identify(state)) in ("rrdb", "srresnet"):  # spandrel knows one growth of the first and not the second
        backbone = build(kind, network_options(state), path.stem, "unknown")
        load_into(backbone.network, _float32(state), str(path))
    else:
        backbone = _from_spandrel(path, state)
    backbone.network.eval().requires_grad_(False)
    return backbone


def _float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _from_spandrel(path: Path, state: dict[str, Tensor]) -> NetworkBackbone:
    from ..compat import import_spandrel

    spandrel = import_spandrel()
    try:
        found: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(state)
    except (spandrel.UnsupportedModelError, *SPANDREL_MISFITS) as error:
        raise WeightsError(
            f"{path}: expected a super-resolution network, got weights of an architecture that spandrel does not know "
            f"or that do not fit ({misfit(error)}); supported are AlignSR files and spandrel's "
            "architectures"
        ) from error
    if (
        not isinstance(found, spandrel.ImageModelDescriptor)
        or found.input_channels not in (1, 3)
        or found.input_channels != found.output_channels
    ):
        raise WeightsError(
            f"{path}: expected an RGB or grey super-resolution network, got {found.architecture.name}; choose another file"
        )
    sizes = found.size_requirements
    return NetworkBackbone(
        found.model.float(),
        int(found.scale),
        path.stem,
        size_multiple=int(sizes.multiple_of),
        minimum=int(sizes.minimum),
        channels=int(found.input_channels),
        architecture=str(found.architecture.id),
    )
