"""One wording for every complaint about an argument: `<name>: expected <contract>, got <what came>; <what to do>`."""

import math

import torch
from torch import Tensor


def describe(x: object) -> str:
    """Say what came, short enough for one line: `(1, 3, 8, 8) float32` for tensors, the type name for the rest."""
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    return f"{type(x).__name__} {x!r}"[:80]


def check_image(x: Tensor, name: str, channels: tuple[int, ...] = (1, 3, 4)) -> Tensor:
    """Check that `x` is a batch of images in the core's layout and return it.

    Args:
        x: anything; accepted are floating tensors [B, C, H, W] with B, H, W >= 1 and C in `channels`.
        name: the argument's name for the message.
        channels: accepted channel counts.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong rank, channel count or an empty side; the message says when it looks channels-last.
    """
    wanted = f"[B, {'|'.join(map(str, channels))}, H, W] float"
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers outside the type checker
        raise TypeError(f"{name}: expected a tensor {wanted}, got {describe(x)}; convert it with torch.as_tensor first")
    if x.ndim != 4:
        raise ValueError(f"{name}: expected {wanted}, got {describe(x)}; add or remove dimensions")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected {wanted}, got {describe(x)}; divide 8-bit images by 255")
    if x.shape[1] not in channels:
        hint = (
            "looks channels-last, use images.bhwc_to_bchw" if x.shape[3] in channels else "convert it to grey, RGB or RGBA first"
        )
        raise ValueError(f"{name}: expected {wanted}, got {describe(x)}; {hint}")
    if 0 in x.shape:
        raise ValueError(f"{name}: expected at least one image of at least 1x1 pixels, got {describe(x)}; drop empty images")
    return x


def check_same_shape(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Raise ValueError unless both tensors have the same shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a}: expected the shape of {name_b} {tuple(b.shape)}, got {tuple(a.shape)}; crop or resize one of them"
        )


def check_finite(x: Tensor, name: str) -> Tensor:
    """Raise ValueError when `x` holds NaN or infinity; the message names the first bad sample of the batch."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        sample = int((~finite).flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int((~finite).nonzero()[0])
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite ones (first in sample {sample}); repair the input"
        )
    return x


def check_unit_range(x: Tensor, name: str, tolerance: float = 1e-3) -> Tensor:
    """Raise ValueError unless all values lie in [0, 1] up to `tolerance`."""
    check_finite(x, name)
    low, high = float(x.min()), float(x.max())
    if low < -tolerance or high > 1 + tolerance:
        hint = "divide by 255" if high > 2 else "map it with images.from_model_range" if low < -0.5 else "clamp it"
        raise ValueError(f"{name}: expected values in [0, 1], got [{low:.4g}, {high:.4g}]; {hint}")
    return x


def check_positive_int(value: object, name: str, low: int = 1, high: int | None = None) -> int:
    """Check for an integer in [low, high]; bool and float are refused even when they are whole.

    Raises:
        TypeError: not an int.
        ValueError: out of range.
    """
    contract = f"an integer >= {low}" if high is None else f"an integer in {low}..{high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected {contract}, got {describe(value)}; pass a whole number")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected {contract}, got {value}; choose one in that range")
    return value


def check_range(value: object, name: str, low: float, high: float) -> float:
    """Check for a finite number in [low, high] and return it as float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number in [{low:g}, {high:g}], got {describe(value)}; pass a number")
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r}; choose one in that range")
    return float(value)


def did_you_mean(word: str, choices: list[str] | tuple[str, ...]) -> str:
    """Return `did you mean 'x'? ` for a near miss or the list of choices, for the end of an error message."""
    import difflib

    near = difflib.get_close_matches(word, choices, n=max(len(choices), 1), cutoff=0.6)
    if near:  # of several that are equally near, the first by name
        best = max(sorted(near), key=lambda choice: difflib.SequenceMatcher(None, choice, word).ratio())
        return f"did you mean {best!r}?"
    return f"choose one of: {', '.join(sorted(choices))}"
