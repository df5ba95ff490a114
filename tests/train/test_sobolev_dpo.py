"""The recipe `sobolev_dpo`: its step is ASASR's, negatives of every kind, resumes exactly, stops where it must."""

import math
from typing import Any

import pytest
import torch
from pass_helpers import counted_passes
from torch import Tensor
from train_helpers import StopAfter, equal_files, make_pictures, tiny

from alignsr.core.backbones import load_backbone, open_multi_step
from alignsr.core.lora import Adapter
from alignsr.core.lora_files import read_adapter, save_adapter
from alignsr.core.sobolev import SobolevNorm
from alignsr.core.weights import WeightsError, read_info
from alignsr.train import negatives
from alignsr.train.config import ConfigError, published
from alignsr.train.drift import DivergedError, DriftGuard, GuardConfig, complain_of_energies
from alignsr.train.loop import Loop, NonFiniteError, Stopped
from alignsr.train.multi_step import ADVERSARY, POLICY, SFT, MultiStepModelConfig, build_trainee, tiny_adapter
from alignsr.train.recipes import load_config
from alignsr.train.recipes import sobolev_dpo as recipe
from alignsr.train.state import checkpoints

FULL = [n for n in published() if n.startswith("tiny-") and load_config(n)[0].config is recipe.SobolevDPOConfig]
QUIET = {"run__preview_every": 0, "run__validate_every": 0}
FOUR = {"run__steps": 4, "run__checkpoint_every": 2, "optimizer__learning_rate": 2e-3, "schedule__warmup_steps": 0}
FLUX, SD, PIXEL = "tiny-asasr-flux", "tiny-asasr-sd15", "tiny-asasr-pixel"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"), side=48)


@pytest.mark.parametrize("name", FULL)
def test_every_tiny_twin_trains_one_step_and_its_weights_load_back(name, pictures, tmp_path):
    config = tiny(name, pictures)
    result = recipe.train(config, tmp_path / "run", StopAfter(99))
    log = result.logs[-1]
    assert log["preference"] == pytest.approx(math.log(2), abs=1e-6)  # check 9: the policy is the reference
    assert log["loss"] == pytest.approx(math.log(2) * (2 if "released" in name else 1), abs=1e-6)
    assert log["margin"] == log["chosen_drift"] == 0
    assert log["grad_norm"] > 0
    assert all(math.isfinite(log[key]) for key in ("psnr_y", "ssim_y", "lr_psnr", "lsd"))
    assert (tmp_path / "run" / "samples.png").is_file()
    info = read_info(result.weights)
    assert info["config"]["name"] == name
    kind = config.model.backbone
    if kind == "pixel":
        load_backbone(result.weights)
    else:
        joined = read_adapter(result.weights.with_name(f"{name}-with-sft.safetensors"))
        assert (read_adapter(result.weights).rank, joined.rank) == (2, 4)
        facts = {"version": config.model.version} if config.model.version else {}
        open_multi_step(kind, "tiny", precision="fp32", adapters=[(joined, 1.0)], **facts)
    assert ("energy" in name) == (tmp_path / "run" / f"{name}-adversary.safetensors").is_file()


