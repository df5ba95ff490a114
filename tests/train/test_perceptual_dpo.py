"""The recipe `perceptual_dpo`: what it trains, what it leaves alone, its loss, logs, guard, and that it resumes exactly."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from pass_helpers import counted_passes
from preference_helpers import KINDS, dpo, sample, write_control
from train_helpers import StopAfter, equal_files

from alignsr.core.backbones import load_backbone, open_multi_step
from alignsr.core.lora_files import read_adapter
from alignsr.core.weights import WeightsError, load_state_dict, read_info
from alignsr.train import guard
from alignsr.train.candidates import CandidateStore, curate_folder, load_candidates_config
from alignsr.train.candidates.record import read_config, write_config
from alignsr.train.config import ConfigError, published
from alignsr.train.loop import NonFiniteError, SilentHooks, Stopped
from alignsr.train.policy import trained_file
from alignsr.train.preference_sampling import before_and_after, check_candidates
from alignsr.train.preferences import PreferenceData
from alignsr.train.recipes import load_config
from alignsr.train.recipes import perceptual_dpo as recipe
from alignsr.train.session import finished_weights
from alignsr.train.sources import DataError
from alignsr.train.state import checkpoints

TWINS = [n for n in published() if n.startswith("tiny-") and load_config(n)[0].config is recipe.PerceptualDpoConfig]
QUIET = {"guard__pictures": 0, "run__preview_every": 0, "data__workers": 0}
FOUR = {"run__steps": 4, "run__checkpoint_every": 2, "optimizer__learning_rate": 1e-3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("candidates")
    return {kind: sample(root, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    return {kind: write_control(root, kind) for kind in ("sd2", "flux")}


def kind_of(name):
    return next(kind for kind in KINDS if f"dp2o-{kind}" in name)


def light(name, runs, controls, **sets):
    kind = kind_of(name)
    branch = {} if kind == "pixel" else {"model__control": controls[kind].as_posix(), "data__any_model": True}
    return dpo(name, runs[kind], **(QUIET | branch | sets))


@pytest.mark.parametrize("name", TWINS)
def test_every_tiny_twin_trains_one_step_and_its_result_opens(name, runs, tmp_path):
    config = dpo(name, runs[kind_of(name)])
    result = recipe.train(config, tmp_path / "run", StopAfter(99))
    log = result.logs[-1]
    assert log["loss"] == pytest.approx(log["preference"]) and math.isfinite(log["loss"])
    assert log["preference"] == pytest.approx(math.log(2), rel=0.5), "equal models give log 2 times the weights"
    assert log["margin"] == log["delta"] == log["drift"] == log["implicit_accuracy"] == 0
    assert log["policy_chosen"] == log["reference_chosen"] > 0
    assert math.isfinite(log["probe_reward"]) and log["probe_spread"] >= 0
    assert (tmp_path / "run" / "samples.png").is_file()
    info = read_info(result.weights)
    assert info["config"]["name"] == name and info["step"] == 1
    if "pixel" in name:
        opened = load_backbone(result.weights)
    else:
        opened = open_multi_step(config.model.backbone, "tiny", control=result.weights, precision="fp32")
        assert set(load_state_dict(result.weights)) == set(opened.control.state_dict())
    assert opened.process.prediction == ("epsilon" if "sd2" in name else "velocity")


CASES = [
    ("tiny-dp2o-sd2", {}),
    ("tiny-dp2o-sd2", {"train": "control_lora", "lora__rank": 4}),
    ("tiny-dp2o-sd2", {"train": "lora", "lora__rank": 4}),
    ("tiny-dp2o-flux", {}),
    ("tiny-dp2o-flux-lora", {}),
    ("tiny-dp2o-flux", {"train": "lora", "lora__rank": 4}),
    ("tiny-dp2o-pixel", {}),
]
NAMES = [f"{name.removeprefix('tiny-dp2o-')} {sets.get('train', '')}".strip() for name, sets in CASES]


@pytest.mark.parametrize(("name", "sets"), CASES, ids=NAMES)
def test_12_only_what_is_trained_moves_and_nothing_exists_twice(name, sets, runs, controls, tmp_path, monkeypatch):
    """Check 12, and the memory of policy and reference: the storages of one model, and of a second control branch at most."""
    made, build = [], recipe.build_policy
    monkeypatch.setattr(recipe, "build_policy", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    config = light(name, runs, controls, **sets, run__steps=2, optimizer__learning_rate=1e-2)
    recipe.train(config, tmp_path / "run")
    (policy,) = made
    fresh = recipe.open_policy(config)
    trained = {id(p) for p in policy.part.parameters()}
    assert trained
    for (part, module), (_, other) in zip(policy.modules(), fresh.modules(), strict=True):
        for (key, live), start in zip(module.named_parameters(), other.parameters(), strict=True):
            assert live.requires_grad == (id(live) in trained), f"{part}.{key}"
            assert id(live) in trained or (live.grad is None and torch.equal(live, start)), f"{part}.{key}"
    moved = [not torch.equal(a, b) for a, b in zip(policy.part.parameters(), fresh.part.parameters(), strict=True)]
    assert sum(moved) > 0.85 * len(moved), "what is trained moves, but for the last block's text stream of FLUX.1"

    def bytes_of(modules):
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in modules for p in m.parameters()}
        return sum(storages.values())

    whole = bytes_of([module for _, module in policy.backbone.modules()])
    both = bytes_of([module for _, module in policy.modules()])
    if policy.kind == "control":
        assert both == whole + bytes_of([policy.backbone.control]), "one backbone, two control branches"
        assert policy.original is not None
        own, shared = (dict(b.modules()) for b in (policy.backbone, policy.original))
        assert [name for name in own if own[name] is not shared[name]] == ["control"]
        policy.forget_reference()
        assert bytes_of([module for _, module in policy.modules()]) == whole
    else:
        assert both == whole, "the reference is the same modules without the adapter"
        with policy.reference() as reference:
            assert reference is policy.backbone
    assert both < 2 * whole


@pytest.mark.parametrize(("name", "sets"), [CASES[k] for k in (0, 2, 4, 6)], ids=[NAMES[k] for k in (0, 2, 4, 6)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, sets, runs, controls, tmp_path):
    config = light(name, runs, controls, **sets, **FOUR)
    whole = recipe.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 4"):
        recipe.train(config, tmp_path / "parts", StopAfter(3))
    parts = recipe.train(config, tmp_path / "parts", resume=True)
    for file in (whole.weights.name, checkpoints(tmp_path / "whole")[-1].name):
        assert equal_files(tmp_path / "whole" / file, tmp_path / "parts" / file), file
    keys = ("loss", "margin", "policy_chosen", "reference_chosen", "implicit_accuracy")
    assert [[e[k] for k in keys] for e in whole.logs] == [[e[k] for k in keys] for e in parts.logs]
    assert len({e["loss"] for e in whole.logs}) == 4
    assert whole.logs[-1]["margin"] != 0


@pytest.mark.parametrize(("name", "sets"), [CASES[0], CASES[6]], ids=["sd2", "pixel"])
def test_errors_computed_beforehand_give_the_same_training(name, sets, runs, controls, tmp_path):
    sets = {**sets, **FOUR, "loss__prompt_dropout": 0.3, "run__precision": "bf16"}
    live = recipe.train(light(name, runs, controls, **sets), tmp_path / "live")
    config = light(name, runs, controls, **sets, loss__reference="precomputed")
    with pytest.raises(Stopped, match="stopped at the reference's errors of step 1 of 4; continue with --resume"):
        recipe.train(config, tmp_path / "known", AtOnce())
    recipe.train(config, tmp_path / "known")
    assert equal_files(live.weights, tmp_path / "known" / live.weights.name)
    files = sorted((tmp_path / "known" / recipe.CACHE).rglob("*.npy"))
    assert len(files) == 4 and all(path.stat().st_size < 400 for path in files)
    shared = light(
        name, runs, controls, **sets, loss__reference="precomputed", data__weights="uniform",
        loss__reference_cache=(tmp_path / "known" / recipe.CACHE).as_posix(),
    )  # fmt: skip
    times = [path.stat().st_mtime_ns for path in files]
    recipe.train(shared, tmp_path / "uniform")
    assert times == [path.stat().st_mtime_ns for path in files], "another weighting asks for the same errors"
    files[2].write_bytes(files[2].read_bytes()[:-4])
    with pytest.raises(DataError, match=r"00000002-0\.npy: expected the reference's errors, got .*; delete the file"):
        recipe.train(shared, tmp_path / "damaged")


def test_errors_of_a_branch_that_was_written_anew_are_computed_anew(runs, controls, tmp_path):
    branch, cache = tmp_path / "branch.safetensors", tmp_path / "cache"
    sets = {"loss__reference": "precomputed", "loss__reference_cache": cache.as_posix(), "model__control": branch.as_posix()}
    for number, seed in enumerate((3, 4, 3)):
        shutil.copy(write_control(tmp_path, "sd2", seed), branch)
        log = recipe.train(light("tiny-dp2o-sd2", runs, controls, **sets), tmp_path / str(number)).logs[-1]
        assert log["policy_chosen"] == log["reference_chosen"] and len(list(cache.iterdir())) == (1, 2, 2)[number]
    init = {"train": "control_lora", "lora__rank": 2}
    recipe.train(light("tiny-dp2o-sd2", runs, controls, **sets, **init), tmp_path / "lora")
    assert len(list(cache.iterdir())) == 3


def test_a_run_does_not_go_on_with_pairs_that_were_curated_anew(runs, controls, tmp_path):
    folder = shutil.copytree(runs["pixel"], tmp_path / "pairs")
    config = dpo("tiny-dp2o-pixel", folder, **QUIET, **FOUR)
    settings, store = read_config(folder), CandidateStore(folder)
    with pytest.raises(Stopped):
        recipe.train(config, tmp_path / "run", StopAfter(2))
    there = checkpoints(tmp_path / "run")
    curate_folder(store, settings.reward, replace(settings.pairs, picks=1))
    with pytest.raises(DataError, match=r"data\.pairs: expected the pairs that the run in .* began with \(\w{16}\), got others"):
        recipe.train(config, tmp_path / "run", resume=True)
    weighty = dict.fromkeys(settings.scoring.metrics, 1.0) | {"psnr_y": 9.0}
    with pytest.raises(DataError, match=r"curate them as they were, or choose another run folder"):
        curate_folder(store, replace(settings.reward, weights=weighty), settings.pairs)
        recipe.train(config, tmp_path / "run", resume=True)
    assert checkpoints(tmp_path / "run") == there
    curate_folder(store, settings.reward, settings.pairs)
    result = recipe.train(config, tmp_path / "run", resume=True)
    assert finished_weights(tmp_path / "run", config, recipe.learned_from(config)) == result.weights
    curate_folder(store, settings.reward, replace(settings.pairs, picks=1))
    assert finished_weights(tmp_path / "run", config, recipe.learned_from(config)) is None
    uniform = replace(config, data=replace(config.data, weights="uniform", picks=2))
    same = recipe.learned_from(uniform)
    curate_folder(store, settings.reward, settings.pairs)
    assert recipe.learned_from(replace(uniform, data=replace(uniform.data, picks=0))) == same, "weights that nobody reads"


def test_candidates_of_another_model_are_refused_unless_they_are_meant(runs, controls, tmp_path):
    branch, flux = (controls[kind].as_posix() for kind in ("sd2", "flux"))
    pixel = tmp_path / "flow.safetensors"
    pixel.touch()
    for name, sets, message in (
        (
            "tiny-dp2o-sd2",
            {"model__control": branch},
            r"model\.control: expected tiny, with which the candidates in .* got .*sd2-3",
        ),
        ("tiny-dp2o-sd2", {"model__network": branch}, r"model\.network: expected none, with which .*; sample .* data\.any_model"),
        ("tiny-dp2o-pixel", {"model__source": pixel.as_posix()}, r"model\.source: expected tiny, with which"),
        ("tiny-dp2o-flux", {"model__guidance": 3.0}, r"model\.guidance: expected 2\.5, with which .* got 3\.0"),
        ("tiny-dp2o-flux", {"train": "lora", "model__adapter": flux}, r"model\.adapter: expected none, with which .*flux-3"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe.train(dpo(name, runs[kind_of(name)], **QUIET, **sets), tmp_path / "run")
    meant = dpo("tiny-dp2o-flux", runs["flux"], **QUIET, data__any_model=True, model__guidance=3.0)
    assert recipe.train(meant, tmp_path / "meant").step == 1
    assert check_candidates(replace(meant.model, guidance=-1.0), PreferenceData(runs["flux"], 0)).sampling.guidance == 2.5
    made = shutil.copytree(runs["sd2"], tmp_path / "made")
    settings = read_config(made)
    write_config(replace(settings, model=replace(settings.model, control=branch)), made)
    there = replace(dpo("tiny-dp2o-sd2", made).model, control=controls["sd2"].name)
    assert check_candidates(there, PreferenceData(made, 0), folders=[controls["sd2"].parent]), "a name and a path of one file"


@pytest.mark.parametrize("train", ["control", "control_lora"])
def test_policy_and_reference_are_told_what_the_candidates_model_was(train, runs, controls, tmp_path, monkeypatch):
    """Trap 5.14: embedded guidance of sampling, and the weight of the control branch, in training, for both models."""
    folder = shutil.copytree(runs["flux"], tmp_path / "pairs")
    settings = read_config(folder)
    write_config(replace(settings, sampling=replace(settings.sampling, guidance=7.0, control_scale=0.5)), folder)
    told, original = [], recipe.errors

    def noted(backbone, state, autocast):
        told.append((backbone.guidance, backbone.control_scale))
        return original(backbone, state, autocast)

    monkeypatch.setattr(recipe, "errors", noted)
    sets = {"train": train, "model__guidance": -1.0, "model__control": controls["flux"].as_posix(), "data__any_model": True}
    log = recipe.train(dpo("tiny-dp2o-flux", folder, **{**QUIET, **sets, "lora__rank": 4}), tmp_path / "run").logs[-1]
    assert set(told) == {(7.0, 0.5)} and log["margin"] == 0


class AtOnce(SilentHooks):
    """Asks to stop before anything is done."""

    def should_stop(self) -> bool:
        return True


def test_batches_may_be_cut_anywhere(runs, controls, tmp_path):
    """Four pairs at once, or one by one: the same draws, so the same step but for rounding."""
    logs = [
        recipe.train(
            light("tiny-dp2o-sd2", runs, controls, run__batch_size=size, run__accumulation_steps=4 // size, run__precision="fp32",
                  run__steps=3, optimizer__learning_rate=1e-3, loss__prompt_dropout=0.5, run__checkpoint_every=3),
            tmp_path / str(size),
        ).logs
        for size in (4, 1)
    ]  # fmt: skip
    for key in ("loss", "policy_chosen", "reference_rejected", "grad_norm"):
        assert [e[key] for e in logs[0]] == pytest.approx([e[key] for e in logs[1]], rel=2e-3), key


@pytest.mark.parametrize("switch", [
    {"run__ema_decay": 0.5}, {"optimizer__bits": 8, "lora__rank": 160}, {"loss__sigma_grid": 0}, {"run__precision": "bf16"},
    {"guard__pictures": 1, "guard__every": 1}, {"run__export_every": 1}, {"data__picks": 1, "data__weights": "uniform"},
], ids=lambda s: next(iter(s)))  # fmt: skip
def test_every_option_runs_and_resumes(switch, runs, controls, tmp_path):
    config = light("tiny-dp2o-pixel", runs, controls, **{"run__steps": 2, "optimizer__learning_rate": 1e-3, **switch})
    whole = recipe.train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        recipe.train(config, tmp_path / "parts", StopAfter(1))
    recipe.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, tmp_path / "parts" / whole.weights.name)


def test_checkpointed_gradients_are_the_plain_ones(runs, controls, tmp_path):
    logs, passes = [], []
    for flag in (True, False):
        config = light("tiny-dp2o-sd2", runs, controls, model__use_checkpointing=flag, run__steps=2)
        with counted_passes() as calls:
            logs.append(recipe.train(config, tmp_path / str(flag)).logs[-1])
        passes.append(calls["BasicTransformerBlock"])
    assert passes[0] > passes[1] > 0, "blocks run again"
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-4)
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-6)


def test_a_start_of_its_own_leaves_the_reference_alone(runs, controls, tmp_path):
    """`model.init`: the policy goes on from weights while the reference stays; its margin is not 0 in the first step."""
    first = recipe.train(light("tiny-dp2o-sd2", runs, controls, **FOUR), tmp_path / "first")
    config = light("tiny-dp2o-sd2", runs, controls, model__init=first.weights.as_posix())
    log = recipe.train(config, tmp_path / "second").logs[-1]
    assert log["margin"] != 0 and log["policy_chosen"] != log["reference_chosen"]
    lora = {"train": "control_lora", "lora__rank": 4}
    third = recipe.train(light("tiny-dp2o-sd2", runs, controls, **lora, **FOUR), tmp_path / "third")
    assert read_info(third.weights)["rank"] == 4, "an adapter on the control branch is written merged"
    config = light("tiny-dp2o-sd2", runs, controls, model__control=third.weights.as_posix())
    assert recipe.train(config, tmp_path / "fourth").logs[-1]["margin"] == 0


def test_adapters_on_the_network_open_where_models_are_used(runs, controls, tmp_path):
    config = light("tiny-dp2o-flux", runs, controls, train="lora", lora__rank=4, **FOUR)
    result = recipe.train(config, tmp_path / "run")
    adapter = read_adapter(result.weights)
    assert adapter.info["backbone"] == "flux1" and adapter.rank == 4 and any(t.any() for t in adapter.state.values())
    plain = open_multi_step("flux1", "tiny", precision="fp32", control=controls["flux"])
    adapted = open_multi_step("flux1", "tiny", precision="fp32", control=controls["flux"], adapters=[(adapter, 1.0)])
    z, z_lq = torch.randn(2, 1, plain.spec.latent_channels, 8, 8)
    given = (torch.tensor([0.5]), z_lq)
    assert not torch.equal(plain.predict(z, *given), adapted.predict(z, *given))
    assert trained_file(result.weights) == ("adapter", str(result.weights))


def test_the_guard_stops_at_a_falling_reward_and_gives_the_best_weights(runs, controls, tmp_path, monkeypatch):
    rewards = iter([0.5, 0.6, 0.7, 0.5, 0.5, 0.4, 0.3])
    monkeypatch.setattr(guard.Probe, "look", lambda *_: guard.Look(next(rewards), 0.1, 0.2, torch.zeros(1)))
    config = light("tiny-dp2o-pixel", runs, controls, guard__pictures=1, guard__every=1, guard__patience=2,
                   guard__tolerance=0.05, run__steps=9, optimizer__learning_rate=1e-2, run__export_every=1)  # fmt: skip
    result = recipe.train(config, tmp_path / "run")
    assert result.step == 4
    info = read_info(result.weights)
    assert (
        info["best_step"] == 2
        and "the reward of fresh candidates fell from 0.7000 (step 2) to 0.5000 (step 4)" in info["stopped"]
    )
    exported = load_state_dict(tmp_path / "run" / "exports" / f"{config.name}-00000002.safetensors")
    best = load_state_dict(result.weights)
    assert all(torch.allclose(best[key].float(), exported[key].float(), atol=2e-3) for key in best)
    before = tmp_path / "before.safetensors"
    before.write_bytes(result.weights.read_bytes())
    again = recipe.train(config, tmp_path / "run", resume=True)
    assert again.step == 4 and equal_files(before, again.weights)  # tensors: the order of keys in a header is anyone's
    assert read_info(again.weights)["best_step"] == 2


def test_weights_of_a_look_that_is_forgotten_are_told_by_their_own_step(tmp_path, monkeypatch, caplog):
    rewards = iter([0.5, 0.6])
    probe = object.__new__(guard.Probe)
    monkeypatch.setattr(guard.Probe, "look", lambda *_: guard.Look(next(rewards), 0.1, 0.2, torch.zeros(1)))
    watch, part = guard.Guard(guard.GuardConfig(pictures=1), probe, tmp_path, {}), torch.nn.Linear(2, 2)
    watch.look(0, None, part)
    watch.look(8, None, part)
    assert watch.restore_best(part) == 8 and not caplog.records
    watch.state["history"].pop()  # the checkpoint that a killed run goes on from knows nothing of it
    assert watch.best_step == 0 and watch.restore_best(part) == 8 and "of step 8, seen before an interruption" in caplog.text


class StopInLook(StopAfter):
    """Asks to stop at the second picture of the look after a step, or at the first one that is scored."""

    def __init__(self, step, scoring):
        super().__init__(step)
        self.scoring, self.looked = scoring, []

    def validating(self, done, total):
        self.looked.append((done, total))
        assert done < total

    def should_stop(self):
        return len(self.looked) == 4 * (self.step // 2) + (3 if self.scoring else 2)


@pytest.mark.parametrize("scoring", [False, True])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_look_is_left_within_one_picture_and_made_up_for(step, scoring, runs, controls, tmp_path, monkeypatch):
    """The guard then knows and decides what it does in the uninterrupted run, after the last step too."""
    config = light("tiny-dp2o-pixel", runs, controls, guard__pictures=2, guard__every=2, run__preview_every=1,
                   guard__metrics=["psnr_y"], **FOUR, run__log_every=4)  # fmt: skip
    whole = recipe.train(config, tmp_path / "whole")
    hooks, made, real = StopInLook(step, scoring), [], guard.make_group
    monkeypatch.setattr(guard, "make_group", lambda *given, **more: made.append(given[1]) or real(*given, **more))
    shown = []
    monkeypatch.setattr(recipe, "before_and_after", lambda *given: shown.append(1) or before_and_after(*given))
    with pytest.raises(Stopped, match=f"stopped at step {step} of 4"):
        recipe.train(config, tmp_path / "run", hooks)
    assert len(made) == 2 * (step // 2) + 1 + scoring, "pictures of the looks before, and those of the look that was cut"
    assert len(shown) == max(step - 1, 0), "none after it"
    assert [p.stem for p in checkpoints(tmp_path / "run")][-1:] == ([f"state-{step:08d}"] if step else [])
    rest = recipe.train(config, tmp_path / "run", resume=True)
    assert equal_files(whole.weights, rest.weights) and equal_files(
        tmp_path / "whole" / guard.BEST, tmp_path / "run" / guard.BEST
    )
    looks = [read_info(checkpoints(tmp_path / name)[-1])["extra"]["guard"] for name in ("whole", "run")]
    assert looks[0] == looks[1] and [entry[0] for entry in looks[0]["history"]] == [0, 2, 4]
    noted = [[(e["step"], e["probe_reward"]) for e in found.logs if "probe_reward" in e] for found in (whole, rest)]
    assert noted[0] == noted[1] and len(noted[0]) == 2
    assert (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").count("probe_reward") == 2


def test_the_guard_stops_at_a_drift(runs, controls, tmp_path):
    sets = {"guard__max_drift": 0.01, "run__steps": 60, "optimizer__learning_rate": 0.3, "run__checkpoint_every": 60}
    result = recipe.train(light("tiny-dp2o-pixel", runs, controls, **sets), tmp_path / "run")
    assert 3 <= result.step < 60 and "above the reference's" in read_info(result.weights)["stopped"]


def test_rewards_of_the_probe_are_comparable_and_the_reference_lies_inside(runs, controls, tmp_path):
    """The reference's own candidates span 0 to 1 per metric; fresh ones of the same model lie about there."""
    config = light("tiny-dp2o-pixel", runs, controls, guard__pictures=2, guard__every=1, guard__seeds=3, run__steps=2,
                   optimizer__learning_rate=0.0)  # fmt: skip
    result = recipe.train(config, tmp_path / "run")
    looks = [(e["probe_reward"], e["probe_spread"], e["probe_worst"]) for e in result.logs]
    assert looks[0] == looks[1], "the same noises every time"
    assert -1 < looks[0][0] < 2 and looks[0][2] <= looks[0][0]


