"""Low-rank adapters of the latent backbones: which layers, attach, scale, merge. One resolver for training and inference.

y = W x + strength (alpha / rank) B A x,   A [rank, in],  B [out, rank]
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .compat import import_peft
from .low_rank import put_beside
from .weights import WeightsError, check_state

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "flux2_klein": (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("to_qkv_mlp_proj", "to_out"),
    ),
    "z_image": ("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "flux1": (
        *("x_embedder", "norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2"),
        *("norm.linear", "proj_mlp", "single_transformer_blocks.*.proj_out"),
    ),
    "stable_diffusion": ("to_q", "to_k", "to_v", "to_out.0"),
}
_FACTS = ("latents", "start_sigma", "step_length", "lora_scope", "condition_stride", "guidance")
BINDING_FACTS = ("latents", "lora_scope", "condition_stride")  # of these, what a caller asks for must be what an adapter has


def resolve_targets(transformer: nn.Module, patterns: Iterable[str]) -> list[str]:
    """The linear layers that a list of patterns means, in the order of the module; training and inference both ask here.

    A pattern is the end of a dotted name: `to_out` is a layer of that name and not `to_out.0`. One with a `*` is the whole name.

    Args:
        transformer: the module.
        patterns: for example `LORA_TARGETS["z_image"]`.

    Returns:
        Full names, without the `base_layer` that an attached adapter inserts.

    Raises:
        ValueError: a pattern that names no linear layer.

    Source:
        StrSR specification, section 2.6: 80 layers of FLUX.2 klein, 238 of Z-Image.
    """
    wanted = tuple(patterns)
    root: Any = transformer
    linear: list[str] = [n.removesuffix(".base_layer") for n, module in root.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in dict.fromkeys(linear) if any(fits(name, pattern) for pattern in wanted)]
    idle = [pattern for pattern in wanted if not any(fits(name, pattern) for name in chosen)]
    if idle or not chosen:
        raise ValueError(
            f"targets: expected ends of names of linear layers, {', '.join(idle) or 'an empty list'} match none in "
            f"{type(transformer).__name__}; use the list of this backbone, and attach or merge before quantising"
        )
    return chosen


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern of `resolve_targets` means the layer of that name."""
    return fnmatchcase(name, pattern) if "*" in pattern else name == pattern or name.endswith(f".{pattern}")


def expected_state(transformer: nn.Module, patterns: Iterable[str], rank: int) -> dict[str, Tensor]:
    """Names and shapes (meta tensors) that an adapter of that rank has."""
    state: dict[str, Tensor] = {}
    for name in resolve_targets(transformer, patterns):
        layer: Any = transformer.get_submodule(name)
        state[f"{name}.lora_A.weight"] = torch.empty(rank, layer.in_features, device="meta")
        state[f"{name}.lora_B.weight"] = torch.empty(layer.out_features, rank, device="meta")
    return state


def attach(
    transformer: nn.Module,
    patterns: Iterable[str],
    rank: int,
    *,
    alpha: float | None = None,
    adapter: str = "default",
    generator: Generator | None = None,
) -> list[nn.Parameter]:
    """Add a trainable float32 adapter with PEFT: A Gaussian with deviation 1 / rank, B zero, so nothing changes at first.

    Args:
        transformer: FLUX.2 or Z-Image; its own parameters are frozen.
        patterns: see `resolve_targets`.
        rank: of the adapter.
        alpha: scale times rank; None is `rank`, a scale of 1.
        adapter: PEFT's name for it.
        generator: of A, on the CPU.

    Returns:
        The adapter's parameters.

    Raises:
        ValueError: a pattern that matches nothing.

    Source:
        StrSR specification, section 2.6: rank 256, alpha 256, no dropout.
    """
    names = resolve_targets(transformer, patterns)
    model: Any = transformer
    scale = rank if alpha is None else alpha
    with warnings.catch_warnings():  # several adapters on one model are meant
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        model.add_adapter(import_peft().LoraConfig(r=rank, lora_alpha=scale, target_modules=names), adapter_name=adapter)
    found = {name: p for name, p in transformer.named_parameters() if f".{adapter}." in name and ".lora_" in name}
    for name, parameter in found.items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name and not parameter.is_meta:
            drawn = torch.empty(parameter.shape).normal_(0, 1 / rank, generator=generator)
            parameter.data.copy_(drawn)
    for parameter in transformer.parameters():
        parameter.requires_grad_(False)
    adapted = {name.split(".lora_")[0] for name in found}
    assert adapted == set(names), sorted(adapted.symmetric_difference(names))[:8]
    for parameter in found.values():
        parameter.requires_grad_(True)
    return list(found.values())


