"""Weight files of the released code: read in every spelling, refused when damaged, exported for spandrel and ComfyUI."""

import os

import pytest
import torch
from safetensors import safe_open
from torch import nn

from alignsr.core.backbones import load_backbone
from alignsr.core.compat import import_spandrel
from alignsr.core.networks import NETWORKS, build_network
from alignsr.core.networks.autoencoder import AutoEncoder, build_autoencoder, load_autoencoder
from alignsr.core.networks.official import (
    canonical_state,
    export_for_comfy,
    identify,
    read_official,
    save_autoencoder,
    with_aliases,
)
from alignsr.core.weights import WeightsError, load_into, load_state_dict, save_weights
from reference.formula import U

TRANSFORMER = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "img_size": 16, "window_size": 4}
DRCT = {"embed_dim": 12, "depths": [6, 6], "num_heads": [2, 2], "img_size": 32, "window_size": 16, "growth": 4}
OPTIONS = {
    "lite": {"features": 8, "blocks": 1},
    "rrdb": {"features": 8, "growth": 32, "blocks": 2},
    "srresnet": {"features": 8, "blocks": 2},
    "swinir": TRANSFORMER,
    "drct": DRCT,
}
AE = {"features": 48, "blocks": 2, "growth": 8, "decoder_options": {"features": 8, "growth": 4, "blocks": 2}}


