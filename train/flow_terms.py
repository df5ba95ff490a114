"""The loss of supervised training from noise, and what is drawn for it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import gcd

import torch
from torch import Generator, Tensor

from ..core.diffusion import MultiStepBackbone, Process
from ..core.images import to_model_range
from ..core.records import Conditioning, LossTerms, PairBatch
from ..core.resize import bicubic
from .artefacts import ArtefactData
from .data import PairData, sample_seed
from .validation import Watch, held_out_pairs, unwatched

TIME, NOISE, POSTERIOR = 1, 2, 3  # what is drawn for a sample, beside the sample itself
FIXED_DRAWS = 8  # of time and noise, per held-out picture
Sets = PairData | ArtefactData
Draw = Callable[[int], Generator]


def sample_draws(seed: int, first: int, count: int) -> list[Draw]:
    """Random generators of the samples [first, first + count): by purpose, functions of the seed and the sample's number."""

    def draw(index: int, purpose: int) -> Generator:
        return torch.Generator().manual_seed(sample_seed(seed + purpose, index))

    return [partial(draw, first + i) for i in range(count)]


def flow_terms(
    backbone: MultiStepBackbone,
    batch: PairBatch,
    draws: Sequence[Draw],
    told: Conditioning | None = None,
    posterior: str = "mean",
) -> LossTerms:
    """The squared error of the prediction, mean over each sample's elements, as term `flow`.

    Args:
        backbone: predicts with gradient.
        batch: targets in `gt`, and inputs.
        draws: one per sample: generators of its time, noise and posterior.
        told: the prompt.
        posterior: `mean` of the encoder, or a `sample`.

    Source:
        ASASR, arXiv:2605.23264, Eq. (2); for epsilon prediction asasr.md 1.3.
    """
    process = backbone.process
    with torch.no_grad():
        z = encoded(backbone, to_model_range(batch.gt), draws, posterior).float()
        z_lq = backbone.encode_lq(enlarged(backbone, batch))  # the mean, as in sampling
        noise, time = drawn(process, z, draws)
        noisy, target = process.add_noise(z, noise, time), process.target(z, noise)
    answer = backbone.predict(noisy, time, z_lq, told)
    return LossTerms({"flow": (answer.float() - target).square().flatten(1).mean(1)})


def enlarged(backbone: MultiStepBackbone, batch: PairBatch) -> Tensor:
    """The inputs at the size of the targets in [-1, 1], as sampling enlarges them."""
    size = (batch.gt.shape[-2], batch.gt.shape[-1])
    return to_model_range(bicubic(batch.lq, size, antialias=backbone.spec.is_antialiased).clamp(0, 1))


def encoded(backbone: MultiStepBackbone, image: Tensor, draws: Sequence[Draw], posterior: str) -> Tensor:
    """Targets in [-1, 1] as latents: the posterior's mean, or a sample of it, each sample by its own generator."""
    if posterior == "mean":
        return backbone.encode(image)
    parts = zip(image.split(1), draws, strict=True)
    return torch.cat([backbone.encode(one, generator=draw(POSTERIOR)) for one, draw in parts])


def drawn(process: Process, z: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """Noise like z and one time per sample, each by its own generator, on the device of z."""
    time = torch.cat([process.draw_times(1, generator=draw(TIME)) for draw in draws]).to(z.device)
    return torch.stack([torch.randn(z.shape[1:], generator=draw(NOISE)) for draw in draws]).to(z.device), time


def held_out(data: Sets, multiple: int, most_px: int, watch: Watch = unwatched) -> Iterator[tuple[Tensor, Tensor]]:
    """(lq, gt) of the middles of the held-out pictures, [1, 3, h, w] and [1, 3, H, W] in [0, 1] on the CPU.

    Args:
        data: pairs, or what methods made of inputs (then `gt` is that).
        multiple: sides of gt are multiples of it and of the scale.
        most_px: largest side of gt.
        watch: told before every picture.
    """
    s = data.scale
    cell = multiple // gcd(multiple, s)
    pairs = data.pairs_of_held_out(watch) if isinstance(data, ArtefactData) else held_out_pairs(data, cell, watch)
    for lq, gt in pairs:
        height, width = (min(most_px // s, side) // cell * cell for side in lq.shape[-2:])
        top, left = (lq.shape[-2] - height) // 2, (lq.shape[-1] - width) // 2
        bottom, right = top + height, left + width
        yield lq[..., top:bottom, left:right], gt[..., top * s : bottom * s, left * s : right * s]


@torch.no_grad()
def held_out_error(
    backbone: MultiStepBackbone, pairs: Iterable[tuple[Tensor, Tensor]], told: Conditioning | None, device: torch.device
) -> float:
    """The mean loss on pairs (lq, gt), with draws that are always the same."""
    total, count = 0.0, 0
    for lq, gt in pairs:
        batch = PairBatch(lq, gt, ("",)).to(device)
        for draw in sample_draws(-1, count, FIXED_DRAWS):
            total += float(flow_terms(backbone, batch, [draw], told).total())
            count += 1
    return total / count
