"""Frozen networks that let a gradient through to their input and keep almost nothing for it.

A convolution whose weight is constant needs only that weight for the gradient of its input, a LeakyReLU only the sign of its
input, a max pooling only which of its cells won. torch keeps the full input of all three.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]
IMAGE_CHANNELS = 4  # a convolution with at most so many inputs or outputs reads or writes an image
M = TypeVar("M", bound=nn.Module)


class _Convolution(torch.autograd.Function):
    """y = conv2d(x, W) + b with W and b constant; keeps W only. dL/dx = conv_transpose2d(dL/dy, W)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = stride, padding, dilation, groups
        ctx.size, ctx.dtype = x.shape[-2:], x.dtype
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = grads[0]
        # rows and columns at the end that no window reached
        rest = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(ctx.size, grad.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True)
        ]
        grad_x = F.conv_transpose2d(grad, weight.to(grad.dtype), None, stride, padding, rest, groups, dilation)
        return grad_x.to(ctx.dtype), None, None, None, None, None, None


class _LeakyReLU(torch.autograd.Function):
    """y = x where x > 0, else slope x; keeps one byte per value, the sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, inplace: bool) -> Tensor:
        ctx.slope = slope
        ctx.save_for_backward(x > 0)
        if inplace:
            ctx.mark_dirty(x)
            return F.leaky_relu(x, slope, inplace=True)
        return F.leaky_relu(x, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (positive,) = ctx.saved_tensors
        return torch.where(positive, grads[0], grads[0] * ctx.slope), None, None


class _MaxPool2x2(torch.autograd.Function):
    """Maximum of 2x2 cells; keeps one byte per cell, which of the four it was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, index = F.max_pool2d(x, 2, 2, return_indices=True)
        width = x.shape[-1]
        ctx.size = x.shape
        ctx.save_for_backward(((index // width % 2) * 2 + index % width % 2).to(torch.uint8))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (winner,) = ctx.saved_tensors
        height, width = winner.shape[-2] * 2, winner.shape[-1] * 2
        grad = grads[0].new_zeros(ctx.size)
        for cell in range(4):
            grad[..., cell // 2 : height : 2, cell % 2 : width : 2] = torch.where(winner == cell, grads[0], 0)
        return grad


def _needs_only_x(x: Tensor, *constants: Tensor | None) -> bool:
    """Whether this call is one whose input wants a gradient and whose parameters do not."""
    return torch.is_grad_enabled() and x.requires_grad and not any(c is not None and c.requires_grad for c in constants)


class _LeanConv2d(nn.Conv2d):
    """`nn.Conv2d` that keeps its weight only, while that is constant; from and to an image in float32 under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if min(self.in_channels, self.out_channels) <= IMAGE_CHANNELS and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._forward(input.float())
        return self._forward(input)

    def _forward(self, input: Tensor) -> Tensor:
        if not _needs_only_x(input, self.weight, self.bias) or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(input)
        return cast(
            Tensor, _Convolution.apply(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        )


class _LeanLeakyReLU(nn.LeakyReLU):
    """`nn.LeakyReLU` that keeps signs only; an overwritten input is overwritten here as well."""

    def forward(self, input: Tensor) -> Tensor:
        if not _needs_only_x(input) or self.negative_slope < 0:
            return super().forward(input)
        return cast(Tensor, _LeakyReLU.apply(input, self.negative_slope, self.inplace))


class _LeanReLU(nn.ReLU):
    """`nn.ReLU` that keeps signs only; an overwritten input is overwritten here as well."""

    def forward(self, input: Tensor) -> Tensor:
        if not _needs_only_x(input):
            return super().forward(input)
        return cast(Tensor, _LeakyReLU.apply(input, 0.0, self.inplace))


class _LeanMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` of disjoint 2x2 cells that keeps the place of each maximum in one byte."""

    def forward(self, input: Tensor) -> Tensor:
        plain = self.padding in (0, (0, 0)) and self.dilation in (1, (1, 1)) and not self.ceil_mode and not self.return_indices
        cells = self.kernel_size in (2, (2, 2)) and self.stride in (2, (2, 2))
        if not (_needs_only_x(input) and plain and cells):
            return cast(Tensor, super().forward(input))
        return cast(Tensor, _MaxPool2x2.apply(input))


_LEAN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _LeanConv2d,
    nn.LeakyReLU: _LeanLeakyReLU,
    nn.ReLU: _LeanReLU,
    nn.MaxPool2d: _LeanMaxPool2d,
}


class _AlwaysEval(nn.Module):
    """A root that stays in eval mode when its owner is set to train mode."""

    def train(self, mode: bool = True) -> "_AlwaysEval":
        return super().train(False)


def _twin(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        twin = done[module] = copy.copy(module)  # parameters and buffers stay the same objects
        children: dict[str, nn.Module | None] = module.__dict__["_modules"]
        twin.__dict__["_modules"] = {name: None if child is None else _twin(child, done) for name, child in children.items()}
        twin.__class__ = _LEAN.get(type(module), type(module))
    return done[module]


def lean(module: M) -> M:
    """A twin of a frozen network that keeps a twentieth of the memory for the gradient of its input.

    Convolutions keep their weight, LeakyReLU and ReLU a byte per value, 2x2 max pooling a byte per cell; sums, scaling by a
    number, concatenation, nearest enlargement and pixel shuffles need nothing. Values are the same, the gradient is up to the
    order of sums. A layer whose parameters are trainable is left as it is, as is every other kind of layer. Works inside and
    around `torch.utils.checkpoint`, and under autocast, with the gradient in the precision of the forward pass.

    Under autocast the convolutions that read or write an image compute in float32: they are a few hundredths of the work, but
    in bfloat16 they round the image itself to steps of 1/256, about as much as a trained network's error. This takes L_AESOP's
    own error from some 10 % to 1 % (benchmarks/aesop_step.py).

    Args:
        module: any module tree of `nn` layers; it is not changed. Functional activations inside its own classes stay plain.

    Returns:
        A module of the same class (a subclass of it) on the same parameters, in eval mode for good: `train()` on it or on its
        owner leaves it so.

    Source:
        Specification aesop.md section 8.1: 252 MB per 128-px patch for AE(SR) as released.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).requires_grad_(False)
        >>> image = torch.ones(1, 3, 5, 5, requires_grad=True)
        >>> lean(network)(image).sum().backward()
        >>> image.grad.shape
        torch.Size([1, 3, 5, 5])
    """
    twin = _twin(module, {})
    kind = type(twin)
    twin.__class__ = type(f"Lean{kind.__name__}", (_AlwaysEval, kind), {})
    twin.eval()
    return twin  # pyright: ignore[reportReturnType]  # its class is a subclass of the module's


def eager_gradient(values: Callable[[Tensor], Tensor], sr: Tensor) -> Tensor:
    """A per-sample loss whose gradient is computed at once, so that nothing of its graph outlives the call.

        v = values(sr);   kept for the backward pass: d sum_i v_i / d sr, as large as sr itself

    Several losses on one image then need the memory of the largest of them, not of their sum.

    Args:
        values: maps sr [B, C, H, W] to [B]; sample i may depend on sr_i only (no batch statistics, no average over the batch).
        sr: images with gradient.

    Returns:
        [B], equal in value and gradient to values(sr); it cannot be differentiated twice.
    """
    if not (torch.is_grad_enabled() and sr.requires_grad):
        return values(sr)
    return cast(Tensor, _Eager.apply(sr, values))


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sr: Tensor, values: Any) -> Tensor:
        with torch.enable_grad():
            leaf = sr.detach().requires_grad_()
            losses: Tensor = values(leaf)
            (grad,) = torch.autograd.grad(losses.sum(), leaf)
        ctx.save_for_backward(grad)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]  # decorated
        (grad,) = ctx.saved_tensors
        weights = grads[0].to(grad.dtype).reshape(-1, *(1,) * (grad.ndim - 1))
        return weights * grad, None
