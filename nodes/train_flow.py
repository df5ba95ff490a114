"""SFT Trainer, Artefact Folder and Adversary Trainer: the stages of ASASR before preferences, in a graph."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.lora import Adapter
from .common import SR_MODEL, input_names, to_image
from .folder import find_folder
from .lora import LORA
from .train import EVERYTHING, FinishedRun, TrainingNode, read_values, run_recipe, widgets
from .trained import file_of, read_trained, trained_multi_step, with_supervised

ARTEFACTS = "ALIGNSR_ARTEFACTS"  # socket type; the value is the keys of [artefacts] that the node sets
RECIPE = ("flow_sft",)
SUPERVISED = "asasr-sft-flux, asasr-sft-sdxl, asasr-sft-sd15, asasr-sft-pixel, pixel-flow-x4"
ADVERSARIES = "asasr-adversary-flux, asasr-adversary-sdxl, asasr-adversary-sd15, asasr-adversary-pixel"
SHOWN, PANEL_PX = 4, 256  # pictures on a sheet, and the side of each


class SFTTrainer(TrainingNode):
    """Node AlignSRSFTTrainer."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Teaches FLUX.1, Stable Diffusion or pixel to restore by sampling from noise, the stage before preferences: an adapter, "
        "or for pixel the whole model. Interrupt it at any time and queue again: it goes on. A finished run is found on disk."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP", LORA, "STRING")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map", "lora", "run")
    OUTPUT_TOOLTIPS = (
        "Path of the result (safetensors): an adapter; for pixel the whole model, the adapter beside it.",
        "The model with what was trained, for Multi-Step SR.",
        "The curves of the whole run as a picture: loss, error on held-out pictures, scores of samples.",
        "One JSON line per logged step: loss, validation, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
        "The adapter, for Adversary Trainer, Sobolev DPO Trainer, Save LoRA and Merge LoRA; nothing where the whole model was "
        "trained.",
        "The run's folder.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": widgets("asasr-sft-flux", SUPERVISED),
            "optional": {
                "lora": (
                    LORA,
                    {
                        "tooltip": "An adapter to start from, of the same backbone and rank, from Load LoRA or another trainer. "
                        "Its optimiser starts anew."
                    },
                ),
            },
        }

    def train(
        self,
        config: str,
        data_folder: str = "",
        overrides: str = "",
        out_name: str = "",
        resume: bool = True,
        lora: Adapter | None = None,
    ) -> dict[str, Any]:
        tables = None if lora is None else {"model": {"init": file_of(lora, "lora")}}
        _check_kind(read_values(config, overrides, data_folder, out_name, tables=tables), wants_artefacts=False)
        run = run_recipe(
            "SFT Trainer", RECIPE, config, overrides, data_folder, out_name, resume, tables=tables, vram_bytes=EVERYTHING
        )
        adapter = read_trained(run)
        return _answer(run, adapter, adapter)


