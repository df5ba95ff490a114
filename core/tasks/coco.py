"""COCO's average precision of boxes and masks, by pycocotools."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..compat import import_third_party
from ..pairs import partner

METRICS = ("ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask")
EXTRA = "python -m pip install 'alignsr[downstream]'"


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture.

    Attributes:
        boxes: [N, 4] float, (left, top, right, bottom) in pixels.
        labels: [N] int, category ids of the annotations.
        scores: [N] float, larger is more certain.
        masks: [N, H, W] bool, or None for boxes alone.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


def _pycocotools(part: str) -> Any:
    try:
        return import_third_party(f"pycocotools.{part}")
    except ModuleNotFoundError as error:
        if error.name != "pycocotools":
            raise
        message = f"detection: expected the package pycocotools, got none; run `{EXTRA}`"
        raise ModuleNotFoundError(message, name=error.name) from error


class Annotations:
    """Annotations of COCO's kind, and the picture that each belongs to by its file name without the ending.

    Args:
        data: the parsed JSON: "images" (id, file_name, width, height), "annotations", "categories".
        source: for messages.

    Raises:
        ValueError: not of this kind.
        ModuleNotFoundError: pycocotools is not installed; the message says how to install it.
    """

    def __init__(self, data: Mapping[str, Any], source: str = "annotations") -> None:
        lacking = [key for key in ("images", "annotations", "categories") if not isinstance(data.get(key), list)]
        if lacking or not data["images"]:
            said = f"no {', '.join(lacking)}" if lacking else "no images in it"
            raise ValueError(f"labels: expected annotations of COCO's kind in {source}, got {said}; take instances_val2017.json")
        self.coco: Any = _pycocotools("coco").COCO()
        self.coco.dataset = dict(data)
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        self.source = source
        self._images: dict[str, dict[str, Any]] = {Path(image["file_name"]).stem: image for image in data["images"]}

    @classmethod
    def read(cls, path: str | Path) -> "Annotations":
        """Read a JSON file.

        Raises:
            FileNotFoundError, ValueError: no such file, or none of this kind.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"labels: expected a JSON file of annotations at {path}, found none; check the path")
        try:
            data: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"labels: expected JSON in {path}, got something else ({error}); take instances_val2017.json"
            ) from error
        return cls(cast(dict[str, Any], data) if isinstance(data, dict) else {}, str(path))

    def image(self, name: str) -> dict[str, Any]:
        """The entry of a picture by its name without the ending: `000000000139_x4` belongs to `000000000139.jpg`.

        Raises:
            ValueError: there is none.
        """
        found = partner(name.rpartition("/")[2], self._images)
        if found is not None:
            return self._images[found]
        raise ValueError(f"labels: expected annotations for {name}, got none in {self.source}; names must agree")


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Detections as COCO's result format: boxes as (left, top, width, height), masks as run lengths."""
    rows: list[dict[str, Any]] = []
    boxes = _numbers(torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1))
    codes = [None] * len(boxes) if found.masks is None else _run_lengths(found.masks)
    for box, label, score, code in zip(boxes, _numbers(found.labels), _numbers(found.scores), codes, strict=True):
        row: dict[str, Any] = {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        rows.append(row if code is None else row | {"segmentation": code})
    return rows


def _numbers(x: Tensor) -> list[Any]:
    return cast(list[Any], x.tolist())


def _run_lengths(masks: Tensor) -> list[Any]:
    import numpy as np

    if not len(masks):
        return []
    pixels = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    codes: list[Any] = _pycocotools("mask").encode(pixels)
    return codes


def average_precision(
    results: Sequence[Mapping[str, Any]], annotations: Annotations, image_ids: Sequence[int], *, has_masks: bool = True
) -> dict[str, float]:
    """COCO's AP over the pictures that were seen.

        AP = mean over classes, IoU = 0.50, 0.55 .. 0.95, recall = 0, 0.01 .. 1 of the best precision at that recall or beyond

    Args:
        results: of `coco_results`, all pictures.
        annotations: ground truth.
        image_ids: the pictures that count.
        has_masks: score masks as well.

    Returns:
        AP, AP50 and AP75 of boxes and masks in percent; empty where these pictures have no annotated object.

    Source:
        Lin et al. 2014 (COCO), arXiv:1405.0312; computed by pycocotools.
    """
    ids = sorted(set(image_ids))
    if not annotations.coco.getAnnIds(imgIds=ids, iscrowd=False):
        return {}
    scores: dict[str, float] = {}
    evaluation: Any = _pycocotools("cocoeval").COCOeval
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if name == "mask" and not has_masks:
            continue
        if not results:  # pycocotools cannot load an empty list
            scores |= dict.fromkeys((f"ap_{name}", f"ap50_{name}", f"ap75_{name}"), 0.0)
            continue
        rows = [{key: value for key, value in row.items() if kind == "segm" or key != "segmentation"} for row in results]
        with contextlib.redirect_stdout(io.StringIO()):
            run = evaluation(annotations.coco, annotations.coco.loadRes(rows), kind)
            run.params.imgIds = ids
            run.evaluate()
            run.accumulate()
            run.summarize()
        for key, value in zip(("ap", "ap50", "ap75"), run.stats[:3], strict=True):
            scores[f"{key}_{name}"] = 100 * float(value)
    return scores
