"""DCT, radial spectra, and the score that must see a patch grid and nothing else."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alignsr.core.spectral import (
    dct2,
    dct_matrix,
    idct2,
    log_spectral_distance,
    periodic_energy_score,
    periodic_pattern,
    radial_spectrum,
)
from paths import SHARED


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def natural(size=256, seed=0):
    """Dead leaves: overlapping discs of many sizes, the simplest model with the edges and smooth areas of photographs."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.full((1, 3, size, size), 0.5)
    for _ in range(300):
        u, top, left, *color = torch.rand(6, generator=generator).tolist()
        disc = (y - top * size) ** 2 + (x - left * size) ** 2 < (3 / (1 - 0.95 * u)) ** 2
        image = torch.where(disc, 0.2 + 0.6 * torch.tensor(color).view(1, 3, 1, 1), image)
    return F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False) + 0.004 * noise(1, 3, size, size, seed=seed)


def grid(kind, period, height, width, rms=0.01, shift=(0, 0)):
    """A pattern with this period and RMS: waves in both directions, one-pixel lines, half-period stripes, or any fixed tile."""
    t = torch.arange(period)
    wave, line, stripe = torch.cos(2 * math.pi * (t + 0.5) / period), (t == 0).float(), (t < period // 2).float()
    tile = {
        "waves": wave[:, None] + wave,
        "lines": torch.maximum(line[:, None], line),
        "stripes": stripe.expand(period, period),
        "tile": noise(period, period, seed=3),
    }[kind]
    tile = torch.roll((tile - tile.mean()) / tile.std(correction=0), shift, dims=(0, 1))
    return rms * tile.repeat(height // period + 1, width // period + 1)[:height, :width]


GRIDS = ["waves", "lines", "stripes", "tile"]


def photographs(pattern):
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the test images in {folder.name}/ of the shared folder")
    paths = sorted(folder.glob(pattern))
    assert paths
    return [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None].float() / 255 for path in paths]


def enlarge_again(image):
    """Down by 4 and up again with bicubic: the blurriest plausible output of a x4 model."""
    small = F.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, size=image.shape[-2:], mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (16, 37)])
