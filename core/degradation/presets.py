"""The degradation settings of the papers, one frozen dataclass each; every number they print is a field here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import did_you_mean

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
RESIZE_MODES = ("area", "bilinear", "bicubic")

Range = tuple[float, float]


def _check_shares(values: Sequence[float], name: str) -> None:
    if min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"{name}: expected probabilities that sum to 1, got {tuple(values)}; scale them")


def _check_probability(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value!r}; choose one in that range")


def _check_range(interval: Range, name: str, low: float, high: float = math.inf) -> None:
    if not low <= interval[0] <= interval[1] <= high:
        raise ValueError(f"{name}: expected {low:g} <= lower end <= upper end <= {high:g}, got {interval}; correct the ends")


def _check_kernel_size(interval: tuple[int, int]) -> None:
    if not 1 <= interval[0] <= interval[1] or interval[0] % 2 == 0 or interval[1] % 2 == 0:
        raise ValueError(f"kernel_size: expected odd sides from 1 on in order, got {interval}; take the next odd numbers")


@dataclass(frozen=True)
class BlurConfig:
    """How one blur kernel is drawn."""

    probability: float = 1.0
    """Chance that the blur happens at all."""
    kernel_size: tuple[int, int] = (7, 21)
    """Smallest and largest kernel side in px; every odd side between them is equally likely."""
    sinc_probability: float = 0.1
    """Chance of a sinc (circular low-pass) kernel instead of a smooth one."""
    sinc_cutoff_small: Range = (math.pi / 3, math.pi)
    """Sinc cut-off in radians per px for sides below 13."""
    sinc_cutoff_large: Range = (math.pi / 5, math.pi)
    """The same for sides of 13 and more."""
    kind_probabilities: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Chances of KERNEL_KINDS, in that order."""
    sigma: Range = (0.2, 3.0)
    """Standard deviation along each axis in px; the axes are drawn independently."""
    rotation: Range = (-math.pi, math.pi)
    """Angle of anisotropic kernels in radians."""
    generalized_beta: Range = (0.5, 4.0)
    """Shape exponent of generalised Gaussians: half of the draws below 1, half above."""
    plateau_beta: Range = (1.0, 2.0)
    """Shape exponent of plateau kernels: half of the draws between the lower end and 1, half between 1 and the upper end."""

    def __post_init__(self) -> None:
        _check_probability(self.probability, "probability")
        _check_probability(self.sinc_probability, "sinc_probability")
        _check_shares(self.kind_probabilities, "kind_probabilities")
        _check_kernel_size(self.kernel_size)
        _check_range(self.sigma, "sigma", 1e-3)
        _check_range(self.sinc_cutoff_small, "sinc_cutoff_small", 1e-3, math.pi)
        _check_range(self.sinc_cutoff_large, "sinc_cutoff_large", 1e-3, math.pi)
        _check_range(self.generalized_beta, "generalized_beta", 1e-3)
        _check_range(self.plateau_beta, "plateau_beta", 1e-3)


@dataclass(frozen=True)
class StageConfig:
    """One order of the chain: blur, resize, noise and, in the first order, JPEG."""

    blur: BlurConfig
    resize_probabilities: tuple[float, float, float]
    """Chances of enlarging, shrinking and keeping the size."""
    resize_range: Range
    """Smallest and largest factor; of the input in the first order, of the output size in the second."""
    noise_std_255: Range
    """Gaussian noise, standard deviation in grey levels."""
    poisson_scale: Range
    """Poisson noise, factor on the deviation from the mean."""
    gaussian_probability: float = 0.5
    """Chance of Gaussian noise; otherwise Poisson."""
    grey_probability: float = 0.4
    """Chance that the noise is the same for the three colours."""
    jpeg_quality: tuple[int, int] | None = None
    """JPEG quality, both ends included; None where the order has no JPEG of its own."""

    def __post_init__(self) -> None:
        _check_shares(self.resize_probabilities, "resize_probabilities")
        _check_range(self.resize_range, "resize_range", 1e-3)
        _check_range(self.noise_std_255, "noise_std_255", 0)
        _check_range(self.poisson_scale, "poisson_scale", 0)
        _check_probability(self.gaussian_probability, "gaussian_probability")
        _check_probability(self.grey_probability, "grey_probability")
        if self.jpeg_quality is not None:
            _check_range(self.jpeg_quality, "jpeg_quality", 1, 100)


@dataclass(frozen=True)
class FinalConfig:
    """The last step: resize to the output size with the final sinc filter, and JPEG, in either order with equal chance."""

    jpeg_quality: tuple[int, int]
    """JPEG quality, both ends included."""
    sinc_probability: float = 0.8
    """Chance of the final sinc filter."""
    kernel_size: tuple[int, int] = (7, 21)
    """Smallest and largest side of the final sinc kernel in px (odd)."""
    sinc_cutoff: Range = (math.pi / 3, math.pi)
    """Its cut-off in radians per px."""

    def __post_init__(self) -> None:
        _check_range(self.jpeg_quality, "jpeg_quality", 1, 100)
        _check_probability(self.sinc_probability, "sinc_probability")
        _check_kernel_size(self.kernel_size)
        _check_range(self.sinc_cutoff, "sinc_cutoff", 1e-3, math.pi)


