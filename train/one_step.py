"""The one-step model that `one_step_distill` trains: which backbone, what of it is trained, and how the result is written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from ..core import lora
from ..core.backbones import latent
from ..core.backbones.autoencoders import latent_channels, load_autoencoder, make_autoencoder
from ..core.backbones.base import Backbone, BackboneSpec
from ..core.backbones.pixel import PixelBackbone
from ..core.compat import import_diffusers
from ..core.conditioning import TokenAdapter, load_adapter
from ..core.lora_files import check_projector
from ..core.records import Conditioning
from ..core.weights import WeightsError, find_model, load_into, load_state_dict
from .config import empty_table, setting
from .start import KEYS, existing, named_adapter, named_source

PIXEL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LATENTS = {"flux2_klein": "native", "z_image": "scaled", "pixel": ""}  # the base models' conventions
UNTRAINED = ("tiny", "random")
BEFORE = {  # what a missing `model.init` is, for messages
    "what": "stage 1's result to start from",
    "hint": "train stage 1 first and go on from its run folder with `--set start_from=RUN`",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class OneStepModelConfig:
    """The backbone and its one step."""

    backbone: Literal["flux2_klein", "z_image", "pixel"] = "flux2_klein"
    # of latent backbones: a diffusers folder, or its name in a model folder; empty: single files in the model folders, else
    # the diffusers folder of the published name; "random": the published size, "tiny": a miniature, both untrained
    source: str = ""
    transformer: str = ""  # weight file in place of the published one
    autoencoder: str = ""  # the same for the autoencoder; also with source "random" or "tiny", whose transformer then fits it
    options: dict[str, Any] = field(default_factory=empty_table)  # untrained: changes to the transformer; pixel: its options
    init: str = ""  # stage 1's result to start from: an adapter, or the weights of a model that is trained whole
    precision: Literal["bf16", "fp32"] = "bf16"  # of the frozen transformer; what is trained is fp32 always
    vae_precision: Literal["bf16", "fp32"] = "bf16"
    scale: int = 4
    sigma: float = 0.8  # what the transformer is told its input's noise level is (model_t / 1000)
    step_length: float = 0.8  # how far the Euler step goes (coeff_t / 1000)
    latents: Literal["", "native", "scaled", "raw"] = ""  # empty: the base model's convention; raw: Z-Image as released
    posterior: Literal["sample", "mean"] = "sample"  # of the autoencoder's encoder, while training
    use_checkpointing: bool = True  # recompute blocks in the backward pass: less memory, a third more time
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the final weight file


@dataclass(frozen=True)
class LoraTableConfig:
    """The trained adapter; rank 0 trains the whole network instead, for small models."""

    rank: int = 256
    alpha: float = 0.0  # 0: the rank, a scale of 1
    targets: tuple[str, ...] = ()  # ends of layers' names; empty: the published list of the backbone


class TrainedPart(nn.Module):
    """Everything that the generator's optimiser moves, and nothing else: what is averaged and kept in checkpoints.

    Args:
        weights: the adapter's matrices, or the whole network.
        adapter: bridge from the vision-language model, or None.
    """

    def __init__(self, weights: Sequence[nn.Parameter] | nn.Module, adapter: TokenAdapter | None) -> None:
        super().__init__()
        self.weights = weights if isinstance(weights, nn.Module) else nn.ParameterList(weights)
        self.adapter = adapter


@dataclass
class OneStepModel:
    """A backbone with what is trained of it.

    Attributes:
        backbone: frozen, but for `part`.
        network: the module that holds the adapted layers: diffusers' transformer.
        part: what is trained.
        facts: of an adapter file: rank, alpha, targets; empty where the whole network is trained.
    """

    backbone: Backbone
    network: nn.Module
    part: TrainedPart
    facts: Mapping[str, Any]

    def to(self, device: torch.device) -> None:
        """Move all modules in place."""
        for _, module in self.backbone.modules():
            nn.Module.to(module, device=device)


class InAutocast:
    """The `Backbone` protocol with the velocity under autocast.

    Encoding and decoding stay outside: the autoencoder works in its own precision.

    Args:
        backbone: a flow backbone.
        autocast: makes the context, for each call.
    """

    def __init__(self, backbone: Backbone, autocast: Any) -> None:
        self.backbone, self.autocast = backbone, autocast
        self.spec: BackboneSpec = backbone.spec

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As the backbone's."""
        return self.backbone.modules()

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's; nothing in it is trained."""
        with torch.no_grad():
            return self.backbone.encode(image, generator=generator)

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The backbone's, in float32."""
        context: AbstractContextManager[Any] = self.autocast()
        with context:
            velocity = self.backbone.velocity(z, sigma, z_lq, conditioning)
        return velocity.float()

    def decode(self, z: Tensor) -> Tensor:
        """As the backbone's."""
        return self.backbone.decode(z)


