"""The bundled models are what their cards say: small, licensed, better than bicubic by the margins they were trained for."""

import pytest
import torch

from alignsr.core.backbones import load_backbone
from alignsr.core.degradation import degrade
from alignsr.core.image_files import list_images, read_image
from alignsr.core.images import crop_to_multiple, quantize_8bit, to_rgb
from alignsr.core.metrics import score
from alignsr.core.resize import bicubic, imresize, imresize_uint8
from alignsr.core.restore import restore
from alignsr.core.sampling import restore_multi_step
from alignsr.core.spectral import periodic_energy_score
from alignsr.core.weights import ASSETS, bundled_autoencoders, bundled_models, read_info, single_pass_models
from paths import SHARED
from reference.formula import U

NAMES = ("lite-real-x4", "lite-x4", "pixel-flow-x4", "pixel-x4")
STAGES_BEFORE = {"lite-real-x4": ("lite-real-x4-start",)}
needs_data = pytest.mark.skipif(
    not (SHARED / "data" / "set5").is_dir(), reason="the benchmark pictures (../shared/data) are not here"
)


def photograph():
    """A CC0 photograph and its 8-bit MATLAB reduction."""
    from skimage import data

    gt = torch.from_numpy(data.chelsea()).movedim(-1, 0)[:, :296, :448]
    return gt[None].float() / 255, imresize_uint8(gt, 0.25)[None].float() / 255


def up(name, lq):
    with torch.inference_mode():
        return quantize_8bit(restore(load_backbone(name), lq, scale=4).sr)


def pairs(dataset):
    for path in list_images(SHARED / "data" / dataset / "hr"):
        gt = crop_to_multiple(to_rgb(read_image(path).pixels), 4)
        yield gt, to_rgb(read_image(SHARED / "data" / dataset / "lr_x4" / path.name).pixels)


def test_exactly_these_models_are_bundled():
    assert tuple(bundled_models()) == NAMES
    assert single_pass_models() == [name for name in NAMES if name != "pixel-flow-x4"]


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_a_curve_and_at_most_six_megabytes(name):
    path = bundled_models()[name]
    assert path.stat().st_size <= 6_000_000
    info = read_info(path)
    assert info["licence"] == "Apache-2.0"
    assert info["step"] == info["config"]["run"]["steps"]
    card = (ASSETS / f"{name}.md").read_text(encoding="utf-8")
    for word in ("Berkeley Segmentation Data Set 500", "Apache-2.0", f"alignsr train {name}", "## Results", f"{name}-curve.png"):
        assert word in card
    config = info["config"]
    run, data = config["run"], config["data"]
    for number in (f"{run['steps']} steps", f"{data['gt_patch_px']} px", f"`{data['degradation']}`"):
        assert number in card
    assert all(f"alignsr train {stage}" in card for stage in STAGES_BEFORE.get(name, ()))
    assert card.count("| first stage |") == len(STAGES_BEFORE.get(name, ()))
    assert (ASSETS / f"{name}-curve.png").is_file()


def test_the_bundled_autoencoder_keeps_structure_and_removes_texture():
    """As good as predicting from the low-resolution picture, and far from letting everything through."""
    from alignsr.core.autoencoder_view import autoencoder_health
    from alignsr.core.networks.autoencoder import load_autoencoder
    from alignsr.train.config import from_mapping
    from alignsr.train.recipes import load_config

    assert tuple(bundled_autoencoders()) == ("autoencoder-tiny-x4",)
    path = bundled_autoencoders()["autoencoder-tiny-x4"]
    recipe, config = load_config("aesop-autoencoder-tiny")
    assert from_mapping(recipe.config, read_info(path)["config"]) == config
    assert path.stat().st_size <= 6_000_000 and "alignsr train aesop-autoencoder-tiny" in path.with_suffix(".md").read_text()
    gt, lq = photograph()
    with torch.inference_mode():
        module = load_autoencoder("autoencoder-tiny-x4")
        health = autoencoder_health(gt, module(gt), scale=4)
        bottleneck = float(score("psnr_y", quantize_8bit(module.encode(gt)), lq, scale=4))
    predicted = float(score("psnr_y", up("lite-x4", lq), gt, scale=4))
    assert health["psnr_y"] > predicted - 0.3 and health["high_frequency_kept"] < 0.7
    assert bottleneck > 40, "the bottleneck is the low-resolution picture"


@pytest.mark.parametrize("name", NAMES)
def test_the_published_config_is_the_one_it_was_trained_with(name):
    from alignsr.train.config import from_mapping
    from alignsr.train.recipes import load_config

    recipe, config = load_config(name)
    assert from_mapping(recipe.config, read_info(bundled_models()[name])["config"]) == config


@pytest.mark.parametrize(("name", "margin"), [("lite-x4", 0.6), ("pixel-x4", 0.6)])
def test_a_photograph_gains_over_bicubic(name, margin):
    gt, lq = photograph()
    gain = score("psnr_y", up(name, lq), gt, scale=4) - score("psnr_y", imresize(lq, 4).clamp(0, 1), gt, scale=4)
    assert float(gain) > margin


def test_the_real_world_model_gains_on_degraded_input():
    gt, _ = photograph()
    made = [degrade(gt, "realesrgan", seeds=[seed], scale=4).lq for seed in range(3)]
    gains = [
        score("psnr_y", up("lite-real-x4", lq), gt, scale=4) - score("psnr_y", bicubic(lq, (296, 448)).clamp(0, 1), gt, scale=4)
        for lq in made
    ]
    assert float(sum(gains)) / 3 > 0.3


