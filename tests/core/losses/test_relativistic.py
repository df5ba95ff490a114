"""StrSR's adversarial losses: the official numbers (golden c06) and checks 10 to 12 and 14 of strsr.md section 7."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignsr.core.losses.relativistic import approximate_r1, r1_noise, ragan_critic_loss, ragan_generator_loss
from paths import REFERENCE
from reference.formula import S, U

GOLDEN = json.loads((REFERENCE / "relativistic.json").read_text(encoding="utf-8"))
SIDES = (8, 4, 2, 1)
LN2 = math.log(2)


def levels(batch: int) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(batch, n, n) if n > 1 else (batch, 1) for n in SIDES]
    real = [2 * S(f"c06/b{batch}/real{i}", *shape) + 0.3 for i, shape in enumerate(shapes)]
    fake = [2 * S(f"c06/b{batch}/fake{i}", *shape) - 0.3 for i, shape in enumerate(shapes)]
    return [x.requires_grad_() for x in fake], [x.requires_grad_() for x in real]


def agrees(key: str, ours: Tensor) -> None:
    case = GOLDEN[key]
    gap = (ours.detach().flatten().double() - torch.tensor(case["values"], dtype=torch.float64)).abs()
    assert float(gap.max()) <= case["atol"]
    assert float(gap.mean()) <= case.get("mean_atol", case["atol"])


@pytest.mark.parametrize("batch", [1, 3])
def test_official_numbers(batch: int) -> None:
    fake, real = levels(batch)
    key = f"ragan_b{batch}"
    for n in range(4):
        agrees(f"{key}/G_level{n}", ragan_generator_loss(fake[n : n + 1], real[n : n + 1], reference="average").mean())
        agrees(f"{key}/D_level{n}", ragan_critic_loss(fake[n : n + 1], real[n : n + 1], reference="average").mean())
    generator, critic = (loss(fake, real, reference="average").mean() for loss in (ragan_generator_loss, ragan_critic_loss))
    agrees(f"{key}/G_sum", generator)
    agrees(f"{key}/D_sum", critic)
    agrees(f"{key}/G_level1_grad_fake", torch.autograd.grad(generator, fake[1])[0])
    grad_real, grad_fake = torch.autograd.grad(critic, (real[1], fake[1]))
    agrees(f"{key}/D_level1_grad_real", grad_real)
    agrees(f"{key}/D_level1_grad_fake", grad_fake)


def test_paired_is_the_released_code_at_batch_1() -> None:
    fake, real = levels(1)
    for loss in (ragan_generator_loss, ragan_critic_loss):
        assert torch.equal(loss(fake, real, reference="paired"), loss(fake, real, reference="average"))


@pytest.mark.parametrize("reference", ["paired", "average", "global"])
class TestChecks:
    def test_10_equal_logits(self, reference) -> None:
        equal = [torch.full((2, n, n), 0.7) for n in (4, 3, 2, 1)]
        for loss in (ragan_generator_loss, ragan_critic_loss):
            assert loss(equal[:1], equal[:1], reference=reference).tolist() == pytest.approx([0.693147] * 2, abs=1e-6)
            assert loss(equal, equal, reference=reference).tolist() == pytest.approx([2.772589] * 2, abs=1e-5)
            paper = loss(equal[:1], equal[:1], reference=reference, factor=1.0)
            assert paper.tolist() == pytest.approx([1.386294] * 2, abs=1e-6)

    def test_11_a_constant_changes_nothing_and_the_players_mirror_each_other(self, reference) -> None:
        fake, real = levels(3)
        up = [x + 5.0 for x in fake], [x + 5.0 for x in real]
        for loss in (ragan_generator_loss, ragan_critic_loss):
            assert torch.allclose(loss(*up, reference=reference), loss(fake, real, reference=reference), atol=1e-5)
        assert torch.equal(
            ragan_critic_loss(fake, real, reference=reference), ragan_generator_loss(real, fake, reference=reference)
        )

    def test_12_a_gap_of_two(self, reference) -> None:
        real, fake = [torch.full((1, 3, 3), 1.5)], [torch.full((1, 3, 3), -0.5)]
        assert ragan_critic_loss(fake, real, reference=reference).item() == pytest.approx(0.126928, abs=1e-6)
        assert ragan_generator_loss(fake, real, reference=reference).item() == pytest.approx(2.126928, abs=1e-6)

    def test_gradients(self, reference) -> None:
        fake, real = ([x.detach().double().requires_grad_() for x in side[2:]] for side in levels(3))
        assert torch.autograd.gradcheck(lambda *f: ragan_generator_loss(f, real, reference=reference), fake)
        assert torch.autograd.gradcheck(lambda *x: ragan_critic_loss(x[:2], x[2:], reference=reference), (*fake, *real))

    def test_the_generator_leaves_the_real_logits_alone_and_a_step_helps_it(self, reference) -> None:
        fake, real = levels(3)
        before = ragan_generator_loss(fake, real, reference=reference)
        before.sum().backward()
        assert all(x.grad is None for x in real)
        after = ragan_generator_loss([x.detach() - x.grad for x in fake], real, reference=reference)
        assert after.sum() < before.sum()


def test_references_differ_on_a_batch() -> None:
    fake, real = levels(3)
    values = [ragan_generator_loss(fake, real, reference=r).mean().item() for r in ("paired", "average", "global")]
    assert len({round(value, 4) for value in values}) == 3


def test_the_mean_of_the_global_reference_can_span_processes() -> None:
    """Two halves that know the whole mean give the values of the whole batch."""
    fake, real = (x[:1] for x in levels(3))
    whole = ragan_critic_loss(fake, real, reference="global")
    means = iter([fake[0].mean(), real[0].mean()] * 3)
    alone = [
        ragan_critic_loss([fake[0][n : n + 1]], [real[0][n : n + 1]], reference="global", mean=lambda _: next(means))
        for n in range(3)
    ]
    assert torch.allclose(torch.cat(alone), whole)


def test_half_precision_logits_are_widened() -> None:
    fake, real = ([x.detach().bfloat16() for x in side] for side in levels(3))
    assert ragan_critic_loss(fake, real).dtype == torch.float32


class TestR1:
    """Check 14; images in [0, 1], critics that see 2 x - 1 as the released one does."""

    gt = U("c06/r1/hr", 3, 3, 32, 32)

    def critic(self, image: Tensor) -> list[Tensor]:
        signed = 2 * image - 1
        kernels = [S("c06/r1/w0", 1, 3, 4, 4), S("c06/r1/w1", 1, 3, 8, 8), S("c06/r1/w2", 1, 3, 32, 32)]
        return [F.conv2d(signed, kernel, stride=stride) for kernel, stride in zip(kernels, (4, 8, 1), strict=True)]

    def test_official_numbers(self) -> None:
        noise = 0.0025 * U("c06/r1/noise", 3, 3, 32, 32)  # 0.005 in [-1, 1]
        penalty = approximate_r1(self.critic, self.gt, noise)
        agrees("r1/unweighted", penalty.mean())
        agrees("r1/weighted", 10 * penalty.mean())
        fake, real = self.critic(U("c06/r1/pred", 3, 3, 32, 32)), self.critic(self.gt)
        agrees("r1/loss_D_total", (ragan_critic_loss(fake, real, reference="average") + 10 * penalty).mean())
        assert torch.equal(approximate_r1(self.critic, self.gt, noise, clean=real), penalty)

    def test_nothing_for_a_constant_critic_and_without_noise(self) -> None:
        noise = r1_noise(self.gt, generator=torch.Generator().manual_seed(0))
        assert approximate_r1(lambda x: [x.new_ones(len(x), 2, 2)], self.gt, noise).tolist() == [0, 0, 0]
        silent = r1_noise(self.gt, sigma=0.0, generator=torch.Generator().manual_seed(0))
        assert approximate_r1(self.critic, self.gt, silent).tolist() == [0, 0, 0]

    @pytest.mark.parametrize("kind", ["gaussian", "uniform"])
    def test_of_a_linear_critic_is_what_theory_says(self, kind) -> None:
        weight, gt = S("r1/linear", 3 * 4 * 4) + 0.1, torch.zeros(200_000, 3, 4, 4)
        noise = r1_noise(gt, kind=kind, generator=torch.Generator().manual_seed(0))
        value = approximate_r1(lambda x: [(2 * x - 1).flatten(1) @ weight[:, None]], gt, noise).mean()
        square, total = weight.square().sum(), weight.sum()
        wanted = 0.005**2 * (square if kind == "gaussian" else square / 12 + total**2 / 4)
        assert value.item() == pytest.approx(wanted.item(), rel=0.01)  # 200,000 draws of a squared normal: deviation 0.3 %

    def test_is_float32_under_autocast_and_reaches_the_critic(self) -> None:
        layer = torch.nn.Conv2d(3, 1, 4, stride=4)
        noise = r1_noise(self.gt, generator=torch.Generator().manual_seed(0))
        exact = approximate_r1(lambda x: [layer(x)], self.gt, noise)
        with torch.autocast("cpu", torch.bfloat16):
            cast = approximate_r1(lambda x: [layer(x)], self.gt, noise)
        assert torch.equal(cast, exact)
        (gradient,) = torch.autograd.grad(exact.sum(), layer.weight)
        assert gradient.abs().max() > 0

    def test_wrong_arguments_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"kind: expected gaussian or uniform, got 'gausian'; did you mean 'gaussian'"):
            r1_noise(self.gt, kind="gausian", generator=torch.Generator())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"reference: expected .* did you mean 'paired'"):
            ragan_critic_loss([self.gt], [self.gt], reference="pared")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected as many levels in both, got 1 and 2"):
            ragan_critic_loss([self.gt, self.gt], [self.gt])
        with pytest.raises(ValueError, match="clean: expected float32 logits"):
            approximate_r1(self.critic, self.gt, self.gt, clean=[self.gt.half()])
