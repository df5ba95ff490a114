"""Synthetic degradation: the second-order Real-ESRGAN chain and its relatives, with a generator per sample."""

from .pipeline import Degraded, JpegForm, degrade, lq_size, replay
from .presets import KERNEL_KINDS, PRESETS, RESIZE_MODES, BlurConfig, DegradationConfig, FinalConfig, StageConfig, find_config
from .sharpen import sharpen

__all__ = [
    "KERNEL_KINDS",
    "PRESETS",
    "RESIZE_MODES",
    "BlurConfig",
    "DegradationConfig",
    "Degraded",
    "FinalConfig",
    "JpegForm",
    "StageConfig",
    "degrade",
    "find_config",
    "lq_size",
    "replay",
    "sharpen",
]
