import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignsr.core.backbones import BACKBONES, load_backbone
from alignsr.core.backbones.base import Backbone, DirectBackbone
from alignsr.core.backbones.network import NetworkBackbone, build
from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.images import to_model_range
from alignsr.core.records import Conditioning
from alignsr.core.resize import bicubic
from alignsr.core.restore import move, one_step, restore
from alignsr.core.weights import WeightsError, save_weights
from reference.formula import S, U

TINY_PIXEL = {"patch_px": 8, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0}


def filled_pixel(name="tiny"):
    """A tiny pixel model whose zero-initialised output layer is filled, so that it does something."""
    torch.manual_seed(0)
    backbone = PixelBackbone(TINY_PIXEL, name)
    backbone.network.transformer.proj_out.weight.data = 0.05 * S("proj", *backbone.network.transformer.proj_out.weight.shape)
    backbone.network.eval().requires_grad_(False)
    return backbone


def filled_lite(scale=2):
    torch.manual_seed(0)
    backbone = build("lite", {"scale": scale, "features": 8, "blocks": 1})
    backbone.network.tail.weight.data = 0.1 * S("tail", *backbone.network.tail.weight.shape)
    backbone.network.eval().requires_grad_(False)
    return backbone


def write(backbone, folder):
    kind = "pixel" if isinstance(backbone, PixelBackbone) else "network"
    info = {
        "backbone": kind,
        "architecture": getattr(backbone, "architecture", "pixel"),
        "options": backbone.options,
        "name": "x",
        "licence": "CC0",
    }
    return save_weights(folder / "x.safetensors", backbone.network.state_dict(), info)


@pytest.mark.parametrize("make", [filled_pixel, filled_lite])
def test_saved_and_loaded_gives_the_same_output(make, tmp_path):
    backbone = make()
    again = load_backbone(write(backbone, tmp_path))
    assert again.spec.licence == "CC0"
    x = U("restore/x", 1, 3, 9, 13)
    assert torch.equal(restore(backbone, x, scale=2).sr, restore(again, x, scale=2).sr)
    assert not any(p.requires_grad for _, m in again.modules() for p in m.parameters())


def test_every_backbone_kind_satisfies_its_protocol():
    assert {"network", "pixel"} <= set(BACKBONES)
    assert isinstance(filled_pixel(), Backbone)
    assert isinstance(filled_lite(), DirectBackbone)
    assert not isinstance(filled_lite(), Backbone)


@pytest.mark.parametrize(
    "make", [lambda: PixelBackbone(TINY_PIXEL), lambda: build("lite", {"scale": 4, "features": 8, "blocks": 1})]
)
def test_untrained_models_are_plain_interpolation(make):
    x = U("restore/x", 1, 3, 10, 11)
    result = restore(make(), x, scale=4)
    reference = (
        result.lq_up if make().spec.kind == "flow" else F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    )
    assert torch.allclose(result.sr, reference, atol=1e-6)


def test_one_euler_step_by_hand():
    """With velocity (z_lq - z_0) / sigma the step returns z_0 exactly (strsr.md check 15); strength scales the way there."""

    class Oracle:
        spec = PixelBackbone(TINY_PIXEL).spec
        target = to_model_range(U("restore/gt", 1, 3, 16, 16))

        def modules(self):
            yield "network", nn.Linear(1, 1)

        def encode(self, image, *, generator=None):
            return image

        def velocity(self, z, sigma, z_lq, conditioning=None):
            return (z - self.target) / sigma.view(-1, 1, 1, 1)

        def decode(self, z):
            return z

    x = U("restore/x", 1, 3, 16, 16)
    gt = (Oracle.target + 1) / 2
    assert torch.allclose(one_step(Oracle(), x), gt, atol=1e-6)
    assert torch.allclose(one_step(Oracle(), x, sigma=0.3), gt, atol=1e-6)
    assert torch.allclose(one_step(Oracle(), x, strength=0.25), x + 0.25 * (gt - x), atol=1e-6)
    assert torch.allclose(one_step(Oracle(), x, strength=0.0), x, atol=1e-6)


def test_sigma_and_condition_reach_the_pixel_network():
    backbone = filled_pixel()
    z, z_lq = S("restore/z", 2, 3, 16, 16), S("restore/zlq", 2, 3, 16, 16)
    base = backbone.velocity(z, torch.tensor([0.8, 0.8]), z_lq)
    assert not torch.allclose(base, backbone.velocity(z, torch.tensor([0.1, 0.8]), z_lq)[[0, 1]], atol=1e-6)
    assert torch.allclose(base[1], backbone.velocity(z, torch.tensor([0.1, 0.8]), z_lq)[1], atol=1e-6)
    assert not torch.allclose(base, backbone.velocity(z, torch.tensor([0.8, 0.8]), z), atol=1e-6)
    told = Conditioning(S("restore/cond", 2, 5, 32))
    assert not torch.allclose(base, backbone.velocity(z, torch.tensor([0.8, 0.8]), z_lq, told), atol=1e-6)


