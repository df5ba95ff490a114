"""Stochastic depth whose draws are those of one process with everybody's samples."""

import torch.distributed as distributed
from torch import Tensor, nn

from .normalization import world_size


def process_index() -> int:
    """Which of the processes this is; 0 when torch.distributed is not in use."""
    return distributed.get_rank() if world_size() > 1 else 0


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for some samples of the batch, in train mode only.

        y_i = x_i m_i / (1 - rate),   m_i = 1 with probability 1 - rate, else 0

    In several processes each one draws m for the samples of all and takes its own: processes whose torch generators start a step
    in the same state do what one does with all samples. The draws come from torch's generator of the device, as dropout's do, so
    that a checkpointed block draws the same in its backward pass.

    Args:
        rate: probability of leaving a sample's branch out, in [0, 1).

    Shapes:
        [B, ...] -> the same, B alike in all processes.

    Source:
        Huang et al. 2016, arXiv:1603.09382; specification aesop.md 3.5.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate: expected at least 0 and below 1, got {rate}; AESOP's networks take 0.1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Leave out; see the class."""
        if not self.training or not self.rate:
            return x
        count, first = x.shape[0], process_index() * x.shape[0]
        kept = x.new_empty(count * world_size()).bernoulli_(1 - self.rate)[first : first + count]
        return x * (kept / (1 - self.rate)).view(-1, *(1,) * (x.ndim - 1))
