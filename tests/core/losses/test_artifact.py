"""The artifact loss of LDL: check 6 of the specification's section 9.1 and the official numbers (golden c03_ldl)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignsr.core.losses import artifact_loss, artifact_map
from alignsr.core.losses.artifact import local_variance
from reference.formula import S, U
from reference.losses import check


def spike() -> tuple[Tensor, Tensor]:
    """sr = 1 in the centre of 9x9, gt = 0."""
    sr = torch.zeros(1, 3, 9, 9)
    sr[..., 4, 4] = 1
    return sr, torch.zeros(1, 3, 9, 9)


def inside() -> Tensor:
    """The 49 pixels whose window sees the centre."""
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 1:8, 1:8] = True
    return mask


def reference_case() -> tuple[Tensor, Tensor, Tensor]:
    gate = U("c03/gate", 2, 1, 32, 32)
    gt = U("c03/hr", 2, 3, 32, 32)
    sr = gt + 0.2 * S("c03/sr", 2, 3, 32, 32) * gate
    return sr, gt, gt + 0.15 * S("c03/ema", 2, 3, 32, 32) * gate


def test_worked_example() -> None:
    sr, gt = spike()
    assert local_variance(sr.sum(1, keepdim=True))[inside()].numpy() == pytest.approx(9 / 49, rel=1e-6)
    result = artifact_map(sr, gt, gt)
    assert result[inside()].numpy() == pytest.approx(0.118358, abs=1e-6)
    assert result[~inside()].abs().max() == 0
    assert artifact_loss(sr, gt, gt).item() == pytest.approx(0.00146121, abs=1e-8)


def test_nothing_where_the_network_is_right_or_better_than_its_average() -> None:  # (a), (c)
    sr, gt = spike()
    assert artifact_map(gt, gt, sr).abs().max() == 0
    worse = sr * 1.5
    result = artifact_map(sr, gt, worse)
    assert result[0, 0, 4, 4] == 0  # closer than the average here
    assert (result[inside()] > 0).sum() == 48  # ties elsewhere keep their weight


def test_a_tie_keeps_the_weight() -> None:  # (b)
    sr, gt = spike()
    assert torch.equal(artifact_map(sr, gt, sr) > 0, inside())


def test_weight_where_the_average_is_closer() -> None:  # (c)
    sr, gt = spike()
    assert artifact_map(sr, gt, sr * 0.5)[0, 0, 4, 4] > 0


def test_a_constant_error_is_no_artifact() -> None:  # (d)
    gt = U("artifact/gt", 1, 3, 16, 16)
    for shift in (0.1, 0.5, 1.0):
        flat = torch.zeros_like(gt)
        assert artifact_map(flat + shift, flat, flat).max() < 1e-12
        assert artifact_map(gt + shift, gt, gt).max() < 1e-12


def test_equal_images_give_zero_and_a_finite_gradient() -> None:  # (e)
    gt = U("artifact/gt", 2, 3, 16, 16)
    for average in (gt, gt + 0.1):
        sr = gt.clone().requires_grad_()
        loss = artifact_loss(sr, gt, average)
        loss.mean().backward()
        assert torch.equal(loss, torch.zeros(2))
        assert sr.grad is not None
        assert torch.isfinite(sr.grad).all()


def test_box_filters_equal_unfolded_windows() -> None:  # (f)
    residual = (3 * U("artifact/residual", 2, 1, 19, 23)).requires_grad_()
    windows = F.unfold(F.pad(residual, (3, 3, 3, 3), mode="reflect"), 7).view(2, 49, 19, 23)
    expected = windows.var(1, keepdim=True)
    ours = local_variance(residual)
    assert torch.allclose(ours, expected, atol=1e-6)
    weights = S("artifact/weights", 2, 1, 19, 23)
    (slope,) = torch.autograd.grad((expected * weights).sum(), residual)
    (our_slope,) = torch.autograd.grad((ours * weights).sum(), residual)
    assert torch.allclose(our_slope, slope, atol=1e-6)


def test_map_loss_and_gradient_of_the_official_code() -> None:
    sr, gt, average = reference_case()
    sr.requires_grad_()
    weight = artifact_map(sr, gt, average)
    check("c03_ldl/map", weight)
    check("c03_ldl/share_zero", (weight == 0).double().mean())
    loss = artifact_loss(sr, gt, average)
    assert loss.shape == (2,)
    check("c03_ldl/loss", loss.mean())
    (grad,) = torch.autograd.grad(loss.mean(), sr)
    check("c03_ldl/grad_sr", grad)
    (detached,) = torch.autograd.grad(artifact_loss(sr, gt, average, detach_map=True).mean(), sr)
    check("c03_ldl/grad_sr_map_detached", detached)


def test_the_map_carries_most_of_the_gradient() -> None:
    sr, gt, average = reference_case()
    sr.requires_grad_()
    (full,) = torch.autograd.grad(artifact_loss(sr, gt, average).mean(), sr)
    (held,) = torch.autograd.grad(artifact_loss(sr, gt, average, detach_map=True).mean(), sr)
    assert full.norm() > 2 * held.norm()
    assert F.cosine_similarity(full.flatten(), held.flatten(), dim=0) < 0.7


def test_the_average_gets_no_gradient_and_autocast_changes_nothing() -> None:
    sr, gt, average = reference_case()
    average.requires_grad_()
    exact = artifact_loss(sr, gt, average)
    assert not exact.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(artifact_loss(sr, gt, average), exact)


def test_bad_input_is_named() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"sr: expected sides longer than 3 px"):
        artifact_loss(image[..., :3], image[..., :3], image[..., :3])
    with pytest.raises(ValueError, match=r"window_px: expected an odd number"):
        artifact_map(image, image, image, window_px=4)
    with pytest.raises(ValueError, match=r"sr_ema: expected the shape of gt"):
        artifact_loss(image, image, image[..., :4])
