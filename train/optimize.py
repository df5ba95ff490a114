"""Optimiser, learning rate and moving average of a trained part."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, total: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of step `step` (0-based) of `total`: linear warm-up, then constant, cosine or multistep."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "cosine":
        span = max(1, total - schedule.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - schedule.warmup_steps) / span))
        return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * cosine)
    if schedule.kind == "multistep":
        return peak * schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    return peak


def make_optimizer(parameters: Any, config: OptimizerConfig) -> Optimizer:
    """AdamW, or Adam when there is no weight decay; one multi-tensor update, or the 8-bit ones of bitsandbytes.

    Raises:
        ModuleNotFoundError: 8 bits without bitsandbytes; the message says how to install it.
    """
    if config.bits == 8:
        from ..core.compat import import_third_party

        optim: Any = import_third_party("bitsandbytes").optim
        small = optim.AdamW8bit if config.weight_decay else optim.Adam8bit
        return small(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def make_average(module: nn.Module, decay: float) -> nn.Module:
    """An exponential moving average that starts at the module's current weights: ema <- decay ema + (1 - decay) live."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged.fill_(1)  # otherwise the first update copies the live weights instead of averaging
    return average.requires_grad_(False).eval()
