"""Image quality metrics: what exists (METRICS), what can run here (available), and how good an image is (score).

Our own metrics need no weights; learned ones run through pyiqa, which is imported only when one of them is asked for. Adding a
metric means one file with the arithmetic and one entry in METRICS (scoring.py) or LEARNED (learned.py).
"""

from .adapter import LearnedMetric
from .distortion import lr_psnr, psnr, ssim
from .scoring import METRICS, REWARD_METRICS, Scorer, available, hybrid_reward, require_available, score, score_many, spec_of
from .sets import SetDistance, frechet_distance, patches
from .spec import MetricSpec, MissingWeightsError, WeightFile

__all__ = [
    "METRICS",
    "REWARD_METRICS",
    "LearnedMetric",
    "MetricSpec",
    "MissingWeightsError",
    "Scorer",
    "SetDistance",
    "WeightFile",
    "available",
    "frechet_distance",
    "hybrid_reward",
    "lr_psnr",
    "patches",
    "psnr",
    "require_available",
    "score",
    "score_many",
    "spec_of",
    "ssim",
]
