"""What tables may hold besides metrics of restored images: scores of tasks downstream, and quantities that are only printed."""

from .scoring import METRICS, spec_of
from .spec import INF, MetricSpec


def _downstream(name: str, title: str, note: str) -> MetricSpec:
    return MetricSpec(name, title, "downstream", True, (0.0, 100.0), note=f"percent; {note}")


def _printed(name: str, title: str, is_up: bool, span: tuple[float, float], note: str) -> MetricSpec:
    return MetricSpec(name, title, "printed", is_up, span, note=note)


DOWNSTREAM: dict[str, MetricSpec] = {
    "ap_box": _downstream("ap_box", "APb", "boxes, mean over IoU 0.50:0.05:0.95"),
    "ap50_box": _downstream("ap50_box", "APb 50", "boxes at IoU 0.50"),
    "ap75_box": _downstream("ap75_box", "APb 75", "boxes at IoU 0.75"),
    "ap_mask": _downstream("ap_mask", "APm", "masks, mean over IoU 0.50:0.05:0.95"),
    "ap50_mask": _downstream("ap50_mask", "APm 50", "masks at IoU 0.50"),
    "ap75_mask": _downstream("ap75_mask", "APm 75", "masks at IoU 0.75"),
    "miou": _downstream("miou", "mIoU", "mean over classes of intersection over union, of the whole set"),
    "pix_acc": _downstream("pix_acc", "PixAcc", "share of labelled pixels with the right class, of the whole set"),
    "ocr_precision": _downstream("ocr_precision", "OCR precision", "share of the words that were read which are right"),
    "ocr_recall": _downstream("ocr_recall", "OCR recall", "share of the words in the pictures which were read"),
}
PRINTED: dict[str, MetricSpec] = {
    "vq_r1": _printed("vq_r1", "VQ-R1", True, (1.0, 5.0), "VisualQuality-R1; not part of pyiqa and not offered"),
    "adapter_m": _printed("adapter_m", "parameters, M", False, (0.0, INF), "of the adversary's adapter"),
    "latency_s": _printed("latency_s", "s/image", False, (0.0, INF), "one image"),
    "vram_gb": _printed("vram_gb", "peak VRAM, GB", False, (0.0, INF), "one image"),
    "vram_percent": _printed("vram_percent", "VRAM efficiency, %", True, (0.0, 100.0), "as the paper calls it"),
    "pflops": _printed("pflops", "PFLOPs/image", False, (0.0, INF), "one image"),
    "mfu_percent": _printed("mfu_percent", "MFU, %", True, (0.0, 100.0), "share of the GPU's arithmetic that is used"),
    "top1": _printed("top1", "Top-1, %", True, (0.0, 100.0), "share of the votes"),
    "reward": _printed("reward", "reward", True, (0.0, 1.0), "DP2O-SR's, after training"),
    "reward_peak": _printed("reward_peak", "highest reward", True, (0.0, 1.0), "while training"),
    "peak_step": _printed("peak_step", "at step", False, (0.0, INF), "where it stands"),
    "reward_best": _printed("reward_best", "best of M", True, (0.0, 1.0), "DP2O-SR's reward"),
    "reward_mean": _printed("reward_mean", "mean of M", True, (0.0, 1.0), "DP2O-SR's reward"),
    "reward_worst": _printed("reward_worst", "worst of M", True, (0.0, 1.0), "DP2O-SR's reward"),
}
COLUMNS: dict[str, MetricSpec] = {**METRICS, **DOWNSTREAM, **PRINTED}


def column_of(name: str) -> MetricSpec:
    """The facts of anything that a table may have a column for.

    Raises:
        ValueError: unknown name, with the nearest known metric.

    Example:
        >>> column_of("miou").title, column_of("psnr_y").title
        ('mIoU', 'PSNR (Y)')
    """
    return COLUMNS[name] if name in COLUMNS else spec_of(name)
