"""What preference training does with a batch of pairs: noise and time that both members share, and the errors of a model on both.

Everything that is drawn for a pair is a function of the seed and of the pair's place in the endless sequence, so that batch size,
processes and interruptions change nothing, and so that what a frozen model answers can be kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..core.diffusion import MultiStepBackbone, Process
from ..core.images import pad_to_multiple, to_model_range
from ..core.losses.preference import PairEnergies, preference_figures
from ..core.records import Conditioning, PreferenceBatch
from ..core.resize import bicubic
from .data import sample_seed
from .prompts import Tell

DRAWS = 1  # what is drawn for a pair, beside the order of pairs


@dataclass(frozen=True)
class PairState:
    """Noisy states of a batch of B pairs: rows 0..B-1 are the chosen samples, B..2B-1 the rejected ones.

    Attributes:
        noisy: [2 B, C, h, w] float32.
        target: what a perfect model answers there, same shape.
        time: [2 B], the same for both members of a pair.
        z_lq: what conditions the model, [2 B, ...].
        told: prompts, 2 B rows, or None.
    """

    noisy: Tensor
    target: Tensor
    time: Tensor
    z_lq: Tensor
    told: Conditioning | None

    @property
    def pairs(self) -> int:
        """B."""
        return len(self.noisy) // 2


def draw_pair(process: Process, shape: Sequence[int], seed: int, index: int, grid: int = 0) -> tuple[Tensor, Tensor, float]:
    """What is drawn for pair `index` of the sequence: (time [1], noise [1, ...], a uniform number for the prompt's dropout).

    Args:
        process: draws the time.
        shape: of one sample.
        seed: of the run.
        index: place of the pair in the endless sequence.
        grid: round a flow's noise levels up to multiples of 1 / grid, as a scheduler's table has them; 0 leaves them.

    Source:
        dp2o-sr.md 2.5, 2.6: t uniform in 0..999, or floor(1000 u) into FLUX's unshifted table with u logit-normal.
    """
    generator = Generator().manual_seed(sample_seed(seed + DRAWS, index))
    time = process.draw_times(1, generator=generator)
    noise = torch.randn((1, *shape), generator=generator)
    if grid and time.is_floating_point():
        time = (grid - torch.floor(grid * (1 - time)).clamp(max=grid - 1)) / grid
    return time, noise, float(torch.rand(1, generator=generator))


def pair_state(
    backbone: MultiStepBackbone,
    batch: PreferenceBatch,
    tell: Tell,
    *,
    scale: int,
    seed: int,
    first_index: int,
    grid: int = 0,
    dropout: float = 0.0,
) -> PairState:
    """Noisy states of a batch, without gradient; winner and loser share noise, time and prompt.

        x = add_noise(z, n, t),   target = n (epsilon) or n - z (velocity, with each member's own z)

    Args:
        backbone: its process and encoders.
        batch: pairs.
        tell: see `Tell`.
        scale: upscaling factor.
        seed: of the run.
        first_index: place of the batch's first pair in the endless sequence.
        grid: see `draw_pair`.
        dropout: share of pairs whose prompt is replaced by the empty one.

    Source:
        DP2O-SR, arXiv:2510.18851v1; specification 1.2 row 10, 2.5, 2.6, 5.4, 5.13. Symbols: x_0^w -> chosen, x_0^l -> rejected.
    """
    device, count = batch.chosen.device, len(batch.chosen)
    with torch.no_grad():
        chosen, rejected = (x.float() if batch.are_latents else _encoded(backbone, x) for x in (batch.chosen, batch.rejected))
        drawn = [draw_pair(backbone.process, chosen.shape[1:], seed, first_index + i, grid) for i in range(count)]
        time, noise = (torch.cat([one[k] for one in drawn]).to(device) for k in (0, 1))
        prompts = ["" if one[2] < dropout else text for one, text in zip(drawn, batch.prompts, strict=True)]
        clean, noise, time = torch.cat((chosen, rejected)), torch.cat((noise, noise)), torch.cat((time, time))
        z_lq = condition(backbone, batch.lq, scale)
        told = tell(prompts)
        rows = list(range(count)) * 2
        return PairState(
            noisy=backbone.process.add_noise(clean, noise, time),
            target=backbone.process.target(clean, noise),
            time=time,
            z_lq=z_lq[rows],
            told=None if told is None else told.rows(rows).to(device),
        )


def condition(backbone: MultiStepBackbone, lq: Tensor, scale: int) -> Tensor:
    """What conditions the model, from inputs [B, 3, h, w] in [0, 1], exactly as in `sampling.restore_multi_step`."""
    size = (lq.shape[-2] * scale, lq.shape[-1] * scale)
    lq_up = bicubic(lq.float(), size, antialias=backbone.spec.is_antialiased).clamp(0, 1)
    padded, _ = pad_to_multiple(lq_up, backbone.spec.size_multiple)
    return backbone.encode_lq(to_model_range(padded)).float()


def _encoded(backbone: MultiStepBackbone, pictures: Tensor) -> Tensor:
    """Latents of candidates that were kept as pictures alone (specification 5.17)."""
    padded, _ = pad_to_multiple(pictures, backbone.spec.size_multiple)
    return backbone.encode(to_model_range(padded)).float()


def errors(backbone: MultiStepBackbone, state: PairState, autocast: Callable[[], AbstractContextManager[Any]]) -> Tensor:
    """Mean squared error of a model's answer over all d elements of each sample, [2 B] float32.

        e = (1 / d) sum (target - prediction)^2

    The mean, and not a sum, is part of the meaning of beta: a sum would be d times as strong.

    Args:
        backbone: the model, policy or reference.
        state: noisy states.
        autocast: makes the context of the forward pass; the error itself is float32.

    Source:
        dp2o-sr.md 2.5: the convention of Diffusion-DPO's reference code.
    """
    with autocast():
        prediction = backbone.predict(state.noisy, state.time, state.z_lq, state.told)
    return (prediction.float() - state.target.float()).square().flatten(1).mean(1)


def figures(energies: PairEnergies, logit_scale: float) -> dict[str, Tensor]:
    """What is logged of a batch (dp2o-sr.md 2.8); with equal models margin, delta and implicit accuracy are 0."""
    found = preference_figures(energies, logit_scale=logit_scale)
    return {
        "delta": found["chosen"] - found["rejected"],
        "margin": found["margin"],
        "implicit_accuracy": found["agreement"],
        "drift": found["chosen_drift"],
        "policy_chosen": energies.policy_chosen.detach().mean(),
        "policy_rejected": energies.policy_rejected.detach().mean(),
        "reference_chosen": energies.reference_chosen.mean(),
        "reference_rejected": energies.reference_rejected.mean(),
    }


def labels(batch: PreferenceBatch) -> tuple[str, ...]:
    """What messages call each pair."""
    return tuple(f"{name} (pair {row})" for name, row in zip(batch.names, batch.pairs.tolist(), strict=True))
