"""One-Step Trainer in a graph, under inference mode as in ComfyUI: two stages, what comes out of them, and bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import write_diffusers_folder
from node_helpers import Watcher, picture
from safetensors.torch import load_file
from strsr_helpers import one_step_adapter
from train_helpers import equal_files, make_pictures

from alignsr.cli.hub import HUB
from alignsr.core.backbones.latent import tiny
from alignsr.core.backbones.published import PUBLISHED
from alignsr.core.compat import import_diffusers
from alignsr.core.lora_files import RELEASED, read_adapter, save_adapter
from alignsr.core.weights import MissingModelError, WeightsError, load_state_dict, read_info, save_weights
from alignsr.nodes import condition, lora, one_step
from alignsr.nodes.discriminator import LoadDiscriminator
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.losses import GANLoss, PixelLoss
from alignsr.nodes.losses_one_step import FDLLoss, GridLoss, LPIPSLoss, RaGANLoss
from alignsr.nodes.restore import OneStepSR
from alignsr.nodes.train import NodeHooks
from alignsr.nodes.train_one_step import OneStepTrainer
from alignsr.train.config import ConfigError, from_mapping
from alignsr.train.losses import LossesConfig
from alignsr.train.recipes import load_config
from alignsr.train.recipes import one_step_distill as recipe
from alignsr.train.state import checkpoints

QUIET = "run.validate_every=0\nrun.preview_every=0\ndata.holdout=0\ndata.gt_patch_px=64\ndata.workers=0\ndata.pair_pool=0"
SHORT = f"run.steps=2\noptimizer.learning_rate=1e-3\n{QUIET}"
FLUX, Z_IMAGE, PIXEL = "tiny-strsr-flux2-klein-stage1", "tiny-strsr-z-image-stage1", "tiny-strsr-pixel-stage1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", side=136)


@pytest.fixture
def watched(tmp_path: Path, data: Path) -> Any:
    watcher = Watcher()
    watcher.host = LocalHost(
        output_dir=tmp_path / "out", input_dirs=[data.parent], models_dirs=[tmp_path / "models"], on_progress=watcher
    )
    with use_host(watcher.host), torch.inference_mode():
        yield watcher


@pytest.fixture
def host(watched: Watcher) -> Any:
    return watched.host


def critic(**options: Any) -> Any:
    return LoadDiscriminator().load(**({"features": "network", "model_name": "random", "hidden": 8} | options))[0]


def stage_1_losses() -> Any:
    return RaGANLoss().add(loss=PixelLoss().add(model_range=True)[0])[0]


def stage_2_losses() -> Any:
    return FDLLoss().add(features="network", features_file="random", projections=4, loss=stage_1_losses())[0]


def train(config: str = FLUX, name: str = "one", overrides: str = SHORT, **inputs: Any) -> Any:
    given = {"loss": stage_1_losses(), "discriminator": critic()} | inputs
    return OneStepTrainer().train(config, "pictures", overrides, name, **{"resume": True} | given)["result"]


def test_a_chain_is_what_a_toml_file_would_say() -> None:
    chain = FDLLoss().add(loss=RaGANLoss().add(loss=LPIPSLoss().add(loss=PixelLoss().add(model_range=True)[0])[0])[0])[0]
    json.dumps(chain)
    assert from_mapping(LossesConfig, chain) == load_config("strsr-flux2-klein-stage2")[1].losses
    assert from_mapping(LossesConfig, GridLoss().add(loss=chain)[0]).weights()["grid"] == 0.01


def test_defaults_of_the_nodes_are_those_of_the_config(host: Any) -> None:
    from alignsr.train.loss_tables import FdlLossConfig, GridLossConfig, LpipsLossConfig, RaganLossConfig

    for node, name, config in (
        (LPIPSLoss, "lpips", LpipsLossConfig),
        (RaGANLoss, "ragan", RaganLossConfig),
        (FDLLoss, "fdl", FdlLossConfig),
        (GridLoss, "grid", GridLossConfig),
    ):
        assert from_mapping(config, node().add()[0][name]) == config()
    assert from_mapping(recipe.CriticConfig, critic(model_name="auto", hidden=512)) == replace(
        recipe.CriticConfig(), features=replace(recipe.CriticConfig().features, kind="network")
    )


@pytest.mark.parametrize(
    ("node", "name", "options"),
    [
        (RaGANLoss, "ragan", {"reference": "paired", "r1_noise": "uniform", "span": "process", "factor": 1.0, "r1_sigma": 0.01}),
        (FDLLoss, "fdl", {"features": "clip", "patch": 3, "phase_weight": 0.0, "model_range": True, "precision": "bf16"}),
        (LPIPSLoss, "lpips", {"vgg": "random", "linear": "own.pth", "precision": "bf16"}),
        (GridLoss, "grid", {"period_px": 8, "visible": 0.01}),
    ],
)
def test_every_option_reaches_the_config(node: Any, name: str, options: dict[str, Any]) -> None:
    table = getattr(from_mapping(LossesConfig, node().add(weight=0.5, **options)[0]), name)
    assert table.weight == 0.5
    for key, value in options.items():
        assert (table.features.kind if key == "features" else getattr(table, key)) == value


def test_two_stages_then_upscale(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Stage 2 begins with stage 1's weights and optimisers; its model output is what was trained, looked at by the same VLM."""
    one = train(loss=stage_1_losses())
    weights, _, curve, log, losses, _, trained_critic, run = one
    assert Path(weights) == Path(run) / "one.safetensors" and Path(run).parent == host.output_dir() / "alignsr" / "training"
    assert curve.shape[3] == 3 and losses == {"loss": [json.loads(line)["loss"] for line in log.splitlines()]}
    assert {"pixel", "ragan", "discriminator/r1"} <= json.loads(log.splitlines()[-1]).keys()
    assert trained_critic["init"] == str(Path(run) / "one-critic.safetensors") and "architecture" in trained_critic["features"]
    config = "tiny-strsr-flux2-klein-stage2"
    two = train(config, "two", loss=stage_2_losses(), start_from=run)
    assert "fdl" in json.loads(two[3].splitlines()[-1])
    still = f"{SHORT}\noptimizer.learning_rate=0.0\ndiscriminator.optimizer.learning_rate=0.0"
    same = train(config, "still", still, loss=stage_2_losses(), start_from=Path(run).name)
    assert equal_files(Path(weights), Path(same[0])) and not equal_files(Path(weights), Path(two[0]))
    image = picture(1, 24, 20)
    told = condition.VLMEncode().encode(condition.LoadVLM().load("tiny", "fp32")[0], two[1], image)[0]
    sr, _, info = OneStepSR().upscale(two[1], image, 4, conditioning=told)
    assert sr.shape == (1, 96, 80, 3) and json.loads(info)["backbone"] == "tiny flux2_klein"
    base, _ = one_step.LoadOneStepBackbone().load("flux2_klein", "tiny", precision="fp32")
    merged, _ = lora.MergeLoRA().merge(base, two[5])
    again = condition.VLMEncode().encode(condition.LoadVLM().load("tiny", "fp32")[0], merged, image)[0]
    assert torch.equal(sr, OneStepSR().upscale(merged, image, 4, conditioning=again)[0])
    assert not torch.equal(sr, OneStepSR().upscale(two[1], image, 4)[0]), "what the model is told changes nothing"
    assert not caplog.records or all(record.levelname != "WARNING" for record in caplog.records)


