"""Curate Preferences and Curation Study: from scored candidates to preference pairs, and which pairs to take."""

import json
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor

from ..core.pictures import contact_sheet
from .candidates import CANDIDATES, SHOWN, CandidateRun
from .common import input_names, to_image
from .score import weights_of

FROM_CONFIG = "from config"


class CuratePreferences:
    """Node AlignSRCuratePreferences."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Ranks the candidates of every picture by a reward made of their scores and pairs the best with the worst, each pair "
        "weighted as in DP2O-SR. The pair table is what preference training reads."
    )
    FUNCTION = "curate"
    RETURN_TYPES = ("STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("preferences", "report", "sheet")
    OUTPUT_TOOLTIPS = (
        "Path of the pair table (Parquet) beside its candidates, for preference training.",
        "Facts as JSON: pairs, mean gap, weights, pictures left out and why.",
        "The best and the worst candidate of some pictures beside the ground truth, with their rewards.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "candidates": (CANDIDATES, {"tooltip": "From Score Candidates."}),
                "picks": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "N: so many of the best are paired with so many of the worst, N x N pairs per picture; "
                        "at most half "
                        "of the candidates. 0: the config's. Curation Study recommends a number.",
                    },
                ),
            },
            "optional": {
                "use_candidates": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "M: use only the first so many candidates of each picture. 0: the config's, or all.",
                    },
                ),
                "weights": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "How much each metric counts, such as psnr_y=2, lsd=1. Empty: the config's, or "
                        "full-reference and "
                        "other metrics half each.",
                    },
                ),
                "normalization": (
                    [FROM_CONFIG, "group", "fixed"],
                    {
                        "default": FROM_CONFIG,
                        "tooltip": "group: each metric is scaled between the worst and the best candidate of the same "
                        "picture, as "
                        "published. fixed: over the candidates of all pictures, so that absolute differences count.",
                    },
                ),
                "on_unusable": (
                    [FROM_CONFIG, "stop", "drop"],
                    {
                        "default": FROM_CONFIG,
                        "tooltip": "What a picture with too few usable candidates or equal rewards does: stop with an "
                        "error, or be left "
                        "out.",
                    },
                ),
            },
        }

    def curate(
        self,
        candidates: CandidateRun,
        picks: int = 0,
        use_candidates: int = 0,
        weights: str = "",
        normalization: str = FROM_CONFIG,
        on_unusable: str = FROM_CONFIG,
    ) -> tuple[str, str, Tensor]:
        from ..train.candidates import CandidateStore, curate_folder
        from ..train.candidates.curate import report_of

        config, store = candidates.config, CandidateStore(candidates.folder)
        pairs, reward = config.pairs, config.reward
        pairs = replace(pairs, **{key: value for key, value in (("picks", picks), ("candidates", use_candidates)) if value})
        if on_unusable != FROM_CONFIG:
            pairs = replace(pairs, on_unusable=on_unusable)
        if normalization != FROM_CONFIG:
            reward = replace(reward, normalization=normalization, ranges=reward.ranges if normalization == "fixed" else {})
        if found := weights_of(weights):
            reward = replace(reward, weights=found)
        most = pairs.candidates or store.candidates
        if most > store.candidates:
            raise ValueError(f"use_candidates: expected at most {store.candidates}, got {most}; sample more candidates")
        if 2 * pairs.picks > most:
            raise ValueError(f"picks: expected at most half of {most} candidates, got {pairs.picks}; take fewer")
        with input_names(**{"pairs.picks": "picks"}):
            path, curation = curate_folder(store, reward, pairs)
        report = {"preferences": str(path), **report_of(curation, pairs, store.names)}
        return str(path), json.dumps(report, indent=2), to_image([pairs_sheet(store, curation)])


def pairs_sheet(store: Any, curation: Any, shown: int = SHOWN) -> Image.Image:
    """Ground truth, best and worst candidate of some pictures, with their rewards."""
    pictures: dict[str, Tensor] = {}
    for row, group in enumerate(curation.groups[:shown]):
        entry, rewards = store.entry(group), curation.rewards[group]
        mine = curation.table.group == row
        best, worst = int(curation.table.chosen[mine][0]), int(curation.table.rejected[mine][-1])
        pictures[entry.name] = store.picture(entry, "gt")[None].float() / 255
        for word, k in (("chosen", best), ("rejected", worst)):
            pictures[f"{group}: {word} {k}, reward {rewards[k]:.3f}"] = store.picture(entry, f"{k:02d}.png")[None].float() / 255
    return contact_sheet(pictures, columns=3, cell_px=256)


class CurationStudy:
    """Node AlignSRCurationStudy."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Looks at what every choice of N picks out of M candidates would give, from one set of scored candidates: reward "
        "spread, "
        "gaps, share of pairs, weights, best and worst of m. Recommends M and N by the size of the model, beside DP2O-SR's "
        "findings."
    )
    FUNCTION = "study"
    RETURN_TYPES = ("INT", "STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("picks", "table", "study", "published")
    OUTPUT_TOOLTIPS = (
        "The recommended N, for Curate Preferences.",
        "The table, best and worst of m and the recommendation as text.",
        "Plots and table as a picture; the recommended row is marked.",
        "What DP2O-SR measured after training with each N and M, for its small and its large model.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "candidates": (CANDIDATES, {"tooltip": "From Score Candidates."}),
                "billion_parameters": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.1,
                        "tooltip": "Size of the model that is to be trained: 0.8 for Stable Diffusion 2, 12 for FLUX.1. 0: "
                        "that of the "
                        "sampled model.",
                    },
                ),
                "most_candidates": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "Use only the first so many candidates of each picture. 0: all.",
                    },
                ),
            }
        }

    def study(
        self, candidates: CandidateRun, billion_parameters: float = 0.0, most_candidates: int = 0
    ) -> tuple[int, str, Tensor, Tensor]:
        from ..train.candidates import study_folder

        with input_names(parameters="billion_parameters"):
            found, _ = study_folder(candidates.folder, parameters=billion_parameters * 1e9, most=most_candidates)
        pictures = found.pictures()
        return found.advice.picks, found.to_text(), to_image([pictures["study"]]), to_image([pictures["published"]])