def build_backbone(
    config: OneStepModelConfig, name: str, licence: str, folders: Sequence[str | Path] = (), adapter: lora.Adapter | None = None
) -> Backbone:
    """The frozen backbone that a config describes, in the latent convention of an adapter that training starts from.

    Raises:
        MissingModelError, WeightsError: files are missing or do not fit.
        ValueError: an adapter of another backbone or convention.
    """
    step = {"start_sigma": config.sigma, "step_length": config.step_length}
    if config.backbone == "pixel":
        backbone = PixelBackbone({**config.options, **step}, name, licence)
        if config.init:
            with setting("model.init"):
                path = find_model(config.init, folders, **BEFORE)
            state = {key: tensor.float() for key, tensor in load_state_dict(path).items()}
            load_into(backbone.network, state, str(path))
        backbone.network.eval().requires_grad_(False)
        return backbone
    facts: dict[str, Any] = step | ({"latents": config.latents} if config.latents else {})
    if adapter is not None:
        facts = adapter.agree(config.backbone, facts)
    if config.source in UNTRAINED:
        opened = _untrained(config, facts, folders)
    else:
        chosen = {"network": config.transformer, "autoencoder": config.autoencoder}
        opened = latent.open_backbone(
            config.backbone,
            named_source(config.backbone, config.source, folders, **chosen),
            folders=dict.fromkeys(KEYS, tuple(folders)),
            transformer=config.transformer or None,
            autoencoder=config.autoencoder or None,
            precision=config.precision,
            **facts,
        )
    nn.Module.to(opened.transformer, dtype=DTYPES[config.precision])
    nn.Module.to(opened.autoencoder, dtype=DTYPES[config.vae_precision])
    return opened


def _untrained(config: OneStepModelConfig, facts: Mapping[str, Any], folders: Sequence[str | Path]) -> latent.LatentBackbone:
    """A random transformer of the published or the tiny size beside a random autoencoder, or beside one from disk.

    With source "tiny" and nothing changed it is `latent.tiny`, bit for bit, so that whoever opens that has the base of this run.
    """
    kind = latent.find_kind(config.backbone)
    base = kind.tiny if config.source == "tiny" else {"transformer": kind.transformer, "vae": kind.autoencoder}
    options: dict[str, Any] = dict(base["transformer"])
    coder = None
    if config.autoencoder:
        coder = load_autoencoder(existing(config.autoencoder, folders), torch.float32, kind.autoencoder)
        cells = kind.tiny["transformer"]["in_channels"] // kind.tiny["vae"]["options"]["latent_channels"]
        options["in_channels"] = cells * latent_channels(coder)
    transformer = latent.make_transformer(kind, {**options, **config.options})
    coder = make_autoencoder(base["vae"]) if coder is None else coder
    for module in (transformer, coder):
        module.eval().requires_grad_(False)
    return kind.backbone(transformer, coder, name=f"{config.source} {config.backbone}", **facts)


def build_model(
    config: OneStepModelConfig,
    lora_config: LoraTableConfig,
    *,
    projector: tuple[int, str] | None,
    seed: int = 0,
    name: str = "model",
    licence: str = "Apache-2.0",
    folders: Sequence[str | Path] = (),
) -> OneStepModel:
    """Backbone, adapter and projector, with what `model.init` says in them.

    Args:
        config: the backbone.
        lora_config: the adapter.
        projector: width of the vision-language model's tokens and a file to start from (or ""); None builds no projector.
        seed: of what is random and trained. A random frozen network is always the same, so that stage 2 meets that of stage 1.
        name: of the result.
        licence: of the result.
        folders: model folders.

    Raises:
        MissingModelError, WeightsError: a file is missing or does not fit; an adapter of another rank, say.
    """
    is_lora = lora_config.rank > 0
    start = None
    if is_lora and config.init and config.backbone != "pixel":
        with setting("model.init"):
            start = named_adapter(config.init, folders, **BEFORE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if is_lora else seed)
        backbone = build_backbone(config, name, licence, folders, start)
    modules = dict(backbone.modules())
    whole = modules["network"] if config.backbone == "pixel" else modules["transformer"]
    network: nn.Module = whole.transformer if isinstance(backbone, PixelBackbone) else whole  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bridge = None if projector is None else TokenAdapter(projector[0], backbone.spec.conditioning_dim)
    if projector is not None and projector[1]:
        with setting("conditioning.init"):
            found = find_model(projector[1], folders, what="a projector to start from")
        bridge = load_adapter(found, backbone.spec.conditioning_dim).train().requires_grad_(True)
    if not is_lora:
        if config.init and config.backbone != "pixel":
            with setting("model.init"):
                _load_whole(whole, find_model(config.init, folders, **BEFORE))
        return OneStepModel(backbone, network, TrainedPart(whole.requires_grad_(True), bridge), {})
    _, alpha, targets = adapter_shape(config, lora_config)
    generator = torch.Generator().manual_seed(seed)
    weights = lora.attach(network, targets, lora_config.rank, alpha=alpha, generator=generator)
    if start is not None:
        _load_adapter_into(network, start, alpha / lora_config.rank, None if projector is None or projector[1] else bridge)
    facts = {"rank": lora_config.rank, "alpha": alpha, "targets": list(targets)}
    return OneStepModel(backbone, network, TrainedPart(weights, bridge), facts)


