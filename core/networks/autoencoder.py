"""The auto-encoder of AESOP: down to an RGB image of low-resolution size and back; it keeps what regression can predict."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, check_positive_int, did_you_mean
from ..resize import imresize
from ..weights import find_model, load_into
from .compact import LiteSR
from .rrdb import RRDB, RRDBNet, conv3x3, kaiming_tenth
from .srresnet import MSRResNet

DECODERS: dict[str, type[RRDBNet] | type[MSRResNet] | type[LiteSR]] = {"rrdb": RRDBNet, "srresnet": MSRResNet, "lite": LiteSR}
SCALES = (2, 4)
ARCHITECTURE = "autoencoder"  # in the header of our weight files


class AutoEncoder(nn.Module):
    """An encoder whose bottleneck is an RGB image at 1 / scale of the size, and a super-resolution network as decoder.

        z = encode(x) = to_rgb(body(unshuffle(from_rgb(x))));   out = decode(z)

    `from_rgb` (`conv_first`: two convolutions, no activation between them) gives features / scale^2 channels; log2(scale)
    PixelUnshuffle(2) follow one another, which orders channels otherwise than one PixelUnshuffle(scale): files of the released
    code need this order. `body` is RRDBs, `to_rgb` (`conv_last`) two convolutions without activation. Nothing is clamped.
    18,175,754 parameters with the default arguments, 1,477,767 of them in the encoder.

    The fromRGB width must hold colour: with fewer than 3 channels (features below 48 at scale 4, 12 at scale 2) it cannot pass,
    so such widths are refused. The decoder's width is free.

    Args:
        scale: 2 or 4; 4 is the released one.
        features: width of the encoder's body, a multiple of scale^2, at least 3 scale^2.
        blocks: RRDBs of the encoder.
        growth: width of their dense layers.
        decoder: "rrdb", "srresnet" (Table 5 (a) of the paper), or "lite", the bundled models' network, for small ones (ours).
        decoder_options: keyword arguments of the decoder but for its scale; the published sizes by default.
        encoder: "learned", or "bicubic" for ablation (a) of Table 3: MATLAB's bicubic, which the LR training images were made
            with. The released code takes torch's antialiased bicubic there, which differs at the border (specification 5).
            It has no parameters; features, blocks and growth are then unused.

    Shapes:
        [B, 3, H, W], about [0, 1], H and W multiples of scale -> the same shape, not clamped.

    Source:
        Lee et al. 2025 (AESOP), arXiv:2412.00124, Sec. 4 and appendix A; specification aesop.md 3.2, 3.3. Scale 2 is our choice.
    """

    def __init__(
        self,
        scale: int = 4,
        features: int = 64,
        blocks: int = 2,
        growth: int = 32,
        decoder: Literal["rrdb", "srresnet", "lite"] = "rrdb",
        decoder_options: Mapping[str, Any] | None = None,
        encoder: Literal["learned", "bicubic"] = "learned",
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale: expected 2 or 4, got {scale!r}; auto-encoders exist for these factors only")
        if decoder not in DECODERS:
            raise ValueError(f"decoder: expected a known decoder, got {decoder!r}; {did_you_mean(decoder, list(DECODERS))}")
        if encoder not in ("learned", "bicubic"):
            raise ValueError(f"encoder: expected 'learned' or 'bicubic', got {encoder!r}; choose one of them")
        self.scale = scale
        self.size_multiple = scale
        self.encoder_kind = encoder
        self.decoder = DECODERS[decoder](scale=scale, **(decoder_options or {}))
        if encoder == "learned":
            self._add_encoder(features, blocks, growth)

    def _add_encoder(self, features: int, blocks: int, growth: int) -> None:
        check_positive_int(features, "features")
        check_positive_int(blocks, "blocks")
        check_positive_int(growth, "growth")
        width, rest = divmod(features, self.scale**2)
        if rest or width < 3:
            raise ValueError(
                f"features: expected a multiple of {self.scale**2}, at least {3 * self.scale**2}, got {features}; the encoder "
                f"starts with features / {self.scale**2} channels and below 3 of them colour cannot pass"
            )
        self.conv_first = nn.Sequential(conv3x3(3, width), conv3x3(width, width))
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_last = nn.Sequential(conv3x3(features, features), conv3x3(features, 3))
        kaiming_tenth(*(layer for layer in (*self.conv_first, *self.conv_last) if isinstance(layer, nn.Conv2d)))

    def encode(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> the bottleneck [B, 3, H / scale, W / scale], an image like the LR one, not clamped.

        Raises:
            ValueError: H or W is not a multiple of scale.
        """
        check_image(x, "x", channels=(3,))
        height, width = x.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"x: expected sides that are multiples of {self.scale} for an auto-encoder of scale {self.scale}, "
                f"got {height}x{width}; crop it"
            )
        if self.encoder_kind == "bicubic":
            return imresize(x, 1 / self.scale)
        return self.conv_last(self.body(unshuffle_by_twos(self.conv_first(x), self.scale)))

    def decode(self, z: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, 3, scale * h, scale * w], not clamped."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x)); see the class."""
        return self.decode(self.encode(x))


