"""Adapters on disk: our safetensors file, the released pair of pickles, and the formats of ComfyUI's and diffusers' loaders."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .lora import LORA_TARGETS, Adapter, fits
from .lora_names import from_diffusers, from_foreign, is_foreign
from .weights import MissingModelError, WeightsError, check_state, load_state_dict, read_info, read_notes, save_weights

# what the released weights were made with and do not say themselves: specification strsr.md, sections 1.4, 1.5 and 5
RELEASED: dict[str, dict[str, Any]] = {
    "flux2_klein": {"base": "FLUX.2-klein-base-4B", "latents": "native", "start_sigma": 0.8, "step_length": 0.8},
    "z_image": {"base": "Z-Image-Turbo", "latents": "raw", "start_sigma": 0.8, "step_length": 0.8},
    "flux1": {"base": "FLUX.1-dev", "lora_scope": "condition_only", "guidance": 3.5},  # ASASR; asasr.md 3.2 and 3.3
}
FORMATS = ("alignsr", "comfyui", "diffusers")
_PEFT = "base_model.model."  # so the released files name their layers
_PREFIXES = (_PEFT, "transformer.", "unet.")
PEFT_NOTE = "adapter_config.json"
DIFFUSERS_NOTE = "lora_adapter_metadata"  # where diffusers looks for alpha, which its key names have no place for
_ONLY_FLUX1 = (  # FLUX.2's blocks share one modulation, and its single blocks one layer for q, k, v and the feed-forward part
    "*.norm.linear", "*.norm1.linear", "*.norm1_context.linear", "single_transformer_blocks.*.attn.to_[qkv]", "*.proj_mlp",
    "single_transformer_blocks.*.proj_out", "*.ff.net.*", "*.ff_context.net.*",
)  # fmt: skip
_PARTS = ("lora", "projector", "full")


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter: our safetensors file, or `state_dict.pth` as released (or the folder it lies in) with `projector.pth`.

    Files that we wrote for diffusers or for ComfyUI are read back too, without the projector, and so are adapters of other
    programs under diffusers', PEFT's, ComfyUI's, kohya's or the original checkpoints' names; such a one is made for the base
    model and says nothing of latents and noise level. Alphas under PEFT's names are those of the `adapter_config.json` beside
    the file. Pickle files are read under `weights_only=True`.

    Raises:
        MissingModelError: nothing there.
        WeightsError: damaged, or neither of both kinds.
    """
    path = Path(path).expanduser()
    file = path / "state_dict.pth" if path.is_dir() else path
    if not file.is_file():
        raise MissingModelError(
            f"lora: expected an adapter file or a folder with state_dict.pth, found no {file}; check the path"
        )
    is_pickle, projector = file.suffix != ".safetensors", file.with_name("projector.pth")
    if is_pickle and projector.is_file():
        return from_released(file, projector)
    info, state = {} if is_pickle else read_info(file), load_state_dict(file)
    if is_foreign(state) or info.get("layout") == "comfyui":
        return _from_foreign(state, info, str(file))
    if info.get("architecture") != "lora":
        note = {} if is_pickle else _diffusers_note(file)
        if not note and _is_released(state):
            return _described(_canonical(state), {}, str(file))
        if not note and all(name.startswith(_PEFT) for name in state):
            note = _peft_note(file, state)
        return _from_diffusers(_canonical(state), note, str(file))
    if info.get("layout") == "diffusers":
        return Adapter(_canonical(state), info, {}, str(file))
    parts = {part: {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")} for part in _PARTS}
    return Adapter(parts["lora"], info, parts["projector"], str(file), parts["full"])


def from_released(state_dict: str | Path, projector: str | Path | None = None) -> Adapter:
    """Read the two files of a released one-step model and say what they are.

    Args:
        state_dict: PEFT names, `base_model.model.<layer>.lora_A.default.weight`.
        projector: `0.weight 0.bias 2.weight 2.bias`.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged, a pickle that would run code, or other names.

    Source:
        StrSR specification, section 1.7.
    """
    named = load_state_dict(state_dict)
    if not _is_released(named) and any(name.startswith(_PREFIXES[1:]) for name in named):
        raise WeightsError(
            f"{state_dict}: expected PEFT's names ({_PEFT}...) as the released files have them, got diffusers' "
            f"({min(named)}); save this adapter as safetensors"
        )
    state = _canonical(named)
    layers: dict[str, Tensor] = {} if projector is None else load_state_dict(projector)
    if layers:
        check_projector(layers, str(projector))
    return _described(state, layers, str(state_dict))


def _from_foreign(state: Mapping[str, Tensor], info: Mapping[str, Any], source: str) -> Adapter:
    """An adapter of another program, or one that we wrote for ComfyUI, whose header still says what it was made for."""
    if info.get("backbone") in ("flux1", "stable_diffusion"):  # written here, with diffusers' own names in another dress
        plain = {_undressed(name): tensor for name, tensor in state.items() if not name.endswith(".alpha")}
        return Adapter(plain, info, {}, source)
    named, rank, alpha = from_foreign(state, source)
    if info.get("architecture") == "lora":
        return Adapter(named, info, {}, source)
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in named})
    return Adapter(
        named, {"backbone": _kind_of(layers, named, source), "rank": rank, "alpha": alpha, "targets": layers}, {}, source
    )


