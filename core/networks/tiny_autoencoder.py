"""A tiny convolutional autoencoder for the latent space of a large VAE: the TAESD family with its pooled variant (TAEF2).

The pretrained TAEF2 halves hold three `pool` branches each, which diffusers' `AutoencoderTiny` has no place for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image
from ..weights import check_state, load_state_dict

_STRIDE = 8
_CLAMP = 3.0  # latents pass 3 tanh(z / 3) on their way into the decoder


class _Conv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _CLAMP * torch.tanh(x / _CLAMP)


class _Block(nn.Module):
    """relu(x' + convolutions(x')),  x' = x + pool(x) when pooled: group statistics carry what the 3x3 kernels cannot see."""

    def __init__(self, width: int, is_pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_Conv(width, width), nn.ReLU(), _Conv(width, width), nn.ReLU(), _Conv(width, width))
        self.pool = _pool(width) if is_pooled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(x + self.conv(x))


def _pool(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, 4 * width, 1, bias=False),
        nn.GroupNorm(4, 4 * width),
        nn.ReLU(),
        nn.Conv2d(4 * width, width, 1, bias=False),
    )


def _encoder(latent_channels: int, width: int, blocks: int, is_pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_Conv(3, width), _Block(width, False)]
    for stage in range(3):
        layers.append(_Conv(width, width, stride=2, bias=False))
        layers.extend(_Block(width, is_pooled and stage == 2) for _ in range(blocks))
    return nn.Sequential(*layers, _Conv(width, latent_channels))


def _decoder(latent_channels: int, width: int, blocks: int, is_pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _Conv(latent_channels, width), nn.ReLU()]
    for stage in range(3):
        layers.extend(_Block(width, is_pooled and stage == 0) for _ in range(blocks))
        layers.extend((nn.Upsample(scale_factor=2), _Conv(width, width, bias=False)))
    return nn.Sequential(*layers, _Block(width, False), _Conv(width, 3))


class TinyAutoencoder(nn.Module):
    """Deterministic encoder and decoder between images in [-1, 1] and latents of stride 8.

    Args:
        latent_channels: 32 for the FLUX.2 latent space, 16 for FLUX.1 and Z-Image, 4 for Stable Diffusion.
        width: channels of all hidden layers.
        blocks: residual blocks per stage.
        is_pooled: give the coarsest stage of each half the pooled blocks of TAEF2.

    Source:
        TAESD by Ollin Boer Bohan (MIT): parameter names are those of its published files, so they load unchanged.
    """

    stride = _STRIDE

    def __init__(self, latent_channels: int = 32, width: int = 64, blocks: int = 3, is_pooled: bool = True) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "latent_channels": latent_channels,
            "width": width,
            "blocks": blocks,
            "is_pooled": is_pooled,
        }
        self.latent_channels = latent_channels
        self.encoder = _encoder(latent_channels, width, blocks, is_pooled)
        self.decoder = _decoder(latent_channels, width, blocks, is_pooled)

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent_channels, H / 8, W / 8].

        Raises:
            ValueError: a side that is not a multiple of 8.
        """
        check_image(image, "image", channels=(3,))
        if image.shape[-2] % _STRIDE or image.shape[-1] % _STRIDE:
            raise ValueError(
                f"image: expected sides that are multiples of {_STRIDE}, got {tuple(image.shape[-2:])}; "
                "use images.pad_to_multiple"
            )
        return self.encoder(image * 0.5 + 0.5)

    def decode(self, z: Tensor) -> Tensor:
        """[B, latent_channels, h, w] -> [B, 3, 8 h, 8 w], about [-1, 1], not clamped."""
        return self.decoder(z) * 2 - 1

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(image))


def read_halves(encoder: str | Path, decoder: str | Path) -> dict[str, Tensor]:
    """Read an encoder file and a decoder file as one state dict, `encoder.*` and `decoder.*`."""
    return {
        f"{half}.{name}": tensor
        for half, path in (("encoder", encoder), ("decoder", decoder))
        for name, tensor in load_state_dict(path).items()
    }


def from_single_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename `encoder.layers.<n>` and `decoder.layers.<n>`, as one-file versions have them, to the names used here.

    Their decoder does not count the clamp at its start, so its indices are one lower.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        half, _, rest = name.partition(".layers.")
        index, _, tail = rest.partition(".")
        renamed[f"{half}.{int(index) + (half == 'decoder')}.{tail}" if index.isdigit() else name] = tensor
    return renamed


def build_tiny_autoencoder(state: Mapping[str, Tensor], source: str) -> TinyAutoencoder:
    """Build the autoencoder that a state dict describes and load it strictly, in float32.

    Args:
        state: names `encoder.<n>...` and `decoder.<n>...`.
        source: for error messages.

    Raises:
        WeightsError: names or shapes of another network; the message lists them.
    """
    width = state["encoder.0.weight"].shape[0] if "encoder.0.weight" in state else 64
    strided = [int(n.split(".")[1]) for n in state if n.startswith("encoder.") and n.count(".") == 2 and n.endswith("weight")]
    steps = sorted(strided)
    blocks = steps[2] - steps[1] - 1 if len(steps) > 2 else 3
    last = f"encoder.{steps[-1]}.weight" if steps else ""
    channels = state[last].shape[0] if last else 32
    is_pooled = any(".pool." in name for name in state)
    with torch.device("meta"):
        expected = TinyAutoencoder(channels, width, max(blocks, 1), is_pooled)
    check_state(state, expected.state_dict(), source)
    expected.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return expected.eval().requires_grad_(False)


def load_taef2(encoder: str | Path, decoder: str | Path) -> TinyAutoencoder:
    """The pretrained tiny autoencoder of the FLUX.2 latent space, frozen, float32, on the CPU.

    Its latents are those that the transformer sees, after the normalisation by the batch statistics of the large VAE, before
    the 2x2 patches are packed.

    Args:
        encoder: taef2_encoder.pth or .safetensors.
        decoder: taef2_decoder.pth or .safetensors.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged or another network's.
    """
    return build_tiny_autoencoder(read_halves(encoder, decoder), f"{encoder} and {decoder}")