class AdversaryTrainer(TrainingNode):
    """Node AlignSRAdversaryTrainer."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Teaches an adapter to restore as other methods do, their artefacts included, on top of the adapter of supervised "
        "training: the adversary of ASASR, which makes the losers of preference training. Interrupt it at any time and queue "
        "again: it goes on. A finished run is found on disk."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = SFTTrainer.RETURN_TYPES
    RETURN_NAMES = SFTTrainer.RETURN_NAMES
    OUTPUT_TOOLTIPS = (
        "Path of the result (safetensors): the adversary's adapter; for pixel the whole model, the adapter beside it.",
        "The model with the supervised adapter and the adversary, for Multi-Step SR: it restores as the other methods do.",
        "The curves of the whole run as a picture: loss, error on held-out outputs, likeness of samples to them.",
        "One JSON line per logged step: loss, validation, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
        "The adversary alone, for Sobolev DPO Trainer and Save LoRA.",
        "The run's folder.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        given = widgets("asasr-adversary-flux", ADVERSARIES)
        return {
            "required": {name: entry for name, entry in given.items() if name != "data_folder"},
            "optional": {
                "sft": (
                    LORA,
                    {
                        "tooltip": "The adapter of supervised training, from SFT Trainer or Load LoRA; it stays as it is. Leave "
                        "open for the config's own, and with pixel-flow-x4."
                    },
                ),
                "artefacts": (
                    ARTEFACTS,
                    {
                        "tooltip": "What other methods made of inputs, from Artefact Folder. Leave open for the config's own "
                        "folders."
                    },
                ),
            },
        }

    def train(
        self,
        config: str,
        overrides: str = "",
        out_name: str = "",
        resume: bool = True,
        sft: Adapter | None = None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        tables: dict[str, Any] = {} if sft is None else {"model": {"adapter": file_of(sft, "sft")}}
        if artefacts is not None:
            tables["artefacts"] = dict(artefacts)
        _check_kind(read_values(config, overrides, "", out_name, tables=tables), wants_artefacts=True)
        run = run_recipe(
            "Adversary Trainer", RECIPE, config, overrides, "", out_name, resume, tables=tables, vram_bytes=EVERYTHING
        )
        adapter = read_trained(run)
        return _answer(run, adapter, with_supervised(run, adapter))


class ArtefactFolder:
    """Node AlignSRArtefactFolder."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Looks at a folder with inputs in lq/, optional ground truth in gt/ and one folder per method with its outputs, "
        "checks that names and sizes agree, and hands it to Adversary Trainer."
    )
    FUNCTION = "check"
    RETURN_TYPES = (ARTEFACTS, "IMAGE", "STRING")
    RETURN_NAMES = ("artefacts", "images", "info")
    OUTPUT_TOOLTIPS = (
        "The folder, for Adversary Trainer.",
        "The first pictures: input, every method's output, ground truth.",
        "Facts as JSON: methods, number of pictures, names.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Absolute path, or a folder inside the input folder: lq/ with the inputs, and a folder per "
                        "method with its outputs under the same names.",
                    },
                ),
            },
            "optional": {
                "methods": (
                    "STRING",
                    {"default": "", "tooltip": "Names of the methods' folders, separated by commas. Empty: all there are."},
                ),
                "share": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "How much of the pictures is used, drawn at random once. The paper ran the methods on 0.25 of "
                        "its training pictures.",
                    },
                ),
                "scale": (
                    "INT",
                    {"default": 4, "min": 1, "max": 16, "tooltip": "How many times larger outputs are than inputs."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, folder: str | None, methods: str | None = "", share: float | None = 1.0, scale: int | None = 4
    ) -> str | float:
        """Look again when files came, went or changed; always where the folder comes through a link."""
        from ..core.image_files import list_images

        if folder is None:
            return math.nan
        facts = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in list_images(find_folder(folder))]
        return hashlib.sha256(repr((facts, methods, share, scale)).encode()).hexdigest()

    def check(self, folder: str, methods: str = "", share: float = 1.0, scale: int = 4) -> tuple[dict[str, Any], Tensor, str]:
        from ..core.pictures import side_by_side
        from ..train.artefacts import ArtefactsConfig, contact, open_artefacts

        root = find_folder(folder)
        chosen = tuple(name.strip() for name in methods.split(",") if name.strip())
        with input_names("folder", **{"artefacts.folders": "folder", "artefacts.methods": "methods", "artefacts.share": "share"}):
            ArtefactsConfig(folders=(str(root),), methods=chosen, share=share)
            found = open_artefacts(root, scale, chosen)
        sheets = [side_by_side(images, crops=0, panel_px=PANEL_PX) for images in contact(found, SHOWN).values()]
        info = {
            "folder": str(root),
            "methods": list(found.methods),
            "pictures": len(found.pictures),
            "with_ground_truth": sum(picture.gt is not None for picture in found.pictures),
            "scale": scale,
            "share": share,
            "names": [picture.name for picture in found.pictures],
        }
        return {"folders": [str(root)], "methods": list(chosen), "share": share}, to_image(sheets), json.dumps(info, indent=1)


def _check_kind(values: Mapping[str, Any], wants_artefacts: bool) -> None:
    """One recipe trains both; each node takes the configs of its own stage, and says so before anything is trained."""
    if values.get("recipe") in RECIPE and ("artefacts" in values) != wants_artefacts:
        wanted, other = ("with", "connect Artefact Folder") if wants_artefacts else ("without", "use Adversary Trainer")
        raise ValueError(f"config: expected one {wanted} the table [artefacts], got another kind; {other}")


def _answer(run: FinishedRun, adapter: Adapter | None, joined: Adapter | None) -> dict[str, Any]:
    shown = (str(run.weights), trained_multi_step(run, joined), run.curve, run.log, run.losses)
    return run.answer(*shown, adapter, str(run.folder))
