"""`flux1`: FLUX.1-dev, a diffusion transformer of 12 B on 2x2 patches, conditioned by tokens of a picture or a control branch."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..checks import check_range, check_same_shape, did_you_mean
from ..diffusion import FlowProcess, Process
from ..records import Conditioning
from ..resize import bicubic
from .autoencoders import STRIDE, Codec, check_sides, describe_autoencoder, plain_config
from .base import BackboneSpec, Sampling, check_control_scale, parameter_count
from .flux1_files import (
    AUTOENCODER as AUTOENCODER,
)
from .flux1_files import (
    COMPONENTS as COMPONENTS,
)
from .flux1_files import (
    CONTROL as CONTROL,
)
from .flux1_files import (
    CONTROL_CLASS as CONTROL_CLASS,
)
from .flux1_files import (
    LICENCE,
    PATCH,
    TEXT_TOKENS,
)
from .flux1_files import (
    TEXT_ENCODER as TEXT_ENCODER,
)
from .flux1_files import (
    TINY as TINY,
)
from .flux1_files import (
    TRANSFORMER as TRANSFORMER,
)
from .flux1_files import (
    TRANSFORMER_CLASS as TRANSFORMER_CLASS,
)
from .flux1_files import (
    control_options as control_options,
)
from .flux1_files import (
    infer_options as infer_options,
)
from .flux1_files import (
    to_diffusers as to_diffusers,
)
from .flux1_tokens import SCOPES, Scope, double_block, joint_forward, position_ids, single_block
from .flux2 import bytes_per_pixel
from .z_image import SCALING, SHIFT

ARCHITECTURE = "flux1"
STRIDES = (1, 2)


class Flux1Backbone:
    """The `MultiStepBackbone` protocol over `FluxTransformer2DModel` and an autoencoder of the FLUX.1 latent space.

        z = (mean - 0.1159) 0.3611,   velocity = unpack(transformer(pack(z), sigma)),   sigma 1 = noise

    z and the velocity lie on the unpacked grid, [B, 16, H / 8, W / 8] float32; tokens are its 2x2 patches, channel-major. The
    enlarged input conditions the model in one of two ways:

        tokens: appended to the sequence at the same positions, modulated as at the clean end (`flux1_tokens`)
        control: added to the tokens of a second, small transformer whose answers go into the double blocks

    The transformer rounds sigma to its own precision, as the model was trained.

    Args:
        transformer: as `diffusers.FluxTransformer2DModel`.
        autoencoder: AutoencoderKL or a tiny one of as many channels.
        control: `diffusers.FluxControlNetModel` of the same width, or None for conditioning by tokens.
        name: for reports.
        licence: of the weights.
        lora_scope: `all`, or `condition_only`: an attached adapter acts on the condition's tokens alone; then it must stay
            attached, since noisy tokens use the unadapted weights.
        condition_stride: 1, or 2 for a condition of half the resolution: a quarter of its tokens.
        guidance: what the model's guidance input is told.
        control_scale: of the control branch's answers.
        text_tokens: zeros that stand in for a prompt where none is given and none is set as `empty`.
        empty: what stands for no prompt: the empty prompt's embeddings, see `conditioning.prompts`.
        vae_tile_px: see `Codec`.

    Source:
        ASASR, arXiv:2605.23264, asasr.md 1.2 and 3.2; DP2O-SR, arXiv:2510.18851v1, dp2o-sr.md 3.2 and 3.3.
    """

    architecture: ClassVar[str] = ARCHITECTURE

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: nn.Module,
        control: nn.Module | None = None,
        *,
        name: str = "",
        licence: str = LICENCE,
        lora_scope: str = "all",
        condition_stride: int = 1,
        guidance: float | None = None,
        control_scale: float = 1.0,
        text_tokens: int = TEXT_TOKENS,
        empty: Conditioning | None = None,
        vae_tile_px: int = 0,
    ) -> None:
        if lora_scope not in SCOPES:
            raise ValueError(
                f"lora_scope: expected {' or '.join(SCOPES)}, got {lora_scope!r}; {did_you_mean(lora_scope, SCOPES)}"
            )
        if condition_stride not in STRIDES or (control is not None and condition_stride != 1):
            wanted = "1 with a control branch" if control is not None else "1 or 2"
            raise ValueError(f"condition_stride: expected {wanted}, got {condition_stride}; 1 is the full resolution")
        if control is not None and lora_scope != "all":
            raise ValueError("lora_scope: expected 'all' with a control branch, which has no condition tokens; leave it out")
        self.transformer: Any = transformer
        self.autoencoder: Any = autoencoder
        self.control: Any = control
        self.codec = Codec(autoencoder, vae_tile_px)
        self.lora_scope: Scope = "condition_only" if lora_scope == "condition_only" else "all"
        self.condition_stride, self.text_tokens, self.empty = condition_stride, text_tokens, empty
        self.process: Process = FlowProcess()
        config = plain_config(transformer)
        _check_parts(config, self.codec.channels, control)
        self.takes_guidance = bool(config["guidance_embeds"])
        self.conditioning_dim, self.pooled_dim = int(config["joint_attention_dim"]), int(config["pooled_projection_dim"])
        own = Sampling(25, "euler", 2.5, "embedded") if control is not None else Sampling(28, "euler", 1.0, "embedded")
        self.guidance = own.guidance if guidance is None else check_range(guidance, "guidance", 0.0, 100.0)
        self.control_scale = check_range(control_scale, "control_scale", 0.0, 10.0)
        self._double, self._single = double_block, single_block
        self.options: dict[str, Any] = {
            "transformer": config,
            "vae": describe_autoencoder(autoencoder),
            **({} if control is None else {"control": plain_config(control)}),
            "lora_scope": lora_scope,
            "condition_stride": condition_stride,
            "guidance": self.guidance,
            "text_tokens": text_tokens,
        }
        modules = [transformer, autoencoder, *([] if control is None else [control])]
        self.spec = BackboneSpec(
            name=name or ("FLUX.1 dev with a control branch" if control is not None else "FLUX.1 dev"),
            kind="flow",
            scale=None,
            size_multiple=STRIDE * PATCH * condition_stride,
            tile_px=1024,
            overlap_px=64,
            start_sigma=None,
            latent_channels=self.codec.channels,
            latent_stride=STRIDE,
            conditioning_dim=self.conditioning_dim,
            bytes_per_pixel=bytes_per_pixel(config["num_attention_heads"] * config["attention_head_dim"], autoencoder),
            parameters=parameter_count(*modules),
            licence=licence,
            token_px=STRIDE * PATCH,
            files=tuple(map(str, (*COMPONENTS, *([] if control is None else [CONTROL]), TEXT_ENCODER))),
            sampling=replace(own, guidance=self.guidance) if self.takes_guidance else Sampling(own.steps, "euler"),
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`transformer`, `control` where there is one, and `vae`."""
        yield "transformer", self.transformer
        if self.control is not None:
            yield "control", self.control
        yield "vae", self.autoencoder

    def adjusted(self, *, guidance: float | None = None, control_scale: float | None = None) -> "Flux1Backbone":
        """The same modules, told another guidance or with another weight of the control branch.

        Raises:
            ValueError: not a number in range, or a weight other than 1 without a control branch.
        """
        made = copy.copy(self)
        if guidance is not None:
            made.guidance = check_range(guidance, "guidance", 0.0, 100.0)
        if control_scale is not None:
            made.control_scale = check_control_scale(control_scale, self.control, self.spec.name)
        return made

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile what repeats, once for each kind of block."""
        if self.control is not None:
            self.transformer.compile_repeated_blocks(backend=backend)
            for block in (*self.control.transformer_blocks, *self.control.single_transformer_blocks):
                block.compile(backend=backend)
        else:
            self._double, self._single = (torch.compile(fn, backend=backend) for fn in (double_block, single_block))

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, C, H / 8, W / 8] float32.

        Raises:
            ValueError: a side that is not a multiple of 16.
        """
        check_sides(image, STRIDE * PATCH)
        z = self.codec.encode(image, generator)
        return z if self.codec.is_tiny else (z - SHIFT) * SCALING

    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The enlarged input as latents, at half the resolution where `condition_stride` is 2.

        Raises:
            ValueError: a side that is not a multiple of 16, or of 32 at half the resolution.
        """
        check_sides(image, self.spec.size_multiple)
        if self.condition_stride > 1:
            size = (image.shape[-2] // self.condition_stride, image.shape[-1] // self.condition_stride)
            image = bicubic(image.float(), size).clamp(-1, 1)
        return self.encode(image, generator=generator)

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Velocity noise - clean at `z` and sigma `time` [B], float32.

        Raises:
            ValueError: sides that are not multiples of 2, a condition of another size, or embeddings of another width.
        """
        _check_latents(z, z_lq, self.condition_stride)
        dial: Tensor = self.transformer.context_embedder.weight  # no adapter and no quantisation ever replaces it
        batch, (height, width) = z.shape[0], (side // PATCH for side in z.shape[-2:])
        state, lq = (pack(x.to(dial.device, dial.dtype)) for x in (z, z_lq))
        sigma = time.to(dial.device, torch.float32).expand(batch)
        text, pooled = self._told(conditioning, batch, state)
        guidance = sigma.new_full((batch,), self.guidance) if self.takes_guidance else None
        ids = position_ids(height, width, dial.device)
        if self.control is None:
            stride = self.condition_stride
            lq_ids = position_ids(height // stride, width // stride, dial.device, stride)
            out = joint_forward(
                self.transformer, state, lq, text, pooled, sigma=sigma, guidance=guidance, noisy_ids=ids, condition_ids=lq_ids,
                scope=self.lora_scope, double=self._double, single=self._single,
            )  # fmt: skip
        else:
            given: dict[str, Any] = {
                "hidden_states": state, "encoder_hidden_states": text, "pooled_projections": pooled, "timestep": sigma,
                "guidance": guidance, "img_ids": ids, "txt_ids": ids.new_zeros(text.shape[1], 3), "return_dict": False,
            }  # fmt: skip
            blocks, singles = self.control(**given, controlnet_cond=lq, conditioning_scale=self.control_scale)
            out = self.transformer(**given, controlnet_block_samples=blocks, controlnet_single_block_samples=singles)[0]
        return unpack(out, height, width).to(z.device, torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, 8 h, 8 w] float32, about [-1, 1], not clamped."""
        return self.codec.decode(z if self.codec.is_tiny else z / SCALING + SHIFT)

    def _told(self, conditioning: Conditioning | None, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        told = conditioning or self.empty
        if told is None:
            return like.new_zeros(batch, self.text_tokens, self.conditioning_dim), like.new_zeros(batch, self.pooled_dim)
        text, pooled = told.embeddings, told.pooled
        if text.ndim != 3 or text.shape[0] not in (1, batch) or text.shape[2] != self.conditioning_dim:
            raise ValueError(
                f"conditioning: expected embeddings [{batch} or 1, N, {self.conditioning_dim}], got {tuple(text.shape)}; "
                "encode the prompt for this backbone"
            )
        if pooled is None:
            pooled = text.new_zeros(text.shape[0], self.pooled_dim)
        if pooled.shape != (text.shape[0], self.pooled_dim):
            raise ValueError(
                f"conditioning: expected pooled embeddings [{text.shape[0]}, {self.pooled_dim}], got {tuple(pooled.shape)}; "
                "encode the prompt for this backbone"
            )
        parts = (part.to(like.device, like.dtype).expand(batch, *part.shape[1:]) for part in (text, pooled))
        return next(parts), next(parts)


def pack(z: Tensor) -> Tensor:
    """Latents as tokens, [B, C, h, w] -> [B, (h / 2)(w / 2), 4 C]: 2x2 patches row by row, channel-major inside a patch."""
    return F.pixel_unshuffle(z, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a grid of height x width tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width), PATCH)


def _check_latents(z: Tensor, z_lq: Tensor, stride: int) -> None:
    if z.shape[-1] % (PATCH * stride) or z.shape[-2] % (PATCH * stride):
        raise ValueError(
            f"z: expected sides that are multiples of {PATCH * stride}, got {tuple(z.shape[-2:])}; pad the picture to multiples "
            f"of {STRIDE * PATCH * stride}"
        )
    if stride == 1:
        check_same_shape(z_lq, z, "z_lq", "z")
    wanted = (*z.shape[:2], z.shape[-2] // stride, z.shape[-1] // stride)
    if z_lq.shape != wanted:
        raise ValueError(f"z_lq: expected {wanted}, half the resolution of z, got {tuple(z_lq.shape)}; use encode_lq")


def _check_parts(config: Mapping[str, Any], channels: int, control: nn.Module | None) -> None:
    if config["in_channels"] != PATCH**2 * channels:
        raise ValueError(
            f"autoencoder: expected {config['in_channels'] // PATCH**2} latent channels as the transformer takes, "
            f"got {channels}; use the autoencoder of this model"
        )
    if control is None:
        return
    other = plain_config(control)
    kept = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
    differing = [f"{key} {other[key]} instead of {config[key]}" for key in kept if other[key] != config[key]]
    if differing:
        raise ValueError(
            f"control: expected a branch of this transformer, got {', '.join(differing)}; choose the one made for it"
        )
