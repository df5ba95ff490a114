"""`stable_diffusion`: the UNets of SD 1.5, SD 2 base and SDXL, conditioned by channels or by a control branch."""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ..checks import check_image, check_range, check_same_shape
from ..diffusion import Process, VariancePreserving
from ..images import from_model_range
from ..records import Conditioning
from .autoencoders import STRIDE, Codec, check_sides, describe_autoencoder, plain_config
from .base import BackboneSpec, Sampling, check_control_scale, parameter_count
from .stable_diffusion_files import (
    AUTOENCODER as AUTOENCODER,
)
from .stable_diffusion_files import (
    CHANNELS,
    LICENCES,
    NAMES,
    NEGATIVE,
    SCALINGS,
    TEXT_TOKENS,
    VERSIONS,
    WIDTHS,
)
from .stable_diffusion_files import (
    COMPONENTS as COMPONENTS,
)
from .stable_diffusion_files import (
    COMPONENTS_OF as COMPONENTS_OF,
)
from .stable_diffusion_files import (
    CONTROL as CONTROL,
)
from .stable_diffusion_files import (
    CONTROL_CLASS as CONTROL_CLASS,
)
from .stable_diffusion_files import (
    TEXT_ENCODER as TEXT_ENCODER,
)
from .stable_diffusion_files import (
    TINY as TINY,
)
from .stable_diffusion_files import (
    TINY_XL as TINY_XL,
)
from .stable_diffusion_files import (
    TRANSFORMER as TRANSFORMER,
)
from .stable_diffusion_files import (
    TRANSFORMER_CLASS as TRANSFORMER_CLASS,
)
from .stable_diffusion_files import (
    control_options as control_options,
)
from .stable_diffusion_files import (
    hint_options as hint_options,
)
from .stable_diffusion_files import (
    infer_options as infer_options,
)
from .stable_diffusion_files import (
    to_diffusers as to_diffusers,
)

ARCHITECTURE = "stable_diffusion"


