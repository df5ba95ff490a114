"""Opening, loading and saving the latent backbones: one path for every source, precision and adapter."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import did_you_mean
from ..compat import import_diffusers
from ..lora import Adapter
from ..lora_files import read_adapter
from ..weights import WeightsError, load_state_dict, save_weights
from . import flux2, z_image
from .autoencoders import known_options, load_autoencoder, make_autoencoder
from .files import Component, build_module, components_of_folder, find_components, read_part
from .quantization import BITS, quantize

LatentBackbone = flux2.Flux2Backbone | z_image.ZImageBackbone

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "8bit": torch.bfloat16,  # weights of the transformer's blocks in 8 or 4 bits, the rest and all arithmetic in bfloat16
    "4bit": torch.bfloat16,
}


@dataclass(frozen=True)
class LatentKind:
    """What sets one family apart: its class, its configurations, and how its files become a module."""

    backbone: Callable[..., LatentBackbone]
    components: tuple[Component, ...]
    text_encoder: Component
    transformer: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    tiny: Mapping[str, Any]
    transformer_class: str
    to_diffusers: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]]
    infer_options: Callable[[Mapping[str, Tensor]], dict[str, Any]]


def _kind(module: Any, backbone: Callable[..., LatentBackbone]) -> LatentKind:
    return LatentKind(
        backbone,
        module.COMPONENTS,
        module.TEXT_ENCODER,
        module.TRANSFORMER,
        module.AUTOENCODER,
        module.TINY,
        module.TRANSFORMER_CLASS,
        module.to_diffusers,
        module.infer_options,
    )


LATENT_KINDS: dict[str, LatentKind] = {
    flux2.ARCHITECTURE: _kind(flux2, flux2.Flux2Backbone),
    z_image.ARCHITECTURE: _kind(z_image, z_image.ZImageBackbone),
}


def make_transformer(kind: LatentKind, options: Mapping[str, Any]) -> nn.Module:
    """A randomly initialised transformer of that family."""
    return getattr(import_diffusers(), kind.transformer_class)(**options)


def find_kind(name: str) -> LatentKind:
    """The family of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in LATENT_KINDS:
        raise ValueError(f"kind: expected a latent backbone, got {name!r}; {did_you_mean(name, list(LATENT_KINDS))}")
    return LATENT_KINDS[name]


def tiny(name: str, *, seed: int = 0, options: Mapping[str, Any] | None = None, **facts: Any) -> LatentBackbone:
    """A backbone of the same architecture with a few thousand random parameters, for tests and for trying a workflow.

    Args:
        name: a key of `LATENT_KINDS`.
        seed: of the weights; the global random state is left alone.
        options: changes to the tiny configuration, {"transformer": {...}, "vae": {"class": ..., "options": {...}}}.
        facts: of the backbone: `latents`, `start_sigma`, `vae_tile_px`, ...
    """
    kind = find_kind(name)
    changes = options or {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = make_transformer(kind, {**kind.tiny["transformer"], **changes.get("transformer", {})})
        autoencoder = make_autoencoder(changes.get("vae", kind.tiny["vae"]))
    for module in (transformer, autoencoder):
        module.eval().requires_grad_(False)
    return kind.backbone(transformer, autoencoder, **{"name": f"tiny {name}", **facts})


def open_backbone(
    name: str,
    source: str | Path | None = None,
    *,
    folders: Mapping[str, Iterable[str | Path]] | None = None,
    transformer: str | Path | None = None,
    autoencoder: str | Path | None = None,
    precision: str = "bf16",
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    adapters: Sequence[tuple[Adapter, float]] = (),
    device: str | torch.device = "cpu",
    use_compile: bool = False,
    **facts: Any,
) -> LatentBackbone:
    """Open a latent backbone from what a user has on disk. Nothing is downloaded.

    Args:
        name: a key of `LATENT_KINDS`.
        source: a diffusers folder; `tiny` for a random miniature; None to search `folders` for single files.
        folders: ComfyUI's key -> folders, for example {"diffusion_models": [...], "vae": [...]}.
        transformer: path or file name in place of the published one, also beside a diffusers folder.
        autoencoder: the same for the autoencoder; a tiny one fits too.
        precision: a key of `PRECISIONS`. With `fp16` the autoencoder stays float32: its decoder overflows in half precision.
        lora: an adapter file of this backbone (`lora.load_adapter`), merged into the weights before they are quantised.
        lora_strength: scales the adapter.
        adapters: more of them as read by `lora_files.read_adapter`, each with its strength, merged in that order.
        device: where the modules go; `meta` checks all files and adapters and gives a backbone without values.
        use_compile: compile the transformer's repeated blocks at the first call (`compile_blocks`).
        facts: of the backbone: `latents`, `start_sigma`, `vae_tile_px`, ... An adapter's own facts come first; to contradict
            them is an error.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
        WeightsError: damaged files, or files of another model.
        ValueError: unknown name or precision, or an adapter of another backbone.
    """
    kind = find_kind(name)
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected {', '.join(PRECISIONS)}, got {precision!r}; {did_you_mean(precision, list(PRECISIONS))}"
        )
    dtype = PRECISIONS[precision]
    vae_dtype = torch.float32 if precision == "fp16" else dtype
    merged = [*adapters] if lora is None else [(read_adapter(lora), lora_strength), *adapters]
    for adapter, _ in merged:
        facts = adapter.agree(name, facts)
    is_meta = torch.device(device).type == "meta"
    if source == "tiny":
        backbone = tiny(name, **facts)
        for module, kept in ((backbone.transformer, dtype), (backbone.autoencoder, vae_dtype)):
            nn.Module.to(module, dtype=kept)  # diffusers' own method warns about modules that are not there
    else:
        chosen = {key: path for key, path in (("transformer", transformer), ("vae", autoencoder)) if path is not None}
        paths = _paths(kind, source, folders or {}, chosen)
        network = _load_transformer(kind, paths["transformer"], dtype, is_meta)
        coder = load_autoencoder(paths["vae"], vae_dtype, kind.autoencoder, shapes_only=is_meta)
        backbone = kind.backbone(network, coder, **facts)
    for adapter, strength in merged:
        if is_meta:
            adapter.check(backbone.transformer)
        else:
            adapter.merge_into(backbone.transformer, strength=strength)
    if precision in BITS and not is_meta:
        quantize(backbone.transformer, BITS[precision], device)
    for _, module in backbone.modules():
        nn.Module.to(module, device=device)
    if use_compile and not is_meta:
        compile_blocks(backbone.transformer)
    return backbone


