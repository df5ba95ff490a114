"""The recipe `perceptual_gan`: the order of its step, what each pass may touch, and that a run is what its seed says."""

import math
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from train_helpers import StopAfter, equal_files, make_pictures, state_of, tiny

from alignsr.core.backbones import load_backbone
from alignsr.core.weights import WeightsError, load_state_dict, read_info
from alignsr.train.config import ConfigError, published
from alignsr.train.data import DataError, PairData
from alignsr.train.loop import Loop, NonFiniteError, Stopped
from alignsr.train.losses import LossStack
from alignsr.train.optimize import make_average, make_optimizer
from alignsr.train.recipes import load_config, perceptual_gan
from alignsr.train.state import checkpoints

FULL = [
    name for name in published() if name.startswith("tiny-") and load_config(name)[0].config is perceptual_gan.PerceptualGanConfig
]
# without VGG19, whose 20 million random weights take most of a tiny step's time
LIGHT = {"losses__perceptual__weight": 0, "run__preview_every": 0, "run__export_every": 0, "run__validate_every": 0}
SIX = {**LIGHT, "run__steps": 6, "run__checkpoint_every": 2}
VGG, UNET = "tiny-aesop-rrdb-128", "tiny-aesop-real-ldl-matched"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", FULL)
def test_every_tiny_twin_trains_one_step_and_its_weights_load_back(name, pictures, tmp_path):
    config = tiny(name, pictures)
    hooks = StopAfter(99)
    result = perceptual_gan.train(config, tmp_path / "run", hooks)
    log = result.logs[-1]
    terms = config.losses.weights()
    assert result.step == 1
    assert all(math.isfinite(log[key]) for key in (*terms, "loss", "psnr_y", "ssim_y", "lr_psnr"))
    assert 0 <= log["out_of_range"] <= 1
    assert log["loss"] == pytest.approx(sum(weight * log[term] for term, weight in terms.items()), rel=1e-5)
    if "adversarial" in terms:
        assert log["discriminator/loss"] == pytest.approx(log["discriminator/real"] + log["discriminator/fake"], rel=1e-5)
    backbone = load_backbone(result.weights)
    assert backbone.upscale(torch.rand(1, 3, 9, 7)).shape == (1, 3, 36, 28)
    assert read_info(result.weights)["config"]["name"] == name
    assert (tmp_path / "run" / "samples.png").is_file()
    exported = tmp_path / "run" / "exports" / f"{name}-00000001.safetensors"
    assert exported.is_file() == bool(config.run.export_every)


@pytest.mark.parametrize("name", [VGG, UNET, "tiny-aesop-swinir-256"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, pictures, tmp_path):
    """With batch statistics, power iterations and, in SwinIR, stochastic depth."""
    config = tiny(name, pictures, **SIX)
    whole = perceptual_gan.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 6"):
        perceptual_gan.train(config, tmp_path / "parts", StopAfter(3))
    parts = perceptual_gan.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))
    assert [e["loss"] for e in whole.logs] == [e["loss"] for e in parts.logs]


@pytest.mark.parametrize("bits", [8, 32])
def test_a_generator_that_waits_has_an_optimiser_without_state_and_is_resumed(bits, pictures, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = tiny(VGG, pictures, **SIX | {"run__steps": 4}, discriminator__alone_steps=3, optimizer__bits=bits)
    whole = perceptual_gan.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 2 of 4"):
        perceptual_gan.train(config, tmp_path / "parts", StopAfter(2))
    parts = perceptual_gan.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))


def test_stopping_between_forward_passes_of_a_step_leaves_no_trace(pictures, tmp_path):
    """The discriminator's statistics have moved by then; they are put back with the finished step."""

    class StopInside(StopAfter):
        asked = 0

        def should_stop(self):
            self.asked += 1
            return self.asked == 4  # per step: once between its two forward passes, once at its end

    config = tiny(VGG, pictures, **SIX | {"run__steps": 4, "run__accumulation_steps": 2})
    whole = perceptual_gan.train(config, tmp_path / "whole")
    hooks = StopInside(99)
    hooks.asked = -1
    with pytest.raises(Stopped, match="inside step 3"):
        perceptual_gan.train(config, tmp_path / "parts", hooks)
    assert checkpoints(tmp_path / "parts")[-1].stem.endswith("2")
    parts = perceptual_gan.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))