def filled(module: nn.Module) -> nn.Module:
    """Random values everywhere, so that nothing of a network is inert."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 / max(1, parameter[0].numel()) ** 0.5))
    return module.eval()


def tiny(name: str, scale: int = 4) -> nn.Module:
    return filled(build_network(name, {"scale": scale, **OPTIONS[name]}))


def pth(folder, state, key: str | None = "params_ema", prefix: str = ""):
    named = {prefix + name: tensor for name, tensor in state.items()}
    live = {name: tensor * 0 for name, tensor in named.items()}  # must not be read where an average is there
    torch.save({"params": live, key: named} if key else named, folder / "w.pth")
    return folder / "w.pth"


# auto-encoders (check 12)


def only_encoder(state):
    return {name: tensor for name, tensor in with_aliases(state).items() if name.startswith(("encoder.", "decoder."))}


@pytest.mark.parametrize("names", [dict, with_aliases, only_encoder], ids=["plain", "both", "aliases"])
@pytest.mark.parametrize(("key", "prefix"), [("params_ema", ""), ("params", "module."), (None, "module.")])
def test_released_autoencoders_load_under_either_name_set(names, key, prefix, tmp_path):
    autoencoder = filled(AutoEncoder(**AE))
    loaded = load_autoencoder(pth(tmp_path, names(autoencoder.state_dict()), key, prefix))
    x = U("official/gt", 1, 3, 32, 32)
    with torch.no_grad():
        expected = autoencoder(x)
    assert torch.equal(loaded(x), expected)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_released_autoencoders_have_838_entries():
    with torch.device("meta"):
        state = AutoEncoder().state_dict()
    assert (len(state), len(with_aliases(state))) == (770, 838)
    assert canonical_state(only_encoder(state), "x").keys() == state.keys()


def test_aliases_that_disagree_are_named(tmp_path):
    state = with_aliases(filled(AutoEncoder(**AE)).state_dict())
    state["encoder.2.1.rdb2.conv3.bias"] = state["encoder.2.1.rdb2.conv3.bias"] + 1e-3
    with pytest.raises(
        WeightsError, match=r"w\.pth: .*1 that differ, first body\.1\.rdb2\.conv3\.bias and encoder\.2\.1\.rdb2\.conv3"
    ):
        load_autoencoder(pth(tmp_path, state))


@pytest.mark.parametrize(
    "more",
    [{}, {"scale": 2}, {"decoder": "srresnet", "decoder_options": {"features": 8, "blocks": 3}}, {"features": 64, "blocks": 1}],
)
def test_structure_of_a_released_autoencoder_is_told_by_its_shapes(more, tmp_path):
    autoencoder = filled(AutoEncoder(**AE | more))
    loaded = load_autoencoder(pth(tmp_path, autoencoder.state_dict()))
    assert (loaded.scale, type(loaded.decoder)) == (autoencoder.scale, type(autoencoder.decoder))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in autoencoder.state_dict().items())


@pytest.mark.parametrize("more", [{}, {"encoder": "bicubic"}])
def test_our_autoencoder_files_carry_their_options(more, tmp_path):
    autoencoder = filled(AutoEncoder(**AE | more))
    path = save_autoencoder(tmp_path / "ae.safetensors", autoencoder.state_dict(), AE | more, name="tiny")
    x = U("official/gt", 1, 3, 32, 32)
    assert torch.equal(load_autoencoder("ae", [tmp_path])(x), load_autoencoder(path)(x))
    assert load_autoencoder(path).encoder_kind == more.get("encoder", "learned")
    with pytest.raises(WeightsError, match=r"missing: |unexpected: "):
        save_autoencoder(
            tmp_path / "b.safetensors", autoencoder.state_dict(), AE | {"encoder": "bicubic", "blocks": 3} if not more else AE
        )
    assert not (tmp_path / "b.safetensors").exists()


def test_damaged_autoencoders_get_an_exact_report(tmp_path):
    state = filled(AutoEncoder(**AE)).state_dict()
    state["decoder.conv_hr.bias"] = torch.zeros(3)
    state["decoder.extra"] = torch.zeros(1)
    del state["body.1.rdb3.conv5.weight"]
    with pytest.raises(WeightsError) as error:
        load_autoencoder(pth(tmp_path, state))
    for part in ("missing: body.1.rdb3.conv5.weight", "unexpected: decoder.extra", "decoder.conv_hr.bias (3,) instead of (8,)"):
        assert part in str(error.value)
    for name in [name for name in state if not name.startswith("decoder.")]:
        del state[name]
    with pytest.raises(WeightsError, match="expected an auto-encoder with its encoder, got none of conv_first"):
        load_autoencoder(pth(tmp_path, state))


def test_networks_and_autoencoders_are_not_taken_for_one_another(tmp_path):
    autoencoder = filled(AutoEncoder(**AE))
    ours = save_autoencoder(tmp_path / "ae.safetensors", autoencoder.state_dict(), AE)
    for path in (ours, pth(tmp_path, with_aliases(autoencoder.state_dict()))):
        with pytest.raises(WeightsError, match="expected a super-resolution network, got an AESOP auto-encoder"):
            load_backbone(path)
    info = {"architecture": "lite", "options": {"scale": 4, **OPTIONS["lite"]}}
    lite = save_weights(tmp_path / "lite.safetensors", tiny("lite").state_dict(), info)
    with pytest.raises(WeightsError, match=r"expected an auto-encoder, got a super-resolution network \(lite\)"):
        load_autoencoder(lite)
    with pytest.raises(WeightsError, match=r"expected an auto-encoder, got a super-resolution network \(rrdb\)"):
        load_autoencoder(pth(tmp_path, tiny("rrdb").state_dict()))
    with pytest.raises(WeightsError, match=r"got weights of another kind \(strange, \.\.\.\)"):
        load_autoencoder(pth(tmp_path, {"strange": torch.zeros(1)}))


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("must-not-exist",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"params": {"decoder.conv_first.weight": _RunsCode()}}, tmp_path / "bad.pth")
    for load in (load_autoencoder, load_backbone, read_official):
        with pytest.raises(WeightsError, match="weights_only=True refuses"):
            load(tmp_path / "bad.pth")
    assert not (tmp_path / "must-not-exist").exists()


# super-resolution networks


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours_is_rebuilt_from_its_file(name, tmp_path):
    network = tiny(name)
    info = {"backbone": "network", "architecture": name, "options": {"scale": 4, **OPTIONS[name]}}
    backbone = load_backbone(save_weights(tmp_path / "n.safetensors", network.state_dict(), info))
    lq = U("official/lq", 1, 3, 18, 21)
    with torch.no_grad():
        expected = network(lq)
    assert torch.allclose(backbone.upscale(lq), expected, atol=1e-6)
    assert identify(network.state_dict()) == name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["rrdb", "srresnet", "swinir", "drct"])
def test_files_of_others_are_detected(name, suffix, tmp_path):
    network = tiny(name)
    path = pth(tmp_path, network.state_dict(), prefix="module.")
    if suffix == ".safetensors":
        path = save_weights(tmp_path / "w.safetensors", network.state_dict())
    lq = U("official/lq", 1, 3, 32, 32)
    with torch.no_grad():
        expected = network(lq)
    backbone = load_backbone(path)
    assert backbone.spec.scale == 4
    assert torch.allclose(backbone.upscale(lq), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_released_rrdbnets_of_every_scale_agree_with_spandrel(scale, tmp_path):
    network = tiny("rrdb", scale)
    backbone = load_backbone(pth(tmp_path, network.state_dict()))
    spandrel = import_spandrel().ModelLoader(device="cpu").load_from_state_dict(load_state_dict(tmp_path / "w.pth"))
    lq = U("official/lq", 1, 3, 16, 20)
    assert (backbone.spec.scale, spandrel.scale) == (scale, scale)
    assert torch.allclose(backbone.upscale(lq), spandrel.model(lq).detach(), atol=1e-6)
    assert backbone.upscale(U("official/lq", 1, 3, 9, 11)).shape == (1, 3, 9 * scale, 11 * scale)


def test_a_network_with_a_missing_layer_gets_an_exact_report(tmp_path):
    state = tiny("rrdb").state_dict()
    del state["body.1.rdb2.conv4.bias"]
    with pytest.raises(WeightsError, match=r"missing: body\.1\.rdb2\.conv4\.bias; choose the file made for it"):
        load_backbone(pth(tmp_path, state))
    state = tiny("swinir").state_dict()
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"RuntimeError: .*norm\.bias"):
        load_backbone(pth(tmp_path, state))


def flat_adjust(state):
    """DRCT as AESOP's code stores it: `adjust` as weights of a linear layer."""
    return {name: t[:, :, 0, 0] if "adjust" in name and t.ndim == 4 else t for name, t in state.items()}


