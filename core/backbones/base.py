"""What every restoration model answers to: its facts, and encode / velocity / decode."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from ..checks import check_range
from ..records import Conditioning


@dataclass(frozen=True)
class Sampling:
    """How a multi-step model was published to be sampled.

    Attributes:
        steps: network steps.
        sampler: a key of `schedules.SAMPLERS`.
        guidance: its strength; 1 is none.
        guidance_kind: `embedded`: the model takes it as an input; `classifier_free`: two answers per step; `none`.
        negative_prompt: what the second answer is told.
        shift: of Euler's noise levels, see `flow.sigma_schedule`; 0: by the number of tokens, see `sampling.default_shift`.
    """

    steps: int = 28
    sampler: str = "euler"
    guidance: float = 1.0
    guidance_kind: Literal["none", "embedded", "classifier_free"] = "none"
    negative_prompt: str = ""
    shift: float = 0.0


@dataclass(frozen=True)
class BackboneSpec:
    """A model's facts, so that callers never guess.

    Attributes:
        name: what reports call it.
        kind: `network` maps lq to sr directly; `flow` predicts a velocity on the resized input's grid.
        scale: the only upscaling factor of a network; None when any factor works (flow backbones work at the output size).
        size_multiple: sides of a tile on the model's input grid must be multiples of this many pixels.
        tile_px: largest sensible tile on the model's input grid.
        overlap_px: overlap of neighbouring tiles on that grid, at least the useful receptive field.
        start_sigma: noise level that one-step restoration assumes for the resized input; None for networks.
        latent_channels: channels of what `encode` returns.
        latent_stride: pixels per latent element and axis.
        conditioning_dim: width of the token embeddings it takes; 0 when it takes none.
        bytes_per_pixel: rough activation memory per input-grid pixel at inference, for choosing tiles.
        parameters: parameter count.
        licence: SPDX name or the licence's own name, of the weights.
        token_px: side in pixels of what becomes one token of a transformer; 0 where that means nothing.
        files: what the model is made of on disk and where each comes from, for messages and help pages.
        is_antialiased: the enlarged input it was trained on comes from antialiased bicubic (a = -0.5) and not torch's plain one
            (a = -0.75).
        identity: (gain, offset): gain z + offset is the state that decodes to the encoded input z. Other than (1, 0) where
            one-step weights have learned that map together with the restoration.
        sampling: how it is sampled from noise; None where nothing was published, or for one-step models.
        step_length: how far one-step restoration goes from start_sigma; None goes all the way, start_sigma.
        trained_scale: the factor that a flow model's weights, or the last adapter's, were trained for, as their header says; 4 is
            the papers'.
    """

    name: str
    kind: Literal["network", "flow"]
    scale: int | None
    size_multiple: int
    tile_px: int
    overlap_px: int
    start_sigma: float | None
    latent_channels: int
    latent_stride: int
    conditioning_dim: int
    bytes_per_pixel: int
    parameters: int
    licence: str
    token_px: int = 0
    files: tuple[str, ...] = ()
    is_antialiased: bool = True
    identity: tuple[float, float] = (1.0, 0.0)
    sampling: Sampling | None = None
    step_length: float | None = None
    trained_scale: int = 4

    @property
    def step_ratio(self) -> float:
        """Length of the one step over the noise level it starts at."""
        return 1.0 if self.step_length is None or self.start_sigma is None else self.step_length / self.start_sigma

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of a tile of that size on the model's input grid; 0 for models without tokens."""
        return (height // self.token_px) * (width // self.token_px) if self.token_px else 0

    def tile_bytes(self, tile_px: int, bytes_per_parameter: float = 2.0) -> int:
        """Memory that weights and the activations of one square tile need together, a rough upper value."""
        return int(self.parameters * bytes_per_parameter) + self.bytes_per_pixel * tile_px**2


def trained_at(spec: BackboneSpec, info: Mapping[str, Any]) -> BackboneSpec:
    """The facts of a flow model with the factor that the header of its weights or of its adapter names, if it names one."""
    scale = info.get("scale")
    return replace(spec, trained_scale=scale) if spec.kind == "flow" and isinstance(scale, int) and scale > 0 else spec


class Described(Protocol):
    """What all models have: facts and modules."""

    spec: BackboneSpec

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Named modules."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A model that takes guidance as an input or has a control branch."""

    def adjusted(self, *, guidance: float, control_scale: float) -> Any:
        """The same modules, used with these numbers."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A velocity model: restoration is z = encode(lq_up), then Euler steps along `velocity`, then decode."""

    spec: BackboneSpec

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Named modules, for moving, freezing, training and saving. Device and dtype are asked of their parameters."""
        ...

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> z. Deterministic (posterior mean) unless a generator asks for a sample."""
        ...

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Velocity noise - clean at `z` and noise level sigma [B], given the encoded resized input; shape of z."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Z -> [B, 3, H, W], about [-1, 1], not clamped."""
        ...


@runtime_checkable
class DirectBackbone(Protocol):
    """A model that maps the low-resolution image to the result in one call."""

    spec: BackboneSpec

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Named modules, as in `Backbone`."""
        ...

    def upscale(self, lq: Tensor) -> Tensor:
        """[B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w], not clamped."""
        ...


AnyBackbone = Backbone | DirectBackbone


def parameter_count(*modules: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum({p.data_ptr() if p.device.type != "meta" else id(p): p.numel() for m in modules for p in m.parameters()}.values())


def check_control_scale(value: float, control: nn.Module | None, name: str) -> float:
    """The weight of a control branch, 0 to 10.

    Raises:
        ValueError: out of that range, or other than 1 where there is no branch.
    """
    checked = check_range(value, "control_scale", 0.0, 10.0)
    if control is None and value != 1.0:
        raise ValueError(f"control_scale: expected 1, since {name} has no control branch, got {value}; leave it out")
    return checked
