"""Spectra of several methods: distances and band energies by hand, sizes that differ, what pictures show."""

import csv
import io
import math

import numpy as np
import pytest
import torch

from alignsr.core.image_files import write_image
from alignsr.core.images import quantize_8bit
from alignsr.core.pairs import Pair, pairs_from_folders
from alignsr.core.spectral import log_spectral_distance, periodic_energy_score, radial_spectrum
from alignsr.core.spectral_view import BANDS, SpectralComparison, compare_spectra
from reference.formula import U


def noise(*shape: int, name: str = "view") -> torch.Tensor:
    return U(f"spectral/{name}", *shape)


def filtered(image: torch.Tensor, gain) -> torch.Tensor:
    """The picture with the amplitudes of its frequencies (cycles per pixel) multiplied."""
    spectrum = torch.fft.fft2(image.double() - 0.5)
    rows, columns = (torch.fft.fftfreq(side).double() for side in image.shape[-2:])
    radius = torch.hypot(rows[:, None], columns[None])
    return (torch.fft.ifft2(spectrum * gain(radius)).real + 0.5).float()


def test_band_energies_by_hand() -> None:
    """Amplitude a quarter above 1/4 cycle per pixel: -12.04 dB there, nothing elsewhere."""
    gt = 0.4 + 0.2 * noise(2, 3, 128, 128)
    sr = filtered(gt, lambda f: torch.where(f > 31.5 / 128, 0.25, 1.0))
    seen = SpectralComparison()
    seen.add("soft", sr, gt)
    found = seen.methods["soft"]
    assert found.bands[0] == pytest.approx(0, abs=0.05) and found.bands[1] == pytest.approx(0, abs=0.15)
    assert found.bands[2] == pytest.approx(20 * math.log10(0.25), abs=0.15)
    share = sum(1 for r in range(1, 64) if r / 128 >= 0.25) / 63
    assert found.distance == pytest.approx(12.04 * math.sqrt(share), abs=0.2)
    assert found.distance == pytest.approx(float(log_spectral_distance(quantize_8bit(sr), quantize_8bit(gt)).mean()), abs=1e-5)
    assert seen.methods["reference"].bands == (0.0, 0.0, 0.0) and math.isnan(seen.methods["reference"].distance)


def test_curves_and_grid_scores_are_those_of_the_plain_functions() -> None:
    gt, sr = noise(2, 3, 72, 64), noise(2, 3, 72, 64, name="other")
    seen = SpectralComparison()
    seen.add("ours", sr, gt)
    for name, pixels in (("reference", gt), ("ours", sr)):
        found = seen.methods[name]
        levels = radial_spectrum(quantize_8bit(pixels)).double().mean(0)
        assert [power for _, power in found.curve] == pytest.approx(levels.tolist())
        assert [frequency for frequency, _ in found.curve] == [r / 64 for r in range(1, 32)]
        assert found.grid == pytest.approx(float(periodic_energy_score(pixels).mean())) and found.count == 2
    small = SpectralComparison()
    small.add("ours", sr[..., :40, :40], gt[..., :40, :40])
    assert math.isnan(small.methods["ours"].grid) and small.cells()[1][0][-1] == ""


def test_pictures_one_by_one_are_a_batch() -> None:
    gt, sr = noise(3, 3, 64, 64), noise(3, 3, 64, 64, name="other")
    whole, parts = SpectralComparison(), SpectralComparison()
    whole.add("ours", sr, gt)
    for index in range(3):
        parts.add("ours", sr[index : index + 1], gt[index : index + 1])
    for name in ("ours", "reference"):
        a, b = whole.methods[name], parts.methods[name]
        assert a.count == b.count == 3
        assert np.allclose([a.distance, *a.bands, a.grid], [b.distance, *b.bands, b.grid], equal_nan=True)
        assert np.allclose(a.curve, b.curve)


