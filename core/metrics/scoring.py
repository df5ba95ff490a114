"""Score images by name: one entry for our own metrics and pyiqa's, one metric in memory at a time."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_finite, check_image, did_you_mean
from ..images import quantize_8bit, to_float64, to_rgb
from .adapter import LearnedMetric
from .distortion import Channel, lr_psnr, psnr, ssim
from .files import missing_files
from .learned import LEARNED
from .ranking import reward
from .spec import INF, MetricSpec, MissingWeightsError

METRICS: dict[str, MetricSpec] = {
    "psnr_y": MetricSpec(
        "psnr_y", "PSNR (Y)", "distortion", True, (0.0, 80.0), "scale", "y", needs_reference=True, note="dB; 80 for equal images"
    ),
    "psnr_rgb": MetricSpec(
        "psnr_rgb", "PSNR (RGB)", "distortion", True, (0.0, 80.0), "scale", "rgb", needs_reference=True, note="dB"
    ),
    "ssim_y": MetricSpec(
        "ssim_y", "SSIM (Y)", "distortion", True, (-1.0, 1.0), "scale", "y", needs_reference=True, min_side_px=11
    ),
    "ssim_rgb": MetricSpec(
        "ssim_rgb", "SSIM (RGB)", "distortion", True, (-1.0, 1.0), "scale", "rgb", needs_reference=True, min_side_px=11
    ),
    "lr_psnr": MetricSpec(
        "lr_psnr",
        "LR-PSNR",
        "distortion",
        True,
        (0.0, 80.0),
        "none",
        "y",
        needs_input=True,
        note="dB, after downscaling; crops one input pixel",
    ),
    "lsd": MetricSpec(
        "lsd",
        "LSD",
        "spectral",
        False,
        (0.0, INF),
        "none",
        "y",
        needs_reference=True,
        min_side_px=4,
        note="dB between radial power spectra",
    ),
    **LEARNED,
}

OnMetric = Callable[[int, int, str], None]


def spec_of(name: str) -> MetricSpec:
    """The facts of a metric by name.

    Raises:
        ValueError: unknown name, with the nearest known one.
    """
    if name not in METRICS:
        raise ValueError(f"metric: expected a known name, got {name!r}; {did_you_mean(name, list(METRICS))}")
    return METRICS[name]


def available(name: str) -> list[str]:
    """What a metric lacks on this computer; looks at the disk only.

    Args:
        name: key of METRICS.

    Returns:
        One line per missing file (its name, the folder searched, where to get it) or package; empty when the metric can run.

    Example:
        >>> available("psnr_y")
        []
    """
    return missing_files(spec_of(name))


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


@dataclass(frozen=True)
class _Images:
    """What one of our own metrics may look at; whoever calls has checked that the needed ones are there."""

    sr: Tensor
    gt: Tensor | None
    lq: Tensor | None
    scale: int | None
    crop: int
    quantize: bool


def _pairwise(metric: Callable[..., Tensor], channel: Channel) -> Callable[[_Images], Tensor]:
    return lambda x: metric(x.sr, x.gt, crop=x.crop, channel=channel, quantize=x.quantize)


def _lr_psnr(x: _Images) -> Tensor:
    assert x.lq is not None
    return lr_psnr(x.sr, x.lq, scale=x.scale or max(1, x.sr.shape[-2] // x.lq.shape[-2]), quantize=x.quantize)


def _lsd(x: _Images) -> Tensor:
    from ..spectral import log_spectral_distance

    assert x.gt is not None
    return log_spectral_distance(_rgb(x.sr, "sr", x.quantize), _rgb(x.gt, "gt", x.quantize))


def _rgb(image: Tensor, name: str, quantize: bool) -> Tensor:
    rgb = to_float64(to_rgb(check_finite(check_image(image, name), name)))
    return quantize_8bit(rgb) if quantize else rgb


_OWN: dict[str, Callable[[_Images], Tensor]] = {
    "psnr_y": _pairwise(psnr, "y"),
    "psnr_rgb": _pairwise(psnr, "rgb"),
    "ssim_y": _pairwise(ssim, "y"),
    "ssim_rgb": _pairwise(ssim, "rgb"),
    "lr_psnr": _lr_psnr,
    "lsd": _lsd,
}


class Scorer:
    """A metric ready to be called many times.

    Args:
        name: key of METRICS, not a set metric.
        device: where learned metrics run; our own run where the images are.

    Raises:
        ValueError: unknown name or a set metric.
        MissingWeightsError: a learned metric's files are not on disk.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.spec = spec_of(name)
        if self.spec.kind == "set":
            raise ValueError(
                f"metric: expected a metric of single images, got {name!r}; use evaluate_pairs or SetDistance for sets"
            )
        self._learned = LearnedMetric.load(self.spec, device) if self.spec.kind == "learned" else None

    def __call__(
        self,
        sr: Tensor,
        gt: Tensor | None = None,
        *,
        lq: Tensor | None = None,
        scale: int | None = None,
        crop: int | None = None,
        quantize: bool = True,
    ) -> Tensor:
        """Score a batch; arguments as in `score`."""
        spec = self.spec
        if spec.needs_reference and gt is None:
            raise ValueError(f"gt: expected a reference image for {spec.name}, got None; pass gt or choose a no-reference metric")
        if self._learned is not None:
            return self._learned(sr, gt, quantize=quantize)
        if spec.needs_input and lq is None:
            raise ValueError(f"lq: expected the low-resolution input for {spec.name}, got None; pass lq")
        with torch.no_grad():
            return _OWN[spec.name](_Images(sr, gt, lq, scale, _crop(spec, crop, scale), quantize)).double().cpu()


