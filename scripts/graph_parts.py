"""What the descriptions of the shipped workflows share."""

from collections.abc import Sequence
from typing import Any

EXAMPLE = "example.png"  # the picture that comes with ComfyUI
ONE_GPU = "run.accumulation_steps=4"  # one process on one GPU: four accumulated batches are the four GPUs of the papers

Graph = dict[str, dict[str, Any]]


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """One node of an API-format graph; links are written as `["4", 0]`."""
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def scored(first: int, results: Sequence[str], titles: Sequence[str], name: str) -> Graph:
    """Results of one degraded picture side by side and in a table, saved as a report: nodes `first` to `first + 3`.

    Args:
        first: number of the sheet's node.
        results: nodes that give them.
        titles: one per result.
        name: of the report.
    """
    sheet, scores, report, shown = (str(first + k) for k in range(4))
    images = {f"result_{k}" if k > 1 else "result": [node_id, 0] for k, node_id in enumerate(results, 1)}
    return {
        sheet: node(
            "AlignSRCompare",
            **images,
            input=["2", 0],
            reference=["2", 1],
            labels=", ".join(("input (bicubic)", *titles, "ground truth")),
            panel_px=300,
        ),
        scores: node(
            "AlignSRIQAReward",
            images=[sheet, 2],
            names=[sheet, 3],
            reference=["2", 1],
            lq=["2", 0],
            metrics="psnr_y, ssim_y, lr_psnr, lsd",
            scale=4,
        ),
        report: node(
            "AlignSRSaveReport",
            scores=[scores, 0],
            filename_prefix=f"alignsr/{name}",
            pictures=[sheet, 0],
            more_pictures=[scores, 3],
        ),
        shown: node("PreviewAny", "Scores", source=[scores, 2]),
    }
