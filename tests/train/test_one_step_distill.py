"""The recipe `one_step_distill`: its step is StrSR's, resumes exactly, and stage 2 goes on where stage 1 ended."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from pass_helpers import counted_passes
from strsr_helpers import one_step_adapter, write_released
from train_helpers import StopAfter, equal_files, make_pictures, state_of, tiny

from alignsr.core.adapters import merged_state
from alignsr.core.backbones import LATENT_KINDS, load_backbone, open_backbone
from alignsr.core.backbones.base import BackboneSpec
from alignsr.core.backbones.latent import tiny as tiny_backbone
from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.lora import LORA_TARGETS, Adapter, adapter_state, expected_state
from alignsr.core.lora_files import read_adapter, save_adapter
from alignsr.core.networks.tiny_autoencoder import TinyAutoencoder
from alignsr.core.restore import one_step
from alignsr.core.weights import WeightsError, load_state_dict, read_info, save_weights
from alignsr.train.config import ConfigError, published
from alignsr.train.data import PairData
from alignsr.train.loop import Loop, NonFiniteError, Stopped
from alignsr.train.one_step import LATENTS, InAutocast, OneStepModelConfig
from alignsr.train.one_step_files import showing
from alignsr.train.recipes import load_config
from alignsr.train.recipes import one_step_distill as recipe
from alignsr.train.start import samples_before
from alignsr.train.state import checkpoints
from reference.formula import S, U

FULL = [n for n in published() if n.startswith("tiny-") and load_config(n)[0].config is recipe.OneStepDistillConfig]
PIXEL, FLUX, Z_IMAGE = "tiny-strsr-pixel-stage2", "tiny-strsr-flux2-klein-stage1", "tiny-strsr-z-image-stage1"
QUIET = {"run__preview_every": 0, "run__validate_every": 0}
NETWORK = {"discriminator__features__kind": "network"}  # a tenth of the time of a convolutional critic at 128 px
LIGHT = {**QUIET, **NETWORK, "losses__lpips__weight": 0, "data__gt_patch_px": 64, "data__workers": 0}
LIGHT_PIXEL = {**QUIET, "data__gt_patch_px": 64}
FOUR = {"run__steps": 4, "run__checkpoint_every": 2}
STILL = {"optimizer__learning_rate": 0.0, "discriminator__optimizer__learning_rate": 0.0}


SMALL = {"patch_px": 8, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures, and beside them a small pixel model whose last layer is not zero, so that an adapter gets a gradient."""
    folder = tmp_path_factory.mktemp("pictures")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PixelBackbone(SMALL).network
        torch.nn.init.normal_(network.transformer.proj_out.weight, std=0.02)
    save_weights(folder / "pixel.safetensors", network.state_dict())
    return make_pictures(folder, side=136)


def light(name, pictures, **sets):
    small = {"model__init": (pictures / "pixel.safetensors").as_posix(), "model__options": SMALL}
    return tiny(name, pictures, **(LIGHT_PIXEL | small if "pixel" in name else LIGHT) | sets)


@pytest.mark.parametrize("name", FULL)
def test_every_tiny_twin_trains_one_step_and_its_weights_load_back(name, pictures, tmp_path):
    """VGG16 and VGG19 of random weights at 128 px take most of the seconds."""
    config = tiny(name, pictures)
    result = recipe.train(config, tmp_path / "run", StopAfter(99))
    log, terms = result.logs[-1], config.losses.weights()
    assert set(terms) == {"pixel", "ragan"} | ({"fdl"} if "stage2" in name else set()) | (set() if "pixel" in name else {"lpips"})
    assert log["loss"] == pytest.approx(sum(weight * log[term] for term, weight in terms.items()), rel=1e-5)
    assert log["discriminator/loss"] == pytest.approx(log["discriminator/ragan"] + 10 * log["discriminator/r1"], rel=1e-5)
    assert 0 < log["discriminator/r1"] < 1e-2
    assert log["grad_norm"] > 0
    assert all(math.isfinite(log[key]) for key in ("psnr_y", "ssim_y", "lr_psnr", "periodic"))
    assert ("fdl_unit_range" in log) == ("fdl" in terms)
    assert (tmp_path / "run" / "samples.png").is_file()
    assert read_info(result.weights)["config"]["name"] == name
    heads = load_state_dict(recipe.critic_path(result.weights))
    assert set(heads) == set(state_of(tmp_path / "run", "discriminator"))
    if "pixel" in name:
        backbone = load_backbone(result.weights)
    else:
        kind = config.model.backbone
        adapter = read_adapter(result.weights)
        backbone = open_backbone(kind, "tiny", precision="fp32", lora=result.weights)
        assert set(adapter.projector) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert set(adapter.state) == set(expected_state(tiny_backbone(kind).transformer, LORA_TARGETS[kind], 4))
    sr = one_step(backbone, torch.rand(1, 3, 64, 64))
    assert torch.isfinite(sr).all()


