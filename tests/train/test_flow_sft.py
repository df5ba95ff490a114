"""The recipe `flow_sft`: the loss of its paper, one draw per sample, adversaries on frozen adapters, exact resumption, errors."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_helpers import make_artefacts
from multi_step_helpers import VP, Known
from torch import Tensor
from train_helpers import StopAfter, equal_files, make_pictures, state_of, tiny

from alignsr.core import flow
from alignsr.core.backbones import load_backbone, open_multi_step
from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.diffusion import FlowProcess, Process
from alignsr.core.lora_files import read_adapter
from alignsr.core.records import PairBatch
from alignsr.core.weights import MissingModelError, WeightsError, load_state_dict, read_info, save_weights
from alignsr.train.config import ConfigError, config_hash, published
from alignsr.train.data import DataError, PairData
from alignsr.train.flow_terms import NOISE, TIME, flow_terms, sample_draws
from alignsr.train.loop import NonFiniteError, Stopped
from alignsr.train.multi_step import ADVERSARY, SFT
from alignsr.train.recipes import flow_sft as recipe
from alignsr.train.recipes import load_config
from alignsr.train.state import checkpoints

SFTS = ("flux", "sd15", "sdxl", "pixel")
QUIET = {"run__validate_every": 0, "run__preview_every": 0, "model__use_checkpointing": False}
SIX = {"run__steps": 6, "run__checkpoint_every": 2, "optimizer__learning_rate": 1e-3, "schedule__warmup_steps": 0, **QUIET}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), side=72)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefacts(tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, Path]:
    """The supervised adapters of two steps, by config."""
    made: dict[str, Path] = {}
    for name in SFTS:
        folder = tmp_path_factory.mktemp(name)
        sets = {"run__steps": 2, "optimizer__learning_rate": 1e-2, "schedule__warmup_steps": 0, **QUIET}
        weights = recipe.train(tiny(f"tiny-asasr-sft-{name}", pictures, **sets), folder / "run").weights
        made[name] = weights.with_name(f"{weights.stem}-adapter.safetensors") if name == "pixel" else weights
    return made


def adversary(name: str, artefacts: Path, adapters: dict[str, Path], **sets: Any) -> recipe.FlowSftConfig:
    given = {"model__adapter": adapters[name].as_posix(), "artefacts__folders": [artefacts.as_posix()]}
    return tiny(f"tiny-asasr-adversary-{name}", artefacts, **{**given, **sets})


def test_every_tiny_config_of_this_recipe_is_trained_below() -> None:
    named = {f"tiny-asasr-{stage}-{name}" for stage in ("sft", "adversary") for name in SFTS} | {"tiny-pixel-flow-x4"}
    assert named == {n for n in published() if n.startswith("tiny-") and load_config(n)[0].config is recipe.FlowSftConfig}


def check_logs(result: Any, folder: Path) -> None:
    log = result.logs[-1]
    assert log["loss"] == log["flow"]
    assert log["grad_norm"] > 0
    assert all(math.isfinite(log[key]) for key in ("flow", "held_out_flow", "psnr_y", "ssim_y", "lr_psnr", "lsd"))
    assert (folder / "samples.png").is_file()
    assert result.curve.is_file()


@pytest.mark.parametrize("name", SFTS)
def test_supervised_twins_train_one_step_and_their_adapters_load_back(name: str, pictures: Path, tmp_path: Path) -> None:
    config = tiny(f"tiny-asasr-sft-{name}", pictures)
    result = recipe.train(config, tmp_path / "run", StopAfter(99))
    check_logs(result, tmp_path / "run")
    if name == "pixel":
        assert isinstance(load_backbone(result.weights), PixelBackbone)
        adapter = read_adapter(result.weights.with_name(f"{result.weights.stem}-adapter.safetensors"))
    else:
        adapter = read_adapter(result.weights)
        facts = {"version": "sdxl"} if name == "sdxl" else {}
        open_multi_step(config.model.backbone, "tiny", precision="fp32", adapters=[(adapter, 1.0)], **facts)
    assert (adapter.info["role"], adapter.rank, adapter.scale) == ("supervised", 4, 1.0)
    assert adapter.info["config"]["name"] == config.name
    assert set(adapter.full) == ({"conv_in.weight", "conv_in.bias"} if name in ("sd15", "sdxl") else set())
    if name == "flux":
        assert (adapter.info["guidance"], adapter.info["lora_scope"]) == (1.0, "all")
    else:
        assert "guidance" not in adapter.info


@pytest.mark.parametrize("name", SFTS)
def test_adversary_twins_train_one_step_on_top_of_the_frozen_adapter(
    name: str, artefacts: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    config = adversary(name, artefacts, adapters)
    result = recipe.train(config, tmp_path / "run")
    check_logs(result, tmp_path / "run")
    file = result.weights.with_name(f"{result.weights.stem}-adapter.safetensors") if name == "pixel" else result.weights
    adapter = read_adapter(file)
    assert (adapter.info["role"], adapter.rank) == ("adversary", 2)
    assert not adapter.full
    if name != "pixel":
        assert read_adapter(result.folder / f"{config.name}-with-sft.safetensors").rank == 6


def test_a_whole_pixel_model_trains_one_step_and_samples(pictures: Path, tmp_path: Path) -> None:
    config = tiny("tiny-pixel-flow-x4", pictures)
    result = recipe.train(config, tmp_path / "run")
    check_logs(result, tmp_path / "run")
    opened: Any = load_backbone(result.weights)
    assert opened.options["residual_std"] == 0.15
    assert opened.spec.name == "tiny-pixel-flow-x4"
    again = recipe.train(replace(config, model=replace(config.model, init=str(result.weights))), tmp_path / "on")
    assert again.step == 1


def batch_of(size: int, number: int = 0) -> PairBatch:
    draw = torch.Generator().manual_seed(number)
    lq = torch.rand(size, 3, 8, 8, generator=draw)
    return PairBatch(lq, torch.rand(size, 3, 32, 32, generator=draw), tuple(map(str, range(size))))


@pytest.mark.parametrize("process", [FlowProcess(), VP])
def test_the_loss_is_that_of_the_paper(process: Process) -> None:
    """Equation (2) with the model's own answer, written out; and zero error for a perfect answer."""
    model, batch, draws = Known(process), batch_of(3), sample_draws(7, 40, 3)
    found = flow_terms(model, batch, draws).values["flow"]
    for i, draw in enumerate(draws):
        z = model.encode(batch.gt[i : i + 1] * 2 - 1)
        time = process.draw_times(1, generator=draw(TIME))
        noise = torch.randn(z.shape[1:], generator=draw(NOISE))[None]
        one = PairBatch(batch.lq[i : i + 1], batch.gt[i : i + 1], ("x",))
        alone = flow_terms(model, one, [draw]).values["flow"]
        assert torch.equal(alone, found[i : i + 1])  # neither the batch nor the place in it matters
        from alignsr.core.resize import bicubic

        z_lq = model.encode(bicubic(one.lq, (32, 32)).clamp(0, 1) * 2 - 1)
        if process.prediction == "velocity":
            noisy = (1 - time) * z + time * noise
            error = (noisy - z_lq) / time - (noise - z)
        else:
            a, s = (float(x) for x in VP.scales(time, z))
            noisy = a * z + s * noise
            error = (noisy - a * z_lq) / s - noise
        assert float(alone) == pytest.approx(float(error.square().mean()), rel=1e-4)


