"""The loss tables of a config and the stack that evaluates them: checks 2, 8 and 17 of aesop.md section 9.1, bad input."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignsr.core.degradation import sharpen
from alignsr.core.losses import (
    LAYERS_REAL,
    aesop_loss,
    artifact_loss,
    fdl_loss,
    grid_loss,
    l1_loss,
    low_pass_l1_loss,
    lpips_loss,
    make_projections,
    perceptual_loss,
    plain_generator_loss,
    ragan_generator_loss,
    relativistic_generator_loss,
)
from alignsr.core.networks.discriminators import UNetDiscriminatorSN, VGGDiscriminator
from alignsr.core.weights import MissingModelError, save_weights
from alignsr.train.config import ConfigError, config_hash, from_mapping, to_mapping
from alignsr.train.loss_tables import PixelLossConfig
from alignsr.train.losses import (
    Logits,
    LossesConfig,
    LossStack,
    build_autoencoder,
    build_features,
    build_lpips,
    build_vgg19,
    precision,
)
from reference.formula import S, U

AE = {"features": 48, "blocks": 1, "growth": 8, "decoder_options": {"features": 8, "growth": 8, "blocks": 1}}
EVERYTHING: dict[str, dict[str, Any]] = {
    "pixel": {"weight": 0.01},
    "low_pass": {"weight": 0.02},
    "aesop": {"weight": 1.0, "autoencoder": "random", "options": AE},
    "artifact": {"weight": 0.5},
    "perceptual": {"weight": 0.25, "vgg": "random"},
    "adversarial": {"weight": 0.005},
}


# the losses that StrSR adds; features of our own so that they need no large network
MAPS = {"kind": "network", "weights": "random"}
STRSR: dict[str, dict[str, Any]] = {
    "pixel": {"weight": 1.0, "model_range": True},
    "lpips": {"weight": 3.0, "vgg": "random"},
    "fdl": {"weight": 0.002, "projections": 4, "features": MAPS},
    "grid": {"weight": 0.01, "period_px": 8},
    "ragan": {"weight": 0.1},
}


def config(**tables: dict[str, Any]) -> LossesConfig:
    return from_mapping(LossesConfig, tables)


def images(side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    gt = U("stack/gt", 2, 3, side, side)
    return (gt + 0.1 * S("stack/sr", 2, 3, side, side)).requires_grad_(), gt, gt + 0.05 * S("stack/ema", 2, 3, side, side)


def critic() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VGGDiscriminator(32, features=4)


def one_logit(x: Tensor) -> Tensor:
    return 4 * x.mean((1, 2, 3), keepdim=True).flatten(1) - 2


def test_terms_are_the_plain_functions_with_weights_and_names() -> None:
    losses = config(**EVERYTHING)
    stack = LossStack(losses, scale=4)
    sr, gt, average = images()
    terms = stack.generator_terms(sr, gt, average, one_logit)
    assert terms.weights == {
        "pixel": 0.01,
        "low_pass": 0.02,
        "aesop": 1.0,
        "artifact": 0.5,
        "perceptual": 0.25,
        "adversarial": 0.005,
    }
    assert losses.aesop is not None
    assert losses.perceptual is not None
    autoencoder = build_autoencoder(losses.aesop, 4).requires_grad_(False).eval()
    features = build_vgg19(losses.perceptual).requires_grad_(False).eval()
    plain = {
        "pixel": l1_loss(sr, gt),
        "low_pass": low_pass_l1_loss(sr, gt),
        "aesop": aesop_loss(sr, gt, autoencoder),
        "artifact": artifact_loss(sr, gt, average),
        "perceptual": perceptual_loss(sr, gt, features),
        "adversarial": relativistic_generator_loss(one_logit(sr), one_logit(gt)),
    }
    assert list(terms.values) == list(plain)
    for name, value in terms.values.items():
        assert value.shape == (2,)
        assert torch.allclose(value, plain[name], rtol=1e-6), name
        ((grad,), (expected,)) = (torch.autograd.grad(v.mean(), sr, retain_graph=True) for v in (value, plain[name]))
        assert (grad - expected).norm() <= 1e-6 * expected.norm(), name
    assert torch.allclose(terms.total(), sum(terms.weights[n] * v for n, v in plain.items()))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("pixel", "kind", ["l1", "mse", "psnr"]),
        ("low_pass", "scale", [2, 4]),
        ("aesop", "power", [1, 2]),
        ("aesop", "precision", ["fp32", "bf16"]),
        ("artifact", "detach_map", [False, True]),
        ("artifact", "window_px", [7, 5]),
        ("perceptual", "target", ["plain", "sharpened"]),
        ("perceptual", "layers", [{"conv1_2": 0.1, "conv2_2": 0.1}, {"conv2_2": 0.1}]),
        ("perceptual", "precision", ["fp32", "bf16"]),
        ("adversarial", "kind", ["relativistic", "plain"]),
    ],
)
def test_every_option_matters(name: str, option: str, values: list[Any]) -> None:
    grads: list[Tensor] = []
    for value in values:
        stack = LossStack(config(**{name: EVERYTHING[name] | {option: value}}))
        sr, gt, average = images()
        stack.generator_terms(sr, gt, average, one_logit).total().mean().backward()
        assert sr.grad is not None
        assert torch.isfinite(sr.grad).all()
        grads.append(sr.grad)
    assert all(not torch.equal(grads[0], other) for other in grads[1:])


def test_global_average_of_one_process_is_its_own() -> None:
    sr, gt, _ = images()
    values = [
        LossStack(config(adversarial={"average": average})).generator_terms(sr, gt, critic=one_logit).total()
        for average in ("process", "global")
    ]
    assert torch.equal(*values)


def test_real_world_recipe_of_the_specification() -> None:
    """Perceptual loss against sharpened truth without conv1_2, plain adversarial loss, everything else against plain truth."""
    losses = config(
        aesop=EVERYTHING["aesop"],
        artifact={"weight": 0.0},
        perceptual={"vgg": "random", "layers": {"conv1_2": 0, **LAYERS_REAL}, "target": "sharpened"},
        adversarial={"weight": 0.1, "kind": "plain"},
    )
    stack = LossStack(losses, scale=4)
    assert not stack.needs_ema
    assert stack.needs_critic
    sr, gt, _ = images()
    seen: list[Tensor] = []
    terms = stack.generator_terms(sr, gt, critic=lambda x: (seen.append(x), one_logit(x))[1])
    assert len(seen) == 1  # the plain loss never asks about ground truth
    assert losses.perceptual is not None
    features = build_vgg19(losses.perceptual).requires_grad_(False).eval()
    assert torch.allclose(terms.values["perceptual"], perceptual_loss(sr, sharpen(gt), features, LAYERS_REAL), rtol=1e-6)
    assert torch.allclose(terms.values["adversarial"], plain_generator_loss(one_logit(sr)))


def test_losses_that_are_off_cost_nothing() -> None:
    losses = config(pixel={}, aesop={"weight": 0, "autoencoder": "absent.pth"}, perceptual={"weight": 0.0, "vgg": "absent"})
    stack = LossStack(losses)
    assert losses.weights() == {"pixel": 1.0}
    assert (stack.autoencoder, stack.features, stack.needs_ema, stack.needs_critic) == (None, None, False, False)


def test_train_mode_and_a_step_leave_the_frozen_networks_alone() -> None:  # check 2
    stack = LossStack(config(aesop=EVERYTHING["aesop"], perceptual={"vgg": "random"}))
    assert stack.autoencoder is not None
    assert stack.features is not None
    owner = nn.ModuleList([stack.autoencoder, stack.features, nn.Conv2d(3, 3, 3, padding=1)])
    before = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    owner.train()
    assert not any(module.training for frozen in (stack.autoencoder, stack.features) for module in frozen.modules())
    optimizer = torch.optim.Adam([p for p in owner.parameters() if p.requires_grad], 1e-2)
    source, gt, _ = images()
    stack.generator_terms(owner[2](source), gt).total().mean().backward()
    optimizer.step()
    after = owner.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"2.weight", "2.bias"}


def test_both_sides_of_the_game() -> None:  # checks 8 and 17
    stack = LossStack(config(adversarial={}))
    judge = critic()
    sr, gt, _ = images()
    judge.requires_grad_(False)
    stack.generator_terms(sr, gt, critic=judge).total().mean().backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert all(p.grad is None for p in judge.parameters())
    sr.grad = None
    judge.requires_grad_(True)
    terms = stack.critic_terms(judge, sr, gt)
    assert list(terms.values) == ["real", "fake"]
    terms.total().mean().backward()
    assert sr.grad is None  # it sees the restored images detached
    assert all(p.grad is not None for p in judge.parameters())


def test_zero_learning_rates_change_nothing() -> None:  # check 17
    stack = LossStack(config(**EVERYTHING))
    generator, judge = nn.Conv2d(3, 3, 3, padding=1), critic()
    before = [p.clone() for p in (*generator.parameters(), *judge.parameters())]
    source, gt, average = images()
    for module, run in (
        (generator, lambda: stack.generator_terms(generator(source), gt, average, judge)),
        (judge, lambda: stack.critic_terms(judge, generator(source), gt)),
    ):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.0)
        run().total().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, (*generator.parameters(), *judge.parameters()), strict=True))


def test_a_map_of_logits_gives_one_value_per_sample() -> None:
    stack = LossStack(config(adversarial={"kind": "plain", "weight": 0.1}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = UNetDiscriminatorSN(features=4)
    sr, gt, _ = images()
    assert stack.generator_terms(sr, gt, critic=judge).values["adversarial"].shape == (2,)
    assert {value.shape for value in stack.critic_terms(judge, sr, gt).values.values()} == {(2,)}


@pytest.mark.parametrize("keyed", [False, True])
def test_targets_of_repeated_crops_come_from_the_cache(keyed: bool) -> None:
    stack = LossStack(config(aesop=EVERYTHING["aesop"] | {"cached_targets": 8}))
    plain = LossStack(config(aesop=EVERYTHING["aesop"]))
    sr, gt, _ = images()
    keys = [("a.png", 0, 0, 0), ("b.png", 4, 0, 1)] if keyed else None
    for _ in range(3):
        values = stack.generator_terms(sr, gt, keys=keys).values["aesop"]
        assert torch.allclose(values, plain.generator_terms(sr, gt).values["aesop"], rtol=1e-6)
    assert stack.targets is not None
    assert (stack.targets.hits, stack.targets.misses) == (4, 2)


def test_building_networks_leaves_the_generator_of_the_caller_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (LossStack(config(aesop=EVERYTHING["aesop"])) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    sr, gt, _ = images()
    assert torch.equal(first.generator_terms(sr, gt).total(), second.generator_terms(sr, gt).total())


def test_an_autoencoder_of_another_scale_is_named(tmp_path: Any) -> None:
    losses = config(aesop={"autoencoder": "random", "options": AE | {"scale": 2}})
    with pytest.raises(ValueError, match=r"aesop.autoencoder: expected one of the network's scale 4, got random of scale 2"):
        LossStack(losses, scale=4)
    LossStack(losses, scale=2)


def test_an_autoencoder_of_a_file_is_found_in_the_model_folders(tmp_path: Any) -> None:
    network = build_autoencoder(replace(LossesConfig().aesop or config(aesop=EVERYTHING["aesop"]).aesop), 4)  # pyright: ignore[reportArgumentType]
    info = {"architecture": "autoencoder", "options": {"scale": 4, **AE}}
    save_weights(tmp_path / "mine.safetensors", network.state_dict(), info)
    stack = LossStack(config(aesop={"autoencoder": "mine"}), scale=4, folders=[tmp_path])
    sr, gt, _ = images()
    expected = aesop_loss(sr, gt, network.requires_grad_(False).eval())
    assert torch.allclose(stack.generator_terms(sr, gt).values["aesop"], expected, rtol=1e-6)
    with pytest.raises(MissingModelError, match="no 'other'"):
        LossStack(config(aesop={"autoencoder": "other"}), scale=4, folders=[tmp_path])


def test_missing_vgg_says_where_to_get_it(tmp_path: Any) -> None:
    with pytest.raises(MissingModelError, match=r"vgg19-dcbb9e9d\.pth.*download\.pytorch\.org"):
        LossStack(config(perceptual={}), folders=[tmp_path])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"aesop": {"weight": 1.0}}, r"aesop\.autoencoder: expected a bundled name, a file name or a path, got nothing"),
        ({"aesop": EVERYTHING["aesop"] | {"power": 3}}, r"aesop\.power: expected 1 or 2, got 3"),
        ({"aesop": EVERYTHING["aesop"] | {"cached_targets": -1}}, r"aesop\.cached_targets: expected at least 0"),
        ({"pixel": {"weight": -1.0}}, r"pixel\.weight: expected a finite number of at least 0, got -1\.0"),
        ({"pixel": {"weight": float("nan")}}, r"pixel\.weight: expected a finite number"),
        ({"pixel": {"kind": "l2"}}, r"pixel\.kind: expected one of"),
        ({"perceptual": {"layers": {"conv1_9": 1.0}}}, r"layers\.conv1_9: expected a convolution of VGG19; did you mean"),
        ({"perceptual": {"layers": {"conv1_2": "much"}}}, r"layers\.conv1_2: expected a number"),
        ({"perceptual": {"layers": {"conv1_2": 0}}}, r"layers: expected at least one with a weight"),
        ({"percepual": {}}, r"percepual: unknown key; did you mean 'perceptual'"),
        ({"artifact": {"detach": True}}, r"artifact\.detach: unknown key; did you mean 'detach_map'"),
    ],
)
def test_mistakes_in_tables_are_named(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**tables)


def test_nothing_to_train_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="losses: expected at least one with a weight, got none; add one of pixel"):
        LossStack(config(pixel={"weight": 0}))


def test_what_a_step_must_bring_is_named() -> None:
    sr, gt, _ = images()
    with pytest.raises(ValueError, match="sr_ema: expected the moving average's result"):
        LossStack(config(artifact={})).generator_terms(sr, gt)
    with pytest.raises(ValueError, match="critic: expected a discriminator"):
        LossStack(config(adversarial={})).generator_terms(sr, gt)


@pytest.mark.parametrize("name", ["aesop", "artifact", "perceptual"])
def test_bad_images_are_named(name: str) -> None:
    stack = LossStack(config(**{name: EVERYTHING[name]}))
    sr, gt, average = images()
    with pytest.raises(ValueError, match=r"sr: expected \[B, 3, H, W\] float.*RGB"):
        stack.generator_terms(sr[:, :1], gt[:, :1], average[:, :1])
    with pytest.raises(ValueError, match=r"sr: expected the shape of gt"):
        stack.generator_terms(sr[..., :16], gt, average)
    if name == "aesop":
        with pytest.raises(ValueError, match=r"multiples of 4.*got 32x30; crop it"):
            stack.generator_terms(sr[..., :30], gt[..., :30])


def test_tables_survive_the_way_into_metadata() -> None:
    losses = config(**EVERYTHING)
    assert from_mapping(LossesConfig, to_mapping(losses)) == losses


def levels(images: Tensor) -> list[Tensor]:
    """A stand-in critic of two levels."""
    return [6 * images.mean(1), 4 * images.mean((1, 2, 3), keepdim=True).flatten(1) - 2]


def test_losses_of_strsr_are_the_plain_functions() -> None:
    losses = config(**STRSR)
    stack = LossStack(losses)
    assert stack.needs_logits
    assert not stack.needs_critic
    sr, gt, _ = images()
    terms = stack.generator_terms(sr, gt, logits=Logits(levels(sr), levels(gt)))
    assert terms.weights == {"pixel": 1.0, "lpips": 3.0, "fdl": 0.002, "grid": 0.01, "ragan": 0.1}
    assert losses.lpips is not None
    assert losses.fdl is not None
    features = build_lpips(losses.lpips).requires_grad_(False).eval()
    maps = build_features(losses.fdl.features)
    filters = make_projections(maps.channels, 4, generator=torch.Generator().manual_seed(0))
    plain = {
        "pixel": 2 * l1_loss(sr, gt),
        "lpips": lpips_loss(sr, gt, features),
        "fdl": fdl_loss(sr, gt, maps, filters),
        "grid": grid_loss(sr, gt, period=8),
        "ragan": ragan_generator_loss(levels(sr), levels(gt)),
    }
    assert terms.values.keys() == plain.keys()
    for name, value in terms.values.items():
        assert value.shape == (2,)
        assert torch.allclose(value, plain[name], rtol=1e-5), name
        ((grad,), (expected,)) = (torch.autograd.grad(v.mean(), sr, retain_graph=True) for v in (value, plain[name]))
        assert (grad - expected).norm() <= 1e-5 * expected.norm(), name


def test_the_other_side_of_strsrs_game() -> None:
    """Checks 10-12 and 14 through the tables: references, the factor, the penalty and its noise."""
    sr, gt, _ = images()
    logits = Logits([torch.zeros(1, 2, 2)], [torch.full((1, 2, 2), 2.0)])
    paired = LossStack(config(ragan={"reference": "paired"}))
    assert float(paired.ragan_critic_terms(logits).values["ragan"]) == pytest.approx(0.126928, abs=1e-6)
    assert float(paired.generator_terms(sr[:1], gt[:1], logits=logits).values["ragan"]) == pytest.approx(2.126928, abs=1e-6)
    paper = LossStack(config(ragan={"reference": "paired", "factor": 1.0}))
    assert float(paper.ragan_critic_terms(logits).values["ragan"]) == pytest.approx(2 * 0.126928, abs=1e-6)
    none = LossStack(config(ragan={"reference": "none"}))
    expected = plain_generator_loss(logits.fake[0])
    assert torch.allclose(none.generator_terms(sr[:1], gt[:1], logits=logits).values["ragan"], expected)

    def critic(x: Tensor) -> list[Tensor]:
        return [x.sum((1, 2, 3), keepdim=True).flatten(1)]

    count, sigma = gt[0].numel(), 0.005 / 2  # noise is added to images in [0, 1]
    for kind, per_pixel in (("gaussian", sigma**2), ("uniform", sigma**2 / 12 + count * sigma**2 / 4)):
        stack = LossStack(config(ragan={"r1_noise": kind}))
        draws = [stack.r1(critic, gt, torch.Generator().manual_seed(seed)).mean() for seed in range(300)]
        assert float(torch.stack(draws).mean()) == pytest.approx(count * per_pixel, rel=0.2)
    terms = stack.ragan_critic_terms(logits, draws[0][None])
    assert terms.weights == {"r1": 10.0}
    assert torch.allclose(terms.total(), terms.values["ragan"] + 10 * draws[0])
    with pytest.raises(ValueError, match="logits: expected those of a critic of several levels"):
        stack.generator_terms(sr, gt)


def test_the_published_range_of_the_fdl_is_measured_beside_ours() -> None:
    sr, gt, _ = images()
    sizes = {}
    for wide in (False, True):
        stack = LossStack(config(fdl=STRSR["fdl"] | {"model_range": wide}))
        sizes = stack.fdl_by_range(sr, gt)
        used = float(stack.generator_terms(sr, gt).values["fdl"].detach().mean())
        assert used == pytest.approx(sizes["fdl_model_range" if wide else "fdl_unit_range"], rel=1e-6)
    assert sizes["fdl_model_range"] > sizes["fdl_unit_range"]


def test_tables_that_joined_later_leave_older_runs_their_hash() -> None:
    """Their defaults are not hashed; a value is."""
    before = config_hash(config(pixel={}))
    assert config_hash(LossesConfig(pixel=PixelLossConfig(), fdl=None, ragan=None)) == before
    assert config_hash(config(pixel={"model_range": True})) != before
    assert config_hash(config(pixel={}, grid={})) != before
    assert from_mapping(LossesConfig, to_mapping(config(**STRSR))) == config(**STRSR)


def test_fp32_is_without_tensorfloat_and_both_switches_come_back() -> None:
    def state() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    kept, device = state(), torch.device("cpu")
    try:
        for before in ((True, True), (True, False), (False, True)):
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
            with precision(device, "bf16"):
                assert state() == before and torch.is_autocast_enabled("cpu")
                with precision(device, "fp32"):
                    assert state() == (False, False) and not torch.is_autocast_enabled("cpu")
                assert state() == before
            with pytest.raises(RuntimeError, match="inside"), precision(device, "fp32"):
                raise RuntimeError("inside")
            assert state() == before
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