def test_pixel_refuses_sides_that_are_not_multiples_of_its_patch():
    backbone = filled_pixel()
    z = torch.zeros(1, 3, 12, 16)
    with pytest.raises(ValueError, match="multiples of 8, got"):
        backbone.velocity(z, torch.ones(1), z)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (17, 33)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("make", [filled_pixel, filled_lite])
def test_every_size_and_scale_gives_exactly_the_scaled_size(make, size, scale):
    result = restore(make(), torch.rand(2, 3, *size), scale=scale)
    assert result.sr.shape == result.lq_up.shape == (2, 3, size[0] * scale, size[1] * scale)
    assert result.sr.min() >= 0
    assert result.sr.max() <= 1


def test_tiles_of_a_network_agree_with_the_whole_picture_away_from_seams():
    """The receptive field of the tiny network is 4 px; an overlap of 16 leaves no visible seam, and less work than twice."""
    backbone, x = filled_lite(), U("restore/big", 1, 3, 40, 56)
    whole = restore(backbone, x, scale=2, tile_px=64)
    tiled = restore(backbone, x, scale=2, tile_px=32, overlap_px=16, batch_size=3)
    assert whole.info["tiles"] == 1 < tiled.info["tiles"]
    assert (whole.sr - tiled.sr).abs().max() < 0.02
    assert (whole.sr - tiled.sr).abs().median() < 1e-6


@pytest.mark.parametrize("tile_px", [8, 9, 16, 24, 500])
def test_own_overlap_fits_any_tile(tile_px):
    """Half a tile in whole patches at most: a tile of one patch has no overlap, and no picture is refused for it."""
    result = restore(filled_pixel(), torch.rand(1, 3, 10, 12), scale=2, tile_px=tile_px)
    assert result.info["overlap_px"] <= tile_px // 2 and result.info["overlap_px"] % 8 == 0


def test_networks_that_need_multiples_get_tiles_of_multiples():
    """Padded once as a whole, so that no tile has a border of its own inside the picture."""
    seen = []

    class Windows(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[-2:]))
            return F.interpolate(x, scale_factor=2)

    network = Windows()
    network.register_parameter("p", nn.Parameter(torch.zeros(1)))
    x = torch.rand(1, 3, 50, 37)
    result = restore(NetworkBackbone(network, 2, "windows", size_multiple=8), x, scale=2, tile_px=30, overlap_px=5)
    assert result.info["tiles"] == len(seen) > 1 and {side % 8 for size in seen for side in size} == {0}
    torch.testing.assert_close(result.sr, F.interpolate(x, scale_factor=2), atol=1e-6, rtol=0)


def test_batch_of_tiles_and_order_do_not_matter():
    backbone, x = filled_pixel(), U("restore/batch", 2, 3, 20, 24)
    one = restore(backbone, x, scale=2, tile_px=32, overlap_px=8, batch_size=1)
    five = restore(backbone, x, scale=2, tile_px=32, overlap_px=8, batch_size=5)
    assert torch.allclose(one.sr, five.sr, atol=1e-5)
    alone = restore(backbone, x[1:], scale=2, tile_px=32, overlap_px=8)
    assert torch.allclose(one.sr[1:], alone.sr, atol=1e-5)