def test_a_perfect_model_has_no_error() -> None:
    batch = batch_of(2)
    lq = batch.lq[..., :1, :1].expand(-1, -1, 8, 8)
    flat = PairBatch(lq, lq[..., :1, :1].expand(-1, -1, 32, 32), ("a", "b"))
    assert float(flow_terms(Known(), flat, sample_draws(0, 0, 2)).total().max()) < 1e-8


def test_draws_are_functions_of_seed_purpose_and_sample() -> None:
    def numbers(seed: int, first: int, purpose: int) -> float:
        return float(torch.randn(1, generator=sample_draws(seed, first, 1)[0](purpose)))

    assert numbers(0, 5, TIME) == float(torch.randn(1, generator=sample_draws(0, 3, 4)[2](TIME)))
    assert len({numbers(0, 5, TIME), numbers(0, 5, NOISE), numbers(0, 6, TIME), numbers(9, 5, TIME)}) == 4


def test_accumulated_small_batches_train_as_one_large_batch(pictures: Path, tmp_path: Path) -> None:
    """Per-sample draws: how samples are gathered into passes does not matter."""
    sets = {**SIX, "run__steps": 2, "run__ema_decay": 0.0, "data__degradation": "matlab"}
    one = recipe.train(tiny("tiny-asasr-sft-pixel", pictures, **sets, run__batch_size=4), tmp_path / "one")
    sets |= {"run__accumulation_steps": 4, "run__batch_size": 1}
    many = recipe.train(tiny("tiny-asasr-sft-pixel", pictures, **sets), tmp_path / "many")
    assert one.logs[-1]["flow"] == pytest.approx(many.logs[-1]["flow"], rel=1e-4)
    assert one.logs[-1]["grad_norm"] == pytest.approx(many.logs[-1]["grad_norm"], rel=1e-3)


