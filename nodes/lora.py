"""Load LoRA, Merge LoRA, Merge Adapters, Save LoRA: the adapters of large models."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..core.lora import Adapter
from ..core.lora_files import FORMATS
from ..core.weights import WEIGHT_SUFFIXES, MissingModelError
from .common import SR_MODEL, file_stamp, input_names
from .host import get_host
from .one_step import OneStepModel, describe

LORA = "ALIGNSR_LORA"  # socket type; the value is a core.lora.Adapter
FOLDER_KEYS = ("loras", "alignsr")
RELEASED = ("StrSR-flux", "StrSR-zimage")  # always in the list, so that a template opens before the files are there
ASASR = ("ASASR/sr_lora/pytorch_lora_weights_v2.safetensors", "ASASR/dpo_lora/adapter_model.safetensors")
DTYPES: dict[str, torch.dtype | None] = {"as it is": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def find_lora(name: str) -> Path:
    """The file of an adapter, or the folder that holds `state_dict.pth`.

    Raises:
        MissingModelError: names the folders searched and where released adapters come from.
    """
    direct = Path(name).expanduser()
    places = [folder for key in FOLDER_KEYS for folder in get_host().model_dirs(key)]
    for path in [direct, *(place / name for place in places)]:
        for candidate in (path, *(path.with_name(path.name + suffix) for suffix in WEIGHT_SUFFIXES)):
            if candidate.is_file() or (candidate / "state_dict.pth").is_file():
                return candidate
    searched = ", ".join(map(str, places))
    get = f"; `alignsr models download {name}` gets it from jkwang28/StrSR on Hugging Face" if name in RELEASED else ""
    get = "; `alignsr models download ASASR` gets it from wafer-bob/ASASR on Hugging Face" if name in ASASR else get
    raise MissingModelError(
        f"lora_name: expected {name}.safetensors, or a folder {name} with state_dict.pth and projector.pth, in {searched}, "
        f"found neither; put it there{get}"
    )


class LoadLoRA:
    """Node AlignSRLoadLoRA."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Reads the adapter of a large one-step model: one of our files, the released pair state_dict.pth and projector.pth, or a "
        "LoRA of FLUX.2 [klein] or Z-Image as ComfyUI's own loader takes it."
    )
    MODEL_FOLDERS = (("lora_name", "loras"),)
    FUNCTION = "load"
    RETURN_TYPES = (LORA, "STRING")
    RETURN_NAMES = ("lora", "info")
    OUTPUT_TOOLTIPS = ("The adapter, for Merge LoRA and Save LoRA.", "Facts as JSON: backbone, rank, layers, projector, notes.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        host = get_host()
        found = {*host.list_folders("state_dict.pth", *FOLDER_KEYS), *host.list_files(*FOLDER_KEYS)}
        names = [*RELEASED, *ASASR, *sorted(found - {*RELEASED, *ASASR})]
        return {
            "required": {
                "lora_name": (
                    names,
                    {
                        "default": RELEASED[0],
                        "tooltip": "A file or folder of models/loras. StrSR-flux and StrSR-zimage are the released ones, for "
                        "flux2_klein and z_image.",
                    },
                ),
            },
            "optional": {
                "path": (
                    "STRING",
                    {
                        "default": "",
                        "forceInput": True,
                        "tooltip": "Path of an adapter, e.g. from a trainer; goes before lora_name when connected.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str | None, path: str | None = "") -> str | float:  # noqa: N802
        """Read again when the file was replaced; always where its name comes through a link."""
        if lora_name is None or path is None:
            return math.nan
        try:
            return file_stamp(find_lora(path or lora_name))
        except MissingModelError:
            return ""  # the run says what is missing

    def load(self, lora_name: str, path: str = "") -> tuple[Adapter, str]:
        from ..core.lora_files import read_adapter

        with input_names("lora_name", lora="lora_name"), torch.inference_mode(False):
            adapter = read_adapter(find_lora(path.strip() or lora_name))
        return adapter, json.dumps(facts(adapter), indent=2)


def facts(adapter: Adapter) -> dict[str, Any]:
    """JSON-able facts of an adapter."""
    values = sum(tensor.numel() for tensor in adapter.state.values())
    projector = sum(tensor.numel() for tensor in adapter.projector.values())
    found = {"file": adapter.source, "layers": len(adapter.state) // 2, "parameters": values, "projector_parameters": projector}
    return found | dict(adapter.info)


class MergeLoRA:
    """Node AlignSRMergeLoRA."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Adds an adapter to a large one-step model: W + strength (alpha / rank) B A, merged once when the weights are read, "
        "before they are quantised. Several may follow one another."
    )
    FUNCTION = "merge"
    RETURN_TYPES = (SR_MODEL, "STRING")
    RETURN_NAMES = ("model", "info")
    OUTPUT_TOOLTIPS = ("The model with the adapter; the one that came in stays as it is.", "Facts of the model as JSON.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": (SR_MODEL, {"tooltip": "From Load One-Step Backbone, or another Merge LoRA."}),
                "lora": (LORA, {"tooltip": "From Load LoRA or a trainer; made for this backbone."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -2.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "1: as trained. Less is more faithful to the input, more is more inventive; One-Step SR has "
                        "a strength of its own, which acts on the result instead of the weights.",
                    },
                ),
            }
        }

    def merge(self, model: OneStepModel, lora: Adapter, strength: float = 1.0) -> tuple[OneStepModel, str]:
        if not isinstance(model, OneStepModel):  # pyright: ignore[reportUnnecessaryIsInstance]  # the socket is shared
            raise TypeError(
                "model: expected one of Load One-Step Backbone or Load Multi-Step Backbone, got another model; adapters fit no "
                "other"
            )
        check_adapter(lora)
        if not math.isfinite(strength):
            raise ValueError(f"strength: expected a number, got {strength}; 1 is as trained")
        with input_names("lora", lora="lora", latents="latents"):
            merged = model.with_adapter(lora, strength)
        return merged, json.dumps(describe(merged), indent=2)


class MergeAdapters:
    """Node AlignSRMergeAdapters."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Joins two adapters of one backbone into one that acts as both, exactly: of the sum of their ranks, for example the "
        "supervised adapter and the policy of ASASR. Nothing is folded into the model, so it works for adapters that act on "
        "condition tokens alone too."
    )
    FUNCTION = "join"
    RETURN_TYPES = (LORA, "STRING")
    RETURN_NAMES = ("lora", "info")
    OUTPUT_TOOLTIPS = ("The adapter, for Save LoRA and Merge LoRA.", "Facts as JSON: backbone, rank, layers, projector, notes.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        strength: dict[str, Any] = {"default": 1.0, "min": -2.0, "max": 2.0, "step": 0.05}
        return {
            "required": {
                "lora": (LORA, {"tooltip": "From Load LoRA or a trainer."}),
                "other": (LORA, {"tooltip": "Another one, made for the same backbone and, with FLUX.1, the same tokens."}),
                "strength": ("FLOAT", {**strength, "tooltip": "Of the first: 1 as trained, 0 without it."}),
                "other_strength": ("FLOAT", {**strength, "tooltip": "Of the other one."}),
            }
        }

    def join(self, lora: Adapter, other: Adapter, strength: float = 1.0, other_strength: float = 1.0) -> tuple[Adapter, str]:
        from ..core.adapters import concatenate

        for name, adapter, value in (("lora", lora, strength), ("other", other, other_strength)):
            with input_names("", lora=name):
                check_adapter(adapter)
            if not math.isfinite(value):
                raise ValueError(f"strength: expected a number for {name}, got {value}; 1 is as trained")
        with input_names("other", adapters="other"), torch.inference_mode(False):
            joined = concatenate((lora, strength), (other, other_strength))
        return joined, json.dumps(facts(joined), indent=2)


class SaveLoRA:
    """Node AlignSRSaveLoRA."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Writes an adapter as one safetensors file: in our form, with projector and facts, or with the names that ComfyUI's "
        "own LoRA loader or diffusers' pipelines understand."
    )
    FUNCTION = "save"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Path of the file that was written.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "lora": (LORA, {"tooltip": "From Load LoRA or a trainer."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "alignsr/lora",
                        "tooltip": "Name inside the output folder; / makes subfolders, a number is added.",
                    },
                ),
                "file_format": (
                    list(FORMATS),
                    {
                        "default": FORMATS[0],
                        "tooltip": "alignsr: everything, for Load LoRA. comfyui: the matrices alone, for ComfyUI's LoRA "
                        "loader; diffusers: the same for its pipelines. The projector is in the first only.",
                    },
                ),
                "precision": (
                    list(DTYPES),
                    {"default": "as it is", "tooltip": "Number format of the matrices in the file; bf16 halves that of fp32."},
                ),
            }
        }

    def save(
        self, lora: Adapter, filename_prefix: str = "alignsr/lora", file_format: str = "alignsr", precision: str = "as it is"
    ) -> dict[str, Any]:
        from ..core.lora_files import write_adapter

        check_adapter(lora)
        for name, value, known in (("file_format", file_format, FORMATS), ("precision", precision, tuple(DTYPES))):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        path = get_host().save_target(filename_prefix).path(0, ".safetensors")
        write_adapter(path, lora, file_format, DTYPES[precision])
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


def check_adapter(lora: Any) -> None:
    """Raise TypeError unless a LORA socket brings an adapter."""
    if not isinstance(lora, Adapter):
        raise TypeError(
            f"lora: expected an adapter, got {type(lora).__name__}; connect Load LoRA, or One-Step Trainer where it trains one "
            "(with pixel or lora.rank 0 it trains the whole model, which its output model holds)"
        )
