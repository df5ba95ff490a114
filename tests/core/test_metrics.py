"""Our own metrics: hand-worked numbers, scikit-image, golden numbers, the published bicubic figures; facts of every metric."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from alignsr.core.images import crop_to_multiple, quantize_8bit, rgb_to_y
from alignsr.core.metrics import METRICS, REWARD_METRICS, available, lr_psnr, psnr, score, score_many, ssim
from alignsr.core.resize import imresize, imresize_uint8
from paths import REFERENCE, SHARED
from reference.formula import S, U

GOLDEN = json.loads((REFERENCE / "metrics.json").read_text(encoding="utf-8"))
DATA = SHARED / "data"
OWN = ("psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb", "lsd", "hf_energy")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None].double() / 255


def picture(height: int = 40, width: int = 52) -> Tensor:
    """A smooth random picture."""
    return F.avg_pool2d(U("metrics/gt", 1, 3, height, width, dtype=torch.float64), 5, 1, 2, count_include_pad=False)


def noise(height: int = 40, width: int = 52) -> Tensor:
    return S("metrics/sr", 1, 3, height, width, dtype=torch.float64)


def our(name: str, sr: Tensor, gt: Tensor, crop: int) -> float:
    family, channel = name.split("_")
    return {"psnr": psnr, "ssim": ssim}[family](sr, gt, crop=crop, channel=channel).item()  # pyright: ignore[reportArgumentType]


def test_one_grey_level_apart() -> None:
    """aesop.md check 10."""
    grey = torch.full((1, 3, 16, 16), 128 / 255)
    value = psnr(grey + 1 / 255, grey, crop=4).item()
    assert value == pytest.approx(49.4489, abs=5e-5)
    assert -10 * math.log10(10 ** (-value / 10) - 1e-8) == pytest.approx(49.4527, abs=5e-5), "without the eps"
    assert psnr(grey + 1 / 255, grey, crop=4, channel="rgb").item() == pytest.approx(
        10 * math.log10(1 / (1 / 255**2 + 1e-8)), abs=1e-9
    )


def test_luma_of_middle_grey() -> None:
    assert (rgb_to_y(torch.full((1, 3, 1, 1), 128 / 255, dtype=torch.float64)) * 255).item() == pytest.approx(125.9294, abs=5e-5)


def test_equal_images_reach_the_end_of_the_scale() -> None:
    image = picture()
    assert psnr(image, image, crop=0).item() == pytest.approx(80.0)
    assert ssim(image, image, crop=0).item() == pytest.approx(1.0, abs=1e-12)
    assert ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), crop=0).item() == 1.0


def test_ssim_of_two_constants_by_hand() -> None:
    a, b = 51 / 255, 204 / 255  # exact grey levels; no variance, so only the luminance term is left
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b), crop=0, channel="rgb")
    assert value.item() == pytest.approx(expected, abs=1e-9)


def test_values_outside_the_range_are_clamped_and_rounded_to_eight_bit() -> None:
    white = torch.ones(1, 3, 16, 16)
    assert psnr(white * 1.3, white, crop=0).item() == pytest.approx(80.0)
    assert psnr(white - 0.4 / 255, white, crop=0).item() == pytest.approx(80.0)
    assert psnr(white - 0.4 / 255, white, crop=0, quantize=False).item() < 60


@pytest.mark.parametrize("name", ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"])
def test_crop_removes_a_border_defect(name: str) -> None:
    gt = picture()
    sr = gt.clone()
    sr[..., :4, :] = 0
    sr[..., -4:] = 1
    best = METRICS[name].range[1]
    assert our(name, sr, gt, crop=4) == pytest.approx(best)
    assert our(name, sr, gt, crop=3) < best - 0.001


@pytest.mark.parametrize("name", ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"])
def test_agrees_with_scikit_image(name: str) -> None:
    sr, gt = quantize_8bit(picture() + 0.1 * noise()), quantize_8bit(picture())
    pair = [rgb_to_y(x) if name.endswith("_y") else x for x in (gt, sr)]
    a, b = (x[0, :, 4:-4, 4:-4].movedim(0, -1).squeeze(-1).numpy() for x in pair)
    if name.startswith("psnr"):
        theirs = peak_signal_noise_ratio(a, b, data_range=1)
        assert our(name, sr, gt, crop=4) == pytest.approx(theirs, abs=1e-3)  # our eps
    else:
        theirs = structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1 if a.ndim == 3 else None,
        )
        assert our(name, sr, gt, crop=4) == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("name", list(GOLDEN["synthetic"]))
def test_frozen_numbers_of_formula_images(name: str) -> None:
    gt = picture()
    assert our(name, gt + 0.04 * noise(), gt, crop=4) == pytest.approx(
        GOLDEN["synthetic"][name], abs=1e-3 if "psnr" in name else 1e-6
    )


@needs_data
@pytest.mark.parametrize("image", ["img_001", "img_005", "img_014"])
def test_official_numbers(image: str) -> None:
    gt, lq = read(DATA / "set14" / "hr" / f"{image}.png"), read(DATA / "set14" / "lr_x4" / f"{image}.png")
    enlarged = {"bicubic": imresize(lq, 4), "nearest": lq.repeat_interleave(4, 2).repeat_interleave(4, 3)}
    cases = {key: value for key, value in GOLDEN["official"].items() if key.startswith(image)}
    assert len(cases) == 9
    for key, expected in cases.items():
        _, method, case = key.split("/")
        name, crop = case.split("_crop")
        assert our(name, enlarged[method], gt, int(crop)) == pytest.approx(expected, abs=1e-3 if "psnr" in name else 1e-5), key


@needs_data
@pytest.mark.parametrize(
    ("collection", "scale", "low", "high", "structure"),
    [
        ("set5", 4, 28.42, 28.44, 0.810),
        ("set14", 4, 26.00, 26.10, 0.70),
        ("set5", 2, 33.65, 33.69, 0.93),
        ("set14", 2, 30.23, 30.34, 0.869),
    ],
)
def test_published_bicubic_figures(collection: str, scale: int, low: float, high: float, structure: float) -> None:
    scores: list[tuple[float, float]] = []
    for path in sorted((DATA / collection / "hr").glob("*.png")):
        gt, lq = read(path), read(DATA / collection / f"lr_x{scale}" / path.name)
        if gt.shape[-1] != lq.shape[-1] * scale or gt.shape[-2] != lq.shape[-2] * scale:
            # three files of Set14 x2 were made before the ground truth was cut; MATLAB's own form makes those that fit
            gt = crop_to_multiple(gt, scale)
            lq = imresize_uint8((gt * 255).round().to(torch.uint8), 1 / scale).float() / 255
        sr = imresize(lq, scale)
        scores.append((our("psnr_y", sr, gt, scale), our("ssim_y", sr, gt, scale)))
    mean_psnr, mean_ssim = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    assert low <= mean_psnr <= high
    assert mean_ssim == pytest.approx(structure, abs=0.006)


@pytest.mark.parametrize("name", OWN)
def test_worse_scores_worse_and_the_best_is_the_reference_itself(name: str) -> None:
    gt = picture(64, 64)
    values = [score(name, (gt + amount * noise(64, 64)).clamp(0, 1), gt, scale=4).item() for amount in (0.0, 0.03, 0.1, 0.3)]
    order = sorted(values, reverse=METRICS[name].higher_is_better)
    assert values == order
    assert len(set(values)) == 4


@pytest.mark.parametrize("name", OWN)
def test_symmetric_and_independent_of_the_batch(name: str) -> None:
    gt = torch.cat([picture(64, 64), picture(64, 64).flip(-1) * 0.5])
    sr = (gt + 0.05 * torch.cat([noise(64, 64), noise(64, 64).flip(-2)])).clamp(0, 1)
    together = score(name, sr, gt, scale=4)
    assert together.shape == (2,)
    assert together.dtype == torch.float64
    assert torch.allclose(together, score(name, gt, sr, scale=4), atol=1e-9)
    alone = torch.cat([score(name, sr[i : i + 1], gt[i : i + 1], scale=4) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-9)


def test_log_spectral_distance_of_a_halved_picture() -> None:
    gt = quantize_8bit(picture(64, 64)) * 254 / 255
    gt = (gt * 127).round() * 2 / 255  # even grey levels, so that half of it is on the 8-bit grid too
    assert score("lsd", gt / 2, gt).item() == pytest.approx(6.0206, abs=1e-3)
    assert score("lsd", gt, gt).item() == 0.0


def test_high_frequency_energy_is_the_distance_from_the_right_amount() -> None:
    gt = quantize_8bit(0.5 + 0.2 * noise(64, 64)) * 254 / 255
    gt = (gt * 127).round() * 2 / 255
    assert score("hf_energy", gt / 2, gt, scale=4).item() == pytest.approx(6.0206, abs=1e-3)
    assert score("hf_energy", gt, gt / 2, scale=4).item() == pytest.approx(6.0206, abs=1e-3), "too much is as bad as too little"
    with pytest.raises(ValueError, match="scale: expected the upscale factor for hf_energy"):
        score("hf_energy", gt, gt)
    with pytest.raises(ValueError, match="scale: expected at least 2"):
        score("hf_energy", gt, gt, scale=1)


def stripes(height: int = 66, width: int = 66) -> Tensor:
    """Edges across, 8 pixels apart, from black to white."""
    return ((torch.arange(width) // 8) % 2).double().expand(1, 3, height, width)


def blurred(image: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), 5, 1)


def test_sharpness_by_hand() -> None:
    """A ramp of slope a across: every gradient is (a, 0), so s1 = 8 a, s2 = 0 and Q = 255 a, with a of the luma in 219 steps."""
    ramp = (torch.arange(66) / 255).double().expand(1, 3, 66, 66)
    assert score("sharpness", ramp).item() == pytest.approx(219 / 255, rel=1e-12)
    assert score("sharpness", torch.full((1, 3, 32, 32), 0.5)).item() == 0
    with pytest.raises(ValueError, match="sides of at least 10 pixels"):
        score("sharpness", torch.zeros(1, 3, 9, 40))


def test_sharpness_falls_with_blur_and_with_noise() -> None:
    image = 0.25 + 0.5 * stripes()
    sharp = score("sharpness", image).item()
    once, twice = (score("sharpness", value).item() for value in (blurred(image), blurred(blurred(image))))
    assert sharp > once > twice > 0
    faint, strong = (score("sharpness", (image + amount * noise(66, 66)).clamp(0, 1)).item() for amount in (0.02, 0.3))
    assert strong < faint <= 1.01 * sharp
    alone = score("sharpness", (0.5 + 0.1 * noise(66, 66)).clamp(0, 1)).item()
    assert alone < 0.1 * sharp, "white noise has no coherent edges"
    batch = torch.cat([image, blurred(image)])
    assert score("sharpness", batch).tolist() == pytest.approx([sharp, once])


@needs_data
def test_sharpness_of_photographs_is_above_that_of_their_enlargements_and_noisy_copies() -> None:
    for name in ("img_001", "img_005", "img_010", "img_014"):
        gt = read(DATA / "set14" / "hr" / f"{name}.png")
        gt = crop_to_multiple(gt, 4)
        enlarged = imresize(imresize(gt, 1 / 4), 4).clamp(0, 1)
        grain = torch.randn(gt.shape, generator=torch.Generator().manual_seed(0), dtype=gt.dtype)
        noisy = [(gt + level / 255 * grain).clamp(0, 1) for level in (10, 30)]
        values = [score("sharpness", x).item() for x in (gt, enlarged, *noisy)]
        assert values[0] > values[1] and values[0] > values[2] > values[3], name


def test_metrics_of_whole_images_ignore_the_crop() -> None:
    gt = picture(64, 64)
    sr = gt.clone()
    sr[..., :4] = 0
    assert torch.equal(score("lsd", sr, gt, crop=4), score("lsd", sr, gt))
    assert score("lsd", sr, gt, crop=4) > 0


def test_lr_psnr_asks_whether_the_input_is_explained() -> None:
    gt = picture(64, 64)
    lq = quantize_8bit(imresize(gt, 1 / 4))
    faithful, unfaithful = lr_psnr(gt, lq, scale=4), lr_psnr(gt.flip(-1), lq, scale=4)
    assert faithful.item() > 50
    assert unfaithful.item() < 30
    texture = S("metrics/texture", 1, 3, 64, 64, dtype=torch.float64)
    invisible = texture - imresize(imresize(texture, 1 / 4), 4)
    assert lr_psnr(gt + 0.05 * invisible, lq, scale=4) > lr_psnr(gt + 0.02, lq, scale=4)  # detail is free, a colour cast is not
    assert torch.equal(score("lr_psnr", gt, lq=lq, scale=4), faithful)
    assert torch.equal(score("lr_psnr", gt, lq=lq), faithful)


def test_grey_counts_as_rgb_and_alpha_is_left_out() -> None:
    gt, sr = picture()[:, :1], (picture() + 0.05 * noise())[:, :1]
    rgb = psnr(sr.expand(-1, 3, -1, -1), gt.expand(-1, 3, -1, -1), crop=4)
    assert torch.equal(psnr(sr, gt, crop=4), rgb)
    assert torch.equal(psnr(sr, gt.expand(-1, 3, -1, -1), crop=4), rgb)
    with_alpha = torch.cat(
        [gt.expand(-1, 3, -1, -1), torch.rand(1, 1, 40, 52, generator=torch.Generator().manual_seed(0))], dim=1
    )
    assert torch.equal(psnr(sr, with_alpha, crop=4), rgb)


def test_images_are_never_changed() -> None:
    sr, gt = picture(64, 64).float() * 1.2, picture(64, 64).float()
    before = sr.clone(), gt.clone()
    score_many(OWN, sr, gt, scale=4)
    assert torch.equal(sr, before[0])
    assert torch.equal(gt, before[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "psnr"}, "did you mean 'psnr_"),
        ({"name": "psnr_y", "gt": None}, "gt: expected a reference image for psnr_y"),
        ({"name": "psnr_y", "scale": None}, "scale: expected the upscale factor"),
        ({"name": "lr_psnr"}, "lq: expected the low-resolution input"),
        ({"name": "lr_psnr", "lq": torch.zeros(1, 3, 9, 13)}, "sr: expected 36x52"),
        ({"name": "psnr_y", "gt": torch.zeros(1, 3, 40, 51)}, "sr: expected the shape of gt"),
        ({"name": "ssim_y", "crop": 15}, "at least 11 pixels per side after a crop of 15"),
        ({"name": "psnr_y", "crop": 20}, "more than 40 pixels per side for crop 20"),
        ({"name": "psnr_y", "crop": -1}, "crop: expected a number of pixels >= 0"),
        ({"name": "psnr_y", "sr": torch.full((1, 3, 40, 52), math.nan)}, "sr: expected finite values"),
        ({"name": "psnr_y", "sr": torch.zeros(1, 40, 52, 3)}, "looks channels-last"),
        ({"name": "fid"}, "fid"),
    ],
)
def test_one_clear_error_for_each_bad_call(arguments: dict[str, object], message: str) -> None:
    call: dict[str, object] = {"sr": picture(), "gt": picture(), "scale": 4, **arguments}
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("[", r"\[")):
        score(**call)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", METRICS)
def test_facts_of_every_metric(name: str) -> None:
    spec = METRICS[name]
    assert spec.name == name
    assert spec.title
    assert spec.range[0] < spec.range[1]
    assert spec.max_batch is None or spec.max_batch >= 1
    assert spec.min_side_px % spec.size_multiple == 0 or spec.size_multiple == 1
    assert bool(spec.weights) == bool(spec.pyiqa_name) == (spec.kind in ("learned", "set"))
    assert not (spec.in_reward and spec.kind != "learned")
    assert (spec.licence == "Apache-2.0") == (spec.kind in ("distortion", "spectral", "statistic", "autoencoded"))
    assert spec.needs_autoencoder == (spec.kind == "autoencoded")
    if spec.needs_autoencoder:
        assert "--autoencoder" in available(name)[0]
    elif not spec.weights:
        assert available(name) == []
    for file in spec.weights:
        assert file.names
        assert file.source.startswith("https://") or (file.folder == "hub" and file.source.count("/") == 1)


def test_the_reward_has_the_nine_metrics_of_the_paper() -> None:
    assert set(REWARD_METRICS) == {
        *("lpips-vgg", "topiq_fr", "afine_fr"),
        *("maniqa-pipal", "musiq", "clipiqa+", "topiq_nr", "afine_nr", "qalign"),
    }  # fmt: skip
    assert sum(METRICS[name].needs_reference for name in REWARD_METRICS) == 3
    assert [name for name in REWARD_METRICS if not METRICS[name].higher_is_better] == ["lpips-vgg", "afine_fr", "afine_nr"]
