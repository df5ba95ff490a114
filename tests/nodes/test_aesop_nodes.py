"""AESOP in a graph, under inference mode as in ComfyUI: loss chains, the auto-encoder and its view, AE -> SR -> upscale."""

import json
from pathlib import Path

import pytest
import torch
from node_helpers import picture
from train_helpers import make_pictures

from alignsr.core.weights import WeightsError, read_info
from alignsr.nodes.autoencoder import AESOPAutoEncoder, AEView
from alignsr.nodes.host import LocalHost, use_host
from alignsr.nodes.losses import AESOPLoss, ArtifactLoss, GANLoss, PerceptualLoss, PixelLoss
from alignsr.nodes.restore import OneStepSR
from alignsr.nodes.train_perceptual import TrainAutoEncoder, TrainPerceptualSR
from alignsr.train.config import ConfigError, from_mapping
from alignsr.train.losses import LossesConfig

SHORT = "run.steps=2\nrun.validate_every=0\ndata.holdout=0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def host(tmp_path, data):
    local = LocalHost(output_dir=tmp_path / "out", input_dirs=[data.parent], models_dirs=[tmp_path / "models"])
    with use_host(local), torch.inference_mode():
        yield local


@pytest.fixture
def autoencoder(host):
    return TrainAutoEncoder().train("tiny-aesop-autoencoder", "pictures", SHORT, "my-ae", True)["result"]


def test_a_chain_is_what_a_toml_file_would_say(autoencoder):
    chain = AESOPLoss().add(autoencoder[1])[0]
    chain = ArtifactLoss().add(loss=chain)[0]
    chain = PerceptualLoss().add(layers="real", loss=chain)[0]
    chain = GANLoss().add(weight=0.1, kind="plain", loss=chain)[0]
    assert list(chain) == ["aesop", "artifact", "perceptual", "adversarial"]
    json.dumps(chain)  # it must fit into a checkpoint
    config = from_mapping(LossesConfig, chain)
    assert config.weights() == {"aesop": 1.0, "artifact": 1.0, "perceptual": 1.0, "adversarial": 0.1}
    assert config.perceptual.target == "sharpened" and "conv1_2" not in config.perceptual.layers
    assert config.aesop.autoencoder == autoencoder[0]


def test_defaults_of_the_nodes_are_those_of_the_config():
    from alignsr.train.loss_tables import AdversarialLossConfig, ArtifactLossConfig, PerceptualLossConfig, PixelLossConfig

    for node, name, config in (
        (PixelLoss, "pixel", PixelLossConfig),
        (ArtifactLoss, "artifact", ArtifactLossConfig),
        (PerceptualLoss, "perceptual", PerceptualLossConfig),
        (GANLoss, "adversarial", AdversarialLossConfig),
    ):
        assert from_mapping(config, node().add()[0][name]) == config()


def test_low_pass_is_a_loss_of_its_own():
    chain = PixelLoss().add(weight=0.01, kind="low_pass", loss=PixelLoss().add()[0])[0]
    assert set(chain) == {"pixel", "low_pass"} and chain["low_pass"] == {"weight": 0.01}


def test_a_loss_twice_is_refused_and_the_chain_that_came_in_is_not_changed():
    first = PixelLoss().add()[0]
    GANLoss().add(loss=first)
    assert list(first) == ["pixel"]
    with pytest.raises(ValueError, match=r"loss: expected no pixel loss yet, got a chain of pixel; remove one"):
        PixelLoss().add(loss=first)


def test_train_autoencoder_then_network_then_upscale(host, autoencoder):
    path, loaded, curve, log, losses = autoencoder
    assert Path(path).name == "my-ae.safetensors" and loaded.module.scale == 4 and loaded.source == path
    assert curve.shape[3] == 3 and len(log.splitlines()) == 2 and len(losses["loss"]) == 2
    chain = GANLoss().add(loss=AESOPLoss().add(loaded)[0])[0]
    weights, model, curve, log, _ = TrainPerceptualSR().train("tiny-aesop-rrdb-128", "pictures", SHORT, "my-gan", True, chain)[
        "result"
    ]
    terms = json.loads(log.splitlines()[-1])
    assert {"aesop", "adversarial"} <= {key.split("/")[-1] for key in terms}
    assert "perceptual" not in log, "a connected chain takes the place of all losses of the config"
    assert read_info(weights)["config"]["losses"]["aesop"]["autoencoder"] == path
    sr, *_ = OneStepSR().upscale(model, picture(), 4)
    assert sr.shape == (1, 48, 40, 3) and torch.isfinite(sr).all()


def test_a_finished_run_is_found_again(host, autoencoder):
    written = Path(autoencoder[0]).stat().st_mtime_ns
    again = TrainAutoEncoder().train("tiny-aesop-autoencoder", "pictures", SHORT, "my-ae", True)["result"]
    assert again[0] == autoencoder[0] and Path(again[0]).stat().st_mtime_ns == written


def test_a_config_of_another_recipe_is_refused_by_name(host):
    with pytest.raises(ConfigError, match="expected one of the recipe autoencoder, got fidelity; Train Auto-Encoder"):
        TrainAutoEncoder().train("tiny-lite-x4", "pictures", SHORT, "x", True)


def test_the_view_shows_kept_and_removed_parts(host, autoencoder):
    image = picture(height=65, width=82)  # sides that are no multiples of the scale are cut
    sheet, kept, removed, health = AEView().view(autoencoder[1], image, gain=4.0)
    assert kept.shape == removed.shape == (1, 64, 80, 3)
    assert sheet.shape[1] > 700 and sheet.shape[2] > 1000
    facts = json.loads(health)
    assert len(facts) == 1 and set(facts[0]) == {"psnr_y", "high_frequency_kept", "out_of_range"}
    # what was kept and what was removed make up the picture, where nothing was clamped
    inside = (removed > 0) & (removed < 1) & (kept > 0) & (kept < 1)
    whole = kept + (removed - 0.5) / 4
    assert torch.allclose(whole[inside], image[:, :64, :80][inside], atol=1e-5)


def test_the_loader_takes_a_path_before_the_name_and_refuses_other_networks(host, autoencoder):
    loaded, facts = AESOPAutoEncoder().load("does-not-matter", path=autoencoder[0])
    assert loaded.source == autoencoder[0] and json.loads(facts)["scale"] == 4
    with pytest.raises(WeightsError, match="auto-encoder"):
        AESOPAutoEncoder().load("lite-x4")


def test_an_autoencoder_of_another_scale_is_refused(host):
    other = TrainAutoEncoder().train("tiny-aesop-autoencoder-x2", "pictures", SHORT, "ae2", True)["result"][1]
    with pytest.raises(ValueError, match="expected one of the network's scale 4"):
        TrainPerceptualSR().train("tiny-aesop-rrdb-128", "pictures", SHORT, "g", True, AESOPLoss().add(other)[0])


def test_weights_are_found_by_name_in_the_model_folders(host, autoencoder, tmp_path):
    folder = tmp_path / "models" / "alignsr"
    folder.mkdir(parents=True)
    (folder / "shared-ae.safetensors").write_bytes(Path(autoencoder[0]).read_bytes())
    assert "shared-ae.safetensors" in host.list_autoencoders()
    loaded, _ = AESOPAutoEncoder().load("shared-ae.safetensors")
    assert loaded.path.parent == folder
    overrides = SHORT + '\nlosses.aesop.autoencoder="shared-ae"'
    assert TrainPerceptualSR().train("tiny-aesop-rrdb-128", "pictures", overrides, "named", True)["result"][1]
