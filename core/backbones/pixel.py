"""`pixel`: a small diffusion transformer on pixel-unshuffled images, the embedded stand-in for large one-step models.

It follows the same protocol as the latent models, with the image itself as latent: no VAE and no VLM. It sees the noisy image
and the resized input as channels and takes any sigma, so one Euler step from the resized input and noise-to-image flow from
several seeds run through the same forward pass.

Building the first one in a process takes some seconds, almost all of it imports: `diffusers.models.transformers` imports every
transformer it has, and what they share imports peft, parts of transformers and torch's compiler. No narrower import exists (the
module's own path runs the same package), and telling diffusers that peft is absent would take LoRA from the whole process, so
callers say that they are loading.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..checks import check_image, check_same_shape
from ..compat import import_diffusers
from ..diffusion import FlowProcess, Process
from ..records import Conditioning
from .base import BackboneSpec, parameter_count

DEFAULTS: dict[str, Any] = {
    "patch_px": 8,
    "width": 160,
    "heads": 8,
    "layers": 6,
    "mlp_ratio": 2.5,
    "conditioning_dim": 32,
    "start_sigma": 0.8,
    "step_length": 0.0,  # of one-step restoration; 0 is start_sigma
}


class PixelTransformer(nn.Module):
    """Velocity network: diffusers' `SanaTransformer2DModel` between pixel unshuffle and pixel shuffle.

    tokens = unshuffle([z, z_lq], p);  velocity = shuffle(transformer(tokens, t = 1000 sigma), p)

    Linear attention makes the cost linear in the image area and the depth-wise convolutions in the feed-forward layers carry
    position, so any size runs. The output layer starts at zero: an untrained model has zero velocity and returns its input.

    Args:
        patch_px: side of the pixel block that becomes one token.
        width: token width, a multiple of `heads`.
        heads: attention heads.
        layers: transformer blocks.
        mlp_ratio: expansion of the feed-forward layers.
        conditioning_dim: width of optional token embeddings; without any, one zero token is attended.

    Source:
        Xie et al. 2024 (SANA), arXiv:2410.10629, Sec. 2.2 (linear attention with Mix-FFN), here on pixels instead of latents.
    """

    def __init__(self, patch_px: int, width: int, heads: int, layers: int, mlp_ratio: float, conditioning_dim: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads ({heads}), got {width}; change one of them")
        self.patch_px = patch_px
        self.conditioning_dim = conditioning_dim
        self.transformer = import_diffusers().SanaTransformer2DModel(
            in_channels=2 * 3 * patch_px**2,
            out_channels=3 * patch_px**2,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            num_layers=layers,
            num_cross_attention_heads=1,
            cross_attention_head_dim=16,
            cross_attention_dim=width,
            caption_channels=conditioning_dim,
            mlp_ratio=mlp_ratio,
            patch_size=1,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, z: Tensor, sigma: Tensor, z_lq: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            z: noisy images, [B, 3, H, W]; H and W multiples of `patch_px`.
            sigma: noise level per sample, [B], in [0, 1].
            z_lq: resized input in the same range and shape.
            embeddings: [B, N, conditioning_dim] or None.
        """
        if embeddings is None:
            embeddings = z.new_zeros(z.shape[0], 1, self.conditioning_dim)
        tokens = F.pixel_unshuffle(torch.cat((z, z_lq), 1), self.patch_px)
        velocity = self.transformer(tokens, encoder_hidden_states=embeddings, timestep=sigma * 1000, return_dict=False)[0]
        return F.pixel_shuffle(velocity, self.patch_px)


class PixelBackbone:
    """The protocols `Backbone` and `MultiStepBackbone` over a `PixelTransformer`; encode and decode are the identity."""

    def __init__(self, options: dict[str, Any] | None = None, name: str = "pixel", licence: str = "Apache-2.0") -> None:
        unknown = set(options or {}) - set(DEFAULTS)
        if unknown:
            raise ValueError(
                f"options: expected {', '.join(sorted(DEFAULTS))}, got {', '.join(sorted(unknown))}; remove the unknown ones"
            )
        self.options = DEFAULTS | (options or {})
        network_options = {key: value for key, value in self.options.items() if key not in ("start_sigma", "step_length")}
        self.network = PixelTransformer(**network_options)
        patch = int(self.options["patch_px"])
        self.spec = BackboneSpec(
            name=name,
            kind="flow",
            scale=None,
            size_multiple=patch,
            tile_px=512,
            overlap_px=64,
            start_sigma=float(self.options["start_sigma"]),
            step_length=float(self.options["step_length"]) or None,
            latent_channels=3,
            latent_stride=1,
            conditioning_dim=int(self.options["conditioning_dim"]),
            bytes_per_pixel=int(self.options["width"]) * 4 * 16 // patch**2 + 64,
            parameters=parameter_count(self.network),
            licence=licence,
        )
        self.process: Process = FlowProcess()

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The one network, as `network`."""
        yield "network", self.network

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The identity: the latent is the image in [-1, 1]; the generator is not needed."""
        del generator
        return check_image(image, "image", channels=(3,))

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The identity, as `encode`."""
        return self.encode(image, generator=generator)

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The velocity; `time` is sigma."""
        return self.velocity(z, time, z_lq, conditioning)

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Velocity at `z`; see `PixelTransformer.forward`.

        Raises:
            ValueError: shapes differ, or a side is not a multiple of the patch.
        """
        check_same_shape(z, z_lq, "z", "z_lq")
        patch = self.spec.size_multiple
        if z.shape[-1] % patch or z.shape[-2] % patch:
            raise ValueError(
                f"z: expected sides that are multiples of {patch}, got {tuple(z.shape[-2:])}; use images.pad_to_multiple"
            )
        return self.network(z, sigma, z_lq, None if conditioning is None else conditioning.embeddings)

    def decode(self, z: Tensor) -> Tensor:
        """The identity."""
        return z


def load(path: Path, info: dict[str, Any]) -> PixelBackbone:
    """Build the backbone that `info` (a weight file's header) describes and load its weights strictly."""
    from ..weights import load_into, load_state_dict

    backbone = PixelBackbone(info["options"], name=str(info.get("name", path.stem)), licence=str(info.get("licence", "unknown")))
    state = {name: tensor.float() for name, tensor in load_state_dict(path).items()}
    load_into(backbone.network, state, str(path))
    backbone.network.eval().requires_grad_(False)
    return backbone