class StableDiffusionBackbone:
    """The `MultiStepBackbone` protocol over `UNet2DConditionModel` and `AutoencoderKL`, with epsilon prediction.

        z = scaling mean,   epsilon = unet(z or [z, z_lq], k),   k = 999 = noise

    scaling is 0.18215 (SD 1.5, SD 2) or 0.13025 (SDXL). The enlarged input conditions the model in one of two ways:

        channels: its latents beside the noisy ones; `conv_in` has twice the channels, the new half zero at first
        control: the picture itself, in [0, 1], through a `ControlNetModel` with an encoder of its own

    SDXL is also told sizes: original and target size are those of what the UNet sees, nothing is cropped away.

    Args:
        unet: `diffusers.UNet2DConditionModel` for 4 latent channels, or for 8 as made by `widen`; widened here, in place, where
            there is no control branch.
        autoencoder: AutoencoderKL or a tiny one of 4 channels.
        control: `diffusers.ControlNetModel` of that UNet, or None for conditioning by channels.
        name: for reports.
        licence: of the weights; empty: that of the version.
        version: `sd15`, `sd2` or `sdxl`; empty: what the width of the text tokens says.
        control_scale: of the control branch's answers.
        text_tokens: zeros that stand in for a prompt where none is given and none is set as `empty`.
        empty: what stands for no prompt: the empty prompt's embeddings, see `conditioning.prompts`.
        vae_tile_px: see `Codec`.

    Source:
        ASASR, arXiv:2605.23264, asasr.md 1.3; DP2O-SR, arXiv:2510.18851v1, dp2o-sr.md 3.2 and 3.3 (C-SD2).
    """

    architecture: ClassVar[str] = ARCHITECTURE

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: nn.Module,
        control: nn.Module | None = None,
        *,
        name: str = "",
        licence: str = "",
        version: str = "",
        control_scale: float = 1.0,
        text_tokens: int = TEXT_TOKENS,
        empty: Conditioning | None = None,
        vae_tile_px: int = 0,
    ) -> None:
        self.codec = Codec(autoencoder, vae_tile_px)
        config = plain_config(unet)
        self.is_xl = config.get("addition_embed_type") == "text_time"
        self.version = version or _version(config)
        if self.version not in VERSIONS or self.is_xl != (self.version == "sdxl"):
            raise ValueError(
                f"version: expected {'sdxl' if self.is_xl else 'sd15 or sd2'} for this UNet, got {self.version!r}; leave it out"
            )
        _check_parts(config, self.codec.channels, control)
        self.unet: Any = unet
        if control is None and config["in_channels"] == CHANNELS:
            widen(unet)
            config = plain_config(unet)
        self.autoencoder: Any = autoencoder
        self.control: Any = control
        self.text_tokens, self.empty = text_tokens, empty
        self.process: Process = VariancePreserving()
        self.conditioning_dim = int(config["cross_attention_dim"])
        self.pooled_dim = _pooled_width(config) if self.is_xl else 0
        self.control_scale = check_range(control_scale, "control_scale", 0.0, 10.0)
        self.scaling = SCALINGS[self.version]
        own = Sampling(50, "ddpm", 3.5, "classifier_free", NEGATIVE) if control is not None else Sampling(
            28, "dpm", 1.0, "classifier_free"
        )  # fmt: skip
        self.options: dict[str, Any] = {
            "unet": config,
            "vae": describe_autoencoder(autoencoder),
            **({} if control is None else {"control": plain_config(control)}),
            "version": self.version,
            "text_tokens": text_tokens,
        }
        self.spec = BackboneSpec(
            name=name or NAMES[self.version] + (" with a control branch" if control is not None else ""),
            kind="flow",
            scale=None,
            size_multiple=STRIDE * 2 ** (len(config["block_out_channels"]) - 1),
            tile_px=1024 if self.is_xl else 512,
            overlap_px=64,
            start_sigma=None,
            latent_channels=CHANNELS,
            latent_stride=STRIDE,
            conditioning_dim=self.conditioning_dim,
            bytes_per_pixel=_bytes_per_pixel(config, autoencoder),
            parameters=parameter_count(unet, autoencoder, *([] if control is None else [control])),
            licence=licence or LICENCES[self.version],
            files=tuple(map(str, (*COMPONENTS_OF[self.version], *([] if control is None else [CONTROL])))),
            sampling=own,
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`unet`, `control` where there is one, and `vae`."""
        yield "unet", self.unet
        if self.control is not None:
            yield "control", self.control
        yield "vae", self.autoencoder

    def adjusted(self, *, guidance: float | None = None, control_scale: float | None = None) -> "StableDiffusionBackbone":
        """The same modules with another weight of the control branch; guidance is the sampler's affair here.

        Raises:
            ValueError: not a number in range, or a weight other than 1 without a control branch.
        """
        del guidance
        made = copy.copy(self)
        if control_scale is not None:
            made.control_scale = check_control_scale(control_scale, self.control, self.spec.name)
        return made

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 4, H / 8, W / 8] float32.

        Raises:
            ValueError: a side that is not a multiple of 8.
        """
        check_sides(image, STRIDE)
        z = self.codec.encode(image, generator)
        return z if self.codec.is_tiny else z * self.scaling

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The enlarged input's latents, or with a control branch the input itself in [0, 1]."""
        if self.control is None:
            return self.encode(image, generator=generator)
        check_sides(image, STRIDE)
        return from_model_range(check_image(image, "image", channels=(3,)).float())

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The noise in `z` at timestep `time` [B], int64 in 0..999; float32.

        Raises:
            ValueError: a condition of another size, a time that is no timestep, or embeddings of another width.
        """
        if time.is_floating_point():
            raise ValueError(f"time: expected integer timesteps 0..999, got {time.dtype}; a sigma belongs to a flow")
        dial: Tensor = self.unet.conv_out.weight  # no adapter and no quantisation ever replaces it
        batch = z.shape[0]
        state, lq = (x.to(dial.device, dial.dtype) for x in (z, z_lq))
        text, added = self._told(conditioning, batch, state)
        given: dict[str, Any] = {
            "timestep": time.to(dial.device).expand(batch), "encoder_hidden_states": text, "added_cond_kwargs": added,
            "return_dict": False,
        }  # fmt: skip
        if self.control is None:
            check_same_shape(z_lq, z, "z_lq", "z")
            out = self.unet(torch.cat((state, lq), 1), **given)[0]
        else:
            if z_lq.shape != (batch, 3, STRIDE * z.shape[-2], STRIDE * z.shape[-1]):
                raise ValueError(
                    f"z_lq: expected the picture {(batch, 3, STRIDE * z.shape[-2], STRIDE * z.shape[-1])}, "
                    f"got {tuple(z_lq.shape)}; use encode_lq"
                )
            down, middle = self.control(state, controlnet_cond=lq, conditioning_scale=self.control_scale, **given)
            out = self.unet(
                state, down_block_additional_residuals=down, mid_block_additional_residual=middle, **given
            )[0]  # fmt: skip
        return out.to(z.device, torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        """[B, 4, h, w] -> [B, 3, 8 h, 8 w] float32, about [-1, 1], not clamped."""
        return self.codec.decode(z if self.codec.is_tiny else z / self.scaling)

    def _told(self, conditioning: Conditioning | None, batch: int, like: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        told = conditioning or self.empty
        if told is None:
            told = Conditioning(like.new_zeros(1, self.text_tokens, self.conditioning_dim))
        text, pooled = told.embeddings, told.pooled
        if text.ndim != 3 or text.shape[0] not in (1, batch) or text.shape[2] != self.conditioning_dim:
            raise ValueError(
                f"conditioning: expected embeddings [{batch} or 1, N, {self.conditioning_dim}], got {tuple(text.shape)}; "
                "encode the prompt for this backbone"
            )
        text = text.to(like.device, like.dtype).expand(batch, -1, -1)
        if not self.is_xl:
            return text, None
        if pooled is None:
            pooled = text.new_zeros(1, self.pooled_dim)
        if pooled.ndim != 2 or pooled.shape[0] not in (1, batch) or pooled.shape[1] != self.pooled_dim:
            raise ValueError(
                f"conditioning: expected pooled embeddings [{batch} or 1, {self.pooled_dim}], got {tuple(pooled.shape)}; "
                "encode the prompt for this backbone"
            )
        height, width = (STRIDE * side for side in like.shape[-2:])
        sizes = like.new_tensor([height, width, 0, 0, height, width]).expand(batch, 6)
        return text, {"text_embeds": pooled.to(like.device, like.dtype).expand(batch, -1), "time_ids": sizes}


def widen(unet: nn.Module) -> nn.Module:
    """Give a UNet's first convolution as many input channels again, with weights of zero: nothing changes at first.

    Args:
        unet: `diffusers.UNet2DConditionModel`; changed in place.

    Source:
        asasr.md section 1.3: condition latents beside the noisy ones.
    """
    network: Any = unet
    old: Any = network.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, padding=old.padding, device="meta")
    weight = torch.cat((old.weight.data, torch.zeros_like(old.weight.data)), 1)
    for name, value, like in (("weight", weight, old.weight), ("bias", old.bias.data, old.bias)):
        setattr(new, name, nn.Parameter(value, requires_grad=like.requires_grad))
    network.conv_in = new
    network.register_to_config(in_channels=2 * old.in_channels)
    return unet


def _version(config: Mapping[str, Any]) -> str:
    return "sdxl" if config.get("addition_embed_type") == "text_time" else WIDTHS.get(int(config["cross_attention_dim"]), "sd2")


def _pooled_width(config: Mapping[str, Any]) -> int:
    return int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])


def _bytes_per_pixel(config: Mapping[str, Any], autoencoder: nn.Module) -> int:
    """Rough activation memory per image pixel in 16 bits: the decoder's full-resolution maps, or the UNet's finest ones."""
    options = describe_autoencoder(autoencoder)["options"]
    widths = options.get("decoder_block_out_channels") or options.get("block_out_channels") or (options.get("width", 64),)
    decoder = 5 * 2 * widths[min(1, len(widths) - 1)]
    return max(decoder, 2 * 24 * int(config["block_out_channels"][0]) // STRIDE**2)


def _check_parts(config: Mapping[str, Any], channels: int, control: nn.Module | None) -> None:
    if channels != CHANNELS:
        raise ValueError(f"autoencoder: expected {CHANNELS} latent channels, got {channels}; use the autoencoder of this model")
    wanted = (CHANNELS,) if control is not None else (CHANNELS, 2 * CHANNELS)
    if config["in_channels"] not in wanted:
        raise ValueError(
            f"unet: expected {' or '.join(map(str, wanted))} input channels, got {config['in_channels']}; inpainting and depth "
            "models do not fit, nor does a UNet conditioned by channels beside a control branch"
        )
    if control is None:
        return
    other = plain_config(control)
    kept = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
    differing = [f"{key} {other[key]} instead of {config[key]}" for key in kept if _plain(other[key]) != _plain(config[key])]
    if differing:
        raise ValueError(f"control: expected a branch of this UNet, got {', '.join(differing)}; choose the one made for it")


def _plain(value: Any) -> str:
    return json.dumps(value)  # a list and a tuple of the same values are one
