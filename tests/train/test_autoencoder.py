"""The recipe `autoencoder`: what is trained, what is frozen, and that a run is what its seed says."""

import math

import pytest
import torch
from train_helpers import StopAfter, equal_files, make_pictures, tiny

from alignsr.core.networks.autoencoder import load_autoencoder
from alignsr.core.weights import WeightsError, read_info
from alignsr.train.config import ConfigError, published
from alignsr.train.loop import NonFiniteError, Stopped
from alignsr.train.recipes import autoencoder
from alignsr.train.state import checkpoints

NAMES = [name for name in published() if name.startswith("tiny-aesop-autoencoder")]
QUIET = {"run__preview_every": 0, "run__export_every": 0}
SIX = {"run__steps": 6, "run__checkpoint_every": 2, "run__validate_every": 3, **QUIET}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", NAMES)
def test_every_tiny_twin_trains_one_step_and_its_weights_load_back(name, pictures, tmp_path):
    config = tiny(name, pictures)
    hooks = StopAfter(99)
    result = autoencoder.train(config, tmp_path / "run", hooks)
    log = result.logs[-1]
    assert result.step == 1
    assert math.isfinite(log["loss"])
    assert ("lq" in log) == bool(config.lq_weight)
    assert log["psnr_y"] > 0
    assert 0 <= log["out_of_range"] <= 1
    assert log["texture"] < 1
    loaded = load_autoencoder(result.weights)
    assert loaded.scale == config.model.scale
    assert read_info(result.weights)["config"]["name"] == name
    assert (tmp_path / "run" / "curve.png").is_file()
    assert (tmp_path / "run" / "samples.png").is_file()
    exported = tmp_path / "run" / "exports" / f"{name}-00000001.safetensors"
    assert exported.is_file() == bool(config.run.export_every)


