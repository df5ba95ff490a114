"""Restoration by one Euler step or by a direct network, tiled; the same function serves node, command line and recipe."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .backbones.base import AnyBackbone, Backbone, Described, DirectBackbone
from .checks import check_image, check_positive_int, check_range, check_unit_range, did_you_mean
from .color import apply_color_fix
from .images import from_model_range, pad_to_multiple, to_model_range, truncate_8bit
from .records import Conditioning, Restored
from .resize import bicubic
from .staged import Conditioner, clean_state, looks, progress_of, restore_in_stages, rows_of
from .tiling import Box, TilePlan, blend, plan, plan_snapped

MODES = ("best", "parity")
RELEASED_TILE_PX, RELEASED_OVERLAP_PX = 1024, 64  # strsr.md section 1.6
_OVERSHOOT = 0.5  # of an interpolated input; [0, 255] and [-1, 1] lie beyond it


def parameters_like(backbone: Described) -> Tensor:
    """A parameter of the backbone, to ask for its device and dtype."""
    return next(p for _, module in backbone.modules() for p in module.parameters())


def move(backbone: AnyBackbone, device: str | torch.device, dtype: torch.dtype | None = None) -> AnyBackbone:
    """Move all modules of a backbone in place and return it."""
    for _, module in backbone.modules():
        nn.Module.to(module, device=device, dtype=dtype)
    return backbone


def fitting_overlap(backbone: Described, tile_px: int) -> int:
    """The largest overlap that tiles of `tile_px` should have: half of one, in whole multiples of what the backbone takes."""
    return tile_px // 2 // backbone.spec.size_multiple * backbone.spec.size_multiple


def is_latent(backbone: Described) -> bool:
    """Whether it works on an autoencoder's latents; then it runs in stages, and `mode` counts."""
    return backbone.spec.kind == "flow" and backbone.spec.latent_stride > 1


def scale_warning(backbone: Described, scale: float) -> str:
    """What to tell the user about a factor that a flow model was not trained for; nothing up to the trained one, or for networks.

    Example:
        >>> from alignsr.core.backbones.latent import tiny
        >>> scale_warning(tiny("z_image"), 4)
        ''
    """
    spec = backbone.spec
    if spec.kind != "flow" or scale <= spec.trained_scale:
        return ""
    return (
        f"scale {scale:g} is above {spec.trained_scale}, the factor that {spec.name} was trained for: it may invent or blur; "
        f"upscale by {spec.trained_scale} for the trained result"
    )


