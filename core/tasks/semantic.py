"""Semantic segmentation: mIoU and pixel accuracy of what a SegFormer sees in restored pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_image, check_positive_int, describe
from ..compat import import_transformers
from .pictures import Labels, read_levels

METRICS = ("miou", "pix_acc")
IGNORED = 255
SHORT_SIDE_PX = 640
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Segmenter = Callable[[Tensor], Tensor]


class Confusion:
    """How often which class was taken for which, over many pictures.

        IoU(c) = n(c, c) / (sum_k n(c, k) + sum_k n(k, c) - n(c, c)),   n(label, predicted)
        mIoU = mean of IoU over classes that occur in labels or predictions;   PixAcc = sum_c n(c, c) / sum n

    Args:
        classes: how many there are.

    Example:
        >>> counts = Confusion(2)
        >>> counts.add(torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]]))
        >>> {name: round(value, 2) for name, value in counts.scores().items()}
        {'miou': 50.0, 'pix_acc': 66.67}
    """

    def __init__(self, classes: int) -> None:
        self.classes = check_positive_int(classes, "classes")
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count a picture.

        Args:
            predicted: [H, W] int, in 0..classes-1.
            labels: [H, W] int; 255 does not count.

        Raises:
            ValueError: sizes differ, or a class that there is not.
        """
        if predicted.shape != labels.shape:
            raise ValueError(
                f"predicted: expected the size of the labels {tuple(labels.shape)}, got {describe(predicted)}; resize it"
            )
        counted = labels != IGNORED
        true, seen = labels[counted].long().cpu(), predicted[counted.to(predicted.device)].long().cpu()
        for name, values in (("labels", true), ("predicted", seen)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
                span = f"{int(values.min())}..{int(values.max())}"
                raise ValueError(
                    f"{name}: expected classes in 0..{self.classes - 1}, got {span}; check --first-label and --weights"
                )
        pairs = torch.bincount(true * self.classes + seen, minlength=self.classes**2)
        self.counts += pairs.view(self.classes, self.classes)

    def scores(self) -> dict[str, float]:
        """mIoU and PixAcc in percent; empty where no pixel has a label."""
        right = self.counts.diag().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diag()
        if not int(self.counts.sum()):
            return {}
        occurring = union > 0
        overlap = right[occurring] / union[occurring]
        return {"miou": 100 * float(overlap.mean()), "pix_acc": 100 * float(right.sum() / self.counts.sum())}


class SegFormer:
    """A SegFormer of transformers as a function of one picture.

    Args:
        module: a SegformerForSemanticSegmentation.
        device: where it runs.
        short_side_px: the picture is resized (bilinear, shape kept) to this short side first.

    Source:
        Xie et al. 2021 (SegFormer), arXiv:2105.15203: B5 on ADE20K at 640. ASASR names SegFormer-B5 and nothing else.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu", *, short_side_px: int = SHORT_SIDE_PX) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        self.device, self.short_side_px = torch.device(device), check_positive_int(short_side_px, "short_side_px", low=32)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "SegFormer":
        """Read a folder as transformers writes it (config.json, model.safetensors); nothing is downloaded.

        Raises:
            FileNotFoundError: no such folder.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"weights: expected a folder of transformers with config.json at {folder}, found none; "
                "get nvidia/segformer-b5-finetuned-ade-640-640"
            )
        transformers: Any = import_transformers()
        module = transformers.SegformerForSemanticSegmentation.from_pretrained(str(folder), local_files_only=True)
        return cls(module, device)

    @property
    def classes(self) -> int:
        """How many classes it knows."""
        module: Any = self.module
        return int(module.config.num_labels)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Label every pixel.

        Args:
            image: [1, 3, H, W] float in [0, 1].

        Returns:
            [H, W] int64 on the CPU: the class with the largest logit after bilinear enlargement to the picture's size.
        """
        check_image(image, "image", channels=(3,))
        height, width = image.shape[-2:]
        ratio = self.short_side_px / min(height, width)
        size = (round(height * ratio), round(width * ratio))
        pixels = F.interpolate(image.to(self.device, torch.float32), size=size, mode="bilinear", antialias=ratio < 1)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        logits = self.module(pixel_values=(pixels - mean) / std).logits
        return F.interpolate(logits, size=(height, width), mode="bilinear").argmax(1)[0].cpu()


class SemanticJudge:
    """mIoU and PixAcc of what a segmenter sees in one method's pictures.

    Args:
        segmenter: maps [1, 3, H, W] in [0, 1] to classes [H, W].
        classes: how many it knows.
        labels: folder of label pictures.
        first_label: the level that stands for class 0 in the files (ADE20K: 1); lower levels and 255 do not count.

    Attributes:
        metrics: mIoU and PixAcc.
        remarks: which network it is.

    Source:
        ASASR specification, asasr.md 4.2 and 4.5: ADE20K with SegFormer-B5.
    """

    def __init__(
        self, segmenter: Segmenter, classes: int, labels: Labels, *, first_label: int = 1, remarks: tuple[str, ...] = ()
    ) -> None:
        self.segmenter, self.labels, self.first_label = segmenter, labels, check_positive_int(first_label, "first_label", low=0)
        self.metrics, self.remarks = METRICS, remarks
        self._total = Confusion(classes)

    def size_of(self, name: str) -> tuple[int, int]:
        """(height, width) of the label picture."""
        return tuple(read_levels(self.labels.file(name)).shape)  # type: ignore[return-value]

    def see(self, name: str, image: Tensor) -> dict[str, float]:
        """Label the picture; its own accuracy."""
        levels = read_levels(self.labels.file(name))
        truth = torch.where((levels < self.first_label) | (levels == IGNORED), IGNORED, levels - self.first_label)
        here = Confusion(self._total.classes)
        here.add(self.segmenter(image), truth)
        self._total.counts += here.counts
        return here.scores()

    def result(self) -> dict[str, float]:
        """mIoU and PixAcc of the whole set, percent."""
        return self._total.scores()
