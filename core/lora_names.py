"""Adapters under the names of other programs: ComfyUI's, kohya's and the original checkpoints', to diffusers' layers.

    diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight        the model's own names, fused q, k, v
    lora_unet_layers_0_attention_to_q.lora_down.weight                    the same with underscores
    transformer.transformer_blocks.0.attn.to_q.lora_A.weight              diffusers' names

Each with an optional `.alpha`. A fused layer's matrices are those of its three parts: A in common, B in three blocks of rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .weights import WeightsError

_PREFIXES = ("base_model.model.", "diffusion_model.", "lora_unet_", "lora_transformer_", "transformer.")
_HALVES = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}
_KEY = re.compile(r"(?P<layer>.+?)\.(?:(?P<half>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|(?P<alpha>alpha))")
_FLUX_PARTS = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
}
_Z_IMAGE_PARTS = {"attention.out": "attention.to_out.0"}
_BLOCKS = {
    "double_blocks": "transformer_blocks",
    "single_blocks": "single_transformer_blocks",
    "transformer_blocks": "transformer_blocks",
    "single_transformer_blocks": "single_transformer_blocks",
    "layers": "layers",
    "noise_refiner": "noise_refiner",
    "context_refiner": "context_refiner",
}
_PLACE = re.compile(rf"({'|'.join(sorted(_BLOCKS, key=len, reverse=True))})[._](\d+)[._](.+)")
# what follows the block's number, with the underscores that belong to a name: for keys in which every dot has become one
_NAMES = (
    *_FLUX_PARTS,
    *_FUSED,
    *_FLUX_PARTS.values(),
    *_Z_IMAGE_PARTS,
    *_Z_IMAGE_PARTS.values(),
    *(name for parts in _FUSED.values() for name in parts),
    *(f"feed_forward.w{n}" for n in (1, 2, 3)),
)
_UNDERSCORED = {name.replace(".", "_"): name for name in _NAMES}


@dataclass
class _Layer:
    """What a file says of one layer."""

    halves: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    alpha: float | None = None


def is_foreign(state: Mapping[str, Tensor]) -> bool:
    """Whether a file has the names of another program than PEFT or diffusers."""
    return any(
        name.startswith(("diffusion_model.", "lora_unet_", "lora_transformer_")) or ".lora_down." in name for name in state
    )


def from_foreign(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], int, float]:
    """The matrices of an adapter under diffusers' names, all of one rank and alpha.

    Where ranks differ, smaller ones are filled up with zeros; where alphas differ, B carries the factor. Neither changes B A.

    Args:
        state: as read.
        source: for messages.

    Returns:
        `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, the rank, and alpha.

    Raises:
        WeightsError: another kind of adapter (LoKr, LoHa, DoRA), layers outside the blocks, or half of a pair missing.
    """
    found: dict[str, _Layer] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        match = _KEY.fullmatch(name)
        place = None if match is None else _PLACE.fullmatch(_without_prefix(match["layer"]))
        if match is None or place is None:
            unknown.append(name)
            continue
        rest = place[3] if "." in place[3] else _UNDERSCORED.get(place[3], place[3])
        layer = found.setdefault(f"{_BLOCKS[place[1]]}.{place[2]}.{rest}", _Layer())
        if match["half"] is None:
            layer.alpha = float(tensor)
        else:
            layer.halves[_HALVES[match["half"]]] = tensor
    _check_pairs(found, unknown, source, " in the transformer's blocks")
    return _uniform(_split(found))


def from_diffusers(
    state: Mapping[str, Tensor], alphas: Mapping[str, float], alpha: float | None, source: str
) -> tuple[dict[str, Tensor], int, float]:
    """The matrices of an adapter that already has diffusers' names, all of one rank and alpha, as `from_foreign` makes them.

    Args:
        state: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, perhaps `<layer>.alpha`.
        alphas: of single layers, as the file's header says.
        alpha: of all others; None is their rank.
        source: for messages.

    Returns:
        `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, the rank, and alpha.

    Raises:
        WeightsError: another kind of adapter (DoRA), or half of a pair missing.
    """
    found: dict[str, _Layer] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        match = _KEY.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        layer = found.setdefault(match["layer"], _Layer(alpha=alphas.get(match["layer"], alpha)))
        if match["half"] is None:
            layer.alpha = float(tensor)
        else:
            layer.halves[_HALVES[match["half"]]] = tensor
    _check_pairs(found, unknown, source)
    return _uniform({name: (layer.halves["A"], layer.halves["B"], _alpha_of(layer)) for name, layer in found.items()})


def _alpha_of(layer: _Layer) -> float:
    return float(layer.halves["A"].shape[0]) if layer.alpha is None else layer.alpha


def _check_pairs(found: Mapping[str, _Layer], unknown: Sequence[str], source: str, where: str = "") -> None:
    if unknown:
        raise WeightsError(
            f"{source}: expected pairs of lora_A and lora_B (or lora_down and lora_up){where}, got "
            f"{', '.join(sorted(unknown)[:3])}{f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''}; "
            f"LoKr, LoHa and DoRA{', and layers outside the blocks,' if where else ''} are not read here"
        )
    halved = sorted(name for name, layer in found.items() if set(layer.halves) != {"A", "B"})
    if halved or not found:
        raise WeightsError(
            f"{source}: expected two matrices per layer, got one for {', '.join(halved[:3]) or 'none'}; get the file again"
        )


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _split(found: Mapping[str, _Layer]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Diffusers' layer -> A, B and alpha; fused layers in three."""
    layers: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, layer in found.items():
        down, up = layer.halves["A"], layer.halves["B"]
        alpha = _alpha_of(layer)
        block, number, rest = name.split(".", 2)
        if rest in _FUSED:
            parts = up.chunk(3)
            layers |= {f"{block}.{number}.{part}": (down, b, alpha) for part, b in zip(_FUSED[rest], parts, strict=True)}
        else:
            rest = (_FLUX_PARTS | _Z_IMAGE_PARTS).get(rest, rest)
            layers[f"{block}.{number}.{rest}"] = (down, up, alpha)
    return layers


def _uniform(layers: Mapping[str, tuple[Tensor, Tensor, float]]) -> tuple[dict[str, Tensor], int, float]:
    rank = max(down.shape[0] for down, _, _ in layers.values())
    scales = {alpha / down.shape[0] for down, _, alpha in layers.values()}
    common = scales.pop() if len(scales) == 1 else 1.0
    state: dict[str, Tensor] = {}
    for name, (down, up, alpha) in layers.items():
        own = alpha / down.shape[0]
        missing = rank - down.shape[0]
        if missing:
            down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
            up = torch.cat([up, up.new_zeros(up.shape[0], missing)], 1)
        state[f"{name}.lora_A.weight"] = down
        state[f"{name}.lora_B.weight"] = up if own == common else up.float() * (own / common)
    return state, rank, common * rank
