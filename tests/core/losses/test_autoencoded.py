"""L_AESOP: checks 1 to 4 of the specification's section 9.1, the official numbers, cached targets, precision."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignsr.core.frozen import lean
from alignsr.core.losses import CachedTarget, aesop_loss, l1_loss
from alignsr.core.networks.autoencoder import AutoEncoder
from alignsr.core.records import LossTerms
from reference.formula import S, U, load_formula_weights
from reference.losses import check

TINY = {"features": 48, "blocks": 1, "growth": 8, "decoder_options": {"features": 8, "growth": 8, "blocks": 1}}


class Pool(nn.Module):
    """4x4 means, repeated: the simplest auto-encoder that loses texture."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0)


def tiny() -> AutoEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoEncoder(**TINY).requires_grad_(False).eval()  # pyright: ignore[reportArgumentType]


def pair(side: int = 16, batch: int = 2) -> tuple[Tensor, Tensor]:
    gt = U("aesop/gt", batch, 3, side, side)
    return gt + 0.2 * S("aesop/sr", batch, 3, side, side), gt


def fingerprint(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in module.state_dict().values())).hexdigest()


@pytest.mark.parametrize("power", [1, 2])
def test_zero_symmetric_not_negative_and_linear_in_its_weight(power: int) -> None:  # check 1
    sr, gt = pair()
    network = tiny()
    assert torch.equal(aesop_loss(gt, gt, network, power), torch.zeros(2))
    loss = aesop_loss(sr, gt, network, power)
    assert torch.equal(loss, aesop_loss(gt, sr, network, power))
    assert (loss > 0).all()
    assert torch.allclose(LossTerms({"aesop": loss}, {"aesop": 3.0}).total(), 3 * loss)


def test_a_shift_of_both_outputs_changes_nothing() -> None:  # check 1
    sr, gt = pair()
    network = tiny()
    shifted = lambda x: network(x) + 0.375  # noqa: E731
    assert torch.allclose(aesop_loss(sr, gt, shifted), aesop_loss(sr, gt, network), rtol=1e-6)


def test_gradient_reaches_sr_only_and_a_step_leaves_the_autoencoder_alone() -> None:  # check 2
    network = tiny()
    before = fingerprint(network)
    generator = nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
    source, gt = pair()
    gt.requires_grad_()
    sr = generator(source)
    sr.retain_grad()
    aesop_loss(sr, gt, network).mean().backward()
    assert sr.grad is not None
    assert torch.isfinite(sr.grad).all()
    assert sr.grad.abs().max() > 0
    assert gt.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())
    optimizer.step()
    assert fingerprint(network) == before


def test_train_mode_of_an_owner_leaves_the_lean_autoencoder_in_eval() -> None:  # check 2
    owner = nn.ModuleDict({"autoencoder": lean(tiny())})
    owner.train()
    assert owner.training
    assert not any(module.training for module in owner["autoencoder"].modules())


def test_trainable_or_training_autoencoders_are_refused() -> None:
    sr, gt = pair()
    with pytest.raises(ValueError, match="autoencoder: expected frozen parameters, got trainable ones"):
        aesop_loss(sr, gt, tiny().requires_grad_(True))
    with pytest.raises(ValueError, match="autoencoder: expected eval mode, got train mode"):
        aesop_loss(sr, gt, tiny().train())


def test_what_the_autoencoder_removes_is_free() -> None:  # check 3
    gt = U("aesop/gt", 1, 3, 16, 16)
    texture = S("aesop/texture", 1, 3, 16, 16)
    texture = 0.3 * (texture - F.interpolate(F.avg_pool2d(texture, 4), scale_factor=4.0))
    pool = Pool().eval()
    assert aesop_loss(gt + texture, gt, pool).item() < 1e-7
    assert l1_loss(gt + texture, gt).item() > 0.1
    assert aesop_loss(gt + 0.02, gt, pool).item() == pytest.approx(0.02, abs=1e-6)
    assert l1_loss(gt + 0.02, gt).item() == pytest.approx(0.02, abs=1e-6)


def test_measured_after_the_decoder_in_the_size_of_the_images() -> None:  # check 4
    sr, gt = pair()
    network = tiny()
    bottleneck = (network.encode(sr) - network.encode(gt)).abs().flatten(1).mean(1)
    assert network.encode(sr).shape == (2, 3, 4, 4)
    assert not torch.allclose(aesop_loss(sr, gt, network), bottleneck, rtol=0.05)
    with pytest.raises(ValueError, match=r"autoencoder: expected an output of the input's shape .*not its encoder"):
        aesop_loss(sr, gt, network.encode)


@pytest.mark.parametrize("size", [(18, 16), (16, 18), (17, 19)])
def test_sides_that_are_no_multiple_of_four_are_named(size: tuple[int, int]) -> None:  # check 4
    image = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match=f"multiples of 4 .* got {size[0]}x{size[1]}"):
        aesop_loss(image, image, tiny())