def test_nan_names_step_term_and_pair(runs, controls, tmp_path, monkeypatch):
    original = recipe.errors
    calls = []

    def broken(backbone, state, autocast):
        found = original(backbone, state, autocast)
        calls.append(1)
        return found * torch.tensor([1.0, float("nan"), 1.0, 1.0]) if len(calls) == 6 else found

    monkeypatch.setattr(recipe, "errors", broken)
    config = light("tiny-dp2o-pixel", runs, controls, run__steps=4, run__checkpoint_every=1)
    with pytest.raises(NonFiniteError, match=r"step 3: term preference is not finite for picture_\d\.png \(pair \d+\)"):
        recipe.train(config, tmp_path / "run")
    assert checkpoints(tmp_path / "run")[-1].name == "state-00000002.safetensors", "finished steps are kept"


def test_bad_input_is_one_sentence(runs, controls, tmp_path):
    wrong = dpo("tiny-dp2o-sd2", runs["flux"], **QUIET)
    with pytest.raises(ConfigError, match=r"model\.backbone: expected flux1, with which the candidates .* got stable_diffusion"):
        recipe.train(wrong, tmp_path / "kind")
    with pytest.raises(ConfigError, match=r"model\.scale: expected 4, .* got 2"):
        recipe.train(light("tiny-dp2o-sd2", runs, controls, model__scale=2), tmp_path / "scale")
    with pytest.raises(WeightsError, match="control-flux-3"):
        recipe.train(light("tiny-dp2o-sd2", runs, controls, model__control=controls["flux"].as_posix()), tmp_path / "branch")
    with pytest.raises(DataError, match="expected a Parquet table, found none"):
        recipe.train(dpo("tiny-dp2o-sd2", tmp_path / "nothing", **QUIET), tmp_path / "pairs")
    with pytest.raises(ConfigError, match=r"guard\.metrics: expected some of psnr_y, .*, got musiq; score them first"):
        recipe.train(light("tiny-dp2o-pixel", runs, controls, guard__pictures=1, guard__metrics=["musiq"]), tmp_path / "metric")
    for sets, message in (
        ({"train": "control"}, 'train: expected "lora" for a model without a control branch'),
        ({"loss__beta": 0.0}, r"loss\.beta: expected a number above 0, got 0\.0; the paper uses 5000"),
        ({"run__precision": "fp16"}, r"run\.precision: expected \"bf16\" or \"fp32\""),
        ({"lora__rank": 0}, r"lora\.rank: expected at least 1"),
        ({"guard__seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"guard__tolerance": -1.0}, "tolerance: expected at least 0"),
        ({"model__precision": "4bit"}, r"model\.precision: expected \"bf16\" or \"fp32\" for an adapter on the network itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            light("tiny-dp2o-pixel", runs, controls, **sets)
    for bits in ("bf16", "4bit"):
        with pytest.raises(
            ConfigError, match=r'run\.precision: expected "bf16" beside model\.precision "\w+" .* got "fp32"; set'
        ):
            light("tiny-dp2o-sd2", runs, controls, run__precision="fp32", model__precision=bits)
    with pytest.raises(ConfigError, match=r"model\.adapter: expected none where control is trained"):
        light("tiny-dp2o-sd2", runs, controls, model__adapter="some.safetensors")


# specification 3.1: beta, pairs per step, rate, steps; M and N are those of the candidates (test_candidate_configs.py)
@pytest.mark.parametrize("name", ["dp2o-sd2", "dp2o-flux"])
def test_numbers_of_the_paper(name):
    config = load_config(name)[1]
    assert config.loss.beta == 5000 and config.logit_scale == 2500
    assert config.run.batch_size * config.run.accumulation_steps == 1024
    assert config.optimizer.learning_rate == 2e-5 and config.run.steps == 1000
    assert (
        config.train == "control" and config.model.control == "auto" and config.data.weights == "hpo" and config.data.picks == 0
    )
    # our choices of 3.1 and 5
    assert (
        config.optimizer.betas == (0.9, 0.999) and config.optimizer.weight_decay == 1e-2 and config.optimizer.max_grad_norm == 1
    )
    assert config.schedule.kind == "constant" and config.schedule.warmup_steps <= 20
    assert config.run.precision == "bf16" and config.run.ema_decay == 0
    assert config.loss.prompt_dropout == (0.1 if name == "dp2o-sd2" else 0)
    assert config.guard.every == 50
    if name == "dp2o-flux":
        assert config.model.guidance == 2.5 and config.loss.sigma_grid == 1000
    candidates = load_candidates_config(name.replace("dp2o", "dp2o-candidates"))
    assert (candidates.sampling.candidates, candidates.pairs.picks) == ((32, 8) if name == "dp2o-sd2" else (64, 4))
    assert candidates.model.backbone == config.model.backbone and candidates.sampling.guidance in (3.5, config.model.guidance)


def test_ablations_change_one_thing():
    for name in ("dp2o-sd2", "dp2o-flux"):
        whole = load_config(name)[1]
        uniform, best = (load_config(f"{name}-ablation-{kind}")[1] for kind in ("uniform", "best-worst"))
        assert replace(uniform, name=name, data=replace(uniform.data, weights="hpo")) == whole
        assert replace(best, name=name, data=replace(best.data, picks=0)) == whole


NARROW = [(*CASES[k], bits) for k, bits in ((0, "bf16"), (3, "bf16"), (5, "bf16"), (4, "4bit"))]


@pytest.mark.parametrize(("name", "sets", "precision"), NARROW, ids=["sd2", "flux", "flux lora", "flux-lora, 4 bits"])
def test_a_backbone_of_few_bits_starts_equal_and_learns(name, sets, precision, runs, controls, tmp_path):
    """As on a GPU: the frozen network in 16 or 4 bits, what is trained in float32; equal models answer equally, bit for bit."""
    sets = {**sets, **FOUR, "model__precision": precision, "guard__pictures": 1, "guard__every": 4}
    log = recipe.train(light(name, runs, controls, **sets, run__log_every=1), tmp_path / "run").logs
    assert log[0]["margin"] == log[0]["delta"] == 0 and log[0]["policy_chosen"] == log[0]["reference_chosen"]
    assert log[-1]["margin"] != 0 and math.isfinite(log[-1]["probe_reward"])
    kinds = {p.dtype for p in recipe.open_policy(light(name, runs, controls, **sets)).part.parameters()}
    assert kinds == {torch.float32}
