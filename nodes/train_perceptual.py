"""Training by AESOP's recipes: the auto-encoder, and a network by any chain of losses."""

from typing import Any

from .autoencoder import AUTOENCODER
from .autoencoder import load as load_autoencoder
from .common import SR_MODEL
from .losses import LOSS, Chain, as_losses
from .models import LoadedModel, load_model
from .train import TrainingNode, run_recipe, widgets


class TrainAutoEncoder(TrainingNode):
    """Node AlignSRTrainAutoEncoder."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Trains AESOP's auto-encoder on sharp pictures: down to a small RGB picture and back. Interrupt it at any time and queue "
        "again: it goes on. A finished run is found on disk and not repeated."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", AUTOENCODER, "IMAGE", "STRING", "LOSS_MAP")
    RETURN_NAMES = ("weights", "autoencoder", "curve", "log", "loss_map")
    OUTPUT_TOOLTIPS = (
        "Path of the weight file (safetensors). Copy it to models/alignsr to choose it in AESOP Auto-Encoder.",
        "The trained auto-encoder, for AESOP Loss and Auto-Encoder View.",
        "The loss curve of the whole run as a picture.",
        "One JSON line per logged step: losses, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": widgets("aesop-autoencoder", "aesop-autoencoder, aesop-autoencoder-real, aesop-autoencoder-tiny")}

    def train(
        self, config: str, data_folder: str = "", overrides: str = "", out_name: str = "", resume: bool = True
    ) -> dict[str, Any]:
        run = run_recipe("Train Auto-Encoder", ("autoencoder",), config, overrides, data_folder, out_name, resume)
        return run.answer(str(run.weights), load_autoencoder(run.weights), run.curve, run.log, run.losses)


class TrainPerceptualSR(TrainingNode):
    """Node AlignSRTrainPerceptualSR."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Trains a super-resolution network by a chain of losses (AESOP, adversarial, perceptual, ...), with a discriminator "
        "where the chain has an adversarial loss. Interrupt it at any time and queue again: it goes on. A finished run is found "
        "on disk."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map")
    OUTPUT_TOOLTIPS = (
        "Path of the weight file (safetensors). Copy it to models/alignsr to choose it in Load SR Model.",
        "The trained model, for One-Step SR.",
        "The loss curves of the whole run as a picture.",
        "One JSON line per logged step: every loss, validation, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": widgets("aesop-rrdb-128", "aesop-rrdb-128, aesop-rrdb-256, aesop-swinir-256, aesop-drct-256, aesop-real"),
            "optional": {
                "loss": (
                    LOSS,
                    {"tooltip": "Chain of losses; takes the place of all losses of the config. Leave open for the config's own."},
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
    ) -> dict[str, Any]:
        changes = as_losses(loss)
        run = run_recipe("Train Perceptual SR", ("perceptual_gan",), config, overrides, data_folder, out_name, resume, changes)
        model: LoadedModel = load_model(run.weights)
        return run.answer(str(run.weights), model, run.curve, run.log, run.losses)
