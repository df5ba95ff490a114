"""`flux2_klein`: FLUX.2 [klein] 4B, a diffusion transformer on 2x2 patches of the FLUX.2 latent space."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..checks import check_same_shape
from ..compat import import_third_party
from ..records import Conditioning
from ..weights import WeightsError
from .autoencoders import STRIDE, Codec, check_sides, describe_autoencoder, plain_config
from .base import BackboneSpec, parameter_count
from .conditions import tokens_per_sample
from .files import Component, count_blocks

ARCHITECTURE = "flux2_klein"
PATCH = 2  # latent elements per token and axis
LICENCE = "Apache-2.0"
TRANSFORMER_CLASS = "Flux2Transformer2DModel"
TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "guidance_embeds": False,
}
AUTOENCODER: dict[str, Any] = {"class": "AutoencoderKLFlux2", "options": {}}
TINY: dict[str, Any] = {
    "transformer": TRANSFORMER
    | {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,  # three hidden states of a tiny text encoder side by side
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    "vae": {
        "class": "AutoencoderKLFlux2",
        "options": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32},
    },
}
COMPONENTS = (
    Component(
        "transformer",
        "diffusion_models",
        ("flux-2-klein-base-4b.safetensors", "flux-2-klein-base-4b-fp8.safetensors"),
        "black-forest-labs/FLUX.2-klein-base-4B or Comfy-Org/Flux-2-Klein-4B on Hugging Face",
        rounded=("flux-2-klein-base-4b-fp8.safetensors",),
    ),
    Component(
        "vae",
        "vae",
        ("flux2-vae.safetensors",),
        "Comfy-Org/Flux-2-Klein-4B on Hugging Face",
        stand_ins=("taef2_encoder.pth", "taef2_encoder.safetensors"),
    ),
)
TEXT_ENCODER = Component("text_encoder", "text_encoders", ("qwen_3_4b.safetensors",), "Comfy-Org/Flux-2-Klein-4B on Hugging Face")


class Flux2Backbone:
    """The `Backbone` protocol over `Flux2Transformer2DModel` and an autoencoder of the FLUX.2 latent space.

        z = (unshuffle(encode(image), 2) - mean) / sqrt(variance + eps),   velocity = transformer(pack(z), sigma)

    with the running statistics of the autoencoder's batch normalisation. The state z and the velocity are float32, whatever
    the precision of the modules. Tiny autoencoders (TAEF2) work on normalised latents and need no statistics.

    The transformer multiplies sigma by 1000 in its own precision. In bfloat16 timesteps above 512 become multiples of 4: 800,
    the level of the released one-step weights, is exact.

    Args:
        transformer: as `diffusers.Flux2Transformer2DModel`, without guidance embedding.
        autoencoder: AutoencoderKLFlux2 or a tiny one of as many channels.
        name: for reports.
        licence: of the weights.
        start_sigma: noise level that one-step restoration assumes.
        step_length: how far its step goes; 0 is start_sigma.
        vae_tile_px: see `Codec`.

    Source:
        StrSR, arXiv:2603.06275v1, and jkwang28/StrSR@4a5c99e test_flux.py; specification strsr.md section 1.4. Differs in that
        the posterior's mean is taken unless a generator is given, and position ids are not rounded to bfloat16.
    """

    architecture: ClassVar[str] = ARCHITECTURE

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: nn.Module,
        *,
        name: str = "FLUX.2 klein",
        licence: str = LICENCE,
        start_sigma: float = 0.8,
        latents: str = "native",
        vae_tile_px: int = 0,
        step_length: float = 0.0,
    ) -> None:
        if latents != "native":
            raise ValueError(f"latents: expected 'native', the only convention of {ARCHITECTURE}, got {latents!r}; leave it out")
        self.transformer: Any = transformer
        self.autoencoder: Any = autoencoder
        self.codec = Codec(autoencoder, vae_tile_px)
        self.latents = latents
        config = plain_config(transformer)
        channels = PATCH**2 * self.codec.channels
        if config["in_channels"] != channels:
            raise ValueError(
                f"autoencoder: expected {config['in_channels'] // PATCH**2} latent channels as the transformer takes, "
                f"got {self.codec.channels}; use the autoencoder of this model"
            )
        self.conditioning_dim = int(config["joint_attention_dim"])
        self._statistics = None if self.codec.is_tiny else _statistics(autoencoder)
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
            latent_channels=channels,
            latent_stride=STRIDE * PATCH,
            conditioning_dim=self.conditioning_dim,
            bytes_per_pixel=bytes_per_pixel(config["num_attention_heads"] * config["attention_head_dim"], autoencoder),
            parameters=parameter_count(transformer, autoencoder),
            licence=licence,
            token_px=STRIDE * PATCH,
            files=tuple(map(str, (*COMPONENTS, TEXT_ENCODER))),
            is_antialiased=False,
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`transformer` and `vae`."""
        yield "transformer", self.transformer
        yield "vae", self.autoencoder

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 4 C, H / 16, W / 16] float32, patched and normalised.

        Raises:
            ValueError: a side that is not a multiple of 16.
        """
        check_sides(image, STRIDE * PATCH)
        z = F.pixel_unshuffle(self.codec.encode(image, generator), PATCH)
        if self._statistics is None:
            return z
        mean, deviation = (x.to(z.device) for x in self._statistics)
        return (z - mean) / deviation

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Velocity noise - clean at `z`, float32. `z_lq` only has to have its shape: the model sees nothing but its state."""
        check_same_shape(z, z_lq, "z", "z_lq")
        dial: Tensor = self.transformer.x_embedder.weight  # no adapter and no quantisation ever replaces it
        state = z.to(dial.device, dial.dtype).flatten(2).transpose(1, 2)
        clock = sigma.to(dial.device, torch.float32).expand(z.shape[0])
        image_ids = _position_ids(z.shape[-2], z.shape[-1], dial.device)
        tokens = tokens_per_sample(conditioning, z.shape[0], self.conditioning_dim, state)
        if len({token.shape[0] for token in tokens}) == 1:
            out = self._call(state, torch.stack(tokens), clock, image_ids)
        else:  # the transformer takes no mask, so samples with different numbers of tokens go one by one
            rows = range(z.shape[0])
            out = torch.cat([self._call(state[i : i + 1], tokens[i][None], clock[i : i + 1], image_ids) for i in rows])
        return out.transpose(1, 2).reshape(z.shape).to(z.device, torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        """[B, 4 C, h, w] -> [B, 3, 16 h, 16 w] float32, about [-1, 1], not clamped."""
        if self._statistics is not None:
            mean, deviation = (x.to(z.device) for x in self._statistics)
            z = z * deviation + mean
        return self.codec.decode(F.pixel_shuffle(z, PATCH))

    def _call(self, state: Tensor, tokens: Tensor, clock: Tensor, image_ids: Tensor) -> Tensor:
        text_ids = torch.zeros(tokens.shape[1], 4, dtype=torch.int64, device=state.device)
        text_ids[:, 3] = torch.arange(tokens.shape[1], device=state.device)
        return self.transformer(
            hidden_states=state,
            encoder_hidden_states=tokens,
            timestep=clock,
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=None,
            return_dict=False,
        )[0]


def _statistics(autoencoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the packed latents, [1, 4 C, 1, 1] float32, kept apart from later changes of precision."""
    network: Any = autoencoder
    mean = network.bn.running_mean.detach().float().view(1, -1, 1, 1)
    variance = network.bn.running_var.detach().float().view(1, -1, 1, 1)
    return mean.clone(), (variance + float(network.config["batch_norm_eps"])).sqrt()


def _position_ids(height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column, 0) of every token, row by row, [height * width, 4]."""
    ids = torch.zeros(height, width, 4, dtype=torch.int64, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)
    return ids.flatten(0, 1)


def bytes_per_pixel(width: int, autoencoder: nn.Module) -> int:
    """Rough activation memory per image pixel in 16 bits: the decoder's full-resolution maps, or the transformer's streams."""
    options = describe_autoencoder(autoencoder)["options"]
    widths = options.get("decoder_block_out_channels") or options.get("block_out_channels") or (options.get("width", 64),)
    decoder = 5 * 2 * widths[min(1, len(widths) - 1)]  # five maps of the second-finest width live at once
    transformer = 2 * width * 16 // (STRIDE * PATCH) ** 2
    return max(decoder, transformer)


def to_diffusers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Names of the original layout (`double_blocks`, fused qkv), as single files have them, to diffusers' names.

    Raises:
        WeightsError: another model's weights.
    """
    if "x_embedder.weight" in state and "context_embedder.weight" in state:
        return dict(state)
    if "double_stream_modulation_img.lin.weight" not in state:
        found = ", ".join(sorted(state)[:3])
        raise WeightsError(
            f"{source}: expected a FLUX.2 transformer (double_stream_modulation_img and others), got {found}; "
            f"choose {COMPONENTS[0].file_names[0]}"
        )
    converters: Any = import_third_party("diffusers.loaders.single_file_utils")
    return converters.convert_flux2_transformer_checkpoint_to_diffusers(dict(state))


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The transformer's options from the shapes of its tensors (diffusers' names).

    Raises:
        WeightsError: a tensor that says the size is missing.
    """
    try:
        width, channels = state["x_embedder.weight"].shape
        head = state["transformer_blocks.0.attn.norm_q.weight"].numel()
        hidden = state["transformer_blocks.0.ff.linear_out.weight"].shape[1]
        time_channels = state["time_guidance_embed.timestep_embedder.linear_1.weight"].shape[1]
        joint = state["context_embedder.weight"].shape[1]
    except KeyError as error:
        raise WeightsError(f"weights: expected a FLUX.2 transformer, found no {error.args[0]}; choose another file") from error
    return TRANSFORMER | {
        "in_channels": channels,
        "num_layers": count_blocks(state, "transformer_blocks."),
        "num_single_layers": count_blocks(state, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": joint,
        "timestep_guidance_channels": time_channels,
        "mlp_ratio": hidden / width,
        "axes_dims_rope": (head // 4,) * 4,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in state,
    }
