import dataclasses
from contextlib import nullcontext

import pytest
import torch

from alignsr.core.lora import LORA_TARGETS
from alignsr.train.config import (
    CONFIGS,
    ConfigError,
    RunConfig,
    accepted_hashes,
    apply_sets,
    config_hash,
    from_mapping,
    published,
    read_toml,
    to_mapping,
)
from alignsr.train.multi_step import add_adapter, build_trainee
from alignsr.train.recipes import (
    RECIPES,
    autoencoder,
    fidelity,
    flow_sft,
    load_config,
    one_step_distill,
    perceptual_dpo,
    perceptual_gan,
)
from alignsr.train.recipes.fidelity import FidelityConfig


def test_unknown_key_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"run\.batchsize: unknown key; did you mean 'batch_size'"):
        from_mapping(FidelityConfig, {"run": {"batchsize": 3}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"steps": "many"}}, r"run\.steps: expected int, got str 'many'"),
        ({"run": {"steps": True}}, r"run\.steps: expected int, got bool"),
        ({"run": {"steps": 0}}, "steps: expected at least 1, got 0"),
        ({"run": 3}, r"run: expected a table, got 3"),
        ({"run": {"precision": "bf61"}}, r"run\.precision: expected one of .*did you mean 'bf16'"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas: expected 2 values, got 1"),
        ({"data": {"folders": "x"}}, r"data\.folders: expected a list"),
        ({"data": {"gt_patch_px": 30}}, r"data\.gt_patch_px: expected a multiple of model\.scale 4, got 30"),
    ],
)
def test_wrong_values_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(FidelityConfig, values)


def test_integers_are_taken_for_floats_but_not_the_reverse():
    config = from_mapping(FidelityConfig, {"optimizer": {"learning_rate": 1}})
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    with pytest.raises(ConfigError, match="expected int, got float"):
        from_mapping(FidelityConfig, {"run": {"steps": 1.5}})