@pytest.mark.parametrize("name", [FLUX, SD, PIXEL, "tiny-asasr-ablation-energy"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, pictures, tmp_path):
    config = tiny(name, pictures, **QUIET, **FOUR, run__accumulation_steps=2, run__ema_decay=0.9)
    whole = recipe.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 4"):
        recipe.train(config, tmp_path / "parts", StopAfter(3))
    parts = recipe.train(config, tmp_path / "parts", resume=True)
    for file in (whole.weights.name, checkpoints(tmp_path / "whole")[-1].name):
        assert equal_files(tmp_path / "whole" / file, tmp_path / "parts" / file), file
    assert [e["loss"] for e in whole.logs] == [e["loss"] for e in parts.logs]
    assert len({e["grad_norm"] for e in whole.logs}) == 4


def remembered(monkeypatch) -> list[Any]:
    """The trainee of the next training."""
    found: list[Any] = []
    build = recipe.build_models

    def building(*arguments: Any) -> Any:
        found.append(build(*arguments))
        return found[-1]

    monkeypatch.setattr(recipe, "build_models", building)
    return found


@pytest.mark.parametrize("name", [FLUX, SD])
def test_one_base_three_models_and_one_that_learns(name, pictures, tmp_path, monkeypatch):
    """Memory by data pointers; check 19 in the recipe."""
    found = remembered(monkeypatch)
    recipe.train(tiny(name, pictures, **QUIET, **FOUR), tmp_path / "run")
    (trainee,) = found
    assert trainee.stack.names == (SFT, POLICY, ADVERSARY)
    parameters = [p for _, module in trainee.backbone.modules() for p in module.parameters()]
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    plain = [
        p
        for _, module in open_multi_step(trainee.facts["backbone"], "tiny", precision="fp32").modules()
        for p in module.parameters()
    ]
    adapters = [p for adapter in trainee.stack.names for p in trainee.stack.parameters(adapter)]
    assert len(parameters) - len(adapters) == len(plain)
    again = recipe.build_models(tiny(name, pictures))
    for adapter in (SFT, ADVERSARY):
        for one, other in zip(trainee.stack.parameters(adapter), again.stack.parameters(adapter), strict=True):
            assert torch.equal(one, other)
            assert one.grad is None
    moved = zip(trainee.stack.parameters(POLICY), again.stack.parameters(POLICY), strict=True)
    assert any(not torch.equal(one, other) for one, other in moved)
    assert {id(p) for p in parameters if p.requires_grad} == {id(p) for p in trainee.stack.parameters(POLICY)}


def test_the_order_of_passes_and_which_adapters_act(pictures, tmp_path, monkeypatch):
    """asasr.md 1.4 and 3.1 point 3: adversary, reference (2 B), policy (2 B), which still acts in the backward pass."""
    found, passes = remembered(monkeypatch), []
    predict, backward = recipe.Autocast.predict, Loop.backward

    def watched(self, z: Tensor, *rest: Any):
        passes.append((found[0].stack.active, z.shape[0], torch.is_grad_enabled()))
        return predict(self, z, *rest)

    def at_backward(self, name: str, *rest: Any):
        passes.append((f"backward {name}", found[0].stack.active))
        backward(self, name, *rest)

    monkeypatch.setattr(recipe.Autocast, "predict", watched)
    monkeypatch.setattr(Loop, "backward", at_backward)
    recipe.train(tiny(FLUX, pictures, **QUIET, run__steps=1), tmp_path / "run")
    assert passes == [
        ((SFT, ADVERSARY), 2, False),
        ((SFT,), 4, False),
        ((SFT, POLICY), 4, True),
        ("backward policy", (SFT, POLICY)),
    ]


def test_checkpointing_runs_blocks_again_and_changes_nothing(pictures, tmp_path):
    logs, passes = [], []
    for on in (False, True):
        with counted_passes() as calls:
            logs.append(recipe.train(tiny(FLUX, pictures, **QUIET, **FOUR, model__use_checkpointing=on), tmp_path / str(on)).logs)
        passes.append(calls["GELU"])
    assert passes[1] > passes[0] > 0, "feed-forward parts of the blocks"
    for plain, again in zip(*logs, strict=True):
        assert again["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert again["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_the_gradient_pulls_to_the_winner_and_away_from_the_loser(pictures, tmp_path):
    """After a few steps the margin is positive and what it is made of has the right signs."""
    sets = {"run__steps": 12, "optimizer__learning_rate": 5e-4, "schedule__warmup_steps": 0, "run__batch_size": 8}
    logs = recipe.train(tiny(SD, pictures, **QUIET, **sets), tmp_path / "run").logs
    log = max(logs, key=lambda entry: entry["margin"])
    assert sum(entry["margin"] for entry in logs[1:]) > 0
    assert log["rejected"] > log["chosen"]
    assert log["preference"] < math.log(2)
    for sample in ("chosen", "rejected"):
        bands = sum(log[f"{sample}_{band}"] for band in ("low", "mid", "high"))
        assert bands == pytest.approx(log[sample], rel=1e-3, abs=1e-7)


def test_order_zero_in_the_recipe_is_euclidean(pictures, tmp_path):
    """L has no meaning at s = 0: two length scales give one run, bit for bit, and its energies are mean squares."""
    runs = [
        recipe.train(
            tiny(FLUX, pictures, **QUIET, **FOUR, preference__order=0.0, preference__length_scale=length), tmp_path / str(length)
        )
        for length in (1.0, 50.0)
    ]
    assert [e["loss"] for e in runs[0].logs] == [e["loss"] for e in runs[1].logs]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SobolevNorm(0.0, 50.0).energy(x), x.square().flatten(1).mean(1))


def test_raw_beta_is_the_mean_weight_times_normalized_beta(pictures, tmp_path):
    """Check 17 in the recipe."""
    mean = SobolevNorm(1.5, 8.0).mean_weight((4, 4))
    sets = {**QUIET, **FOUR, "preference__length_scale": 8.0}
    raw = recipe.train(tiny(FLUX, pictures, **sets, preference__beta_mode="raw"), tmp_path / "raw")
    plain = recipe.train(tiny(FLUX, pictures, **sets, preference__beta=2000 * mean), tmp_path / "plain")
    for one, other in zip(raw.logs, plain.logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_latents_on_disk_change_nothing(pictures, tmp_path):
    sets = {**QUIET, **FOUR}
    plain = recipe.train(tiny(SD, pictures, **sets), tmp_path / "plain")
    cache = (tmp_path / "latents").as_posix()
    kept = [recipe.train(tiny(SD, pictures, **sets, model__latent_cache=cache), tmp_path / name) for name in ("one", "two")]
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 2 * 4 * 2  # steps, pictures, ground truth and input
    assert [e["loss"] for e in kept[0].logs] == [e["loss"] for e in kept[1].logs]
    for one, other in zip(plain.logs, kept[0].logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)  # pictures are encoded one by one there


@pytest.mark.parametrize(
    "name", [FLUX, "tiny-asasr-ablation-closed-form", "tiny-asasr-ablation-energy", "tiny-asasr-ablation-lq-loser"]
)
def test_negatives_are_what_their_mode_says(name, pictures, tmp_path, monkeypatch):
    """Closed form and energy lie on the sphere; the input as loser is its own latents; mimicry is the adversary's estimate."""
    config, seen = tiny(name, pictures, **QUIET), []
    make = negatives.make_negative

    def watched(spec, trainee, model, batch, norm, learn=None):
        found = make(spec, trainee, model, batch, norm, learn)
        seen.append((trainee, model, batch, norm, found))
        return found

    monkeypatch.setattr(recipe, "make_negative", watched)
    recipe.train(config, tmp_path / "run")
    (trainee, model, batch, norm, negative) = seen[0]  # the norm of the ball
    assert not negative.requires_grad
    state = model.process.add_noise(batch.clean, batch.noise, batch.time)
    if config.adversary.mode == "lq":
        assert torch.equal(negative, model.encode(batch.lq_up))
    elif config.adversary.mode == "mimic":
        with trainee.stack.using(SFT, ADVERSARY), torch.no_grad():
            velocity = model.predict(state, batch.time, batch.z_lq, batch.told)
        torch.testing.assert_close(negative, state - batch.time.reshape(-1, 1, 1, 1) * velocity)
    else:
        share = 1 - batch.time.reshape(-1, 1, 1, 1)
        delta = share * (negative - batch.clean)
        ratio = (norm.squared_norm(delta) / norm.squared_norm(state)).sqrt()
        wanted = torch.where(share.flatten() < 0.1, 0.0, 0.05)
        torch.testing.assert_close(ratio, wanted, rtol=1e-3, atol=1e-6)


def test_the_learned_adversary_lowers_the_references_residual(pictures, tmp_path):
    """Eq. (38): with the ground truth to look at, the energy after its push falls."""
    sets = {"run__steps": 24, "adversary__optimizer__learning_rate": 2e-2, "adversary__schedule__warmup_steps": 0}
    still = {"optimizer__learning_rate": 0.0, "adversary__radius": 0.3, "run__log_every": 1, "guard__max_drift": 0.0}
    logs = recipe.train(tiny("tiny-asasr-ablation-energy", pictures, **QUIET, **sets, **still), tmp_path / "run").logs
    first, last = ([e["adv/energy"] for e in part] for part in (logs[:8], logs[-8:]))
    assert sum(last) < sum(first)


def test_gap_weights_by_hand_and_in_the_recipe(pictures, tmp_path):
    assert negatives.gap_weights(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.5, 1.0, 1.5]
    assert negatives.gap_weights(torch.tensor([4.0, 4.0])).tolist() == [1.0, 1.0]
    sets = {**QUIET, **FOUR}
    runs = [recipe.train(tiny(SD, pictures, **sets, preference__weighting=kind), tmp_path / kind) for kind in ("uniform", "gap")]
    assert runs[0].logs[0]["loss"] == pytest.approx(runs[1].logs[0]["loss"], rel=1e-6)  # a mean weight of 1 at equal losses
    assert runs[0].logs[-1]["loss"] != runs[1].logs[-1]["loss"]


def test_the_anchor_adds_the_winners_energy(pictures, tmp_path):
    log = recipe.train(tiny(FLUX, pictures, **QUIET, preference__winner_anchor=0.5), tmp_path / "run").logs[-1]
    assert log["loss"] == pytest.approx(log["preference"] + 0.5 * log["anchor"], rel=1e-6)


def test_drift_stops_with_step_term_and_band(pictures, tmp_path):
    """The winner's energy rises where the policy is pushed at random: a rate far too high."""
    sets = {"run__steps": 9, "optimizer__learning_rate": 0.5, "schedule__warmup_steps": 0, "guard__window": 2}
    config = tiny(FLUX, pictures, **QUIET, **sets)
    with pytest.raises(DivergedError, match=r"step \d+: term preference has diverged: .* most of it in the (low|mid|high) band"):
        recipe.train(config, tmp_path / "run")
    kept = list((tmp_path / "run" / "exports").glob("*.safetensors"))
    assert kept
    assert checkpoints(tmp_path / "run")
    with pytest.raises(DivergedError):  # resumed, it stops again: the window is part of the state
        recipe.train(config, tmp_path / "run", resume=True)


def test_guard_by_hand():
    guard = DriftGuard(GuardConfig(max_drift=0.02, window=2))
    guard.add(0.05, [0.01, 0.0, 0.04])
    assert guard.complaint(1) == ""  # not a full window
    guard.add(0.01, [0.01, 0.0, 0.0])
    assert "step 2" in guard.complaint(2)
    assert "3.0 % above" in guard.complaint(2)
    assert "high band (+2.0 %)" in guard.complaint(2)
    again = DriftGuard(GuardConfig(max_drift=0.02, window=2), guard.state)
    again.add(-0.01, [0.0, 0.0, 0.0])
    assert again.drift == 0.0
    assert again.complaint(3) == ""


def test_what_is_not_finite_is_named():
    bands = torch.ones(4, 3)
    assert complain_of_energies({"reference": bands}, 7, ("a", "b")) == ""
    broken = bands.clone()
    broken[3, 2] = math.nan
    said = complain_of_energies({"reference": bands, "policy": broken}, 7, ("a", "b"))
    assert said.startswith("step 7: energy of policy is not finite in the high band for b")


def test_nan_in_training_stops_with_step_and_band(pictures, tmp_path, monkeypatch):
    predict, calls = recipe.Autocast.predict, []

    def broken(self, z: Tensor, *rest: Any):
        calls.append(1)
        found = predict(self, z, *rest)
        return found * math.nan if len(calls) == 3 * 3 else found  # the policy's pass of the third step

    monkeypatch.setattr(recipe.Autocast, "predict", broken)
    with pytest.raises(NonFiniteError, match=r"step 3: energy of policy is not finite in the low band for picture_"):
        recipe.train(tiny(FLUX, pictures, **QUIET, **FOUR), tmp_path / "run")
    assert checkpoints(tmp_path / "run")[-1].stem.endswith("2")


SWITCHES = {
    "control branch of FLUX.1": (
        FLUX,
        {"model__control": "tiny", "model__adapter": "", "model__lora_scope": "", "model__condition_stride": 0},
    ),
    "control branch of SD 2": (SD, {"model__control": "tiny", "model__adapter": "", "model__version": "sd2"}),
    "posterior samples": (SD, {"model__posterior": "sample"}),
    "bf16": (FLUX, {"model__precision": "bf16", "run__precision": "bf16"}),
    "half condition": (FLUX, {"model__condition_stride": 2}),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_the_recipe_says_that_it_supports_trains(switch, pictures, tmp_path):
    name, sets = SWITCHES[switch]
    logs = recipe.train(tiny(name, pictures, **QUIET, **FOUR, **sets), tmp_path / "run").logs
    assert logs[0]["preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert all(entry["grad_norm"] > 0 and math.isfinite(entry["loss"]) for entry in logs)
    assert logs[-1]["margin"] != 0


@pytest.mark.parametrize("name", ["tiny-asasr-ablation-energy", "tiny-asasr-ablation-closed-form"])
def test_recomputed_blocks_change_nothing_where_passes_with_gradient_follow_each_other(name, pictures, tmp_path):
    """Of 3.1, point 3: blocks run again under the adapters that are active in the backward pass."""
    sets = {**QUIET, **FOUR, "adversary__optimizer__learning_rate": 1e-3} if "energy" in name else {**QUIET, **FOUR}
    logs = [
        recipe.train(tiny(name, pictures, **sets, model__use_checkpointing=on), tmp_path / str(on)).logs for on in (False, True)
    ]
    for plain, again in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", *(["adv/energy"] if "energy" in name else [])):
            assert again[key] == pytest.approx(plain[key], rel=1e-3), key


def test_the_guard_warns_where_it_is_told_to(pictures, tmp_path, caplog):
    sets = {"run__steps": 6, "optimizer__learning_rate": 0.5, "schedule__warmup_steps": 0, "guard__window": 2}
    with caplog.at_level("WARNING", logger="alignsr"):
        result = recipe.train(tiny(FLUX, pictures, **QUIET, **sets, guard__action="warn"), tmp_path / "run")
    assert result.step == 6
    assert any("term preference has diverged" in record.message for record in caplog.records)


def test_a_batch_is_what_its_pairs_are_one_by_one(pictures, tmp_path):
    """Noise and time belong to the pair: one pass of four is four passes of one, and so are processes."""
    sets = {**QUIET, "run__steps": 2, "schedule__warmup_steps": 0, "optimizer__learning_rate": 1e-4, "preference__beta": 20.0}
    one = recipe.train(tiny(SD, pictures, **sets, run__batch_size=4), tmp_path / "one").logs
    four = recipe.train(tiny(SD, pictures, **sets, run__batch_size=1, run__accumulation_steps=4), tmp_path / "four").logs
    for ours, theirs in zip(one, four, strict=True):
        for key in ("loss", "grad_norm", "chosen", "rejected", "reference_chosen"):
            assert theirs[key] == pytest.approx(ours[key], rel=2e-3, abs=1e-6), key


def test_an_adversary_on_another_base_is_refused(pictures, tmp_path):
    """One that holds the widened convolution of another supervised training would replace the reference's."""
    files = []
    for number in (1, 2):
        trainee = build_trainee(MultiStepModelConfig(backbone="stable_diffusion", source="tiny", precision="fp32"))
        made = tiny_adapter(trainee.network, "stable_diffusion", number)
        whole = {"conv_in.weight": torch.full_like(trainee.network.get_parameter("conv_in.weight"), 0.01 * number)}
        files.append(save_adapter(tmp_path / f"{number}.safetensors", Adapter(made.state, made.info, full=whole)).as_posix())
    sets = {**QUIET, "model__adapter": files[0]}
    recipe.train(tiny(SD, pictures, **sets, adversary__adapter=files[0]), tmp_path / "same")
    with pytest.raises(WeightsError, match=r"2.safetensors: expected the conv_in.weight of .*1.safetensors"):
        recipe.train(tiny(SD, pictures, **sets, adversary__adapter=files[1]), tmp_path / "other")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"preference__weighting": "gap", "run__batch_size": 1}, "preference.weighting: expected .uniform."),
        ({"model__precision": "4bit"}, "quantised layers take no adapter"),
        ({"preference__order": -1.0}, "order: expected s of at least 0"),
        ({"preference__beta": 0.0}, "beta: expected a number above 0"),
        ({"lora__rank": 0}, "expected a rank of at least 1"),
        ({"data__gt_patch_px": 40}, "expected a multiple of what flux1 takes 16"),
        ({"adversary__adapter": ""}, "expected the file of an adversary"),
        ({"adversary__strength": 0.0}, "adversary.strength: expected a number in"),
        ({"adversary__radius": 0.0}, "adversary.radius: expected a number above 0"),
        ({"guard__window": 0}, "guard.window: expected at least 0 and at least 1"),
        ({"preference__winner_anchor": -1.0}, "winner_anchor: expected at least 0"),
        ({"preference__length_scale": 0.0}, "length_scale: expected L above 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_opened(sets, message, pictures):
    with pytest.raises(ConfigError, match=message):
        tiny(FLUX, pictures, **sets)


def test_missing_sft_and_foreign_adapters_are_named(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"model.adapter: expected the adapter of supervised training"):
        recipe.train(tiny(FLUX, pictures, model__adapter=""), tmp_path / "a")
    other = recipe.train(tiny(SD, pictures, **QUIET), tmp_path / "sd").weights.as_posix()
    with pytest.raises(ValueError, match="expected an adapter of flux1"):
        recipe.train(tiny(FLUX, pictures, model__adapter=other), tmp_path / "b")
    with pytest.raises(ValueError, match="expected an adapter of flux1"):
        recipe.train(tiny(FLUX, pictures, adversary__adapter=other), tmp_path / "c")
    assert not list((tmp_path / "b").glob("*.safetensors"))


def test_numbers_of_the_specification():
    """asasr.md 4.1, and the sweeps of 5.2 and 6.2."""
    config = load_config("asasr-flux")[1]
    assert (config.lora.rank, config.lora.alpha) == (16, 16.0)
    assert (config.preference.order, config.preference.length_scale) == (1.5, 64.0)
    assert (config.preference.beta, config.preference.beta_mode, config.preference.winner_anchor) == (2000.0, "normalized", 0.0)
    assert (config.adversary.mode, config.adversary.strength, config.adversary.lq_loser_weight) == ("mimic", 1.0, 0.0)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-5, (0.9, 0.999), 0.01)
    assert (optimizer.max_grad_norm, config.schedule.kind, config.schedule.warmup_steps) == (1.0, "constant", 200)
    assert config.run.batch_size * config.run.accumulation_steps * 8 == 512
    assert (config.run.steps, config.run.export_every, config.run.precision) == (1000, 50, "bf16")
    assert (config.run.ema_decay, config.model.use_checkpointing, config.sampling.steps) == (0.0, True, 28)
    assert (config.data.gt_patch_px, config.model.scale, config.data.degradation) == (512, 4, "asasr")
    assert (config.model.guidance, config.model.prompt, config.model.lora_scope) == (1.0, "", "all")
    assert (config.guard.max_drift, config.guard.action) == (0.02, "stop")
    orders = {load_config(n)[1].preference.order for n in published() if n.startswith("asasr-sweep-order")}
    assert orders | {0.0, 1.5} == {0.0, 0.5, 1.0, 1.5, 2.0, 3.0}
    betas = {load_config(n)[1].preference.beta for n in published() if n.startswith("asasr-sweep-beta")}
    assert betas | {2e3} == {2e3, 2e4, 2e5, 2e7}
    assert load_config("asasr-ablation-euclidean")[1].preference.order == 0
    assert load_config("asasr-ablation-lq-loser")[1].adversary.mode == "lq"
    released = load_config("asasr-flux-released")[1]
    assert (released.preference.beta_mode, released.adversary.strength, released.adversary.lq_loser_weight) == ("raw", 0.1, 1.0)
    for name, width in (("asasr-sd15", 512), ("asasr-sdxl", 1024)):
        other = load_config(name)[1]
        assert other.data.gt_patch_px == width
        assert other.run.batch_size * other.run.accumulation_steps == 64
        assert other.preference == config.preference
