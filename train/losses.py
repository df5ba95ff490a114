"""The losses of a restoration network as config tables, and the stack that builds their frozen networks and evaluates them."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.checks import check_range, did_you_mean
from ..core.frozen import eager_gradient, lean
from ..core.losses import adversarial
from ..core.losses.artifact import artifact_loss
from ..core.losses.autoencoded import CachedTarget, aesop_loss
from ..core.losses.perceptual import LAYERS_SYNTHETIC, VGG19_FILE, VGG19_LAYERS, VGG19Features, load_vgg19, perceptual_loss
from ..core.losses.pixel import l1_loss, low_pass_l1_loss, mse_loss, psnr_loss
from ..core.records import LossTerms
from .config import empty_table

PIXEL_KINDS = {"l1": l1_loss, "mse": mse_loss, "psnr": psnr_loss}
RANDOM = "random"  # instead of a weight file: an untrained network from a fixed seed, for tests and tiny configs
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Critic = Callable[[Tensor], Tensor]


def default_layers() -> dict[str, float]:
    """Layers of the synthetic task."""
    return dict(LAYERS_SYNTHETIC)


@dataclass(frozen=True)
class PixelLossConfig:
    """Error of every pixel; LDL and ESRGAN give it the weight 0.01."""

    weight: float = 1.0
    kind: Literal["l1", "mse", "psnr"] = "l1"


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
class LossesConfig:
    """One table per loss; an absent one, or one of weight 0, is off and costs nothing."""

    pixel: PixelLossConfig | None = None
    low_pass: LowPassLossConfig | None = None
    aesop: AesopLossConfig | None = None
    artifact: ArtifactLossConfig | None = None
    perceptual: PerceptualLossConfig | None = None
    adversarial: AdversarialLossConfig | None = None

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

    def weights(self) -> dict[str, float]:
        """Name -> weight of the losses that are on."""
        tables = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(table.weight) for name, table in tables.items() if table is not None and table.weight}


class LossStack:
    """Every loss of a config, with its frozen networks on one device.

    Not a module: its networks are no part of what is trained, saved or set to train mode. They are lean twins (`core.frozen`),
    and the gradient of a term that owns one is computed at once, so that the peak is that of the largest term.

    Args:
        config: which losses, with which weights.
        device: where the images are.
        scale: the trained network's; an auto-encoder must have the same.
        folders: model folders in which weight files are looked for.
        channels_last: memory format of the frozen networks.

    Raises:
        MissingModelError, WeightsError: a weight file is missing or damaged.
        ValueError: the auto-encoder has another scale, or no loss is on.
    """

    def __init__(
        self,
        config: LossesConfig,
        device: str | torch.device = "cpu",
        *,
        scale: int | None = None,
        folders: Iterable[str | Path] = (),
        channels_last: bool = False,
    ) -> None:
        self.config, self.device, self.weights = config, torch.device(device), config.weights()
        self.autoencoder: nn.Module | None = None
        self.features: nn.Module | None = None
        self.targets: CachedTarget | None = None
        if not self.weights:
            raise ValueError(f"losses: expected at least one with a weight, got none; add one of {', '.join(names())}")
        searched = tuple(folders)
        if "aesop" in self.weights:
            self.autoencoder = self._frozen(build_autoencoder(self._aesop, scale, searched), channels_last)
            if self._aesop.cached_targets:
                dtype = DTYPES[self._aesop.precision]
                self.targets = CachedTarget(self.autoencoder, self._aesop.cached_targets, dtype)
        if "perceptual" in self.weights:
            self.features = self._frozen(build_vgg19(self._perceptual, searched), channels_last)

    @property
    def needs_ema(self) -> bool:
        """Whether `generator_terms` needs sr_ema; without it, forward passes of the moving average would be wasted."""
        return "artifact" in self.weights

    @property
    def needs_critic(self) -> bool:
        """Whether `generator_terms` needs a discriminator."""
        return "adversarial" in self.weights

    def generator_terms(
        self,
        sr: Tensor,
        gt: Tensor,
        sr_ema: Tensor | None = None,
        critic: Critic | None = None,
        *,
        keys: Sequence[Hashable] | None = None,
    ) -> LossTerms:
        """Every loss of the restored images.

        Args:
            sr: [B, 3, H, W], range [0, 1], not clamped, with gradient.
            gt: the same shape.
            sr_ema: the moving average's result; needed iff `needs_ema`.
            critic: the discriminator, frozen by the caller: images -> logits; needed iff `needs_critic`.
            keys: what identifies each sample's crop (file, position, turn), for cached targets; None hashes pixels.

        Returns:
            Per-sample values under the names of the config's tables, with their weights.

        Raises:
            ValueError: sr_ema or critic is missing, shapes differ, or the images are not RGB.
        """
        values: dict[str, Tensor] = {}
        for name in self.weights:
            values[name] = self._term(name, sr, gt, sr_ema, critic, keys)
        return LossTerms(values, self.weights)

    def critic_terms(self, critic: Critic, sr: Tensor, gt: Tensor) -> LossTerms:
        """The discriminator's loss, `real` and `fake`; one backward pass on the sum equals one on each.

        Args:
            critic: the discriminator: images -> logits.
            sr: restored images; detached here.
            gt: ground truth (plain, not sharpened).

        Returns:
            Two terms of weight 1, per sample.
        """
        real, fake = critic(gt), critic(sr.detach())
        if self._adversarial.kind == "plain":
            parts = adversarial.plain_critic_loss(fake, real)
        else:
            parts = adversarial.relativistic_critic_loss(fake, real, self._mean())
        return LossTerms({"real": parts.real, "fake": parts.fake})

    def _term(
        self,
        name: str,
        sr: Tensor,
        gt: Tensor,
        sr_ema: Tensor | None,
        critic: Critic | None,
        keys: Sequence[Hashable] | None,
    ) -> Tensor:
        match name:
            case "pixel":
                return PIXEL_KINDS[_on(self.config.pixel).kind](sr, gt)
            case "low_pass":
                return low_pass_l1_loss(sr, gt, _on(self.config.low_pass).scale)
            case "aesop":
                return self._aesop_term(sr, gt, keys)
            case "artifact":
                if sr_ema is None:
                    raise ValueError("sr_ema: expected the moving average's result for the artifact loss, got None; compute it")
                options = _on(self.config.artifact)
                return artifact_loss(sr, gt, sr_ema, options.detach_map, options.window_px)
            case "perceptual":
                return self._perceptual_term(sr, gt)
            case _:
                if critic is None:
                    raise ValueError("critic: expected a discriminator for the adversarial loss, got None; pass one")
                return self._adversarial_term(sr, gt, critic)

    def _aesop_term(self, sr: Tensor, gt: Tensor, keys: Sequence[Hashable] | None) -> Tensor:
        options, network = self._aesop, _on(self.autoencoder)
        target = self.targets(gt, keys) if self.targets is not None else None
        loss = partial(
            aesop_loss, gt=gt, autoencoder=network, power=options.power, target=target, dtype=DTYPES[options.precision]
        )
        return eager_gradient(loss, sr)

    def _perceptual_term(self, sr: Tensor, gt: Tensor) -> Tensor:
        options, network = self._perceptual, _on(self.features)
        if options.target == "sharpened":
            from ..core.degradation import sharpen

            gt = sharpen(gt)

        def loss(images: Tensor) -> Tensor:
            with precision(images.device, options.precision):
                return perceptual_loss(images, gt, network, options.used_layers())

        return eager_gradient(loss, sr)

    def _adversarial_term(self, sr: Tensor, gt: Tensor, critic: Critic) -> Tensor:
        if self._adversarial.kind == "plain":
            return adversarial.plain_generator_loss(critic(sr))
        with torch.no_grad():
            real = critic(gt)
        return adversarial.relativistic_generator_loss(critic(sr), real, self._mean())

    def _mean(self) -> adversarial.Mean:
        return adversarial.mean_over_processes if self._adversarial.average == "global" else torch.mean

    def _frozen(self, network: nn.Module, channels_last: bool) -> nn.Module:
        network = network.to(self.device).requires_grad_(False).eval()
        if channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return lean(network)

    @property
    def _aesop(self) -> AesopLossConfig:
        return _on(self.config.aesop)

    @property
    def _perceptual(self) -> PerceptualLossConfig:
        return _on(self.config.perceptual)

    @property
    def _adversarial(self) -> AdversarialLossConfig:
        return _on(self.config.adversarial)


def names() -> tuple[str, ...]:
    """The losses that a config may have."""
    return tuple(f.name for f in fields(LossesConfig))


def precision(device: torch.device, name: str) -> AbstractContextManager[Any]:
    """Autocast in bf16, or none at all, whatever is active around it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16")


