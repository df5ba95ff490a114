"""MSRResNet: SRResNet without normalisation, as the BasicSR family writes it; the light decoder of AESOP's Table 5 (a)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, check_positive_int
from .rrdb import conv3x3, kaiming_tenth


class ResidualBlockNoNorm(nn.Module):
    """x + conv2(relu(conv1(x)))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(features, features)
        self.conv2 = conv3x3(features, features)
        self.relu = nn.ReLU(inplace=True)
        kaiming_tenth(self.conv1, self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features, h, w] -> the same shape."""
        return x + self.conv2(self.relu(self.conv1(x)))


class MSRResNet(nn.Module):
    """Residual blocks on the input grid, pixel shuffles, and bilinear interpolation in parallel.

    1,517,571 parameters with the default arguments.

    Args:
        scale: 2, 3 or 4.
        features: width.
        blocks: number of residual blocks.

    Shapes:
        [B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w], not clamped. Any h, w >= 1.

    Source:
        Ledig et al. 2017, arXiv:1609.04802, with the changes of ESRGAN's authors; specification aesop.md 3.3.
    """

    def __init__(self, scale: int = 4, features: int = 64, blocks: int = 16) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale: expected 2, 3 or 4, got {scale!r}; MSRResNet exists for these factors only")
        self.scale = scale
        self.size_multiple = 1
        check_positive_int(features, "features")
        check_positive_int(blocks, "blocks")
        self.shuffle = 3 if scale == 3 else 2
        self.conv_first = conv3x3(3, features)
        self.body = nn.Sequential(*(ResidualBlockNoNorm(features) for _ in range(blocks)))
        self.upconv1 = conv3x3(features, features * self.shuffle**2)
        self.upconv2 = conv3x3(features, features * 4) if scale == 4 else None
        self.conv_hr = conv3x3(features, features)
        self.conv_last = conv3x3(features, 3)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)
        kaiming_tenth(self.conv_first, self.upconv1, self.conv_hr, self.conv_last, *((self.upconv2,) if self.upconv2 else ()))

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale; see the class for shapes and ranges."""
        check_image(lq, "lq", channels=(3,))
        x = self.body(self.lrelu(self.conv_first(lq)))
        x = self.lrelu(F.pixel_shuffle(self.upconv1(x), self.shuffle))
        if self.upconv2 is not None:
            x = self.lrelu(F.pixel_shuffle(self.upconv2(x), 2))
        base = F.interpolate(lq, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return base + self.conv_last(self.lrelu(self.conv_hr(x)))
