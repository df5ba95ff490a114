"""Random draws: from a configuration and a generator to a plain record of what shall be done to one image."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch

from .presets import KERNEL_KINDS, BlurConfig, DegradationConfig, FinalConfig, Range, StageConfig

Step = dict[str, Any]
_T = TypeVar("_T")


class Draws:
    """Numbers from one generator, taken in order."""

    def __init__(self, generator: torch.Generator) -> None:
        # Fetched at once, because a call of torch costs more than the draw; the longest chain takes fewer than 64.
        values = cast("list[float]", torch.rand(64, generator=generator, dtype=torch.float64).tolist())  # pyright: ignore[reportUnknownMemberType]
        keys = cast("list[int]", torch.randint(0, 1 << 32, (8,), generator=generator).tolist())  # pyright: ignore[reportUnknownMemberType]
        self._values, self._keys = iter(values), iter(keys)

    def uniform(self, interval: Range) -> float:
        """A number between the ends."""
        return interval[0] + (interval[1] - interval[0]) * next(self._values)

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._values) < probability

    def integer(self, low: int, high: int, step: int = 1) -> int:
        """One of low, low + step, ..., high."""
        return low + step * int(next(self._values) * ((high - low) // step + 1))

    def choice(self, options: Sequence[_T], weights: Sequence[float] | None = None) -> _T:
        """One of the options, equally likely or by weight."""
        value = next(self._values)
        if weights is None:
            return options[int(value * len(options))]
        value *= sum(weights)
        for option, weight in zip(options, weights, strict=True):
            value -= weight
            if value < 0:
                return option
        return options[-1]

    def key(self) -> list[int]:
        """Two 32-bit integers that identify one noise field."""
        return [next(self._keys), next(self._keys)]


def _draw_beta(draws: Draws, interval: Range) -> float:
    lower = draws.happens(0.5)
    return draws.uniform((interval[0], 1.0) if lower else (1.0, interval[1]))


def _draw_kernel(config: BlurConfig, draws: Draws) -> dict[str, Any]:
    size = draws.integer(*config.kernel_size, step=2)
    if draws.happens(config.sinc_probability):
        cutoff = draws.uniform(config.sinc_cutoff_small if size < 13 else config.sinc_cutoff_large)
        return {"kind": "sinc", "size": size, "cutoff": cutoff}
    kind = draws.choice(KERNEL_KINDS, config.kind_probabilities)
    kernel: dict[str, Any] = {"kind": kind, "size": size, "sigma_x": draws.uniform(config.sigma)}
    if kind.endswith("aniso"):
        kernel |= {"sigma_y": draws.uniform(config.sigma), "rotation": draws.uniform(config.rotation)}
    if kind.startswith("generalized"):
        kernel["beta"] = _draw_beta(draws, config.generalized_beta)
    elif kind.startswith("plateau"):
        kernel["beta"] = _draw_beta(draws, config.plateau_beta)
    return kernel


def _draw_factor(config: StageConfig, draws: Draws) -> float:
    direction = draws.choice(("up", "down", "keep"), config.resize_probabilities)
    if direction == "up":
        return draws.uniform((1.0, config.resize_range[1]))
    if direction == "down":
        return draws.uniform((config.resize_range[0], 1.0))
    return 1.0


def _draw_noise(config: StageConfig, draws: Draws) -> Step:
    if draws.happens(config.gaussian_probability):
        step: Step = {"op": "noise", "kind": "gaussian", "std_255": draws.uniform(config.noise_std_255)}
    else:
        step = {"op": "noise", "kind": "poisson", "scale": draws.uniform(config.poisson_scale)}
    return step | {"grey": draws.happens(config.grey_probability), "key": draws.key()}


def _draw_stage(config: StageConfig, factor: float | None, size: list[int], modes: Sequence[str], draws: Draws) -> list[Step]:
    happens = draws.happens(config.blur.probability)
    steps: list[Step] = [
        {"op": "blur", "kernel": _draw_kernel(config.blur, draws) if happens else None},
        {"op": "resize", "mode": draws.choice(modes), "factor": factor, "size": size},
        _draw_noise(config, draws),
    ]
    if config.jpeg_quality is not None:
        steps.append({"op": "jpeg", "quality": draws.integer(*config.jpeg_quality)})
    return steps


def _draw_final(config: FinalConfig, lq_size: tuple[int, int], modes: Sequence[str], draws: Draws) -> list[Step]:
    resize_first = draws.happens(0.5)
    resize: Step = {"op": "resize", "mode": draws.choice(modes), "factor": None, "size": list(lq_size)}
    sinc: Step = {"op": "blur", "kernel": None}
    if draws.happens(config.sinc_probability):
        size = draws.integer(*config.kernel_size, step=2)
        sinc["kernel"] = {"kind": "sinc", "size": size, "cutoff": draws.uniform(config.sinc_cutoff)}
    jpeg: Step = {"op": "jpeg", "quality": draws.integer(*config.jpeg_quality)}
    return [resize, sinc, jpeg] if resize_first else [jpeg, resize, sinc]


def draw_steps(
    config: DegradationConfig, gt_size: tuple[int, int], lq_size: tuple[int, int], scale: float, *, generator: torch.Generator
) -> list[Step]:
    """Draw everything that shall happen to one image.

    Args:
        config: the distributions.
        gt_size: (height, width) of the ground truth.
        lq_size: (height, width) of the result.
        scale: shrinking factor; the second order's sizes are int(side / scale * factor).
        generator: a CPU generator; all randomness of the sample, the keys of its noise fields included, comes from it.

    Returns:
        Steps in order, each a dict of numbers, strings, lists and None (so `json.dumps` takes it):
        {"op": "blur", "kernel": {...} or None (it does not happen)}, {"op": "resize", "mode", "factor", "size"},
        {"op": "noise", "kind", "std_255" or "scale", "grey", "key"}, {"op": "jpeg", "quality"}, {"op": "bicubic", "size"}.
    """
    draws = Draws(generator)
    steps: list[Step] = []
    if config.first is not None:
        factor = _draw_factor(config.first, draws)
        size = [max(1, int(side * factor)) for side in gt_size]
        steps += _draw_stage(config.first, factor, size, config.resize_modes, draws)
    if config.second is not None:
        relative = _draw_factor(config.second, draws)
        size = [max(1, int(side / scale * relative)) for side in gt_size]
        steps += _draw_stage(config.second, None, size, config.resize_modes, draws)
    if config.final is not None:
        steps += _draw_final(config.final, lq_size, config.resize_modes, draws)
    return steps or [{"op": "bicubic", "size": list(lq_size)}]
