"""The frozen networks that losses look through, as a config names them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.losses.lpips import LPIPSFeatures, find_linear, find_vgg16, load_lpips
from ..core.losses.perceptual import VGG19Features, load_vgg19
from .config import setting
from .loss_tables import AesopLossConfig, FeaturesConfig, LpipsLossConfig, PerceptualLossConfig

RANDOM = "random"  # instead of a weight file: an untrained network from a fixed seed, for tests and tiny configs


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
        with setting("losses.aesop.autoencoder"):
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
        with setting("losses.perceptual.vgg"):
            return load_vgg19(config.vgg, folders)
    with seeded():
        return VGG19Features()


def build_lpips(config: LpipsLossConfig, folders: Iterable[str | Path] = ()) -> LPIPSFeatures:
    """The LPIPS features that a config names.

    Raises:
        MissingModelError, WeightsError: a file is missing or damaged.
    """
    if config.vgg != RANDOM:
        with setting("losses.lpips.vgg"):
            vgg = find_vgg16(config.vgg, folders)
        with setting("losses.lpips.linear"):
            linear = find_linear(config.linear, folders)
        return load_lpips(vgg, linear)
    with seeded():
        return LPIPSFeatures()


def build_features(
    config: FeaturesConfig, folders: Iterable[str | Path] = (), key: str = "discriminator.features.weights"
) -> Any:
    """The source of feature maps that a config names, see `core.networks.feature_maps`.

    Args:
        config: kind and file.
        folders: model folders.
        key: of the file in the config, for messages.

    Raises:
        MissingModelError, WeightsError: its file is missing or damaged.
    """
    from ..core.networks.feature_maps import open_features

    with seeded(), setting(key):
        return open_features(config.kind, config.weights, folders, config.architecture)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Initialise networks from a fixed seed, without touching the caller's generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
