"""Restoration by one Euler step or by a direct network, tiled; the same function serves node, command line and recipe."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .backbones.base import AnyBackbone, Backbone, DirectBackbone
from .checks import check_image, check_positive_int, check_range, check_unit_range
from .color import apply_color_fix
from .flow import euler_step
from .images import from_model_range, pad_to_multiple, to_model_range
from .records import Conditioning, Restored
from .resize import bicubic
from .tiling import blend, plan

_OVERSHOOT = 0.5  # of an interpolated input; [0, 255] and [-1, 1] lie beyond it


def parameters_like(backbone: AnyBackbone) -> Tensor:
    """A parameter of the backbone, to ask for its device and dtype."""
    return next(p for _, module in backbone.modules() for p in module.parameters())


def move(backbone: AnyBackbone, device: str | torch.device, dtype: torch.dtype | None = None) -> AnyBackbone:
    """Move all modules of a backbone in place and return it."""
    for _, module in backbone.modules():
        nn.Module.to(module, device=device, dtype=dtype)
    return backbone


def fitting_overlap(backbone: AnyBackbone, tile_px: int) -> int:
    """The largest overlap that tiles of `tile_px` should have: half of one, in whole multiples of what the backbone takes."""
    return tile_px // 2 // backbone.spec.size_multiple * backbone.spec.size_multiple


def one_step(
    backbone: Backbone,
    image: Tensor,
    *,
    sigma: float | None = None,
    strength: float = 1.0,
    conditioning: Conditioning | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Restore one tile by one Euler step from the resized input, taken as the noisy state at `sigma`.

        z_lq = encode(2 x - 1);   z_sr = z_lq - strength sigma velocity(z_lq, sigma, z_lq);   sr = (decode(z_sr) + 1) / 2

    Args:
        backbone: a flow backbone.
        image: resized input, [B, 3, H, W] in [0, 1]; H and W multiples of the backbone's size multiple. Model device and dtype.
        sigma: noise level, in (0, 1]; default the backbone's own.
        strength: 0 returns decode(encode(x)), 1 is the trained step; between them trades realism for fidelity.
        conditioning: token embeddings for this tile.
        generator: ask for a sample of the encoder's posterior instead of its mean.

    Returns:
        [B, 3, H, W] float32, not clamped. Differentiable.

    Source:
        StrSR, arXiv:2603.06275v1, Eq. (3); specification strsr.md sections 1.2 and 1.4 step 6.
    """
    level = backbone.spec.start_sigma if sigma is None else check_range(sigma, "sigma", 1e-6, 1.0)
    if level is None:
        raise ValueError(f"sigma: expected a noise level, {backbone.spec.name} has no default; pass one in (0, 1]")
    z_lq = backbone.encode(to_model_range(image), generator=generator)
    levels = torch.full((image.shape[0],), level, device=image.device, dtype=torch.float32)
    velocity = backbone.velocity(z_lq, levels, z_lq, conditioning)
    z_sr = euler_step(z_lq, velocity * strength, levels, torch.zeros_like(levels)).to(z_lq.dtype)
    return from_model_range(backbone.decode(z_sr)).float()


