"""The small convolutional network behind the bundled `lite` models."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, check_positive_int


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))): the block of EDSR, without normalisation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, h, w] -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class LiteSR(nn.Module):
    """Residual network on the low-resolution grid with one pixel shuffle, in the manner of EDSR-baseline made small.

    sr = bilinear(lq) + shuffle(conv(body(features) + features)). The whole network runs at the input's resolution, so the cost
    per output pixel falls with scale^2; the fixed interpolation in parallel leaves only detail to learn, and the last layer
    starts at zero, so an untrained network is plain interpolation.

    Args:
        scale: upscaling factor, 1..8.
        features: width of the hidden layers.
        blocks: number of residual blocks.

    Shapes:
        [B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w], not clamped. Any h, w >= 1.

    Source:
        Lim et al. 2017 (EDSR), arXiv:1707.02921, Fig. 3; Shi et al. 2016, arXiv:1609.05158 (pixel shuffle). Interpolation in
        parallel and the zero-initialised tail are our choice.
    """

    def __init__(self, scale: int = 4, features: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.scale = check_positive_int(scale, "scale", high=8)
        self.size_multiple = 1
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)), nn.Conv2d(features, features, 3, padding=1))
        self.tail = nn.Conv2d(features, 3 * scale * scale, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # pyright: ignore[reportArgumentType]  # Conv2d has a bias by default

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale; see the class for shapes and ranges."""
        check_image(lq, "lq", channels=(3,))
        base = F.interpolate(lq, scale_factor=self.scale, mode="bilinear", align_corners=False)
        # centred input: the features see values around zero whatever the exposure
        features = self.head(lq - 0.5)
        return base + F.pixel_shuffle(self.tail(features + self.body(features)), self.scale)
