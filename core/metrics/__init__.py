"""Image quality metrics: what exists (METRICS), what can run here (available), and how good an image is (score).

Our own metrics need no weights; learned ones run through pyiqa, which is imported only when one of them is asked for. Adding a
metric means one file with the arithmetic and one entry in OWN (own.py) or LEARNED (learned.py).
"""

from .adapter import LearnedMetric
from .autoencoded import ImageAutoEncoder, ae_psnr
from .distortion import lr_psnr, psnr, reference_input, ssim
from .scoring import (
    METRICS,
    REWARD_METRICS,
    ScoreOptions,
    Scorer,
    available,
    hybrid_reward,
    require_available,
    score,
    score_many,
    spec_of,
)
from .sets import SetDistance, frechet_distance, patches
from .spec import MetricSpec, MissingWeightsError, WeightFile

__all__ = [
    "METRICS",
    "REWARD_METRICS",
    "ImageAutoEncoder",
    "LearnedMetric",
    "MetricSpec",
    "MissingWeightsError",
    "ScoreOptions",
    "Scorer",
    "SetDistance",
    "WeightFile",
    "ae_psnr",
    "available",
    "frechet_distance",
    "hybrid_reward",
    "lr_psnr",
    "patches",
    "psnr",
    "reference_input",
    "require_available",
    "score",
    "score_many",
    "spec_of",
    "ssim",
]
