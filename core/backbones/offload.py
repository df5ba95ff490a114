"""Sequential offload: of several large modules only the one at work lies on the accelerator."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..borrowed import Borrowed
from ..diffusion import Process
from ..records import Conditioning
from .base import BackboneSpec
from .latent import LatentBackbone, MultiStepModel


class Residency:
    """Keeps at most one of the modules it is asked for on a device; the others wait at home.

    Modules are frozen: what lies at home stays there while a copy works, and leaving costs nothing (`core.borrowed`). Share one
    instance between a backbone and the vision-language model that conditions it, and the two never lie there together.

    Args:
        device: where the module at work goes.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.resident: nn.Module | None = None
        self._borrowed: Borrowed | None = None

    def use(self, module: nn.Module) -> None:
        """Bring a module to the device, after the one before it has left."""
        if module is self.resident:
            return
        self.leave()
        self._borrowed = Borrowed(module, self.device)
        self.resident = module

    def leave(self) -> None:
        """Send the resident module home, for example before another program needs the device."""
        if self._borrowed is not None:
            self._borrowed.give_back()
        self.resident = self._borrowed = None


class OffloadedBackbone:
    """The `Backbone` protocol over a latent backbone whose modules take turns on a device.

    Every change of turn moves a module's weights, so run all tiles through one stage before the next where memory for their
    latents allows it.

    Args:
        backbone: its modules lie at home.
        residency: who is on the device.
        keep: names of modules that stay on the device all the time, for example `vae`, which is small.
    """

    def __init__(self, backbone: LatentBackbone, residency: Residency, keep: Iterable[str] = ()) -> None:
        self.backbone = backbone
        self.residency = residency
        self.keep = frozenset(keep)
        self.spec = backbone.spec
        self.options = backbone.options
        self.architecture = backbone.architecture
        self.latents = backbone.latents
        self._modules = dict(backbone.modules())
        unknown = self.keep - self._modules.keys()
        if unknown:
            known = ", ".join(self._modules)
            raise ValueError(f"keep: expected names among {known}, got {', '.join(sorted(unknown))}; leave it out")
        for name in self.keep:
            nn.Module.to(self._modules[name], device=residency.device)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`transformer` and `vae`, wherever they lie."""
        yield from self._modules.items()

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's, on the device."""
        return self._on_turn("vae").encode(image, generator=generator)

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """As the backbone's, on the device."""
        return self._on_turn("transformer").velocity(z, sigma, z_lq, conditioning)

    def decode(self, z: Tensor) -> Tensor:
        """As the backbone's, on the device."""
        return self._on_turn("vae").decode(z)

    def _on_turn(self, name: str) -> Any:
        if name not in self.keep:
            self.residency.use(self._modules[name])
        return self.backbone


def vacate(backbone: object) -> None:
    """Send home what an offloaded model has on its device, so that another model may come there; nothing for other models."""
    if isinstance(backbone, (OffloadedBackbone, OffloadedMultiStep)):
        backbone.residency.leave()


class OffloadedMultiStep:
    """The `MultiStepBackbone` protocol over a model of many steps whose parts take turns on a device.

    What predicts, transformer or UNet with its control branch, is one part, the autoencoder the other: two changes per picture,
    however many steps it takes.

    Args:
        backbone: its modules lie at home.
        residency: who is on the device.
    """

    def __init__(self, backbone: MultiStepModel, residency: Residency) -> None:
        self.backbone: MultiStepModel = backbone
        self.residency = residency
        self.spec: BackboneSpec = backbone.spec
        self.process: Process = backbone.process
        parts = dict(backbone.modules())
        self._coder = parts.pop("vae")
        self._predictor = nn.ModuleList(parts.values())

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As the backbone's, wherever they lie."""
        yield from self.backbone.modules()

    def adjusted(self, *, guidance: float | None = None, control_scale: float | None = None) -> "OffloadedMultiStep":
        """The same parts and residency, see the backbone's."""
        made = copy.copy(self)
        made.backbone = self.backbone.adjusted(guidance=guidance, control_scale=control_scale)
        return made

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's, on the device."""
        self.residency.use(self._coder)
        return self.backbone.encode(image, generator=generator)

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's, on the device."""
        self.residency.use(self._coder)
        return self.backbone.encode_lq(image, generator=generator)

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """As the backbone's, on the device."""
        self.residency.use(self._predictor)
        return self.backbone.predict(z, time, z_lq, conditioning)

    def decode(self, z: Tensor) -> Tensor:
        """As the backbone's, on the device."""
        self.residency.use(self._coder)
        return self.backbone.decode(z)