def _is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether a file without our header is one of those that the papers' authors published.

    StrSR's are the state of a model in PEFT's hands, with the adapter's name in every key, which PEFT leaves out of what it
    saves, and lie on every kind of layer of the published list. ASASR's have PEFT's or diffusers' names and are known by their
    layers, which are all that FLUX.1 has of those kinds, the embedder of the picture included.

    Source:
        strsr.md section 1.7; asasr.md sections 3.2 and 3.3.
    """
    layers = {name.rsplit(".lora_", 1)[0] for name in _canonical(state)}
    is_whole_state = all(name.startswith(_PEFT) and name.endswith(".default.weight") for name in state)
    for kind in RELEASED if is_whole_state else ("flux1",):
        patterns = [{pattern for pattern in LORA_TARGETS[kind] if fits(layer, pattern)} for layer in layers]
        if all(patterns) and set[str]().union(*patterns) == set(LORA_TARGETS[kind]):
            return True
    return False


def _from_diffusers(state: Mapping[str, Tensor], note: Mapping[str, Any], source: str) -> Adapter:
    """An adapter of another program on diffusers' layers, whose alphas are in a note in the header or beside it, if anywhere."""
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in state if ".lora_" in name})
    patterns: Mapping[str, float] = note.get("alpha_pattern") or {}
    # PEFT's rule: a pattern is the end of a layer's name, as a regular expression
    found = [(layer, next((p for p in patterns if re.fullmatch(rf"(.*\.)?({p})", layer)), None)) for layer in layers]
    alphas = {layer: float(patterns[pattern]) for layer, pattern in found if pattern is not None}
    common = note.get("lora_alpha")
    matrices, rank, alpha = from_diffusers(state, alphas, None if common is None else float(common), source)
    return Adapter(
        matrices, {"backbone": _kind_of(layers, state, source), "rank": rank, "alpha": alpha, "targets": layers}, {}, source
    )


def _diffusers_note(file: Path) -> dict[str, Any]:
    """What diffusers wrote into the header of the network's adapter, without the prefix of its keys; {} if nothing.

    Raises:
        WeightsError: a note that cannot be read, or one that asks for another scale than alpha / rank.
    """
    text = read_notes(file).get(DIFFUSERS_NOTE, "{}")
    try:
        everything: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: expected a JSON object in {DIFFUSERS_NOTE}, got {text[:60]!r}; get it again") from error
    split = [(*key.partition(".")[::2], value) for key, value in everything.items()]
    return _checked_note({key: value for prefix, key, value in split if prefix in ("transformer", "unet")}, file)


