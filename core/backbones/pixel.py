"""`pixel`: a small diffusion transformer on pixel-unshuffled images, the embedded stand-in for large one-step models.

It follows the same protocol as the latent models, with the image itself as latent: no VAE and no VLM. It sees the noisy image
and the resized input as channels and takes any sigma, so one Euler step from the resized input and noise-to-image flow from
several seeds run through the same forward pass.

Building the first one in a process takes some seconds, almost all of it imports: `diffusers.models.transformers` imports every
transformer it has, and what they share imports peft, parts of transformers and torch's compiler. No narrower import exists (the
module's own path runs the same package), and telling diffusers that peft is absent would take LoRA from the whole process, so
callers say that they are loading.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..checks import check_image, check_range, check_same_shape
from ..compat import import_diffusers
from ..diffusion import FlowProcess, Process
from ..records import Conditioning
from .base import BackboneSpec, Sampling, parameter_count

DEFAULTS: dict[str, Any] = {
    "patch_px": 8,
    "width": 160,
    "heads": 8,
    "layers": 6,
    "mlp_ratio": 2.5,
    "conditioning_dim": 32,
    "start_sigma": 0.8,
    "step_length": 0.0,  # of one-step restoration; 0 is start_sigma
    "residual_std": 0.0,  # of models that are sampled from noise, see PixelTransformer; 0: the network's answer is the velocity
    "time_mean": 0.0,  # of the logit of the noise levels that such a model is trained on, and its standard deviation
    "time_std": 1.0,
    "sampling_steps": 0,  # how such a model is sampled; 0: nothing is recommended
    "sampling_shift": 1.0,
}
_OF_BACKBONE = ("start_sigma", "step_length", "time_mean", "time_std", "sampling_steps", "sampling_shift")


class PixelTransformer(nn.Module):
    """Velocity network: diffusers' `SanaTransformer2DModel` between pixel unshuffle and pixel shuffle.

    tokens = unshuffle([z, z_lq], p);  velocity = shuffle(transformer(tokens, t = 1000 sigma), p)

    Linear attention makes the cost linear in the image area and the depth-wise convolutions in the feed-forward layers carry
    position, so any size runs. The output layer starts at zero: an untrained model has zero velocity and returns its input.

    For sampling from noise, `residual_std` = tau > 0 states what is known before anything is learned: the picture is z_lq plus
    white noise of that standard deviation (in [-1, 1]). The network then corrects the velocity which follows from that,

        r = z - (1 - sigma) z_lq,   d = (1 - sigma)^2 tau^2 + sigma^2,   n = r / sqrt(d)
        velocity = -z_lq + (sigma - (1 - sigma) tau^2) / d r + tau / sqrt(d) (m + g n)

    from tokens unshuffle([n, z_lq]), with a mean m and a gate g per pixel and colour; n has unit variance, and the factor before
    m + g n is the standard deviation of the velocity that is left when z and z_lq are known. With g the network can pass on or
    take away noise pixel by pixel, though a token is narrower than its pixels.

    Args:
        patch_px: side of the pixel block that becomes one token.
        width: token width, a multiple of `heads`.
        heads: attention heads.
        layers: transformer blocks.
        mlp_ratio: expansion of the feed-forward layers.
        conditioning_dim: width of optional token embeddings; without any, one zero token is attended.
        residual_std: tau above, >= 0; 0: the network's answer is the velocity.

    Source:
        Xie et al. 2024 (SANA), arXiv:2410.10629, Sec. 2.2 (linear attention with Mix-FFN), here on pixels instead of latents.
        `residual_std`: the preconditioning of Karras et al. 2022, arXiv:2206.00364, Sec. 5 and App. B.6, for this path and for
        data around z_lq; the gate is ours.
    """

    def __init__(
        self,
        patch_px: int,
        width: int,
        heads: int,
        layers: int,
        mlp_ratio: float,
        conditioning_dim: int,
        residual_std: float = 0.0,
    ) -> None:
        super().__init__()
        check_range(residual_std, "residual_std", 0.0, 2.0)
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads ({heads}), got {width}; change one of them")
        self.patch_px = patch_px
        self.conditioning_dim = conditioning_dim
        self.residual_std = residual_std
        self.transformer = import_diffusers().SanaTransformer2DModel(
            in_channels=2 * 3 * patch_px**2,
            out_channels=(6 if residual_std else 3) * patch_px**2,
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
        if not self.residual_std:
            return self._answer(z, sigma, z_lq, embeddings)
        level, around, tau = sigma.float().view(-1, 1, 1, 1), z_lq.float(), self.residual_std
        rest = z.float() - (1 - level) * around
        variance = ((1 - level) * tau).square() + level.square()
        noise = rest * variance.rsqrt()
        mean, gate = self._answer(noise.to(z.dtype), sigma, z_lq, embeddings).float().chunk(2, 1)
        velocity = (level - (1 - level) * tau**2) / variance * rest - around
        return (velocity + tau * variance.rsqrt() * (mean + gate * noise)).to(z.dtype)

    def _answer(self, z: Tensor, sigma: Tensor, z_lq: Tensor, embeddings: Tensor) -> Tensor:
        tokens = F.pixel_unshuffle(torch.cat((z, z_lq), 1), self.patch_px)
        answer = self.transformer(tokens, encoder_hidden_states=embeddings, timestep=sigma * 1000, return_dict=False)[0]
        return F.pixel_shuffle(answer, self.patch_px)


class PixelBackbone:
    """The protocols `Backbone` and `MultiStepBackbone` over a `PixelTransformer`; encode and decode are the identity."""

    def __init__(self, options: dict[str, Any] | None = None, name: str = "pixel", licence: str = "Apache-2.0") -> None:
        unknown = set(options or {}) - set(DEFAULTS)
        if unknown:
            raise ValueError(
                f"options: expected {', '.join(sorted(DEFAULTS))}, got {', '.join(sorted(unknown))}; remove the unknown ones"
            )
        self.options = DEFAULTS | (options or {})
        network_options = {key: value for key, value in self.options.items() if key not in _OF_BACKBONE}
        self.network = PixelTransformer(**network_options)
        patch, steps = int(self.options["patch_px"]), int(self.options["sampling_steps"])
        is_flow = float(self.options["residual_std"]) > 0  # made for many steps: one step from the input means nothing
        self.spec = BackboneSpec(
            name=name,
            kind="flow",
            scale=None,
            size_multiple=patch,
            tile_px=512,
            overlap_px=64,
            start_sigma=None if is_flow else float(self.options["start_sigma"]),
            step_length=None if is_flow else float(self.options["step_length"]) or None,
            latent_channels=3,
            latent_stride=1,
            conditioning_dim=int(self.options["conditioning_dim"]),
            bytes_per_pixel=int(self.options["width"]) * 4 * 16 // patch**2 + 64,
            parameters=parameter_count(self.network),
            licence=licence,
            sampling=Sampling(steps=steps, shift=float(self.options["sampling_shift"])) if steps else None,
        )
        self.process: Process = FlowProcess(float(self.options["time_mean"]), float(self.options["time_std"]))

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


def flow_from_one_step(state: Mapping[str, Tensor], start_sigma: float, residual_std: float) -> dict[str, Tensor]:
    """Weights from which a network with `residual_std` starts where a one-step network without it has arrived.

    The one-step network sees [z_lq, z_lq] and answers v, so that its result is z_lq - start_sigma v. The new one ignores the
    noise at first, and its mean is m = start_sigma v / residual_std, its gate 0: from pure noise its first guess at the clean
    picture is that result (up to the network's answer to another time).

    Args:
        state: of a `PixelTransformer` with residual_std 0.
        start_sigma: that it was trained at.
        residual_std: of the new network, > 0; its other options are the same.
    """
    new = dict(state)
    weight = new["transformer.patch_embed.proj.weight"]
    of_noise, of_lq = weight.chunk(2, 1)
    new["transformer.patch_embed.proj.weight"] = torch.cat((torch.zeros_like(of_noise), of_noise + of_lq), 1)
    for name in ("transformer.proj_out.weight", "transformer.proj_out.bias"):
        mean = new[name] * (start_sigma / residual_std)
        new[name] = torch.cat((mean, torch.zeros_like(mean)))
    return new


def load(path: Path, info: dict[str, Any]) -> PixelBackbone:
    """Build the backbone that `info` (a weight file's header) describes and load its weights strictly."""
    from ..weights import load_into, load_state_dict

    backbone = PixelBackbone(info["options"], name=str(info.get("name", path.stem)), licence=str(info.get("licence", "unknown")))
    state = {name: tensor.float() for name, tensor in load_state_dict(path).items()}
    load_into(backbone.network, state, str(path))
    backbone.network.eval().requires_grad_(False)
    return backbone
