"""The Sobolev norm for people: energies of a difference, where it lies, and the closed-form negative beside a Euclidean one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from .checks import check_range, check_same_shape
from .coupled import SMALLEST_SIGNAL, closed_form_negative
from .diffusion import MultiStepBackbone, VariancePreserving
from .drawing import colour_map, fit, paste_rows
from .pictures import contact_sheet, side_by_side
from .plots import curves
from .records import Conditioning
from .sobolev import BANDS, SobolevNorm
from .spectral import dct2

PANEL_PX = 320
_MOST_VALUES = 2**24  # that torch.quantile takes


@dataclass(frozen=True)
class SobolevFigures:
    """What the norm says about one difference.

    Attributes:
        energy: E, normalised.
        euclidean: the mean square.
        bands: shares of the energy in the low, middle and high band, sum 1; nan where there is no difference.
        euclidean_bands: the same of the mean square.
    """

    energy: float
    euclidean: float
    bands: tuple[float, ...]
    euclidean_bands: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain data; shares of nothing are None."""

        def named(shares: tuple[float, ...]) -> dict[str, float | None]:
            return {band: share if math.isfinite(share) else None for band, share in zip(BANDS, shares, strict=True)}

        shares = {"bands": named(self.bands), "euclidean_bands": named(self.euclidean_bands)}
        return {"energy": self.energy, "euclidean": self.euclidean, **shares}


def sobolev_figures(x: Tensor, norm: SobolevNorm) -> list[SobolevFigures]:
    """Energies of differences, [B, C, h, w], whole and by band: one entry per sample."""

    def shares(parts: Tensor) -> tuple[float, ...]:
        return tuple(cast(list[float], (parts / parts.sum()).tolist()))

    rows = zip(norm.energy(x), SobolevNorm(0.0).energy(x), norm.band_energies(x), SobolevNorm(0.0).band_energies(x), strict=True)
    return [SobolevFigures(float(own), float(flat), shares(bands), shares(even)) for own, flat, bands, even in rows]


def energy_picture(x: Tensor, norm: SobolevNorm, views: Mapping[str, Tensor], title: str = "") -> Image.Image:
    """Where a difference lies, by the norm and by the mean square, beside what was compared.

    Maps show square roots, each from 0 to its own 99.5th percentile: how much there is stands in the figures, not in the colours.

    Args:
        x: the difference of one sample, [1, C, h, w].
        norm: measures it.
        views: label -> picture [1, C, H, W] in [0, 1], shown first.
        title: above everything.
    """
    maps = {f"Sobolev, s = {norm.order:g}": norm.energy_map(x)[0, 0], "mean square": x.float().square().mean(1)[0]}
    shown: dict[str, Tensor | Image.Image] = dict(views)
    for name, part in maps.items():
        roots = part.float().sqrt()
        top = float(torch.quantile(roots.flatten()[:_MOST_VALUES], 0.995))
        shown[name] = colour_map(roots / max(top, 1e-20))
    return contact_sheet(shown, columns=2, cell_px=PANEL_PX, title=title)


@dataclass(frozen=True)
class Negatives:
    """Two negatives of one picture at one noise level, of equal mean square.

    Attributes:
        clean: latents of the picture, [1, C, h, w].
        sobolev: the closed form of proposition 4.1.
        euclidean: against the gradient itself, as long.
        residuals: mean square residual of the model at the state of each: `picture`, `sobolev`, `euclidean`.
    """

    clean: Tensor
    sobolev: Tensor
    euclidean: Tensor
    residuals: Mapping[str, float]

    def deltas(self) -> dict[str, Tensor]:
        """What was added, by name."""
        return {"Sobolev": self.sobolev - self.clean, "Euclidean": self.euclidean - self.clean}