def test_targets_and_inputs_of_the_data_table_turn_together(pictures: Path) -> None:
    from alignsr.core.resize import imresize_uint8

    config = tiny("tiny-asasr-sft-pixel", pictures, data__degradation="matlab", data__holdout=0)
    batch = PairData(config.data, 4, 0, 1).batch(0, 16)
    for gt, lq in zip(batch.gt, batch.lq, strict=True):
        small = imresize_uint8((gt * 255).round().to(torch.uint8), 1 / 4).float() / 255
        inner = (slice(None), slice(2, -2), slice(2, -2))
        assert float((small - lq)[inner].abs().mean()) < float((small.flip(-1) - lq)[inner].abs().mean())


def test_only_what_is_trained_moves_and_the_frozen_adapter_does_not(
    artefacts: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[recipe.FlowModel] = []
    build = recipe.build_model

    def remembered(*given: Any) -> recipe.FlowModel:
        built.append(build(*given))
        return built[-1]

    monkeypatch.setattr(recipe, "build_model", remembered)
    config = adversary("flux", artefacts, adapters, **{**SIX, "run__steps": 3})
    recipe.train(config, tmp_path / "run")
    (model,) = built
    stack, fresh = model.trainee.stack, build(config)
    assert stack.active == (SFT, ADVERSARY)
    trained = {id(p) for p in model.part.parameters()}
    assert trained == {id(p) for p in stack.parameters(ADVERSARY)}
    for (key, live), before in zip(model.trainee.network.named_parameters(), fresh.trainee.network.parameters(), strict=True):
        assert live.requires_grad == (id(live) in trained), key
        if id(live) not in trained:
            assert live.grad is None, key
            assert torch.equal(live, before), key
    assert any(bool(p.any()) for key, p in model.trainee.network.named_parameters() if ".lora_B.adv." in key)


def test_the_widened_convolution_of_stable_diffusion_is_trained_whole(pictures: Path, tmp_path: Path) -> None:
    """Its new half starts at zero; what is written makes a fresh base answer as the trained model does."""
    config = tiny("tiny-asasr-sft-sd15", pictures, **{**SIX, "run__steps": 2})
    model = recipe.build_model(config)
    half = model.trainee.network.get_parameter("conv_in.weight")
    assert half.shape[1] == 8
    assert not bool(half[:, 4:].any())
    assert half.requires_grad
    assert len(model.part.weights) == len(model.trainee.stack.parameters(SFT)) + 2  # pyright: ignore[reportArgumentType]
    adapter = read_adapter(recipe.train(config, tmp_path / "run").weights)
    assert bool(adapter.full["conv_in.weight"][:, 4:].any())
    on = replace(config, model=replace(config.model, init=str(tmp_path / "run" / f"{config.name}.safetensors")))
    again = recipe.build_model(on)
    assert torch.equal(again.trainee.network.get_parameter("conv_in.weight"), adapter.full["conv_in.weight"])


def test_a_condition_scope_goes_into_the_adapters_header_and_to_the_adversary(
    pictures: Path, artefacts: Path, tmp_path: Path
) -> None:
    sets = {"model__lora_scope": "condition_only", **QUIET}
    made = recipe.train(tiny("tiny-asasr-sft-flux", pictures, **sets), tmp_path / "sft").weights
    assert read_adapter(made).info["lora_scope"] == "condition_only"
    config = adversary("flux", artefacts, {"flux": made}, **QUIET)
    assert read_adapter(recipe.train(config, tmp_path / "adv").weights).info["lora_scope"] == "condition_only"


@pytest.mark.parametrize("name", ["asasr-sft-flux", "asasr-sft-sd15", "asasr-sft-pixel", "pixel-flow-x4"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name: str, pictures: Path, tmp_path: Path) -> None:
    config = tiny(f"tiny-{name}", pictures, **SIX, run__ema_decay=0.9)
    whole = recipe.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 6"):
        recipe.train(config, tmp_path / "parts", StopAfter(3))
    parts = recipe.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))
    assert [e["flow"] for e in whole.logs] == [e["flow"] for e in parts.logs]
    assert len({e["flow"] for e in whole.logs}) == 6


