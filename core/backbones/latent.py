"""Opening, loading and saving the latent backbones: one path for every source, precision and adapter."""

import logging
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
from . import flux1, flux2, stable_diffusion, z_image
from .autoencoders import known_options, load_autoencoder, make_autoencoder, plain_config
from .base import trained_at
from .files import Component, build_module, components_of_folder, count_blocks, find_components, read_part, remarks
from .quantization import BITS, quantize

LatentBackbone = flux2.Flux2Backbone | z_image.ZImageBackbone
MultiStepModel = flux1.Flux1Backbone | stable_diffusion.StableDiffusionBackbone

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

    backbone: Callable[..., Any]
    components: tuple[Component, ...]  # of the network that denoises, first, and of the autoencoder
    text_encoder: Component
    transformer: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    tiny: Mapping[str, Any]
    transformer_class: str
    to_diffusers: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]]
    infer_options: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    control: Component | None = None
    control_class: str = ""
    control_options: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    @property
    def main(self) -> str:
        """Name of the network that denoises: `transformer` or `unet`."""
        return self.components[0].name


def _kind(module: Any, backbone: Callable[..., Any], **more: Any) -> LatentKind:
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
        **more,
    )


def _with_control(module: Any, backbone: Callable[..., Any]) -> LatentKind:
    control = {"control": module.CONTROL, "control_class": module.CONTROL_CLASS, "control_options": module.control_options}
    return _kind(module, backbone, **control)


LATENT_KINDS: dict[str, LatentKind] = {
    flux2.ARCHITECTURE: _kind(flux2, flux2.Flux2Backbone),
    z_image.ARCHITECTURE: _kind(z_image, z_image.ZImageBackbone),
}
MULTI_STEP_KINDS: dict[str, LatentKind] = {
    flux1.ARCHITECTURE: _with_control(flux1, flux1.Flux1Backbone),
    stable_diffusion.ARCHITECTURE: _with_control(stable_diffusion, stable_diffusion.StableDiffusionBackbone),
}
LOGGER = logging.getLogger("alignsr")
AUTO = "auto"
TINY = "tiny"
_CONTROL_DEPTHS = {"num_layers": "", "num_single_layers": "single_"}
_GUIDANCE = "time_text_embed.guidance_embedder.linear_1.weight"


def make_transformer(kind: LatentKind, options: Mapping[str, Any]) -> nn.Module:
    """The randomly initialised network that denoises, of that family."""
    return getattr(import_diffusers(), kind.transformer_class)(**options)


def make_control(kind: LatentKind, options: Mapping[str, Any]) -> nn.Module:
    """A randomly initialised control branch of that family: its output layers are zero.

    Raises:
        ValueError: a family without one.
    """
    if not kind.control_class:
        raise ValueError(f"control: expected none, since {kind.components[0].source} has no control branch; leave it out")
    return getattr(import_diffusers(), kind.control_class)(**options)


def find_kind(name: str) -> LatentKind:
    """The family of that name, of one-step or of multi-step models.

    Raises:
        ValueError: unknown name.
    """
    known = LATENT_KINDS | MULTI_STEP_KINDS
    if name not in known:
        raise ValueError(f"kind: expected a latent backbone, got {name!r}; {did_you_mean(name, list(known))}")
    return known[name]


def components_of(kind: LatentKind, version: str = "") -> tuple[Component, ...]:
    """The parts of a family on disk, but for a control branch; those of another version of Stable Diffusion are other files."""
    return stable_diffusion.COMPONENTS_OF.get(version, kind.components) if kind.main == "unet" else kind.components


def tiny(name: str, *, seed: int = 0, options: Mapping[str, Any] | None = None, **facts: Any) -> LatentBackbone:
    """A backbone of the same architecture with a few thousand random parameters, for tests and for trying a workflow.

    Args:
        name: a key of `LATENT_KINDS`.
        seed: of the weights; the global random state is left alone.
        options: changes to the tiny configuration, {"transformer": {...}, "vae": {"class": ..., "options": {...}}}.
        facts: of the backbone: `latents`, `start_sigma`, `vae_tile_px`, ...
    """
    return _tiny(name, False, seed, options or {}, facts)