@pytest.mark.parametrize("kind", ["flux2_klein", "z_image"])
def test_the_model_output_is_the_trained_one(kind: str, host: Any) -> None:
    """The frozen base that is opened anew is that of training: merging what was trained gives the same velocity."""
    name = FLUX if kind == "flux2_klein" else Z_IMAGE
    empty = f'{SHORT}\nconditioning.kind="empty"'
    weights, model, *_ = train(name, overrides=empty)
    settings = load_config(name, ['conditioning.kind="empty"', f"model.init={json.dumps(weights)}"])[1]
    with torch.inference_mode(False), torch.no_grad():
        trained = recipe.build_model(settings).backbone
        z = trained.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        sigma = torch.tensor([0.8])
        assert torch.allclose(trained.velocity(z, sigma, z), model.backbone.velocity(z, sigma, z), atol=1e-5)
        base = tiny(kind, latents="scaled" if kind == "z_image" else "native")
        assert not torch.allclose(base.velocity(z, sigma, z), model.backbone.velocity(z, sigma, z), atol=1e-5)


def test_stage_2_may_start_from_the_adapter_and_the_critic_alone(host: Any) -> None:
    one = train()
    still = f"{SHORT}\noptimizer.learning_rate=0.0\ndiscriminator.optimizer.learning_rate=0.0"
    two = train("tiny-strsr-flux2-klein-stage2", "two", still, discriminator=one[6], lora=one[5])
    assert equal_files(Path(one[0]), Path(two[0]))
    heads = [load_state_dict(critic_file[6]["init"]) for critic_file in (one, two)]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0] if "original" in key or "bias" in key)
    assert read_info(two[0])["config"]["model"]["init"] == one[0]


