"""What an auto-encoder keeps and removes, as figures and as a picture."""

import numpy as np
import torch
from PIL import Image

from alignsr.core.autoencoder_view import autoencoder_health, autoencoder_view, removed_part
from alignsr.core.spectral import high_frequency_ratio


def picture(side=96):
    """A smooth ramp with a fine checkerboard on its left half."""
    ramp = torch.linspace(0.2, 0.8, side).expand(1, 3, side, side).clone()
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side // 2), indexing="ij")
    ramp[..., : side // 2] += 0.1 * (1 - 2.0 * ((rows + columns) % 2))
    return ramp


def test_high_frequency_ratio_counts_the_energy_of_detail():
    gt = picture()
    smooth = torch.linspace(0.2, 0.8, 96).expand(1, 3, 96, 96)
    assert high_frequency_ratio(gt, gt, scale=4).item() == 1
    assert high_frequency_ratio(smooth, gt, scale=4).item() < 0.01  # without the checkerboard nothing is left
    half = smooth + 0.5 * (gt - smooth)
    assert abs(high_frequency_ratio(half, gt, scale=4).item() - 0.25) < 0.01  # energy goes with the square
    assert abs(high_frequency_ratio(gt + 0.1, gt, scale=4).item() - 1) < 1e-4  # brightness is no detail
    moved = gt.roll(1, -2)
    assert abs(high_frequency_ratio(moved, gt, scale=4).item() - 1) < 0.05  # where it stands does not matter


def test_high_frequency_ratio_is_differentiable_and_per_sample():
    gt = picture().repeat(2, 1, 1, 1)
    sr = torch.stack([0.5 * gt[0], gt[1]]).requires_grad_(True)
    ratio = high_frequency_ratio(sr, gt, scale=4)
    assert torch.allclose(ratio, torch.tensor([0.25, 1.0]), atol=1e-3)
    ratio.sum().backward()
    assert torch.isfinite(sr.grad).all()


def test_health_names_what_is_lost_and_what_leaves_the_range():
    gt = picture()
    same = autoencoder_health(gt, gt, scale=4)
    assert same["high_frequency_kept"] == 1 and same["out_of_range"] == 0
    out = torch.linspace(0.2, 0.8, 96).expand(1, 3, 96, 96).clone()
    out[..., :24, :] = 1.5  # a quarter of the rows too bright
    worse = autoencoder_health(gt, out, scale=4)
    assert worse["psnr_y"] < same["psnr_y"]
    assert worse["out_of_range"] == 0.25


def test_removed_part_is_grey_where_nothing_was_removed():
    gt = picture()
    assert torch.equal(removed_part(gt, gt), torch.full_like(gt, 0.5))
    assert torch.allclose(removed_part(gt, gt - 0.05, gain=4), torch.full_like(gt, 0.7))


def test_the_view_shows_three_panels_and_the_spectra():
    gt = picture()
    smooth = torch.linspace(0.2, 0.8, 96).expand(1, 3, 96, 96)
    sheet = autoencoder_view(gt, smooth, scale=4)
    assert isinstance(sheet, Image.Image) and sheet.width >= 1200 and sheet.height > 700
    bottom = np.asarray(sheet)[sheet.height - 300 :]
    assert len(np.unique(bottom.reshape(-1, 3), axis=0)) > 20  # curves, not blank paper
