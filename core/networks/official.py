"""Weight files of the BasicSR family in and out: released .pth files, AESOP's aliases, DRCT's flat weights, export to ComfyUI."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights import WeightsError, check_state, load_state_dict, read_info, save_weights
from .autoencoder import ARCHITECTURE, SCALES, build_autoencoder

ENCODER_ALIASES = {"encoder.0.": "conv_first.", "encoder.2.": "body.", "encoder.3.": "conv_last."}  # 1 is the unshuffle
_ENCODER_PARTS = tuple(ENCODER_ALIASES.values())
_FLAT_ADJUST = re.compile(r"layers\.\d+\.adjust\d\.weight")
# what spandrel's detectors and constructors raise for weights that only resemble an architecture
SPANDREL_MISFITS = (RuntimeError, LookupError, ValueError, TypeError, AssertionError, AttributeError)
EXPORTABLE = {"rrdb": "ESRGAN", "swinir": "SwinIR", "drct": "DRCT"}  # ours -> spandrel's, and so ComfyUI's, name for it


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Read a weight file of the BasicSR family as one flat dict in the form our modules take.

    `params_ema` is preferred to `params` to a bare dict, a leading `module.` is stripped; DRCT's flat `adjust` weights
    [out, in], as AESOP's code stores them, become 1x1 convolutions [out, in, 1, 1]; the aliases of auto-encoder files are merged.

    Args:
        path: .pth (read under weights_only=True) or .safetensors.

    Returns:
        name -> CPU tensor.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: damaged or unsafe file, or aliases that disagree.

    Source:
        Specification aesop.md 3.2, 3.5, 3.6.
    """
    state = load_state_dict(path)
    return canonical_state(state, str(path)) if is_autoencoder(state) else with_4d_adjust(state)