def test_pixel_and_whole_models_give_a_model_and_no_adapter(host: Any) -> None:
    one = train(PIXEL, overrides=f"{SHORT}\nrun.batch_size=1")
    assert one[5] is None and one[1].name == "one"
    two = train("tiny-strsr-pixel-stage2", "two", f"{SHORT}\nrun.batch_size=1", loss=stage_2_losses(), start_from=one[7])
    assert OneStepSR().upscale(two[1], picture(), 4)[0].shape == (1, 48, 40, 3)
    with pytest.raises(TypeError, match="lora: expected an adapter, got NoneType; connect Load LoRA, or One-Step Trainer"):
        lora.SaveLoRA().save(one[5])
    whole = f'{SHORT}\nlora.rank=0\nmodel.precision="fp32"'
    three = train(overrides=whole, name="whole")
    assert three[5] is None and Path(three[0]).with_name("whole-projector.safetensors").is_file()
    image = picture(1, 16, 16)
    told = condition.VLMEncode().encode(condition.LoadVLM().load("tiny", "fp32")[0], three[1], image)[0]
    sr = OneStepSR().upscale(three[1], image, 4, conditioning=told)[0]
    assert not torch.equal(sr, OneStepSR().upscale(three[1], image, 4)[0])


@pytest.mark.parametrize("kind", ["flux2_klein", "z_image"])
def test_a_downloaded_folder_alone_is_enough_to_train_and_to_use_the_result(kind: str, host: Any, tmp_path: Path) -> None:
    config, overrides = FLUX if kind == "flux2_klein" else Z_IMAGE, f'{SHORT}\nmodel.source=""'
    download = HUB[PUBLISHED[kind].download]
    place = tmp_path / "models" / download.key / download.folder
    get = r'`alignsr models download (\S+) --to "(.+)"`, to (.+)$'
    for _ in range(2):  # where no folder of that kind is there yet, and then
        with pytest.raises(MissingModelError, match=get) as caught:
            train(config, overrides=overrides)
        said = re.search(get, str(caught.value))
        assert said is not None and HUB[said[1]] is download
        assert Path(said[2], download.key, download.folder) == Path(said[3]) == place
        place.parent.mkdir(exist_ok=True, parents=True)
    write_diffusers_folder(place, tiny(kind))
    weights, model, *_ = train(config, overrides=overrides)
    assert read_info(weights)["base"] == RELEASED[kind]["base"]
    assert torch.isfinite(OneStepSR().upscale(model, picture(1, 16, 16), 4)[0]).all()


def test_an_untrained_base_of_another_shape_is_built_again(host: Any) -> None:
    weights, model, *_, adapter, _, _ = train(overrides=f"{SHORT}\nmodel.options={{ num_layers = 2 }}")
    assert len(model.backbone.transformer.transformer_blocks) == 2 and model.projector is not None
    assert len(adapter.state) > len(one_step_adapter("flux2_klein").state)
    assert torch.isfinite(OneStepSR().upscale(model, picture(1, 16, 16), 4)[0]).all()
    assert weights == adapter.source


