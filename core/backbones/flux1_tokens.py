"""FLUX.1's forward pass with a picture as condition: a third stream of tokens beside text and noise, in the same attention.

The condition's tokens go through the image stream's layers, are modulated as at the clean end of the path (time 0), and share the
positions of the tokens that they lie over. What can be restricted to them is the adapter: with scope `condition_only` text and
noisy tokens see the base weights alone, so the adapter cannot be folded into the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from .quantization import QuantizedLinear

Scope = Literal["all", "condition_only"]
SCOPES = ("all", "condition_only")
_PLAIN = (nn.Linear, QuantizedLinear)
_HALF_LIMIT = 65504.0  # largest float16


class Streams(NamedTuple):
    """Tokens [B, N, D] of text, noisy picture and condition."""

    text: Tensor
    noisy: Tensor
    condition: Tensor


class Told(NamedTuple):
    """What modulates a block: time, guidance and pooled prompt as one vector [B, D]; the condition's says time 0."""

    now: Tensor
    clean: Tensor


def position_ids(height: int, width: int, device: torch.device, stride: float = 1.0) -> Tensor:
    """(0, row, column) of every token, row by row, [height * width, 3] float32.

        position = (index + 1/2) stride - 1/2

    so a coarser grid's tokens lie in the middle of those of the finer grid that they cover.

    Args:
        height: tokens.
        width: tokens.
        device: of the result.
        stride: noisy tokens per condition token and axis; 1 for the noisy tokens themselves.

    Example:
        >>> position_ids(1, 2, torch.device("cpu"), stride=2.0).tolist()
        [[0.0, 0.5, 0.5], [0.0, 0.5, 2.5]]
    """
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = ((torch.arange(height, device=device) + 0.5) * stride - 0.5)[:, None]
    ids[..., 2] = (torch.arange(width, device=device) + 0.5) * stride - 0.5
    return ids.flatten(0, 1)


def joint_forward(
    transformer: nn.Module,
    noisy: Tensor,
    condition: Tensor,
    text: Tensor,
    pooled: Tensor,
    *,
    sigma: Tensor,
    guidance: Tensor | None,
    noisy_ids: Tensor,
    condition_ids: Tensor,
    scope: Scope = "all",
    double: Callable[..., Streams] | None = None,
    single: Callable[..., Streams] | None = None,
) -> Tensor:
    """The transformer's answer at the noisy tokens.

    With a condition of no tokens this is `FluxTransformer2DModel.forward`.

    Args:
        transformer: `diffusers.FluxTransformer2DModel`, with or without an attached adapter.
        noisy: packed state, [B, N, 4 C].
        condition: packed condition, [B, M, 4 C].
        text: [B, T, joint_attention_dim].
        pooled: [B, pooled_projection_dim].
        sigma: [B] in [0, 1].
        guidance: [B], or None where the model takes none.
        noisy_ids: [N, 3].
        condition_ids: [M, 3].
        scope: which tokens an attached adapter acts on.
        double: `double_block`, or a compiled one.
        single: `single_block`, or a compiled one.

    Returns:
        [B, N, 4 C].

    Source:
        ASASR specification, asasr.md 3.2 (conditioning of OminiControl, Tan et al. 2024, arXiv:2411.15098, section 3).
    """
    net: Any = transformer
    recompute: Any = checkpoint
    base = scope == "condition_only"
    streams = Streams(net.context_embedder(text), _linear(net.x_embedder, noisy, base), _linear(net.x_embedder, condition, False))
    time, dial = sigma.to(streams.noisy.dtype) * 1000, None if guidance is None else guidance.to(streams.noisy.dtype) * 1000
    rest = (pooled,) if dial is None else (dial, pooled)
    told = Told(net.time_text_embed(time, *rest), net.time_text_embed(torch.zeros_like(time), *rest))
    ids = torch.cat((noisy_ids.new_zeros(text.shape[1], 3), noisy_ids, condition_ids))
    turns: tuple[Tensor, Tensor] = net.pos_embed(ids)
    for blocks, fn in ((net.transformer_blocks, double or double_block), (net.single_transformer_blocks, single or single_block)):
        for block in blocks:
            if torch.is_grad_enabled() and net.gradient_checkpointing:
                streams = recompute.checkpoint(fn, block, streams, told, turns, base, use_reentrant=False)
            else:
                streams = fn(block, streams, told, turns, base)
    return net.proj_out(net.norm_out(streams.noisy, told.now))