def test_dct_equals_scipy(size):
    from scipy.fft import dctn, idctn

    x = noise(2, 3, *size, dtype=torch.float64)
    np.testing.assert_allclose(dct2(x).numpy(), dctn(x.numpy(), axes=(-2, -1), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(idct2(x).numpy(), idctn(x.numpy(), axes=(-2, -1), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(dct2(x.float()).numpy(), dctn(x.numpy(), axes=(-2, -1), norm="ortho"), atol=2e-6)


def test_dct_is_orthonormal_and_inverts():
    matrix = dct_matrix(24, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(24, dtype=torch.float64), atol=1e-13, rtol=0)
    x = noise(2, 4, 24, 40)
    torch.testing.assert_close(idct2(dct2(x)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(dct2(x).square().sum(), x.square().sum())


def test_dct_stays_in_float32_under_autocast_and_for_bfloat16():
    x = noise(1, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dct2(x), dct2(x.clone()))
        inside = dct2(x)
    assert torch.equal(inside, dct2(x))
    assert dct2(x.bfloat16()).dtype == torch.float32


def test_dct_gradient():
    x = noise(1, 2, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dct2(z).square(), x)


def test_radial_spectrum_finds_a_wave_at_its_frequency():
    wave = 0.5 + 0.1 * torch.cos(2 * math.pi * 10 * torch.arange(64) / 64)
    spectrum = radial_spectrum(wave.expand(1, 3, 64, 64))
    assert spectrum.shape == (1, 31)
    assert spectrum[0].argmax().item() == 10 - 1


def test_radial_spectrum_of_white_noise_is_flat_and_of_natural_images_falls():
    white = radial_spectrum(0.5 + 0.1 * noise(4, 1, 128, 128)).mean(0)
    assert white[5:].std() < 0.5
    falling = radial_spectrum(natural(128)).mean(0)
    assert falling[:5].mean() > falling[-5:].mean() + 20


def test_log_spectral_distance_properties():
    """asasr.md check 20, symmetry, and worse with more blur or noise."""
    gt = natural(96)
    assert log_spectral_distance(gt, gt).tolist() == [0.0]
    assert log_spectral_distance(gt, 0.5 * gt).item() == pytest.approx(6.0206, abs=1e-3)
    blurry = [F.avg_pool2d(gt, k, stride=1, padding=k // 2, count_include_pad=False) for k in (3, 5)]
    noisy = [gt + std * noise(1, 3, 96, 96) for std in (0.02, 0.05)]
    for mild, strong in (blurry, noisy):
        assert 0 < log_spectral_distance(mild, gt) < log_spectral_distance(strong, gt)
        torch.testing.assert_close(log_spectral_distance(mild, gt), log_spectral_distance(gt, mild))


@pytest.mark.parametrize("content", ["noise", "flat"])
def test_log_spectral_distance_has_a_finite_gradient_everywhere(content):
    """At equality it is zero, the minimum of a norm; next to it, at most that of the norm itself."""
    gt = torch.rand(2, 3, 32, 40) if content == "noise" else torch.full((2, 3, 32, 40), 0.5)
    sr = gt.clone().requires_grad_(True)
    distance = log_spectral_distance(sr, gt)
    distance.sum().backward()
    assert distance.tolist() == [0.0, 0.0]
    assert torch.equal(sr.grad, torch.zeros_like(gt))
    near = (gt + 1e-4 * noise(2, 3, 32, 40)).requires_grad_(True)
    log_spectral_distance(near, gt).sum().backward()
    assert torch.isfinite(near.grad).all() and near.grad.abs().sum() > 0


def test_a_step_along_the_gradient_brings_the_spectra_together():
    gt = natural(64)
    sr = F.avg_pool2d(gt, 3, stride=1, padding=1).requires_grad_(True)
    before = log_spectral_distance(sr, gt)
    (gradient,) = torch.autograd.grad(before.sum(), sr)
    assert log_spectral_distance((sr - 0.02 * gradient / gradient.norm()).detach(), gt) < before


def test_log_spectral_distance_is_the_root_of_the_mean_square():
    sr, gt = torch.rand(3, 3, 40, 57), torch.rand(3, 3, 40, 57)
    plain = (radial_spectrum(sr) - radial_spectrum(gt)).square().mean(1).sqrt()
    torch.testing.assert_close(log_spectral_distance(sr, gt), plain, atol=1e-6, rtol=0)


def test_log_spectral_distance_is_per_image_and_takes_any_shape():
    sr, gt = torch.rand(3, 3, 40, 57), torch.rand(3, 3, 40, 57)
    both = log_spectral_distance(sr, gt)
    assert both.shape == (3,)
    torch.testing.assert_close(both[1:2], log_spectral_distance(sr[1:2], gt[1:2]))
    with pytest.raises(ValueError, match="sr: expected the shape of gt"):
        log_spectral_distance(sr[..., :40], gt)
    with pytest.raises(ValueError, match="x: expected sides of at least 4 pixels"):
        radial_spectrum(torch.rand(1, 3, 3, 40))


@pytest.mark.parametrize("period", [8, 16])
@pytest.mark.parametrize("kind", GRIDS)
def test_pattern_recovers_a_grid_with_its_amplitude(kind, period):
    wanted = grid(kind, period, period, period)
    found = periodic_pattern(natural() + grid(kind, period, 256, 256), period).mean((0, 1))
    assert found.square().mean().sqrt() == pytest.approx(0.01, rel=0.15)
    assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.95


def test_score_without_a_grid_is_about_one():
    for image in (torch.full((1, 3, 128, 128), 0.5), 0.5 + 0.05 * noise(1, 3, 128, 128), natural(), natural(seed=1)):
        assert periodic_energy_score(image).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("period", [8, 16])
@pytest.mark.parametrize("kind", GRIDS)
def test_score_rises_with_the_amplitude_of_the_grid(kind, period):
    image = natural()
    scores = [periodic_energy_score(image + grid(kind, period, 256, 256, rms)).item() for rms in (0, 0.0025, 0.005, 0.01, 0.02)]
    assert scores == sorted(scores)
    assert scores[1] > 1.1 * scores[0]
    assert scores[3] > 2.5 * scores[0]


@pytest.mark.parametrize("kind", GRIDS)
def test_score_does_not_depend_on_where_the_grid_lies(kind):
    """To 1 % on weak content, where the cross term of grid and content is small; on busy content the verdict stays."""
    shifts = ((0, 0), (5, 3), (8, 8))
    weak, busy = (
        [periodic_energy_score(image + grid(kind, 16, 256, 256, 0.01, shift)).item() for shift in shifts]
        for image in (0.5 + 0.003 * noise(1, 3, 256, 256), natural())
    )
    assert max(weak) / min(weak) < 1.01
    assert min(busy) > 2


def test_other_periods_score_less():
    """strsr.md check 24: a period-12 grid scores less than the ones asked for."""
    image = natural(384)
    wrong = periodic_energy_score(image + grid("lines", 12, 384, 384, 0.02))
    assert wrong < 0.5 * periodic_energy_score(image + grid("lines", 16, 384, 384, 0.02))


def published_score(x, period=16, reach=6):
    """Check 24 as it is written: energy at the multiples of N / period over the median of the bins around, rows and columns."""
    detail = x.mean(1) - F.avg_pool2d(F.pad(x.mean(1, keepdim=True), (8, 7, 8, 7), mode="reflect"), 16, stride=1)[:, 0]
    scores = []
    for lines in (detail, detail.mT):
        power = torch.fft.rfft(lines).abs().square().mean(1)[0]
        step = x.shape[-1] // period
        for k in range(step, len(power) - 1, step):
            around = torch.cat([power[max(1, k - reach) : k], power[k + 1 : k + reach + 1]])
            scores.append(power[k] / around.median())
    return torch.stack(scores).mean().item()


def falling(size=256, slope=1.25):
    """A grey image of natural spectrum: amplitudes as 1 / f^1.25, deviation 0.2."""
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt().clamp_min(1 / size)
    x = torch.fft.ifft2(torch.fft.fft2(noise(1, 1, size, size)) / radius**slope).real
    return ((x - x.mean()) / x.std() * 0.2 + 0.5).expand(1, 3, size, size)


def test_24_the_score_as_written_rises_as_measured_and_ours_agrees():
    """The specification leaves open how a peak is read: its 1.30 without a grid is 1.0 here. Over that, its numbers come out.

    Measured there: 1.39, 1.72, 3.27, 9.74 at these amplitudes and 1.30 without, so 1.07 to 7.5 times as much; 3.8 for period 12.
    """
    image, amplitudes = falling(), (0.005, 0.01, 0.02, 0.04)
    assert published_score(image) == pytest.approx(1, abs=0.05)
    assert published_score(image + 0.02 * noise(1, 3, 256, 256, seed=1)) == pytest.approx(1, abs=0.05)
    gridded = [image + grid("lines", 16, 256, 256, rms) for rms in amplitudes]
    scores = [published_score(x) for x in gridded]
    assert scores == pytest.approx([value / 1.30 for value in (1.39, 1.72, 3.27, 9.74)], rel=0.1)
    moved = published_score(image + grid("lines", 16, 256, 256, 0.04, shift=(5, 3)))
    assert moved == pytest.approx(scores[-1], rel=0.05)
    wrong = published_score(falling(384) + grid("lines", 12, 384, 384, 0.04))
    assert wrong == pytest.approx(3.8 / 1.30, rel=0.1)
    assert wrong < published_score(falling(384) + grid("lines", 16, 384, 384, 0.04))
    removed = gridded[-1] - periodic_pattern(gridded[-1], 16).repeat(1, 1, 16, 16)
    assert published_score(removed) < 1.1
    ours = [periodic_energy_score(x).item() for x in (image, *gridded)]
    assert ours == sorted(ours) and ours[0] == pytest.approx(1, abs=0.05)


def test_score_sees_coloured_grids_and_falls_when_the_grid_is_removed():
    coloured = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1) * math.sqrt(1.5)
    image = natural()
    dirty = image + coloured * grid("tile", 16, 256, 256)
    assert periodic_energy_score(dirty) > 2.5
    cleaned = dirty - periodic_pattern(dirty, 16).repeat(1, 1, 16, 16)
    assert periodic_energy_score(cleaned) < 1.05


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (130, 71)])
def test_score_works_from_64_pixels_up_and_per_image(size):
    image = natural(160)[..., : size[0], : size[1]]
    pair = torch.cat([image, image + grid("tile", 8, *size, rms=0.02)])
    scores = periodic_energy_score(pair)
    assert scores.shape == (2,)
    assert scores[1] > 2 * scores[0]
    torch.testing.assert_close(scores[:1], periodic_energy_score(image))


def test_photographs_pass_and_the_same_with_a_grid_fail():
    """The acceptance rule of the pixel transformer, on real images: at most 1.10 times the score of the ground truth."""
    for gt in photographs("set5/hr/*.png"):
        height, width = gt.shape[-2:]
        limit, sr = 1.1 * periodic_energy_score(gt), enlarge_again(gt)
        assert periodic_energy_score(sr) < limit
        for period, kind in ((8, "lines"), (16, "waves"), (16, "stripes")):
            assert periodic_energy_score((sr + grid(kind, period, height, width)).clamp(0, 1)) > 1.5 * limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(1, 3, 63, 80),), "x: expected sides of at least 64 pixels"),
        ((torch.rand(1, 3, 64, 64), (32,)), "periods: expected values in 4..16 for this image"),
        ((torch.rand(1, 3, 64, 64), ()), "periods: expected values"),
        ((torch.rand(1, 64, 64, 3),), "looks channels-last"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        periodic_energy_score(*arguments)
