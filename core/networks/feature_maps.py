"""Frozen networks as sources of feature maps: what the Frequency Distribution Loss compares and what a critic looks at.

One interface: `channels` of the maps, `minimum_px` of an image's sides, and [B, 3, H, W] in [0, 1] -> one map per level.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, describe, did_you_mean
from ..losses.perceptual import VGG19_FILE, VGG19Features, find_vgg19, load_vgg19
from ..weights import WeightsError, find_model, load_state_dict, read_info
from .autoencoder import AutoEncoder, load_autoencoder, unshuffle_by_twos
from .clip_critic import (
    CLIP_NAME,
    MINIMUM_PX,
    ClipCritic,
    FrozenFeatures,
    find_clip,
    load_clip_critic,
    tiny_clip_critic,
)
from .clip_heads import HEAD_CHANNELS
from .compact import LiteSR

RANDOM = "random"
KINDS = ("vgg19", "clip", "network")
_VGG_LAYERS = ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4")


class VGGMaps(nn.Module):
    """relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4 of VGG19: the levels of the published FDL.

    Args:
        vgg: `VGG19Features`.

    Shapes:
        [B, 3, H, W] -> [B, 64, H, W], [B, 128, H/2, W/2], [B, 256, H/4, W/4], [B, 512, H/8, W/8], [B, 512, H/16, W/16].
    """

    channels = (64, 128, 256, 512, 512)
    minimum_px = 80  # the fifth map must hold a 5x5 window

    def __init__(self, vgg: VGG19Features) -> None:
        super().__init__()
        self.vgg = vgg

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        return [F.relu(level) for level in self.vgg(image, _VGG_LAYERS).values()]


class ClipMaps(nn.Module):
    """The first three stages of a CLIP ConvNeXt, as StrSR's critic sees them.

    Args:
        features: `FrozenFeatures`.
        channels: of its maps and, last, of its embedding.

    Shapes:
        [B, 3, H, W] -> [B, C1, H/4, W/4], [B, C2, H/8, W/8], [B, C3, H/16, W/16].
    """

    minimum_px = MINIMUM_PX

    def __init__(self, features: FrozenFeatures, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.channels, self.embedding = features, channels[:-1], channels[-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        return self.features(image)[:-1]


class LiteMaps(nn.Module):
    """A `LiteSR` network's features of an image at three depths, averaged to three resolutions.

    The network runs once at the image's own size; the first map keeps every pixel, the others are means of 2x2 and 4x4 cells.

    Args:
        network: trained for super-resolution, so that its features tell sharp structure from blur.

    Shapes:
        [B, 3, H, W] -> [B, F, H, W], [B, F, H/2, W/2], [B, F, H/4, W/4].
    """

    minimum_px = 20

    def __init__(self, network: LiteSR) -> None:
        super().__init__()
        self.network = network
        self.channels = (network.head.out_channels,) * 3

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        check_image(image, "image", channels=(3,))
        x = self.network.head(image - 0.5)
        body = list(self.network.body)
        maps: list[Tensor] = []
        for number, part in enumerate((body[:1], body[1 : len(body) // 2 + 1], body[len(body) // 2 + 1 :])):
            for layer in part:
                x = layer(x)
            maps.append(F.avg_pool2d(x, 2**number) if number else x)
        return maps


class EncoderMaps(nn.Module):
    """Features of a learned auto-encoder's encoder: at the image's size, and on the bottleneck's grid before and after its body.

    Args:
        autoencoder: with a learned encoder.

    Shapes:
        [B, 3, H, W] -> [B, F/s^2, H, W], [B, F, H/s, W/s], [B, F, H/s, W/s] at scale s.

    Raises:
        ValueError: the encoder is bicubic and has no features.
    """

    def __init__(self, autoencoder: AutoEncoder) -> None:
        super().__init__()
        if autoencoder.encoder_kind != "learned":
            raise ValueError("autoencoder: expected a learned encoder, got a bicubic one; it has no features, choose another")
        first, last = cast(nn.Conv2d, autoencoder.conv_first[1]), cast(nn.Conv2d, autoencoder.conv_last[0])
        self.conv_first, self.body, self.mix = autoencoder.conv_first, autoencoder.body, last
        self.scale = autoencoder.scale
        self.channels = (first.out_channels, last.in_channels, last.out_channels)
        self.minimum_px = 5 * autoencoder.scale

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        check_image(image, "image", channels=(3,))
        if image.shape[-1] % self.scale or image.shape[-2] % self.scale:
            raise ValueError(f"image: expected sides that are multiples of {self.scale}, got {describe(image)}; crop it")
        fine = self.conv_first(image)
        coarse = unshuffle_by_twos(fine, self.scale)
        return [fine, coarse, self.mix(self.body(coarse))]


class WithEmbedding(nn.Module):
    """Feature maps and, in place of an embedding, the mean of the deepest one: what `CriticHeads` take.

    Shapes:
        [B, 3, H, W] -> the maps, and [B, channels of the last one].
    """

    def __init__(self, maps: nn.Module) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        found: list[Tensor] = self.maps(image)
        return [*found, found[-1].mean((2, 3))]


def clip_maps(critic: ClipCritic) -> ClipMaps:
    """What a critic of ours looks through, without its heads."""
    widths: list[int] = [cast(Any, head).conv_in.in_channels for head in critic.heads.maps]
    embedding: int = cast(Any, critic.heads.embedding).linear_in.in_features
    return ClipMaps(cast(FrozenFeatures, critic.features), (*widths, embedding))


def open_features(
    kind: str, name: str | Path = "", folders: Iterable[str | Path] = (), architecture: str = CLIP_NAME
) -> "VGGMaps | ClipMaps | LiteMaps | EncoderMaps":
    """A source of feature maps, frozen and in eval mode.

    Args:
        kind: `vgg19`, `clip`, or `network` for one of ours: a `lite` network or a learned auto-encoder, by its header.
        name: weight file; empty: the published one of that kind; `random`: untrained (small for `clip` and `network`).
        folders: model folders to search.
        architecture: of kind `clip`: open_clip's name of the model.

    Raises:
        MissingModelError: no such file; the message says where to get it.
        WeightsError: another network's file.
        ValueError: unknown kind.
    """
    _check_kind(kind)
    if kind == "vgg19":
        found = VGGMaps(VGG19Features() if name == RANDOM else load_vgg19(name or VGG19_FILE, folders))
    elif kind == "clip":
        found = clip_maps(tiny_clip_critic() if name == RANDOM else load_clip_critic(name, folders, architecture))
    else:
        found = _network_maps(name, folders)
    return found.requires_grad_(False).eval()


def _network_maps(name: str | Path, folders: Iterable[str | Path]) -> LiteMaps | EncoderMaps:
    from ..backbones.network import NetworkBackbone, load

    if name == RANDOM:
        return LiteMaps(LiteSR(features=8, blocks=3))
    path, info = _find_network(name, folders)
    if info["architecture"] == "lite":
        backbone: NetworkBackbone = load(path, info)
        return LiteMaps(cast(LiteSR, backbone.network))
    return EncoderMaps(load_autoencoder(path))


def _find_network(name: str | Path, folders: Iterable[str | Path]) -> tuple[Path, dict[str, Any]]:
    path = find_model(name or "lite-x4", folders)
    info = read_info(path) if path.suffix == ".safetensors" else {}
    if info.get("architecture") not in ("lite", "autoencoder"):
        raise WeightsError(
            f"{path}: expected a lite network or an auto-encoder with a header, got {info.get('architecture', 'none')}; "
            "choose one of ours, or kind vgg19 or clip"
        )
    return path, info


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}")


def find_features(kind: str, name: str | Path = "", folders: Iterable[str | Path] = ()) -> Path | None:
    """The file that `open_features` would read, found and seen to be whole; large ones without reading their values.

    Args:
        kind: see `open_features`.
        name: see `open_features`.
        folders: see `open_features`.

    Returns:
        Its path; None where nothing is read (`random`).

    Raises:
        MissingModelError: no such file; the message says where to get it.
        WeightsError: damaged, or no network of that kind.
        ValueError: unknown kind.
    """
    _check_kind(kind)
    if name == RANDOM:
        return None
    if kind == "network":
        return _find_network(name, folders)[0]
    path = find_vgg19(name or VGG19_FILE, folders) if kind == "vgg19" else find_clip(name, folders)
    if path.suffix == ".safetensors":
        read_info(path)
    elif not zipfile.is_zipfile(path):  # an archive that was cut off has no table of contents; older pickles have none at all
        load_state_dict(path)
    return path


def critic_on(maps: "VGGMaps | ClipMaps | LiteMaps | EncoderMaps", hidden: int = HEAD_CHANNELS) -> ClipCritic:
    """A critic with fresh heads on any source of feature maps; on CLIP's it is StrSR's own, with the image embedding.

    Args:
        maps: from `open_features`.
        hidden: width of the heads.

    Returns:
        Images to logits: a quarter of each map's sides, and one per image.
    """
    if isinstance(maps, ClipMaps):
        return ClipCritic(maps.features, (*maps.channels, maps.embedding), hidden)
    critic = ClipCritic(WithEmbedding(maps), (*maps.channels, maps.channels[-1]), hidden)
    critic.features.requires_grad_(False).eval()
    return critic


def set_checkpointing(critic: ClipCritic) -> None:
    """Recompute CLIP's blocks in the backward pass instead of keeping them; other sources have nothing to recompute."""
    if isinstance(critic.features, FrozenFeatures):
        cast(Any, critic.features.trunk).set_grad_checkpointing(True)


__all__ = [
    "ClipMaps",
    "EncoderMaps",
    "LiteMaps",
    "VGGMaps",
    "WithEmbedding",
    "critic_on",
    "find_features",
    "open_features",
    "set_checkpointing",
]