def score(
    name: str,
    sr: Tensor,
    gt: Tensor | None = None,
    *,
    lq: Tensor | None = None,
    scale: int | None = None,
    crop: int | None = None,
    quantize: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Score each image of a batch with one metric.

    Args:
        name: key of METRICS.
        sr: restored images, [B, C, H, W] float in [0, 1], C in (1, 3, 4): grey counts as RGB, alpha is left out. Never changed.
        gt: reference of the same size, for metrics with `needs_reference`.
        lq: low-resolution input, for metrics with `needs_input`.
        scale: upscale factor; metrics with crop "scale" leave out a border that wide.
        crop: border in pixels instead of `scale`, for the same metrics; the others see whole images.
        quantize: round images to 8 bit first, the form in which published scores are computed.
        device: where learned metrics run.

    Returns:
        [B] float64 on the CPU; direction and range in METRICS[name].

    Raises:
        ValueError: unknown name, missing or misshaped input.
        MissingWeightsError: files of a learned metric are not on disk; nothing is downloaded.

    Example:
        >>> grey = torch.full((2, 3, 24, 24), 0.5)
        >>> score("psnr_y", grey, grey, scale=4).tolist()
        [80.0, 80.0]
    """
    return Scorer(name, device)(sr, gt, lq=lq, scale=scale, crop=crop, quantize=quantize)


def require_available(names: Sequence[str]) -> None:
    """Raise one MissingWeightsError for all metrics that cannot run, before any of them is loaded."""
    lacking = {name: available(name) for name in names}
    lacking = {name: lines for name, lines in lacking.items() if lines}
    if lacking:
        unique = dict.fromkeys(line for lines in lacking.values() for line in lines)
        raise MissingWeightsError(", ".join(lacking), list(unique))


def score_many(
    names: Sequence[str],
    sr: Tensor,
    gt: Tensor | None = None,
    *,
    lq: Tensor | None = None,
    scale: int | None = None,
    crop: int | None = None,
    quantize: bool = True,
    device: torch.device | str = "cpu",
    on_metric: OnMetric | None = None,
) -> dict[str, Tensor]:
    """Score each image of a batch with several metrics, one of them in memory at a time.

    Args:
        names: keys of METRICS.
        sr: restored images, [B, C, H, W]; the rest as in `score`.
        gt: reference.
        lq: low-resolution input.
        scale: upscale factor.
        crop: border in pixels instead of `scale`.
        quantize: round to 8 bit first.
        device: where learned metrics run.
        on_metric: called before each metric with (number done, number in all, name); an exception it raises ends the work.

    Returns:
        name -> [B] float64, in the order of `names`.

    Raises:
        MissingWeightsError: at least one metric cannot run; raised before the first is computed and names all files of all
            metrics.
    """
    require_available(names)
    result: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        if on_metric is not None:
            on_metric(index, len(names), name)
        result[name] = score(name, sr, gt, lq=lq, scale=scale, crop=crop, quantize=quantize, device=device)
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
