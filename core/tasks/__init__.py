"""Tasks downstream: what detectors, segmenters and OCR engines make of restored pictures (ASASR, Table 2).

A task has a judge (`judge.Judge`): `mask_rcnn.DetectionJudge`, `semantic.SemanticJudge`, `ocr.OCRJudge`. Each takes a plain
function of a picture, so that any network or engine can stand in for the paper's. `run.evaluate_task` shows it the pictures.
"""

from dataclasses import dataclass

from . import coco, ocr, semantic


@dataclass(frozen=True)
class Task:
    """A task by its name.

    Attributes:
        title: for people.
        metrics: keys of quantities.DOWNSTREAM.
        published: the set with a paper's numbers.
    """

    title: str
    metrics: tuple[str, ...]
    published: str


TASKS: dict[str, Task] = {
    "detection": Task("detection and instance segmentation", coco.METRICS, "ASASR COCO"),
    "semantic": Task("semantic segmentation", semantic.METRICS, "ASASR ADE20K"),
    "ocr": Task("reading text", ocr.METRICS, "ASASR Occluded RoadText"),
}