def test_killed_and_resumed_equals_uninterrupted(artefacts: Path, tmp_path: Path) -> None:
    """SIGKILL from outside, at whatever place the run is when its second checkpoint appears."""
    sets = {"model__adapter": "", **SIX, "run__steps": 40, "run__keep_checkpoints": 40}
    config = tiny("tiny-asasr-adversary-pixel", artefacts, **sets, artefacts__folders=[artefacts.as_posix()])
    whole = recipe.train(config, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from train_helpers import tiny; from alignsr.train.recipes import flow_sft\n"
        f"flow_sft.train(tiny('tiny-asasr-adversary-pixel', Path({str(artefacts)!r}), **{sets!r}, "
        f"artefacts__folders=[{artefacts.as_posix()!r}]), {str(tmp_path / 'parts')!r})"
    )
    tests = str(Path(__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": tests})
    deadline = time.monotonic() + 120
    while len(checkpoints(tmp_path / "parts")) < 2 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(checkpoints(tmp_path / "parts"))
    assert done >= 2
    parts = recipe.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))


def test_a_few_steps_lower_the_loss(pictures: Path, tmp_path: Path) -> None:
    sets = {**SIX, "run__steps": 40, "run__checkpoint_every": 40, "optimizer__learning_rate": 1e-2, "run__batch_size": 4}
    sets |= {"run__ema_decay": 0.0, "run__validate_every": 1}
    logs = recipe.train(tiny("tiny-pixel-flow-x4", pictures, **sets), tmp_path / "run").logs
    assert logs[-1]["held_out_flow"] < 0.9 * logs[0]["held_out_flow"]


