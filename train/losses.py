"""Every loss of a config (`loss_tables`): the stack that builds their frozen networks and evaluates them.

A loss joins with a table, an entry in `LossesConfig`, and a case in `LossStack`.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from ..core.frozen import eager_gradient, lean
from ..core.images import to_model_range
from ..core.losses import adversarial, relativistic
from ..core.losses.artifact import artifact_loss
from ..core.losses.autoencoded import CachedTarget, aesop_loss
from ..core.losses.frequency import fdl_loss, grid_loss, make_projections
from ..core.losses.lpips import lpips_loss
from ..core.losses.perceptual import perceptual_loss
from ..core.losses.pixel import l1_loss, low_pass_l1_loss, mse_loss, psnr_loss
from ..core.records import LossTerms
from .loss_networks import build_autoencoder, build_features, build_lpips, build_vgg19
from .loss_tables import (
    AdversarialLossConfig,
    AesopLossConfig,
    FeaturesConfig,
    LossesConfig,
    PerceptualLossConfig,
    RaganLossConfig,
    names,
)

PIXEL_KINDS = {"l1": l1_loss, "mse": mse_loss, "psnr": psnr_loss}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Critic = Callable[[Tensor], Tensor]


class Logits(NamedTuple):
    """What a critic of several levels says, one tensor [B, ...] per level.

    Attributes:
        fake: of restored images.
        real: of ground truth.
    """

    fake: Sequence[Tensor]
    real: Sequence[Tensor]


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
        self.lpips: nn.Module | None = None
        self.maps: nn.Module | None = None
        self.filters: list[Tensor] = []
        self.targets: CachedTarget | None = None
        self.minimum_px = 0  # of the images' sides, for the features of the FDL
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
        if "lpips" in self.weights:
            self.lpips = self._frozen(build_lpips(_on(config.lpips), searched), channels_last)
        if "fdl" in self.weights:
            options = _on(config.fdl)
            maps = build_features(options.features, searched, "losses.fdl.features.weights")
            drawn = make_projections(
                maps.channels, options.projections, options.patch, generator=torch.Generator().manual_seed(options.seed)
            )
            self.filters = [weight.to(self.device) for weight in drawn]
            self.minimum_px = maps.minimum_px
            self.maps = self._frozen(maps, channels_last)

    @property
    def needs_ema(self) -> bool:
        """Whether `generator_terms` needs sr_ema; without it, forward passes of the moving average would be wasted."""
        return "artifact" in self.weights

    @property
    def needs_critic(self) -> bool:
        """Whether `generator_terms` needs a discriminator."""
        return "adversarial" in self.weights

    @property
    def needs_logits(self) -> bool:
        """Whether `generator_terms` needs the logits of a critic of several levels."""
        return "ragan" in self.weights

    def generator_terms(
        self,
        sr: Tensor,
        gt: Tensor,
        sr_ema: Tensor | None = None,
        critic: Critic | None = None,
        *,
        keys: Sequence[Hashable] | None = None,
        logits: Logits | None = None,
    ) -> LossTerms:
        """Every loss of the restored images.

        Args:
            sr: [B, 3, H, W], range [0, 1], not clamped, with gradient.
            gt: the same shape.
            sr_ema: the moving average's result; needed iff `needs_ema`.
            critic: the discriminator, frozen by the caller: images -> logits; needed iff `needs_critic`.
            keys: what identifies each sample's crop (file, position, turn), for cached targets; None hashes pixels.
            logits: of a critic of several levels, frozen by the caller, with gradient to `sr`; needed iff `needs_logits`.

        Returns:
            Per-sample values under the names of the config's tables, with their weights.

        Raises:
            ValueError: sr_ema, critic or logits are missing, shapes differ, or the images are not RGB.
        """
        values: dict[str, Tensor] = {}
        for name in self.weights:
            values[name] = self._ragan_term(logits) if name == "ragan" else self._term(name, sr, gt, sr_ema, critic, keys)
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

    def ragan_critic_terms(self, logits: Logits, r1: Tensor | None = None) -> LossTerms:
        """The loss of a critic of several levels.

        Args:
            logits: with gradient to the critic's parameters.
            r1: the penalty's per-sample values, from `approximate_r1`.

        Returns:
            `ragan` of weight 1 and, if given, `r1` with its own weight.
        """
        options = self._ragan
        if options.reference == "none":
            sides = [adversarial.plain_critic_loss(f, r) for f, r in zip(logits.fake, logits.real, strict=True)]
            value = options.factor * torch.stack([side.real + side.fake for side in sides]).sum(0)
        else:
            value = relativistic.ragan_critic_loss(
                logits.fake, logits.real, reference=options.reference, factor=options.factor, mean=self._span()
            )
        return LossTerms({"ragan": value} | ({} if r1 is None else {"r1": r1}), {"r1": options.r1_weight})

    def r1(self, critic: relativistic.Critic, gt: Tensor, generator: Generator, clean: Sequence[Tensor] | None = None) -> Tensor:
        """The approximated R1 penalty in float32, [B]; see `approximate_r1`."""
        options = self._ragan
        noise = relativistic.r1_noise(gt, sigma=options.r1_sigma, kind=options.r1_noise, generator=generator)
        with precision(gt.device, "fp32"):
            return relativistic.approximate_r1(critic, gt, noise, clean)

    @torch.no_grad()
    def fdl_by_range(self, sr: Tensor, gt: Tensor) -> dict[str, float]:
        """The mean of the FDL on images in [0, 1] and on the same in [-1, 1]: how the published weight was tuned."""
        values = {name: self._fdl(sr, gt, wide) for name, wide in (("fdl_unit_range", False), ("fdl_model_range", True))}
        return {name: float(value.mean()) for name, value in values.items()}

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
                options = _on(self.config.pixel)
                images = (to_model_range(sr), to_model_range(gt)) if options.model_range else (sr, gt)
                return PIXEL_KINDS[options.kind](*images)
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
            case "lpips":
                return eager_gradient(partial(self._lpips, gt=gt), sr)
            case "fdl":
                return eager_gradient(partial(self._fdl, gt=gt, model_range=_on(self.config.fdl).model_range), sr)
            case "grid":
                options = _on(self.config.grid)
                return grid_loss(sr, gt, period=options.period_px, visible=options.visible)
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

    def _lpips(self, sr: Tensor, gt: Tensor) -> Tensor:
        with precision(sr.device, _on(self.config.lpips).precision):
            return lpips_loss(sr, gt, _on(self.lpips))

    def _fdl(self, sr: Tensor, gt: Tensor, model_range: bool) -> Tensor:
        options = _on(self.config.fdl)
        with precision(sr.device, options.precision):
            return fdl_loss(sr, gt, _on(self.maps), self.filters, phase_weight=options.phase_weight, model_range=model_range)

    def _ragan_term(self, logits: Logits | None) -> Tensor:
        if logits is None:
            raise ValueError("logits: expected those of a critic of several levels for the ragan loss, got None; pass them")
        options = self._ragan
        if options.reference == "none":
            return torch.stack([adversarial.plain_generator_loss(level) for level in logits.fake]).sum(0)
        return relativistic.ragan_generator_loss(
            logits.fake, logits.real, reference=options.reference, factor=options.factor, mean=self._span()
        )

    def _span(self) -> adversarial.Mean:
        return adversarial.mean_over_processes if self._ragan.span == "all" else torch.mean

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
    def _ragan(self) -> RaganLossConfig:
        return _on(self.config.ragan)

    @property
    def _adversarial(self) -> AdversarialLossConfig:
        return _on(self.config.adversarial)


@contextmanager
def precision(device: torch.device, name: str) -> Iterator[None]:
    """Autocast in bf16, or none at all, whatever is active around it; in fp32 also without TensorFloat-32.

    PyTorch lets convolutions on a GPU round their inputs to TensorFloat-32's 10 bits unless told otherwise, too few for the
    difference that R1 is made of. The backward pass, which runs later, goes by the process's setting.
    """
    cudnn, matmul = cast(Any, torch.backends.cudnn), cast(Any, torch.backends.cuda.matmul)
    before = cudnn.allow_tf32, matmul.allow_tf32
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
        if name == "fp32":
            cudnn.allow_tf32 = matmul.allow_tf32 = False
        try:
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before


def _on(table: Any) -> Any:
    """A table whose loss is on."""
    assert table is not None
    return table


__all__ = ["FeaturesConfig", "Logits", "LossStack", "LossesConfig", "names"]