def build_autoencoder(config: AesopLossConfig, scale: int | None, folders: Iterable[str | Path] = ()) -> nn.Module:
    """The auto-encoder that a config names.

    Raises:
        MissingModelError, WeightsError: its file is missing or damaged.
        ValueError: its scale is not the trained network's.
    """
    from ..core.networks import autoencoder

    if config.autoencoder == RANDOM:
        with seeded():
            network = autoencoder.build_autoencoder(config.options)
    else:
        network = autoencoder.load_autoencoder(config.autoencoder, folders)
    if scale is not None and network.scale != scale:
        raise ValueError(
            f"aesop.autoencoder: expected one of the network's scale {scale}, got {config.autoencoder} of scale {network.scale}; "
            "its bottleneck must have the size of the network's input: train one for this scale"
        )
    return network


def build_vgg19(config: PerceptualLossConfig, folders: Iterable[str | Path] = ()) -> VGG19Features:
    """The VGG19 features that a config names.

    Raises:
        MissingModelError, WeightsError: its file is missing or damaged.
    """
    if config.vgg != RANDOM:
        return load_vgg19(config.vgg, folders)
    with seeded():
        return VGG19Features()


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Initialise networks from a fixed seed, without touching the caller's generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _on(table: Any) -> Any:
    """A table whose loss is on."""
    assert table is not None
    return table


__all__ = ["LossStack", "LossesConfig"]