def adapter_state(transformer: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """The tensors of an attached adapter under the names used in files: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    end = f".{adapter}.weight"
    return {
        f"{name.removesuffix(end)}.weight": parameter.detach()
        for name, parameter in transformer.named_parameters()
        if name.endswith(end) and ".lora_" in name
    }


def load_attached(transformer: nn.Module, state: Mapping[str, Tensor], source: str, adapter: str = "default") -> None:
    """Copy an adapter's tensors into the attached adapter of that name, after an exact check.

    Raises:
        WeightsError: missing, unexpected and wrong-shaped entries, all at once.
    """
    own = adapter_state(transformer, adapter)
    _check_rank(state, next(iter(_ranks(own)), 0), source, "attach one of its rank")
    check_state(state, own, source)
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _ranks(state: Mapping[str, Tensor]) -> list[int]:
    return sorted({tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight")})


def _check_rank(state: Mapping[str, Tensor], rank: int, source: str, remedy: str) -> None:
    """One sentence where every matrix has one other rank, instead of a list of their shapes."""
    found = _ranks(state)
    if len(found) == 1 and found[0] != rank:
        raise WeightsError(f"{source}: expected an adapter of rank {rank}, got matrices of rank {found[0]}; {remedy}")


def set_strength(transformer: nn.Module, strength: float, adapter: str = "default") -> None:
    """Scale an attached adapter: 0 is the base model, 1 the adapter as trained."""
    for module in transformer.modules():
        layer: Any = module
        if adapter in getattr(module, "scaling", {}):  # PEFT's layers hold one scale per adapter
            layer.set_scale(adapter, strength)


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from disk, with what it was made for.

    Attributes:
        state: `<layer>.lora_A.weight` [rank, in] and `<layer>.lora_B.weight` [out, rank].
        info: `backbone`, `rank`, `alpha`, `targets`, `latents`, `start_sigma`, `step_length`, and free notes.
        projector: the two linear layers that bring the vision-language model's tokens to the backbone's width, or empty.
        source: path, for messages.
        full: parameters that were trained whole, as a widened first convolution: name -> the value that replaces the base's.
    """

    state: Mapping[str, Tensor]
    info: Mapping[str, Any]
    projector: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    source: str = "adapter"
    full: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def rank(self) -> int:
        """Rank of the matrices."""
        return int(self.info["rank"])

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return float(self.info.get("alpha", self.rank)) / self.rank

    def agree(self, backbone: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a backbone that this adapter needs, over which the caller's must not disagree.

        Raises:
            ValueError: the adapter of another backbone, or another latent convention.
        """
        if self.info["backbone"] != backbone:
            raise ValueError(
                f"lora: expected an adapter of {backbone}, {self.source} is one of {self.info['backbone']}; "
                "choose the file made for this backbone"
            )
        for key in BINDING_FACTS:
            if key in facts and key in self.info and facts[key] != self.info[key]:
                raise ValueError(
                    f"{key}: expected {self.info[key]!r}, which {self.source} was made with, got {facts[key]!r}; "
                    "leave the setting out"
                )
        return {**{key: self.info[key] for key in _FACTS if key in self.info}, **facts}

    def check(self, transformer: nn.Module) -> None:
        """Raise WeightsError unless names and shapes are exactly those of `targets` and `rank` on this transformer."""
        _check_rank(self.state, self.rank, self.source, "its header says the former, get the file again")
        check_state(self.state, expected_state(transformer, self.info["targets"], self.rank), self.source)
        own = transformer.state_dict() if self.full else {}
        check_state(self.full, {name: own[name] for name in self.full if name in own}, self.source)

    def merge_into(self, transformer: nn.Module, strength: float = 1.0, device: str | torch.device | None = None) -> None:
        """Add the adapter to the weights in place: W + strength scale B A, in float32, rounded once to the weights' precision.

        With B = 0 the weights stay as they are, bit for bit. Parameters trained whole go the same way: W + strength (full - W).

        Args:
            transformer: any device.
            strength: scales the adapter.
            device: where the products are made, layer by layer: rank 256 on a large model takes 2 to 3 TFLOP, up to a minute on
                a processor. None: where each layer lies.

        Raises:
            WeightsError: the adapter does not fit.
        """
        self.check(transformer)
        for name, value in self.full.items():
            parameter = transformer.get_parameter(name)
            wanted = value.to(parameter.device, torch.float32)
            parameter.data = torch.lerp(parameter.data.float(), wanted, strength).to(parameter.dtype)
        for name in resolve_targets(transformer, self.info["targets"]):
            layer: Any = transformer.get_submodule(name)
            weight: Tensor = layer.weight
            halves = [self.state[f"{name}.lora_{half}.weight"] for half in "AB"]
            if strength and bool(halves[1].any()):
                place = weight.device if device is None else torch.device(device)
                own, down, up = (tensor.to(place, torch.float32) for tensor in (weight.data, *halves))
                weight.data = torch.addmm(own, up, down, alpha=strength * self.scale).to(weight.dtype).to(weight.device)

    def add_beside(self, transformer: nn.Module, strength: float = 1.0) -> None:
        """Put the adapter beside the weights, in place, in their precision: for scope `condition_only`, see `low_rank`.

        Raises:
            WeightsError: the adapter does not fit.
            ValueError: it has parameters trained whole, which cannot act on some tokens only.
        """
        if self.full:
            raise ValueError(f"lora: expected matrices alone for scope condition_only, {self.source} has more; merge it instead")
        self.check(transformer)
        for name in resolve_targets(transformer, self.info["targets"]):
            layer: Any = transformer.get_submodule(name)
            down, up = (self.state[f"{name}.lora_{half}.weight"].to(layer.weight.device, torch.float32) for half in "AB")
            put_beside(transformer, name, down.to(layer.weight.dtype), (strength * self.scale * up).to(layer.weight.dtype))
