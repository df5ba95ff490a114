"""Two ways to make a noisy state and what a network predicts there: the linear flow, and variance-preserving diffusion.

Recipes and samplers work on either through `Process`; the flow's conventions are those of `core/flow.py`.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from . import flow
from .checks import check_positive_int, check_same_shape
from .records import Conditioning

if TYPE_CHECKING:  # the backbones import this module
    from .backbones.base import BackboneSpec

SD_TIMESTEPS = 1000
SD_BETAS = (0.00085, 0.012)


class Process(Protocol):
    """How noisy states are made and what the network answers to them.

    Attributes:
        prediction: `velocity` (noise - clean) or `epsilon` (the noise itself).

    A `time` has one value per sample, [B]: a sigma in [0, 1] for a flow, an integer timestep for variance-preserving diffusion.
    """

    prediction: Literal["velocity", "epsilon"]

    def draw_times(self, batch: int, *, generator: Generator) -> Tensor:
        """Times for training, [batch] on the CPU."""
        ...

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The state at `time` between `clean` and `noise`, [B, ...]."""
        ...

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What a perfect network answers at any state of that pair."""
        ...

    def clean(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """The clean end of the path that a prediction implies."""
        ...

    def noise(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """The noise that a prediction implies."""
        ...


class FlowProcess:
    """The linear path of `core/flow.py`, with the noise level drawn from a logit-normal distribution.

        noisy = (1 - sigma) clean + sigma noise;   prediction = noise - clean;   sigma = sigmoid(mean + std n),  n ~ N(0, 1)

    Args:
        mean: of the logit.
        std: of the logit, > 0.

    Source:
        asasr.md section 1.2 row 5 and dp2o-sr.md section 2.6: logit-normal(0, 1); Esser et al. 2024, arXiv:2403.03206, Eq. (19).

    Example:
        >>> FlowProcess().add_noise(torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([0.25]))
        tensor([[1.5000]])
    """

    prediction: Literal["velocity", "epsilon"] = "velocity"

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean, std: expected finite numbers and std above 0, got {mean} and {std}; the papers use 0 and 1")
        self.mean, self.std = mean, std

    def draw_times(self, batch: int, *, generator: Generator) -> Tensor:
        """Sigmas in (0, 1), [batch] float32."""
        check_positive_int(batch, "batch")
        return torch.sigmoid(self.mean + self.std * torch.randn(batch, generator=generator))

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """See `flow.add_noise`."""
        return flow.add_noise(clean, noise, time)

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Noise - clean."""
        return flow.velocity_target(clean, noise)

    def clean(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Noisy - sigma velocity."""
        return flow.clean_from_velocity(noisy, prediction, time)

    def noise(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Noisy + (1 - sigma) velocity."""
        return flow.noise_from_velocity(noisy, prediction, time)


class VariancePreserving:
    """Variance-preserving diffusion with a network that predicts the noise, as Stable Diffusion has it.

        noisy = a_k clean + s_k noise,  a_k = sqrt(abar_k), s_k = sqrt(1 - abar_k);   prediction = noise;   k uniform in 0..K-1

    Args:
        alphas_cumprod: abar, [K] in (0, 1], not increasing; default: Stable Diffusion's, see `scaled_linear`.

    Raises:
        ValueError: not a sequence of K such numbers.

    Source:
        asasr.md section 1.3 and dp2o-sr.md section 2.5; Ho et al. 2020, arXiv:2006.11239, Eq. (4).

    Example:
        >>> process = VariancePreserving(torch.tensor([0.64]))
        >>> process.add_noise(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0]))
        tensor([[2.]])
    """

    prediction: Literal["velocity", "epsilon"] = "epsilon"

    def __init__(self, alphas_cumprod: Tensor | None = None) -> None:
        values = scaled_linear() if alphas_cumprod is None else alphas_cumprod.detach().double().cpu()
        fits = values.ndim == 1 and len(values) > 0 and bool(((values > 0) & (values <= 1)).all())
        if not fits or not bool((values.diff() <= 0).all()):
            raise ValueError(
                f"alphas_cumprod: expected [K] in (0, 1], not increasing, got {tuple(values.shape)}; take it from a scheduler"
            )
        self.alphas_cumprod = values

    def draw_times(self, batch: int, *, generator: Generator) -> Tensor:
        """Timesteps, [batch] int64."""
        check_positive_int(batch, "batch")
        return torch.randint(len(self.alphas_cumprod), (batch,), generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """a_k clean + s_k noise."""
        check_same_shape(clean, noise, "clean", "noise")
        signal, spread = self.scales(time, clean)
        return (signal * _wide(clean) + spread * _wide(noise)).to(clean.dtype)

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noise; the clean signal does not matter."""
        check_same_shape(clean, noise, "clean", "noise")
        return noise

    def clean(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """(noisy - s_k epsilon) / a_k."""
        check_same_shape(noisy, prediction, "noisy", "prediction")
        signal, spread = self.scales(time, noisy)
        return ((_wide(noisy) - spread * _wide(prediction)) / signal).to(noisy.dtype)

    def noise(self, noisy: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """The prediction."""
        check_same_shape(noisy, prediction, "noisy", "prediction")
        return prediction

    def scales(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a_k, s_k) in the shape that multiplies `like` [B, ...], float32 at least.

        Raises:
            ValueError: not one integer timestep per sample.
        """
        if time.is_floating_point() or time.ndim > 1 or time.numel() not in (1, like.shape[0]):
            raise ValueError(
                f"time: expected one integer timestep per sample [{like.shape[0]}], got {tuple(time.shape)} {time.dtype}; "
                "a sigma belongs to a flow"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        abar = self.alphas_cumprod[time.detach().cpu().reshape(-1)]
        shape = (-1, *[1] * (like.ndim - 1))
        signal, spread = abar.sqrt().to(dtype), (1 - abar).sqrt().to(dtype)
        return signal.to(like.device).reshape(shape), spread.to(like.device).reshape(shape)


def scaled_linear(timesteps: int = SD_TIMESTEPS, first: float = SD_BETAS[0], last: float = SD_BETAS[1]) -> Tensor:
    """Stable Diffusion's abar: betas whose square roots are equally spaced.

    Args:
        timesteps: K.
        first: smallest beta.
        last: largest beta.

    Returns:
        [K] float64 on the CPU, whatever the default device is.

    Source:
        `scaled_linear` of diffusers' schedulers, with the values of SD 1.5, SD 2 and SDXL.

    Example:
        >>> [round(float(value), 4) for value in scaled_linear()[[0, 999]]]
        [0.9991, 0.0047]
    """
    check_positive_int(timesteps, "timesteps")
    betas = torch.linspace(first**0.5, last**0.5, timesteps, dtype=torch.float64, device="cpu").square()
    return torch.cumprod(1 - betas, 0)


@runtime_checkable
class MultiStepBackbone(Protocol):
    """A model that makes a picture from noise in many steps, and that preferences can train."""

    spec: "BackboneSpec"
    process: Process

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Named modules, for moving, freezing, training and saving."""
        ...

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Ground truth [B, 3, H, W] in [-1, 1] -> z [B, C, h, w]. Posterior mean unless a generator asks for a sample."""
        ...

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The enlarged input [B, 3, H, W] in [-1, 1] -> the condition z_lq: its latents, or what a control branch takes."""
        ...

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """What `process.prediction` says, at state z and time [B], on the unpacked latent grid: shape of z."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Z -> [B, 3, H, W], about [-1, 1], not clamped."""
        ...


def as_multi_step(backbone: Any, argument: str = "backbone") -> MultiStepBackbone:
    """The backbone, if it can make pictures from noise.

    Raises:
        TypeError: it restores in one step only.
    """
    if not isinstance(backbone, MultiStepBackbone):
        name = getattr(getattr(backbone, "spec", None), "name", type(backbone).__name__)
        raise TypeError(
            f"{argument}: expected a model that is sampled in many steps (flux1, stable_diffusion, pixel), got {name}; "
            "restore with it in one step"
        )
    return backbone


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