@torch.no_grad()
def start_as_average(autoencoder: AutoEncoder) -> None:
    """Make a new encoder an area average, on top of what it was initialised with: a bottleneck that is a picture from step 0.

    From random weights an encoder first has to find colours and places, which takes a small one most of a short training. Here
    fromRGB passes its first three channels on, toRGB averages the scale^2 cells of each of them, and the body is almost the
    identity anyway. Ours; the released code starts at random.

    Raises:
        ValueError: the encoder is bicubic and has no weights.
    """
    if autoencoder.encoder_kind != "learned":
        raise ValueError("autoencoder: expected a learned encoder, got a bicubic one; it has nothing to start")
    cells = autoencoder.scale**2
    layers = [layer for layer in (*autoencoder.conv_first, *autoencoder.conv_last) if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.weight *= 0.05  # the random part stays as a small disturbance, so that units differ
    for layer in layers[:-1]:
        for channel in range(min(layer.weight.shape[0], layer.weight.shape[1])):
            layer.weight[channel, channel, 1, 1] += 1
    for colour in range(3):
        # every RRDB begins near 1.2 x: its dense blocks near the identity, added to its input with the weight 0.2
        layers[-1].weight[colour, colour * cells : (colour + 1) * cells, 1, 1] += 1 / (cells * 1.2 ** len(autoencoder.body))


def unshuffle_by_twos(x: Tensor, scale: int) -> Tensor:
    """PixelUnshuffle(2), log2(scale) times: the channel order of the released auto-encoders.

    At scale 4, row p = 2 i2 + i1 and column q = 2 j2 + j1 of channel c's 4x4 cells become channel
    16 c + 4 (2 i1 + j1) + 2 i2 + j2 (one PixelUnshuffle(4) would give 16 c + 4 p + q).

    Args:
        x: [B, C, H, W], H and W multiples of scale.
        scale: a power of two.

    Returns:
        [B, C scale^2, H / scale, W / scale].

    Source:
        Specification aesop.md 3.2, "Order trap".

    Example:
        >>> import torch
        >>> ramp = torch.arange(16.0).view(1, 1, 4, 4)
        >>> unshuffle_by_twos(ramp, 4).flatten().int().tolist()
        [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    """
    for _ in range(int(math.log2(scale))):
        x = F.pixel_unshuffle(x, 2)
    return x


def build_autoencoder(options: Mapping[str, Any] | None = None) -> AutoEncoder:
    """A randomly initialised auto-encoder from the keyword arguments of `AutoEncoder`.

    Raises:
        ValueError: options it does not take.
    """
    try:
        return AutoEncoder(**(options or {}))
    except TypeError as error:
        raise ValueError(f"options: the auto-encoder does not take them: {error}; compare with its docstring") from error


def load_autoencoder(name: str | Path, folders: Iterable[str | Path] = ()) -> AutoEncoder:
    """Load an auto-encoder of ours or of the released code, by bundled name, file name in `folders`, or path.

    Returns:
        The auto-encoder in eval mode, float32, on the CPU, with frozen parameters.

    Raises:
        MissingModelError: nothing of that name.
        WeightsError: damaged file, aliases that disagree, a super-resolution network, or weights that do not fit.
    """
    from .official import read_autoencoder

    path = find_model(name, folders)
    options, state = read_autoencoder(path)
    autoencoder = build_autoencoder(options)
    load_into(autoencoder, state, str(path))
    autoencoder.eval().requires_grad_(False)
    return autoencoder