def _peft_note(file: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `adapter_config.json` that PEFT writes beside an adapter; {} if there is none.

    Raises:
        WeightsError: one that cannot be read, or that is another adapter's.
    """
    place = file.with_name(PEFT_NOTE)
    if not place.is_file():
        return {}
    try:
        note: dict[str, Any] = dict(json.loads(place.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{place}: expected a JSON object, got {error}; get it again, or take it away") from error
    ranks = {int(tensor.shape[0]) for name, tensor in state.items() if ".lora_A." in name}
    if "r" in note and note["r"] not in ranks and not note.get("rank_pattern"):
        raise WeightsError(
            f"{file}: expected matrices of rank {note['r']}, which {place.name} beside it says, got {sorted(ranks)}; "
            "put each adapter into a folder with its own"
        )
    return _checked_note(note, file)


def _checked_note(note: dict[str, Any], file: Path) -> dict[str, Any]:
    for key in ("use_rslora", "use_dora"):
        if note.get(key):
            raise WeightsError(f"{file}: expected an adapter of scale alpha / rank, got one with {key}; it is not read here")
    return note


def _undressed(name: str) -> str:
    if not name.startswith("unet."):
        return name.removeprefix("transformer.")
    return name.removeprefix("unet.").replace(".processor.to_", ".to_").replace(".to_out.lora_", ".to_out.0.lora_")


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        names[name.replace(".default.weight", ".weight")] = tensor
    return names


def _described(state: dict[str, Tensor], projector: Mapping[str, Tensor], source: str) -> Adapter:
    downs = {name.removesuffix(".lora_A.weight"): tensor for name, tensor in state.items() if name.endswith(".lora_A.weight")}
    kind = _kind_of(downs, state, source)
    info = {"backbone": kind, "rank": int(next(iter(downs.values())).shape[0]), "targets": list(LORA_TARGETS[kind])}
    if kind not in RELEASED:
        raise WeightsError(
            f"{source}: expected an adapter that says what it was made with, got one of {kind} without a header; none was "
            "released under such names"
        )
    return Adapter(state, {**info, "alpha": info["rank"], **RELEASED[kind]}, projector, source)


def _kind_of(layers: Iterable[str], state: Mapping[str, Tensor], source: str) -> str:
    """The backbone whose blocks the layers lie in; of both FLUX the one that has layers of those names."""
    starts = {
        "flux2_klein": ("single_transformer_blocks.", "transformer_blocks."),
        "z_image": ("layers.", "noise_refiner."),
        "stable_diffusion": ("down_blocks.", "mid_block.", "up_blocks."),
    }
    layers = list(layers)
    kinds = [kind for kind, start in starts.items() if any(layer.startswith(start) for layer in layers)]
    if kinds == ["flux2_klein"] and any(fnmatchcase(layer, name) for layer in layers for name in _ONLY_FLUX1):
        kinds = ["flux1"]
    if len(kinds) != 1:
        found = ", ".join(sorted(state)[:3])
        raise WeightsError(f"{source}: expected an adapter of {' or '.join(LORA_TARGETS)}, got {found}; choose another file")
    return kinds[0]


def check_projector(state: Mapping[str, Tensor], source: str, width: int | None = None) -> int:
    """Check the names and shapes of the projector: in -> out / 2 -> out.

    Args:
        state: its tensors.
        source: for messages.
        width: what the backbone takes; None does not ask.

    Returns:
        The output width: 7680 for FLUX.2 klein, 2560 for Z-Image.

    Raises:
        WeightsError: other names or shapes, or the projector of another backbone.
    """
    out = state["2.bias"].shape[0] if "2.bias" in state else width or 2
    inputs = state["0.weight"].shape[-1] if "0.weight" in state else 1
    shapes = {"0.weight": (out // 2, inputs), "0.bias": (out // 2,), "2.weight": (out, out // 2), "2.bias": (out,)}
    check_state(state, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, source)
    if width is not None and out != width:
        raise WeightsError(
            f"{source}: expected a projector to {width} channels, got one to {out}; it belongs to another backbone"
        )
    return out


def save_adapter(path: str | Path, adapter: Adapter) -> Path:
    """Write adapter and projector as one safetensors file whose header says what they are."""
    tensors = {f"lora.{name}": tensor for name, tensor in adapter.state.items()}
    tensors |= {f"projector.{name}": tensor for name, tensor in adapter.projector.items()}
    tensors |= {f"full.{name}": tensor for name, tensor in adapter.full.items()}
    return save_weights(path, tensors, {**adapter.info, "architecture": "lora", "options": {}})


def comfy_name(backbone: str, layer: str) -> str:
    """What ComfyUI's LoRA loader calls a layer.

    Layers that its model keeps fused (q, k, v) go by diffusers' names, which it maps to slices; the rest by the model's own.

    Raises:
        ValueError: unknown backbone.
    """
    if backbone not in LORA_TARGETS:
        raise ValueError(f"backbone: expected {' or '.join(LORA_TARGETS)}, got {backbone!r}; choose one of them")
    if backbone == "z_image":
        return f"diffusion_model.{layer}"
    if backbone == "flux1":
        return f"transformer.{layer}"
    if backbone == "stable_diffusion":
        return "unet." + layer.replace(".to_", ".processor.to_").removesuffix(".0")
    start, index, rest = layer.split(".", 2)
    own = {
        "attn.to_qkv_mlp_proj": "single_blocks.{}.linear1",
        "attn.to_out": "single_blocks.{}.linear2",
        "attn.to_out.0": "double_blocks.{}.img_attn.proj",
        "attn.to_add_out": "double_blocks.{}.txt_attn.proj",
    }
    return f"diffusion_model.{own[rest].format(index)}" if rest in own else f"transformer.{start}.{index}.{rest}"


def export_for_comfy(path: str | Path, adapter: Adapter, dtype: torch.dtype | None = None) -> Path:
    """Write an adapter in the key format that ComfyUI's own LoRA loader understands, with its alpha and our facts in the header.

    Args:
        path: a .safetensors file, for ComfyUI's models/loras.
        adapter: from `read_adapter` or made of `adapter_state`.
        dtype: of the matrices; None keeps theirs.

    Raises:
        ValueError: an adapter that acts on condition tokens alone, or with parameters trained whole: ComfyUI has neither.
    """
    if adapter.info.get("lora_scope") == "condition_only" or adapter.full:
        raise ValueError(
            f"file_format: expected 'alignsr' or 'diffusers' for {adapter.source}, got 'comfyui', whose loader folds adapters "
            "into the weights; this one acts on condition tokens alone or has parameters trained whole"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.state.items():
        layer, half = name.removesuffix(".weight").rsplit(".", 1)
        target = comfy_name(str(adapter.info["backbone"]), layer)
        tensors[f"{target}.{half}.weight"] = tensor if dtype is None else tensor.to(dtype)
        tensors[f"{target}.alpha"] = torch.tensor(adapter.scale * adapter.rank)
    return save_weights(path, tensors, {**adapter.info, "architecture": "lora", "layout": "comfyui", "options": {}})


def export_for_diffusers(path: str | Path, adapter: Adapter, dtype: torch.dtype | None = None) -> Path:
    """Write an adapter as diffusers' pipelines read it (`load_lora_weights`), with its alpha and our facts in the header.

    Args:
        path: a .safetensors file.
        adapter: from `read_adapter` or made of `adapter_state`.
        dtype: of the matrices; None keeps theirs.

    Raises:
        ValueError: an adapter with parameters trained whole, which diffusers' files have no place for.
    """
    if adapter.full:
        raise ValueError(
            f"file_format: expected 'alignsr' for {adapter.source}, which has parameters trained whole, got 'diffusers'"
        )
    prefix = "unet" if adapter.info["backbone"] == "stable_diffusion" else "transformer"
    tensors = {f"{prefix}.{name}": tensor if dtype is None else tensor.to(dtype) for name, tensor in adapter.state.items()}
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in adapter.state})
    config = {"r": adapter.rank, "lora_alpha": adapter.scale * adapter.rank, "target_modules": layers}
    note = json.dumps({f"{prefix}.{key}": value for key, value in config.items()}, sort_keys=True)
    info: dict[str, Any] = {**adapter.info, "architecture": "lora", "layout": "diffusers", "options": {}}
    return save_weights(path, tensors, info, {DIFFUSERS_NOTE: note})


def write_adapter(path: str | Path, adapter: Adapter, file_format: str = "alignsr", dtype: torch.dtype | None = None) -> Path:
    """Write an adapter in one of `FORMATS`.

    Args:
        path: a .safetensors file.
        adapter: what to write; only `alignsr` keeps its projector.
        file_format: `alignsr`, `comfyui` or `diffusers`.
        dtype: of the matrices; None keeps theirs.

    Raises:
        ValueError: an unknown format.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format: expected one of {', '.join(FORMATS)}, got {file_format!r}; choose one of them")
    if file_format == "comfyui":
        return export_for_comfy(path, adapter, dtype)
    if file_format == "diffusers":
        return export_for_diffusers(path, adapter, dtype)
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in adapter.state.items()}
    return save_adapter(path, replace(adapter, state=state))
