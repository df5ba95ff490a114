"""The same questions for every entry of LOSSES."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignsr.core.losses import LOSSES
from reference.formula import S, U


class Features(nn.Module):
    """Two smooth layers in place of VGG19: signed outputs, quick enough for finite differences."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, image: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        first = self.first(image)
        return {"first": first, "second": self.second(torch.tanh(first))}


class Stages(nn.Module):
    """Two stages of unit vectors with channel weights, as LPIPS has them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = Features()
        self.linear = nn.ParameterList([torch.tensor([0.5, 1.0, 0.2, 0.1]), torch.tensor([0.3, 0.7, 0.4, 0.9])])

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.normalize(level, dim=1) for level in self.maps(image, ("first", "second")).values()]


class Coder(nn.Module):
    """A smooth auto-encoder: 4x4 means, a curve, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(torch.tanh(2 * F.avg_pool2d(x, 4)), scale_factor=4.0, mode="nearest")


def logits(images: Tensor) -> Tensor:
    """A stand-in discriminator that calls bright images real."""
    return 5 * images.mean((1, 2, 3), keepdim=True).flatten(1) - 2


# How each entry is called on (sr, gt); a new entry without a line here fails the first test below.
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": LOSSES["l1"],
    "mse": LOSSES["mse"],
    "psnr": LOSSES["psnr"],
    "psnr_y": LOSSES["psnr_y"],
    "low_pass": LOSSES["low_pass"],
    "aesop": partial(LOSSES["aesop"], autoencoder=Coder().eval()),
    "artifact": lambda sr, gt: LOSSES["artifact"](sr, gt, gt + 0.02),
    "perceptual": lambda sr, gt: LOSSES["perceptual"](
        sr,
        gt,
        Features().to(gt.dtype).requires_grad_(False).eval(),
        {"first": 0.5, "second": 1.0},
    ),
    "lpips": lambda sr, gt: LOSSES["lpips"](
        sr, gt, Stages().to(torch.promote_types(gt.dtype, torch.float32)).requires_grad_(False).eval()
    ),
    "relativistic": lambda sr, gt: LOSSES["relativistic"](logits(sr), logits(gt)),
    "plain": lambda sr, gt: LOSSES["plain"](logits(sr)),
    "ragan": lambda sr, gt: LOSSES["ragan"]([logits(sr)], [logits(gt)]),
    "fdl": lambda sr, gt: LOSSES["fdl"](sr, gt, lambda image: [image], [S("losses/fdl", 4, 3, 3, 3)]),
    "grid": partial(LOSSES["grid"], period=4),
    "preference": lambda sr, gt: LOSSES["preference"](energy := (sr - gt).square().mean((1, 2, 3)), 0 * energy, logit_scale=2.0),
}
ADVERSARIAL = {"relativistic", "plain", "ragan", "preference"}  # logits decide
LEAST = {"psnr": -80.0, "psnr_y": -80.0} | dict.fromkeys(set(CALLS) - ADVERSARIAL - {"psnr", "psnr_y"}, 0.0)
OVER_THE_BATCH = {"relativistic", "ragan"}  # a sample's value depends on the others'

entries = pytest.mark.parametrize("name", sorted(LOSSES))


def pair(dtype: torch.dtype = torch.float32, batch: int = 3, side: int = 16) -> tuple[Tensor, Tensor]:
    gt = U("losses/gt", batch, 3, side, side, dtype=dtype) * 0.8 + 0.1
    return gt + 0.1 * S("losses/sr", batch, 3, side, side, dtype=dtype), gt


def call(name: str, sr: Tensor, gt: Tensor) -> Tensor:
    assert name in CALLS, f"say in CALLS how {name} is called, so that it is tested"
    return CALLS[name](sr, gt)


@entries
def test_one_finite_float32_value_per_sample(name: str) -> None:
    values = call(name, *pair())
    assert values.shape == (3,)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()


@entries
def test_half_precision_images_give_float32_values(name: str) -> None:
    sr, gt = pair()
    values = call(name, sr.half().float(), gt.half().float())
    if name in ("perceptual", *ADVERSARIAL):  # networks choose their precision; the logits are widened
        assert LOSSES["plain"](torch.zeros(2, 1, dtype=torch.float16)).dtype == torch.float32
        return
    half = call(name, sr.half(), gt.half())
    assert half.dtype == torch.float32
    assert torch.allclose(half, values, rtol=2e-3, atol=1e-6)


@entries
def test_equal_images_cost_nothing_and_others_do(name: str) -> None:
    sr, gt = pair()
    if name in ADVERSARIAL:
        zeros = torch.zeros(3, 1)
        arguments = {"relativistic": (zeros, zeros), "plain": (zeros,), "ragan": ([zeros], [zeros])}.get(name)
        value = LOSSES[name](*arguments) if arguments else call(name, gt, gt)
        assert torch.allclose(value, torch.full((3,), math.log(2)))
        return
    assert torch.allclose(call(name, gt, gt), torch.full((3,), LEAST[name]), atol=1e-9)
    assert (call(name, sr + 0.05, gt) > LEAST[name] + 1e-9).all()


@entries
def test_a_sample_does_not_see_its_batch(name: str) -> None:
    sr, gt = pair()
    alone = torch.cat([call(name, sr[i : i + 1], gt[i : i + 1]) for i in range(3)])
    together = call(name, sr, gt)
    if name in OVER_THE_BATCH:
        assert not torch.allclose(alone, together)
    else:
        assert torch.allclose(alone, together, rtol=1e-5)


@entries
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    sr, gt = pair(torch.float64, batch=2, side=8)
    sr.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: call(name, x, gt), (sr,), eps=1e-7, atol=1e-5, rtol=1e-4)


@entries
def test_ground_truth_gets_no_gradient_from_frozen_networks(name: str) -> None:
    sr, gt = pair()
    sr.requires_grad_()
    gt.requires_grad_()
    call(name, sr, gt).mean().backward()
    assert sr.grad is not None
    assert torch.isfinite(sr.grad).all()
    assert sr.grad.abs().max() > 0
    if name in ("aesop", "perceptual"):
        assert gt.grad is None


@entries
def test_a_step_against_the_gradient_improves(name: str) -> None:
    sr, gt = pair()
    sr.requires_grad_()
    before = call(name, sr, gt)
    (grad,) = torch.autograd.grad(before.sum(), sr)
    after = call(name, sr - 1e-3 * grad / grad.abs().amax((1, 2, 3), keepdim=True), gt)
    assert (after < before).all()


@pytest.mark.parametrize("name", ["low_pass", "aesop", "artifact", "perceptual"])
def test_different_shapes_and_integers_are_named(name: str) -> None:
    sr, gt = pair()
    with pytest.raises(ValueError, match=r"sr: expected the shape of gt"):
        call(name, sr[..., :12], gt)
    with pytest.raises(TypeError, match=r"sr: expected .*divide 8-bit images by 255"):
        call(name, (sr * 255).to(torch.uint8), gt)


@pytest.mark.parametrize("name", ["aesop", "artifact", "perceptual"])
def test_grey_and_channels_last_images_are_refused(name: str) -> None:
    sr, gt = pair()
    with pytest.raises(ValueError, match=r"sr: expected \[B, 3, H, W\] float, got \(3, 1, 16, 16\).*RGB"):
        call(name, sr[:, :1], gt[:, :1])
    with pytest.raises(ValueError, match="channels-last"):
        call(name, sr.movedim(1, -1), gt.movedim(1, -1))
