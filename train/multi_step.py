"""The multi-step model that preferences train: opened from a config, with a frozen adapter beneath, and written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from ..core.adapters import AdapterStack, concatenate, merged_state
from ..core.backbones import latent, open_multi_step
from ..core.backbones.autoencoders import make_autoencoder
from ..core.backbones.base import BackboneSpec
from ..core.backbones.latent import PRECISIONS
from ..core.backbones.pixel import PixelBackbone
from ..core.backbones.quantization import BITS, quantize
from ..core.backbones.stable_diffusion_files import UNETS
from ..core.conditioning import prompt_folder
from ..core.diffusion import MultiStepBackbone, Process, as_multi_step
from ..core.lora import BINDING_FACTS, LORA_TARGETS, Adapter, expected_state
from ..core.lora_files import save_adapter
from ..core.records import Conditioning
from ..core.weights import WeightsError, save_weights
from .candidates.model import tiny_pixel
from .config import ConfigError, empty_table, run_only, setting
from .latent_cache import LatentCache
from .one_step import DTYPES, PIXEL_TARGETS
from .prompts import PROMPTS, TINY, prompt_teller
from .start import KEYS, named_adapter, named_source

SFT, POLICY, ADVERSARY = "sft", "policy", "adv"
RANDOM = "random"


@dataclass(frozen=True)
class MultiStepModelConfig:
    """The model: its base, and the frozen adapter that training starts from."""

    backbone: Literal["flux1", "stable_diffusion", "pixel"] = "flux1"
    # a diffusers folder, or its name in a model folder; empty: single files in the model folders, else the diffusers folder of
    # the published name; "random": the published size, "tiny": a miniature, both untrained; of pixel: a bundled name or weight
    # file, empty: untrained, by options
    source: str = ""
    version: Literal["", "sd15", "sd2", "sdxl"] = ""  # of stable_diffusion; empty: what the weights say
    network: str = ""  # weight file of transformer or UNet in place of the published one
    autoencoder: str = ""  # the same for the autoencoder
    control: str = ""  # control branch: a folder or weight file; "auto": the released one; "tiny"; empty: none
    options: dict[str, Any] = field(default_factory=empty_table)  # untrained: changes to the network; pixel: its options
    adapter: str = ""  # frozen adapter of supervised training: what it does, the reference does; "tiny": random, for tests
    init: str = ""  # adapter to start from, of the same rank; empty: one that changes nothing
    # of the frozen network; what is trained is fp32 always. 8bit and 4bit: of the network's blocks, which then take no adapter
    precision: Literal["bf16", "fp32", "8bit", "4bit"] = "bf16"
    vae_precision: Literal["bf16", "fp32"] = "bf16"
    scale: int = 4
    lora_scope: Literal["", "all", "condition_only"] = ""  # of flux1; empty: the adapter's, else all
    condition_stride: int = 0  # of flux1: 2 is a condition of half the resolution; 0: the adapter's, else 1
    guidance: float = -1.0  # of flux1, the same in training and sampling; -1: the adapter's, else the model's own
    text: str = ""  # text encoders: a diffusers folder; empty: the published one; "tiny"; "none": no text, zeros
    prompt: str = ""  # for all pictures
    posterior: Literal["mean", "sample"] = "mean"  # of the autoencoder's encoder
    latent_cache: str = run_only("")  # folder of encoded pictures, shared between runs that draw the same crops; empty: none
    use_checkpointing: bool = True  # recompute blocks in the backward pass: less memory, a third more time
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the final weight file


@dataclass(frozen=True)
class AdapterConfig:
    """The trained adapter."""

    rank: int = 16
    alpha: float = 0.0  # 0: the rank, a scale of 1
    targets: tuple[str, ...] = ()  # ends of layers' names; empty: the published list of the backbone


@dataclass
class Trainee:
    """A model with adapters.

    Attributes:
        backbone: frozen but for what `stack` trains.
        network: the module that holds the adapted layers: transformer or UNet.
        stack: adapters on it; `sft` is there and acts where the config names one.
        facts: of adapter files: `backbone`, `base`, `lora_scope`, `condition_stride`, `guidance`.
        sft: the frozen adapter as read, or None.
    """

    backbone: MultiStepBackbone
    network: nn.Module
    stack: AdapterStack
    facts: dict[str, Any]
    sft: Adapter | None = None

    @property
    def reference(self) -> tuple[str, ...]:
        """Names of the adapters that make the reference."""
        return (SFT,) if self.sft is not None else ()

    def to(self, device: torch.device) -> None:
        """Move all modules in place."""
        for _, module in self.backbone.modules():
            nn.Module.to(module, device=device)


class Autocast:
    """The `MultiStepBackbone` protocol with predictions under autocast and in float32, and encoding from a cache.

    Encoding and decoding stay outside of autocast: the autoencoder works in its own precision. Nothing in it is trained.

    Args:
        backbone: the model.
        autocast: makes the context, for each call.
        cache: of encoded pictures, or None.
    """

    def __init__(
        self,
        backbone: MultiStepBackbone,
        autocast: Callable[[], AbstractContextManager[Any]],
        cache: str | Path | None = None,
    ) -> None:
        self.backbone, self.autocast = backbone, autocast
        self.spec: BackboneSpec = backbone.spec
        self.process: Process = backbone.process
        self._caches: dict[str, LatentCache] = {}
        coder = dict(backbone.modules()).get("vae")
        if cache and coder is not None:
            self._caches = {name: LatentCache(cache, coder, getattr(backbone, name)) for name in ("encode", "encode_lq")}
            scaling, stride = getattr(backbone, "scaling", 0.0), getattr(backbone, "condition_stride", 1)
            for name, one in self._caches.items():  # what makes other latents of the same pictures and the same autoencoder
                part = f"-lq{stride}" if name == "encode_lq" else ""
                one.folder = one.folder.with_name(f"{one.folder.name}-{scaling:g}{part}")

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As the backbone's."""
        return self.backbone.modules()

    @torch.no_grad()
    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's."""
        cached = self._caches.get("encode") if generator is None else None
        return cached.encode(image) if cached else self.backbone.encode(image, generator=generator)

    @torch.no_grad()
    def encode_lq(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        """As the backbone's."""
        cached = self._caches.get("encode_lq") if generator is None else None
        return cached.encode(image) if cached else self.backbone.encode_lq(image, generator=generator)

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The backbone's, in float32."""
        with self.autocast():
            prediction = self.backbone.predict(z, time, z_lq, conditioning)
        return prediction.float()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """As the backbone's."""
        return self.backbone.decode(z)


def build_trainee(
    config: MultiStepModelConfig, name: str = "model", licence: str = "Apache-2.0", folders: Sequence[str | Path] = ()
) -> Trainee:
    """Open the model that a config describes, frozen, with its adapter of supervised training attached and active.

    A random base is always the same, whatever the global random state.

    Args:
        config: the model.
        name: of the result, for an untrained pixel model.
        licence: the same.
        folders: model folders.

    Raises:
        MissingModelError, WeightsError: files are missing or do not fit.
        ValueError: an adapter of another backbone or scope.
        ConfigError: a pixel model that is not sampled from noise.
    """
    with setting("model.adapter"):
        sft = named_adapter(config.adapter, folders) if config.adapter and config.adapter != TINY else None
    facts = _facts(config)
    if sft is not None:
        facts = sft.agree(config.backbone, facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = _open(config, facts, name, licence, folders)
    for part, module in backbone.modules():
        nn.Module.to(module, dtype=DTYPES[config.vae_precision] if part == "vae" else PRECISIONS[config.precision])
        module.eval().requires_grad_(False)
    network = adapted_network(backbone)
    if config.precision in BITS:
        quantize(network, BITS[config.precision], torch.accelerator.current_accelerator() or "cpu")
    kept = {key: facts[key] for key in ("lora_scope", "condition_stride", "guidance") if key in facts}
    base = config.source or (config.network if config.backbone != "pixel" else name)
    if config.adapter == TINY:
        sft = tiny_adapter(network, config.backbone, 1, **kept)
    trainee = Trainee(backbone, network, AdapterStack(network), {"backbone": config.backbone, "base": base, **kept}, sft)
    if sft is not None:
        trainee.stack.load(SFT, sft)
        trainee.stack.use(SFT)
    return trainee


def add_adapter(
    trainee: Trainee,
    name: str,
    config: AdapterConfig,
    *,
    seed: int = 0,
    init: str = "",
    folders: Sequence[str | Path] = (),
) -> list[nn.Parameter]:
    """A new adapter of the config's rank, from a file if `init` names one. It is neither active nor trained yet.

    Raises:
        WeightsError: a file that does not fit, of another rank, say.
        ValueError: a file of another backbone or scope.
    """
    kind = str(trainee.facts["backbone"])
    targets = config.targets or adapter_targets(kind)
    alpha = config.alpha or float(config.rank)
    parameters = trainee.stack.add(name, targets, config.rank, alpha=alpha, generator=Generator().manual_seed(seed))
    if init:
        with setting("model.init"):
            start = named_adapter(init, folders)
        _agree(trainee, start)
        trainee.stack.fill(name, start)
        with torch.no_grad():
            for key, value in start.full.items():
                trainee.network.get_parameter(key).copy_(value)
    return parameters


def load_adapter(trainee: Trainee, name: str, file: str, folders: Sequence[str | Path] = ()) -> Adapter:
    """Attach an adapter from disk, frozen and not active.

    Raises:
        MissingModelError, WeightsError, ValueError: as `build_trainee`.
    """
    kind = str(trainee.facts["backbone"])
    adapter = tiny_adapter(trainee.network, kind, 2) if file == TINY else named_adapter(file, folders)
    _agree(trainee, adapter)
    trainee.stack.load(name, adapter)
    return adapter


def _agree(trainee: Trainee, adapter: Adapter) -> None:
    """The adapter belongs to this model, scope and, where it holds parameters whole, to this reference."""
    for key, value in adapter.full.items() if trainee.sft is not None else ():
        own = trainee.network.get_parameter(key)
        if own.shape != value.shape or not torch.equal(own, value.to(own.device, own.dtype)):
            raise WeightsError(
                f"{adapter.source}: expected the {key} of {trainee.sft.source}, on which the reference stands, got another; "
                "train it on this adapter of supervised training"
            )
    adapter.agree(str(trainee.facts["backbone"]), {key: trainee.facts[key] for key in BINDING_FACTS if key in trainee.facts})


def tiny_adapter(network: nn.Module, kind: str, seed: int, rank: int = 2, **info: Any) -> Adapter:
    """A random adapter that changes something, for tests and for trying a workflow."""
    generator, targets = Generator().manual_seed(seed), list(adapter_targets(kind))
    shapes = expected_state(network, targets, rank)
    state = {key: 0.1 * torch.randn(like.shape, generator=generator) for key, like in shapes.items()}
    return Adapter(state, {**info, "backbone": kind, "rank": rank, "alpha": float(rank), "targets": targets}, source=TINY)


def one_prompt(
    config: MultiStepModelConfig, backbone: Any, folder: Path, device: torch.device, folders: Sequence[str | Path]
) -> Conditioning | None:
    """What all pictures are told, [1, N, D]: encoded once and kept on disk, so that later runs need no text encoder.

    Args:
        config: table `model`.
        backbone: the model.
        folder: the run's; random text encoders keep their prompts there.
        device: where the embeddings go.
        folders: model folders.
    """
    tell = prompt_teller(
        config.text, backbone, config.backbone,
        folder=folder / PROMPTS if config.text == TINY else prompt_folder(), dtype=PRECISIONS[config.precision],
        device=device, folders=folders,
    )  # fmt: skip
    return tell([config.prompt])


def adapter_targets(kind: str) -> tuple[str, ...]:
    """Which layers are adapted where a config says nothing."""
    return PIXEL_TARGETS if kind == "pixel" else LORA_TARGETS[kind]


def adapted_network(backbone: Any) -> nn.Module:
    """The module that holds the layers which adapters may change: diffusers' transformer or UNet."""
    if isinstance(backbone, PixelBackbone):
        network: Any = backbone.network
        return network.transformer
    return next(iter(backbone.modules()))[1]


def save_trained(
    trainee: Trainee,
    name: str,
    path: Path,
    info: Mapping[str, Any],
    save_dtype: str = "fp32",
    *,
    with_reference: bool = True,
    full: Sequence[str] = (),
) -> Path:
    """Write a trained adapter.

    Latent models: the adapter alone as `path`, and joined with the frozen adapter of supervised training, as it is used, as
    `<stem>-with-sft.safetensors`. `pixel`: the whole model with the adapter merged as `path`, and `<stem>-adapter.safetensors`.

    Args:
        trainee: the model.
        name: of the adapter.
        path: ends in .safetensors.
        info: facts for the header.
        save_dtype: of the matrices.
        with_reference: write the joined file too.
        full: parameters of the network that were trained whole beside it.

    Returns:
        `path`.
    """
    dtype, is_pixel = DTYPES[save_dtype], trainee.facts["backbone"] == "pixel"
    made = trainee.stack.adapter(name, **{**info, **trainee.facts})
    state = {key: tensor.to(dtype) for key, tensor in made.state.items()}
    whole = {key: trainee.network.get_parameter(key).detach().to(dtype, copy=True) for key in full}
    alone = Adapter(state, made.info, source=name, full=whole)
    if is_pixel:
        save_adapter(path.with_name(f"{path.stem}-adapter.safetensors"), alone)
        backbone: Any = trainee.backbone
        acting = [made] if trainee.sft is None else [trainee.sft, made]
        whole_state = merged_state(backbone.network, trainee.network, *acting)
        header = {"backbone": "pixel", "architecture": "pixel", "options": dict(backbone.options)}
        return save_weights(path, {key: tensor.to(dtype) for key, tensor in whole_state.items()}, {**info, **header})
    if trainee.sft is not None and with_reference:
        joined = concatenate((trainee.sft, 1.0), (alone, 1.0))
        both = Adapter({k: t.to(dtype) for k, t in joined.state.items()}, {**joined.info, **info}, source=name, full=joined.full)
        save_adapter(path.with_name(f"{path.stem}-with-sft.safetensors"), both)
    return save_adapter(path, alone)


def check_multi_step(config: MultiStepModelConfig, adapter: AdapterConfig | None, gt_patch_px: int, cell_px: int = 0) -> None:
    """What can be said before anything is opened.

    Args:
        config: table `model`.
        adapter: table `lora`, or None.
        gt_patch_px: side of training pictures; 0 where that is not known yet.
        cell_px: what it must be a multiple of besides the scale; 0: what the backbone needs at least.

    Raises:
        ValueError: names the key.
    """
    if config.scale < 1:
        raise ValueError(f"model.scale: expected at least 1, got {config.scale}; 4 is usual")
    if adapter is not None and config.precision in BITS:
        raise ValueError(
            f'model.precision: expected "bf16" or "fp32" for an adapter on the network itself, got "{config.precision}"; '
            "quantised layers take no adapter"
        )
    if adapter is not None and (adapter.rank < 1 or adapter.alpha < 0):
        raise ValueError(
            f"lora.rank, lora.alpha: expected a rank of at least 1 and an alpha of at least 0, got {adapter.rank} and "
            f"{adapter.alpha}; 16 and 0 are usual"
        )
    cell = cell_px or (int(config.options.get("patch_px", 1)) if config.backbone == "pixel" else 16)
    for multiple, what in ((config.scale, "model.scale"), (cell, f"what {config.backbone} takes")):
        if gt_patch_px and gt_patch_px % multiple:
            raise ValueError(f"data.gt_patch_px: expected a multiple of {what} {multiple}, got {gt_patch_px}; change it")
    is_flux = config.backbone == "flux1"
    given = (("lora_scope", bool(config.lora_scope)), ("condition_stride", bool(config.condition_stride)))
    for key, is_set in (*given, ("guidance", config.guidance >= 0)):
        if is_set and not is_flux:
            raise ValueError(f"model.{key}: expected none for {config.backbone}, got {getattr(config, key)!r}; leave it out")
    if config.version and config.backbone != "stable_diffusion":
        raise ValueError(f"model.version: expected none for {config.backbone}, got {config.version!r}; leave it out")
    if config.latent_cache and config.posterior != "mean":
        raise ValueError('model.latent_cache: expected model.posterior "mean", got "sample"; what is kept must not be drawn')


def _facts(config: MultiStepModelConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": config.version} if config.version else {}
    if config.lora_scope:
        facts["lora_scope"] = config.lora_scope
    if config.condition_stride:
        facts["condition_stride"] = config.condition_stride
    if config.guidance >= 0:
        facts["guidance"] = config.guidance
    return facts


def _open(
    config: MultiStepModelConfig, facts: Mapping[str, Any], name: str, licence: str, folders: Sequence[str | Path]
) -> MultiStepBackbone:
    if config.backbone == "pixel":
        return _open_pixel(config, name, licence, folders)
    if config.source == RANDOM or (config.source == TINY and config.options):
        return _untrained(config, facts)
    chosen = {"version": config.version, "network": config.network, "autoencoder": config.autoencoder}
    return open_multi_step(
        config.backbone,
        named_source(config.backbone, config.source, folders, **chosen),
        folders=dict.fromkeys(KEYS, tuple(folders)),
        network=config.network or None,
        autoencoder=config.autoencoder or None,
        control=config.control or None,
        precision="bf16" if config.precision in BITS else config.precision,
        **facts,
    )


def _open_pixel(config: MultiStepModelConfig, name: str, licence: str, folders: Sequence[str | Path]) -> MultiStepBackbone:
    if config.source == TINY:
        return tiny_pixel(config.options)
    if config.source in ("", RANDOM):
        return PixelBackbone(config.options, name, licence)
    from ..core.backbones import load_backbone

    backbone = load_backbone(config.source, folders)
    try:
        return as_multi_step(backbone, "model.source")
    except TypeError as error:
        raise ConfigError(str(error)) from error


def _untrained(config: MultiStepModelConfig, facts: Mapping[str, Any]) -> Any:
    """A random network of the published or the tiny size, with the config's changes, beside a random autoencoder."""
    if config.source == TINY:
        changes = {"transformer": config.options}
        return latent.tiny_multi_step(config.backbone, control=bool(config.control), options=changes, **facts)
    kind = latent.find_kind(config.backbone)
    published = UNETS[config.version] if config.version else kind.transformer
    options = {**published, **config.options}
    modules: list[nn.Module] = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(PRECISIONS[config.precision])  # twelve billion weights are made in the precision they are kept in
    try:
        modules.append(latent.make_transformer(kind, options))
        if config.control:
            assert kind.control_options is not None
            modules.append(latent.make_control(kind, kind.control_options(options)))
    finally:
        torch.set_default_dtype(before)
    modules.insert(1, make_autoencoder(kind.autoencoder))
    return kind.backbone(*modules, name=f"{config.source} {config.backbone}", **facts)