def test_sizes_may_differ() -> None:
    """A reference whose level is a ramp over frequency, at two sizes: the mean is the same ramp."""

    def ramp(side: int) -> torch.Tensor:
        return filtered(0.5 + 0.1 * (noise(1, 3, side, side) - 0.5), lambda f: torch.exp(-4 * f)) * 1.0

    seen = SpectralComparison()
    for side in (64, 96):
        seen.add("half", 0.5 * ramp(side), ramp(side))
    found = seen.methods["half"]
    assert found.count == 2 and len(found.curve) == 47, "the frequencies of the larger"
    apart = [ours - theirs for (_, ours), (_, theirs) in zip(found.curve, seen.methods["reference"].curve, strict=True)]
    assert np.mean(apart[:10]) == pytest.approx(-6.02, abs=0.3), "8 bit hides the rest"
    flat = SpectralComparison()
    for side in (32, 48):
        flat.add("same", noise(1, 3, side, side), noise(1, 3, side, side))
    assert flat.methods["same"].distance == 0


def test_tables_and_pictures() -> None:
    gt = noise(1, 3, 64, 64)
    seen = SpectralComparison()
    for name, gain in (("close", 0.9), ("soft", 0.5)):
        seen.add(name, filtered(gt, lambda f, gain=gain: torch.where(f > 0.2, gain, 1.0)), gt)
    header, rows = seen.cells()
    assert header == ["method", "LSD, dB v", "below 1/8, dB", "1/8 to 1/4, dB", "above 1/4, dB", "grid"]
    assert [row[0] for row in rows] == ["close", "soft", "reference"] and rows[2][1:5] == [""] * 4
    assert {(0, 1), (0, 3), (0, 4)} <= seen.best()
    text = seen.to_text()
    assert text.isascii() and "mean over 1 picture;" in text
    lines = list(csv.DictReader(io.StringIO(seen.to_csv())))
    assert len(lines) == 3 * 31 and {line["method"] for line in lines} == {"reference", "close", "soft"}
    assert seen.picture().size == (900, 760)
    assert seen.table_picture().width > 500
    alone = SpectralComparison()
    alone.add("one", gt, gt)
    assert alone.picture().size == (900, 540)


def test_the_lower_panel_shows_the_difference() -> None:
    """A method 6 dB below the reference everywhere: its line in the lower panel is level."""
    gt = 0.2 + 0.8 * noise(1, 3, 64, 64)
    seen = SpectralComparison()
    for name, gain in (("half", 0.5), ("same", 1.0)):
        seen.add(name, gt * gain, gt)
    pixels = np.asarray(seen.picture()).astype(int)[470:]
    orange = np.argwhere(
        np.abs(pixels - np.array((255, 127, 14))).sum(2) < 40
    )  # C1: the first method, C0 is the reference's turn
    assert len(orange) > 300
    assert np.ptp(np.percentile(orange[:, 0], [5, 95])) < 8, "level"


def test_folders(tmp_path) -> None:
    for index, side in enumerate((40, 56)):
        gt = noise(1, 3, side, 48)
        write_image(tmp_path / "gt" / f"p{index}.png", gt)
        write_image(tmp_path / "dim" / f"p{index}.png", gt * 0.5)
        write_image(tmp_path / "same" / f"p{index}.png", gt)
    methods = {name: pairs_from_folders(tmp_path / name, tmp_path / "gt") for name in ("dim", "same")}
    done = []
    seen = compare_spectra(methods, progress=lambda count, name: done.append((count, name)))
    assert seen.methods["same"].distance == 0 and seen.methods["dim"].distance == pytest.approx(6.02, abs=0.1)
    assert seen.methods["reference"].count == 2 and done == [(1, "p0"), (2, "p1"), (3, "p0"), (4, "p1")]
    with pytest.raises(ValueError, match="gt: expected a reference for a, got none; give the folder of ground truth"):
        compare_spectra({"x": [Pair("a", noise(1, 3, 8, 8))]})


def test_refusals() -> None:
    seen = SpectralComparison()
    with pytest.raises(ValueError, match="method: expected another name, got 'reference'"):
        seen.add("reference", noise(1, 3, 8, 8), noise(1, 3, 8, 8))
    with pytest.raises(ValueError, match="sr: expected the shape of gt"):
        seen.add("x", noise(1, 3, 8, 8), noise(1, 3, 8, 9))
    with pytest.raises(ValueError, match="x: expected sides of at least 4 pixels"):
        seen.add("x", noise(1, 3, 3, 8), noise(1, 3, 3, 8))
    thin = SpectralComparison()
    thin.add("x", noise(1, 3, 4, 4), noise(1, 3, 4, 4))
    assert [math.isnan(value) for value in thin.methods["x"].bands] == [True, True, False], "one radius: a quarter cycle"
    assert len(BANDS) == 3