@needs_data
@pytest.mark.parametrize(
    ("name", "dataset", "least"),
    [("lite-x4", "set5", 31.0), ("lite-x4", "set14", 27.9), ("pixel-x4", "set5", 30.3), ("pixel-x4", "set14", 27.3)],
)
def test_benchmarks_reach_their_targets(name, dataset, least):
    scores = [float(score("psnr_y", up(name, lq), gt, scale=4)) for gt, lq in pairs(dataset)]
    assert sum(scores) / len(scores) >= least


@needs_data
def test_real_world_model_beats_bicubic_on_degraded_set14():
    gains = []
    for index, (gt, _) in enumerate(pairs("set14")):
        size = (gt.shape[-2], gt.shape[-1])
        for seed in range(5):
            lq = degrade(gt, "realesrgan", seeds=[1000 * seed + index], scale=4).lq
            plain = quantize_8bit(bicubic(lq, size))
            gains.append(float(score("psnr_y", up("lite-real-x4", lq), gt, scale=4) - score("psnr_y", plain, gt, scale=4)))
    assert sum(gains) / len(gains) >= 0.55


@needs_data
def test_the_transformer_leaves_no_grid_and_an_injected_one_is_found():
    """At most 1.10 times the ground truth's periodic energy; with a grid of RMS 0.01 added the same output fails."""
    ratios, injected = [], {8: [], 16: []}
    for gt, lq in pairs("set5"):
        sr = up("pixel-x4", lq)
        truth = periodic_energy_score(gt)
        ratios.append(float(periodic_energy_score(sr) / truth))
        for period, found in injected.items():
            found.append(float(periodic_energy_score((sr + grid(sr, period)).clamp(0, 1)) / truth))
    assert sum(ratios) / len(ratios) <= 1.10
    assert all(min(found) > 1.10 for found in injected.values())


def sampled(lq, seeds, **options):
    with torch.inference_mode():
        return restore_multi_step(load_backbone("pixel-flow-x4"), lq, scale=4, seeds=seeds, color_fix="none", **options).sr


def test_the_flow_invents_detail_that_differs_by_seed_around_a_faithful_mean():
    """On its own kind of input: the mean of a few seeds is near bicubic in PSNR, samples are sharper and lie around it."""
    gt = photograph()[0][..., 100:228, 150:278]
    lq = degrade(gt, "mild", seeds=[0], scale=4).lq
    plain = bicubic(lq, (128, 128)).clamp(0, 1)
    found = sampled(lq, range(6))
    mean = found.mean(0, keepdim=True)

    def psnr(sr):
        return float(score("psnr_y", quantize_8bit(sr), gt, scale=4))

    def roughness(image):
        return float((image[..., 1:] - image[..., :-1]).square().mean())

    assert psnr(mean) > psnr(plain) - 0.4
    assert sum(psnr(one[None]) for one in found) / 6 < psnr(mean) - 0.5
    spread = found.std(0)
    assert 0.005 < float(spread.mean()) < 0.1
    assert roughness(found[0]) > 1.3 * roughness(plain)
    assert 0.4 < roughness(found[0]) / roughness(gt) < 1.5
    assert torch.equal(found[2], sampled(lq, [2])[0])


def test_the_flow_answers_to_states_of_its_own_process():
    """Its error on noisy states is far below that of what was known before training."""
    gt = photograph()[0][..., 100:228, 150:278]
    lq = degrade(gt, "mild", seeds=[0], scale=4).lq
    model = load_backbone("pixel-flow-x4")
    untrained = type(model)(model.options)
    z, z_lq = 2 * gt - 1, 2 * bicubic(lq, (128, 128)).clamp(0, 1) - 1
    draw = torch.Generator().manual_seed(0)
    times = model.process.draw_times(24, generator=draw)
    noise = torch.randn(24, 3, 128, 128, generator=draw)
    errors = []
    with torch.inference_mode():
        for one in (model, untrained):
            noisy = one.process.add_noise(z.expand(24, -1, -1, -1), noise, times)
            answer = one.predict(noisy, times, z_lq.expand(24, -1, -1, -1))
            errors.append(float((answer - one.process.target(z.expand(24, -1, -1, -1), noise)).square().mean()))
    assert errors[0] < 0.6 * errors[1]


def test_one_pass_of_a_model_that_is_sampled_from_noise_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"sigma: expected a noise level, pixel-flow-x4 has no default.*Multi-Step SR"):
        up("pixel-flow-x4", torch.rand(1, 3, 8, 8))


def grid(like, period):
    """Seams every `period` pixels with an RMS of 0.01 and no mean."""
    lines = torch.zeros_like(like)
    lines[..., ::period] = 1
    lines[..., ::period, :] = 1
    lines = lines - lines.mean()
    return 0.01 * lines / lines.square().mean().sqrt()


def test_pixel_model_takes_noise_at_any_sigma():
    """The same network must serve noise-to-image flow later: every sigma gives a finite velocity of its own."""
    backbone = load_backbone("pixel-x4")
    z, z_lq = 2 * U("assets/z", 1, 3, 64, 64) - 1, 2 * U("assets/lq", 1, 3, 64, 64) - 1
    with torch.inference_mode():
        answers = [backbone.velocity(z, torch.tensor([sigma]), z_lq) for sigma in (0.05, 0.5, 1.0)]
    assert all(bool(torch.isfinite(answer).all()) for answer in answers)
    assert not torch.allclose(answers[0], answers[2])