@pytest.mark.parametrize("name", [PIXEL, FLUX])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, pictures, tmp_path):
    """With a moving average (pixel); with posterior samples, a projector and cached tokens (FLUX.2)."""
    config = light(name, pictures, **FOUR, optimizer__learning_rate=1e-3)
    whole = recipe.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 4"):
        recipe.train(config, tmp_path / "parts", StopAfter(3))
    parts = recipe.train(config, tmp_path / "parts", resume=True)
    for file in (whole.weights.name, recipe.critic_path(whole.weights).name, checkpoints(tmp_path / "whole")[-1].name):
        assert equal_files(tmp_path / "whole" / file, tmp_path / "parts" / file), file
    assert [e["loss"] for e in whole.logs] == [e["loss"] for e in parts.logs]
    assert len({e["loss"] for e in whole.logs}) == 4


def test_what_each_pass_may_touch(pictures, tmp_path, monkeypatch):
    """Check 13 in the recipe: heads without gradient in G's pass, G without in D's; nothing frozen ever gets one or moves."""
    seen, models = [], []
    original, build = Loop.backward, recipe.build_model

    def watched(self, name, terms, samples):
        generator, heads = (self.parts[part].module for part in ("generator", "discriminator"))
        before = [None if p.grad is None else p.grad.clone() for p in generator.parameters()]
        original(self, name, terms, samples)
        if name == "discriminator":
            after = [p.grad for p in generator.parameters()]
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after, strict=True))
        seen.append((name, *(any(p.grad is not None for p in m.parameters()) for m in (generator, heads))))

    def remembered(*arguments):
        models.append(build(*arguments))
        return models[-1]

    monkeypatch.setattr(Loop, "backward", watched)
    monkeypatch.setattr(recipe, "build_model", remembered)
    config = light(FLUX, pictures, run__steps=2, optimizer__learning_rate=1e-3)
    recipe.train(config, tmp_path / "run")
    assert seen == [("generator", True, False), ("discriminator", True, True)] * 2
    (model,) = models
    fresh = recipe.build_model(config)
    trained = {id(p) for p in model.part.parameters()}
    for (name, module), (_, other) in zip(model.backbone.modules(), fresh.backbone.modules(), strict=True):
        for (key, live), start in zip(module.named_parameters(), other.parameters(), strict=True):
            assert live.requires_grad == (id(live) in trained), f"{name}.{key}"
            assert id(live) in trained or (live.grad is None and torch.equal(live, start)), f"{name}.{key}"
    moved = [not torch.equal(a, b) for a, b in zip(model.part.parameters(), fresh.part.parameters(), strict=True)]
    assert all(moved), "every matrix of the adapter and every weight of the projector learns"


@pytest.mark.parametrize(("precision", "looks"), [("fp32", 3), ("bf16", 4)])
def test_the_critics_backbone_looks_at_each_image_once(precision, looks, pictures, tmp_path, monkeypatch):
    """Ground truth and sr once for both players, and the noisy copy; in bf16 the penalty wants its own look in float32."""
    looked, original = [], recipe.build_critic

    def watched(*arguments):
        critic = original(*arguments)
        critic.features.register_forward_hook(lambda module, images, result: looked.append(result[0].dtype))
        for name in ("features", "heads"):
            call = partial(lambda name, *_: rounded.append((name, torch.backends.cudnn.allow_tf32)), name)
            getattr(critic, name).register_forward_hook(call)
        return critic

    monkeypatch.setattr(recipe, "build_critic", watched)
    rounded, usual = [], torch.backends.cudnn.allow_tf32
    recipe.train(light(PIXEL, pictures, run__steps=1, discriminator__precision=precision), tmp_path / "run")
    assert len(looked) == looks
    assert looked[-1] == torch.float32
    assert usual and torch.backends.cudnn.allow_tf32, "PyTorch's own choice, inside the fp32 parts alone without"
    loose = [name for name, allowed in rounded if allowed]
    assert loose == (["features"] * 2 if precision == "bf16" else []), "what both players look through, in bf16 alone"


def test_with_rates_of_zero_only_the_power_iterations_move(pictures, tmp_path):
    config = light(PIXEL, pictures, **STILL, run__steps=2)
    recipe.train(config, tmp_path / "run")
    generator, heads = state_of(tmp_path / "run", "generator"), state_of(tmp_path / "run", "discriminator")
    assert all(torch.equal(generator[k], v) for k, v in recipe.build_model(config).part.named_parameters())
    assert all(torch.equal(heads[k], v) for k, v in recipe.build_critic(config).heads.named_parameters())
    start = load_state_dict(pictures / "pixel.safetensors")
    saved = load_state_dict(tmp_path / "run" / f"{PIXEL}.safetensors")
    assert all(torch.equal(saved[key], value.half()) for key, value in start.items()), "B = 0 merges to the base model (check 28)"


