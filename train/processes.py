"""What several processes exchange: weights at the start and gradients before an update. With one process, nothing happens.

The parts of a recipe are plain modules, not wrapped ones: a discriminator that is frozen for one pass and trained in the next, or
seen twice before one backward pass, is not what wrappers that watch forward passes are made for.
"""

import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ..core.networks.normalization import world_size
from .config import RunConfig

LOGGER = logging.getLogger("alignsr")
PATIENCE = timedelta(hours=2)  # of processes that wait while the first one validates; the default is 10 minutes with NCCL


def make_accelerator() -> Any:
    """Accelerate's `Accelerator`, after joining the other processes of a launcher, on GPUs or on the CPU.

    By itself Accelerate joins processes on the CPU only where ACCELERATE_USE_CPU is set: without it, those of `torchrun` on a
    machine without a GPU would all train alone, into one folder.

    Raises:
        RuntimeError: a launcher started several processes and Accelerate joined none.
    """
    from ..core.compat import import_accelerate

    started = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = started > 1 and not torch.accelerator.is_available()
    # precision is ours (torch.autocast): accelerate keeps one global setting per process, and a server trains more than once
    accelerate = import_accelerate()
    patience = accelerate.InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    if int(accelerator.num_processes) != started > 1:
        raise RuntimeError(
            f"processes: expected {started} that train together, got {accelerator.num_processes}; start them with torchrun or "
            "accelerate launch, with ACCELERATE_USE_CPU=true where the device takes only one, and train nothing alone before"
        )
    if started == 1 and "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        LOGGER.warning(
            "this is one process: `accelerate launch --cpu` starts no more, whatever --num_processes says; "
            "use `torchrun --standalone --nproc_per_node N -m alignsr train ...`"
        )
    return accelerator


def share_state(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    if world_size() > 1:
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                distributed.broadcast(tensor.data, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one exchange; parameters without one must be the same everywhere.

    With losses that are means over equally large batches, N processes then do the step of one with N times the batch.
    """
    processes = world_size()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if processes == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def averaged_over_processes(values: Tensor) -> Tensor:
    """The mean of every process's values, without gradient."""
    processes = world_size()
    if processes > 1:
        distributed.all_reduce(values)
        values = values / processes
    return values


def first_index(run: RunConfig, step: int, micro: int, processes: int, rank: int) -> int:
    """Place in the endless sequence of the first sample of a process's forward pass `micro` of a step; processes take turns."""
    return ((step * run.accumulation_steps + micro) * processes + rank) * run.batch_size