@dataclass(frozen=True)
class DegradationConfig:
    """A whole degradation: up to two orders, the last step, and what is done to the target.

    `first`, `second` and `final` may be None; without all three the input is shrunk with MATLAB's bicubic.
    """

    name: str
    first: StageConfig | None = None
    second: StageConfig | None = None
    final: FinalConfig | None = None
    resize_modes: tuple[str, ...] = RESIZE_MODES
    """Interpolations, equally likely at every resize, none of them antialiased (area averages over whole pixels)."""
    sharpen_input: bool = False
    """Whether the chain starts from the sharpened (USM) ground truth."""
    sharpen_target: bool = False
    """Whether the sharpened ground truth is also what a model should learn to output."""
    round_lq: bool = True
    """Whether the result is rounded to multiples of 1/255."""
    resize_back: bool = False
    """Whether the result is also enlarged to the ground truth's size (bicubic, 8 bit), as latent diffusion models take it."""

    def __post_init__(self) -> None:
        if not self.resize_modes or not set(self.resize_modes) <= set(RESIZE_MODES):
            raise ValueError(
                f"resize_modes: expected some of {', '.join(RESIZE_MODES)}, got {self.resize_modes}; drop the others"
            )


def _second_order(
    name: str,
    *,
    first_resize: Range = (0.15, 1.5),
    second_noise: Range = (1, 25),
    first_poisson: Range = (0.05, 3.0),
    second_poisson: Range = (0.05, 2.5),
    quality: tuple[int, int] = (30, 95),
    second_kernel: tuple[int, int] = (7, 21),
    sharpen_target: bool = True,
    round_lq: bool = True,
    resize_back: bool = False,
) -> DegradationConfig:
    first = StageConfig(
        blur=BlurConfig(),
        resize_probabilities=(0.2, 0.7, 0.1),
        resize_range=first_resize,
        noise_std_255=(1, 30),
        poisson_scale=first_poisson,
        jpeg_quality=quality,
    )
    second = StageConfig(
        blur=BlurConfig(probability=0.8, sigma=(0.2, 1.5), kernel_size=second_kernel),
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        noise_std_255=second_noise,
        poisson_scale=second_poisson,
    )
    final = FinalConfig(jpeg_quality=quality, kernel_size=second_kernel)
    return DegradationConfig(
        name, first, second, final, sharpen_input=True, sharpen_target=sharpen_target, round_lq=round_lq, resize_back=resize_back
    )


def _first_order(name: str) -> DegradationConfig:
    first = StageConfig(
        blur=BlurConfig(),
        resize_probabilities=(0.2, 0.7, 0.1),
        resize_range=(0.15, 1.5),
        noise_std_255=(1, 30),
        poisson_scale=(0.05, 3.0),
        jpeg_quality=(30, 95),
    )
    return DegradationConfig(name, first, None, FinalConfig(jpeg_quality=(30, 95)))


def _mild(name: str) -> DegradationConfig:
    first = StageConfig(
        blur=BlurConfig(probability=0.7, kernel_size=(7, 15), sinc_probability=0.0, sigma=(0.2, 1.5)),
        resize_probabilities=(0.1, 0.4, 0.5),
        resize_range=(0.5, 1.2),
        noise_std_255=(0, 8),
        poisson_scale=(0.05, 0.6),
    )
    final = FinalConfig(jpeg_quality=(70, 100), sinc_probability=0.3, kernel_size=(7, 11), sinc_cutoff=(2 * math.pi / 3, math.pi))
    return DegradationConfig(name, first, None, final)


PRESETS: dict[str, DegradationConfig] = {
    # Wang et al. 2021, arXiv:2107.10833; numbers: AESOP spec 4.2, last column.
    "realesrgan": _second_order("realesrgan"),
    # StrSR spec 2.2: Real-ESRGAN's numbers, result not rounded, enlarged back to the target's size.
    "strsr": _second_order("strsr", round_lq=False, resize_back=True),
    # AESOP spec 4.2; its own loss compares with the plain ground truth (4.1), so the target stays plain.
    "aesop_realworld": _second_order(
        "aesop_realworld",
        first_resize=(0.20, 1.5),
        second_noise=(1, 20),
        first_poisson=(0.05, 2.0),
        second_poisson=(0.05, 2.0),
        quality=(50, 95),
        sharpen_target=False,
    ),
    # ASASR spec 4.2 = SeeSR: kernels of the second order and of the final sinc reach 11 px only.
    "asasr": _second_order("asasr", second_kernel=(7, 11)),
    # DP2O-SR spec 5.22 = ResShift's first order, no sharpening.
    "dp2o": _first_order("dp2o"),
    "bicubic": DegradationConfig("bicubic"),
    # Ours, for small models: one order of moderate blur, noise and JPEG, from which a few million parameters can still restore.
    "mild": _mild("mild"),
}


def find_config(config: "DegradationConfig | str") -> DegradationConfig:
    """Return the preset of that name, or a configuration as it is.

    Raises:
        ValueError: no preset has this name; the message suggests one.
        TypeError: neither a name nor a DegradationConfig.
    """
    if isinstance(config, DegradationConfig):
        return config
    if not isinstance(config, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers outside the type checker
        raise TypeError(f"preset: expected a preset's name or a DegradationConfig, got {type(config).__name__}; see PRESETS")
    if config not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {config!r}; {did_you_mean(config, list(PRESETS))}")
    return PRESETS[config]