def test_a_step_improves_what_the_losses_name(pictures, tmp_path):
    config = light(
        "tiny-strsr-pixel-stage1", pictures, run__steps=16, run__checkpoint_every=16, run__ema_decay=0, losses__ragan__weight=0,
        optimizer__learning_rate=2e-3, data__degradation="strsr", run__batch_size=1, model__posterior="mean", run__log_every=1,
    )  # fmt: skip
    logs = recipe.train(config, tmp_path / "run").logs
    assert sum(e["pixel"] for e in logs[-4:]) < 0.9 * sum(e["pixel"] for e in logs[:4])
    assert not any(key.startswith("discriminator") for e in logs for key in e)


def test_a_critic_alone_learns_to_tell(pictures, tmp_path):
    """The generator stands still: the critic's relativistic loss falls from 2 ln 2 per level and half."""
    config = light(
        "tiny-strsr-pixel-stage1", pictures, run__steps=24, run__checkpoint_every=24, optimizer__learning_rate=0.0,
        discriminator__optimizer__learning_rate=2e-3, run__log_every=1, discriminator__hidden=32,
    )  # fmt: skip
    logs = recipe.train(config, tmp_path / "run").logs
    assert logs[0]["discriminator/ragan"] == pytest.approx(4 * math.log(2), rel=0.1)
    first, last = (sum(e["discriminator/ragan"] for e in part) for part in (logs[:6], logs[-6:]))
    assert last < first


class Known:
    """A flow backbone whose velocity leads from any state to a known clean one."""

    def __init__(self, clean, length):
        self.clean, self.length, self.asked = clean, length, []
        self.spec = BackboneSpec("known", "flow", None, 1, 64, 0, 0.8, 3, 1, 0, 0, 0, "none", step_length=length)

    def modules(self):
        return iter(())

    def encode(self, image, *, generator=None):
        return image

    def velocity(self, z, sigma, z_lq, conditioning=None):
        self.asked.append(float(sigma))
        return (z - self.clean) / self.length

    def decode(self, z):
        return z


@pytest.mark.parametrize("length", [0.8, 1.0, 0.5])
def test_15_the_step_returns_the_clean_state(length):
    """Clock and length of the step are two settings (strsr.md 5.1)."""
    clean = S("one-step/clean", 1, 3, 16, 16)
    known = Known(clean, length)
    sr = one_step(InAutocast(known, torch.no_grad), U("one-step/lq", 1, 3, 16, 16))
    assert torch.allclose(2 * sr - 1, clean, atol=1e-5)
    assert known.asked == [pytest.approx(0.8)]


@pytest.mark.parametrize("name", ["flux2-klein", "z-image"])
def test_stage_2_starts_where_stage_1_ended(name, pictures, tmp_path):
    one = light(f"tiny-strsr-{name}-stage1", pictures, run__steps=2, optimizer__learning_rate=1e-3)
    first = recipe.train(one, tmp_path / "one")
    fdl = {"losses__fdl__features__kind": "network", "losses__fdl__features__weights": "random"}
    start = {"model__init": first.weights.as_posix(), "discriminator__init": recipe.critic_path(first.weights).as_posix()}
    two = light(f"tiny-strsr-{name}-stage2", pictures, **start, **fdl, **STILL)
    second = recipe.train(two, tmp_path / "two")
    assert "fdl" in second.logs[-1]
    before, after = (state_of(tmp_path / folder, "generator") for folder in ("one", "two"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    base = recipe.build_model(one).part
    assert any(not torch.equal(before[key], value) for key, value in base.state_dict().items())
    heads = [state_of(tmp_path / folder, "discriminator") for folder in ("one", "two")]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0] if "original" in key or "bias" in key)