def test_latents_come_from_disk_the_second_time_and_change_nothing(
    artefacts: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignsr.core.backbones.stable_diffusion import StableDiffusionBackbone

    calls: list[int] = []
    encode = StableDiffusionBackbone.encode

    def counted(self: Any, image: Tensor, **given: Any) -> Tensor:
        calls.append(image.shape[0])
        return encode(self, image, **given)

    monkeypatch.setattr(StableDiffusionBackbone, "encode", counted)
    sets = {**SIX, "run__steps": 3, "artefacts__crop": "middle", "artefacts__augment": False}
    plain = adversary("sd15", artefacts, adapters, **sets)
    config = replace(plain, model=replace(plain.model, latent_cache=str(tmp_path / "latents")))
    assert config_hash(config) == config_hash(plain)
    without = recipe.train(plain, tmp_path / "without")
    calls.clear()
    first = recipe.train(config, tmp_path / "first")
    kept = len(list((tmp_path / "latents").rglob("*.safetensors")))
    assert kept == sum(calls) < 12  # fixed crops of 2 pictures by 2 methods: 4 targets and 2 inputs in 6 samples
    calls.clear()
    second = recipe.train(config, tmp_path / "second")
    assert not calls
    assert equal_files(first.weights, second.weights)
    for key, value in load_state_dict(without.weights).items():
        torch.testing.assert_close(load_state_dict(first.weights)[key], value, rtol=1e-3, atol=1e-5)


def test_posterior_samples_differ_and_repeat(pictures: Path, tmp_path: Path) -> None:
    sets = {**SIX, "run__steps": 1}
    runs = [
        recipe.train(tiny("tiny-asasr-sft-sd15", pictures, **sets, model__posterior=kind), tmp_path / str(i)).logs[-1]["flow"]
        for i, kind in enumerate(("sample", "sample", "mean"))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_not_a_number_stops_with_step_term_and_samples(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PixelBackbone.predict

    def broken(self: Any, z: Tensor, *given: Any) -> Tensor:
        return original(self, z, *given) * float("nan")

    config = tiny("tiny-asasr-sft-pixel", pictures, **SIX)
    monkeypatch.setattr(PixelBackbone, "predict", broken)
    with pytest.raises(NonFiniteError, match=r"step 1.*flow.*picture_"):
        recipe.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("asasr-sft-flux", {"lora__rank": 0}, r"lora.rank: expected at least 1 for flux1, got 0"),
        ("asasr-adversary-pixel", {"lora__rank": 0}, r"lora.rank: expected at least 1 for an adversary"),
        ("asasr-adversary-flux", {"model__adapter": ""}, r"model.adapter: expected the adapter of supervised training"),
        ("asasr-sft-flux", {"model__adapter": "x.safetensors"}, r"model.adapter: expected none where that adapter itself"),
        ("asasr-sft-flux", {"data__gt_patch_px": 72}, r"data.gt_patch_px: expected a multiple of what flux1 takes 16"),
        ("asasr-sft-sd15", {"data__gt_patch_px": 72}, r"data.gt_patch_px: expected a multiple of what stable_diffusion takes 16"),
        ("asasr-sft-sd15", {"model__precision": "bf16"}, r'model.precision: expected "fp32" where weights are trained whole'),
        ("pixel-flow-x4", {"model__precision": "bf16"}, r'model.precision: expected "fp32" where weights are trained whole'),
        ("asasr-sft-sd15", {"model__guidance": 2.0}, r"model.guidance: expected none for stable_diffusion"),
        ("asasr-sft-flux", {"run__channels_last": True}, r"run.channels_last: expected false"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, sets: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(f"tiny-{name}", tmp_path, **sets)


def test_files_that_do_not_fit_are_named(pictures: Path, artefacts: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="nowhere"):
        recipe.train(adversary("flux", artefacts, {"flux": Path("nowhere.safetensors")}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected an adapter of stable_diffusion, .* is one of flux1"):
        recipe.train(adversary("sd15", artefacts, {"sd15": adapters["flux"]}), tmp_path / "b")
    with pytest.raises(WeightsError, match="expected an adapter of rank 3, got matrices of rank 4"):
        recipe.train(tiny("tiny-asasr-sft-flux", pictures, lora__rank=3, model__init=str(adapters["flux"])), tmp_path / "c")
    with pytest.raises(DataError, match=r"expected 18x\d+ px, 1/4 of"):
        sets = {"data__lq_folders": [pictures.as_posix()], "data__degradation": "matlab", **QUIET}
        recipe.train(tiny("tiny-asasr-sft-pixel", pictures, **sets), tmp_path / "d")
    (artefacts.parent / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"expected pictures in .*lq, found none"):
        recipe.train(adversary("pixel", artefacts.parent / "empty", adapters), tmp_path / "e")


def test_a_one_step_start_says_what_it_was(pictures: Path, tmp_path: Path) -> None:
    """Weights without residual_std start a flow through `flow_from_one_step`; the first guess from noise is their result."""
    options = {"patch_px": 8, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0}
    one = PixelBackbone(options)
    with torch.no_grad():
        for number, parameter in enumerate(one.network.parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    info = {"backbone": "pixel", "architecture": "pixel", "options": one.options}
    save_weights(tmp_path / "one.safetensors", dict(one.network.state_dict()), info)
    config = tiny("tiny-pixel-flow-x4", pictures, model__init=(tmp_path / "one.safetensors").as_posix())
    model = recipe.build_model(config)
    z_lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise, sigma = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)), torch.ones(1)
    with torch.no_grad():
        guess = flow.clean_from_velocity(noise, model.trainee.backbone.predict(noise, sigma, z_lq), sigma)
        arrived = z_lq - 0.8 * one.velocity(z_lq, sigma, z_lq)
    torch.testing.assert_close(guess, arrived, rtol=1e-3, atol=1e-4)


def test_checkpoints_hold_what_is_trained_and_nothing_else(pictures: Path, tmp_path: Path) -> None:
    config = tiny("tiny-asasr-sft-flux", pictures, **{**SIX, "run__steps": 2})
    recipe.train(config, tmp_path / "run")
    state = state_of(tmp_path / "run", "model")
    trained = recipe.build_model(config).part
    assert {tuple(t.shape) for t in state.values()} == {tuple(p.shape) for p in trained.parameters()}
    assert len(state) == len(list(trained.parameters()))
    assert read_info(tmp_path / "run" / f"{config.name}.safetensors")["step"] == 2