def test_sigkill_of_the_command_line_and_resume_equals_uninterrupted(pictures, tmp_path):
    sets = [
        f'data.folders=["{pictures.as_posix()}"]',
        "run.steps=24",
        "run.checkpoint_every=3",
        *(f"{key.replace('__', '.')}={value}" for key, value in LIGHT.items()),
    ]
    command = [sys.executable, "-m", "alignsr", "train", VGG, *(x for s in sets for x in ("--set", s)), "--quiet"]
    folder = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # SIGKILL: nothing can be saved any more
    process.wait()
    assert checkpoints(folder), "the run was killed before its first checkpoint"
    assert not (folder / f"{VGG}.safetensors").exists(), "the run was over before it was killed"
    subprocess.run([*command, "--out", str(folder), "--resume"], check=True, capture_output=True)
    recipe, config = load_config(VGG, sets)
    whole = recipe.train(config, tmp_path / "whole")
    assert equal_files(whole.weights, folder / f"{VGG}.safetensors")


def test_with_rates_of_zero_nothing_changes(pictures, tmp_path):
    """aesop.md check 17."""
    still = {"optimizer__learning_rate": 0.0, "discriminator__optimizer__learning_rate": 0.0}
    config = tiny(VGG, pictures, **SIX | {"run__steps": 2} | still)
    perceptual_gan.train(config, tmp_path / "run")
    torch.manual_seed(config.run.seed)
    generator = perceptual_gan.build_model(config).network
    opponent = perceptual_gan.build_opponent(config)
    after = {"generator": state_of(tmp_path / "run", "generator"), "discriminator": state_of(tmp_path / "run", "discriminator")}
    for name, module in (("generator", generator), ("discriminator", opponent)):
        for key, value in module.named_parameters():
            assert torch.equal(after[name][key], value), f"{name}.{key}"
    counted = after["discriminator"]["bn1_0.num_batches_tracked"]
    assert int(counted) == 2 * 4, "batch statistics advance in the generator's pass too: two passes there, two in its own"


def test_what_each_pass_may_touch(pictures, tmp_path, monkeypatch):
    """aesop.md checks 2 and 17: D without gradient in G's pass; sr detached, and G without gradient, in D's."""
    seen = []
    original = Loop.backward

    def gradients(module):
        return [None if p.grad is None else p.grad.clone() for p in module.parameters()]

    def watched(self, name, terms, samples):
        generator, opponent = (self.parts[part].module for part in ("generator", "discriminator"))
        before = gradients(generator)
        if name == "generator":
            assert not any(p.requires_grad for p in opponent.parameters())
        original(self, name, terms, samples)
        moved = any(b is None or not torch.equal(a, b) for a, b in zip(gradients(generator), before, strict=True))
        seen.append((name, moved, any(gradient is not None for gradient in gradients(opponent))))
        if name == "discriminator":
            assert all(p.requires_grad for p in opponent.parameters())

    monkeypatch.setattr(Loop, "backward", watched)
    perceptual_gan.train(tiny(VGG, pictures, **SIX | {"run__steps": 2}), tmp_path / "run")
    assert seen == [("generator", True, False), ("discriminator", False, True)] * 2