def test_stage_2_goes_on_with_the_optimisers_of_a_checkpoint(pictures, tmp_path):
    one = light("tiny-strsr-pixel-stage1", pictures, run__steps=3, run__checkpoint_every=3)
    recipe.train(one, tmp_path / "one")
    gone = {"model__init": "models/gone.safetensors", "discriminator__init": "models/gone-critic.safetensors"}  # as published
    start = {"start_from": (tmp_path / "one").as_posix()}
    two = light(PIXEL, pictures, **start, **gone, optimizer__learning_rate=0.0, run__steps=2)
    result = recipe.train(two, tmp_path / "two")
    assert result.step == 2
    assert result.logs[-1]["learning_rate"] == 0.0, "the rate is the new run's own"
    one_state, two_state = (load_state_dict(checkpoints(tmp_path / f)[-1]) for f in ("one", "two"))
    steps = {f: {float(v) for k, v in s.items() if k.endswith("/step")} for f, s in (("one", one_state), ("two", two_state))}
    assert steps == {"one": {3.0}, "two": {5.0}}
    generator = [{k: v for k, v in s.items() if k.startswith("modules/generator")} for s in (one_state, two_state)]
    assert all(torch.equal(generator[0][k], generator[1][k]) for k in generator[0])
    third = recipe.train(replace(two, start_from=(tmp_path / "two").as_posix()), tmp_path / "third")
    base, merged = load_state_dict(pictures / "pixel.safetensors"), load_state_dict(third.weights)
    assert base.keys() == merged.keys(), "a third stage still finds the weights that the first began with"
    with pytest.raises(FileNotFoundError, match="start_from: expected a run folder with checkpoints"):
        recipe.train(replace(two, start_from=(tmp_path / "nowhere").as_posix()), tmp_path / "three")
    newest = checkpoints(tmp_path / "two")[-1]
    info = read_info(newest)
    info["extra"].pop("samples")
    save_weights(newest, load_state_dict(newest), info)
    with pytest.raises(WeightsError, match="says how many samples were seen"):
        recipe.train(replace(two, start_from=(tmp_path / "two").as_posix()), tmp_path / "four")


@pytest.mark.parametrize("start", ["checkpoint", "files"])
def test_stage_2_sees_other_samples_than_stage_1(start, pictures, tmp_path, monkeypatch):
    """Both have one seed. Its own resume goes on in its own place, and a third stage goes on after both."""
    asked, drawn, batch, draws = [], [], PairData.batch, recipe._draws

    def watched(self, first_index, size):
        asked.extend(range(first_index, first_index + size))
        return batch(self, first_index, size)

    def noted(config, loop, micro):
        draw = draws(config, loop, micro)
        drawn.append(draw(recipe.NOISE).initial_seed())
        return draw

    monkeypatch.setattr(PairData, "batch", watched)
    monkeypatch.setattr(recipe, "_draws", noted)
    options = {**FOUR, "optimizer__learning_rate": 1e-3, "data__workers": 0, "run__accumulation_steps": 2}

    def stage(before, **more):
        if before is None:
            return light("tiny-strsr-pixel-stage1", pictures, **options, **more)
        if start == "checkpoint":
            return light(PIXEL, pictures, **options, **more, start_from=before.folder.as_posix())
        critic = recipe.critic_path(before.weights).as_posix()
        return light(PIXEL, pictures, **options, **more, model__init=before.weights.as_posix(), discriminator__init=critic)

    one = recipe.train(stage(None), tmp_path / "one")
    per_stage = 4 * 2 * 2  # steps, forward passes, samples of each
    assert asked == list(range(per_stage))
    whole = recipe.train(stage(one), tmp_path / "whole")
    assert asked == list(range(2 * per_stage)) and len(set(drawn)) == len(drawn) == 2 * 4 * 2
    before = len(asked)
    with pytest.raises(Stopped, match="step 3 of 4"):
        recipe.train(stage(one), tmp_path / "parts", StopAfter(3))
    recipe.train(stage(one), tmp_path / "parts", resume=True)
    assert asked[before:] == list(range(per_stage, 2 * per_stage))
    for file in (whole.weights.name, recipe.critic_path(whole.weights).name, checkpoints(tmp_path / "whole")[-1].name):
        assert equal_files(tmp_path / "whole" / file, tmp_path / "parts" / file), file
    third = recipe.train(stage(whole, run__export_every=3), tmp_path / "third")
    assert asked[-per_stage:] == list(range(2 * per_stage, 3 * per_stage))
    exported = sorted((third.folder / "exports").iterdir())
    assert [read_info(path)["samples"] for path in (*exported, third.weights)] == [44, 48, 48]


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        (PIXEL, {"optimizer__bits": 8, "lora__rank": 160}),
        (PIXEL, {"lora__rank": 0}),
        (PIXEL, {"losses__ragan__reference": "paired", "losses__ragan__r1_noise": "uniform"}),
        (PIXEL, {"losses__ragan__reference": "average", "losses__ragan__span": "process"}),
        (PIXEL, {"losses__ragan__reference": "none", "losses__ragan__r1_weight": 0.0}),
        (PIXEL, {"losses__fdl__weight": 0.0, "losses__grid__weight": 0.1}),
        (PIXEL, {"losses__fdl__model_range": True, "losses__fdl__phase_weight": 0.0}),
        (PIXEL, {"discriminator__features__weights": "autoencoder-tiny-x4"}),
        (PIXEL, {"conditioning__kind": "vlm", "conditioning__model": "tiny", "conditioning__width": 32}),
        (PIXEL, {"run__accumulation_steps": 2, "data__pair_pool": 3, "sharpen_target": True}),
        (FLUX, {"lora__rank": 0, "conditioning__kind": "empty"}),
        (FLUX, {"run__precision": "bf16", "model__precision": "bf16", "model__vae_precision": "bf16"}),
        (FLUX, {"model__posterior": "mean", "model__use_checkpointing": False, "conditioning__keep": "nothing"}),
        (FLUX, {"model__step_length": 1.0, "model__save_dtype": "bf16", "data__crop": "random"}),
        (Z_IMAGE, {"conditioning__kind": "text", "conditioning__prompt": "sharp, detailed"}),
        (FLUX, {"conditioning__kind": "text"}),
        (Z_IMAGE, {"conditioning__kind": "empty", "model__latents": "raw", "conditioning__is_parity": False}),
    ],
)
def test_every_option_runs_and_resumes(name, switch, pictures, tmp_path):
    """Resumed where the option has a state of its own: 8-bit optimisers, whole networks, a projector, text."""
    config = light(name, pictures, **{"run__steps": 2, "run__checkpoint_every": 1} | switch)
    whole = recipe.train(config, tmp_path / "whole")
    if {"optimizer__bits", "lora__rank", "conditioning__width", "conditioning__prompt"} & switch.keys():
        with pytest.raises(Stopped):
            recipe.train(config, tmp_path / "parts", StopAfter(1))
        assert equal_files(whole.weights, recipe.train(config, tmp_path / "parts", resume=True).weights)
    assert all(math.isfinite(e["loss"]) for e in whole.logs)
    info = read_info(whole.weights)
    assert info["step_length"] == config.model.step_length
    if config.model.backbone == "z_image":
        assert info["latents"] == (config.model.latents or "scaled")


