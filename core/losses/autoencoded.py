"""L_AESOP: the distance of two images after an auto-encoder that gives back what regression can predict and drops the rest."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_positive_int
from .precision import at_least_float32, check_pair, per_sample

Coder = Callable[[Tensor], Tensor]


def _precision(x: Tensor, dtype: torch.dtype) -> AbstractContextManager[Any]:
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(x.device.type, dtype=dtype if half else torch.bfloat16, enabled=half)


def check_frozen(network: Coder, name: str) -> None:
    """Raise ValueError unless a module has no trainable parameter and is in eval mode; other callables pass."""
    if not isinstance(network, nn.Module):
        return
    if any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"{name}: expected frozen parameters, got trainable ones, which could make the loss zero by becoming constant; "
            f"call {name}.requires_grad_(False)"
        )
    if network.training:
        raise ValueError(f"{name}: expected eval mode, got train mode; call {name}.eval()")


def autoencode(image: Tensor, autoencoder: Coder, dtype: torch.dtype = torch.float32) -> Tensor:
    """AE(image), widened to at least float32; the arithmetic inside is `dtype`'s, whatever autocast is active around it.

    Args:
        image: [B, 3, H, W]; H and W multiples of the auto-encoder's scale. Neither clamped nor rounded (specification 7).
        autoencoder: frozen, in eval mode; [B, 3, H, W] -> the same shape.
        dtype: float32, or bfloat16 / float16 for autocast.

    Returns:
        [B, 3, H, W] float32, or float64 for a float64 image.

    Raises:
        ValueError: the auto-encoder is not frozen or changes the image's shape.
    """
    check_frozen(autoencoder, "autoencoder")
    with _precision(image, dtype):
        result = autoencoder(at_least_float32(image))
    if result.shape != image.shape:
        raise ValueError(
            f"autoencoder: expected an output of the input's shape {tuple(image.shape)}, got {tuple(result.shape)}; "
            "the loss is measured after the decoder: pass the whole auto-encoder, not its encoder"
        )
    return at_least_float32(result)


def aesop_loss(
    sr: Tensor,
    gt: Tensor,
    autoencoder: Coder,
    power: int = 1,
    target: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Distance of two images after an auto-encoder whose bottleneck has the low-resolution grid.

        L_i = mean_{c,y,x} | AE(sr_i) - stopgrad(AE(gt_i)) |^p

    Random texture that the auto-encoder cannot carry costs nothing; colour, edges and structure cost what they cost in pixels.

    Args:
        sr: [B, 3, H, W], range [0, 1], not clamped.
        gt: the same shape.
        autoencoder: frozen, in eval mode.
        power: p, 1 or 2.
        target: AE(gt) when it is known already (see `CachedTarget`); gt is then only checked for its shape.
        dtype: arithmetic inside the auto-encoder. Its error in bfloat16 is measured by benchmarks/aesop_step.py.

    Returns:
        [B] float32, 0 if sr == gt. Not a distance of images: two different ones may have 0.

    Raises:
        ValueError: shapes differ, not RGB, a side that the auto-encoder refuses, p other than 1 or 2, or trainable parameters.

    Source:
        Lee et al. 2025, arXiv:2412.00124, Eq. (7), (8); specification aesop.md section 2.3. Differs from the official code in
        that the auto-encoder must be in eval mode; it has neither norm nor dropout, so the values are the same.

    Example:
        >>> pool = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Upsample(scale_factor=4)).eval()
        >>> checkers = (torch.arange(8) % 2).float().expand(1, 3, 8, 8)
        >>> aesop_loss(checkers, 1 - checkers, pool)  # texture inside the cells: lost, so free
        tensor([0.])
    """
    if power not in (1, 2):
        raise ValueError(f"power: expected 1 or 2, got {power}; the paper uses 1")
    wide_sr, wide_gt = check_pair(sr, gt, channels=(3,))
    if target is None:
        with torch.no_grad():
            target = autoencode(wide_gt, autoencoder, dtype)
    elif target.shape != gt.shape:
        raise ValueError(
            f"target: expected the shape of gt {tuple(gt.shape)}, got {tuple(target.shape)}; compute it from this gt"
        )
    difference = autoencode(wide_sr, autoencoder, dtype) - target.detach()
    return per_sample(difference.abs() if power == 1 else difference.square())


def content_key(image: Tensor) -> bytes:
    """A hash of one sample's values and shape: equal crops have equal keys wherever they come from."""
    values = image.detach().cpu().contiguous()
    return hashlib.blake2b(values.numpy().tobytes() + repr((values.shape, values.dtype)).encode(), digest_size=16).digest()


class CachedTarget:
    """AE(gt) of the crops seen last, for training sets whose crops repeat; the least recently used one goes first.

    A crop of a cached whole picture would be another target: the network pads every crop with zeros, and flips do not commute
    with it (specification aesop.md section 8.1). So what is kept is exactly the crop's own target.

    Args:
        autoencoder: frozen, in eval mode.
        limit: crops kept; each needs 12 bytes per pixel on the images' device.
        dtype: arithmetic inside the auto-encoder.
    """

    def __init__(self, autoencoder: Coder, limit: int, dtype: torch.dtype = torch.float32) -> None:
        self.autoencoder, self.limit, self.dtype = autoencoder, check_positive_int(limit, "limit"), dtype
        self.hits = self.misses = 0
        self._known: OrderedDict[Hashable, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, gt: Tensor, keys: Sequence[Hashable] | None = None) -> Tensor:
        """AE(gt), computed only for the samples that are not known.

        Args:
            gt: [B, 3, H, W].
            keys: what identifies each sample's pixels: (file, crop position, turn), say. None: a hash of the pixels, which is
                always right but copies them to the CPU.

        Returns:
            [B, 3, H, W], without gradient.

        Raises:
            ValueError: another number of keys than samples, or a key that stood for another shape.
        """
        names = [content_key(sample) for sample in gt] if keys is None else list(keys)
        if len(names) != gt.shape[0]:
            raise ValueError(f"keys: expected one per sample ({gt.shape[0]}), got {len(names)}; pass None to hash the pixels")
        missing = [i for i, name in enumerate(names) if name not in self._known]
        fresh = dict(zip(missing, autoencode(gt[missing], self.autoencoder, self.dtype), strict=True)) if missing else {}
        self.hits, self.misses = self.hits + len(names) - len(missing), self.misses + len(missing)
        samples = [fresh[i] if i in fresh else self._known[name].to(gt.device) for i, name in enumerate(names)]
        for sample, name in zip(samples, names, strict=True):
            if sample.shape != gt.shape[1:]:
                raise ValueError(
                    f"keys: expected {name!r} to stand for one crop, got sizes {tuple(sample.shape)} and {tuple(gt.shape[1:])}; "
                    "put the crop's position and size into the key"
                )
            self._known[name] = sample.clone() if sample._base is not None else sample
            self._known.move_to_end(name)
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return torch.stack(samples)