def with_4d_adjust(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with `layers.i.adjustk.weight` as [out, in, 1, 1] where they are [out, in]."""
    return {
        name: tensor[:, :, None, None] if tensor.ndim == 2 and _FLAT_ADJUST.fullmatch(name) else tensor
        for name, tensor in state.items()
    }


def is_autoencoder(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an AESOP auto-encoder: a whole super-resolution network below `decoder.`."""
    return "decoder.conv_first.weight" in state and "decoder.conv_last.weight" in state


def canonical_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Auto-encoder weights under one name each; released files hold the encoder's twice (838 entries, 770 distinct).

    Args:
        state: with `conv_first.*, body.*, conv_last.*`, with `encoder.{0,2,3}.*`, or with both; and `decoder.*`.
        source: file name for messages.

    Returns:
        The entries without `encoder.*`; names of neither kind are kept for the key report.

    Raises:
        WeightsError: the two names of a tensor hold different values.
    """
    result = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(ENCODER_ALIASES))}
    differing: list[str] = []
    for name in state.keys() - result.keys():
        prefix = next(alias for alias in ENCODER_ALIASES if name.startswith(alias))
        plain = ENCODER_ALIASES[prefix] + name.removeprefix(prefix)
        if plain in result and not torch.equal(result[plain], state[name]):
            differing.append(f"{plain} and {name}")
        result.setdefault(plain, state[name])
    if differing:
        raise WeightsError(
            f"{source}: expected both names of an encoder tensor to hold the same values, got {len(differing)} that differ, "
            f"first {min(differing)}; the file was edited or written wrongly, get the released one"
        )
    return result


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `canonical_state`: what the released code's strict loader expects."""
    aliases = {
        alias + name.removeprefix(part): tensor
        for alias, part in ENCODER_ALIASES.items()
        for name, tensor in state.items()
        if name.startswith(part)
    }
    return {**state, **aliases}


def read_autoencoder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options and weights of an auto-encoder file: ours by its header, a released one by the shapes of its weights.

    Returns:
        The keyword arguments of `AutoEncoder`, and its float32 state dict.

    Raises:
        WeightsError: not an auto-encoder, or one whose structure cannot be told.
    """
    info = read_info(path) if path.suffix == ".safetensors" else {}
    state = read_official(path)
    # a header is believed: decoders of ours need not have the released names
    if not (info["architecture"] == ARCHITECTURE if "architecture" in info else is_autoencoder(state)):
        raise WeightsError(
            f"{path}: expected an auto-encoder, got {describe_network(state, info)}; give the auto-encoder's file here, "
            "and this one where a super-resolution network is asked for"
        )
    options = dict(info["options"]) if isinstance(info.get("options"), dict) else autoencoder_options(state, str(path))
    return options, {name: tensor.float() for name, tensor in state.items()}


def autoencoder_options(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Keyword arguments of `AutoEncoder` from the shapes of its canonical weights.

    Raises:
        WeightsError: tensors that tell the structure are missing or contradict one another.
    """
    expected = ("conv_first.0.weight", "body.0.rdb1.conv1.weight", "conv_last.1.weight", "decoder.conv_first.weight")
    missing = [name for name in expected if name not in state]
    if missing:
        raise WeightsError(f"{source}: expected an auto-encoder with its encoder, got none of {', '.join(missing)}; get it again")
    growth, features = state["body.0.rdb1.conv1.weight"].shape[:2]
    scale = math.isqrt(features // max(1, state["conv_first.0.weight"].shape[0]))
    if scale not in SCALES:
        raise WeightsError(f"{source}: expected an auto-encoder of scale 2 or 4, got widths of scale {scale}; take another file")
    decoder = {name.removeprefix("decoder."): tensor for name, tensor in state.items() if name.startswith("decoder.")}
    kind = "rrdb" if "body.0.rdb1.conv1.weight" in decoder else "srresnet"
    decoder_options: dict[str, Any] = {"features": decoder["conv_first.weight"].shape[0], "blocks": _count(decoder, "body")}
    if kind == "rrdb":
        decoder_options["growth"] = decoder["body.0.rdb1.conv1.weight"].shape[0]
    return {
        "scale": scale,
        "features": features,
        "blocks": _count(state, "body"),
        "growth": growth,
        "decoder": kind,
        "decoder_options": decoder_options,
    }


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many numbered children `name` has."""
    return len({key.split(".")[name.count(".") + 1] for key in state if key.startswith(f"{name}.")})


def identify(state: Mapping[str, Tensor]) -> str:
    """Which architecture the parameter names are those of: a name in NETWORKS, "autoencoder", or "" for any other."""
    if is_autoencoder(state):
        return ARCHITECTURE
    marks = {
        "rrdb": ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up2.weight", "conv_last.weight"),
        "srresnet": ("conv_first.weight", "body.0.conv1.weight", "upconv1.weight", "conv_last.weight"),
        "swinir": ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight", "upsample.0.weight"),
        "drct": ("conv_first.weight", "layers.0.swin1.attn.qkv.weight", "layers.0.adjust1.weight", "upsample.0.weight"),
        "lite": ("head.weight", "body.0.conv1.weight", "tail.weight"),
    }
    found = next((name for name, keys in marks.items() if all(key in state for key in keys)), "")
    return found if found != "rrdb" or _is_colour_rrdb(state) else ""


def _is_colour_rrdb(state: Mapping[str, Tensor]) -> bool:
    """RRDBNet as we build it: RGB in and out, without the 1x1 paths of ESRGAN+; spandrel knows grey ones and those."""
    colour = state["conv_first.weight"].shape[1] in (3, 12, 48) and state["conv_last.weight"].shape[0] == 3
    return colour and not any(".conv1x1." in name for name in state)


def describe_network(state: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> str:
    """What a file holds, for messages."""
    kind = str((info or {}).get("architecture", "")) or identify(state)
    if kind == ARCHITECTURE:
        return "an AESOP auto-encoder"
    return f"a super-resolution network ({kind})" if kind else f"weights of another kind ({min(state, default='none')}, ...)"


def network_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `RRDBNet` or `MSRResNet` from the shapes of their weights.

    Args:
        state: weights that `identify` calls "rrdb" or "srresnet".
    """
    features, inputs = state["conv_first.weight"].shape[:2]
    options = {"features": features, "blocks": _count(state, "body")}
    if "upconv1.weight" in state:
        shuffle = math.isqrt(state["upconv1.weight"].shape[0] // features)
        return {"scale": 4 if "upconv2.weight" in state else shuffle, **options}
    return {"scale": {12: 2, 48: 1}.get(inputs, 4), "growth": state["body.0.rdb1.conv1.weight"].shape[0], **options}


def misfit(error: Exception) -> str:
    """An error of spandrel's in one line: its kind and the start of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def export_for_comfy(source: str | Path, target: str | Path) -> Path:
    """Write a super-resolution network as safetensors that spandrel, and so ComfyUI's Load Upscale Model, accepts.

    Names and shapes become those that spandrel detects (DRCT's `adjust` as 1x1 convolutions), values stay as they are. The file
    is written only after spandrel has detected, built and strictly filled the network from these very tensors.

    Args:
        source: a file of ours or of the BasicSR family.
        target: a name ending in .safetensors; put it into ComfyUI's models/upscale_models.

    Returns:
        The written path.

    Raises:
        WeightsError: an auto-encoder, an architecture that spandrel does not know, or sizes that it cannot build (it has
            dense layers of width 32 only).

    Source:
        Specification aesop.md 3.5, 3.6.
    """
    from ..compat import import_spandrel

    source = Path(source)
    info = read_info(source) if source.suffix == ".safetensors" else {}
    state = {name: tensor.contiguous() for name, tensor in read_official(source).items()}
    kind = identify(state)
    if kind not in EXPORTABLE:
        raise WeightsError(
            f"{source}: expected a network of {', '.join(EXPORTABLE)}, got {describe_network(state, info)}; "
            "ComfyUI's own loader does not know others, load it with AlignSR's node"
        )
    spandrel = import_spandrel()
    try:
        found: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except (spandrel.UnsupportedModelError, *SPANDREL_MISFITS) as error:
        raise WeightsError(
            f"{source}: expected weights that spandrel can build a network from, got {kind} weights that it refuses "
            f"({misfit(error)}); train with the published sizes to use ComfyUI's own loader"
        ) from error
    if found.architecture.id != EXPORTABLE[kind]:
        raise WeightsError(f"{source}: expected {EXPORTABLE[kind]} to spandrel, got {found.architecture.id}; check the weights")
    return save_weights(target, state, info or None)


def save_autoencoder(path: str | Path, state: Mapping[str, Tensor], options: Mapping[str, Any], **facts: Any) -> Path:
    """Write an auto-encoder of ours, after checking that `options` rebuild it.

    Args:
        path: a name ending in .safetensors.
        state: the module's state dict.
        options: keyword arguments of `AutoEncoder`.
        facts: further JSON-able entries of the header, e.g. name, licence, step.

    Raises:
        WeightsError: state and options do not belong together.
    """
    with torch.device("meta"):
        expected = build_autoencoder(options).state_dict()
    check_state(state, expected, str(path))
    return save_weights(path, state, {"architecture": ARCHITECTURE, "options": dict(options), **facts})