@pytest.mark.parametrize(
    ("name", "switch"),
    [(PIXEL, {}), (FLUX, {"conditioning__kind": "empty"}), (Z_IMAGE, {"conditioning__kind": "empty", "lora__rank": 0})],
)
def test_inference_goes_as_far_as_training_did(name, switch, pictures, tmp_path):
    """A step of another length than the noise level is in the file and repeated by whoever opens it (strsr.md 5.1)."""
    config = light(name, pictures, **switch, model__step_length=0.5, model__save_dtype="fp32", optimizer__learning_rate=1e-3)
    weights = recipe.train(config, tmp_path / "run").weights
    kind, x = config.model.backbone, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    is_adapter = "lora__rank" not in switch and kind != "pixel"
    opened = open_backbone(kind, "tiny", precision="fp32", lora=weights) if is_adapter else load_backbone(weights)
    assert (opened.spec.start_sigma, opened.spec.step_length) == (0.8, 0.5)
    with torch.no_grad():
        z = opened.encode(2 * x - 1)
        v = opened.velocity(z, torch.tensor([0.8]), z)
        assert torch.allclose(one_step(opened, x), (opened.decode(z - 0.5 * v) + 1) / 2, atol=1e-5)


def test_checkpointing_runs_blocks_again_and_changes_no_gradient(pictures, tmp_path):
    logs, passes = [], []
    for used in (True, False):
        config = light(FLUX, pictures, model__use_checkpointing=used)
        with counted_passes() as calls:
            logs.append(recipe.train(config, tmp_path / str(used)).logs[-1])
        passes.append(calls)
    for block in ("Flux2TransformerBlock", "Flux2SingleTransformerBlock", "UpDecoderBlock2D"):
        assert passes[0][block] > passes[1][block] > 0, block
    for key in ("loss", "grad_norm", "discriminator/loss"):
        assert logs[0][key] == pytest.approx(logs[1][key], rel=1e-5)


def test_a_small_klein_on_another_autoencoder_is_trained_whole(pictures, tmp_path):
    """What section 5's experiment does with TAEF2: the transformer takes the channels of the autoencoder from disk."""
    coder = TinyAutoencoder(latent_channels=8, width=8)
    path = save_weights(tmp_path / "coder.safetensors", coder.state_dict())
    config = light(
        FLUX, pictures, lora__rank=0, conditioning__kind="empty", model__autoencoder=path.as_posix(),
        model__options={"num_layers": 2, "num_single_layers": 2}, run__steps=2, optimizer__learning_rate=1e-3,
    )  # fmt: skip
    result = recipe.train(config, tmp_path / "run")
    backbone = load_backbone(result.weights)
    assert backbone.spec.latent_channels == 4 * 8
    assert len(backbone.transformer.transformer_blocks) == 2
    assert torch.isfinite(one_step(backbone, torch.rand(1, 3, 64, 64))).all()


