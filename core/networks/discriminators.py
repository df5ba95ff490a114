"""Discriminators of ESRGAN and Real-ESRGAN as AESOP uses them, with their parameter names."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, check_positive_int, did_you_mean
from .normalization import BatchNorm2d, SpectralConv2d


class VGGDiscriminator(nn.Module):
    """One logit per image of one fixed size: 3x3 and strided 4x4 convolutions with batch normalisation, then two linear layers.

    Stage k has conv k_0 (3x3) and k_1 (4x4, stride 2) at features * (1, 2, 4, 8, 8, ...); every convolution but the first is
    followed by batch normalisation and has no bias; LeakyReLU 0.2. Sizes from 256 px on have a sixth stage.
    14,499,401 / 15,523,401 / 21,055,049 parameters for 128 / 192 / 256 px.

    Batch 1 in train mode works while the last map is larger than 1x1 (64 px and more): each image is then normalised by its own
    statistics. At 32 px it is an error of `BatchNorm2d`. In several processes statistics cover all of them.

    Args:
        input_px: side of the images, a multiple of 32. Released for 128, 192 and 256; smaller ones serve small experiments.
        features: width of the first stage.

    Shapes:
        [B, 3, input_px, input_px], range [0, 1] or about it -> [B, 1].

    Source:
        Simonyan and Zisserman 2015 through Ledig et al. 2017; specification aesop.md 3.4.
    """

    def __init__(self, input_px: int = 128, features: int = 64) -> None:
        super().__init__()
        check_positive_int(input_px, "input_px", low=32)
        check_positive_int(features, "features")
        stages = 6 if input_px >= 256 else 5
        side, rest = divmod(input_px, 2**stages)
        if rest:
            raise ValueError(
                f"input_px: expected a multiple of {2**stages}, got {input_px}; the published sizes are 128, 192 and 256"
            )
        self.input_px = input_px
        self.conv0_0 = nn.Conv2d(3, features, 3, 1, 1)
        self.stages = stages
        width = features
        for stage in range(stages):
            outputs = features * min(2**stage, 8)
            if stage:
                self.add_module(f"conv{stage}_0", nn.Conv2d(width, outputs, 3, 1, 1, bias=False))
                self.add_module(f"bn{stage}_0", BatchNorm2d(outputs))
            self.add_module(f"conv{stage}_1", nn.Conv2d(outputs, outputs, 4, 2, 1, bias=False))
            self.add_module(f"bn{stage}_1", BatchNorm2d(outputs))
            width = outputs
        self.linear1 = nn.Linear(width * side * side, 100)
        self.linear2 = nn.Linear(100, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, larger = more real; see the class."""
        check_image(x, "x", channels=(3,))
        if x.shape[-2:] != (self.input_px, self.input_px):
            raise ValueError(
                f"x: expected patches of {self.input_px}x{self.input_px} px, the discriminator's size, "
                f"got {x.shape[-2]}x{x.shape[-1]}; build the discriminator for the training patch size"
            )
        x = self.lrelu(self.conv0_0(x))
        for stage in range(self.stages):
            for part in (0, 1) if stage else (1,):
                convolution = self.get_submodule(f"conv{stage}_{part}")
                x = self.lrelu(self.get_submodule(f"bn{stage}_{part}")(convolution(x)))
        return self.linear2(self.lrelu(self.linear1(x.flatten(1))))


class UNetDiscriminatorSN(nn.Module):
    """One logit per pixel: a U-Net with additive skips and spectral normalisation.

        x0 = conv0(x);  x1, x2, x3 by strided conv1..3;  conv4(up(x3)) + x2;  conv5(up) + x1;  conv6(up) + x0;  conv7, 8, 9

    4,376,897 parameters with the default width.

    Args:
        features: width at full resolution.

    Shapes:
        [B, 3, H, W], range [0, 1] or about it, H and W multiples of 8 -> [B, 1, H, W].

    Source:
        Wang et al. 2021 (Real-ESRGAN), arXiv:2107.10833, Sec. 3.4; specification aesop.md 3.4.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        check_positive_int(features, "features")
        f = features
        self.conv0 = nn.Conv2d(3, f, 3, 1, 1)
        self.conv1 = SpectralConv2d(f, 2 * f, 4, 2)
        self.conv2 = SpectralConv2d(2 * f, 4 * f, 4, 2)
        self.conv3 = SpectralConv2d(4 * f, 8 * f, 4, 2)
        self.conv4 = SpectralConv2d(8 * f, 4 * f)
        self.conv5 = SpectralConv2d(4 * f, 2 * f)
        self.conv6 = SpectralConv2d(2 * f, f)
        self.conv7 = SpectralConv2d(f, f)
        self.conv8 = SpectralConv2d(f, f)
        self.conv9 = nn.Conv2d(f, 1, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logit map, larger = more real; see the class."""
        check_image(x, "x", channels=(3,))
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError(
                f"x: expected sides that are multiples of 8, got {x.shape[-2]}x{x.shape[-1]}; choose another patch size"
            )
        x0 = self.lrelu(self.conv0(x))
        x1 = self.lrelu(self.conv1(x0))
        x2 = self.lrelu(self.conv2(x1))
        x3 = self.lrelu(self.conv3(x2))
        x4 = self.lrelu(self.conv4(_twice(x3))) + x2
        x5 = self.lrelu(self.conv5(_twice(x4))) + x1
        x6 = self.lrelu(self.conv6(_twice(x5))) + x0
        return self.conv9(self.lrelu(self.conv8(self.lrelu(self.conv7(x6)))))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


DISCRIMINATORS = {"vgg": VGGDiscriminator, "unet": UNetDiscriminatorSN}


def build_discriminator(kind: str, patch_px: int, features: int = 64) -> VGGDiscriminator | UNetDiscriminatorSN:
    """A discriminator for training patches of one size, randomly initialised.

    Args:
        kind: "vgg" (one logit per patch) or "unet" (one logit per pixel).
        patch_px: side of the ground-truth patches.
        features: width of its first layer.

    Raises:
        ValueError: unknown kind, or a patch size it cannot take.
    """
    if kind == "vgg":
        return VGGDiscriminator(patch_px, features)
    if kind != "unet":
        raise ValueError(f"kind: expected a known discriminator, got {kind!r}; {did_you_mean(kind, list(DISCRIMINATORS))}")
    if patch_px % 8:
        raise ValueError(f"patch_px: expected a multiple of 8 for the U-Net discriminator, got {patch_px}; change the patch size")
    return UNetDiscriminatorSN(features)
