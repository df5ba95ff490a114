"""LPIPS with VGG16, the perceptual term of StrSR, from the weights that the published metric uses."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import check_image
from ..weights import WeightsError, check_state, find_model, load_into, load_state_dict
from .autoencoded import check_frozen
from .precision import at_least_float32, check_pair, per_sample

VGG16_FILE = "vgg16-397923af.pth"
VGG16_SOURCE = f"https://download.pytorch.org/models/{VGG16_FILE}"
LPIPS_FILE = "LPIPS_v0.1_vgg-a78928a0.pth"
LPIPS_SOURCE = f"https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/{LPIPS_FILE}"
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
MINIMUM_PX = 16
_EPS = 1e-10


class LPIPSFeatures(nn.Module):
    """Five stages of VGG16 with one non-negative weight per channel, randomly initialised, with torchvision's parameter names.

    Shapes:
        [B, 3, H, W] in [0, 1] -> unit vectors over channels at relu1_2 [B, 64, H, W], relu2_2 [B, 128, H/2, W/2], ...,
        relu5_3 [B, 512, H/16, W/16].

    Source:
        Zhang et al. 2018, arXiv:1801.03924, Section 3.1 and Fig. 2 (left); version 0.1 of the authors' weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        self.taps: list[int] = []
        for number, widths in enumerate(WIDTHS):
            if number:
                layers.append(nn.MaxPool2d(2, 2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.linear = nn.ParameterList(nn.Parameter(torch.rand(widths[-1]) / widths[-1]) for widths in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        check_image(image, "image", channels=(3,))
        if min(image.shape[-2:]) < MINIMUM_PX:
            raise ValueError(
                f"image: expected sides of at least {MINIMUM_PX} px, got {tuple(image.shape[-2:])}; use larger patches"
            )
        found: list[Tensor] = []
        x = (2 * image - 1 - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                wide = at_least_float32(x)
                # the square root of an empty vector has no gradient: held constant there, where the quotient is 0 anyway
                length = wide.square().sum(1, keepdim=True).clamp_min(_EPS**2).sqrt()
                found.append(wide / (length + _EPS))
        return found


def lpips_loss(sr: Tensor, gt: Tensor, features: nn.Module) -> Tensor:
    """Learned perceptual distance of two images.

        L_i = sum over stages k of mean_{y,x} sum_c w_kc (f_k(sr_i) - f_k(gt_i))_c^2,   f_k unit vectors over channels

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped; sides of at least 16 px.
        gt: the same shape; no gradient goes here.
        features: frozen `LPIPSFeatures` (or its lean twin) in eval mode.

    Returns:
        [B] float32, 0 if sr == gt.

    Raises:
        ValueError: shapes differ, not RGB, too small, or trainable features.

    Source:
        Zhang et al. 2018, arXiv:1801.03924, Eq. (1); strsr.md section 2.5 (lpips 0.1.4, net = vgg). Equal to pyiqa's `lpips-vgg`.
        Differs in the gradient where a feature vector is empty: 0 here, not a number there.
    """
    wide_sr, wide_gt = check_pair(sr, gt, channels=(3,))
    check_frozen(features, "features")
    with torch.no_grad():
        wanted = features(wide_gt)
    terms: list[Tensor] = []
    weights: list[Tensor] = list(cast(Any, features).linear)  # of LPIPSFeatures, its twin, or a stand-in
    for found, target, weight in zip(features(wide_sr), wanted, weights, strict=True):
        distance = torch.einsum("bchw,c->bhw", (found - target).square(), weight.to(found))
        terms.append(per_sample(distance))
    return torch.stack(terms).sum(0)


def load_lpips(
    vgg: str | Path = VGG16_FILE, linear: str | Path = LPIPS_FILE, folders: Iterable[str | Path] = ()
) -> LPIPSFeatures:
    """LPIPS with torchvision's VGG16 and the published channel weights, frozen and in eval mode.

    Args:
        vgg: torchvision's weight file (path, or name in one of `folders`); the classifier's entries in it are not read.
        linear: the channel weights, as lpips 0.1.4 or pyiqa write them (`lin0.model.1.weight`, ...).
        folders: model folders to search.

    Raises:
        MissingModelError: not there; the message says where to get it. Nothing is ever downloaded.
        WeightsError: another network's file.
    """
    backbone = load_state_dict(find_vgg16(vgg, folders))
    path = find_linear(linear, folders)
    network = LPIPSFeatures()
    state = {key: value for key, value in backbone.items() if not key.startswith("classifier.")}
    own = {key: value for key, value in network.state_dict().items() if key.startswith("features.")}
    check_state(state, own, str(vgg))
    read = load_state_dict(path)
    for number, widths in enumerate(WIDTHS):
        name = f"lin{number}.model.1.weight"
        if name not in read or read[name].numel() != widths[-1]:
            raise WeightsError(
                f"{path}: expected LPIPS weights for VGG16 with {name} of {widths[-1]} values, got "
                f"{tuple(read[name].shape) if name in read else ', '.join(sorted(read)[:3])}; choose {LPIPS_FILE}"
            )
        state[f"linear.{number}"] = read[name].flatten().float()
    load_into(network, state, str(path))
    return network.requires_grad_(False).eval()


def find_vgg16(name: str | Path = VGG16_FILE, folders: Iterable[str | Path] = ()) -> Path:
    """Where torchvision's weights of VGG16 lie.

    Raises:
        MissingModelError: not there; the message says where to get it.
    """
    return find_model(name, folders, what="the weights of VGG16 on ImageNet", hint=f"get them from {VGG16_SOURCE}")


def find_linear(name: str | Path = LPIPS_FILE, folders: Iterable[str | Path] = ()) -> Path:
    """Where LPIPS's weights of VGG16's channels lie.

    Raises:
        MissingModelError: not there; the message says where to get it.
    """
    return find_model(name, folders, what="the channel weights of LPIPS 0.1 for VGG16", hint=f"get them from {LPIPS_SOURCE}")
