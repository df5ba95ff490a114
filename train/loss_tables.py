"""The losses of a restoration network as config tables: one frozen dataclass per loss, all of them optional."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..core.checks import check_positive_int, check_range, did_you_mean
from ..core.losses.frequency import FDL_PATCH, FDL_PROJECTIONS, GRID_VISIBLE
from ..core.losses.lpips import LPIPS_FILE, VGG16_FILE
from ..core.losses.perceptual import LAYERS_SYNTHETIC, VGG19_FILE, VGG19_LAYERS
from .config import added, empty_table


def default_layers() -> dict[str, float]:
    """Layers of the synthetic task."""
    return dict(LAYERS_SYNTHETIC)


@dataclass(frozen=True)
class PixelLossConfig:
    """Error of every pixel; LDL and ESRGAN give it the weight 0.01."""

    weight: float = 1.0
    kind: Literal["l1", "mse", "psnr"] = "l1"
    model_range: bool = added(
        False
    )  # measured on images in [-1, 1], as StrSR counts its weight of 1: l1 twice, mse 4 times as large


@dataclass(frozen=True)
class LowPassLossConfig:
    """Error after shrinking both images: the low-pass baseline of AESOP's Table 5."""

    weight: float = 0.01
    scale: int = 4  # by how much they are shrunk


@dataclass(frozen=True)
class AesopLossConfig:
    """L_AESOP: error after a frozen auto-encoder."""

    weight: float = 1.0
    autoencoder: str = ""  # bundled name, file name in a model folder, or path; "random": untrained, for tests
    options: dict[str, Any] = field(default_factory=empty_table)  # of the untrained auto-encoder
    power: int = 1  # 1: absolute, 2: squared error
    precision: Literal["fp32", "bf16"] = "fp32"  # inside the auto-encoder; bf16's error is in benchmarks/aesop_step.py
    cached_targets: int = 0  # keep AE(gt) of so many crops (12 bytes per pixel each): useful only where crops repeat


@dataclass(frozen=True)
class ArtifactLossConfig:
    """LDL's artifact loss; needs the moving average of the network."""

    weight: float = 1.0
    detach_map: bool = False  # True holds the map constant; the released training does not
    window_px: int = 7


@dataclass(frozen=True)
class PerceptualLossConfig:
    """VGG19 features before the ReLU."""

    weight: float = 1.0
    vgg: str = VGG19_FILE  # torchvision's file, in a model folder or as a path; "random": untrained, for tests
    layers: dict[str, float] = field(default_factory=default_layers)  # the real-world task sets conv1_2 to 0
    target: Literal["plain", "sharpened"] = "plain"  # sharpened: unsharp mask of the ground truth (real-world task)
    precision: Literal["fp32", "bf16"] = "fp32"  # inside VGG19

    def __post_init__(self) -> None:
        """Layers exist and have usable weights."""
        for name, weight in self.layers.items():
            if name not in VGG19_LAYERS:
                raise ValueError(f"layers.{name}: expected a convolution of VGG19; {did_you_mean(name, list(VGG19_LAYERS))}")
            check_range(weight, f"layers.{name}", 0, 1e6)
        if self.weight and not any(self.layers.values()):
            raise ValueError("layers: expected at least one with a weight, got none; set weight = 0 to turn the loss off")

    def used_layers(self) -> dict[str, float]:
        """Layers whose weight is not 0."""
        return {name: float(weight) for name, weight in self.layers.items() if weight}


@dataclass(frozen=True)
class AdversarialLossConfig:
    """The generator's and the discriminator's game; the weight applies to the generator's side only."""

    weight: float = 0.005
    kind: Literal["relativistic", "plain"] = "relativistic"
    average: Literal["process", "global"] = "process"  # relativistic means over this process's batch (as released) or all of them


@dataclass(frozen=True)
class FeaturesConfig:
    """A frozen network whose feature maps are compared or judged."""

    kind: Literal["vgg19", "clip", "network"] = "vgg19"  # network: one of ours, a `lite` model or an auto-encoder's encoder
    weights: str = ""  # file; empty: the published one (lite-x4 for `network`); "random": untrained, for tests
    architecture: str = "convnext_xxlarge"  # of kind clip: open_clip's name


@dataclass(frozen=True)
class LpipsLossConfig:
    """LPIPS with VGG16, as lpips 0.1.4 and pyiqa measure it."""

    weight: float = 3.0
    vgg: str = VGG16_FILE  # torchvision's file, in a model folder or as a path; "random": untrained, for tests
    linear: str = LPIPS_FILE  # the channel weights; not read with vgg = "random"
    precision: Literal["fp32", "bf16"] = "fp32"  # inside VGG16