def test_base_is_overlaid_table_by_table(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "fidelity"\n[run]\nsteps = 5\nseed = 1\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n[run]\nseed = 2\n')
    assert read_toml(tmp_path / "b.toml") == {"recipe": "fidelity", "run": {"steps": 5, "seed": 2}}


def test_a_circle_of_bases_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(ConfigError, match="leads back to itself"):
        read_toml(tmp_path / "a.toml")


def test_broken_or_missing_toml_is_one_message(tmp_path):
    (tmp_path / "a.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match="expected TOML"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="expected a TOML file"):
        read_toml(tmp_path / "missing.toml")


def test_sets_parse_toml_values_and_fall_back_to_strings():
    values = apply_sets({"run": {"steps": 1}}, ["run.steps=7", "name=lite", 'data.folders=["x", "y"]', "run.channels_last=true"])
    assert values == {"run": {"steps": 7, "channels_last": True}, "name": "lite", "data": {"folders": ["x", "y"]}}
    with pytest.raises(ConfigError, match="expected key=value"):
        apply_sets({}, ["run.steps"])


def test_hash_changes_with_any_value_and_only_then():
    one, two = from_mapping(FidelityConfig, {}), from_mapping(FidelityConfig, {"run": {"seed": 1}})
    assert config_hash(one) == config_hash(from_mapping(FidelityConfig, {}))
    assert config_hash(one) != config_hash(two)


def test_hash_ignores_what_cannot_change_the_result():
    plain = from_mapping(FidelityConfig, {})
    run = {"checkpoint_every": 7, "keep_checkpoints": 9, "export_every": 3, "log_every": 4}
    run |= {"preview_every": 5, "validate_every": 6}
    data = {"workers": 3, "cache_images": False, "decoded_cache": "somewhere"}
    assert config_hash(from_mapping(FidelityConfig, {"run": run, "data": data})) == config_hash(plain)
    influential = {f.name for f in dataclasses.fields(RunConfig)} - set(run)
    assert influential == {
        "steps", "batch_size", "accumulation_steps", "seed", "precision", "ema_decay", "num_threads", "channels_last"
    }  # fmt: skip
    for change in ({"subimage_px": 480}, {"lq_suffix": "x4"}, {"turns": "horizontal"}, {"shards": ["a.tar"]}):
        assert config_hash(from_mapping(FidelityConfig, {"data": change})) != config_hash(plain)


def test_checkpoints_from_before_run_only_settings_left_the_hash_are_still_accepted():
    """The second hash is that of the versions that hashed every value; this one stood in a run folder then."""
    assert accepted_hashes(load_config("lite-x4")[1])[1] == "98ab02e3c72e"
    moved = accepted_hashes(load_config("lite-x4", ["data.workers=2"])[1])
    assert moved[1] == "98ab02e3c72e"


def test_unknown_recipe_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "fidelty"\n')
    with pytest.raises(ConfigError, match="did you mean 'fidelity'"):
        load_config(tmp_path / "a.toml")


def adapter_parameters(config):
    """Parameters of the adapter that a preference recipe trains, on the published size without files."""
    is_tiny, is_pixel = config.model.source == "tiny", config.model.backbone == "pixel"
    changes = {"source": "tiny" if is_tiny else "" if is_pixel else "random", "adapter": "", "control": ""}
    with torch.device("cpu" if is_tiny else "meta"):
        trainee = build_trainee(dataclasses.replace(config.model, **changes))
        return sum(p.numel() for p in add_adapter(trainee, "policy", config.lora))


def build(name):
    """(recipe's name, parameters of what a published config trains), built on the meta device."""
    recipe, config = load_config(name)
    kind = next(key for key, known in RECIPES.items() if known is recipe)
    if kind == "sobolev_dpo":
        return kind, adapter_parameters(config)
    names = {field.name for field in dataclasses.fields(config.model)}
    without = {field: value for field, value in {"init": "", "init_decoder": "random"}.items() if field in names}
    if kind in ("one_step_distill", "flow_sft", "perceptual_dpo") and config.model.source != "tiny":
        without["source"] = "random"  # the published size without files
    if kind == "flow_sft" and config.model.backbone == "pixel":
        without["source"] = ""
    if kind == "perceptual_dpo" and config.model.precision == "4bit":
        without["precision"] = "bf16"  # tensors without values have no codes
    model = dataclasses.replace(config.model, **without)
    if kind == "flow_sft":  # an adversary's size does not depend on what it stands on
        config = dataclasses.replace(config, artefacts=None, model=dataclasses.replace(model, adapter=""))
        with nullcontext() if model.source == "tiny" else torch.device("meta"):
            built = flow_sft.build_model(config)
        widened = sum(built.trainee.network.get_parameter(key).numel() for key in built.full)
        is_adversary = "adversary" in name
        return kind, sum(p.numel() for p in built.part.parameters()) - (widened if is_adversary else 0)
    config = dataclasses.replace(config, model=model)
    if kind == "perceptual_dpo" and config.model.source == "tiny":
        return kind, sum(p.numel() for p in perceptual_dpo.open_policy(config).part.parameters())
    with torch.device("meta"):
        if kind == "one_step_distill":
            return kind, sum(p.numel() for p in one_step_distill.build_model(config).part.parameters())
        if kind == "perceptual_dpo":
            return kind, sum(p.numel() for p in perceptual_dpo.open_policy(config).part.parameters())
        built = {"fidelity": fidelity, "autoencoder": autoencoder, "perceptual_gan": perceptual_gan}[kind].build_model(config)
    module = built if kind == "autoencoder" else dict(built.modules())["network"]
    return kind, sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in published() if name.startswith("tiny-")])
def test_every_tiny_config_builds_a_tiny_model(name):
    assert 100 < build(name)[1] < 500_000


@pytest.mark.parametrize("name", [name for name in published() if not name.startswith("tiny-")])
def test_every_published_config_builds_its_model(name):
    kind, parameters = build(name)
    low, high = {
        "fidelity": (1e5, 3e6),
        "autoencoder": (1e5, 2e7),
        "perceptual_gan": (1e7, 2e7),
        "one_step_distill": (1e5, 1e9),
        "flow_sft": (1e5, 4e8),
        "sobolev_dpo": (1e4, 6e7),
        "perceptual_dpo": (1e5, 1.5e9),
    }[kind]
    assert low < parameters < high