def compile_blocks(transformer: nn.Module, backend: str = "inductor") -> None:
    """Compile the blocks that repeat, each kind once, in place: most of the speed of compiling all for a little of its wait.

    Args:
        transformer: FLUX.2 or Z-Image; merge and quantise before.
        backend: of `torch.compile`.
    """
    network: Any = transformer
    network.compile_repeated_blocks(backend=backend)


def _paths(
    kind: LatentKind,
    source: str | Path | None,
    folders: Mapping[str, Iterable[str | Path]],
    chosen: Mapping[str, str | Path],
) -> dict[str, Path]:
    if source is None:
        return find_components(kind.components, folders, chosen)
    root = Path(source).expanduser()
    rest = [part for part in kind.components if part.name not in chosen]
    replaced = find_components([part for part in kind.components if part.name in chosen], folders, chosen)
    return components_of_folder(root, rest) | replaced if rest else replaced


def _load_transformer(kind: LatentKind, path: Path, dtype: torch.dtype, shapes_only: bool) -> nn.Module:
    part = read_part(path, shapes_only=shapes_only)
    state = kind.to_diffusers(part.state, part.source)
    options = kind.infer_options(state) if part.config is None else known_options(part, (kind.transformer_class,))
    return build_module(lambda: make_transformer(kind, options), state, dtype, part.source)


def save(path: str | Path, backbone: LatentBackbone, info: Mapping[str, Any] | None = None) -> Path:
    """Write transformer and autoencoder with their configuration as one AlignSR file, for small models trained from scratch."""
    tensors = {f"{name}.{key}": tensor for name, module in backbone.modules() for key, tensor in module.state_dict().items()}
    header = {
        "backbone": backbone.architecture,
        "architecture": backbone.architecture,
        "options": backbone.options,
        "name": backbone.spec.name,
        "licence": backbone.spec.licence,
    }
    return save_weights(path, tensors, {**header, **(info or {})})


def load(path: Path, info: dict[str, Any]) -> LatentBackbone:
    """Build the backbone that `info` (a weight file's header) describes and load its weights strictly, in float32.

    Raises:
        WeightsError: damaged, or weights that do not fit.
        ValueError: a header that names an unknown backbone.
    """
    kind = find_kind(str(info["backbone"]))
    if info.get("architecture") == "lora":
        raise WeightsError(f"{path}: expected a whole model, got an adapter of {info['backbone']}; open its base model with it")
    options = dict(info["options"])
    lacking = [key for key in ("transformer", "vae") if not isinstance(options.get(key), dict)]
    if lacking:
        raise WeightsError(f"{path}: expected options.{' and options.'.join(lacking)} in the header; export the file again")
    state = load_state_dict(path)
    parts = {
        name: {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        for name in ("transformer", "vae")
    }
    transformer = build_module(
        lambda: make_transformer(kind, options["transformer"]), parts["transformer"], torch.float32, f"{path} (transformer)"
    )
    autoencoder = build_module(lambda: make_autoencoder(options["vae"]), parts["vae"], torch.float32, f"{path} (vae)")
    facts = {key: value for key, value in options.items() if key not in ("transformer", "vae")}
    named = {"name": str(info.get("name", path.stem)), "licence": str(info.get("licence", "unknown"))}
    return kind.backbone(transformer, autoencoder, **facts, **named)