def find_negatives(
    backbone: MultiStepBackbone,
    clean: Tensor,
    noise: Tensor,
    level: float,
    z_lq: Tensor,
    conditioning: Conditioning | None = None,
    *,
    norm: SobolevNorm,
    radius_ratio: float = 0.05,
) -> Negatives:
    """The closed-form negative of a picture, and what the plain gradient would make of it.

        d_s = -r Sigma_s g / |Sigma_s g|_{H^s},   d_e = -|d_s| g / |g|

    so that both move the picture equally far, and differ in shape alone.

    Args:
        backbone: the reference.
        clean: latents of one picture, [1, C, h, w].
        noise: like clean.
        level: of noise, in (0, 0.9]: sigma of a flow, the share of all timesteps otherwise.
        z_lq: what conditions the model.
        conditioning: what it is told.
        norm: of the ball.
        radius_ratio: of the ball's radius to the state's norm.

    Raises:
        ValueError: a level out of range, or so noisy that a state says next to nothing about its clean end.

    Source:
        ASASR, arXiv:2605.23264, Eq. (19), (37); asasr.md 2.10.
    """
    check_range(level, "level", 0.0, 1.0)
    process = backbone.process
    time = torch.full((1,), level, device=clean.device)
    if isinstance(process, VariancePreserving):
        time = (time * (len(process.alphas_cumprod) - 1)).round().long()
    one = torch.ones_like(clean[:, :1, :1, :1])
    if float(process.add_noise(one, torch.zeros_like(one), time)) < SMALLEST_SIGNAL or level == 0:
        raise ValueError(f"level: expected above 0 and with a tenth of the picture left in the state, got {level}; 0.5 is usual")

    def negative(of: SobolevNorm) -> Tensor:
        given = (backbone, clean, noise, time, z_lq, conditioning)
        return closed_form_negative(*given, norm=of, radius_ratio=radius_ratio) - clean.float()

    own, plain = negative(norm), negative(SobolevNorm(0.0))
    lengths = [float(delta.square().sum().sqrt()) for delta in (own, plain)]
    plain = plain * (lengths[0] / max(lengths[1], 1e-30))
    ends = {"picture": clean.float(), "sobolev": clean + own, "euclidean": clean + plain}
    residuals: dict[str, float] = {}
    with torch.no_grad():
        target = process.target(clean, noise).float()  # that of the picture, as in the closed form
        for name, end in ends.items():
            state = process.add_noise(end, noise.float(), time)
            residuals[name] = float((backbone.predict(state, time, z_lq, conditioning).float() - target).square().mean())
    return Negatives(ends["picture"], ends["sobolev"], ends["euclidean"], residuals)


def fine_share(x: Tensor) -> float:
    """Share of the energy at indices of at least half the grid, on either axis: 3/4 of white noise."""
    power = dct2(x).square()
    height, width = (side // 2 for side in x.shape[-2:])
    return 1 - float(power[..., :height, :width].sum() / power.sum())


def radial_power(x: Tensor) -> list[tuple[float, float]]:
    """(cycles per element, mean power of the DCT in dB) over shells of equal frequency, without the constant."""
    check_same_shape(x, x[:1], "x", "one sample")
    power = dct2(x)[0].square().mean(0)
    rows, columns = (torch.arange(side, device=x.device) / (2 * side) for side in power.shape)
    step = 1 / (2 * min(power.shape))
    shell = (torch.hypot(rows[:, None], columns[None]) / step).round().long().flatten()
    kept = min(power.shape)
    total, count = (
        torch.zeros(int(shell.max()) + 1, device=x.device).index_add(0, shell, part)
        for part in (power.flatten().float(), torch.ones_like(shell, dtype=torch.float32))
    )
    means = cast(list[float], (10 * torch.log10(total / count + 1e-12))[1:kept].tolist())
    return [((index + 1) * step, value) for index, value in enumerate(means)]


def negatives_picture(negatives: Negatives, pictures: Mapping[str, Tensor], *, gain: float, title: str = "") -> Image.Image:
    """The picture and both negatives with zoomed crops, and below them what was added, around mid-grey.

    Args:
        negatives: as found.
        pictures: `picture`, `Sobolev` and `Euclidean`, decoded, [1, 3, H, W] in [0, 1].
        gain: how strongly the changes are amplified.
        title: above everything.
    """
    changes = {name: (0.5 + gain * (pictures[name] - pictures["picture"])).clamp(0, 1) for name in negatives.deltas()}
    above = side_by_side(
        {"Sobolev negative": pictures["Sobolev"], "Euclidean negative": pictures["Euclidean"], "picture": pictures["picture"]},
        panel_px=PANEL_PX, title=title,
    )  # fmt: skip
    below = side_by_side({f"{name}, change x{gain:g}": part for name, part in changes.items()}, crops=0, panel_px=PANEL_PX)
    spectra = curves(
        {name: radial_power(part) for name, part in negatives.deltas().items()},
        x_label="cycles per latent element", y_label="power (dB)", title="spectra of the changes",
    )  # fmt: skip
    return paste_rows([above, below, fit(spectra, above.width, above.width)], gap=8)
