"""Perceptual loss on VGG19 features taken before the ReLU."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..checks import check_image, did_you_mean
from ..weights import find_model, load_into, load_state_dict
from .autoencoded import check_frozen
from .pixel import l1_loss
from .precision import at_least_float32, check_pair

VGG19_FILE = "vgg19-dcbb9e9d.pth"
VGG19_SOURCE = f"https://download.pytorch.org/models/{VGG19_FILE}"
VGG19_WIDTHS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _indices() -> dict[str, int]:
    """conv1_1 -> 0, conv1_2 -> 2, conv2_1 -> 5, ...: a convolution and a ReLU each, a pooling after each stage."""
    found: dict[str, int] = {}
    index = 0
    for stage, widths in enumerate(VGG19_WIDTHS, 1):
        for number in range(1, len(widths) + 1):
            found[f"conv{stage}_{number}"] = index
            index += 2
        index += 1
    return found


VGG19_LAYERS: Mapping[str, int] = MappingProxyType(_indices())
LAYERS_SYNTHETIC: Mapping[str, float] = MappingProxyType(
    {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
)
LAYERS_REAL: Mapping[str, float] = MappingProxyType({"conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0})


class VGG19Features(nn.Module):
    """The convolutions of VGG19 up to conv5_4, randomly initialised, with torchvision's parameter names (`features.0.weight`).

    Shapes:
        [B, 3, H, W] in [0, 1] -> conv1_x [B, 64, H, W], conv2_x [B, 128, H/2, W/2], ... conv5_x [B, 512, H/16, W/16].

    Source:
        Simonyan & Zisserman 2015, arXiv:1409.1556, configuration E; inputs normalised as torchvision's ImageNet models expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in VGG19_WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]  # not in place: it would overwrite a tapped map
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[: VGG19_LAYERS["conv5_4"] + 1])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, layers: Iterable[str] = tuple(LAYERS_SYNTHETIC)) -> dict[str, Tensor]:
        """Outputs of the named convolutions, before their ReLU.

        Args:
            image: [B, 3, H, W], range [0, 1]; H, W at least 16 for conv5_x.
            layers: names from VGG19_LAYERS; nothing is computed beyond the deepest.

        Raises:
            ValueError: unknown layer, or an image too small for a layer.
        """
        check_image(image, "image", channels=(3,))
        wanted = {_index(name): name for name in layers}
        shortest = 2 ** max(((int(name[4]) - 1) for name in wanted.values()), default=0)
        if min(image.shape[-2:]) < shortest:
            raise ValueError(f"image: expected sides of at least {shortest} px, got {tuple(image.shape)}; use larger patches")
        found: dict[str, Tensor] = {}
        x = (image - self.mean) / self.std
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in wanted:
                found[wanted[index]] = x
                if len(found) == len(wanted):
                    break
        return found


def _index(name: str) -> int:
    if name not in VGG19_LAYERS:
        raise ValueError(f"layers: expected a convolution of VGG19, got {name!r}; {did_you_mean(name, list(VGG19_LAYERS))}")
    return VGG19_LAYERS[name]


def find_vgg19(name: str | Path = VGG19_FILE, folders: Iterable[str | Path] = ()) -> Path:
    """Where torchvision's weights of VGG19 lie.

    Raises:
        MissingModelError: not there; the message says where to get it.
    """
    return find_model(name, folders, what="the weights of VGG19 on ImageNet", hint=f"get them from {VGG19_SOURCE}")


def load_vgg19(name: str | Path = VGG19_FILE, folders: Iterable[str | Path] = ()) -> VGG19Features:
    """VGG19 features with torchvision's ImageNet weights, frozen and in eval mode.

    Args:
        name: weight file (path, or name in one of `folders`); the classifier's entries in it are not read.
        folders: model folders to search.

    Raises:
        MissingModelError: not there; the message says where to get it. Nothing is ever downloaded.
        WeightsError: another network's file.
    """
    path = find_vgg19(name, folders)
    network = VGG19Features()
    state = {key: value for key, value in load_state_dict(path).items() if not key.startswith("classifier.")}
    load_into(network, state, str(path))
    return network.requires_grad_(False).eval()


def perceptual_loss(sr: Tensor, gt: Tensor, features: nn.Module, weights: Mapping[str, float] = LAYERS_SYNTHETIC) -> Tensor:
    """Weighted absolute distance of VGG19 features before the ReLU.

        L_i = sum_k w_k mean_{c,y,x} | phi_k(sr_i) - stopgrad(phi_k(gt_i)) |

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped; sides of at least 16 px for conv5_4.
        gt: the same shape.
        features: frozen `VGG19Features` (or its lean twin) in eval mode.
        weights: layer -> w_k; `LAYERS_SYNTHETIC` (sum 3.2) or `LAYERS_REAL` (without conv1_2, sum 3.1).

    Returns:
        [B] float32, 0 if sr == gt.

    Raises:
        ValueError: shapes differ, not RGB, no layer, an unknown one, or trainable features.

    Source:
        Johnson et al. 2016, arXiv:1603.08155, as in Wang et al. 2018 (ESRGAN), arXiv:1809.00219, Section 3.2; layers and weights
        of specification aesop.md section 2.5.
    """
    wide_sr, wide_gt = check_pair(sr, gt, channels=(3,))
    if not weights:
        raise ValueError("weights: expected at least one layer, got none; use LAYERS_SYNTHETIC")
    check_frozen(features, "features")
    with torch.no_grad():
        wanted = features(wide_gt, tuple(weights))
    found = features(wide_sr, tuple(weights))
    terms = [weight * l1_loss(at_least_float32(found[name]), at_least_float32(wanted[name])) for name, weight in weights.items()]
    return torch.stack(terms).sum(0)
