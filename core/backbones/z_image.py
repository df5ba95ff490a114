"""`z_image`: Z-Image-Turbo 6B, a single-stream diffusion transformer on the FLUX.1 latent space."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ..checks import check_same_shape, did_you_mean
from ..compat import import_third_party
from ..records import Conditioning
from ..weights import WeightsError
from .autoencoders import STRIDE, Codec, check_sides, describe_autoencoder, plain_config
from .base import BackboneSpec, parameter_count
from .conditions import tokens_per_sample
from .files import Component, count_blocks
from .flux2 import bytes_per_pixel

ARCHITECTURE = "z_image"
PATCH = 2
LICENCE = "Apache-2.0"
LATENTS = ("scaled", "raw")
SCALING, SHIFT = 0.3611, 0.1159  # of the FLUX.1 latent space: scaled = (raw - shift) scaling
TRANSFORMER_CLASS = "ZImageTransformer2DModel"
TRANSFORMER: dict[str, Any] = {
    "all_patch_size": (PATCH,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": (32, 48, 48),
    "axes_lens": (1536, 512, 512),
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": SCALING,
    "shift_factor": SHIFT,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
AUTOENCODER: dict[str, Any] = {"class": "AutoencoderKL", "options": _VAE}
TINY: dict[str, Any] = {
    "transformer": TRANSFORMER
    | {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": (4, 6, 6),
        "axes_lens": (256, 64, 64),
    },
    "vae": {
        "class": "AutoencoderKL",
        "options": _VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 4},
    },
}
COMPONENTS = (
    Component(
        "transformer",
        "diffusion_models",
        ("z_image_turbo_bf16.safetensors",),
        "Tongyi-MAI/Z-Image-Turbo or Comfy-Org/z_image_turbo on Hugging Face",
    ),
    Component(
        "vae",
        "vae",
        ("ae.safetensors",),
        "Comfy-Org/z_image_turbo on Hugging Face",
        stand_ins=("taef1_encoder.pth", "taef1_encoder.safetensors"),
    ),
)
TEXT_ENCODER = Component("text_encoder", "text_encoders", ("qwen_3_4b.safetensors",), "Comfy-Org/z_image_turbo on Hugging Face")


class ZImageBackbone:
    """The `Backbone` protocol over `ZImageTransformer2DModel` and an autoencoder of the FLUX.1 latent space.

        velocity(z, sigma) = -transformer(z, 1 - sigma)

    The model's clock runs from 0 at noise to 1 at data, and its output is data - noise: both are turned here.

    Two conventions for the state exist, and weights are made for one of them:

        scaled:  z = (mean - 0.1159) 0.3611,  decode(z / 0.3611 + 0.1159)   as the base model; zero velocity is the identity
        raw:     z = mean,                    decode(z / 0.3611 + 0.1159)   as the released one-step weights

    The state z and the velocity are float32, whatever the precision of the modules. At batch 1, or with equal numbers of
    tokens, attention runs without a mask. Tiny autoencoders (TAEF1) work on scaled latents.

    Args:
        transformer: as `diffusers.ZImageTransformer2DModel`.
        autoencoder: AutoencoderKL or a tiny one of as many channels.
        name: for reports.
        licence: of the weights.
        start_sigma: noise level that one-step restoration assumes.
        step_length: how far its step goes; 0 is start_sigma.
        latents: `scaled` or `raw`.
        vae_tile_px: see `Codec`.

    Source:
        StrSR, arXiv:2603.06275v1, and jkwang28/StrSR@4a5c99e test_zimage.py; specification strsr.md sections 1.5 and 5 item 2.
        Differs in that the posterior's mean is taken unless a generator is given.
    """

    architecture: ClassVar[str] = ARCHITECTURE

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: nn.Module,
        *,
        name: str = "Z-Image-Turbo",
        licence: str = LICENCE,
        start_sigma: float = 0.8,
        latents: str = "scaled",
        vae_tile_px: int = 0,
        step_length: float = 0.0,
    ) -> None:
        if latents not in LATENTS:
            raise ValueError(f"latents: expected {' or '.join(LATENTS)}, got {latents!r}; {did_you_mean(latents, LATENTS)}")
        self.transformer: Any = transformer
        self.autoencoder: Any = autoencoder
        self.codec = Codec(autoencoder, vae_tile_px)
        self.latents = latents
        config = plain_config(transformer)
        if config["in_channels"] != self.codec.channels:
            raise ValueError(
                f"autoencoder: expected {config['in_channels']} latent channels as the transformer takes, "
                f"got {self.codec.channels}; use the autoencoder of this model"
            )
        self.conditioning_dim = int(config["cap_feat_dim"])
        self.options: dict[str, Any] = {
            "transformer": config,
            "vae": describe_autoencoder(autoencoder),
            "start_sigma": start_sigma,
            "latents": latents,
        } | ({"step_length": step_length} if step_length else {})
        self.spec = BackboneSpec(
            name=name,
            kind="flow",
            scale=None,
            size_multiple=STRIDE * PATCH,
            tile_px=1152,
            overlap_px=64,
            start_sigma=start_sigma,
            step_length=step_length or None,
            latent_channels=self.codec.channels,
            latent_stride=STRIDE,
            conditioning_dim=self.conditioning_dim,
            bytes_per_pixel=bytes_per_pixel(config["dim"], autoencoder),
            parameters=parameter_count(transformer, autoencoder),
            licence=licence,
            token_px=STRIDE * PATCH,
            files=tuple(map(str, (*COMPONENTS, TEXT_ENCODER))),
            is_antialiased=False,
            identity=(SCALING, -SHIFT * SCALING) if latents == "raw" else (1.0, 0.0),
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`transformer` and `vae`."""
        yield "transformer", self.transformer
        yield "vae", self.autoencoder

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, C, H / 8, W / 8] float32 in the convention of `latents`.

        Raises:
            ValueError: a side that is not a multiple of 16.
        """
        check_sides(image, STRIDE * PATCH)
        z = self.codec.encode(image, generator)
        if self.codec.is_tiny:
            return z if self.latents == "scaled" else z / SCALING + SHIFT
        return (z - SHIFT) * SCALING if self.latents == "scaled" else z

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Velocity noise - clean at `z`, float32. `z_lq` only has to have its shape: the model sees nothing but its state."""
        check_same_shape(z, z_lq, "z", "z_lq")
        dial: Tensor = self.transformer.cap_embedder[1].weight  # no adapter and no quantisation ever replaces it
        state = z.to(dial.device, dial.dtype)
        # float32 0.8 is not 8/10: rounding keeps 1 - sigma at 0.2, so that the transformer's timestep is 200 and not 199.99998
        clock = ((1 - sigma.to(dial.device, torch.float64)) * 1e6).round() / 1e6
        tokens = tokens_per_sample(conditioning, z.shape[0], self.conditioning_dim, state)
        latents = list(state.unsqueeze(2).unbind(0))
        out = self.transformer(latents, clock.float().expand(z.shape[0]), tokens, return_dict=False)[0]
        return -torch.stack(list(out)).squeeze(2).to(z.device, torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, 8 h, 8 w] float32, about [-1, 1], not clamped. Scaled latents, whatever `latents` says."""
        return self.codec.decode(z if self.codec.is_tiny else z / SCALING + SHIFT)


def to_diffusers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Names of the original layout (fused qkv), as single files have them, to diffusers' names.

    Raises:
        WeightsError: another model's weights.
    """
    if f"all_x_embedder.{PATCH}-1.weight" in state:
        return dict(state)
    if "x_embedder.weight" not in state or "cap_embedder.1.weight" not in state:
        found = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{source}: expected a Z-Image transformer (x_embedder, cap_embedder and others), got {found}; "
            f"choose {COMPONENTS[0].file_names[0]}"
        )
    converters: Any = import_third_party("diffusers.loaders.single_file_utils")
    return converters.convert_z_image_transformer_checkpoint_to_diffusers(dict(state))


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The transformer's options from the shapes of its tensors (diffusers' names).

    Raises:
        WeightsError: a tensor that says the size is missing.
    """
    try:
        width, patch = state[f"all_x_embedder.{PATCH}-1.weight"].shape
        head = state["layers.0.attention.norm_q.weight"].numel()
        caption = state["cap_embedder.1.weight"].shape[1]
    except KeyError as error:
        raise WeightsError(f"weights: expected a Z-Image transformer, found no {error.args[0]}; choose another file") from error
    return TRANSFORMER | {
        "in_channels": patch // PATCH**2,
        "dim": width,
        "n_layers": count_blocks(state, "layers."),
        "n_refiner_layers": count_blocks(state, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": caption,
        "axes_dims": (head // 4, 3 * head // 8, 3 * head // 8),
    }