def adapter_shape(config: OneStepModelConfig, lora_config: LoraTableConfig) -> tuple[int, float, tuple[str, ...]]:
    """Rank, alpha and targets of the trained adapter, with what is left out filled in."""
    published = PIXEL_TARGETS if config.backbone == "pixel" else lora.LORA_TARGETS[config.backbone]
    return lora_config.rank, lora_config.alpha or float(lora_config.rank), lora_config.targets or published


def latents_of(config: OneStepModelConfig, lora_config: LoraTableConfig, folders: Sequence[str | Path] = ()) -> str:
    """The latent convention that a config means: its own, that of the adapter it starts from, or the base model's."""
    if not config.latents and config.init and config.backbone != "pixel" and lora_config.rank:
        return str(named_adapter(config.init, folders).info.get("latents", LATENTS[config.backbone]))
    return config.latents or LATENTS[config.backbone]


def _load_whole(transformer: nn.Module, path: Path) -> None:
    prefix = "transformer."
    state = {key.removeprefix(prefix): tensor.float() for key, tensor in load_state_dict(path).items() if key.startswith(prefix)}
    load_into(transformer, state, f"{path} (transformer)")


def _load_adapter_into(network: nn.Module, start: lora.Adapter, scale: float, bridge: TokenAdapter | None) -> None:
    """Put a start's matrices in place, so that it acts as it did: one of another alpha has its B matrices scaled."""
    ratio = start.scale / scale
    state = {name: tensor * ratio if ".lora_B." in name else tensor for name, tensor in start.state.items()}
    with torch.no_grad():
        lora.load_attached(network, state, start.source)
    if bridge is None:
        return
    if not start.projector:
        raise WeightsError(
            f"{start.source}: expected a projector beside the adapter for conditioning.kind vlm, found none; "
            "name one in conditioning.init or train with the conditioning that this adapter was trained with"
        )
    last = bridge[2]
    assert isinstance(last, nn.Linear)
    check_projector(start.projector, start.source, last.out_features)
    load_into(bridge, {key: tensor.float() for key, tensor in start.projector.items()}, start.source)


def use_checkpointing(backbone: Backbone) -> None:
    """Recompute blocks of transformer and decoder in the backward pass, where the model can."""
    base: Any = import_diffusers().ModelMixin
    for _, module in backbone.modules():
        for part in module.modules():
            if isinstance(part, base) and part._supports_gradient_checkpointing:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
                part.enable_gradient_checkpointing()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def check_model(config: OneStepModelConfig, lora_config: LoraTableConfig) -> None:
    """What can be said before anything is built.

    Raises:
        ValueError: names the key.
    """
    for key in ("sigma", "step_length"):
        if not 0 < getattr(config, key) <= 1:
            raise ValueError(f"model.{key}: expected more than 0 and at most 1, got {getattr(config, key)}; the paper uses 0.8")
    if lora_config.rank < 0 or lora_config.alpha < 0:
        raise ValueError(
            f"lora.rank, lora.alpha: expected at least 0, got {lora_config.rank} and {lora_config.alpha}; raise them"
        )
    if lora_config.rank == 0 and config.backbone != "pixel" and config.precision != "fp32":
        raise ValueError(
            f'model.precision: expected "fp32" where the whole network is trained (lora.rank 0), got "{config.precision}"; '
            "at 16 bits small steps are lost to rounding"
        )
    if config.latents == "raw" and config.backbone != "z_image":
        raise ValueError(f'model.latents: expected "raw" with z_image only, got it with {config.backbone}; leave it out')


__all__ = [
    "InAutocast",
    "LoraTableConfig",
    "OneStepModel",
    "OneStepModelConfig",
    "TrainedPart",
    "adapter_shape",
    "build_backbone",
    "build_model",
    "check_model",
    "latents_of",
    "use_checkpointing",
]