@dataclass(frozen=True)
class FdlLossConfig:
    """The Frequency Distribution Loss: distributions of amplitude and phase of a network's features."""

    weight: float = 0.002
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    projections: int = FDL_PROJECTIONS  # random filters per level
    patch: int = FDL_PATCH  # side of a filter in frequency bins, odd
    phase_weight: float = 1.0  # lambda
    model_range: bool = False  # feed images in [-1, 1], as the released training did by mistake
    seed: int = 0  # of the filters, the same in every process and after a resume
    precision: Literal["fp32", "bf16"] = "fp32"  # inside the features; spectra are always float32


@dataclass(frozen=True)
class GridLossConfig:
    """What repeats with a transformer's patch and is not in the ground truth; ours, no part of StrSR."""

    weight: float = 0.01
    period_px: int = 16  # transformer patch times the auto-encoder's stride
    visible: float = GRID_VISIBLE  # RMS of a grid that is just visible


@dataclass(frozen=True)
class RaganLossConfig:
    """StrSR's game over all levels of a critic; the weight applies to the generator's side only."""

    weight: float = 0.1
    # what a logit is compared with: the mean over batch and positions (the paper's expectation), the mean over the batch at each
    # position (its code), the sample's own counterpart (its code at batch 1); none: a plain loss, as in the paper's ablation
    reference: Literal["global", "average", "paired", "none"] = "global"
    # `global`: over the batches of all processes, or of each its own; of one forward pass: accumulation makes it no wider
    span: Literal["all", "process"] = "all"
    factor: float = 0.5  # 1/2 in the released code, 1 in the paper's formula
    r1_weight: float = 10.0  # approximated R1, on the critic's side; 0 turns it off
    r1_sigma: float = 0.005  # of its noise, on images in [-1, 1]
    r1_noise: Literal["gaussian", "uniform"] = "gaussian"  # as in the paper, or in [0, sigma) as in its code


@dataclass(frozen=True)
class LossesConfig:
    """One table per loss; an absent one, or one of weight 0, is off and costs nothing."""

    pixel: PixelLossConfig | None = None
    low_pass: LowPassLossConfig | None = None
    aesop: AesopLossConfig | None = None
    artifact: ArtifactLossConfig | None = None
    perceptual: PerceptualLossConfig | None = None
    adversarial: AdversarialLossConfig | None = None
    lpips: LpipsLossConfig | None = added(None)  # noqa: RUF009
    fdl: FdlLossConfig | None = added(None)  # noqa: RUF009
    grid: GridLossConfig | None = added(None)  # noqa: RUF009
    ragan: RaganLossConfig | None = added(None)  # noqa: RUF009

    def __post_init__(self) -> None:
        """Weights are finite and not negative; every loss that is on has what it needs."""
        for name in (f.name for f in fields(self)):
            table = getattr(self, name)
            if table is not None and not 0 <= table.weight < float("inf"):
                raise ValueError(f"{name}.weight: expected a finite number of at least 0, got {table.weight}; 0 turns it off")
        if self.aesop is not None and self.aesop.weight and not self.aesop.autoencoder:
            raise ValueError(
                "aesop.autoencoder: expected a bundled name, a file name or a path, got nothing; train one with the recipe "
                "autoencoder"
            )
        if self.aesop is not None and self.aesop.power not in (1, 2):
            raise ValueError(f"aesop.power: expected 1 or 2, got {self.aesop.power}; the paper uses 1")
        if self.aesop is not None and self.aesop.cached_targets < 0:
            raise ValueError(f"aesop.cached_targets: expected at least 0, got {self.aesop.cached_targets}; 0 keeps none")
        if self.fdl is not None:
            check_positive_int(self.fdl.projections, "fdl.projections")
            check_range(self.fdl.phase_weight, "fdl.phase_weight", 0, 1e6)
            if self.fdl.patch < 1 or self.fdl.patch % 2 == 0:
                raise ValueError(f"fdl.patch: expected an odd number, got {self.fdl.patch}; the paper uses 5")
        if self.grid is not None:
            check_positive_int(self.grid.period_px, "grid.period_px", low=2)
            check_range(self.grid.visible, "grid.visible", 1e-6, 1.0)
        if self.ragan is not None:
            check_range(self.ragan.factor, "ragan.factor", 0, 1e6)
            check_range(self.ragan.r1_weight, "ragan.r1_weight", 0, 1e6)
            check_range(self.ragan.r1_sigma, "ragan.r1_sigma", 0, 1)

    def weights(self) -> dict[str, float]:
        """Name -> weight of the losses that are on."""
        tables = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(table.weight) for name, table in tables.items() if table is not None and table.weight}


def names() -> tuple[str, ...]:
    """The losses that a config may have."""
    return tuple(f.name for f in fields(LossesConfig))