def test_progress_counts_tiles_and_may_cancel():
    seen = []
    restore(
        filled_pixel(),
        torch.rand(1, 3, 20, 24),
        scale=2,
        tile_px=32,
        overlap_px=8,
        on_tile=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == len(seen) > 1

    class CancelledError(Exception):
        pass

    def cancel(done, total):
        raise CancelledError

    with pytest.raises(CancelledError):
        restore(filled_pixel(), torch.rand(1, 3, 20, 24), scale=2, tile_px=32, overlap_px=8, on_tile=cancel)


def test_colour_fix_brings_back_the_input_colours():
    class Tinted(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2) * torch.tensor([0.5, 1.0, 0.8]).view(1, 3, 1, 1)

    backbone = NetworkBackbone(Tinted(), 2, "tinted")
    backbone.network.register_parameter("p", nn.Parameter(torch.zeros(1)))
    x = 0.3 + 0.4 * U("restore/colour", 1, 3, 24, 24)
    raw = restore(backbone, x, scale=2)
    for method in ("wavelet", "adain"):
        fixed = restore(backbone, x, scale=2, color_fix=method)
        assert (
            (fixed.sr.mean((2, 3)) - fixed.lq_up.mean((2, 3))).abs().max()
            < 0.01
            < (raw.sr.mean((2, 3)) - raw.lq_up.mean((2, 3))).abs().max()
        )


def test_grey_networks_run_on_colour_pictures():
    class Repeat(nn.Module):
        def forward(self, x):
            assert x.shape[1] == 1
            return F.interpolate(x, scale_factor=2)

    backbone = NetworkBackbone(Repeat(), 2, "grey", channels=1, size_multiple=4, minimum=8)
    x = torch.rand(2, 3, 5, 6)
    assert torch.equal(backbone.upscale(x), F.interpolate(x, scale_factor=2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale": 0}, ValueError, "scale: expected an integer in 1..16, got 0"),
        ({"scale": -1}, ValueError, "got -1"),
        ({"scale": 3.5}, TypeError, "got float 3.5"),
        ({"strength": 3.0}, ValueError, "strength"),
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"color_fix": "wavlet"}, ValueError, "wavelet"),
        ({"tile_px": 32, "overlap_px": 32}, ValueError, "overlap"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        restore(filled_pixel(), torch.rand(1, 3, 16, 16), **({"scale": 2} | change))


@pytest.mark.parametrize(("low", "high", "remedy"), [(0, 255, "divide by 255"), (-1, 1, "images.from_model_range")])
def test_pictures_in_another_range_are_refused_and_overshoot_is_not(low, high, remedy):
    x = torch.linspace(low, high, 3 * 64).view(1, 3, 8, 8)
    with pytest.raises(ValueError, match=rf"lq: expected values in \[0, 1\], got .*{remedy}"):
        restore(filled_pixel(), x, scale=2)
    restore(filled_pixel(), x.clamp(-0.1, 1.1), scale=2)


def test_nan_in_and_nan_out_are_told_apart():
    x = torch.rand(1, 3, 16, 16)
    x[0, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="lq: expected finite values"):
        restore(filled_pixel(), x, scale=2)
    broken = filled_pixel("broken")
    broken.network.transformer.proj_out.bias.data[:] = float("inf")
    with pytest.raises(FloatingPointError, match="broken produced NaN or infinity in the tile at row 0, column 0 of sample 0"):
        restore(broken, torch.rand(1, 3, 16, 16), scale=2)


def test_half_precision_models_answer_in_float32():
    backbone, x = filled_lite(), torch.rand(1, 3, 16, 16)
    full = restore(backbone, x, scale=2).sr
    low = restore(move(backbone, "cpu", torch.bfloat16), x, scale=2).sr
    assert low.dtype == torch.float32
    assert 0 < (full - low).abs().max() < 0.03


def test_weights_that_do_not_fit_or_have_an_unknown_kind(tmp_path):
    backbone = filled_lite()
    info = {"backbone": "network", "architecture": "lite", "options": {"scale": 2, "features": 16, "blocks": 1}}
    with pytest.raises(WeightsError, match=r"wrong shape: .*instead of"):
        load_backbone(save_weights(tmp_path / "a.safetensors", backbone.network.state_dict(), info))
    with pytest.raises(ValueError, match="did you mean 'network'"):
        load_backbone(save_weights(tmp_path / "b.safetensors", {"x": torch.zeros(1)}, info | {"backbone": "netwrok"}))
    with pytest.raises(ValueError, match="did you mean 'lite'"):
        load_backbone(save_weights(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, info | {"architecture": "lit"}))
    for kind in ("network", "pixel"):
        with pytest.raises(WeightsError, match="expected a JSON object as options"):
            load_backbone(
                save_weights(tmp_path / "d.safetensors", {"x": torch.zeros(1)}, info | {"backbone": kind, "options": [1]})
            )
    with pytest.raises(ValueError, match="does not take them"):
        build("lite", {"colour": 3})
    with pytest.raises(ValueError, match="options: expected"):
        PixelBackbone({"patch": 3})


def test_foreign_files_go_through_spandrel(tmp_path):
    """A random ESRGAN file as other programs write it is detected, loaded and equal to spandrel's own call."""
    from alignsr.core.compat import import_spandrel

    spandrel = import_spandrel()
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    compact = Compact(num_feat=8, num_conv=2, upscale=4)
    torch.save({"params": compact.state_dict()}, tmp_path / "compact.pth")
    backbone = load_backbone(tmp_path / "compact.pth")
    assert (backbone.spec.scale, backbone.spec.name) == (4, "compact")
    x = U("restore/foreign", 1, 3, 12, 10)
    assert torch.allclose(backbone.upscale(x), compact(x).detach(), atol=1e-6)
    assert spandrel is not None
    strange = {
        "nothing known": {"strange.weight": torch.zeros(3)},
        "like Compact": {"body.0.weight": torch.zeros(3), "body.1.weight": torch.zeros(2)},
        "like ESRGAN": {"model.0.weight": torch.zeros(3), "model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(2)},
    }
    for name, state in strange.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match=f"{name}.pth: .*architecture that spandrel does not know or that do not fit"):
            load_backbone(tmp_path / f"{name}.pth")


def test_result_is_differentiable_for_trainers():
    backbone = filled_pixel()
    x = bicubic(U("restore/grad", 1, 3, 8, 8), (16, 16)).requires_grad_(True)
    one_step(backbone, x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
