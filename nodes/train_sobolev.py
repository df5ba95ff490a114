"""Sobolev DPO Trainer: ASASR's preference stage in a graph, between supervised training, an adversary, and restoration."""

from typing import Any

from ..core.lora import Adapter
from .common import SR_MODEL
from .lora import LORA
from .train import EVERYTHING, OF_CONFIG, TrainingNode, number_of, run_recipe, widgets
from .trained import file_of, read_trained, trained_multi_step, with_supervised

TITLE = "Sobolev DPO Trainer"
PUBLISHED = "asasr-flux, asasr-sdxl, asasr-sd15, asasr-pixel, asasr-ablation-euclidean, asasr-ablation-lq-loser"
USUAL = "the paper's are 1.5 and 2000"


class SobolevDPOTrainer(TrainingNode):
    """Node AlignSRSobolevDPOTrainer."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Aligns FLUX.1, Stable Diffusion or pixel with the ground truth by preferences, as ASASR does: an adversary makes the "
        "losers, and errors are weighed by frequency, so that detail counts. Trains an adapter on top of the supervised one. "
        "Interrupt it at any time and queue again: it goes on. A finished run is found on disk."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP", LORA, LORA, "STRING")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map", "lora", "lora_with_sft", "run")
    OUTPUT_TOOLTIPS = (
        "Path of the result (safetensors): the policy's adapter; for pixel the whole model, the adapter beside it.",
        "The model with the supervised adapter and the policy, for Multi-Step SR.",
        "The curves of the whole run as a picture: loss, margin, energies of chosen and rejected by band.",
        "One JSON line per logged step: loss, margin, share of pairs that agree, energies by band, validation.",
        "The losses for ComfyUI's own Plot Loss Graph.",
        "The policy's adapter alone, for Save LoRA and Merge LoRA.",
        "Supervised adapter and policy joined into one of the sum of their ranks, exactly.",
        "The run's folder.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": widgets("asasr-flux", PUBLISHED),
            "optional": {
                "sft": (
                    LORA,
                    {
                        "tooltip": "The adapter of supervised training, from SFT Trainer or Load LoRA: what it does, the "
                        "reference does. Leave open for the config's own, and with pixel-flow-x4."
                    },
                ),
                "adversary": (
                    LORA,
                    {
                        "tooltip": "The adapter that makes the losers, from Adversary Trainer or Load LoRA. Leave open for the "
                        "config's own, or with an adversary.mode that needs none."
                    },
                ),
                "lora": (
                    LORA,
                    {"tooltip": "A policy to start from, of the same backbone and rank. Its optimiser starts anew."},
                ),
                "order": (
                    "FLOAT",
                    {
                        "default": OF_CONFIG,
                        "min": OF_CONFIG,
                        "max": 4.0,
                        "step": 0.1,
                        "tooltip": "s of the Sobolev norm: how much more fine detail counts. 0 is plain DPO, 1.5 the paper's; "
                        "-1: the config's.",
                    },
                ),
                "beta": (
                    "FLOAT",
                    {
                        "default": OF_CONFIG,
                        "min": OF_CONFIG,
                        "max": 1e9,
                        "step": 100.0,
                        "tooltip": "How sharply pairs are told apart, and how near the policy stays to the reference: 2000 is "
                        "the paper's; -1: the config's.",
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
        sft: Adapter | None = None,
        adversary: Adapter | None = None,
        lora: Adapter | None = None,
        order: float = OF_CONFIG,
        beta: float = OF_CONFIG,
    ) -> dict[str, Any]:
        tables = {
            "model": _given(adapter=sft and file_of(sft, "sft"), init=lora and file_of(lora, "lora")),
            "adversary": _given(adapter=adversary and file_of(adversary, "adversary")),
            "preference": {
                **number_of("order", order, may_be_zero=True, usual=USUAL),
                **number_of("beta", beta, may_be_zero=False, usual=USUAL),
            },
        }
        run = run_recipe(
            TITLE,
            ("sobolev_dpo",),
            config,
            overrides,
            data_folder,
            out_name,
            resume,
            tables={name: table for name, table in tables.items() if table},
            vram_bytes=EVERYTHING,
        )
        policy = read_trained(run)
        joined = with_supervised(run, policy)
        shown = (str(run.weights), trained_multi_step(run, joined), run.curve, run.log, run.losses)
        return run.answer(*shown, policy, joined, str(run.folder))


def _given(**files: str | None) -> dict[str, str]:
    return {key: file for key, file in files.items() if file}