@pytest.mark.parametrize("name", ["tiny-aesop-autoencoder", "tiny-aesop-autoencoder-real"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, pictures, tmp_path):
    config = tiny(name, pictures, **SIX)
    whole = autoencoder.train(config, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 3 of 6"):
        autoencoder.train(config, tmp_path / "parts", StopAfter(3))
    parts = autoencoder.train(config, tmp_path / "parts", resume=True)
    assert equal_files(whole.weights, parts.weights)
    assert equal_files(*(checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")))
    assert [e["loss"] for e in whole.logs] == [e["loss"] for e in parts.logs]


def test_a_frozen_decoder_stays_as_it_was_and_out_of_the_optimiser(pictures, tmp_path):
    config = tiny("tiny-aesop-autoencoder-real", pictures, run__steps=3, **QUIET)
    torch.manual_seed(config.run.seed)
    with torch.random.fork_rng():
        before = {k: v.clone() for k, v in autoencoder.build_model(config).state_dict().items()}
    result = autoencoder.train(config, tmp_path / "run")
    after = load_autoencoder(result.weights).state_dict()
    frozen = [key for key in before if key.startswith("decoder.")]
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert frozen
    assert not set(frozen) & set(moved)
    assert any(key.startswith("body.") for key in moved)
    optimised = read_info(checkpoints(tmp_path / "run")[-1])["optimizers"]["autoencoder"]["param_groups"][0]["params"]
    assert len(optimised) == len(before) - len(frozen)


def test_the_frozen_decoder_gives_the_same_training_as_a_plain_one(pictures, tmp_path, monkeypatch):
    config = tiny("tiny-aesop-autoencoder-real", pictures, run__steps=3, **QUIET)
    lean = autoencoder.train(config, tmp_path / "lean")
    monkeypatch.setattr(autoencoder, "lean", lambda module: module)
    plain = autoencoder.train(config, tmp_path / "plain")
    assert [e["loss"] for e in lean.logs] == pytest.approx([e["loss"] for e in plain.logs], rel=1e-6)


def test_terms_are_those_of_the_paper(pictures):
    """L_AE = mean|dec(z) - gt| + mean|z - lq|, by hand on constants."""
    config = tiny("tiny-aesop-autoencoder", pictures)
    gt, lq = torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 2, 2), 0.25)
    terms = autoencoder.reconstruction_terms(config, gt + 0.1, lq - 0.2, gt, lq)
    assert terms.values["gt"].tolist() == pytest.approx([0.1, 0.1])
    assert terms.values["lq"].tolist() == pytest.approx([0.2, 0.2])
    assert terms.total().tolist() == pytest.approx([0.3, 0.3])
    real = tiny("tiny-aesop-autoencoder-real", pictures)
    assert set(autoencoder.reconstruction_terms(real, gt, lq, gt, lq).values) == {"gt"}


def test_the_decoder_starts_from_a_super_resolution_network(pictures, tmp_path):
    from alignsr.core.networks import build_network
    from alignsr.core.weights import save_weights

    torch.manual_seed(1)
    network = build_network("rrdb", {"scale": 4, "features": 8, "blocks": 1, "growth": 4})
    torch.save({"params_ema": network.state_dict()}, tmp_path / "net.pth")
    config = tiny("tiny-aesop-autoencoder", pictures, model__init_decoder=(tmp_path / "net.pth").as_posix())
    built = autoencoder.build_model(config)
    assert all(torch.equal(value, built.decoder.state_dict()[key]) for key, value in network.state_dict().items())
    save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"missing: .*unexpected: a"):
        autoencoder.build_model(
            tiny("tiny-aesop-autoencoder", pictures, model__init_decoder=(tmp_path / "other.safetensors").as_posix())
        )


def test_training_lowers_both_terms(pictures, tmp_path):
    config = tiny(
        "tiny-aesop-autoencoder", pictures, run__steps=60, run__batch_size=4, run__validate_every=0, run__preview_every=0,
        run__checkpoint_every=60, run__export_every=0, optimizer__learning_rate=5e-3,
    )  # fmt: skip
    logs = autoencoder.train(config, tmp_path / "run").logs
    for term in ("gt", "lq"):
        assert sum(e[term] for e in logs[-10:]) < 0.6 * sum(e[term] for e in logs[:10])


def test_not_a_number_names_term_step_and_samples(pictures, tmp_path, monkeypatch):
    original, calls = autoencoder.l1_loss, []

    def poisoned(a, b):
        calls.append(1)
        return original(a, b) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(autoencoder, "l1_loss", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 2: term lq is not finite for picture_\d\.png"):
        autoencoder.train(tiny("tiny-aesop-autoencoder", pictures, run__steps=3, **QUIET), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["state-00000001.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__scale": 3}, "model.scale: expected 2 or 4, got 3"),
        ({"data__gt_patch_px": 34}, "data.gt_patch_px: expected a multiple of model.scale 4, got 34"),
        ({"gt_weight": 0, "lq_weight": 0}, "gt_weight, lq_weight: expected weights of at least 0, not both 0"),
        ({"lq_weight": -1}, "gt_weight, lq_weight"),
        ({"model__freeze_decoder": True, "model__init_decoder": ""}, "expected a trained decoder, got a random one"),
        (
            {"model__freeze_decoder": True, "model__options": {"encoder": "bicubic"}},
            "expected false with a bicubic encoder",
        ),
    ],
)
def test_unusable_settings_are_named(pictures, change, message):
    with pytest.raises(ConfigError, match=message):
        tiny("tiny-aesop-autoencoder", pictures, **change)


def test_pictures_smaller_than_the_patch_are_named(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"picture_\d\.png: expected sides of at least 64 px, got 48x"):
        autoencoder.train(tiny("tiny-aesop-autoencoder", pictures, data__gt_patch_px=64, data__subimage_px=0), tmp_path / "run")


def test_a_narrow_encoder_is_refused_with_the_reason(pictures, tmp_path):
    with pytest.raises(ValueError, match="colour cannot pass"):
        autoencoder.train(tiny("tiny-aesop-autoencoder", pictures, model__options={"features": 32}), tmp_path / "run")
