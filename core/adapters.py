"""Several adapters on one network: a frozen one of supervised training, a policy, an adversary; and their sum as one file.

    y = W x + sum over active adapters of (alpha / rank) B A x

Reference, policy and adversary of preference training are the same network with other adapters active: there is no second copy.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .lora import BINDING_FACTS, Adapter, adapter_state, attach, load_attached
from .weights import WeightsError

_DEFAULTS = {"lora_scope": "all", "condition_stride": 1}  # of adapters that say nothing


class AdapterStack:
    """Named PEFT adapters on one network, which of them act, and which one is trained.

    PEFT turns gradients on for whatever it activates, frozen adapters included; here only what `train` named has them, whatever
    is active. With gradient checkpointing the blocks run again in the backward pass with the adapters that are active then: do
    not switch between a forward pass with gradient and its backward pass.

    Args:
        network: the module that holds the adapted layers, as `diffusers.FluxTransformer2DModel`; its parameters are frozen.

    Source:
        ASASR, arXiv:2605.23264, section 4; asasr.md 3.1.

    Example:
        >>> from alignsr.core.backbones.latent import tiny_multi_step
        >>> stack = AdapterStack(tiny_multi_step("flux1").transformer)
        >>> _ = stack.add("sft", ["to_q"], rank=2)
        >>> _ = stack.add("policy", ["to_q"], rank=2)
        >>> stack.use("sft", "policy")
        >>> len(stack.train("policy")) == len(stack.parameters("policy"))
        True
        >>> stack.active
        ('sft', 'policy')
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._trained: tuple[str, ...] = ()
        self._active: tuple[str, ...] = ()
        self._facts: dict[str, dict[str, Any]] = {}
        network.requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters, in the order of their adding."""
        return tuple(self._facts)

    @property
    def active(self) -> tuple[str, ...]:
        """Of those that act."""
        return self._active

    def add(
        self,
        name: str,
        targets: Sequence[str],
        rank: int,
        *,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
    ) -> list[nn.Parameter]:
        """A new adapter that changes nothing yet: A Gaussian, B zero, float32. It does not act before `use`.

        Args:
            name: of the adapter; letters, digits and underscores.
            targets: see `lora.resolve_targets`.
            rank: at least 1.
            alpha: scale times rank; None is `rank`.
            generator: of A.

        Returns:
            Its parameters.

        Raises:
            ValueError: a name that is taken or not one, rank 0, or targets that match nothing.
        """
        if name in self._facts or not name.isidentifier():
            raise ValueError(f"name: expected a new identifier beside {', '.join(self.names) or 'none'}, got {name!r}; rename it")
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}; 16 is usual for preferences, 64 for supervised training")
        scale = float(rank if alpha is None else alpha)
        made = attach(self.network, targets, rank, alpha=scale, adapter=name, generator=generator)
        self._facts[name] = {"rank": rank, "alpha": scale, "targets": list(targets)}
        self.use(*self._active)
        return made

    @torch.no_grad()
    def load(self, name: str, adapter: Adapter) -> None:
        """An adapter as read from disk, frozen. Parameters that it holds whole replace those of the base.

        Raises:
            WeightsError: it does not fit the network.
            ValueError: as `add`.
        """
        adapter.check(self.network)
        self.add(name, adapter.info["targets"], adapter.rank, alpha=adapter.scale * adapter.rank)
        self.fill(name, adapter)
        for key, value in adapter.full.items():
            parameter = self.network.get_parameter(key)
            parameter.copy_(value)

    @torch.no_grad()
    def fill(self, name: str, adapter: Adapter) -> None:
        """Give an adapter that was added the matrices of another one, so that it acts as that one; the B's make up for its alpha.

        Raises:
            WeightsError: another rank or other layers.
            ValueError: an unknown name.
        """
        self._check((name,))
        facts = self._facts[name]
        ratio = adapter.scale * facts["rank"] / facts["alpha"]
        state = {key: tensor * ratio if ".lora_B." in key else tensor for key, tensor in adapter.state.items()}
        load_attached(self.network, state, adapter.source, name)

    def train(self, *names: str) -> list[nn.Parameter]:
        """Say which adapters are trained; from now on they alone have gradients, after every switch too.

        Returns:
            Their parameters.
        """
        self._check(names)
        self._trained = names
        self._set_gradients()
        return [parameter for name in names for parameter in self.parameters(name)]

    def use(self, *names: str) -> None:
        """Make these adapters act, their contributions summed, and no others; no name is the network without any.

        Raises:
            ValueError: an unknown name.
        """
        self._check(names)
        for layer in self._layers():
            layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(list(names), inference_mode=True)
        self._active = names
        self._set_gradients()

    @contextmanager
    def using(self, *names: str) -> Generator[None]:
        """Inside, these adapters act; after it those that did before."""
        before = self._active
        self.use(*names)
        try:
            yield
        finally:
            self.use(*before)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """An adapter's matrices.

        Raises:
            ValueError: an unknown name.
        """
        self._check((name,))
        return [parameter for key, parameter in self.network.named_parameters() if _is_of(key, name)]

    def state(self, name: str) -> dict[str, Tensor]:
        """An adapter's matrices under the names used in files, sharing memory with them."""
        self._check((name,))
        return adapter_state(self.network, name)

    def adapter(self, name: str, /, **info: Any) -> Adapter:
        """An adapter as it would be written to disk.

        Args:
            name: of it.
            info: facts for the header besides rank, alpha and targets: `backbone`, `lora_scope`, ...
        """
        state = {key: tensor.clone() for key, tensor in self.state(name).items()}
        return Adapter(state, {**info, **self._facts[name]}, source=name)

    def _layers(self) -> list[Any]:
        return [module for module in self.network.modules() if hasattr(module, "lora_A") and hasattr(module, "set_adapter")]

    def _set_gradients(self) -> None:
        for key, parameter in self.network.named_parameters():
            if ".lora_" in key:
                parameter.requires_grad_(any(_is_of(key, name) for name in self._trained))

    def _check(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self._facts]
        if unknown:
            raise ValueError(
                f"adapter: expected {', '.join(self.names) or 'one that was added'}, got {', '.join(unknown)}; add it first"
            )