def test_steps_at_the_end_equal_the_released_order(pictures, tmp_path):
    """There the generator's step comes before the discriminator's terms, and those are differentiated one by one."""
    config = tiny(VGG, pictures, **SIX | {"run__steps": 3})
    perceptual_gan.train(config, tmp_path / "run")
    torch.manual_seed(config.run.seed)
    generator = perceptual_gan.build_model(config).network
    opponent = perceptual_gan.build_opponent(config)
    average = make_average(generator, config.run.ema_decay)
    optimizers = [make_optimizer(module.parameters(), config.optimizer) for module in (generator, opponent)]
    losses, data = LossStack(config.losses, scale=4), PairData(config.data, 4, config.run.seed, 2)
    for step in range(3):
        batch = data.batch(2 * step, 2)
        opponent.requires_grad_(False)
        sr = generator(batch.lq)
        with torch.no_grad():
            sr_ema = average(batch.lq)
        losses.generator_terms(sr, batch.gt, sr_ema, opponent).total().mean().backward()
        optimizers[0].step()
        opponent.requires_grad_(True)
        terms = losses.critic_terms(opponent, sr, batch.gt).values
        terms["real"].mean().backward(retain_graph=True)
        terms["fake"].mean().backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        average.update_parameters(generator)
    for name, module in (("generator", generator), ("discriminator", opponent)):
        trained = state_of(tmp_path / "run", name)
        for key, value in module.state_dict().items():
            assert torch.allclose(trained[key].double(), value.double(), rtol=1e-5, atol=1e-6), f"{name}.{key}"


