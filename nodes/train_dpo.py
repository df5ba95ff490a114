"""Perceptual DPO Trainer: pipeline B of DP2O-SR in a graph, from preference pairs to a better model."""

from dataclasses import replace
from typing import Any

from .candidates import RUNS as CANDIDATE_RUNS
from .common import SR_MODEL
from .lora import LORA
from .train import EVERYTHING, OF_CONFIG, FinishedRun, TrainingNode, find_run, number_of, run_recipe, stamps, widgets
from .trained import read_trained, trained_multi_step, with_supervised

TITLE = "Perceptual DPO Trainer"
PUBLISHED = "dp2o-sd2, dp2o-flux, dp2o-flux-lora for 24 GB, dp2o-pixel"
FROM_CONFIG = "from config"


class PerceptualDPOTrainer(TrainingNode):
    """Node AlignSRPerceptualDPOTrainer."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Trains FLUX.1, Stable Diffusion or pixel towards those of its own results that metrics prefer, as DP2O-SR does: the "
        "whole control branch, or an adapter, on the pairs of Curate Preferences. Neither sampler nor metric runs meanwhile, but "
        "for a probe that stops it before it collapses. Interrupt it at any time and queue again: it goes on."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP", LORA, "STRING")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map", "lora", "run")
    OUTPUT_TOOLTIPS = (
        "Path of the result (safetensors): a control branch, an adapter, or a whole pixel model; for Sample Candidates, too.",
        "The model with what was trained, for Multi-Step SR.",
        "The curves of the whole run as a picture: loss, margin, implicit accuracy, errors, the probe's reward.",
        "One JSON line per logged step: loss, margin, implicit accuracy, both models' errors, reward of fresh candidates.",
        "The losses for ComfyUI's own Plot Loss Graph.",
        "The adapter, for Save LoRA and Merge LoRA; nothing where the control branch is trained.",
        "The run's folder.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        given = widgets("dp2o-pixel", PUBLISHED)
        preferences = (
            "STRING",
            {
                "default": "",
                "tooltip": "The pair table, from Curate Preferences; or a run folder of alignsr candidates, absolute or by its "
                "name in the output folder. Its candidates must be of the model that is trained. Empty: the config's.",
            },
        )
        required = {("preferences" if name == "data_folder" else name): entry for name, entry in given.items()}
        required["preferences"] = preferences
        return {
            "required": required,
            "optional": {
                "beta": (
                    "FLOAT",
                    {
                        "default": OF_CONFIG,
                        "min": OF_CONFIG,
                        "max": 1e9,
                        "step": 500.0,
                        "tooltip": "How sharply pairs are told apart, and how near the model stays to what it was: 5000 is the "
                        "paper's; less lets it go farther. -1: the config's.",
                    },
                ),
                "weighting": (
                    [FROM_CONFIG, "hpo", "uniform"],
                    {
                        "default": FROM_CONFIG,
                        "tooltip": "hpo: pairs and pictures whose rewards differ more count more, as published. uniform: all "
                        "pairs count the same.",
                    },
                ),
                "picks": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "N, to pair the candidates anew by their rewards: 1 is best against worst. 0: the pairs as "
                        "they were curated.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, config: str | None, preferences: str | None = "", **texts: Any) -> str | float:  # noqa: N802
        """Also when pairs, named by their path, were curated anew."""
        known = super().IS_CHANGED(config, **texts)
        if isinstance(known, float) or not preferences or not preferences.strip():
            return known
        pairs = find_run(preferences.strip(), CANDIDATE_RUNS)
        return f"{known} {stamps(pairs) if pairs.exists() else ''}"

    def train(
        self,
        config: str,
        preferences: str = "",
        overrides: str = "",
        out_name: str = "",
        resume: bool = True,
        beta: float = OF_CONFIG,
        weighting: str = FROM_CONFIG,
        picks: int = 0,
    ) -> dict[str, Any]:
        from ..train.recipes.perceptual_dpo import learned_from

        data: dict[str, Any] = {"pairs": str(find_run(preferences.strip(), CANDIDATE_RUNS))} if preferences.strip() else {}
        data |= {"weights": weighting} if weighting != FROM_CONFIG else {}
        data |= {"picks": picks} if picks else {}
        tables: dict[str, Any] = {"data": data} if data else {}
        if loss := number_of("beta", beta, may_be_zero=False, usual="the paper's is 5000"):
            tables["loss"] = loss
        run = run_recipe(
            TITLE,
            ("perceptual_dpo",),
            config,
            overrides,
            "",
            out_name,
            resume,
            tables=tables,
            vram_bytes=EVERYTHING,
            learned_from=learned_from,
        )
        model, adapter = trained_policy(run)
        shown = (str(run.weights), model, run.curve, run.log, run.losses)
        return run.answer(*shown, adapter, str(run.folder))


def trained_policy(run: FinishedRun) -> tuple[Any, Any]:
    """The model of a finished run for Multi-Step SR, and its adapter where it has one of the network."""
    if run.config.train == "lora":
        adapter = read_trained(run)
        return trained_multi_step(run, with_supervised(run, adapter)), adapter
    branch = replace(run.config.model, control=str(run.weights))
    return trained_multi_step(replace(run, config=replace(run.config, model=branch)), None), None