def _is_of(key: str, name: str) -> bool:
    return ".lora_" in key and f".{name}." in key


@torch.no_grad()
def merged_state(owner: nn.Module, network: nn.Module, *adapters: Adapter) -> dict[str, Tensor]:
    """The state of a module as if nothing were attached to it, with adapters' products added to the weights of their layers.

        W + sum over adapters of (alpha / rank) B A, in float32 where anything is added

    Args:
        owner: the module whose names and tensors are wanted.
        network: that module or one inside it, which holds the adapted layers.
        adapters: for layers of `network`; their matrices may lie on another device.
    """
    plain = ((key, tensor) for key, tensor in owner.state_dict().items() if ".lora_" not in key)
    state = {key.replace(".base_layer.", "."): tensor.detach() for key, tensor in plain}
    root: Any = owner
    prefix: str = next(name for name, module in root.named_modules() if module is network)
    for adapter in adapters:
        for layer in dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in adapter.state):
            key = f"{prefix}.{layer}.weight" if prefix else f"{layer}.weight"
            down, up = (adapter.state[f"{layer}.lora_{half}.weight"].to(state[key].device, torch.float32) for half in "AB")
            state[key] = torch.addmm(state[key].float(), up, down, alpha=adapter.scale)
    return state


def concatenate(*adapters: tuple[Adapter, float]) -> Adapter:
    """One adapter that acts as several together, exactly.

        A = [A_1; A_2; ...],   B = [s_1 B_1, s_2 B_2, ...],   s_i = strength_i alpha_i / rank_i;   alpha = rank = sum of ranks

    To sum the A's and the B's each would add the cross terms B_1 A_2 and B_2 A_1.

    Args:
        adapters: each with its strength; of the same backbone and scope.

    Returns:
        Matrices in float32; a layer that only some of them have is filled with zeros. Facts of the first.

    Raises:
        ValueError: none, or adapters of different backbones or scopes.
        WeightsError: two that hold the same parameter whole with different values, or a strength on one that holds any.

    Source:
        asasr.md 3.1, point 6.
    """
    if not adapters:
        raise ValueError("adapters: expected at least one, got none; give the adapters to join")
    first = adapters[0][0]
    for other, _ in adapters[1:]:
        for key in ("backbone", *BINDING_FACTS):
            if first.info.get(key, _DEFAULTS.get(key)) != other.info.get(key, _DEFAULTS.get(key)):
                raise ValueError(
                    f"adapters: expected one {key}, got {first.info.get(key)!r} of {first.source} and {other.info.get(key)!r} of "
                    f"{other.source}; join adapters that were trained together"
                )
    layers = list(dict.fromkeys(name.rsplit(".lora_", 1)[0] for adapter, _ in adapters for name in adapter.state))
    state: dict[str, Tensor] = {}
    for layer in layers:
        halves = [_halves(adapter, layer, strength, adapters) for adapter, strength in adapters]
        state[f"{layer}.lora_A.weight"] = torch.cat([down for down, _ in halves])
        state[f"{layer}.lora_B.weight"] = torch.cat([up for _, up in halves], 1)
    rank = sum(adapter.rank for adapter, _ in adapters)
    info: dict[str, Any] = {**first.info, "rank": rank, "alpha": float(rank), "targets": layers}
    source = " + ".join(adapter.source for adapter, _ in adapters)
    return Adapter(state, info, _same_projector(adapters), source, _joined(adapters))


def _halves(adapter: Adapter, layer: str, strength: float, adapters: Sequence[tuple[Adapter, float]]) -> tuple[Tensor, Tensor]:
    """[rank, in] and [out, rank] of a layer, the second scaled; zeros where this adapter leaves the layer alone."""
    names = [f"{layer}.lora_{half}.weight" for half in "AB"]
    if names[0] in adapter.state:
        down, up = (adapter.state[name].float() for name in names)
        return down, up * (strength * adapter.scale)
    like = next(other.state for other, _ in adapters if names[0] in other.state)
    return torch.zeros(adapter.rank, like[names[0]].shape[1]), torch.zeros(like[names[1]].shape[0], adapter.rank)


def _joined(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Tensor]:
    full: dict[str, Tensor] = {}
    for adapter, strength in adapters:
        if adapter.full and strength != 1.0:
            raise WeightsError(
                f"{adapter.source}: expected a strength of 1, since it holds parameters trained whole, got {strength}; leave it"
            )
        for name, value in adapter.full.items():
            if name in full and not torch.equal(full[name], value):
                raise WeightsError(
                    f"{adapter.source}: expected the {name} of the others, got another; join adapters that were trained together"
                )
            full[name] = value
    return full


def _same_projector(adapters: Sequence[tuple[Adapter, float]]) -> Mapping[str, Tensor]:
    found = [adapter.projector for adapter, _ in adapters if adapter.projector]
    if len(found) > 1:
        raise WeightsError("adapters: expected one with a projector at most, got several; join those trained together")
    return found[0] if found else {}


__all__ = ["AdapterStack", "concatenate", "merged_state"]