def test_one_backward_pass_of_the_discriminator_equals_two(pictures):
    """aesop.md check 17."""
    config = tiny(VGG, pictures, **LIGHT)
    gt, sr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    gradients = []
    for together in (True, False):
        torch.manual_seed(0)
        opponent = perceptual_gan.build_opponent(config)
        terms = LossStack(config.losses, scale=4).critic_terms(opponent, sr, gt).values
        if together:
            (terms["real"].mean() + terms["fake"].mean()).backward()
        else:
            terms["real"].mean().backward(retain_graph=True)
            terms["fake"].mean().backward()
        gradients.append([p.grad for p in opponent.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("artifact", "expected"), [(1, True), (0, False)])
def test_the_average_runs_only_for_a_loss_that_needs_it(artifact, expected, pictures, tmp_path, monkeypatch):
    calls = []
    original = perceptual_gan._averaged_result
    monkeypatch.setattr(perceptual_gan, "_averaged_result", lambda loop, lq: calls.append(1) or original(loop, lq))
    perceptual_gan.train(tiny(VGG, pictures, **LIGHT, losses__artifact__weight=artifact), tmp_path / "run")
    assert bool(calls) == expected


def test_the_average_follows_the_generator_and_the_discriminator_has_none(pictures, tmp_path):
    config = tiny(VGG, pictures, **LIGHT, run__ema_decay=0.9)
    torch.manual_seed(config.run.seed)
    before = dict(perceptual_gan.build_model(config).network.named_parameters())
    perceptual_gan.train(config, tmp_path / "run")
    tensors = load_state_dict(checkpoints(tmp_path / "run")[-1])
    live = state_of(tmp_path / "run", "generator")
    assert not any(key.startswith("averages/discriminator") for key in tensors)
    for key, start in before.items():
        expected = 0.9 * start + 0.1 * live[key]
        assert torch.allclose(tensors[f"averages/generator/module.{key}"], expected, atol=1e-7)


def test_the_generator_waits_and_takes_turns(pictures, tmp_path):
    """net_d_init_iters 2 and net_d_iters 2: it is trained in steps 4 and 6 of 6."""
    config = tiny(VGG, pictures, **SIX, discriminator__alone_steps=2, discriminator__generator_every=2)
    result = perceptual_gan.train(config, tmp_path / "run")
    assert [int(e["step"]) for e in result.logs if "loss" in e] == [4, 6]
    assert all("discriminator/loss" in e for e in result.logs)
    with pytest.raises(Stopped):
        perceptual_gan.train(config, tmp_path / "parts", StopAfter(3))
    assert equal_files(result.weights, perceptual_gan.train(config, tmp_path / "parts", resume=True).weights)


def test_accumulation_of_two_equals_a_doubled_batch(pictures, tmp_path):
    """Where nothing depends on who else is in the batch: U-Net and plain loss. Its power iterations run once per forward pass,
    so the discriminator stands still and only its judgement of the first step is compared.
    """
    common = {**LIGHT, "run__steps": 1, "data__pool_size": 0, "losses__artifact__weight": 0}
    one = perceptual_gan.train(tiny(UNET, pictures, run__batch_size=4, **common), tmp_path / "one")
    two = perceptual_gan.train(tiny(UNET, pictures, run__batch_size=2, run__accumulation_steps=2, **common), tmp_path / "two")
    assert one.logs[0]["aesop"] == pytest.approx(two.logs[0]["aesop"], rel=1e-5)
    assert one.logs[0]["adversarial"] == pytest.approx(two.logs[0]["adversarial"], rel=1e-2)


@pytest.mark.parametrize(
    "switch",
    [
        {"run__precision": "bf16"},
        {"run__precision": "fp16"},
        {"run__channels_last": True},
        {"losses__adversarial__weight": 0},
        {"losses__adversarial__kind": "plain"},
        {"losses__adversarial__average": "global"},
        {"losses__artifact__detach_map": True},
        {"model__save_dtype": "fp16"},
        {"run__ema_decay": 0, "losses__artifact__weight": 0},
        {"data__turns": "horizontal"},
        {"model__options": {"checkpoint_blocks": True}},
    ],
)
def test_every_option_runs_and_resumes(switch, pictures, tmp_path):
    config = tiny(VGG, pictures, **SIX | {"run__steps": 2, "run__checkpoint_every": 1} | switch)
    whole = perceptual_gan.train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        perceptual_gan.train(config, tmp_path / "parts", StopAfter(1))
    assert equal_files(whole.weights, perceptual_gan.train(config, tmp_path / "parts", resume=True).weights)


@pytest.mark.parametrize(
    ("part", "loss", "message"),
    [
        ("generator", "aesop_loss", "step 2: term aesop of generator is not finite for picture_"),
        ("discriminator", "critic", "step 2: term fake of discriminator is not finite for picture_"),
    ],
)
def test_not_a_number_names_part_term_step_and_samples(part, loss, message, pictures, tmp_path, monkeypatch):
    from alignsr.core.losses import adversarial
    from alignsr.train import losses

    calls = []
    if loss == "critic":
        original = adversarial.relativistic_critic_loss

        def poisoned(*arguments):
            calls.append(1)
            terms = original(*arguments)
            return terms._replace(fake=terms.fake * (float("nan") if len(calls) == 2 else 1.0))

        monkeypatch.setattr(adversarial, "relativistic_critic_loss", poisoned)
    else:
        original = losses.aesop_loss

        def poisoned(*arguments, **options):
            calls.append(1)
            return original(*arguments, **options) * (float("nan") if len(calls) == 2 else 1.0)

        monkeypatch.setattr(losses, "aesop_loss", poisoned)
    with pytest.raises(NonFiniteError, match=message):
        perceptual_gan.train(tiny(VGG, pictures, **SIX), tmp_path / "run")
    assert [path.stem for path in checkpoints(tmp_path / "run")] == ["state-00000001"]


@pytest.mark.parametrize("where", ["critic_terms", "generator_terms", "update"])
def test_an_interruption_anywhere_in_a_step_keeps_the_finished_ones(where, pictures, tmp_path, monkeypatch):
    """A second Ctrl-C, or memory that runs out: before either part is updated, or (update) after both are."""
    config = tiny(VGG, pictures, **SIX | {"run__steps": 4, "run__checkpoint_every": 4})
    whole = perceptual_gan.train(config, tmp_path / "whole")
    owner = Loop if where == "update" else LossStack
    original, calls = getattr(owner, where), []

    def interrupted(*arguments, **options):
        result = original(*arguments, **options)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, where, interrupted)
        perceptual_gan.train(config, tmp_path / "parts")
    assert [path.stem for path in checkpoints(tmp_path / "parts")] == [f"state-0000000{3 if where == 'update' else 2}"]
    parts = perceptual_gan.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))