SIZES = {  # specification aesop.md 3
    "aesop-autoencoder": 18_175_754,
    "aesop-autoencoder-srresnet": 1_477_767 + 1_517_571,
    "aesop-autoencoder-bicubic": 16_697_987,
    "aesop-rrdb-128": 16_697_987,
    "aesop-swinir-256": 11_900_199,
    "aesop-drct-256": 14_139_579,
    "aesop-real": 16_697_987,
    # specification strsr.md 1.3 and 1.7: adapters of rank 256, and projectors
    "strsr-flux2-klein-stage1": 298_844_160 + 39_333_120,
    "strsr-flux2-klein-stage2": 298_844_160 + 39_333_120,
    "strsr-z-image-stage1": 635_043_840 + 6_557_440,
    "strsr-z-image-stage2": 635_043_840 + 6_557_440,
    # specification asasr.md 3.1: 3,621,952 per unit of rank; SD also the convolution that is trained whole
    "asasr-sft-flux": 64 * 3_621_952,
    "asasr-adversary-flux": 16 * 3_621_952,
    "asasr-sft-sd15": 64 * 199_296 + 9 * 8 * 320 + 320,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    assert build(name)[1] == SIZES[name]


# specification aesop.md 4.1: iterations, patch, batch of 4 processes, seed, freezing, (gt, lq) weights
AUTOENCODERS = {
    "aesop-autoencoder": (100_000, 256, 64, 0, False, (1, 1), "models/ESRGAN_PSNR_SRx4_DF2K_official-150ff491.pth"),
    "aesop-autoencoder-real": (100_000, 256, 64, 0, True, (1, 0), "models/RealESRNet_x4plus.pth"),
}
ESRGAN = "models/ESRGAN_PSNR_SRx4_DF2K_official-150ff491.pth"
SWINIR = "models/001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth"
SYNTHETIC = {"aesop": 1, "artifact": 1, "perceptual": 1, "adversarial": 0.005}
# ... , architecture, discriminator, its size, weights, init
NETWORKS = {
    "aesop-rrdb-128": (300_000, 128, 64, 0, "rrdb", "vgg", 128, SYNTHETIC, ESRGAN),
    "aesop-rrdb-256": (300_000, 256, 64, 0, "rrdb", "vgg", 256, SYNTHETIC, ESRGAN),
    "aesop-swinir-256": (300_000, 256, 64, 1, "swinir", "vgg", 256, SYNTHETIC, SWINIR),
    "aesop-drct-256": (300_000, 256, 64, 1, "drct", "vgg", 256, SYNTHETIC, "models/DRCT_X4.pth"),
    "aesop-real": (
        400_000, 256, 48, 0, "rrdb", "unet", 0, {"aesop": 1, "perceptual": 1, "adversarial": 0.1}, "models/RealESRNet_x4plus.pth"
    ),
    "aesop-real-ldl-matched": (
        400_000, 256, 16, 0, "rrdb", "unet", 0,
        {"aesop": 1, "artifact": 1, "perceptual": 1, "adversarial": 0.1}, "models/RealESRNet_x4plus.pth",
    ),
    "ldl-rrdb-128": (
        300_000, 128, 64, 0, "rrdb", "vgg", 128, {"pixel": 0.01, "artifact": 1, "perceptual": 1, "adversarial": 0.005}, ESRGAN
    ),
}  # fmt: skip


def common(config):
    """What holds for all runs: Adam 1e-4 (0.9, 0.99) without decay or clipping, constant rate, EMA 0.999, every 5,000 steps."""
    optimizers = [config.optimizer, *([config.discriminator.optimizer] if hasattr(config, "discriminator") else [])]
    schedules = [config.schedule, *([config.discriminator.schedule] if hasattr(config, "discriminator") else [])]
    assert {(o.learning_rate, o.betas, o.weight_decay, o.max_grad_norm) for o in optimizers} == {(1e-4, (0.9, 0.99), 0.0, 0.0)}
    assert {(s.kind, s.warmup_steps) for s in schedules} == {("constant", 0)}
    assert (config.run.ema_decay, config.run.precision) == (0.999, "fp32")
    assert {config.run.checkpoint_every, config.run.validate_every, config.run.export_every} == {5000}
    return config.run.steps, config.data.gt_patch_px, 4 * config.run.batch_size, config.run.seed


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_columns_of_the_published_table(name):
    config, model = load_config(name)[1], load_config(name)[1].model
    weights = (config.gt_weight, config.lq_weight)
    assert (*common(config), model.freeze_decoder, weights, model.init_decoder) == AUTOENCODERS[name]
    assert (config.data.degradation, config.data.augment, config.data.turns) == ("matlab", True, "all")


@pytest.mark.parametrize("name", NETWORKS)
def test_network_columns_of_the_published_table(name):
    config = load_config(name)[1]
    opponent, losses = config.discriminator, config.losses
    got = (*common(config), config.model.architecture, opponent.kind, opponent.input_px, losses.weights(), config.model.init)
    assert got == NETWORKS[name]
    assert (opponent.features, opponent.generator_every, opponent.alone_steps) == (64, 1, 0)
    is_real = opponent.kind == "unet"
    assert losses.adversarial.kind == ("plain" if is_real else "relativistic")
    assert losses.perceptual.target == ("sharpened" if is_real else "plain")
    deep = {"conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
    assert losses.perceptual.layers == (deep if name == "aesop-real" else {"conv1_2": 0.1, **deep})
    data = config.data
    assert (data.augment, data.turns) == (True, "horizontal" if is_real else "all")
    pool = (data.degradation, data.pool_size, data.pool_patch_px, data.pool_refresh)
    if is_real:
        assert pool[2] == 400
        assert pool == (("aesop_realworld", 4 * 144, 400, 48) if name == "aesop-real" else ("realesrgan", 4 * 180, 400, 16))
    else:
        assert data.degradation == "matlab"
        assert (data.subimage_px, data.subimage_step_px) == (480, 240)


def test_ablations_differ_from_the_full_method_in_one_thing():
    full = to_mapping(load_config("aesop-rrdb-128")[1])
    for name in ("bicubic", "no-lr-term", "srresnet"):
        other = to_mapping(load_config(f"aesop-ablation-{name}")[1])
        assert other["losses"]["aesop"].pop("autoencoder") == f"models/aesop-autoencoder-{name}.safetensors"
        expected = {**full, "name": f"aesop-ablation-{name}"}
        aesop = {key: value for key, value in full["losses"]["aesop"].items() if key != "autoencoder"}
        assert other == {**expected, "losses": {**full["losses"], "aesop": aesop}}
    low_pass = load_config("aesop-ablation-low-pass")[1].losses.weights()
    assert low_pass == {"low_pass": 0.01, "artifact": 1.0, "perceptual": 1.0, "adversarial": 0.005}


# specification strsr.md 2: steps, seed, weights
STRSR = {
    f"strsr-{backbone}-stage{stage}": (steps, seed, {"pixel": 1, "lpips": 3, "ragan": 0.1} | fdl)
    for backbone, seed in (("flux2-klein", 649151), ("z-image", 42))
    for stage, steps, fdl in ((1, 40_000, {}), (2, 20_000, {"fdl": 0.002}))
}


@pytest.mark.parametrize("name", STRSR)
def test_numbers_of_strsr(name):
    config = load_config(name)[1]
    run, model, losses, data, opponent = config.run, config.model, config.losses, config.data, config.discriminator
    assert (run.steps, run.seed, losses.weights()) == STRSR[name]
    for optimizer, rate in ((config.optimizer, 5e-6), (opponent.optimizer, 1e-6)):
        values = (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm, optimizer.bits)
        assert values == (rate, (0.9, 0.999), 0.01, 1.0, 32)
    assert {(s.kind, s.warmup_steps) for s in (config.schedule, opponent.schedule)} == {("constant", 0)}
    assert (run.batch_size, run.precision, run.ema_decay, run.checkpoint_every, run.keep_checkpoints) == (
        1,
        "bf16",
        0.0,
        1000,
        10,
    )
    assert (config.lora.rank, config.lora.alpha) == (256, 256.0)
    assert config.lora.targets == LORA_TARGETS[model.backbone]
    assert (model.sigma, model.step_length, model.scale, model.posterior, model.use_checkpointing) == (
        0.8,
        0.8,
        4,
        "sample",
        True,
    )
    assert (model.precision, model.vae_precision) == ("bf16", "fp32")
    assert model.latents == ("" if "flux2" in name else "scaled")
    assert (run.preview_every, run.accumulation_steps) == (100, 1)
    assert (losses.pixel.kind, losses.pixel.model_range) == ("l1", True)
    ragan = losses.ragan
    assert (ragan.factor, ragan.r1_weight, ragan.r1_sigma, ragan.r1_noise) == (0.5, 10.0, 0.005, "gaussian")
    assert (ragan.reference, ragan.span, opponent.precision) == ("global", "all", "fp32")
    assert (opponent.features.kind, opponent.features.architecture, opponent.hidden) == ("clip", "convnext_xxlarge", 512)
    if losses.fdl is not None:
        fdl = losses.fdl
        assert (fdl.features.kind, fdl.projections, fdl.patch, fdl.phase_weight) == ("vgg19", 256, 5, 1.0)
        assert (fdl.seed, fdl.model_range) == (0, False)
        assert model.init == f"models/{name.replace('stage2', 'stage1')}.safetensors"
        assert opponent.init == f"models/{name.replace('stage2', 'stage1')}-critic.safetensors"
    told = (data.gt_patch_px, data.crop, data.augment, data.degradation, data.jpeg, data.pair_pool, config.sharpen_target)
    assert told == (1024, "fit", False, "strsr", "diffjpeg", 256, True)
    assert (config.conditioning.kind, config.conditioning.width, config.conditioning.is_parity) == ("vlm", 2560, True)


# specification asasr.md 3.3, 4.1 and 4.2: rank, rate, warm-up, steps, samples of an optimiser step
ASASR = {f"asasr-sft-{name}": (64, 1e-4, 500, 10_000, 64) for name in ("flux", "sd15", "sdxl")} | {
    f"asasr-adversary-{name}": (16, 5e-5, 100, 1000, 512) for name in ("flux", "sd15", "sdxl")
}


@pytest.mark.parametrize("name", ASASR)
def test_numbers_of_asasr(name):
    config = load_config(name)[1]
    run, optimizer, model, data = config.run, config.optimizer, config.model, config.data
    comment = (CONFIGS / f"{name}.toml").read_text(encoding="utf-8")
    assert (config.lora.rank, optimizer.learning_rate, config.schedule.warmup_steps, run.steps) == ASASR[name][:4]
    samples = ASASR[name][4]
    assert f"= {samples}" in comment
    assert f"--num_processes 8 -m alignsr train {name}" in comment
    accumulation = 2 if name == "asasr-sft-sdxl" else run.accumulation_steps  # set on the command line
    assert 8 * run.batch_size * accumulation == samples
    assert f"one GPU, {run.batch_size} x {samples // run.batch_size} = {samples}" in comment
    assert config.lora.alpha == config.lora.rank
    assert config.lora.targets == LORA_TARGETS[model.backbone]
    assert (optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm) == ((0.9, 0.999), 0.01, 1.0)
    assert (config.schedule.kind, run.precision, model.precision, model.use_checkpointing) == ("constant", "bf16", "bf16", True)
    assert (model.scale, model.prompt, model.text) == (4, "", "")
    assert data.gt_patch_px == (1024 if "sdxl" in name else 512)
    if config.artefacts is None:
        assert (data.degradation, data.augment, data.turns) == ("asasr", True, "horizontal")
        assert model.guidance == (1.0 if "flux" in name else -1.0)
    else:
        assert (config.artefacts.share, config.artefacts.methods) == (0.25, ("realesrgan", "seesr", "supir"))
        assert (model.adapter, run.checkpoint_every) == (f"models/{name.replace('adversary', 'sft')}.safetensors", 50)


def test_every_config_of_several_processes_says_how_it_is_started():
    """AESOP's and StrSR's, of four GPUs: all of these recipes but what is trained on a processor, with one thread."""
    of_four = [RECIPES[kind] for kind in ("autoencoder", "fidelity", "one_step_distill", "perceptual_gan")]
    found: set[str] = set()
    for path in (CONFIGS / f"{name}.toml" for name in published() if not name.startswith("tiny-")):
        recipe, config = load_config(path)
        if recipe in of_four and config.run.num_threads != 1:
            text = path.read_text(encoding="utf-8")
            batch = config.run.batch_size
            assert f"accelerate launch --num_processes 4 -m alignsr train {path.stem}" in text, path.stem
            assert f"4 x {batch} = {4 * batch}" in text, path.stem
            assert "run.accumulation_steps=4" in text, path.stem
            found.add(path.stem)
    assert found >= {*STRSR, "aesop-rrdb-256", "aesop-autoencoder", "aesop-real", "ldl-rrdb-128"}


def test_every_published_config_has_a_tiny_twin():
    names = published()
    assert {name for name in names if not name.startswith("tiny-")} == {
        name.removeprefix("tiny-") for name in names if name.startswith("tiny-")
    }
    assert all((CONFIGS / f"{name}.toml").is_file() for name in names)
