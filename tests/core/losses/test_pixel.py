"""Pixel losses: values by hand, and what a low-pass filter makes of texture."""

import pytest
import torch
from torch import Tensor

from alignsr.core.losses import l1_loss, low_pass_l1_loss, mse_loss, psnr_loss, psnr_y_loss
from alignsr.core.resize import imresize
from reference.formula import S, U


def checkers(side: int) -> Tensor:
    """0, 1, 0, 1, ... in both directions."""
    return ((torch.arange(side)[:, None] + torch.arange(side)) % 2).float().expand(1, 3, -1, -1)


def test_values_by_hand() -> None:
    sr, gt = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    sr[1] = 0.1
    assert torch.allclose(l1_loss(sr, gt), torch.tensor([0.5, 0.1]))
    assert torch.allclose(mse_loss(sr, gt), torch.tensor([0.25, 0.01]))
    assert torch.allclose(psnr_loss(sr, gt), torch.tensor([-6.0206, -20.0]), atol=1e-4)


def test_low_pass_is_the_error_of_the_shrunk_images() -> None:
    gt = U("low_pass/gt", 2, 3, 32, 24)
    sr = gt + 0.2 * S("low_pass/sr", 2, 3, 32, 24)
    expected = (imresize(sr, 0.25) - imresize(gt, 0.25)).abs().flatten(1).mean(1)
    assert torch.allclose(low_pass_l1_loss(sr, gt), expected, atol=1e-6)


def test_low_pass_forgives_the_finest_texture_and_sees_a_shift_of_colour() -> None:
    grey = torch.full((1, 3, 32, 32), 0.5)
    texture = grey + 0.2 * (checkers(32) - 0.5)
    assert l1_loss(texture, grey).item() == pytest.approx(0.1)
    assert low_pass_l1_loss(texture, grey).item() < 0.002
    assert low_pass_l1_loss(grey + 0.02, grey).item() == pytest.approx(0.02, rel=1e-5)


def test_low_pass_refuses_a_scale_that_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="scale: expected at least 2, got 1"):
        low_pass_l1_loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), scale=1)


def test_half_of_psnr_y_is_luma():
    gt = torch.full((1, 3, 8, 8), 0.5)
    grey = gt + 0.1  # every channel off by 0.1: Y by 0.1 * (65.481 + 128.553 + 24.966) / 255
    luma = 20 * torch.log10(torch.tensor(0.1 * 219 / 255))
    assert torch.allclose(psnr_y_loss(grey, gt), (-20 + luma)[None] / 2, atol=1e-4)
    # a change of colour that leaves luma alone costs less than a grey one of equal energy
    colour = torch.tensor([0.1, -0.1 * 65.481 / 128.553, 0.0]).view(1, 3, 1, 1).expand_as(gt)
    same_energy = torch.full_like(gt, float(colour.square().mean().sqrt()))
    assert psnr_y_loss(gt + colour, gt) < psnr_y_loss(gt + same_energy, gt) - 10
