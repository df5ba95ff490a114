"""Score images by name: one entry for our own metrics and pyiqa's, one metric in memory at a time."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from ..checks import did_you_mean
from .adapter import LearnedMetric
from .autoencoded import ImageAutoEncoder
from .files import missing_files
from .learned import LEARNED
from .own import COMPUTE, NO_AUTOENCODER, OWN, Pictures
from .ranking import reward
from .spec import MetricSpec, MissingWeightsError

METRICS: dict[str, MetricSpec] = {**OWN, **LEARNED}

OnMetric = Callable[[int, int, str], None]


def spec_of(name: str) -> MetricSpec:
    """The facts of a metric by name.

    Raises:
        ValueError: unknown name, with the nearest known one.
    """
    if name not in METRICS:
        known = ", ".join(sorted(METRICS))
        raise ValueError(f"metrics: expected names among {known}, got {name!r}; {did_you_mean(name, list(METRICS))}")
    return METRICS[name]


def available(name: str) -> list[str]:
    """What a metric lacks on this computer; looks at the disk only. AE-PSNR always lacks the auto-encoder that the caller brings.

    Args:
        name: key of METRICS.

    Returns:
        One line per missing file (its name, the folder searched, where to get it) or package; empty when the metric can run.

    Example:
        >>> available("psnr_y")
        []
    """
    spec = spec_of(name)
    return [NO_AUTOENCODER] if spec.needs_autoencoder else missing_files(spec)


def _crop(spec: MetricSpec, crop: int | None, scale: int | None) -> int:
    if spec.crop == "none":
        return 0
    if crop is not None:
        return crop
    if scale is None:
        raise ValueError(
            f"scale: expected the upscale factor (the border that {spec.name} leaves out), got None; pass scale or crop"
        )
    return scale


class ScoreOptions(TypedDict, total=False):
    """What else a metric may be told; every function that scores takes these.

    Attributes:
        lq: low-resolution input [B, C, h, w], for metrics with `needs_input`. Default: none.
        scale: upscale factor; metrics with crop "scale" leave out a border that wide. Default: none; they then need `crop`.
        crop: border in pixels instead of `scale`, for the same metrics; the others see whole images.
        quantize: round images to 8 bit first, the form in which published scores are computed. Default: True.
    """

    lq: Tensor | None
    scale: int | None
    crop: int | None
    quantize: bool


class Scorer:
    """A metric ready to be called many times.

    Args:
        name: key of METRICS, not a set metric.
        device: where learned metrics run; our own run where the images are.
        autoencoder: for AE-PSNR; in eval mode, on the device where it is to run.

    Raises:
        ValueError: unknown name or a set metric.
        MissingWeightsError: a learned metric's files are not on disk, or there is no auto-encoder for AE-PSNR.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", *, autoencoder: ImageAutoEncoder | None = None) -> None:
        self.spec = spec_of(name)
        if self.spec.needs_autoencoder and autoencoder is None:
            raise MissingWeightsError(name, [NO_AUTOENCODER])
        self._autoencoder = autoencoder
        if self.spec.kind == "set":
            raise ValueError(
                f"metric: expected a metric of single images, got {name!r}; use evaluate_pairs or SetDistance for sets"
            )
        self._learned = LearnedMetric.load(self.spec, device) if self.spec.kind == "learned" else None

    def __call__(self, sr: Tensor, gt: Tensor | None = None, **options: Unpack[ScoreOptions]) -> Tensor:
        """Score each image of a batch.

        Args:
            sr: restored images, [B, C, H, W] float in [0, 1], C in (1, 3, 4): grey counts as RGB, alpha is left out. Never
                changed. An overshoot of up to 0.5 counts as clamped; values farther out (0..255, -1..1) are refused.
            gt: reference of the same size, for metrics with `needs_reference`.
            options: see ScoreOptions.

        Returns:
            [B] float64 on the CPU; direction and range in METRICS[name].

        Raises:
            ValueError: missing or misshaped input, or not in [0, 1].
        """
        spec, lq, scale = self.spec, options.get("lq"), options.get("scale")
        quantize = options.get("quantize", True)
        if spec.needs_reference and gt is None:
            raise ValueError(f"gt: expected a reference image for {spec.name}, got None; pass gt or choose a no-reference metric")
        if self._learned is not None:
            return self._learned(sr, gt, quantize=quantize)
        if spec.needs_input and lq is None:
            raise ValueError(f"lq: expected the low-resolution input for {spec.name}, got None; pass lq")
        with torch.no_grad():
            crop = _crop(spec, options.get("crop"), scale)
            return COMPUTE[spec.name](Pictures(sr, gt, lq, scale, crop, quantize, self._autoencoder)).double().cpu()


