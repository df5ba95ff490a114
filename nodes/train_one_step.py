"""One-Step Trainer: StrSR's training in a graph, a stage per node; its result goes to inference, a file, or the next stage."""

import logging
from pathlib import Path
from typing import Any

import torch

from ..core.lora import Adapter
from .common import SR_MODEL
from .discriminator import DISCRIMINATOR, Discriminator
from .host import get_host
from .lora import LORA, check_adapter
from .losses import LOSS, Chain, as_losses
from .models import LoadedModel, load_model
from .one_step import TINY, OneStepModel, Request
from .train import EVERYTHING, RUNS, FinishedRun, TrainingNode, find_run, run_recipe, widgets
from .trained import file_of

LOGGER = logging.getLogger("alignsr")
TITLE = "One-Step Trainer"
PUBLISHED = "strsr-flux2-klein-stage1, strsr-flux2-klein-stage2, strsr-z-image-stage1, strsr-z-image-stage2, strsr-pixel-stage1"


class OneStepTrainer(TrainingNode):
    """Node AlignSROneStepTrainer."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Trains one Euler step of FLUX.2 [klein], Z-Image or pixel to restore pictures, as StrSR does: an adapter and the bridge "
        "to a vision-language model, by a chain of losses, against a critic. One node per stage. Interrupt it at any time and "
        "queue again: it goes on. A finished run is found on disk."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP", LORA, DISCRIMINATOR, "STRING")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map", "lora", "discriminator", "run")
    OUTPUT_TOOLTIPS = (
        "Path of the result (safetensors): an adapter with its projector, or the whole model where that is trained.",
        "The model with what was trained, for One-Step SR, VLM Encode and Text Encode.",
        "The loss curves of the whole run as a picture.",
        "One JSON line per logged step: every loss, validation, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
        "The adapter with its projector, for Save LoRA and Merge LoRA; nothing where the whole model is trained or for pixel.",
        "The critic as trained, to go on with it; nothing without RaGAN Loss.",
        "The run's folder, for start_from of the next stage.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": widgets("strsr-flux2-klein-stage1", PUBLISHED),
            "optional": {
                "loss": (
                    LOSS,
                    {"tooltip": "Chain of losses; takes the place of all losses of the config. Leave open for the config's own."},
                ),
                "discriminator": (
                    DISCRIMINATOR,
                    {
                        "tooltip": "The critic, from Load Discriminator; used with RaGAN Loss. Its optimiser is in the config. "
                        "Leave open for the config's own."
                    },
                ),
                "lora": (
                    LORA,
                    {
                        "tooltip": "An adapter to start from, of the same backbone and rank, from Load LoRA or another trainer. "
                        "Its optimiser starts anew."
                    },
                ),
                "start_from": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Folder of a run to go on from, the output run of another One-Step Trainer: adapter, "
                        "projector, critic and both optimisers. Empty: start from lora, or afresh.",
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
        loss: Chain | None = None,
        discriminator: Discriminator | None = None,
        lora: Adapter | None = None,
        start_from: str = "",
    ) -> dict[str, Any]:
        changes = as_losses(loss)
        tables: dict[str, Any] = {} if discriminator is None else {"discriminator": dict(discriminator)}
        if discriminator is not None and loss is not None and "ragan" not in loss:
            LOGGER.warning("%s: the chain has no RaGAN Loss, so the discriminator is not used", TITLE)
        if lora is not None:
            tables["model"] = {"init": _file_of(lora, start_from)}
        if start_from.strip():
            tables["start_from"] = str(find_run(start_from.strip(), RUNS))
        run = run_recipe(
            TITLE,
            ("one_step_distill",),
            config,
            overrides,
            data_folder,
            out_name,
            resume,
            changes,
            tables=tables,
            vram_bytes=EVERYTHING,
        )
        model, adapter = trained_model(run)
        shown = (str(run.weights), model, run.curve, run.log, run.losses)
        return run.answer(*shown, adapter, trained_critic(run), str(run.folder))


def _file_of(lora: Any, start_from: str) -> str:
    """The file of an adapter: a config names what training starts from."""
    check_adapter(lora)
    if start_from.strip():
        raise ValueError("lora: expected nothing beside start_from, which brings its own adapter, got both; disconnect one")
    return file_of(lora, "lora")


def trained_model(run: FinishedRun) -> tuple[OneStepModel | LoadedModel, Adapter | None]:
    """What a finished run gives for inference, and its adapter if it has one.

    Latent backbones are opened anew when they are needed, with the adapter merged; a model that was trained whole is in its file.
    """
    from ..core.backbones import LATENT_KINDS
    from ..core.lora_files import read_adapter
    from ..train.start import named_source

    config = run.config.model
    if config.backbone == "pixel" or run.config.lora.rank == 0:
        return load_model(run.weights), None
    with torch.inference_mode(False):
        adapter = read_adapter(run.weights)
    folders = get_host().training_dirs()
    if config.source == "random" or (config.source == TINY and (config.options or config.autoencoder)):
        return _untrained_with(run, adapter, folders), adapter
    request = Request(
        config.backbone,
        named_source(config.backbone, config.source, folders, network=config.transformer, autoencoder=config.autoencoder),
        {part.folder: folders for part in LATENT_KINDS[config.backbone].components},
        transformer=config.transformer or None,
        autoencoder=config.autoencoder or None,
        precision=config.precision,
    )
    return OneStepModel(request, "auto", True, ((adapter, 1.0),)), adapter


def _untrained_with(run: FinishedRun, adapter: Adapter, folders: list[Path]) -> LoadedModel:
    """A random base that no loader node makes, with the adapter merged: for experiments and measurements."""
    from ..core.conditioning import make_adapter
    from ..train.one_step import build_backbone

    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as in training
        backbone: Any = build_backbone(run.config.model, run.config.name, run.config.licence, folders, adapter)
        adapter.merge_into(backbone.transformer)
        width = backbone.spec.conditioning_dim
        projector = make_adapter(adapter.projector, adapter.source, width).requires_grad_(False) if adapter.projector else None
    return LoadedModel(backbone, run.config.name, run.weights, offload=True, projector=projector)


def trained_critic(run: FinishedRun) -> Discriminator | None:
    """The keys of [discriminator] with the trained heads, or None where there was no critic."""
    from ..train.config import to_mapping
    from ..train.recipes.one_step_distill import critic_path

    if "ragan" not in run.config.losses.weights():
        return None
    table = to_mapping(run.config.discriminator)
    return {key: table[key] for key in ("features", "hidden", "precision")} | {"init": str(critic_path(run.weights))}
