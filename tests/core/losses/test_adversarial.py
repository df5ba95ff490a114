"""Adversarial losses: check 8 of the specification's section 9.1, the official numbers (golden c04_gan), several processes."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignsr.core.losses import (
    mean_over_processes,
    plain_critic_loss,
    plain_generator_loss,
    relativistic_critic_loss,
    relativistic_generator_loss,
)
from reference.formula import S
from reference.losses import check

LN2 = math.log(2)


def logits(kind: str, name: str, *shape: int) -> Tensor:
    return 3 * S(f"c04/{kind}/{name}", *shape) + (0.5 if name == "real" else -0.5)


def test_all_logits_zero() -> None:
    zero = torch.zeros(2, 1)
    assert sum(relativistic_critic_loss(zero, zero)).mean().item() == pytest.approx(0.693147, abs=1e-6)
    assert 0.005 * relativistic_generator_loss(zero, zero).mean().item() == pytest.approx(0.00346574, abs=1e-8)
    assert sum(plain_critic_loss(zero, zero)).mean().item() == pytest.approx(2 * LN2)
    assert 0.1 * plain_generator_loss(zero).mean().item() == pytest.approx(0.0693147, abs=1e-7)


def test_worked_example() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [-2.0]])
    assert sum(relativistic_critic_loss(fake, real)).mean().item() == pytest.approx(0.180925, abs=1e-6)
    assert 0.005 * relativistic_generator_loss(fake, real).mean().item() == pytest.approx(0.0109046, abs=1e-7)


@pytest.mark.parametrize(("kind", "shape", "weight"), [("relativistic", (4, 1), 0.005), ("plain", (2, 1, 8, 8), 0.1)])
def test_official_numbers(kind: str, shape: tuple[int, ...], weight: float) -> None:
    real, fake = (logits(kind, name, *shape).requires_grad_() for name in ("real", "fake"))
    critic = relativistic_critic_loss if kind == "relativistic" else plain_critic_loss
    loss = weight * (relativistic_generator_loss(fake, real) if kind == "relativistic" else plain_generator_loss(fake)).mean()
    check(f"c04_gan/{kind}/l_g_gan", loss)
    (grad,) = torch.autograd.grad(loss, fake)
    check(f"c04_gan/{kind}/grad_g_fake", grad)
    terms = critic(fake, real)
    check(f"c04_gan/{kind}/l_d_real", terms.real.mean())
    check(f"c04_gan/{kind}/l_d_fake", terms.fake.mean())
    (grad_real,) = torch.autograd.grad(terms.real.mean(), real)
    (grad_fake,) = torch.autograd.grad(terms.fake.mean(), fake)
    check(f"c04_gan/{kind}/grad_d_real", grad_real)
    check(f"c04_gan/{kind}/grad_d_fake", grad_fake)


@pytest.mark.parametrize("critic", [relativistic_critic_loss, plain_critic_loss])
def test_one_backward_pass_on_the_sum_equals_one_on_each_half(critic) -> None:  # check 17
    real, fake = (logits("relativistic", name, 4, 1).requires_grad_() for name in ("real", "fake"))
    sum(critic(fake, real)).mean().backward()
    together = fake.grad.clone(), real.grad.clone()
    fake.grad = real.grad = None
    terms = critic(fake, real)
    terms.real.mean().backward()
    terms.fake.mean().backward()
    assert torch.allclose(fake.grad, together[0])
    assert torch.allclose(real.grad, together[1])


def test_generators_step_leaves_the_discriminator_without_gradients() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).requires_grad_(False)
    sr, gt = torch.rand(2, 3, 2, 2, requires_grad=True), torch.rand(2, 3, 2, 2)
    relativistic_generator_loss(critic(sr), critic(gt)).mean().backward()
    assert sr.grad is not None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_generator_moves_its_logits_up_and_sends_nothing_to_the_real_ones() -> None:
    real, fake = (logits("relativistic", name, 4, 1).requires_grad_() for name in ("real", "fake"))
    relativistic_generator_loss(fake, real).mean().backward()
    assert (fake.grad < 0).all()
    assert real.grad is None


def test_extreme_logits_stay_finite() -> None:
    far = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = relativistic_generator_loss(far, -far.detach()).mean() + plain_generator_loss(far).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()


def test_maps_are_averaged_per_sample() -> None:
    maps = torch.zeros(2, 1, 4, 4)
    maps[1] = 3.0
    assert torch.allclose(plain_generator_loss(maps), torch.tensor([LN2, math.log1p(math.exp(-3.0))]))


def test_different_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="fake: expected logits of as many samples as real"):
        relativistic_generator_loss(torch.zeros(2, 1), torch.zeros(3, 1))


def _two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    fake, real = (logits("relativistic", name, 4, 1)[2 * rank : 2 * rank + 2].requires_grad_() for name in ("fake", "real"))
    loss = relativistic_generator_loss(fake, real, mean_over_processes)
    (grad,) = torch.autograd.grad(loss.mean(), fake)
    terms = relativistic_critic_loss(fake, real, mean_over_processes)
    grads = torch.autograd.grad(sum(terms).mean(), [fake, real])
    torch.save({"loss": loss.detach(), "grad": grad, "critic": grads}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file store")
def test_two_processes_with_the_global_mean_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    """About ten seconds: each process imports torch."""
    torch.multiprocessing.start_processes(_two_processes, (str(tmp_path),), nprocs=2, start_method="spawn")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    fake, real = (logits("relativistic", name, 4, 1).requires_grad_() for name in ("fake", "real"))
    loss = relativistic_generator_loss(fake, real, mean_over_processes)
    assert torch.allclose(torch.cat([part["loss"] for part in parts]), loss)
    # gradients are averaged over processes, so each process's share counts half
    (grad,) = torch.autograd.grad(loss.mean(), fake)
    assert torch.allclose(torch.cat([part["grad"] for part in parts]) / 2, grad, atol=1e-8)
    grads = torch.autograd.grad(sum(relativistic_critic_loss(fake, real)).mean(), [fake, real])
    for index, expected in enumerate(grads):
        assert torch.allclose(torch.cat([part["critic"][index] for part in parts]) / 2, expected, atol=1e-8)