def test_the_average_is_what_is_saved_and_validated(pictures, tmp_path):
    config = light(PIXEL, pictures, run__ema_decay=0.5, run__steps=2, optimizer__learning_rate=1e-2)
    result = recipe.train(config, tmp_path / "run")
    model = recipe.build_model(config)
    live, average = (state_of(tmp_path / "run", "generator", group) for group in ("modules", "averages"))
    for key, value in model.part.named_parameters():
        value.data.copy_(average[f"module.{key}"])
    assert any(not torch.equal(live[key], average[f"module.{key}"]) for key in live)
    merged = merged_state(model.backbone.network, model.network, Adapter(adapter_state(model.network), model.facts))
    saved = load_state_dict(result.weights)
    assert all(torch.equal(saved[key], value.half()) for key, value in merged.items())


@pytest.mark.parametrize(
    ("name", "source", "transformer", "base"),
    [
        (FLUX, "", "", "FLUX.2-klein-base-4B"),
        (Z_IMAGE, "", "", "Z-Image-Turbo"),
        (Z_IMAGE, "/models/diffusers/Z-Image-Turbo/", "", "Z-Image-Turbo"),
        (FLUX, "", "models/mine.safetensors", "mine.safetensors"),
    ],
)
def test_the_header_names_the_base_model(name, source, transformer, base, pictures, tmp_path):
    config = light(name, pictures)
    model = recipe.build_model(config)
    config = replace(config, model=replace(config.model, source=source, transformer=transformer))
    path = recipe.save_model(config, model, model.part, tmp_path / "x.safetensors", 1, 4, {})
    assert read_info(path)["base"] == base and read_info(path)["samples"] == 4


def test_a_stage_1_of_other_settings_is_refused_and_each_is_named(pictures, tmp_path):
    base = {"run__steps": 1, "losses__ragan__weight": 0, "conditioning__kind": "empty"}
    one = light(Z_IMAGE, pictures, **base, model__latents="raw", lora__alpha=4.0)
    recipe.train(one, tmp_path / "one")
    start = {"start_from": (tmp_path / "one").as_posix()}
    other = {
        "model__latents": "scaled", "model__sigma": 0.5, "model__step_length": 0.3, "lora__alpha": 16.0, "lora__rank": 2,
        "lora__targets": ["to_q"], "conditioning__kind": "text",
    }  # fmt: skip
    for key, value in other.items():
        config = light(Z_IMAGE, pictures, **(base | {"model__latents": "raw", "lora__alpha": 4.0} | {key: value}), **start)
        with pytest.raises(WeightsError, match=f"start_from: .*: {key.replace('__', '.')} is .* there and .* here; its"):
            recipe.train(config, tmp_path / "two")
    config = light(Z_IMAGE, pictures, **(base | other), **start)
    with pytest.raises(WeightsError, match=r'latents is "raw" there and "scaled" here; model.sigma is 0.8 there and 0.5 here; '):
        recipe.train(config, tmp_path / "two")
    with pytest.raises(WeightsError, match=r'model.backbone is "z_image" there and "flux2_klein" here'):
        recipe.train(light(FLUX, pictures, **base, **start), tmp_path / "two")


def test_settings_that_are_left_out_are_those_that_they_mean(pictures, tmp_path):
    """An adapter to start from brings its convention along, through all stages."""
    base = {"run__steps": 1, "losses__ragan__weight": 0, "conditioning__kind": "empty", "lora__rank": 4}
    start = save_adapter(tmp_path / "start.safetensors", one_step_adapter("z_image"))
    recipe.train(light(Z_IMAGE, pictures, **base, model__latents="", model__init=start.as_posix()), tmp_path / "one")
    targets = list(LORA_TARGETS["z_image"])
    spelled = {"model__latents": "raw", "lora__alpha": 4.0, "lora__targets": targets[::-1]}
    for name, more in (("two", spelled), ("three", {"model__latents": ""})):
        before = {"two": "one", "three": "two"}[name]
        config = light(Z_IMAGE, pictures, **base, **more, start_from=(tmp_path / before).as_posix())
        assert read_adapter(recipe.train(config, tmp_path / name).weights).info["latents"] == "raw"
    for kind in LATENT_KINDS:
        assert LATENTS[kind] == tiny_backbone(kind).latents


