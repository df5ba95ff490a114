"""Several adapters on one network: switching, gradients, checkpointing, one file. asasr.md 3.1, checks 9 and 19."""

import copy
from typing import Any

import pytest
import torch
from latent_helpers import seed
from torch import Tensor, nn

from alignsr.core.adapters import AdapterStack, concatenate
from alignsr.core.backbones import MULTI_STEP_KINDS
from alignsr.core.backbones.latent import MultiStepModel, tiny_multi_step
from alignsr.core.coupled import coupled_pair, foreseen
from alignsr.core.lora import LORA_TARGETS, Adapter, expected_state
from alignsr.core.lora_files import read_adapter, save_adapter
from alignsr.core.records import Conditioning
from alignsr.core.weights import WeightsError

KINDS = list(MULTI_STEP_KINDS)
RANK = 3


def network_of(backbone: MultiStepModel) -> Any:
    return next(iter(backbone.modules()))[1]


def random_adapter(kind: str, number: int, rank: int = RANK, **info: Any) -> Adapter:
    expected = expected_state(network_of(tiny_multi_step(kind)), LORA_TARGETS[kind], rank)
    state = {
        name: torch.randn(like.shape, generator=seed(1000 * number + i)) * 0.1 for i, (name, like) in enumerate(expected.items())
    }
    facts = {"backbone": kind, "rank": rank, "alpha": 2.0 * rank, "targets": list(LORA_TARGETS[kind]), **info}
    return Adapter(state, facts, source=f"adapter {number}")


def stacked(kind: str, **facts: Any) -> tuple[MultiStepModel, AdapterStack]:
    """A frozen `sft`, a fresh `policy`, a loaded `adv`."""
    backbone = tiny_multi_step(kind, **facts)
    stack = AdapterStack(network_of(backbone))
    stack.load("sft", random_adapter(kind, 1))
    stack.add("policy", LORA_TARGETS[kind], RANK, generator=seed(3))
    stack.load("adv", random_adapter(kind, 2))
    return backbone, stack


def inputs(backbone: MultiStepModel, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Conditioning]:
    z = torch.randn(batch, 4, 4, 8, generator=seed(4))
    time = torch.full((batch,), 0.6) if backbone.process.prediction == "velocity" else torch.full((batch,), 600)
    return z, time, z.flip(3), Conditioning(torch.randn(1, 7, 32, generator=seed(5)))