def score(
    name: str,
    sr: Tensor,
    gt: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    autoencoder: ImageAutoEncoder | None = None,
    **options: Unpack[ScoreOptions],
) -> Tensor:
    """Score each image of a batch with one metric: `Scorer(name, device, autoencoder)(sr, gt, **options)`, which says the rest.

    Raises:
        ValueError: unknown name, missing or misshaped input.
        MissingWeightsError: files of a learned metric are not on disk; nothing is downloaded.

    Example:
        >>> grey = torch.full((2, 3, 24, 24), 0.5)
        >>> score("psnr_y", grey, grey, scale=4).tolist()
        [80.0, 80.0]
    """
    return Scorer(name, device, autoencoder=autoencoder)(sr, gt, **options)


def require_available(names: Sequence[str], *, has_autoencoder: bool = False) -> None:
    """Raise one MissingWeightsError for all metrics that cannot run, before any of them is loaded."""
    lacking = {name: available(name) for name in names if not (has_autoencoder and spec_of(name).needs_autoencoder)}
    lacking = {name: lines for name, lines in lacking.items() if lines}
    if lacking:
        unique = dict.fromkeys(line for lines in lacking.values() for line in lines)
        raise MissingWeightsError(", ".join(lacking), list(unique))


def score_many(
    names: Sequence[str],
    sr: Tensor,
    gt: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    autoencoder: ImageAutoEncoder | None = None,
    on_metric: OnMetric | None = None,
    **options: Unpack[ScoreOptions],
) -> dict[str, Tensor]:
    """Score each image of a batch with several metrics as `score` does with one, one of them in memory at a time.

    Args:
        names: keys of METRICS.
        sr: as in `Scorer.__call__`, like `gt` and `options`.
        gt: reference.
        device: as in `Scorer`, like `autoencoder`.
        autoencoder: for AE-PSNR.
        options: see ScoreOptions.
        on_metric: called before each metric with (number done, number in all, name); an exception it raises ends the work.

    Returns:
        name -> [B] float64, in the order of `names`.

    Raises:
        MissingWeightsError: at least one metric cannot run; raised before the first is computed and names all files of all
            metrics.
    """
    require_available(names, has_autoencoder=autoencoder is not None)
    result: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        if on_metric is not None:
            on_metric(index, len(names), name)
        result[name] = score(name, sr, gt, device=device, autoencoder=autoencoder, **options)
        if METRICS[name].kind == "learned":
            gc.collect()
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()
    return result


def hybrid_reward(
    scores: Tensor, names: Sequence[str], *, weights: Mapping[str, float] | None = None, ranges: Tensor | None = None
) -> Tensor:
    """One reward per candidate from raw scores of the named metrics; formula, arguments and source in `ranking.reward`.

    Args:
        scores: [M, K] raw scores of M candidates for one input.
        names: K keys of METRICS, in the order of the columns.
        weights: weight per metric name instead of equal full-reference and no-reference halves.
        ranges: [K, 2] lowest and highest raw score per metric; None = over these candidates.

    Returns:
        [M] float64, in [0, 1] when `ranges` is None; NaN for a candidate with a score that is not finite.

    Example:
        >>> hybrid_reward(torch.tensor([[0.1, 70.0], [0.3, 60.0]]), ["lpips", "musiq"]).tolist()
        [1.0, 0.0]
    """
    return reward(scores, [spec_of(name) for name in names], weights=weights, ranges=ranges)


REWARD_METRICS: tuple[str, ...] = tuple(name for name, spec in METRICS.items() if spec.in_reward)