@pytest.mark.parametrize("form", [dict, flat_adjust], ids=["4-D", "2-D"])
def test_drct_is_read_with_flat_and_with_convolution_weights(form, tmp_path):
    network = tiny("drct")
    path = pth(tmp_path, form(network.state_dict()))
    assert load_state_dict(path)["layers.0.adjust1.weight"].ndim == (2 if form is flat_adjust else 4)
    lq = U("official/lq", 1, 3, 32, 32)
    with torch.no_grad():
        expected = network(lq)
    assert torch.allclose(load_backbone(path).upscale(lq), expected, atol=1e-5)
    state = read_official(path)
    load_into(tiny("drct"), state, "w.pth")
    exported = load_state_dict(export_for_comfy(path, tmp_path / "out.safetensors"))
    assert exported.keys() == network.state_dict().keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["rrdb", "swinir", "drct"])
@pytest.mark.parametrize("own", [False, True])
def test_exported_networks_are_accepted_by_spandrel(name, own, tmp_path):
    network = tiny(name)
    info = {"architecture": name, "options": {"scale": 4, **OPTIONS[name]}, "licence": "CC0"}
    source = save_weights(tmp_path / "w.safetensors", network.state_dict(), info) if own else pth(tmp_path, network.state_dict())
    target = export_for_comfy(source, tmp_path / "models" / "out.safetensors")
    spandrel = import_spandrel()
    found = spandrel.ModelLoader(device="cpu").load_from_file(target)
    assert isinstance(found, spandrel.ImageModelDescriptor)
    lq = U("official/lq", 1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.model.eval()(lq), network(lq), atol=1e-5)
    with safe_open(target, framework="pt") as file:
        assert ("alignsr" in file.metadata()) == own
    assert torch.allclose(load_backbone(target).upscale(lq), found.model(lq).detach(), atol=1e-5)


def test_what_comfyui_cannot_load_is_not_exported(tmp_path):
    autoencoder = filled(AutoEncoder(**AE))
    cases = {
        "an AESOP auto-encoder": with_aliases(autoencoder.state_dict()),
        "a super-resolution network \\(srresnet\\)": tiny("srresnet").state_dict(),
        "a super-resolution network \\(lite\\)": tiny("lite").state_dict(),
    }
    for what, state in cases.items():
        with pytest.raises(WeightsError, match=f"expected a network of rrdb, swinir, drct, got {what}"):
            export_for_comfy(pth(tmp_path, state), tmp_path / "out.safetensors")
    narrow = build_network("rrdb", {"features": 8, "growth": 4, "blocks": 1}).state_dict()
    with pytest.raises(WeightsError, match="got rrdb weights that it refuses"):
        export_for_comfy(pth(tmp_path, narrow), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_autoencoder_with_a_small_decoder_is_known_by_its_header(tmp_path):
    """Its decoder has none of the released names; the bundled one is of this kind."""
    options = {"features": 48, "blocks": 1, "growth": 4, "decoder": "lite", "decoder_options": {"features": 8, "blocks": 1}}
    module = build_autoencoder(options)
    path = save_autoencoder(tmp_path / "ae.safetensors", module.state_dict(), options)
    loaded = load_autoencoder(path)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(x), module.eval()(x))
    with pytest.raises(WeightsError, match="auto-encoder"):
        load_backbone(path)
    assert load_autoencoder("autoencoder-tiny-x4").scale == 4
