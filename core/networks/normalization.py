"""Batch normalisation whose statistics are those of all processes together, and spectral normalisation; no hooks."""

from typing import Any, cast

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn


def world_size() -> int:
    """How many processes take part; 1 when torch.distributed is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """y = sum_r x_r on every process; the gradient of x_r is the sum of all processes' gradients of y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of the same tensor of every process, differentiable: backward sums the gradients of all processes.

    With gradients averaged over processes, as DistributedDataParallel does, a loss that is a mean over processes' batches then
    has the gradient that one process with all samples would see. Every process must call it, in the same order.

    Args:
        x: any shape, the same in all processes.

    Returns:
        The same shape; `x` itself in a single process.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _SumOverProcesses.apply(x))


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics cover the batches of all processes; parameters, buffers and names are its own.

        mean = sum x / n;   var = sum (x - mean)^2 / n;   y = weight (x - mean) / sqrt(var + eps) + bias

    with sums over batch, height and width of every process, so that two processes with batch B equal one with batch 2B, in value
    and, through the sums, in gradient. With one process it is `nn.BatchNorm2d`. `nn.SyncBatchNorm` does the same on CUDA only;
    this one runs wherever `all_reduce` does, the CPU included. The statistics are float32 under autocast as well.

    Shapes:
        [B, C, H, W] -> the same.

    Raises:
        ValueError: in train mode, one value per channel in all (batch 1 at 1x1): its variance says nothing.

    Source:
        Ioffe and Szegedy 2015, arXiv:1502.03167, Alg. 1. Specification aesop.md 3.4: the released 256-px discriminator uses
        SyncBatchNorm, which refuses the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:  # the base class names it so
        """Normalise; see the class."""
        x = input
        if not self.training:
            return super().forward(x)
        processes = world_size()
        if x.numel() // x.shape[1] * processes == 1:
            raise ValueError(
                f"x: expected more than one value per channel for batch statistics, got {tuple(x.shape)}; "
                "train with a batch of 2 or more, or with a larger patch"
            )
        return super().forward(x) if processes == 1 else self._over_processes(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        axes = (0, 2, 3)
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()
            count = values.new_tensor([values.numel() // values.shape[1]])
            sums = sum_over_processes(torch.cat((values.sum(axes), count)))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            centred = values - mean.view(1, -1, 1, 1)
            variance = sum_over_processes(centred.square().sum(axes)) / count
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
            gain = self.weight.to(values) * torch.rsqrt(variance + self.eps)
            return (centred * gain.view(1, -1, 1, 1) + self.bias.to(values).view(1, -1, 1, 1)).to(x.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """running <- (1 - momentum) running + momentum new, as `nn.BatchNorm2d` with its default arguments."""
        momentum = self.momentum if self.momentum is not None else 0.1
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            if running is not None:
                running.lerp_(new.to(running), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class SpectralConv2d(nn.Module):
    """Convolution without bias whose weight is divided by an estimate of its largest singular value.

        train:  v <- W^T u / |W^T u|,  u <- W v / |W v|  (one power iteration per forward pass, without gradient)
        y = conv(x, W / (u^T W v)),  W flattened to [outputs, rest]; u and v count as constants

    Names are those of `torch.nn.utils.spectral_norm` (weight_orig, weight_u, weight_v), whose hooks keep a tensor that cannot be
    copied with the module. Sigma and the iteration are float32 under autocast and bf16 weights as well.

    Args:
        inputs: channels of the input.
        outputs: channels of the result.
        kernel: side of the kernel.
        stride: stride; the padding is 1.

    Source:
        Miyato et al. 2018, arXiv:1802.05957, Alg. 1.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel, bias=False)  # for its initialisation
        self.stride = stride
        self.weight_orig = nn.Parameter(plain.weight.detach())
        flat = self.weight_orig.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn_like(flat[:, 0]), dim=0, eps=1e-12))
        self.register_buffer("weight_v", F.normalize(torch.randn_like(flat[0]), dim=0, eps=1e-12))
        self._iterate(15)  # so that the first steps of training do not see a wrong scale

    def _iterate(self, times: int) -> None:
        with torch.no_grad():
            flat = _at_least_float32(self.weight_orig).flatten(1)
            u, v = self.weight_u.to(flat), self.weight_v.to(flat)
            for _ in range(times):
                v = F.normalize(flat.T @ u, dim=0, eps=1e-12)
                u = F.normalize(flat @ v, dim=0, eps=1e-12)
            self.weight_u.copy_(u)
            self.weight_v.copy_(v)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                self._iterate(1)
            flat = _at_least_float32(self.weight_orig).flatten(1)
            # copies: the next forward pass writes into the buffers, perhaps before this one's backward pass
            u, v = self.weight_u.to(flat, copy=True), self.weight_v.to(flat, copy=True)
            weight = self.weight_orig / torch.dot(u, flat @ v).to(self.weight_orig)
        return F.conv2d(x, weight, stride=self.stride, padding=1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