def tiny_multi_step(
    name: str, *, control: bool = False, seed: int = 0, options: Mapping[str, Any] | None = None, **facts: Any
) -> MultiStepModel:
    """The same for a key of `MULTI_STEP_KINDS`.

    Args:
        name: `flux1` or `stable_diffusion`.
        control: with a control branch; its output layers are zero, as before its training.
        seed: of the weights.
        options: changes to the tiny configuration, {"transformer": {...}, "control": {...}, "vae": {...}}.
        facts: of the backbone: `lora_scope`, `version`, `vae_tile_px`, ...
    """
    return _tiny(name, control, seed, options or {}, facts)


def _tiny(name: str, control: bool, seed: int, changes: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    kind = find_kind(name)
    own = {key: value for key, value in kind.tiny.items() if key not in ("transformer", "control", "vae")}
    if facts.get("version") == "sdxl":
        changes = {**changes, "transformer": {**stable_diffusion.TINY_XL, **changes.get("transformer", {})}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network_options = {**kind.tiny["transformer"], **changes.get("transformer", {})}
        modules = [make_transformer(kind, network_options), make_autoencoder(changes.get("vae", kind.tiny["vae"]))]
        if control:
            if kind.control_options is None:
                raise ValueError(f"control: expected none, since {name} has no control branch; leave it out")
            given = {**kind.control_options(network_options), **kind.tiny["control"], **changes.get("control", {})}
            modules.append(make_control(kind, given))
    for module in modules:
        module.eval().requires_grad_(False)
    return kind.backbone(*modules, **{"name": f"tiny {name}", **own, **facts})


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
    work_device: str | torch.device | None = None,
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
        work_device: where adapters are merged and layers quantised, one by one; None is `device`. A GPU is many times faster.
        use_compile: compile the transformer's repeated blocks at the first call (`compile_blocks`).
        facts: of the backbone: `latents`, `start_sigma`, `vae_tile_px`, ... An adapter's own facts come first; to contradict
            them is an error.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
        WeightsError: damaged files, or files of another model.
        ValueError: unknown name or precision, or an adapter of another backbone.
    """
    merged = [*adapters] if lora is None else [(read_adapter(lora), lora_strength), *adapters]
    chosen = {"transformer": transformer, "vae": autoencoder}
    return _open(name, source, folders or {}, chosen, precision, merged, device, work_device, use_compile, facts)


def open_multi_step(
    name: str,
    source: str | Path | None = None,
    *,
    folders: Mapping[str, Iterable[str | Path]] | None = None,
    network: str | Path | None = None,
    autoencoder: str | Path | None = None,
    control: str | Path | None = None,
    precision: str = "bf16",
    adapters: Sequence[tuple[Adapter, float]] = (),
    device: str | torch.device = "cpu",
    work_device: str | torch.device | None = None,
    use_compile: bool = False,
    **facts: Any,
) -> MultiStepModel:
    """Open a model that is sampled in many steps from what a user has on disk. Nothing is downloaded.

    Adapters that act on all tokens are merged into the weights. Those of scope `condition_only` cannot be: they stay beside the
    weights, which may be quantised all the same.

    Args:
        name: a key of `MULTI_STEP_KINDS`.
        source: a diffusers folder; `tiny` for a random miniature; None to search `folders` for single files.
        folders: ComfyUI's key -> folders, for example {"diffusion_models": [...], "checkpoints": [...], "vae": [...]}.
        network: path or file name of transformer or UNet in place of the published one, also beside a diffusers folder.
        autoencoder: the same for the autoencoder.
        control: path or file name of a control branch, diffusers folder or plain state dict as released; `auto`: the released
            one; `tiny` beside a tiny model, which also takes a file that was trained on it; None: conditioning without one.
        precision: a key of `PRECISIONS`. With `fp16` the autoencoder stays float32.
        adapters: as read by `lora_files.read_adapter`, each with its strength, in that order.
        device: where the modules go; `meta` checks all files and adapters and gives a backbone without values.
        work_device: where adapters are merged and layers quantised, one by one; None is `device`. A GPU is many times faster.
        use_compile: compile what repeats at the first call.
        facts: of the backbone: `version`, `lora_scope`, `condition_stride`, `vae_tile_px`, ... An adapter's own facts come
            first; to contradict them is an error.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
        WeightsError: damaged files, or files of another model.
        ValueError: unknown name or precision, or an adapter or control branch of another backbone.
    """
    if name not in MULTI_STEP_KINDS:
        raise ValueError(f"kind: expected a model of many steps, got {name!r}; {did_you_mean(name, list(MULTI_STEP_KINDS))}")
    chosen = {MULTI_STEP_KINDS[name].main: network, "vae": autoencoder, "control": control}
    return _open(name, source, folders or {}, chosen, precision, list(adapters), device, work_device, use_compile, facts)


def find_files(
    name: str,
    source: str | Path | None = None,
    *,
    folders: Mapping[str, Iterable[str | Path]] | None = None,
    chosen: Mapping[str, str | Path | None] | None = None,
    version: str = "",
) -> tuple[dict[str, Path], list[str]]:
    """What `open_backbone` and `open_multi_step` would read, without reading it.

    Args:
        name: a key of `LATENT_KINDS` or `MULTI_STEP_KINDS`.
        source: see `open_backbone`.
        folders: see `open_backbone`.
        chosen: `transformer` or `unet`, `vae`, `control` -> path or file name in place of the published one; None: not chosen.
        version: of Stable Diffusion.

    Returns:
        Part -> file or folder, none for `tiny`; one line for each part that is less exact than what was asked for.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
    """
    if source == TINY:
        return {}, []
    kind, given = find_kind(name), {key: path for key, path in (chosen or {}).items() if path is not None}
    paths = _paths(kind, source, folders or {}, given, version)
    return paths, remarks(kind.components, paths, given)


def _open(
    name: str,
    source: str | Path | None,
    folders: Mapping[str, Iterable[str | Path]],
    chosen: Mapping[str, str | Path | None],
    precision: str,
    adapters: Sequence[tuple[Adapter, float]],
    device: str | torch.device,
    work_device: str | torch.device | None,
    use_compile: bool,
    facts: dict[str, Any],
) -> Any:
    kind = find_kind(name)
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected {', '.join(PRECISIONS)}, got {precision!r}; {did_you_mean(precision, list(PRECISIONS))}"
        )
    dtype = PRECISIONS[precision]
    vae_dtype = torch.float32 if precision == "fp16" else dtype
    for adapter, _ in adapters:
        facts = adapter.agree(name, facts)
    is_meta = torch.device(device).type == "meta"
    given = {key: path for key, path in chosen.items() if path is not None}
    if source == TINY:
        backbone = _tiny(name, "control" in given, 0, {}, facts)
        if str(given.get("control", TINY)) not in (TINY, AUTO):  # one that was trained on the miniature
            backbone.control = _load_control(kind, Path(given["control"]), next(iter(backbone.modules()))[1], dtype, is_meta)
        for part, module in backbone.modules():
            nn.Module.to(module, dtype=vae_dtype if part == "vae" else dtype)  # diffusers' own method warns about absent modules
    else:
        paths, said = find_files(name, source, folders=folders, chosen=given, version=str(facts.get("version", "")))
        for remark in () if is_meta else said:
            LOGGER.warning("%s: %s", name, remark)
        network = _load_transformer(kind, paths[kind.main], dtype, is_meta)
        coder = load_autoencoder(paths["vae"], vae_dtype, kind.autoencoder, shapes_only=is_meta)
        modules = [network, coder]
        if "control" in paths:
            modules.append(_load_control(kind, paths["control"], network, dtype, is_meta))
        backbone = kind.backbone(*modules, **facts)
    worker = device if work_device is None else work_device
    _adapt(backbone, adapters, is_meta, worker)
    for adapter, _ in adapters:
        backbone.spec = trained_at(backbone.spec, adapter.info)
    trained = next(iter(backbone.modules()))[1]
    if precision in BITS and not is_meta:
        for part, module in backbone.modules():
            if part != "vae":
                quantize(module, BITS[precision], worker)
    for _, module in backbone.modules():
        nn.Module.to(module, device=device)
    if use_compile and not is_meta:
        if isinstance(backbone, flux1.Flux1Backbone):
            backbone.compile_blocks()
        else:
            compile_blocks(trained)
    return backbone


def _adapt(backbone: Any, adapters: Sequence[tuple[Adapter, float]], is_meta: bool, worker: str | torch.device) -> None:
    trained = next(iter(backbone.modules()))[1]
    for adapter, strength in adapters:
        if is_meta:
            adapter.check(trained)
        elif adapter.info.get("lora_scope") == "condition_only":
            adapter.add_beside(trained, strength=strength)
        else:
            adapter.merge_into(trained, strength, worker)


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
    version: str,
) -> dict[str, Path]:
    components = components_of(kind, version)
    if "control" in chosen:
        if kind.control is None:
            raise ValueError("control: expected none, since this model has no control branch; leave it out")
        components = (*components, kind.control)
        if chosen["control"] == AUTO:
            chosen = {key: path for key, path in chosen.items() if key != "control"}
    if source is None:
        return find_components(components, folders, chosen)
    root = Path(source).expanduser()
    outside = [part for part in components if part.name in chosen or part.name == "control"]
    rest = [part for part in components if part not in outside]
    replaced = find_components(outside, folders, chosen)
    return components_of_folder(root, rest) | replaced if rest else replaced


def _load_transformer(kind: LatentKind, path: Path, dtype: torch.dtype, shapes_only: bool) -> nn.Module:
    part = read_part(path, shapes_only=shapes_only)
    state = kind.to_diffusers(part.state, part.source)
    options = kind.infer_options(state) if part.config is None else known_options(part, (kind.transformer_class,))
    return build_module(lambda: make_transformer(kind, options), state, dtype, part.source)


def _load_control(kind: LatentKind, path: Path, network: nn.Module, dtype: torch.dtype, shapes_only: bool) -> nn.Module:
    """A control branch from a diffusers folder, or a plain state dict whose options are those of the released ones."""
    part = read_part(path, shapes_only=shapes_only, wrappers=())
    assert kind.control_options is not None
    options = kind.control_options(plain_config(network))
    if part.config is not None:
        options = known_options(part, (kind.control_class,))
    elif kind.main == "unet":
        options = {**options, **stable_diffusion.hint_options(part.state)}
    else:
        blocks = {key: count_blocks(part.state, f"{start}transformer_blocks.") for key, start in _CONTROL_DEPTHS.items()}
        options = {**options, **blocks, "guidance_embeds": _GUIDANCE in part.state}
    return build_module(lambda: make_control(kind, options), part.state, dtype, part.source)


def save(path: str | Path, backbone: LatentBackbone | MultiStepModel, info: Mapping[str, Any] | None = None) -> Path:
    """Write all modules with their configuration as one AlignSR file, for small models trained from scratch."""
    tensors = {f"{name}.{key}": tensor for name, module in backbone.modules() for key, tensor in module.state_dict().items()}
    header = {
        "backbone": backbone.architecture,
        "architecture": backbone.architecture,
        "options": backbone.options,
        "name": backbone.spec.name,
        "licence": backbone.spec.licence,
    }
    return save_weights(path, tensors, {**header, **(info or {})})


def load(path: Path, info: dict[str, Any]) -> Any:
    """Build the backbone that `info` (a weight file's header) describes and load its weights strictly, in float32.

    Raises:
        WeightsError: damaged, or weights that do not fit.
        ValueError: a header that names an unknown backbone.
    """
    kind = find_kind(str(info["backbone"]))
    if info.get("architecture") == "lora":
        raise WeightsError(f"{path}: expected a whole model, got an adapter of {info['backbone']}; open its base model with it")
    options = dict(info["options"])
    lacking = [key for key in (kind.main, "vae") if not isinstance(options.get(key), dict)]
    if lacking:
        raise WeightsError(f"{path}: expected options.{' and options.'.join(lacking)} in the header; export the file again")
    makers: dict[str, Callable[[], nn.Module]] = {
        kind.main: lambda: make_transformer(kind, options[kind.main]),
        "vae": lambda: make_autoencoder(options["vae"]),
        **({"control": lambda: make_control(kind, options["control"])} if "control" in options else {}),
    }
    state = load_state_dict(path)
    modules = [
        build_module(
            make,
            {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")},
            torch.float32,
            f"{path} ({name})",
        )
        for name, make in makers.items()
    ]
    facts = {key: value for key, value in options.items() if key not in makers}
    named = {"name": str(info.get("name", path.stem)), "licence": str(info.get("licence", "unknown"))}
    return kind.backbone(*modules, **facts, **named)
