"""Samplers of multi-step models: at which times the network is asked, and what a state becomes after its answer."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from .checks import check_positive_int, did_you_mean
from .compat import import_third_party
from .diffusion import Process, VariancePreserving
from .flow import euler_step, sigma_schedule

SAMPLERS: dict[str, str] = {"euler": "velocity", "ddpm": "epsilon", "ddim": "epsilon", "dpm": "epsilon"}  # -> what it reads
AUTO = "auto"
_SPACING: dict[str, Any] = {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "epsilon"}
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
}


class Schedule(Protocol):
    """One run of a sampler over one batch: it may remember earlier answers, so it is made anew for each.

    Attributes:
        times: [num_steps], times of the states that the network sees, first one first.
    """

    times: Tensor

    def advance(self, index: int, z: Tensor, prediction: Tensor, generators: Sequence[Generator]) -> Tensor:
        """The state after the network's answer at `times[index]`; noise is drawn sample by sample from its own generator."""
        ...


class EulerSchedule:
    """Euler steps along a flow from noise to picture.

    Args:
        num_steps: network evaluations.
        shift: see `flow.sigma_schedule`; for FLUX `flow.flux_shift`.
    """

    def __init__(self, num_steps: int, shift: float = 1.0) -> None:
        self.sigmas = sigma_schedule(num_steps, shift)
        self.times = self.sigmas[:-1]

    def advance(self, index: int, z: Tensor, prediction: Tensor, generators: Sequence[Generator]) -> Tensor:
        """One Euler step; nothing is drawn."""
        del generators
        return euler_step(z, prediction, float(self.sigmas[index]), float(self.sigmas[index + 1]))


class DiffusersSchedule:
    """A scheduler of diffusers for epsilon prediction, in Stable Diffusion's own settings: leading steps with an offset of 1.

    `ddpm` is ancestral (fresh noise after every step but the last), `ddim` and `dpm` (DPM-Solver++, second order, multistep) draw
    nothing.

    Args:
        name: `ddpm`, `ddim` or `dpm`.
        process: gives the noise levels.
        num_steps: network evaluations, at most as many as the process has steps.

    Source:
        Ho et al. 2020, arXiv:2006.11239, Eq. (7), (11); Song et al. 2021, arXiv:2010.02502, Eq. (12); Lu et al. 2022,
        arXiv:2211.01095, section 3. Settings as in the scheduler folder of stable-diffusion-2-base, which DP2O-SR's script reads.
    """

    def __init__(self, name: str, process: VariancePreserving, num_steps: int) -> None:
        class_name, options = _CLASSES[name]
        kept = process.alphas_cumprod.double().cpu()
        check_positive_int(num_steps, "steps", high=len(kept) - 1)  # the offset would lead beyond the last one
        betas = 1 - kept / torch.cat((kept.new_ones(1), kept[:-1]))
        schedulers: Any = import_third_party("diffusers.schedulers")
        kind: Any = getattr(schedulers, class_name)
        self.scheduler: Any = kind(num_train_timesteps=len(kept), trained_betas=betas.tolist(), **{**_SPACING, **options})
        self.scheduler.set_timesteps(num_steps)
        self.times: Tensor = self.scheduler.timesteps.to("cpu", torch.int64)
        self.name = name

    def advance(self, index: int, z: Tensor, prediction: Tensor, generators: Sequence[Generator]) -> Tensor:
        """One step of the scheduler, in float32."""
        draws: dict[str, Any] = {"generator": list(generators)} if self.name == "ddpm" else {}
        return self.scheduler.step(prediction, self.scheduler.timesteps[index], z, return_dict=False, **draws)[0]


def resolve_sampler(name: str, process: Process, own: str = "") -> str:
    """The sampler that a name means for a model.

    Args:
        name: a key of SAMPLERS, or `auto`: the model's own, else Euler for flows and ancestral DDPM for the others.
        process: of the model.
        own: the model's own.

    Raises:
        ValueError: unknown, or one for the other kind of prediction.
    """
    if name == AUTO:
        return own or ("euler" if process.prediction == "velocity" else "ddpm")
    if name not in SAMPLERS:
        known = (AUTO, *SAMPLERS)
        raise ValueError(f"sampler: expected one of {', '.join(known)}, got {name!r}; {did_you_mean(name, known)}")
    if SAMPLERS[name] != process.prediction:
        fitting = ", ".join(key for key, kind in SAMPLERS.items() if kind == process.prediction)
        raise ValueError(f"sampler: expected {fitting} for a model that predicts {process.prediction}, got {name!r}; use {AUTO}")
    return name


def make_schedule(name: str, process: Process, num_steps: int, shift: float = 1.0) -> Schedule:
    """A fresh run of a sampler.

    Args:
        name: a key of SAMPLERS that fits the process, see `resolve_sampler`.
        process: of the model.
        num_steps: network evaluations, >= 1.
        shift: for Euler.

    Raises:
        ValueError: see `resolve_sampler`; or more steps than the process has.
    """
    name = resolve_sampler(name, process)
    check_positive_int(num_steps, "steps", high=1000)
    if name == "euler":
        return EulerSchedule(num_steps, shift)
    if not isinstance(process, VariancePreserving):
        raise ValueError(f"process: expected a variance-preserving one for {name}, got {type(process).__name__}; use euler")
    return DiffusersSchedule(name, process, num_steps)
