"""What preference training moves, and the frozen model that it is compared with: one backbone for both, never a second copy.

- `control`: the control branch of the policy; the reference has the original one, and all else is shared
- `control_lora`: an adapter on the control branch; the reference is the same branch without it
- `lora`: an adapter on transformer, UNet or pixel network; the reference is the same network without it
"""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..core.adapters import AdapterStack, merged_state
from ..core.backbones.base import Adjustable
from ..core.diffusion import MultiStepBackbone
from ..core.weights import find_model, load_into, load_state_dict, read_info, save_weights
from .config import setting
from .multi_step import POLICY, AdapterConfig, MultiStepModelConfig, Trainee, add_adapter, build_trainee, save_trained
from .one_step import DTYPES, use_checkpointing
from .start import named_adapter

Kind = Literal["control", "control_lora", "lora"]
CONTROL_TARGETS: dict[str, tuple[str, ...]] = {
    "flux1": (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("controlnet_x_embedder", "controlnet_blocks.*"),
    ),
    "stable_diffusion": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
}


@dataclass
class Policy:
    """A model that is trained, and the one it is compared with.

    Attributes:
        kind: what is trained.
        trainee: the model as it acts as the policy.
        part: what is trained, and nothing else: what the optimiser moves and checkpoints hold.
        stack: adapters of the network that is adapted; None where the whole control branch is trained.
        original: the model with the reference's control branch; None where the reference is the model without the adapter, or
            where the reference's errors are known beforehand.
    """

    kind: Kind
    trainee: Trainee
    part: nn.Module
    stack: AdapterStack | None
    original: MultiStepBackbone | None

    @property
    def backbone(self) -> Any:
        """The policy."""
        return self.trainee.backbone

    @contextmanager
    def reference(self) -> Generator[MultiStepBackbone]:
        """The reference, inside the block. Do not enter it between the policy's forward pass and its backward pass.

        Raises:
            ValueError: it was let go.
        """
        if self.stack is not None:
            with self.stack.using(*(self.trainee.reference if self.kind == "lora" else ())):
                yield self.backbone
        elif self.original is not None:
            yield self.original
        else:
            raise ValueError("reference: expected one that was kept, got none; its errors were computed beforehand")

    def forget_reference(self) -> None:
        """Let the reference's own control branch go, once its errors are known."""
        self.original = None

    def adjust(self, *, guidance: float | None, control_scale: float) -> None:
        """Tell both models another guidance, None: the one they have, or weigh their control branches otherwise.

        Raises:
            ValueError: not a number in range, or a weight other than 1 without a control branch.
        """
        if isinstance(self.backbone, Adjustable):
            self.trainee.backbone = self.backbone.adjusted(guidance=guidance, control_scale=control_scale)
        if isinstance(self.original, Adjustable):
            self.original = self.original.adjusted(guidance=guidance, control_scale=control_scale)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules of both, each once."""
        yield from self.backbone.modules()
        if self.original is not None:
            yield "reference", dict(self.original.modules())["control"]

    def to(self, device: torch.device) -> None:
        """Move all modules in place."""
        for _, module in self.modules():
            nn.Module.to(module, device=device)


def check_policy(kind: Kind, model: MultiStepModelConfig) -> None:
    """What can be said before anything is built.

    Raises:
        ValueError: names the key.
    """
    if kind != "lora" and not model.control:
        raise ValueError(f'train: expected "lora" for a model without a control branch (model.control), got {kind!r}; change one')
    if kind != "lora" and model.adapter:
        raise ValueError(f"model.adapter: expected none where {kind} is trained, got {model.adapter!r}; merge it into the model")
    if kind == "lora" and model.precision in ("8bit", "4bit"):
        raise ValueError(
            f'model.precision: expected "bf16" or "fp32" for an adapter on the network itself, got {model.precision!r}; '
            'train = "control_lora" leaves the network alone'
        )


def build_policy(
    kind: Kind,
    model: MultiStepModelConfig,
    lora: AdapterConfig,
    *,
    seed: int = 0,
    name: str = "model",
    licence: str = "",
    folders: Sequence[str | Path] = (),
) -> Policy:
    """Policy and reference, equal at first unless `model.init` says what the policy starts from.

    Args:
        kind: what is trained.
        model: the reference; `init` is a control branch, or an adapter of the trained rank.
        lora: the trained adapter.
        seed: of the adapter.
        name: of the result.
        licence: of the result.
        folders: model folders.

    Raises:
        MissingModelError, WeightsError: a file is missing or does not fit.
        ValueError: a control branch or adapter of another backbone.

    Source:
        dp2o-sr.md 2.7 and 5.10: the whole control branch is trained, and nothing else; an adapter is the cheap variant.
    """
    trainee = build_trainee(model, name, licence, folders)
    backbone: Any = trainee.backbone
    if model.use_checkpointing:
        use_checkpointing(backbone)
    if kind == "control":
        nn.Module.to(backbone.control, dtype=torch.float32)  # in the precision of what is trained, so that both start equal
        original = copy.copy(backbone)
        original.control = copy.deepcopy(backbone.control)
        if model.init:
            with setting("model.init"):
                path = find_model(model.init, folders, what="a trained control branch")
            _load_control(backbone.control, path)
        backbone.control.requires_grad_(True)
        return Policy(kind, trainee, backbone.control, None, original)
    if kind == "lora":
        stack = trainee.stack
        add_adapter(trainee, POLICY, lora, seed=seed, init=model.init, folders=folders)
        stack.use(*trainee.reference, POLICY)
    else:
        stack = AdapterStack(backbone.control)
        targets = lora.targets or CONTROL_TARGETS[model.backbone]
        generator = torch.Generator().manual_seed(seed)
        stack.add(POLICY, targets, lora.rank, alpha=lora.alpha or None, generator=generator)
        if model.init:
            with setting("model.init"):
                start = named_adapter(model.init, folders)
            stack.fill(POLICY, start)
        stack.use(POLICY)
    return Policy(kind, trainee, nn.ParameterList(stack.train(POLICY)), stack, None)


def _load_control(control: nn.Module, path: Path) -> None:
    load_into(control, {key: value.float() for key, value in load_state_dict(path).items()}, str(path))


def save_policy(policy: Policy, path: Path, info: Mapping[str, Any], save_dtype: str = "fp32") -> Path:
    """Write what was trained, ready for use.

    A control branch, trained whole or by an adapter that is merged here, becomes a plain state dict as the released ones are; an
    adapter on the network an adapter file (`multi_step.save_trained`), and `pixel` a whole model.

    Args:
        policy: the live weights.
        path: ends in .safetensors.
        info: facts for the header.
        save_dtype: of the weights.
    """
    if policy.kind == "lora":
        return save_trained(policy.trainee, POLICY, path, info, save_dtype)
    control: nn.Module = policy.backbone.control
    state = merged_state(control, control, *([] if policy.stack is None else [policy.stack.adapter(POLICY)]))
    tensors = {key: value.to(DTYPES[save_dtype]) if value.is_floating_point() else value for key, value in state.items()}
    facts = {"backbone": policy.trainee.facts["backbone"], "architecture": "control", "base": policy.trainee.facts["base"]}
    if policy.stack is not None:
        adapter = policy.stack.adapter(POLICY)
        facts |= {"rank": adapter.rank, "alpha": adapter.scale * adapter.rank}
    return save_weights(path, tensors, {**info, **facts, "options": {}})


def trained_file(path: Path) -> tuple[str, str]:
    """(key, value) of `[model]` under which a model is opened with a file that `save_policy` wrote.

    Returns:
        ("control", path), ("adapter", path) or ("source", path).

    Raises:
        WeightsError: damaged.
        ValueError: another file.
    """
    info = read_info(path)
    keys = {"control": "control", "lora": "adapter", "pixel": "source"}
    kind = str(info.get("architecture", ""))
    if kind not in keys:
        raise ValueError(f"{path}: expected what preference training wrote, got {kind or 'another file'}; choose its result")
    joined = path.with_name(f"{path.stem}-with-sft.safetensors")
    return keys[kind], str(joined if kind == "lora" and joined.is_file() else path)