def test_an_interruption_between_the_two_updates_leaves_the_last_checkpoint(pictures, tmp_path, monkeypatch):
    """A moment of arithmetic with no state to resume from: nothing is saved over what is."""
    config = tiny(VGG, pictures, **SIX)
    whole = perceptual_gan.train(config, tmp_path / "whole")
    steps = []

    def interrupted(self, optimizer, *arguments, **options):
        steps.append(1)
        if len(steps) == 8:  # the discriminator's of the fourth step
            raise KeyboardInterrupt
        return optimizer.step()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.amp.GradScaler, "step", interrupted)
        perceptual_gan.train(config, tmp_path / "parts")
    assert checkpoints(tmp_path / "parts")[-1].stem == "state-00000002"
    assert equal_files(whole.weights, perceptual_gan.train(config, tmp_path / "parts", resume=True).weights)


def test_a_gradient_that_is_not_finite_updates_neither_part(pictures, tmp_path, monkeypatch):
    """The discriminator's, found after the generator's has been looked at."""
    original, calls = Loop.backward, []

    def poisoned(self, name, terms, samples):
        original(self, name, terms, samples)
        calls.append(name)
        if len(calls) == 4:
            next(iter(self.parts[name].module.parameters())).grad.fill_(float("nan"))

    monkeypatch.setattr(Loop, "backward", poisoned)
    config = tiny(VGG, pictures, **SIX)
    with pytest.raises(NonFiniteError, match="step 2: the gradient of discriminator is not finite"):
        perceptual_gan.train(config, tmp_path / "parts")
    assert [path.stem for path in checkpoints(tmp_path / "parts")] == ["state-00000001"]
    monkeypatch.undo()
    parts = perceptual_gan.train(config, tmp_path / "parts", resume=True)
    assert equal_files(parts.weights, perceptual_gan.train(config, tmp_path / "whole").weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__gt_patch_px": 34}, "data.gt_patch_px: expected a multiple of model.scale 4, got 34"),
        ({"data__gt_patch_px": 48}, "discriminator.input_px: expected data.gt_patch_px 48, got 32"),
        (
            {"data__gt_patch_px": 36, "discriminator__kind": "unet"},
            "data.gt_patch_px: expected a multiple of 8 for the U-Net, got 36",
        ),
        ({"run__ema_decay": 0}, "run.ema_decay: expected more than 0 for the artifact loss"),
        ({"model__architecture": ""}, "model.architecture: expected a network's name, got nothing"),
        ({"discriminator__generator_every": 0}, "generator_every: expected at least 1, got 0"),
        ({"discriminator__kind": "vgg16"}, "expected one of 'vgg', 'unet'"),
        ({"losses__aesop__wieght": 1}, "losses.aesop.wieght: unknown key; did you mean 'weight'"),
        ({"losses__aesop__autoencoder": ""}, "aesop.autoencoder: expected a bundled name"),
    ],
)
def test_unusable_settings_are_named(pictures, change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(VGG, pictures, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__scale": 2}, "aesop.autoencoder: expected one of the network's scale 2, got random of scale 4"),
        ({"run__batch_size": 1}, "run.batch_size: expected at least 2 over all processes for the batch normalisation"),
        ({"model__architecture": "rrdbnet"}, "did you mean 'rrdb'"),
        ({"model__options": {"width": 3}}, "rrdb does not take them"),
        ({"losses__aesop__weight": 0, "losses__artifact__weight": 0, "losses__adversarial__weight": 0}, "expected at least one"),
        ({"losses__aesop__autoencoder": "nowhere.pth"}, "nowhere.pth"),
        ({"data__gt_patch_px": 64, "discriminator__input_px": 64, "data__subimage_px": 0}, "sides of at least 64 px, got 48x"),
    ],
)
def test_what_shows_when_training_starts_is_named(pictures, change, message, tmp_path):
    with pytest.raises(ValueError if "nowhere" not in message else FileNotFoundError, match=message):
        perceptual_gan.train(tiny(VGG, pictures, **LIGHT | change), tmp_path / "run")
    assert not checkpoints(tmp_path / "run")