@pytest.mark.parametrize("told", ['conditioning.kind="text"\nconditioning.prompt="sharp"', 'conditioning.kind="empty"'])
def test_text_and_empty_conditioning(told: str, host: Any) -> None:
    weights, model, *_, adapter, _, _ = train(Z_IMAGE, overrides=f"{SHORT}\n{told}")
    assert read_info(weights)["conditioning"] == told.split('"')[1] and not adapter.projector
    assert torch.isfinite(OneStepSR().upscale(model, picture(1, 16, 16), 4)[0]).all()
    with pytest.raises(ValueError, match="model: expected a model whose LoRA has a projector"):
        condition.VLMEncode().encode(condition.LoadVLM().load("tiny", "fp32")[0], model, picture())


def test_the_node_shows_curve_and_samples(watched: Watcher) -> None:
    loud = SHORT.replace("run.preview_every=0", "run.preview_every=1").replace("data.holdout=0", "data.holdout=1")
    shown = OneStepTrainer().train(
        FLUX, "pictures", f"{loud}\nrun.steps=3\nrun.log_every=1", "shown", True, stage_1_losses(), critic()
    )
    assert [entry["filename"] for entry in shown["ui"]["images"]] == ["curve.png", "samples.png"]
    assert len(watched.previews) >= 2 and watched.steps == [1, 2, 3]
    curve = shown["result"][2]
    assert watched.previews[-1][1] > curve.shape[1], "the samples are below the curve"


def test_another_adapter_under_the_same_path_is_another_run(host: Any, tmp_path: Path) -> None:
    """So are another stage 1 in the same folder, and other heads in the same file."""
    start, found = one_step_adapter("flux2_klein"), list[str]()
    for strength in (1.0, 3.0, 1.0):
        state = {key: strength * value for key, value in start.state.items()}
        path = save_adapter(tmp_path / "start.safetensors", replace(start, state=state))
        found.append(train(lora=read_adapter(path))[0])
    assert found[0] == found[2] != found[1] and not equal_files(Path(found[0]), Path(found[1]))
    heads, runs = tmp_path / "heads.safetensors", list[str]()
    state = load_state_dict(recipe.critic_path(Path(found[0])))
    for strength in (1.0, 3.0):
        save_weights(heads, {key: strength * value for key, value in state.items()}, {"architecture": "critic_heads"})
        runs.append(train(discriminator=critic(heads=str(heads)))[7])
    assert runs[0] != runs[1]
    first, stages = train()[7], list[str]()
    for seed in (0, 1):
        other = Path(train(name="other", overrides=f"{SHORT}\nrun.seed={seed}")[7])
        for file in other.iterdir() if seed else ():
            if file.is_file():
                shutil.copy(file, Path(first) / file.name)
        stages.append(train(name="second", start_from=first)[7])
    assert stages[0] != stages[1]


