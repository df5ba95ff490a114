"""Compare Seeds: before and after training, mean and deviation of every metric over seeds."""

import json
from typing import Any

from torch import Tensor

from .candidates import CANDIDATES, CandidateRun
from .common import to_image


class CompareSeeds:
    """Node AlignSRCompareSeeds."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Compares models by many results of the same pictures: the mean of every metric and its deviation over seeds, as "
        "DP2O-SR's Table 2 does with ten seeds. Training by preferences should raise rewards and narrow deviations."
    )
    FUNCTION = "compare"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("table", "table_image", "sheet", "values")
    OUTPUT_TOOLTIPS = (
        "The table as text: value +- deviation over the seeds of a picture, in brackets the deviation of the mean.",
        "The same as a picture; the better mean of each metric is marked.",
        "The first pictures: ground truth and the first seeds of each model, a row per model.",
        "All numbers as JSON.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        scored = "From Score Candidates, of the same pictures and with as many candidates."
        return {
            "required": {
                "before": (CANDIDATES, {"tooltip": f"Scored candidates of the first model. {scored}"}),
                "after": (CANDIDATES, {"tooltip": f"Scored candidates of the second model. {scored}"}),
                "labels": (
                    "STRING",
                    {"default": "before, after", "tooltip": "A name for each, separated by commas."},
                ),
            },
            "optional": {
                "third": (CANDIDATES, {"tooltip": f"Scored candidates of one more model. {scored}"}),
            },
        }

    def compare(
        self, before: CandidateRun, after: CandidateRun, labels: str = "before, after", third: CandidateRun | None = None
    ) -> tuple[str, Tensor, Tensor, str]:
        from ..train.seed_study import compare_runs, seed_sheet

        runs = [run for run in (before, after, third) if run is not None]
        names = [name.strip() for name in labels.split(",") if name.strip()]
        names += ["before", "after", "third"][len(names) :]
        if len(names) < len(runs) or len(set(names[: len(runs)])) < len(runs):
            raise ValueError(f"labels: expected {len(runs)} different names, got {labels!r}; separate them with commas")
        folders = {name: run.folder for name, run in zip(names, runs, strict=False)}
        table = compare_runs(folders)
        return (
            table.to_text(),
            to_image([table.picture()]),
            to_image([seed_sheet(folders)]),
            json.dumps(table.to_dict(), indent=2),
        )
