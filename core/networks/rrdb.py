"""RRDBNet: the residual-in-residual dense network of ESRGAN, BSRGAN, Real-ESRGAN and AESOP, with their parameter names."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # its function is untyped

from ..checks import check_image, check_positive_int

INPUT_UNSHUFFLE = {1: 4, 2: 2, 4: 1}  # scale -> by how much the input is folded into channels; the body always enlarges by 4


def kaiming_tenth(*convolutions: nn.Conv2d) -> None:
    """Kaiming-normal weights (fan in, gain sqrt 2) times 0.1 and zero biases: residual branches start small."""
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight)
        with torch.no_grad():
            convolution.weight.mul_(0.1)
            if convolution.bias is not None:
                convolution.bias.zero_()


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that keeps the size: 3x3, stride 1, zero padding 1, with bias."""
    return nn.Conv2d(inputs, outputs, 3, 1, 1)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each fed with all results before it.

        x_k = lrelu(conv_k([x, x_1, ..., x_(k-1)])) for k = 1..4;   out = 0.2 conv_5([x, x_1, ..., x_4]) + x

    Args:
        features: width of `x`.
        growth: width of every x_k.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(features, growth)
        self.conv2 = conv3x3(features + growth, growth)
        self.conv3 = conv3x3(features + 2 * growth, growth)
        self.conv4 = conv3x3(features + 3 * growth, growth)
        self.conv5 = conv3x3(features + 4 * growth, features)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)
        kaiming_tenth(self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features, h, w] -> the same shape."""
        dense = x
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            dense = torch.cat((dense, self.lrelu(convolution(dense))), 1)
        return torch.add(x, self.conv5(dense), alpha=0.2)


class RRDB(nn.Module):
    """Three dense blocks in a residual branch: out = 0.2 rdb3(rdb2(rdb1(x))) + x."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features, h, w] -> the same shape."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=0.2)


class RRDBNet(nn.Module):
    """Super-resolution network of ESRGAN and AESOP, and the decoder of AESOP's auto-encoder.

        f = conv_first(unshuffle(lq));   f = f + conv_body(body(f))
        f = lrelu(conv_up1(nearest2(f)));   f = lrelu(conv_up2(nearest2(f)));   sr = conv_last(lrelu(conv_hr(f)))

    Scales 2 and 1 fold the input by 2 and 4 into channels first, so that the body works on the same grid for all of them.
    16,697,987 parameters in 702 tensors with the default arguments.

    Args:
        scale: 1, 2 or 4.
        features: width of the trunk.
        growth: width of the dense layers.
        blocks: number of RRDBs.
        checkpoint_blocks: recompute every RRDB in the backward pass instead of keeping its activations; same gradients.

    Shapes:
        [B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w], not clamped; h, w multiples of `size_multiple`
        (1 for scale 4, 2 for scale 2, 4 for scale 1).

    Source:
        Wang et al. 2018 (ESRGAN), arXiv:1809.00219, Sec. 3.1; unshuffled inputs: Wang et al. 2021, arXiv:2107.10833.
        Specification aesop.md 3.1. The released code checkpoints the whole body at once; here it is done per block, whose peak
        is lower (specification 8.1).
    """

    def __init__(
        self, scale: int = 4, features: int = 64, growth: int = 32, blocks: int = 23, *, checkpoint_blocks: bool = False
    ) -> None:
        super().__init__()
        if scale not in INPUT_UNSHUFFLE:
            raise ValueError(f"scale: expected 1, 2 or 4, got {scale!r}; RRDBNet exists for these factors only")
        self.scale = scale
        self.size_multiple = INPUT_UNSHUFFLE[scale]
        self.checkpoint_blocks = checkpoint_blocks
        check_positive_int(features, "features")
        check_positive_int(growth, "growth")
        check_positive_int(blocks, "blocks")
        self.conv_first = conv3x3(3 * self.size_multiple**2, features)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = conv3x3(features, features)
        self.conv_up1 = conv3x3(features, features)
        self.conv_up2 = conv3x3(features, features)
        self.conv_hr = conv3x3(features, features)
        self.conv_last = conv3x3(features, 3)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale; see the class for shapes and ranges."""
        check_image(lq, "lq", channels=(3,))
        x = lq
        if self.size_multiple > 1:
            height, width = lq.shape[-2:]
            if height % self.size_multiple or width % self.size_multiple:
                raise ValueError(
                    f"lq: expected sides that are multiples of {self.size_multiple} at scale {self.scale}, got {height}x{width}; "
                    "pad it with images.pad_to_multiple"
                )
            x = F.pixel_unshuffle(lq, self.size_multiple)
        first = self.conv_first(x)
        x = first + self.conv_body(self._trunk(first))
        x = self.lrelu(self.conv_up1(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.lrelu(self.conv_up2(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(x)))

    def _trunk(self, x: Tensor) -> Tensor:
        if not (self.checkpoint_blocks and torch.is_grad_enabled()):
            return self.body(x)
        for block in self.body:
            # nothing in a block is random, so no generator state needs keeping
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False, preserve_rng_state=False))
        return x