@pytest.mark.parametrize(("before", "after"), [(32, 8), (8, 32)])
def test_an_optimiser_of_other_bits_starts_anew_aloud(before, after, pictures, tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    base = {"run__steps": 1, "lora__rank": 160, "model__init": "", "model__options": {}}
    recipe.train(light(PIXEL, pictures, **base, optimizer__bits=before), tmp_path / "one")
    start = {"start_from": (tmp_path / "one").as_posix()}
    recipe.train(light(PIXEL, pictures, **base, **STILL, optimizer__bits=after, **start), tmp_path / "two")
    assert f"optimiser of generator has its state in {before} bits there and in {after} here" in caplog.text
    assert "discriminator has" not in caplog.text, "its optimiser goes on"
    one, two = (state_of(tmp_path / run, "generator") for run in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_validation_is_left_within_one_picture_and_the_run_goes_on(pictures, tmp_path):
    config = light(PIXEL, pictures, run__steps=3, run__validate_every=2, data__holdout=2, run__checkpoint_every=100)
    whole = recipe.train(config, tmp_path / "whole")

    class Impatient(StopAfter):
        def validating(self, done, total):
            self.looked = [*getattr(self, "looked", []), (done, total)]

        def should_stop(self):
            return bool(getattr(self, "looked", []))

    hooks = Impatient(99)
    with pytest.raises(Stopped, match="step 2 of 3"):
        recipe.train(config, tmp_path / "run", hooks)
    assert hooks.looked == [(0, 2)] and hooks.seen == [1, 2]
    assert [path.stem for path in checkpoints(tmp_path / "run")] == ["state-00000002"]
    seen = Impatient(99)
    seen.should_stop = lambda: False
    rest = recipe.train(config, tmp_path / "run", seen, resume=True)
    assert equal_files(whole.weights, rest.weights)
    assert {(0, 2), (1, 2)} <= set(seen.looked), "the end of the run is validated, and says how far it is"
    assert "psnr_y" in rest.logs[-1] and "psnr_y" not in rest.logs[-2] and rest.logs[-2]["step"] == 2


def test_showing_exchanges_values_and_brings_them_back():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    weights = one.weight.clone(), two.weight.clone()
    with pytest.raises(KeyError), showing(one, two):
        assert torch.equal(one.weight, weights[1])
        raise KeyError
    assert torch.equal(one.weight, weights[0])
    assert torch.equal(two.weight, weights[1])


@pytest.mark.parametrize("term", ["pixel", "fdl", "ragan"])
def test_not_a_number_names_the_term_and_the_samples(term, pictures, tmp_path, monkeypatch):
    from alignsr.train.losses import LossStack

    original = LossStack.generator_terms

    def poisoned(self, *arguments, **options):
        terms = original(self, *arguments, **options)
        return replace(terms, values={**terms.values, term: terms.values[term] * float("nan")})

    monkeypatch.setattr(LossStack, "generator_terms", poisoned)
    with pytest.raises(NonFiniteError, match=f"step 1: term {term} of generator is not finite for picture_"):
        recipe.train(light(PIXEL, pictures), tmp_path / "run")
    assert not checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (FLUX, {"data__gt_patch_px": 72}, "data.gt_patch_px: expected a multiple of what flux2_klein takes 16, got 72"),
        (PIXEL, {"data__gt_patch_px": 66}, "data.gt_patch_px: expected a multiple of model.scale 4, got 66"),
        (PIXEL, {"losses__adversarial__weight": 0.1}, "losses.adversarial: expected off .* use losses.ragan"),
        (PIXEL, {"conditioning__kind": "text"}, 'conditioning.kind: expected "vlm" or "empty" for pixel'),
        (
            FLUX,
            {"lora__rank": 0, "model__precision": "bf16"},
            'model.precision: expected "fp32" where the whole',
        ),
        (FLUX, {"lora__rank": -1}, "lora.rank, lora.alpha: expected at least 0"),
        (FLUX, {"model__sigma": 0.0}, "model.sigma: expected more than 0 and at most 1"),
        (FLUX, {"model__latents": "raw"}, "model.latents: expected .raw. with z_image only"),
        (FLUX, {"losses__ragan__reference": "mean"}, "losses.ragan.reference: expected one of"),
        (FLUX, {"losses__fdl__patch": 4}, "fdl.patch: expected an odd number, got 4"),
        (FLUX, {"optimizer__bits": 4}, "optimizer.bits: expected one of 32, 8"),
        (PIXEL, {"run__channels_last": True}, "run.channels_last: expected false"),
    ],
)
def test_unusable_settings_are_named(name, change, message, pictures):
    with pytest.raises(ConfigError, match=message):
        tiny(name, pictures, **change)


def adapter_file(folder, kind, rank=4, **info):
    state = {
        k: torch.zeros(v.shape) for k, v in expected_state(tiny_backbone(kind).transformer, LORA_TARGETS[kind], rank).items()
    }
    facts = {"backbone": kind, "rank": rank, "targets": list(LORA_TARGETS[kind]), "start_sigma": 0.8, **info}
    return save_adapter(folder / f"{kind}-{rank}.safetensors", Adapter(state, facts, source="test")).as_posix()


