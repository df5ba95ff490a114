"""Detection and instance segmentation: torchvision's Mask R-CNN as a judge of restored pictures, scored by COCO's AP."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_image
from ..compat import import_detection
from ..weights import load_into, load_state_dict
from .coco import METRICS, Annotations, Detections, average_precision, coco_results

WEIGHTS = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
SOURCE = f"https://download.pytorch.org/models/{WEIGHTS}"
MASK_THRESHOLD = 0.5

Detector = Callable[[Tensor], Detections]


class MaskRCNN:
    """A Mask R-CNN of torchvision as a function of one picture.

    Args:
        module: maps a list of [3, H, W] in [0, 1] to a list of {"boxes", "labels", "scores", "masks" [N, 1, H, W] in [0, 1]}; it
            scales and normalises by itself. Its labels are COCO's category ids.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "MaskRCNN":
        """A ResNet-50 FPN Mask R-CNN, of either version, from its weight file.

        Raises:
            WeightsError: keys or shapes that do not fit.
        """
        return cls(build_mask_rcnn(load_state_dict(path), str(path)), device)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Detections:
        """Detect objects.

        Args:
            image: [1, 3, H, W] float in [0, 1].

        Returns:
            Boxes, labels and scores by falling score, masks where they are at least 0.5; on the CPU.
        """
        check_image(image, "image", channels=(3,))
        (found,) = self.module([image[0].to(self.device, torch.float32)])
        masks = found["masks"][:, 0] >= MASK_THRESHOLD
        return Detections(found["boxes"].cpu(), found["labels"].cpu(), found["scores"].cpu(), masks.cpu())


def build_mask_rcnn(state: Mapping[str, Tensor], source: str) -> nn.Module:
    """torchvision's ResNet-50 FPN Mask R-CNN with these weights; the keys tell the version, the last layer the classes.

    Raises:
        WeightsError: keys or shapes that do not fit.
    """
    detection: Any = import_detection()
    classes = state.get("roi_heads.box_predictor.cls_score.bias")
    is_second = any(key.startswith("roi_heads.mask_head.0.1.") for key in state)  # normalisation: the first version has none
    make = detection.maskrcnn_resnet50_fpn_v2 if is_second else detection.maskrcnn_resnet50_fpn
    module: nn.Module = make(weights=None, weights_backbone=None, num_classes=91 if classes is None else len(classes))
    load_into(module, state, source)
    return module


class DetectionJudge:
    """AP of boxes and masks that a detector finds in one method's pictures.

    Args:
        detector: maps [1, 3, H, W] in [0, 1] to Detections.
        annotations: ground truth.

    Attributes:
        metrics: COCO's AP, AP50 and AP75 of boxes and masks.
        remarks: which detector it is.

    Source:
        ASASR specification, asasr.md 4.2 and 4.5: COCO with Mask R-CNN; the checkpoint is not said.
    """

    def __init__(self, detector: Detector, annotations: Annotations, remarks: tuple[str, ...] = ()) -> None:
        self.detector, self.annotations = detector, annotations
        self.metrics, self.remarks = METRICS, remarks
        self._results: list[dict[str, Any]] = []
        self._images: list[int] = []
        self._has_masks = True

    def size_of(self, name: str) -> tuple[int, int]:
        """(height, width) of the annotated picture."""
        image = self.annotations.image(name)
        return int(image["height"]), int(image["width"])

    def see(self, name: str, image: Tensor) -> dict[str, float]:
        """Look for objects; a picture alone has no AP."""
        number = int(self.annotations.image(name)["id"])
        found = self.detector(image)
        self._has_masks = self._has_masks and found.masks is not None
        self._results += coco_results(number, found)
        self._images.append(number)
        return {}

    def result(self) -> dict[str, float]:
        """AP over all pictures seen, percent."""
        return average_precision(self._results, self.annotations, self._images, has_masks=self._has_masks)