def restore(
    backbone: AnyBackbone,
    lq: Tensor,
    *,
    scale: int = 4,
    tile_px: int = 0,
    overlap_px: int = -1,
    batch_size: int = 1,
    sigma: float | None = None,
    strength: float = 1.0,
    color_fix: str = "none",
    conditioning: Conditioning | None = None,
    generator: Generator | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore and upscale a batch of pictures.

    Flow backbones work at the output size, from the bicubically resized input. Networks work at the input's size with their own
    factor; when another factor is asked for, their result is resized (antialiased bicubic) to it.

    Args:
        backbone: from `load_backbone`; its parameters say device and dtype.
        lq: [B, 3, h, w] float32 in [0, 1], any device; the result comes back there.
        scale: upscaling factor, an integer in 1..16.
        tile_px: largest tile on the model's input grid; 0: the backbone's own.
        overlap_px: overlap of tiles on that grid; -1: the backbone's own.
        batch_size: tiles per forward pass.
        sigma: see `one_step`; flow backbones only.
        strength: flow: scales the velocity; network: blends with the resized input. 1 is the model as trained.
        color_fix: `none`, `wavelet` or `adain`, against the resized input.
        conditioning: for flow backbones that take it; one entry per sample, or one for all.
        generator: see `one_step`.
        on_tile: called as on_tile(done, total) after each forward pass; may raise to cancel.

    Returns:
        `Restored`, clamped to [0, 1] once at the end.

    Raises:
        TypeError, ValueError: not images, NaN, values far outside [0, 1], a scale that is not an integer in 1..16, an unknown
            colour fix.
        FloatingPointError: the model produced NaN or infinity; the message names the tile.
    """
    check_unit_range(check_image(lq, "lq", channels=(3,)).detach(), "lq", tolerance=_OVERSHOOT)
    check_positive_int(scale, "scale", high=16)
    check_range(strength, "strength", 0.0, 2.0)
    spec = backbone.spec
    like = parameters_like(backbone)
    size = (lq.shape[-2] * scale, lq.shape[-1] * scale)
    lq_up = bicubic(lq, size).clamp(0, 1)
    tile = tile_px or spec.tile_px
    overlap = min(spec.overlap_px, fitting_overlap(backbone, tile)) if overlap_px < 0 else overlap_px

    def run(fn: Callable[[Tensor, Any], Tensor], image: Tensor, factor: int) -> tuple[Tensor, int]:
        padded, (height, width) = pad_to_multiple(image, spec.size_multiple)
        tiles = plan(padded.shape[-2], padded.shape[-1], tile, overlap, spec.size_multiple)

        def checked(part: Tensor, boxes: Any) -> Tensor:
            result = fn(part.to(like.device, like.dtype), boxes).to(image.device, torch.float32)
            if not bool(torch.isfinite(result).all()):
                box = boxes[int((~torch.isfinite(result)).flatten(1).any(1).nonzero()[0])]
                raise FloatingPointError(
                    f"sr: {spec.name} produced NaN or infinity in the tile at row {box.top}, column {box.left} "
                    f"of sample {box.sample} ({like.dtype}); use another precision"
                )
            return result

        out = blend(checked, padded, tiles, scale=factor, batch_size=batch_size, on_tile=on_tile)
        return out[..., : height * factor, : width * factor], lq.shape[0] * len(tiles.rows.starts) * len(tiles.columns.starts)

    if isinstance(backbone, DirectBackbone) and not isinstance(backbone, Backbone):
        native = spec.scale or 1
        sr, tiles = run(lambda part, _: backbone.upscale(part), lq, native)
        sr = bicubic(sr, size)
        sr = sr if strength == 1.0 else lq_up + strength * (sr - lq_up)
    else:
        flow: Backbone = backbone  # pyright: ignore[reportAssignmentType]

        def step(part: Tensor, boxes: Any) -> Tensor:
            chosen = _select(conditioning, [box.sample for box in boxes], part)
            return one_step(flow, part, sigma=sigma, strength=strength, conditioning=chosen, generator=generator)

        sr, tiles = run(step, lq_up, 1)
    fixed = apply_color_fix(sr, lq_up, color_fix).clamp(0, 1)
    info = {
        "backbone": spec.name,
        "scale": scale,
        "size": [size[1], size[0]],
        "tile_px": tile,
        "overlap_px": overlap,
        "tiles": tiles,
        "sigma": None if spec.kind == "network" else spec.start_sigma if sigma is None else sigma,
        "strength": strength,
        "color_fix": color_fix,
        "device": str(like.device),
        "dtype": str(like.dtype).removeprefix("torch."),
    }
    return Restored(fixed, lq_up, info)


def _select(conditioning: Conditioning | None, samples: list[int], like: Tensor) -> Conditioning | None:
    """The conditioning rows of the samples that the tiles of one forward pass belong to."""
    if conditioning is None:
        return None
    rows = samples if conditioning.embeddings.shape[0] > 1 else [0] * len(samples)
    mask = None if conditioning.mask is None else conditioning.mask[rows].to(like.device)
    return Conditioning(conditioning.embeddings[rows].to(like.device, like.dtype), mask)