def test_adapters_that_do_not_fit_are_named(pictures, tmp_path):
    def start(name, path, **sets):
        recipe.build_model(light(name, pictures, model__init=path, **sets))

    with pytest.raises(ValueError, match=r"expected an adapter of flux2_klein.*is one of z_image"):
        start(FLUX, adapter_file(tmp_path, "z_image", latents="scaled"))
    with pytest.raises(WeightsError, match="expected an adapter of rank 4, got matrices of rank 8; attach"):
        start(FLUX, adapter_file(tmp_path, "flux2_klein", 8, latents="native"))
    with pytest.raises(WeightsError, match="expected a projector beside the adapter"):
        start(FLUX, adapter_file(tmp_path, "flux2_klein", latents="native"))
    with pytest.raises(ValueError, match=r"latents: expected 'raw', which .* was made with, got 'scaled'"):
        start(Z_IMAGE, adapter_file(tmp_path, "z_image", latents="raw"), model__latents="scaled", conditioning__kind="empty")
    raw = light(
        Z_IMAGE,
        pictures,
        model__init=adapter_file(tmp_path, "z_image", latents="raw"),
        conditioning__kind="empty",
        model__latents="",
    )
    assert recipe.build_model(raw).backbone.latents == "raw", "an adapter that training starts from says its convention"


def test_a_released_pair_is_a_start_by_its_name_in_a_model_folder(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = one_step_adapter("flux2_klein")
    write_released(tmp_path / "models" / "loras" / "StrSR-flux", adapter)
    config = light(FLUX, pictures, model__init="loras/StrSR-flux", **STILL)
    result = recipe.train(config, tmp_path / "run", model_folders=[tmp_path / "models"])
    state = read_adapter(result.weights).state
    assert state.keys() == adapter.state.keys()
    assert all(torch.equal(tensor, adapter.state[name].float()) for name, tensor in state.items())
    assert read_info(result.weights)["samples"] == config.run.steps * config.run.batch_size, "counted from the first"


def test_a_start_that_does_not_count_its_samples_is_told_aloud(pictures, tmp_path, caplog):
    path = adapter_file(tmp_path, "z_image", latents="scaled", conditioning="vlm", step=40000, samples=160000)
    assert samples_before(path) == 160000 and not caplog.text
    older = adapter_file(tmp_path, "z_image", latents="scaled", conditioning="vlm", step=40000)
    assert samples_before(older) == 0
    assert "how many samples its training saw in 40000 steps" in caplog.text and "change run.seed" in caplog.text
    caplog.clear()
    assert samples_before("pixel-x4") == samples_before((pictures / "pixel.safetensors").as_posix()) == 0
    assert not caplog.text, "another recipe's training, or none"


def test_a_start_of_another_alpha_acts_as_it_did(pictures, tmp_path):
    path = adapter_file(tmp_path, "z_image", latents="scaled", alpha=1.0)
    state = {name: torch.ones_like(tensor) for name, tensor in read_adapter(path).state.items()}
    save_adapter(path, replace(read_adapter(path), state=state))
    model = recipe.build_model(light(Z_IMAGE, pictures, model__init=path, conditioning__kind="empty", lora__alpha=4.0))
    for name, tensor in adapter_state(model.network).items():
        share = 0.25 if ".lora_B." in name else 1.0  # 1/4 of the file against 4/4 of the training
        assert torch.equal(tensor, torch.full_like(tensor, share)), name


def test_missing_files_are_named_and_tokens_must_fit(pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LPIPS|VGG16"):
        recipe.train(light(FLUX, pictures, losses__lpips__weight=3.0, losses__lpips__vgg="vgg16.pth"), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"2 parts, 2 are missing.*flux-2-klein-base-4b"):
        recipe.train(light(FLUX, pictures, model__source=""), tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="Qwen3-VL-4B-Instruct"):
        recipe.train(light(FLUX, pictures, conditioning__model=""), tmp_path / "c")
    odd = {"conditioning__kind": "text", "model__options": {"joint_attention_dim": 32}}  # three states of 10: 32 is no multiple
    with pytest.raises(ConfigError, match=r"conditioning.model: expected tokens of width 32"):
        recipe.train(light(FLUX, pictures, **odd), tmp_path / "d")
    assert set(LATENT_KINDS) == {"flux2_klein", "z_image"}
    assert OneStepModelConfig().backbone in LATENT_KINDS
    assert adapter_state(tiny_backbone("z_image").transformer) == {}


def test_25_draws_differ_between_processes_and_steps_and_repeat(pictures):
    config = light(FLUX, pictures)

    class Place:
        first_index = Loop.first_index

        def __init__(self, step, process):
            self.run, self.first_sample = config.run, 0
            self.state = type("State", (), {"step": step})
            self.accelerator = type("Accelerator", (), {"process_index": process, "num_processes": 2})

    def drawn(step, process, purpose=recipe.NOISE):
        return float(torch.rand(1, generator=recipe._draws(config, Place(step, process), 0)(purpose)))

    values = [drawn(step, process, purpose) for step in (0, 1) for process in (0, 1) for purpose in (1, 2)]
    assert len(set(values)) == len(values)
    assert drawn(1, 1) == drawn(1, 1)