def tiles_for(backbone: AnyBackbone, tile_px: int = 0, overlap_px: int = -1, mode: str = "best") -> tuple[int, int]:
    """Tile and overlap that `restore` takes, in pixels: what is asked for, else the backbone's own, else those of the release."""
    spec = backbone.spec
    released = mode == "parity" and is_latent(backbone)
    tile = tile_px or (RELEASED_TILE_PX if released else spec.tile_px)
    if released:
        tile = max(tile // spec.size_multiple, 1) * spec.size_multiple
    own = RELEASED_OVERLAP_PX if released else spec.overlap_px
    return tile, min(own, fitting_overlap(backbone, tile)) if overlap_px < 0 else overlap_px


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

    The middle part is `staged.clean_state`.

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
    level = _level(backbone, sigma)
    z_lq = backbone.encode(to_model_range(image), generator=generator)
    return from_model_range(backbone.decode(clean_state(backbone, z_lq, level, strength, conditioning))).float()


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
    conditioning: Conditioning | Conditioner | None = None,
    mode: str = "best",
    generator: Generator | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore and upscale a batch of pictures.

    Flow backbones work at the output size, from the bicubically resized input; those with an autoencoder in stages
    (`staged.restore_in_stages`). Networks work at the input's size with their own factor; when another factor is asked for, their
    result is resized (antialiased bicubic) to it.

    For backbones with an autoencoder, `mode` chooses between two ways; the others know only one:

        parity: everything as the released scripts do it: tiles of 1024 with overlap 64, the last one snapped to the edge, a
            sample of the encoder's posterior, 8 bits by cutting off the rest
        best: even tiles, the mean of the posterior (a generator asks for a sample), values as they come

    Args:
        backbone: from `load_backbone`; its parameters say device and dtype.
        lq: [B, 3, h, w] float32 in [0, 1], any device; the result comes back there.
        scale: upscaling factor, an integer in 1..16.
        tile_px: largest tile on the model's input grid; 0: the backbone's own, or the release's.
        overlap_px: overlap of tiles on that grid; -1: the backbone's own, or the release's.
        batch_size: tiles per forward pass.
        sigma: see `one_step`; flow backbones only.
        strength: flow: scales the way from the input to the restored state; network: blends with the resized input. 1 is the
            model as trained.
        color_fix: `none`, `wavelet` or `adain`, against the resized input.
        conditioning: for flow backbones that take it; one entry per sample, one for all, or a conditioner for every tile.
        mode: `best` or `parity`.
        generator: see `one_step`; needed for `parity` with an autoencoder.
        on_tile: called as on_tile(done, total) after each forward pass, of a conditioner too; may raise to cancel.

    Returns:
        `Restored`, clamped to [0, 1] once at the end.

    Raises:
        TypeError, ValueError: not images, NaN, values far outside [0, 1], a scale that is not an integer in 1..16, an unknown
            colour fix or mode.
        FloatingPointError: the model produced NaN or infinity; the message names the tile.
        DoesNotFitError: no memory for weights, or while conditioning, where smaller tiles do not help.

    Source:
        strsr.md sections 1.2, 1.6 and 5 (items 1, 12, 15); 6.1 items 1, 2 and 7; 6.3.
    """
    check_unit_range(check_image(lq, "lq", channels=(3,)).detach(), "lq", tolerance=_OVERSHOOT)
    check_positive_int(scale, "scale", high=16)
    check_range(strength, "strength", 0.0, 2.0)
    if mode not in MODES:
        raise ValueError(f"mode: expected {' or '.join(MODES)}, got {mode!r}; {did_you_mean(mode, MODES)}")
    spec = backbone.spec
    like = parameters_like(backbone)
    size = (lq.shape[-2] * scale, lq.shape[-1] * scale)
    lq_up = bicubic(lq, size, antialias=spec.is_antialiased).clamp(0, 1)
    tile, overlap = tiles_for(backbone, tile_px, overlap_px, mode)
    facts: dict[str, Any] = {}
    if isinstance(backbone, DirectBackbone) and not isinstance(backbone, Backbone):
        native = spec.scale or 1
        sr, tiles = _tile_by_tile(
            backbone, lambda part, _: backbone.upscale(part), lq, (tile, overlap), native, batch_size, on_tile
        )
        sr = bicubic(sr, size)
        sr = sr if strength == 1.0 else lq_up + strength * (sr - lq_up)
    elif is_latent(backbone):
        options: dict[str, Any] = {"scale": scale, "sigma": sigma, "strength": strength, "batch_size": batch_size}
        sr, tiles = _staged(backbone, lq_up, (tile, overlap), mode, conditioning, generator, on_tile, **options)
        facts = {"mode": mode, "encoder": "mean" if generator is None else "sample"}
    else:
        flow: Backbone = backbone
        cut = _padded_plan(backbone, lq_up, (tile, overlap))[1]
        passes = (looks(conditioning, lq.shape[0], cut), lq.shape[0] * len(cut.starts))
        looking, on_tile = progress_of(on_tile, *passes)
        rows = rows_of(conditioning, lq.shape[0], cut, scale, backbone=backbone, on_tile=looking)

        def step(part: Tensor, boxes: Sequence[Box]) -> Tensor:
            told = _like(rows(boxes), part)
            return one_step(flow, part, sigma=sigma, strength=strength, conditioning=told, generator=generator)

        sr, tiles = _tile_by_tile(backbone, step, lq_up, (tile, overlap), 1, batch_size, on_tile)
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
        **facts,
    }
    return Restored(truncate_8bit(fixed) if facts.get("mode") == "parity" else fixed, lq_up, info)


def _like(told: Conditioning | None, like: Tensor) -> Conditioning | None:
    return None if told is None else told.to(like.device, like.dtype)


def _level(backbone: Backbone, sigma: float | None) -> float:
    level = backbone.spec.start_sigma if sigma is None else check_range(sigma, "sigma", 1e-6, 1.0)
    if level is None:
        raise ValueError(
            f"sigma: expected a noise level, {backbone.spec.name} has no default; pass one in (0, 1], or sample it "
            "from noise, with restore_multi_step or Multi-Step SR"
        )
    return level


def _padded_plan(backbone: AnyBackbone, image: Tensor, tiling: tuple[int, int]) -> tuple[Tensor, TilePlan]:
    multiple = backbone.spec.size_multiple
    padded, _ = pad_to_multiple(image, multiple)
    return padded, plan(padded.shape[-2], padded.shape[-1], *tiling, multiple)


def _tile_by_tile(
    backbone: AnyBackbone,
    fn: Callable[[Tensor, Sequence[Box]], Tensor],
    image: Tensor,
    tiling: tuple[int, int],
    factor: int,
    batch_size: int,
    on_tile: Callable[[int, int], None] | None,
) -> tuple[Tensor, int]:
    """Pad, run `fn` on tiles in the model's device and dtype, blend, crop. Returns the result and the number of tiles."""
    like, (height, width) = parameters_like(backbone), image.shape[-2:]
    padded, tiles = _padded_plan(backbone, image, tiling)

    def checked(part: Tensor, boxes: Sequence[Box]) -> Tensor:
        result = fn(part.to(like.device, like.dtype), boxes).to(image.device, torch.float32)
        if not bool(torch.isfinite(result).all()):
            box = boxes[int((~torch.isfinite(result)).flatten(1).any(1).nonzero()[0])]
            raise FloatingPointError(
                f"sr: {backbone.spec.name} produced NaN or infinity in the tile at row {box.top}, column {box.left} "
                f"of sample {box.sample} ({like.dtype}); use another precision"
            )
        return result

    out = blend(checked, padded, tiles, scale=factor, batch_size=batch_size, on_tile=on_tile)
    return out[..., : height * factor, : width * factor], image.shape[0] * len(tiles.starts)


def _staged(
    backbone: Backbone,
    lq_up: Tensor,
    tiling: tuple[int, int],
    mode: str,
    conditioning: Conditioning | Conditioner | None,
    generator: Generator | None,
    on_tile: Callable[[int, int], None] | None,
    *,
    scale: int,
    sigma: float | None,
    strength: float,
    batch_size: int,
) -> tuple[Tensor, int]:
    """Pad, condition, encode, step, decode, crop. Returns the result and the number of tiles."""
    if mode == "parity" and generator is None:
        raise ValueError("generator: expected one, since parity draws from the encoder's posterior, got None; pass a seeded one")
    height, width = lq_up.shape[-2:]
    padded, tiles = _padded_plan(backbone, lq_up, tiling)
    if mode == "parity":
        tiles = plan_snapped(tiles.height, tiles.width, *tiling)
    count = lq_up.shape[0] * len(tiles.starts)
    looking, staged = progress_of(on_tile, looks(conditioning, lq_up.shape[0], tiles), 3 * count)
    sr = restore_in_stages(
        backbone,
        padded,
        tiles,
        sigma=_level(backbone, sigma),
        strength=strength,
        rows=rows_of(conditioning, lq_up.shape[0], tiles, scale, backbone=backbone, on_tile=looking),
        batch_size=batch_size,
        generator=generator,
        on_tile=staged,
    )
    return sr[..., :height, :width], count
