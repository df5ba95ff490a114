"""Sobolev DPO Trainer and Merge Adapters in a graph, under inference mode as in ComfyUI."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from node_helpers import Watcher, picture
from train_helpers import make_pictures

from alignsr.core.lora import Adapter
from alignsr.core.lora_files import read_adapter
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.lora import MergeAdapters, SaveLoRA
from alignsr.nodes.multi_step import LoadMultiStepBackbone
from alignsr.nodes.multi_step_sampling import MultiStepSR
from alignsr.nodes.train_sobolev import SobolevDPOTrainer
from alignsr.train.config import ConfigError
from alignsr.train.multi_step import AdapterConfig, MultiStepModelConfig, add_adapter, build_trainee, save_trained

QUIET = "run.validate_every=0\nrun.preview_every=0\ndata.holdout=0"
SHORT = f"run.steps=3\nrun.checkpoint_every=1\noptimizer.learning_rate=1e-3\nschedule.warmup_steps=0\n{QUIET}"
FLUX, SD, PIXEL = "tiny-asasr-flux", "tiny-asasr-sd15", "tiny-asasr-pixel"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def watched(tmp_path: Path, data: Path) -> Any:
    watcher = Watcher()
    watcher.host = LocalHost(
        output_dir=tmp_path / "out", input_dirs=[data.parent], models_dirs=[tmp_path / "models"], on_progress=watcher
    )
    with use_host(watcher.host), torch.inference_mode():
        yield watcher


def adapter_of(kind: str, path: Path, number: int) -> Adapter:
    """An adapter file of rank 2 that changes something."""
    with torch.inference_mode(False), torch.no_grad():
        trainee = build_trainee(MultiStepModelConfig(backbone=kind, source="tiny", precision="fp32", vae_precision="fp32"))  # pyright: ignore[reportArgumentType]
        for index, parameter in enumerate(add_adapter(trainee, "made", AdapterConfig(2))):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * number + index)))
        save_trained(trainee, "made", path, {"name": path.stem})
        return read_adapter(path.with_name(f"{path.stem}-adapter.safetensors") if kind == "pixel" else path)


def train(config: str, name: str = "one", overrides: str = SHORT, **inputs: Any) -> Any:
    return SobolevDPOTrainer().train(config, "pictures", overrides, name, **{"resume": True} | inputs)["result"]


def restored(model: Any) -> torch.Tensor:
    return MultiStepSR().upscale(model=model, image=picture(16, 16), steps=2, color_fix="none")[0]


@pytest.mark.parametrize(("config", "kind"), [(FLUX, "flux1"), (SD, "stable_diffusion")])
def test_adapters_come_in_and_the_model_goes_out(config: str, kind: str, watched: Watcher, tmp_path: Path) -> None:
    sft, adversary = adapter_of(kind, tmp_path / "sft.safetensors", 1), adapter_of(kind, tmp_path / "adv.safetensors", 2)
    weights, model, curve, log, losses, lora, joined, run = train(config, sft=sft, adversary=adversary, order=1.0, beta=500.0)
    assert watched.steps == [1, 2, 3]
    assert curve.shape[-1] == 3
    assert losses["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    assert json.loads(log.splitlines()[-1])["step"] == 3
    config_of_run = json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))
    assert (config_of_run["preference"]["order"], config_of_run["preference"]["beta"]) == (1.0, 500.0)
    assert config_of_run["model"]["adapter"] == sft.source
    assert config_of_run["adversary"]["adapter"] == adversary.source
    assert (lora.rank, joined.rank) == (2, 4)
    assert read_adapter(weights).rank == 2
    by_hand, facts = MergeAdapters().join(sft, lora)
    assert json.loads(facts)["rank"] == 4
    for name, tensor in joined.state.items():
        torch.testing.assert_close(tensor, by_hand.state[name])
    path = Path(SaveLoRA().save(joined, "joined", "diffusers")["result"][0])
    assert read_adapter(path).rank == 4
    assert torch.isfinite(restored(model)).all()
    again = train(config, sft=sft, adversary=adversary, order=1.0, beta=500.0)
    assert watched.steps == [1, 2, 3]  # found on disk
    assert again[0] == weights


def test_pixel_gives_a_whole_model_and_its_adapter(watched: Watcher) -> None:
    weights, model, _, _, _, lora, joined, _ = train(PIXEL)
    assert lora.info["backbone"] == "pixel"
    assert joined is lora
    assert Path(weights).is_file()
    assert torch.isfinite(restored(model)).all()


def test_interrupted_and_queued_again_is_the_uninterrupted_run(watched: Watcher) -> None:
    whole = train(FLUX, "whole", SHORT)
    watched.steps.clear()
    watched.cancel_at = 2
    with pytest.raises(Interrupted):
        train(FLUX, "parts")
    assert watched.steps == [1, 2]
    watched.cancel_at = 0
    watched.host.clear_cancel()
    parts = train(FLUX, "parts")
    assert watched.steps == [1, 2, 3]  # it went on at the third
    one, other = (read_adapter(result[0]).state for result in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_input_names_the_socket(watched: Watcher, tmp_path: Path) -> None:
    sft = adapter_of("stable_diffusion", tmp_path / "sft.safetensors", 1)
    with pytest.raises(ValueError, match="expected an adapter of flux1"):
        train(FLUX, sft=sft)
    with pytest.raises(TypeError, match="lora: expected an adapter"):
        train(FLUX, sft="no adapter")
    with pytest.raises(ValueError, match="adversary: expected an adapter from a file"):
        train(FLUX, adversary=Adapter(sft.state, sft.info))
    with pytest.raises(ValueError, match="order: expected a number of at least 0"):
        train(FLUX, order=-0.5)
    with pytest.raises(ValueError, match="beta: expected a number above 0"):
        train(FLUX, beta=0.0)
    with pytest.raises(ConfigError, match="expected one of the recipe sobolev_dpo, got one_step_distill"):
        train("tiny-strsr-pixel-stage1", overrides="")
    other = adapter_of("flux1", tmp_path / "flux.safetensors", 1)
    with pytest.raises(ValueError, match="expected one backbone"):
        MergeAdapters().join(sft, other)
    with pytest.raises(ValueError, match="strength: expected a number for other"):
        MergeAdapters().join(sft, sft, 1.0, float("nan"))


def test_defaults_of_the_widgets_are_the_configs(watched: Watcher) -> None:
    run = json.loads((Path(train(FLUX)[-1]) / "config.json").read_text(encoding="utf-8"))
    assert (run["preference"]["order"], run["preference"]["beta"]) == (1.5, 2000.0)


def test_an_adapter_of_the_trainer_goes_onto_the_loaders_model(watched: Watcher) -> None:
    """Merge LoRA of both adapters gives what the trainer's model is."""
    from alignsr.nodes.lora import MergeLoRA

    _, model, _, _, _, _, joined, _ = train(FLUX)
    loaded = LoadMultiStepBackbone().load("flux1", "tiny", precision="fp32")[0]
    merged = MergeLoRA().merge(loaded, joined)[0]
    torch.testing.assert_close(restored(merged), restored(model), rtol=1e-4, atol=1e-4)
