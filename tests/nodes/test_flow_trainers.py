"""SFT Trainer, Artefact Folder and Adversary Trainer in a graph, under inference mode as in ComfyUI."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_helpers import METHODS, make_artefacts
from node_helpers import Watcher, picture
from train_helpers import make_pictures

from alignsr.core.lora_files import read_adapter
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.multi_step_sampling import MultiStepSR
from alignsr.nodes.train_flow import AdversaryTrainer, ArtefactFolder, SFTTrainer
from alignsr.train.config import ConfigError
from alignsr.train.sources import DataError

QUIET = "run.validate_every=0\nrun.preview_every=0"
SHORT = f"run.steps=3\nrun.checkpoint_every=1\noptimizer.learning_rate=1e-3\nschedule.warmup_steps=0\n{QUIET}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "pictures", side=72)
    make_artefacts(folder / "artefacts")
    return folder


@pytest.fixture
def watched(tmp_path: Path, data: Path) -> Any:
    watcher = Watcher()
    watcher.host = LocalHost(
        output_dir=tmp_path / "out", input_dirs=[data], models_dirs=[tmp_path / "models"], on_progress=watcher
    )
    with use_host(watcher.host), torch.inference_mode():
        yield watcher


def sft(config: str, overrides: str = SHORT, **inputs: Any) -> Any:
    return SFTTrainer().train(config, "pictures", overrides, **inputs)["result"]


def artefacts(**inputs: Any) -> Any:
    return ArtefactFolder().check("artefacts", **inputs)


def restored(model: Any) -> torch.Tensor:
    return MultiStepSR().upscale(model=model, image=picture(16, 16), steps=2, color_fix="none")[0]


@pytest.mark.parametrize("name", ["flux", "sd15", "pixel"])
def test_supervised_then_adversary_then_samples(name: str, watched: Watcher) -> None:
    weights, model, curve, log, losses, lora, run = sft(f"tiny-asasr-sft-{name}")
    assert watched.steps == [1, 2, 3]
    assert curve.shape[-1] == 3
    assert json.loads(log.splitlines()[-1])["flow"] == losses["loss"][-1]
    assert (lora.rank, lora.info["role"]) == (4, "supervised")
    first = restored(model)
    assert torch.isfinite(first).all()
    folder, sheet, info = artefacts(share=1.0)
    assert sheet.shape[0] == 3
    assert json.loads(info)["methods"] == list(METHODS)
    watched.steps.clear()
    found = AdversaryTrainer().train(f"tiny-asasr-adversary-{name}", SHORT, sft=lora, artefacts=folder)["result"]
    assert watched.steps == [1, 2, 3]
    adversary = found[5]
    assert (adversary.rank, adversary.info["role"]) == (2, "adversary")
    second = restored(found[1])
    assert not torch.equal(first, second)
    config = json.loads((Path(found[6]) / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["adapter"] == lora.source
    assert config["artefacts"]["folders"] == folder["folders"]
    if name != "pixel":
        assert read_adapter(found[0]).rank == 2
        assert read_adapter(Path(found[0]).with_name(f"{Path(found[0]).stem}-with-sft.safetensors")).rank == 6
    assert weights != found[0]
    assert Path(run).is_dir()
    assert AdversaryTrainer().train(f"tiny-asasr-adversary-{name}", SHORT, sft=lora, artefacts=folder)["result"][0] == found[0]
    assert watched.steps == [1, 2, 3]  # found on disk


def test_a_whole_pixel_model_gives_no_adapter(watched: Watcher) -> None:
    _, model, _, _, _, lora, _ = sft("tiny-pixel-flow-x4")
    assert lora is None
    assert torch.isfinite(restored(model)).all()


def test_training_goes_on_from_an_adapter(watched: Watcher) -> None:
    first = sft("tiny-asasr-sft-flux", out_name="first")
    on = sft("tiny-asasr-sft-flux", f"{SHORT}\noptimizer.learning_rate=0.0", out_name="on", lora=first[5])
    for name, tensor in read_adapter(on[0]).state.items():
        torch.testing.assert_close(tensor, first[5].state[name])


def test_interrupted_and_queued_again_is_the_uninterrupted_run(watched: Watcher) -> None:
    whole = sft("tiny-asasr-sft-pixel", out_name="whole")
    watched.steps.clear()
    watched.cancel_at = 2
    with pytest.raises(Interrupted):
        sft("tiny-asasr-sft-pixel", out_name="parts")
    assert watched.steps == [1, 2]
    watched.cancel_at = 0
    watched.host.clear_cancel()
    parts = sft("tiny-asasr-sft-pixel", out_name="parts")
    assert watched.steps == [1, 2, 3]
    for name, tensor in whole[5].state.items():
        assert torch.equal(tensor, parts[5].state[name])


def test_the_folder_node_shows_and_tells(watched: Watcher) -> None:
    folder, sheet, info = artefacts(methods=" smooth ", share=0.5)
    assert folder["methods"] == ["smooth"]
    assert folder["share"] == 0.5
    told = json.loads(info)
    assert (told["pictures"], told["with_ground_truth"], told["names"][0]) == (3, 0, "picture_0")
    assert sheet.ndim == 4
    stamp = ArtefactFolder.IS_CHANGED("artefacts")
    assert stamp == ArtefactFolder.IS_CHANGED("artefacts") != ArtefactFolder.IS_CHANGED("artefacts", "smooth")
    assert ArtefactFolder.IS_CHANGED(None) != ArtefactFolder.IS_CHANGED(None)


def test_bad_input_names_the_input_of_the_node(watched: Watcher, data: Path) -> None:
    with pytest.raises(DataError, match=r"^methods: expected one of rough, smooth, got 'smoth'"):
        artefacts(methods="smoth")
    with pytest.raises(ValueError, match=r"^share: expected more than 0 and at most 1"):
        artefacts(share=0.0)
    with pytest.raises(DataError, match=r"^folder: expected pictures in"):
        ArtefactFolder().check("pictures")
    with pytest.raises(DataError, match=r"^folder: .*in 2 times its size; .*instead of 48x48"):
        artefacts(scale=2)
    with pytest.raises(ConfigError, match="expected one of the recipe flow_sft, got fidelity; SFT Trainer"):
        sft("tiny-lite-x4")
    with pytest.raises(ConfigError, match=r"model\.adapter: expected the adapter of supervised training"):
        AdversaryTrainer().train("tiny-asasr-adversary-flux", f'{SHORT}\nmodel.adapter=""', artefacts=artefacts()[0])
    with pytest.raises(ConfigError, match=r"lora\.rank: expected at least 1 for flux1, got 0"):
        sft("tiny-asasr-sft-flux", f"{SHORT}\nlora.rank=0")
    lora = sft("tiny-asasr-sft-flux")[5]
    with pytest.raises(ValueError, match=r"expected an adapter of stable_diffusion, .* is one of flux1"):
        AdversaryTrainer().train("tiny-asasr-adversary-sd15", SHORT, sft=lora, artefacts=artefacts()[0])
    with pytest.raises(TypeError, match="lora: expected"):
        sft("tiny-asasr-sft-flux", lora="a file")


def test_supervised_configs_are_refused_as_adversaries_before_training(watched: Watcher) -> None:
    with pytest.raises(ValueError, match=r"config: expected one with the table \[artefacts\]"):
        AdversaryTrainer().train("tiny-asasr-sft-pixel", SHORT)
    assert not watched.steps
    with pytest.raises(ValueError, match="config: expected one without the table"):
        sft("tiny-asasr-adversary-pixel")
    assert not watched.steps