@pytest.mark.parametrize("power", [0, 3, 1.5])
def test_other_powers_are_refused(power: int) -> None:
    sr, gt = pair()
    with pytest.raises(ValueError, match=r"power: expected 1 or 2, got"):
        aesop_loss(sr, gt, Pool().eval(), power)


def test_powers_by_hand() -> None:
    gt = torch.zeros(1, 3, 8, 8)
    sr = torch.full((1, 3, 8, 8), 0.5)
    sr[..., :4] = -0.25
    assert aesop_loss(sr, gt, Pool().eval()).item() == pytest.approx(0.375)
    assert aesop_loss(sr, gt, Pool().eval(), 2).item() == pytest.approx((0.25 + 0.0625) / 2)


@pytest.mark.parametrize("twin", [False, True])
def test_value_and_gradient_of_the_official_code(twin: bool) -> None:  # golden c01_ae
    network = AutoEncoder(decoder_options={"blocks": 2})
    load_formula_weights(network)
    network.requires_grad_(False).eval()
    gt = U("c01/hr", 1, 3, 32, 32)
    sr = (gt + 0.2 * S("c01/sr", 1, 3, 32, 32)).requires_grad_()
    loss = aesop_loss(sr, gt, lean(network) if twin else network)
    loss.mean().backward()
    check("c01_ae/loss", loss)
    check("c01_ae/grad_sr", sr.grad)


def test_values_outside_the_unit_range_are_not_clamped() -> None:
    gt = torch.ones(1, 3, 8, 8)
    assert aesop_loss(gt + 0.5, gt, Pool().eval()).item() == pytest.approx(0.5)


def test_a_known_target_is_used_and_its_shape_is_checked() -> None:
    sr, gt = pair()
    network = tiny()
    target = network(gt)
    calls: list[tuple[int, ...]] = []
    counting = lambda x: (calls.append(tuple(x.shape)), network(x))[1]  # noqa: E731
    assert torch.equal(aesop_loss(sr, gt, counting, target=target), aesop_loss(sr, gt, network))
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"target: expected the shape of gt"):
        aesop_loss(sr, gt, network, target=target[:1])


@pytest.mark.parametrize("keyed", [False, True])
def test_cached_targets_are_the_computed_ones(keyed: bool) -> None:
    _, gt = pair()
    network = tiny()
    seen: list[int] = []
    cache = CachedTarget(lambda x: (seen.append(len(x)), network(x))[1], limit=3)
    names = [("a.png", 0, 0, 0), ("a.png", 4, 8, 3)] if keyed else None
    first = cache(gt, names)
    assert torch.allclose(first, network(gt), atol=1e-7)
    assert torch.equal(cache(gt, names), first)
    assert torch.equal(cache(gt.flip(0), names and names[::-1]), first.flip(0))
    assert seen == [2]
    assert (cache.hits, cache.misses) == (4, 2)
    assert not first.requires_grad


def test_cache_computes_only_what_is_new_and_forgets_the_least_recently_used() -> None:
    images = U("aesop/many", 4, 3, 8, 8)
    seen: list[int] = []
    cache = CachedTarget(lambda x: (seen.append(len(x)), 2 * x)[1], limit=2)
    cache(images[:2])
    assert torch.equal(cache(images[[1, 2]]), 2 * images[[1, 2]])  # 0 goes
    assert torch.equal(cache(images[[0, 0]]), 2 * images[[0, 0]])
    assert seen == [2, 1, 2]
    assert torch.equal(cache(images), 2 * images)  # more than fit at once


def test_cache_notices_keys_that_cannot_be_right() -> None:
    cache = CachedTarget(lambda x: x, limit=2)
    cache(torch.zeros(1, 3, 8, 8), ["a"])
    with pytest.raises(ValueError, match=r"keys: expected 'a' to stand for one crop"):
        cache(torch.zeros(1, 3, 4, 4), ["a"])
    with pytest.raises(ValueError, match=r"keys: expected one per sample \(2\), got 1"):
        cache(torch.zeros(2, 3, 8, 8), ["a"])
    with pytest.raises(ValueError, match=r"limit: expected"):
        CachedTarget(lambda x: x, limit=0)


def test_precision_is_the_losss_own_affair() -> None:
    sr, gt = pair(side=32)
    network = tiny()
    load_formula_weights(network)  # an untrained one's output is so small that rounding is all one sees of it
    seen: list[torch.dtype] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = network(x)
            seen.append(out.dtype)
            return out

    exact = aesop_loss(sr, gt, Spy().eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(aesop_loss(sr, gt, Spy().eval()), exact)  # fp32 inside, whatever is active around it
    half = aesop_loss(sr, gt, Spy().eval(), dtype=torch.bfloat16)
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 2
    assert half.dtype == torch.float32
    assert torch.allclose(half, exact, rtol=0.05)
