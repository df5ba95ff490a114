"""Load Discriminator: what the critic of one-step training looks through, and the heads with which it judges."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.networks.clip_critic import CLIP_NAME
from ..core.networks.clip_heads import HEAD_CHANNELS
from ..core.weights import bundled_autoencoders
from .common import file_stamp, input_names
from .host import get_host
from .losses_one_step import FEATURES

DISCRIMINATOR = "ALIGNSR_DISCRIMINATOR"  # socket type; the keys of [discriminator] in a TOML file
Discriminator = Mapping[str, Any]
AUTO, RANDOM = "auto", "random"
PRECISIONS = ("fp32", "bf16")


class LoadDiscriminator:
    """Node AlignSRLoadDiscriminator."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Chooses the critic of One-Step Trainer: a frozen network that looks at pictures, and heads that learn to tell results "
        "from photographs. The file is found and checked here, and read when training begins."
    )
    MODEL_FOLDERS = (("model_name", "alignsr"),)
    FUNCTION = "load"
    RETURN_TYPES = (DISCRIMINATOR, "STRING")
    RETURN_NAMES = ("discriminator", "info")
    OUTPUT_TOOLTIPS = (
        "The critic, for One-Step Trainer with RaGAN Loss.",
        "Facts as JSON: features, file, width of the heads, where they start.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        names = [AUTO, RANDOM, *bundled_autoencoders(), *get_host().list_models()]
        return {
            "required": {
                "features": (
                    ["clip", "vgg19", "network"],
                    {
                        "default": "clip",
                        "tooltip": "What it looks through. clip: OpenCLIP's ConvNeXt-XXL, as published, 3.4 GB. vgg19: smaller. "
                        "network: a lite network or an auto-encoder of ours.",
                    },
                ),
                "model_name": (
                    names,
                    {
                        "default": AUTO,
                        "tooltip": "A file of models/alignsr. auto: open_clip_pytorch_model.bin or open_clip_model.safetensors, "
                        "vgg19-dcbb9e9d.pth, or the bundled lite-x4. random: an untrained one (tiny for clip and network), to "
                        "try a graph out.",
                    },
                ),
                "hidden": (
                    "INT",
                    {"default": HEAD_CHANNELS, "min": 1, "max": 4096, "tooltip": "Width of its heads. StrSR: 512."},
                ),
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": PRECISIONS[0],
                        "tooltip": "Number format of the frozen network. bf16 is faster on a GPU; the penalty of RaGAN Loss is "
                        "computed in fp32 always.",
                    },
                ),
            },
            "optional": {
                "heads": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Path of trained heads to start from, NAME-critic.safetensors of an earlier run. Empty: "
                        "random ones.",
                    },
                ),
                "architecture": (
                    "STRING",
                    {
                        "default": CLIP_NAME,
                        "advanced": True,
                        "tooltip": "Of clip: OpenCLIP's name of the model in the file, one of its ConvNeXts.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None, heads: str | None = "", **_: Any) -> str | float:  # noqa: N802
        """Check again when a file was replaced; always where its name comes through a link."""
        if model_name is None or heads is None:
            return math.nan
        places = [Path(heads).expanduser(), *(folder / model_name for folder in get_host().all_model_dirs())]
        return " ".join(file_stamp(path) for path in places if path.is_file())

    def load(
        self,
        features: str = "clip",
        model_name: str = AUTO,
        hidden: int = HEAD_CHANNELS,
        precision: str = "fp32",
        heads: str = "",
        architecture: str = CLIP_NAME,
    ) -> tuple[Discriminator, str]:
        from ..core.networks.feature_maps import find_features
        from ..core.weights import find_model, read_info

        for name, value, known in (("features", features, FEATURES), ("precision", precision, PRECISIONS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        folders, file = get_host().all_model_dirs(), "" if model_name == AUTO else model_name
        with input_names("model_name", model="model_name"):
            found = find_features(features, file, folders)
        start = ""
        if heads.strip():
            with input_names("heads", model="heads"):
                start = str(find_model(heads.strip(), folders))
                if read_info(start).get("architecture") != "critic_heads":
                    raise ValueError(f"{start}: expected heads of a critic, NAME-critic.safetensors, got another file")
        table = {
            "features": {"kind": features, "weights": file, "architecture": architecture.strip()},
            "hidden": hidden,
            "precision": precision,
            "init": start,
        }
        facts = {"features": features, "file": str(found or RANDOM), "hidden": hidden, "heads": start or RANDOM}
        return table, json.dumps(facts, indent=2)