def test_grey_pictures_train_as_colour_and_a_damaged_one_is_left_out_by_choice(pictures, tmp_path, caplog):
    folder = make_pictures(tmp_path / "mixed", count=2)
    Image.open(folder / "picture_0.png").convert("L").save(folder / "grey.png")
    (folder / "damaged.png").write_bytes((folder / "picture_0.png").read_bytes()[:100])
    config = tiny(VGG, folder, **LIGHT, run__batch_size=16, run__seed=1, data__on_error="skip", data__holdout=0)
    result = perceptual_gan.train(config, tmp_path / "run")
    assert math.isfinite(result.logs[-1]["loss"])
    assert "damaged.png: not readable as an image" in caplog.text
    with pytest.raises(DataError, match=r'damaged\.png: not readable as an image .*remove it or set data.on_error = "skip"'):
        perceptual_gan.train(tiny(VGG, folder, **LIGHT, run__batch_size=16, run__seed=1, data__holdout=0), tmp_path / "other")


def test_one_sample_is_enough_without_batch_statistics(pictures, tmp_path):
    result = perceptual_gan.train(tiny(UNET, pictures, **LIGHT, run__batch_size=1), tmp_path / "run")
    assert math.isfinite(result.logs[-1]["loss"])


def test_a_bundled_model_is_a_start(pictures, tmp_path):
    """Its header says what it is; its weights are where training begins."""
    still = {"optimizer__learning_rate": 0.0}
    config = tiny(VGG, pictures, **LIGHT | still, model__architecture="", model__init="lite-x4")
    config_options = perceptual_gan.GeneratorConfig("", 4, {}, "lite-x4")
    import dataclasses

    config = dataclasses.replace(config, model=config_options)
    result = perceptual_gan.train(config, tmp_path / "run")
    lq = torch.rand(1, 3, 8, 8)
    ours, theirs = load_backbone(result.weights), load_backbone("lite-x4")
    assert torch.allclose(ours.upscale(lq), theirs.upscale(lq), atol=1e-6)


def test_a_released_file_is_a_start_and_a_wrong_one_is_reported(pictures, tmp_path):
    config = tiny(VGG, pictures, **LIGHT, optimizer__learning_rate=0.0)
    torch.manual_seed(9)
    network = perceptual_gan.build_model(config).network
    torch.save({"params_ema": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "net.pth")
    from_file = tiny(VGG, pictures, **LIGHT, optimizer__learning_rate=0.0, model__init="net.pth")
    perceptual_gan.train(from_file, tmp_path / "run", model_folders=(tmp_path,))
    after = state_of(tmp_path / "run", "generator")
    assert all(torch.equal(after[key], value) for key, value in network.named_parameters())
    other = tiny(VGG, pictures, **LIGHT, model__init=(tmp_path / "net.pth").as_posix(), model__options={"features": 16})
    with pytest.raises(WeightsError, match="wrong shape"):
        perceptual_gan.train(other, tmp_path / "other")
    assert load_state_dict(tmp_path / "net.pth")  # the wrapper of the released format was opened


def test_training_against_the_loss_alone_lowers_it(pictures, tmp_path):
    config = tiny(
        "tiny-ldl-rrdb-128", pictures, **LIGHT, run__steps=40, run__checkpoint_every=40, optimizer__learning_rate=5e-3,
        losses__pixel__weight=1.0, losses__adversarial__weight=0, losses__artifact__weight=0,
    )  # fmt: skip
    logs = perceptual_gan.train(config, tmp_path / "run").logs
    assert sum(e["pixel"] for e in logs[-8:]) < 0.6 * sum(e["pixel"] for e in logs[:8])