def double_block(block: Any, streams: Streams, told: Told, turns: tuple[Tensor, Tensor], base: bool) -> Streams:
    """One block with weights of its own for text; noisy tokens and condition share the other ones.

    Args:
        block: `FluxTransformerBlock`.
        streams: tokens.
        told: see `Told`.
        turns: (cos, sin) of the rotary embedding for all tokens in order.
        base: text and noisy tokens see the base weights alone.
    """
    attn = block.attn
    text, *shifts_t = _modulate(block.norm1_context, streams.text, told.now, 6, base)
    noisy, *shifts_n = _modulate(block.norm1, streams.noisy, told.now, 6, base)
    cond, *shifts_c = _modulate(block.norm1, streams.condition, told.clean, 6, False)
    image = [(noisy, base), (cond, False)]
    parts = zip(
        (
            _heads(attn, attn.norm_added_q, [attn.add_q_proj(text)]),
            _heads(attn, attn.norm_added_k, [attn.add_k_proj(text)]),
            _heads(attn, None, [attn.add_v_proj(text)]),
        ),
        (
            _heads(attn, attn.norm_q, [_linear(attn.to_q, x, plain) for x, plain in image]),
            _heads(attn, attn.norm_k, [_linear(attn.to_k, x, plain) for x, plain in image]),
            _heads(attn, None, [_linear(attn.to_v, x, plain) for x, plain in image]),
        ),
        strict=True,
    )
    attended = _attend([torch.cat(part, 1) for part in parts], turns)
    seen_t, seen_n, seen_c = _parts(attended, streams)
    x_t = streams.text + shifts_t[0] * attn.to_add_out(seen_t)
    x_n = streams.noisy + shifts_n[0] * _linear(attn.to_out[0], seen_n, base)
    x_c = streams.condition + shifts_c[0] * _linear(attn.to_out[0], seen_c, False)
    x_n = x_n + shifts_n[3] * _feed(block.ff, block.norm2, x_n, shifts_n, base)
    x_c = x_c + shifts_c[3] * _feed(block.ff, block.norm2, x_c, shifts_c, False)
    x_t = x_t + shifts_t[3] * _feed(block.ff_context, block.norm2_context, x_t, shifts_t, base)
    return Streams(_bounded(x_t), x_n, x_c)


def single_block(block: Any, streams: Streams, told: Told, turns: tuple[Tensor, Tensor], base: bool) -> Streams:
    """One block in which all tokens share the weights; see `double_block`."""
    attn = block.attn
    rows = [(x, of, plain) for x, of, plain in zip(streams, (told.now, told.now, told.clean), (base, base, False), strict=True)]
    normed = [(*_modulate(block.norm, x, of, 3, plain), plain) for x, of, plain in rows]
    projected = [
        _heads(attn, norm, [_linear(layer, x, plain) for x, _, plain in normed])
        for layer, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
    ]
    seen = _parts(_attend(projected, turns), streams)
    out = [
        before + gate * _linear(block.proj_out, torch.cat((part, block.act_mlp(_linear(block.proj_mlp, x, plain))), 2), plain)
        for before, part, (x, gate, plain) in zip(streams, seen, normed, strict=True)
    ]
    return Streams(*map(_bounded, out))


def _modulate(norm: Any, x: Tensor, told: Tensor, count: int, base: bool) -> list[Tensor]:
    """[normalised and modulated x, gate, ...]: shift and scale are used up, the rest is [B, 1, D] each."""
    shift, scale, *rest = _linear(norm.linear, F.silu(told), base)[:, None].chunk(count, 2)
    return [norm.norm(x) * (1 + scale) + shift, *rest]


def _feed(ff: Any, norm: nn.Module, x: Tensor, shifts: Sequence[Tensor], base: bool) -> Tensor:
    _, shift, scale, _ = shifts
    hidden = ff.net[0](norm(x) * (1 + scale) + shift)
    return _linear(ff.net[2], ff.net[1](hidden), base)


def _heads(attn: Any, norm: nn.Module | None, parts: Sequence[Tensor]) -> Tensor:
    """Parts [B, n, D] one after the other as [B, sum n, heads, head_dim], normalised per head where a norm is given."""
    x = torch.cat(list(parts), 1)
    heads = x.reshape(*x.shape[:2], -1, attn.head_dim)
    return heads if norm is None else norm(heads)


def _attend(parts: Sequence[Tensor], turns: tuple[Tensor, Tensor]) -> Tensor:
    """Softmax attention of all tokens with all, [B, N, heads, head_dim] each -> [B, N, D]."""
    query, key, value = _turn(parts[0], turns), _turn(parts[1], turns), parts[2]
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2).flatten(2, 3).to(query.dtype)


def _turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding: each pair (a, b) of channels becomes (a cos - b sin, b cos + a sin), in float32."""
    cos, sin = (part[None, :, None] for part in turns)
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-second, first), -1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)


def _parts(x: Tensor, streams: Streams) -> tuple[Tensor, ...]:
    return torch.split(x, [stream.shape[1] for stream in streams], 1)


def _linear(layer: Any, x: Tensor, base: bool) -> Tensor:
    """The layer's answer, without what an adapter (PEFT's, or `LowRankLinear`) adds to it if `base` says so."""
    return (layer.get_base_layer() if base and not isinstance(layer, _PLAIN) else layer)(x)


def _bounded(x: Tensor) -> Tensor:
    return x.clip(-_HALF_LIMIT, _HALF_LIMIT) if x.dtype == torch.float16 else x
