"""What an auto-encoder keeps of a picture and what it removes, as a picture and as figures (AESOP's Fig. 6)."""

from typing import cast

from PIL import Image
from torch import Tensor

from .checks import check_same_shape
from .drawing import fit, paste_rows
from .images import quantize_8bit
from .metrics import score
from .pictures import side_by_side
from .plots import spectra
from .spectral import high_frequency_ratio, log_spectral_distance, radial_spectrum

_PANEL_PX = 400


def removed_part(gt: Tensor, out: Tensor, gain: float = 4.0) -> Tensor:
    """What the auto-encoder removed, around mid-grey: clamp(0.5 + gain (gt - out)), [B, 3, H, W] in [0, 1]."""
    check_same_shape(out, gt, "out", "gt")
    return (0.5 + gain * (gt - out)).clamp(0, 1)


def autoencoder_health(gt: Tensor, out: Tensor, *, scale: int) -> dict[str, float]:
    """Figures of one picture after an auto-encoder.

    Args:
        gt: the picture, [1, 3, H, W] in [0, 1].
        out: AE(gt), not clamped.
        scale: the auto-encoder's.

    Returns:
        `psnr_y` of AE(gt) against gt in dB (low where much is texture), `high_frequency_kept`: energy above the low-resolution
        picture's Nyquist frequency as a share of the picture's, `out_of_range`: share of values outside [0, 1] by more than half
        a grey level, which a loss after the auto-encoder would follow.
    """
    check_same_shape(out, gt, "out", "gt")
    beyond = (out < -0.5 / 255) | (out > 1 + 0.5 / 255)
    return {
        "psnr_y": float(score("psnr_y", quantize_8bit(out), gt, scale=scale)),
        "high_frequency_kept": float(high_frequency_ratio(out.clamp(0, 1), gt, scale=scale)),
        "out_of_range": float(beyond.float().mean()),
    }


def autoencoder_view(gt: Tensor, out: Tensor, *, scale: int, gain: float = 4.0) -> Image.Image:
    """Picture, auto-encoded picture and removed part side by side, and below them their spectra.

    Args:
        gt: the picture, [1, 3, H, W] in [0, 1], sides of at least 4.
        out: AE(gt), not clamped.
        scale: the auto-encoder's; the spectra get a line where the low-resolution picture's frequencies end.
        gain: how strongly the removed part is amplified.

    Returns:
        RGB picture.
    """
    kept, removed = out.clamp(0, 1), removed_part(gt, out, gain)
    facts = autoencoder_health(gt, out, scale=scale)
    panels = side_by_side(
        {"picture": gt, "after the auto-encoder": kept, f"removed, x{gain:g}": removed},
        panel_px=_PANEL_PX,
        title=f"PSNR-Y {facts['psnr_y']:.2f} dB, energy of fine detail kept {100 * facts['high_frequency_kept']:.0f} %",
    )
    lines = {"picture": gt, "after the auto-encoder": kept, "removed": (gt - out + 0.5).clamp(0, 1)}
    series = {name: _points(image) for name, image in lines.items()}
    distance = {"after the auto-encoder": float(log_spectral_distance(kept, gt))}
    limit = {f"finest detail of the low-resolution picture (1/{2 * scale})": 1 / (2 * scale)}
    below = spectra(series, distances=distance, grid_px=(), marks=limit, reference="picture", title="radial power spectra")
    return paste_rows([panels, fit(below, panels.width, panels.width)], gap=8)


def _points(image: Tensor) -> list[tuple[float, float]]:
    """(cycles per pixel, dB) of a picture."""
    size = min(image.shape[-2:])
    values = cast(list[float], radial_spectrum(image)[0].tolist())
    return [((index + 1) / size, value) for index, value in enumerate(values)]