def answer(backbone: MultiStepModel, *active: str, stack: AdapterStack) -> Tensor:
    with stack.using(*active), torch.no_grad():
        return backbone.predict(*inputs(backbone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_policy_is_the_reference_bit_for_bit(kind: str) -> None:
    """Second half of check 9."""
    backbone, stack = stacked(kind)
    assert torch.equal(answer(backbone, "sft", "policy", stack=stack), answer(backbone, "sft", stack=stack))
    assert not torch.equal(answer(backbone, "sft", stack=stack), answer(backbone, stack=stack))
    assert not torch.equal(answer(backbone, "sft", "adv", stack=stack), answer(backbone, "sft", stack=stack))
    assert torch.equal(answer(backbone, stack=stack), answer(tiny_multi_step(kind), stack=AdapterStack(nn.Linear(1, 1))))


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_trained_has_gradients_after_every_switch(kind: str) -> None:
    """First part of check 19: PEFT alone would turn the frozen adapter's gradients on."""
    _, stack = stacked(kind)
    wanted = {id(parameter) for parameter in stack.train("policy")}
    assert len(wanted) == len(stack.parameters("policy")) > 0
    for active in (("sft",), ("sft", "policy"), ("sft", "adv"), (), ("policy",), ("adv", "sft", "policy")):
        stack.use(*active)
        assert stack.active == active
        assert {id(p) for p in stack.network.parameters() if p.requires_grad} == wanted
    with stack.using("sft"):
        assert stack.active == ("sft",)
    assert stack.active == ("adv", "sft", "policy")


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_adapters_stay_as_they_are_over_ten_steps(kind: str) -> None:
    """Second part of check 19."""
    backbone, stack = stacked(kind)
    trained = stack.train("policy")
    before = {name: [p.clone() for p in stack.parameters(name)] for name in ("sft", "adv", "policy")}
    base = {key: p.clone() for key, p in stack.network.named_parameters() if ".lora_" not in key}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    z, time, z_lq, told = inputs(backbone)
    for _ in range(10):
        with torch.no_grad(), stack.using("sft", "adv"):
            negative = foreseen(backbone, z, z_lq, time, z_lq, told)
        pair = coupled_pair(backbone.process, z, negative, z_lq, time)
        with stack.using("sft", "policy"):
            error = backbone.predict(pair.states, pair.times, torch.cat((z_lq, z_lq)), told) - pair.targets
            error.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("sft", "adv"):
        assert all(torch.equal(p, old) and p.grad is None for p, old in zip(stack.parameters(name), before[name], strict=True))
    assert all(torch.equal(p, base[key]) for key, p in stack.network.named_parameters() if key in base)
    assert any(not torch.equal(p, old) for p, old in zip(trained, before["policy"], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradient_is_the_plain_one(kind: str) -> None:
    """Last part of check 19, in the order adversary, reference, policy, backward."""
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        backbone, stack = stacked(kind)
        trained = stack.train("policy")
        if checkpointed:
            stack.network.enable_gradient_checkpointing()
            stack.network.train()
        z, time, z_lq, told = inputs(backbone)
        with torch.no_grad():
            for active in (("sft", "adv"), ("sft",)):
                with stack.using(*active):
                    backbone.predict(z, time, z_lq, told)
        stack.use("sft", "policy")
        backbone.predict(z, time, z_lq, told).square().mean().backward()
        gradients.append([p.grad.clone() for p in trained if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert any(bool(g.any()) for g in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_held_once(kind: str) -> None:
    """By data pointers: three models, one set of base weights."""
    backbone, stack = stacked(kind)
    base = {p.data_ptr() for p in network_of(tiny_multi_step(kind)).parameters()}
    own = [p for key, p in stack.network.named_parameters() if ".lora_" not in key]
    assert len(own) == len({p.data_ptr() for p in own}) == len(base)
    total = sum(p.numel() for _, module in backbone.modules() for p in module.parameters())
    adapters = sum(p.numel() for name in stack.names for p in stack.parameters(name))
    assert total - adapters == sum(p.numel() for _, module in tiny_multi_step(kind).modules() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_two_adapters_as_one_act_as_both_and_survive_the_disk(kind: str, tmp_path) -> None:
    """Third part of check 19: merged equals stacked; check that the sum of the matrices would not."""
    backbone, stack = stacked(kind)
    stack.load("second", random_adapter(kind, 7, rank=2, alpha=5.0))
    both = answer(backbone, "sft", "second", stack=stack)
    joined = concatenate((random_adapter(kind, 1), 1.0), (random_adapter(kind, 7, rank=2, alpha=5.0), 1.0))
    assert joined.rank == RANK + 2
    read = read_adapter(save_adapter(tmp_path / "joined.safetensors", joined))
    merged = tiny_multi_step(kind)
    read.merge_into(network_of(merged))
    beside = tiny_multi_step(kind)
    one = AdapterStack(network_of(beside))
    one.load("joined", read)
    torch.testing.assert_close(answer(merged, stack=AdapterStack(nn.Linear(1, 1))), both, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer(beside, "joined", stack=one), both, rtol=1e-5, atol=1e-6)


def test_concatenation_is_exact_where_adding_matrices_is_not() -> None:
    """By hand: B_1 A_1 = 6, B_2 A_2 = 20 at strength 0.5 is 10; the sums' product would be (2 + 4)(3 + 5) = 48."""
    facts = {"backbone": "flux1", "rank": 1, "alpha": 1.0, "targets": ["layer"]}
    first = Adapter({"layer.lora_A.weight": torch.tensor([[3.0]]), "layer.lora_B.weight": torch.tensor([[2.0]])}, facts)
    second = Adapter({"layer.lora_A.weight": torch.tensor([[5.0]]), "layer.lora_B.weight": torch.tensor([[4.0]])}, facts)
    joined = concatenate((first, 1.0), (second, 0.5))
    product = joined.state["layer.lora_B.weight"] @ joined.state["layer.lora_A.weight"] * joined.scale
    assert product.item() == 16.0


def test_layers_of_one_adapter_only_are_kept() -> None:
    facts = {"backbone": "flux1", "rank": 1, "alpha": 2.0, "targets": ["one"]}
    first = Adapter({"one.lora_A.weight": torch.ones(1, 2), "one.lora_B.weight": torch.ones(3, 1)}, facts)
    second = Adapter(
        {"two.lora_A.weight": torch.ones(2, 4), "two.lora_B.weight": torch.ones(5, 2)},
        {**facts, "rank": 2, "targets": ["two"]},
    )
    joined = concatenate((first, 1.0), (second, 1.0))
    for layer, wanted in (("one", 2.0), ("two", 2.0)):
        product = joined.state[f"{layer}.lora_B.weight"] @ joined.state[f"{layer}.lora_A.weight"] * joined.scale
        assert torch.equal(product, torch.full_like(product, wanted))


def test_what_cannot_be_joined_is_named() -> None:
    one = random_adapter("flux1", 1)
    with pytest.raises(ValueError, match="expected one backbone, got 'flux1' of adapter 1 and 'stable_diffusion' of adapter 2"):
        concatenate((one, 1.0), (random_adapter("stable_diffusion", 2), 1.0))
    with pytest.raises(ValueError, match="expected one lora_scope"):
        concatenate((one, 1.0), (random_adapter("flux1", 2, lora_scope="condition_only"), 1.0))
    with pytest.raises(ValueError, match="expected at least one, got none"):
        concatenate()
    whole = Adapter(one.state, one.info, source="whole", full={"conv_in.weight": torch.ones(1)})
    other = Adapter(one.state, one.info, source="other", full={"conv_in.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"other: expected the conv_in.weight of the others"):
        concatenate((whole, 1.0), (other, 1.0))
    with pytest.raises(WeightsError, match="expected a strength of 1"):
        concatenate((whole, 0.5))


def test_condition_only_cannot_be_folded() -> None:
    """Last gotcha of 3.1: noisy tokens see the base alone, so merging changes the answer, and joined adapters do not."""
    scope = {"lora_scope": "condition_only"}
    adapters = [random_adapter("flux1", n, **scope) for n in (1, 2)]
    backbone = tiny_multi_step("flux1", **scope)
    stack = AdapterStack(network_of(backbone))
    for name, one in zip(("sft", "policy"), adapters, strict=True):
        stack.load(name, one)
    both = answer(backbone, "sft", "policy", stack=stack)
    joined = concatenate(*((one, 1.0) for one in adapters))
    beside = tiny_multi_step("flux1", **scope)
    joined.add_beside(network_of(beside))
    torch.testing.assert_close(answer(beside, stack=AdapterStack(nn.Linear(1, 1))), both, rtol=1e-5, atol=1e-6)
    folded = tiny_multi_step("flux1", **scope)
    joined.merge_into(network_of(folded))
    assert not torch.allclose(answer(folded, stack=AdapterStack(nn.Linear(1, 1))), both, atol=1e-3)


def test_bad_input_is_named() -> None:
    _, stack = stacked("flux1")
    with pytest.raises(ValueError, match="expected a new identifier beside sft, policy, adv, got 'sft'"):
        stack.add("sft", ["to_q"], 2)
    with pytest.raises(ValueError, match="expected a new identifier"):
        stack.add("to.q", ["to_q"], 2)
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        stack.add("new", ["to_q"], 0)
    with pytest.raises(ValueError, match="expected sft, policy, adv, got plicy"):
        stack.use("sft", "plicy")
    with pytest.raises(WeightsError, match="expected an adapter of rank"):
        stack.load("wrong", Adapter(random_adapter("flux1", 1).state, {**random_adapter("flux1", 1).info, "rank": 5}))
    assert stack.names == ("sft", "policy", "adv")


def test_parameters_trained_whole_go_into_the_base() -> None:
    backbone = tiny_multi_step("stable_diffusion")
    network = network_of(backbone)
    whole = torch.randn(network.conv_in.weight.shape, generator=seed(8))
    plain = random_adapter("stable_diffusion", 1)
    stack = AdapterStack(network)
    stack.load("sft", Adapter(plain.state, plain.info, source="sft", full={"conv_in.weight": whole}))
    assert torch.equal(network.conv_in.weight, whole)
    assert not network.conv_in.weight.requires_grad
    copied = copy.deepcopy(stack.adapter("sft", backbone="stable_diffusion"))
    assert copied.rank == RANK
    assert copied.scale == 2.0
    assert all(torch.equal(copied.state[name], plain.state[name]) for name in plain.state)