def test_finished_runs_of_older_versions_and_of_files_that_are_gone_are_found(
    host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = Path(train(name="first")[7])
    done = [Path(train(name="second", start_from=str(first))[index]) for index in (0, 7)]
    for file in (done[0], *checkpoints(done[1])):  # as a version wrote them that did not say what runs began with
        info = read_info(file)
        info.pop("origins", None)
        info.get("extra", {}).pop("origins", None)
        save_weights(file, load_state_dict(file), info)
    assert train(name="second", start_from=str(first))[0] == str(done[0]) and "found the finished run" in caplog.text
    third = train(name="third", start_from=str(first))[0]
    for file in checkpoints(first):
        file.unlink()
    caplog.clear()
    assert train(name="third", start_from=str(first))[0] == third
    assert "is not there any more (start_from)" in caplog.text


def test_a_replaced_file_is_seen_while_the_server_runs(host: Any, tmp_path: Path) -> None:
    """ComfyUI asks IS_CHANGED before it takes a node's result from its cache; links arrive as None."""
    start = save_adapter(tmp_path / "start.safetensors", one_step_adapter("flux2_klein"))
    config = tmp_path / "mine.toml"
    config.write_text(f'recipe = "one_step_distill"\n[model]\ninit = "{start.as_posix()}"\n')
    first = Path(train(name="first")[7])
    asked = [
        lambda: OneStepTrainer.IS_CHANGED(str(config), SHORT),
        lambda: OneStepTrainer.IS_CHANGED(FLUX, start_from=first.name),
    ]
    before = [ask() for ask in asked]
    assert [ask() for ask in asked] == before
    save_weights(start, load_state_dict(start), {**read_info(start), "alpha": 1.0})
    newest = checkpoints(first)[-1]
    shutil.copy(newest, newest.with_name(newest.name.replace("2.", "3.")))
    after = [ask() for ask in asked]
    assert not set(after) & set(before)
    config.write_text(config.read_text() + "[lora]\nrank = 8\n")
    assert asked[0]() not in (before[0], after[0])
    for never in (
        OneStepTrainer.IS_CHANGED(None),
        OneStepTrainer.IS_CHANGED("no-such-config"),
        OneStepTrainer.IS_CHANGED(FLUX, None),
    ):
        assert never != never, "NaN: runs, and says what is wrong"


def test_a_validation_shows_how_far_it_is_and_hears_the_user(watched: Watcher) -> None:
    host, told = watched.host, list[Any]()
    host._on_progress = lambda value, total, title, _: told.append((value, total, title))  # pyright: ignore[reportAttributeAccessIssue]
    hooks = NodeHooks(host, "one")
    for picture_number in (0, 0, 1, 1):  # tiles
        hooks.validating(picture_number, 3)
    assert told == [(0, 3, "validating one"), (1, 3, "validating one")] and not hooks.should_stop()
    host.cancel()
    hooks.validating(2, 3)
    assert hooks.should_stop() and isinstance(hooks.stop, Interrupted), "raised by the node, after the loop has saved its state"


def test_interrupted_runs_go_on_and_finished_ones_are_found(watched: Watcher) -> None:
    overrides = f"{QUIET}\nrun.steps=4\nrun.checkpoint_every=100\noptimizer.learning_rate=1e-3"
    watched.cancel_at = 2
    with pytest.raises(Interrupted):
        train(overrides=overrides)
    (folder,) = (watched.host.output_dir() / "alignsr" / "training").iterdir()
    assert [path.name for path in folder.glob("state-*")] == ["state-00000002.safetensors"]
    assert not (folder / "one.safetensors").exists()
    watched.cancel_at = 0
    watched.host.clear_cancel()
    resumed = train(overrides=overrides)
    assert watched.steps == [1, 2, 3, 4] and Path(resumed[7]) == folder
    found = train(overrides=overrides)
    assert watched.steps == [1, 2, 3, 4] and found[0] == resumed[0] and found[6] == resumed[6]
    straight = train(overrides=overrides, resume=False)
    assert equal_files(Path(resumed[0]), Path(straight[0])) and straight[7] != resumed[7]


@pytest.mark.parametrize("kind", ["flux2_klein", "z_image"])
@pytest.mark.parametrize("file_format", lora.FORMATS)
def test_what_was_trained_is_saved_in_every_format(kind: str, file_format: str, host: Any) -> None:
    adapter = train(FLUX if kind == "flux2_klein" else Z_IMAGE, overrides=f"{SHORT}\nlora.alpha=8.0")[5]
    assert adapter.scale == 2
    path = Path(lora.SaveLoRA().save(adapter, "sub/mine", file_format)["result"][0])
    if file_format == "comfyui":
        alphas = {float(value) for name, value in load_file(path).items() if name.endswith(".alpha")}
        assert alphas == {8.0} and len(load_file(path)) == 3 * len(adapter.state) // 2
        return
    again, _ = lora.LoadLoRA().load("x", str(path))
    assert again.scale == 2 and again.info["latents"] == adapter.info["latents"]
    assert all(torch.equal(again.state[name], tensor) for name, tensor in adapter.state.items())
    assert bool(again.projector) == (file_format == "alignsr")
    if file_format == "diffusers":
        check_in_diffusers(kind, path, adapter)


def check_in_diffusers(kind: str, path: Path, adapter: Any) -> None:
    """diffusers' own pipeline class reads the file, and its layers are those of our merge."""
    pipeline = getattr(import_diffusers(), {"flux2_klein": "Flux2KleinPipeline", "z_image": "ZImagePipeline"}[kind])
    theirs, ours = tiny(kind).transformer, tiny(kind).transformer
    with torch.inference_mode(False), torch.no_grad():
        state, metadata = pipeline.lora_state_dict(str(path.parent), weight_name=path.name, return_lora_metadata=True)
        pipeline.load_lora_into_transformer(state, transformer=theirs, metadata=metadata)
        theirs.fuse_lora()
        theirs.unload_lora()
        adapter.merge_into(ours)
        assert theirs.state_dict().keys() == ours.state_dict().keys()
        for (name, one), two in zip(theirs.state_dict().items(), ours.state_dict().values(), strict=True):
            assert torch.allclose(one, two, atol=1e-6), name


# bad input


def test_a_critic_without_its_loss_and_a_loss_of_another_trainer(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    train(loss=PixelLoss().add()[0])
    assert "no RaGAN Loss, so the discriminator is not used" in caplog.text
    with pytest.raises(ConfigError, match=r"losses.adversarial: expected off in one_step_distill, got it on; use losses.ragan"):
        train(loss=GANLoss().add(loss=PixelLoss().add()[0])[0])


def test_a_critic_file_that_is_missing_damaged_or_another_networks(host: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "alignsr"
    folder.mkdir(parents=True)
    for features, words in (("clip", "laion/CLIP-convnext_xxlarge"), ("vgg19", "download.pytorch.org")):
        with pytest.raises(MissingModelError, match=f"^model_name: expected .* weights.*{words}") as caught:
            critic(features=features, model_name="auto")
        assert str(folder) in str(caught.value)
    torch.save({"visual.trunk.stem.0.weight": torch.zeros(64, 64)}, folder / "open_clip_pytorch_model.bin")
    whole = (folder / "open_clip_pytorch_model.bin").read_bytes()
    assert critic(features="clip", model_name="auto")["features"]["weights"] == "", "a whole file is not read here"
    for data, name in ((whole[:-200], "open_clip_pytorch_model.bin"), (b"x" * 99, "open_clip_model.safetensors")):
        (folder / name).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{name}: expected a "):
            critic(features="clip", model_name=name)
    (folder / "open_clip_pytorch_model.bin").write_bytes(whole)
    with pytest.raises(WeightsError, match=r"open_clip_pytorch_model.bin: the weights do not fit this network; missing"):
        train(discriminator=critic(features="clip", model_name="auto", architecture="convnext_base"))
    save_weights(folder / "odd.safetensors", {"x": torch.zeros(1)}, {"architecture": "rrdb"})
    with pytest.raises(WeightsError, match=r"model_name: .*expected a lite network or an auto-encoder with a header, got rrdb"):
        critic(model_name="odd.safetensors")
    with pytest.raises(MissingModelError, match=r"^heads: expected a file path"):
        critic(heads="nowhere.safetensors")
    with pytest.raises(ValueError, match=r"heads: .*odd.safetensors: expected heads of a critic"):
        critic(heads="odd.safetensors")
    with pytest.raises(ValueError, match="features: expected one of vgg19, clip, network, got 'dino'"):
        critic(features="dino")


def test_heads_of_another_width_and_patches_too_small_for_the_critic(host: Any) -> None:
    one = train()
    with pytest.raises(WeightsError, match=r"one-critic.safetensors: the weights do not fit this network; .*wrong shape"):
        train(name="wide", discriminator=critic(hidden=16, heads=one[6]["init"]))
    with pytest.raises(ConfigError, match=r"data.gt_patch_px: expected at least 128, which the critic's features \(clip\) need"):
        train(name="small", discriminator=critic(features="clip"))
    with pytest.raises(
        ConfigError, match=r"data.gt_patch_px: expected at least 80, which the features of losses.fdl need, got 64"
    ):
        train(name="fdl", loss=FDLLoss().add(features_file="random", loss=stage_1_losses())[0])


def test_adapters_that_do_not_fit_are_named(host: Any, tmp_path: Path) -> None:
    def start(kind: str, **changes: Any) -> Any:
        adapter = one_step_adapter(kind)
        adapter = replace(adapter, **changes)
        return replace(adapter, source=str(save_adapter(tmp_path / "start.safetensors", adapter)))

    with pytest.raises(ValueError, match=r"lora: expected an adapter of flux2_klein, .*start.safetensors is one of z_image"):
        train(lora=start("z_image"))
    with pytest.raises(WeightsError, match=r"start.safetensors: expected an adapter of rank 8, got matrices of rank 4"):
        train(overrides=f"{SHORT}\nlora.rank=8", lora=start("flux2_klein"))
    with pytest.raises(
        WeightsError, match=r"start.safetensors: expected a projector beside the adapter for conditioning.kind vlm"
    ):
        train(lora=start("flux2_klein", projector={}))
    other = start("flux2_klein", projector=one_step_adapter("z_image").projector)
    with pytest.raises(WeightsError, match=r"expected a projector to 48 channels, got one to 16; it belongs to another backbone"):
        train(lora=other)
    with pytest.raises(ValueError, match="lora: expected an adapter from a file, got test adapter; save it"):
        train(lora=one_step_adapter("flux2_klein"))
    with pytest.raises(ValueError, match="lora: expected nothing beside start_from"):
        train(lora=other, start_from="somewhere")


def test_runs_that_cannot_be_gone_on_with_are_named(host: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="start_from: expected a run folder with checkpoints or a checkpoint, found none"):
        train(start_from=str(tmp_path / "nowhere"))
    one = train()
    with pytest.raises(WeightsError, match=r"start_from: .* lora.rank is 4 there and 8 here"):
        train(name="rank", overrides=f"{SHORT}\nlora.rank=8", start_from=one[7])
    with pytest.raises(WeightsError, match=r'model.backbone is "flux2_klein" there and "z_image" here'):
        train(Z_IMAGE, "other", start_from=one[7])
    plain = train(name="plain", loss=PixelLoss().add()[0], discriminator=None)
    with pytest.raises(WeightsError, match=r"modules/discriminator\): the weights do not fit|expected the optimiser of"):
        train(name="game", start_from=plain[7])
    assert plain[6] is None
    (Path(plain[7]) / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"start_from: expected .*config.json of a one-step run beside the checkpoint"):
        train(name="lost", loss=PixelLoss().add()[0], discriminator=None, start_from=plain[7])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"config": "tiny-lite-x4", "loss": None, "discriminator": None, "overrides": ""},
            ConfigError,
            "expected one of the recipe one_step_distill, got fidelity; One-Step Trainer",
        ),
        ({"overrides": f"{SHORT}\nmodel.source=''"}, MissingModelError, "2 parts, 2 are missing.*flux-2-klein-base-4b"),
        ({"overrides": f"{SHORT}\nconditioning.model=''"}, MissingModelError, "Qwen3-VL-4B-Instruct"),
        (
            {"overrides": f'{SHORT}\nconditioning.kind="text"\nmodel.options={{ joint_attention_dim = 32 }}'},
            ConfigError,
            "conditioning.model: expected tokens of width 32",
        ),
        ({"overrides": f"{SHORT}\ndata.gt_patch_px=72"}, ConfigError, "data.gt_patch_px: expected a multiple of what"),
        ({"overrides": f'{SHORT}\ndata.crop="random"\ndata.gt_patch_px=512'}, Exception, "expected sides of at least 512 px"),
        ({"loss": "chain"}, TypeError, "loss: expected a chain of losses, got str"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], text: str, host: Any) -> None:
    with pytest.raises(error, match=text):
        train(**change)
