"""One-step restoration by latent models in stages: what conditions the tiles, then all are encoded, stepped, decoded.

The modules of a model take turns, so that with `backbones.offload` the vision-language model, the autoencoder and the transformer
are never on the device together, and each is moved once per job. Between stages only latents wait.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from .backbones.base import Backbone, Described
from .backbones.offload import vacate
from .flow import euler_step
from .images import from_model_range, to_model_range
from .memory import ROOM, must_fit
from .records import Conditioning
from .tiling import Box, TilePlan, blend, crop_tiles

Conditioner = Callable[[int, TilePlan, int], Conditioning]
"""(sample, tiles of the enlarged picture, scale) -> what is told about that sample: one row per tile, or one row for all."""

Rows = Callable[[Sequence[Box]], Conditioning | None]
Progress = Callable[[int, int], None]


@runtime_checkable
class Watchable(Protocol):
    """A `Conditioner` that says how far it is."""

    def watched(self, on_part: Progress) -> Conditioner:
        """The same one, which calls on_part(done, total) between the parts of a sample; that may raise to cancel."""
        ...


def progress_of(on_tile: Progress | None, *passes: int) -> list[Progress | None]:
    """One progress over stages that follow each other: for each a callback, which counts on from where the one before ends.

    Args:
        on_tile: of all.
        passes: of each stage.
    """
    total = sum(passes)
    return [None if on_tile is None else partial(_count_on, on_tile, sum(passes[:stage]), total) for stage in range(len(passes))]


def _count_on(on_tile: Progress, before: int, total: int, done: int, _: int) -> None:
    on_tile(before + done, total)


def looks(conditioning: Conditioning | Conditioner | None, batch: int, tiles: TilePlan) -> int:
    """Passes of the stage before the others: all tiles where a `Conditioner` looks at them, else none."""
    return 0 if conditioning is None or isinstance(conditioning, Conditioning) else batch * len(tiles.starts)


def clean_state(
    backbone: Backbone, z_lq: Tensor, sigma: float, strength: float = 1.0, conditioning: Conditioning | None = None
) -> Tensor:
    """One Euler step from the encoded input, taken as the noisy state at `sigma`.

        z_sr = z_0 + strength (z_lq - ratio sigma velocity(z_lq, sigma, z_lq) - z_0),   z_0 = gain z_lq + offset

    ratio is 1 for most models: the step's length over the noise level it starts at (`BackboneSpec.step_ratio`). z_0 is the state
    that decodes to the input (`BackboneSpec.identity`), z_lq itself for most models. So strength 0 gives the input back, 1 is the
    trained step, and between them fidelity is traded for realism.

    Args:
        backbone: a flow backbone.
        z_lq: what its `encode` gave.
        sigma: noise level, in (0, 1].
        strength: see above.
        conditioning: token embeddings for these samples.

    Returns:
        z_sr, like z_lq.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (3); specification strsr.md sections 1.4 step 6 and 1.5 step 3.
    """
    levels = torch.full((z_lq.shape[0],), sigma, device=z_lq.device, dtype=torch.float32)
    velocity = backbone.velocity(z_lq, levels, z_lq, conditioning)
    gain, offset = backbone.spec.identity
    start = z_lq if (gain, offset) == (1.0, 0.0) else torch.lerp(gain * z_lq + offset, z_lq, strength)
    weight = strength * backbone.spec.step_ratio
    return euler_step(start, velocity * weight, levels, torch.zeros_like(levels)).to(z_lq.dtype)


def rows_of(
    conditioning: Conditioning | Conditioner | None,
    batch: int,
    tiles: TilePlan,
    scale: int,
    *,
    backbone: Described | None = None,
    on_tile: Progress | None = None,
) -> Rows:
    """Which embeddings the tiles of one forward pass get. A `Conditioner` is asked here, once per sample.

    It may bring a large model to the device: what an offloaded backbone has there, after an earlier picture or a try for which
    memory ran out, leaves first.

    Args:
        conditioning: one entry per sample, one for all, or a conditioner.
        batch: number of samples.
        tiles: of the enlarged picture.
        scale: of the enlargement.
        backbone: which is conditioned.
        on_tile: called as on_tile(done, total), in tiles of all samples, while a `Conditioner` is at work; may raise to cancel.

    Raises:
        ValueError: another number of entries than samples, or of rows than tiles.
        DoesNotFitError: memory ran out while a `Conditioner` was at work.
    """
    if conditioning is None:
        return lambda _: None
    if isinstance(conditioning, Conditioning):
        count = conditioning.embeddings.shape[0]
        if count not in (1, batch):
            raise ValueError(f"conditioning: expected 1 or {batch} entries, one per picture, got {count}; encode these pictures")
        single = conditioning
        return lambda boxes: single.rows([box.sample if count > 1 else 0 for box in boxes])
    vacate(backbone)
    told = [_ask(conditioning, sample, batch, tiles, scale, on_tile) for sample in range(batch)]
    place = {start: index for index, start in enumerate(tiles.starts)}
    for entry in told:
        if entry.embeddings.shape[0] not in (1, len(place)):
            raise ValueError(
                f"conditioning: expected 1 row or one for each of {len(place)} tiles, got {entry.embeddings.shape[0]}; "
                "make the rows from the plan that is passed in"
            )

    def rows(boxes: Sequence[Box]) -> Conditioning:
        own = [one.rows([place[box.top, box.left] if one.embeddings.shape[0] > 1 else 0]) for box, one in _zip(boxes, told)]
        mask = None if own[0].mask is None else torch.cat([one.mask for one in own if one.mask is not None])
        pooled = None if own[0].pooled is None else torch.cat([one.pooled for one in own if one.pooled is not None])
        return Conditioning(torch.cat([one.embeddings for one in own]), mask, pooled)

    return rows


def _ask(
    conditioner: Conditioner, sample: int, batch: int, tiles: TilePlan, scale: int, on_tile: Progress | None
) -> Conditioning:
    count = len(tiles.starts)

    def seen(done: int, total: int) -> None:
        if on_tile is not None:
            on_tile(sample * count + done * count // total, batch * count)

    ask = conditioner.watched(seen) if isinstance(conditioner, Watchable) else conditioner
    with must_fit("what conditions the model", ROOM):
        told = ask(sample, tiles, scale)
    seen(1, 1)
    return told


def _zip(boxes: Sequence[Box], told: Sequence[Conditioning]) -> list[tuple[Box, Conditioning]]:
    return [(box, told[box.sample]) for box in boxes]


def restore_in_stages(
    backbone: Backbone,
    image: Tensor,
    tiles: TilePlan,
    *,
    sigma: float,
    strength: float = 1.0,
    rows: Rows,
    batch_size: int = 1,
    generator: Generator | None = None,
    on_tile: Progress | None = None,
) -> Tensor:
    """Restore a batch of enlarged pictures tile by tile, one stage after the other.

    Args:
        backbone: a flow backbone with an autoencoder; may be offloaded.
        image: [B, 3, H, W] float32 in [0, 1], padded to the backbone's size multiple.
        tiles: for H x W, with sides that are multiples of it.
        sigma: noise level, in (0, 1].
        strength: see `clean_state`.
        rows: from `rows_of`.
        batch_size: tiles per forward pass.
        generator: draw from the encoder's posterior, tile by tile; each picture draws as if it were alone, so that neither the
            batch nor the batch size changes it. None takes the mean.
        on_tile: called as on_tile(done, total) after each forward pass of each stage; may raise to cancel.

    Returns:
        [B, 3, H, W] float32, not clamped.

    Raises:
        FloatingPointError: NaN or infinity; the message names stage, step and tile.

    Source:
        strsr.md section 1.2 steps 4 to 8, and 6.1 items 2 and 7.
    """
    boxes = [Box(sample, *start, *tiles.tile_size) for sample in range(image.shape[0]) for start in tiles.starts]
    total, done = 3 * len(boxes), 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if on_tile is not None:
            on_tile(done, total)

    latents: dict[Box, Tensor] = {}
    draws = _generators(generator, image.shape[0])
    for group in _groups(boxes, 1 if generator is not None else batch_size):
        z = backbone.encode(to_model_range(crop_tiles(image, group)), generator=draws[group[0].sample])
        _keep(latents, group, z.to(image.device), backbone, "when encoding")
        report(len(group))
    for group in _groups(boxes, batch_size):
        z = torch.cat([latents[box] for box in group])
        z = clean_state(backbone, z, sigma, strength, rows(group))
        _keep(latents, group, z.to(image.device), backbone, f"in step 1 of 1 (sigma {sigma:g})")
        report(len(group))

    def decode(_: Tensor, group: Sequence[Box]) -> Tensor:
        result = from_model_range(backbone.decode(torch.cat([latents.pop(box) for box in group])).float()).to(image.device)
        check_tiles(result, group, backbone, "when decoding")
        report(len(group))
        return result

    return blend(decode, image, tiles, batch_size=batch_size)


def _groups(boxes: Sequence[Box], size: int) -> Iterator[Sequence[Box]]:
    for start in range(0, len(boxes), size):
        yield boxes[start : start + size]


def _generators(generator: Generator | None, count: int) -> list[Generator | None]:
    """One per picture, all in the state of `generator`."""
    return [None if generator is None else generator.clone_state() for _ in range(count)]


def _keep(latents: dict[Box, Tensor], group: Sequence[Box], z: Tensor, backbone: Backbone, where: str) -> None:
    check_tiles(z, group, backbone, where)
    latents.update((box, z[i : i + 1]) for i, box in enumerate(group))


def check_tiles(x: Tensor, group: Sequence[Box], backbone: Described, where: str) -> None:
    """Raise FloatingPointError when a tile holds NaN or infinity; the message names model, stage, tile and sample."""
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    box = group[int((~finite).flatten(1).any(1).nonzero()[0])]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, module in backbone.modules() for p in module.parameters()})
    raise FloatingPointError(
        f"sr: {backbone.spec.name} produced NaN or infinity {where}, in the tile at row {box.top}, column {box.left} "
        f"of sample {box.sample} ({', '.join(dtypes)}); use another precision"
    )
