"""Sobolev norms of latents: a residual weighed by spatial frequency, and what follows from its covariance.

    w(k) = (1 + L^2 (f_h^2 + f_w^2))^s,   f_h = k_h / (2 h), f_w = k_w / (2 w) cycles per latent element

over the indices k of the orthonormal DCT-II of the last two axes, each channel by itself. Latents are taken on their unpacked
grid: packed into tokens, the finest frequencies would be differences between channels and be weighed as if they were constants.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .checks import check_same_shape
from .folded import can_fold, folded_energy
from .spectral import dct2, idct2

BANDS = ("low", "mid", "high")
_BAND_EDGES = (0.25, 0.5)  # shares of the largest index


class SobolevNorm:
    """The norm of one order and one length scale.

        |x|^2_{H^s} = sum w(k) |DCT(x)(k)|^2,   E(x) = mean over elements of w(k) / mean(w) |DCT(x)(k)|^2

    The energy E is normalised: white residuals have their variance as energy whatever s is, and at s = 0 it is their mean square.
    Everything is computed in float32 at least, whatever the input's precision and under autocast too.

    Args:
        order: s >= 0; 0 is Euclidean, 1.5 the paper's.
        length_scale: L > 0 in latent elements; details coarser than about L weigh as much as a constant. 64 gives the weights of
            cycles per picture on a grid of 64 x 64; it is kept for other grids, so that weights do not depend on the resolution.

    Raises:
        ValueError: not finite, s < 0 or L <= 0.

    Source:
        ASASR, arXiv:2605.23264, Eq. (4)-(6), (12), (13); specification asasr.md 2.9, which fixes units and normalisation.

    Example:
        >>> norm = SobolevNorm(1.5, 2 * math.pi)
        >>> round(float(norm.weights((64, 64)).max()), 1), round(norm.mean_weight((64, 64)), 2)
        (90.3, 22.56)
    """

    def __init__(self, order: float = 1.5, length_scale: float = 64.0) -> None:
        if not math.isfinite(order) or order < 0:
            raise ValueError(f"order: expected s of at least 0, got {order}; 0 is Euclidean, the paper uses 1.5")
        if not math.isfinite(length_scale) or length_scale <= 0:
            raise ValueError(f"length_scale: expected L above 0 latent elements, got {length_scale}; the default is 64")
        self.order, self.length_scale = float(order), float(length_scale)

    def __repr__(self) -> str:
        """Order and length scale."""
        return f"SobolevNorm({self.order:g}, {self.length_scale:g})"

    def weights(self, size: tuple[int, int]) -> Tensor:
        """Raw weights of a grid, [h, w] float64 on the CPU; w(0, 0) = 1."""
        return _weights(self.order, self.length_scale, size, torch.float64, "cpu", "raw")

    def mean_weight(self, size: tuple[int, int]) -> float:
        """Mean of the raw weights of a grid: raw energies are that many times the normalised ones."""
        return float(self.weights(size).mean())

    def energy(self, x: Tensor) -> Tensor:
        """E(x) of each sample.

        Its gradient is the Euclidean one filtered: dE/dx = (2 / n) IDCT(w / mean(w) DCT(x)), n elements.

        Args:
            x: residuals on the unpacked grid, [B, C, h, w] float.

        Returns:
            [B] float32 (float64 for float64), at least 0.

        Source:
            ASASR, Eq. (13), (27), divided by n mean(w).
        """
        if self.order == 0:  # the transform keeps sums of squares: the mean square itself, to the last bit
            return _wide(_batched(x)).square().flatten(1).mean(1)
        if can_fold(_batched(x)):
            wide = _wide(x)
            return folded_energy(wide, self._weights_like(wide, "normalized"))
        return self._power(x, "normalized").flatten(1).mean(1)

    def band_energies(self, x: Tensor) -> Tensor:
        """The energy split by frequency: their sum is `energy`.

        Bands by max(k_h / h, k_w / w): low below 1/4, mid to 1/2, high above.

        Returns:
            [B, 3] float32 in the order of `BANDS`.
        """
        power = self._power(x, "normalized").mean(1)
        masks = _bands((power.shape[-2], power.shape[-1]), power.dtype, power.device)
        return torch.stack([(power * mask).flatten(1).mean(1) for mask in masks], 1)

    def energy_map(self, x: Tensor) -> Tensor:
        """Where the energy is: its mean over the grid is `energy`.

            M = mean over channels of |IDCT( sqrt(w / mean(w)) DCT(x) )|^2

        At s = 0 this is the square of x; larger s leaves what is fine, and takes away what is smooth.

        Returns:
            [B, 1, h, w] float32, at least 0.
        """
        spectrum = dct2(_batched(x))
        return idct2(self._weights_like(spectrum, "normalized").sqrt() * spectrum).square().mean(1, keepdim=True)

    def squared_norm(self, x: Tensor) -> Tensor:
        """|x|^2_{H^s} of each sample, [B]: with raw weights, summed over all elements. ASASR, Eq. (6)."""
        return self._power(x, "raw").flatten(1).sum(1)

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """<x, y>_{H^s} of each sample, [B]. ASASR, Eq. (5)."""
        check_same_shape(x, y, "x", "y")
        one, other = dct2(_batched(x)), dct2(_batched(y))
        return (self._weights_like(one, "raw") * one * other).flatten(1).sum(1)

    def cosine(self, x: Tensor, y: Tensor) -> Tensor:
        """<x, y> / (|x| |y|) in H^s of each sample, [B]."""
        return self.inner(x, y) / (self.squared_norm(x) * self.squared_norm(y)).sqrt()

    def covariance(self, x: Tensor) -> Tensor:
        """Sigma_s x = IDCT(DCT(x) / w), a low-pass; <x, y> = <Sigma_s x, y>_{H^s}. ASASR, Eq. (12), (42)."""
        spectrum = dct2(_batched(x))
        return idct2(spectrum / self._weights_like(spectrum, "raw"))

    def colored(self, white: Tensor) -> Tensor:
        """Noise of covariance Sigma_s: IDCT(w^(-1/2) z) for white z ~ N(0, I). For tests, plots and random perturbations only.

        Source:
            ASASR, Eq. (12) and (25); the noise that is trained and sampled with stays white (asasr.md 1.1).
        """
        spectrum = _wide(_batched(white))
        return idct2(spectrum / self._weights_like(spectrum, "raw").sqrt())

    def to_sphere(self, x: Tensor, radius: Tensor | float) -> Tensor:
        """Radius x / |x|_{H^s}: each sample brought to the sphere of that radius, a number or [B]. Zero stays zero."""
        norms = self.squared_norm(x).sqrt()
        factor = radius / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return _wide(x) * factor.reshape(-1, *[1] * (x.ndim - 1))

    def _power(self, x: Tensor, kind: Literal["raw", "normalized"]) -> Tensor:
        spectrum = dct2(_batched(x))
        return self._weights_like(spectrum, kind) * spectrum.square()

    def _weights_like(self, x: Tensor, kind: Literal["raw", "normalized"]) -> Tensor:
        return _weights(self.order, self.length_scale, (x.shape[-2], x.shape[-1]), x.dtype, x.device, kind)


def sobolev_energy(x: Tensor, order: float = 1.5, length_scale: float = 64.0) -> Tensor:
    """`SobolevNorm(order, length_scale).energy(x)`, [B]."""
    return SobolevNorm(order, length_scale).energy(x)


def closed_form(gradient: Tensor, radius: Tensor | float, norm: SobolevNorm) -> Tensor:
    """The perturbation inside a Sobolev ball that lowers an objective the most, to first order.

        delta* = -radius Sigma_s g / sqrt(<g, Sigma_s g>);   |delta*|_{H^s} = radius,   <g, delta*> = -radius sqrt(<g, Sigma_s g>)

    Args:
        gradient: g of the objective at each state, [B, C, h, w] float.
        radius: of the ball, a number or one per sample [B].
        norm: of the ball.

    Returns:
        Like gradient, float32 at least; 0 where the gradient is 0.

    Source:
        ASASR, arXiv:2605.23264, Proposition 4.1, Eq. (19), (30)-(37); symbols: delta_t* -> result, eps_t -> radius.
    """
    return norm.to_sphere(-norm.covariance(gradient), radius)


def logit_scale(beta: float, norm: SobolevNorm, size: tuple[int, int], *, raw: bool = False) -> float:
    """What multiplies differences of normalised energies in the preference loss.

        kappa = beta mean(w) if raw, else beta

    Args:
        beta: > 0; the paper's 2000 belongs to energies that are means over elements.
        norm: of the energies.
        size: grid of the latents.
        raw: read beta as the released code does, for energies that are not divided by the mean weight.

    Raises:
        ValueError: beta <= 0.

    Source:
        asasr.md 2.9 and 5.2.

    Example:
        >>> round(logit_scale(2000, SobolevNorm(1.5, 64), (64, 64), raw=True) / 1e7, 2)
        3.98
    """
    if not math.isfinite(beta) or beta <= 0:
        raise ValueError(f"beta: expected a number above 0, got {beta}; the paper uses 2000")
    return float(beta) * (norm.mean_weight(size) if raw else 1.0)


@lru_cache(maxsize=64)
def _weights(
    order: float,
    length_scale: float,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str,
    kind: Literal["raw", "normalized"],
) -> Tensor:
    """Made once per grid; outside inference mode, so that training may use what a preview has made."""
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (torch.arange(side, dtype=torch.float64) / (2 * side) for side in size)
        weights = (1 + length_scale**2 * (rows.square()[:, None] + columns.square()[None])) ** order
        return (weights / weights.mean() if kind == "normalized" else weights).to(dtype).to(device)


@lru_cache(maxsize=16)
def _bands(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in size)
        share = torch.maximum(rows[:, None], columns[None])
        low, high = _BAND_EDGES
        masks = (share < low, (share >= low) & (share < high), share >= high)
        return tuple(mask.to(dtype).to(device) for mask in masks)


def _batched(x: Tensor) -> Tensor:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(
            f"x: expected latents [B, C, h, w] float, got {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}; "
            "unpack tokens to their grid first"
        )
    return x


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
