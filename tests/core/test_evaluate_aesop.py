"""AESOP's evaluation protocol: every figure beside an independent computation (scikit-image, NumPy, or by hand)."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from alignsr.core.evaluate import Pair, evaluate_methods, evaluate_pairs, quarters
from alignsr.core.evaluation_pictures import plane_picture, table_picture, with_axes
from alignsr.core.metrics import METRICS, LearnedMetric, MissingWeightsError, SetDistance, ae_psnr, lr_psnr, reference_input
from alignsr.core.metrics import score as measure
from alignsr.core.metrics.comparison import Comparison, score_text
from alignsr.core.metrics.protocols import PROTOCOLS, choose
from alignsr.core.metrics.published import find_set, published_papers, published_rows, published_sets
from alignsr.core.metrics.table import Row, Table
from alignsr.core.networks.autoencoder import AutoEncoder
from paths import REFERENCE, SHARED
from reference.formula import S, U

SET14 = SHARED / "data" / "set14"
needs_data = pytest.mark.skipif(not SET14.is_dir(), reason="needs ../shared/data")


def luma(image: np.ndarray) -> np.ndarray:
    """[3, H, W] in [0, 1] -> Y in [0, 1]."""
    return np.tensordot(np.array([65.481, 128.553, 24.966]), image, 1) / 255 + 16 / 255


def eight_bit(image: Tensor) -> np.ndarray:
    return np.rint(np.clip(image[0].double().numpy(), 0, 1) * 255) / 255


def db(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of scikit-image with the paper's eps put in: it adds 1e-8 to the mean squared error."""
    plain = peak_signal_noise_ratio(a, b, data_range=1)
    return -10 * math.log10(10 ** (-plain / 10) + 1e-8)


def pair(height: int = 45, width: int = 50) -> tuple[Tensor, Tensor]:
    gt = F.avg_pool2d(U("protocol/gt", 1, 3, height, width), 5, 1, 2, count_include_pad=False)
    return (gt + 0.08 * S("protocol/sr", 1, 3, height, width)).clamp(0, 1), gt


class MeanPool(nn.Module):
    """The toy auto-encoder of check 3: 4x4 means, then nearest; its output is what it says, however far out."""

    scale = 4

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(image, 4), scale_factor=4.0) * 3 - 1.3


def pooled(image: np.ndarray) -> np.ndarray:
    """MeanPool in NumPy, for sides that are no multiple of 4 as well."""
    height, width = (side // 4 * 4 for side in image.shape[1:])
    cells = image[:, :height, :width].reshape(3, height // 4, 4, width // 4, 4).mean((2, 4))
    return cells.repeat(4, 1).repeat(4, 2) * 3 - 1.3


@pytest.mark.parametrize("crop", [0, 4])
def test_ae_psnr_beside_numpy(crop: int) -> None:
    sr, gt = pair()
    a, b = (luma(pooled(eight_bit(image))) for image in (sr, gt))
    assert a.shape == (44, 48)
    assert pooled(eight_bit(gt)).min() < 0  # out of the range, and neither clamped nor rounded there
    end = (slice(crop, 44 - crop), slice(crop, 48 - crop))
    assert ae_psnr(sr, gt, MeanPool(), crop=crop).item() == pytest.approx(db(a[end], b[end]), abs=1e-4)
    assert measure("ae_psnr", sr, gt, crop=crop, autoencoder=MeanPool()).item() == ae_psnr(sr, gt, MeanPool(), crop=crop).item()


def test_ae_psnr_does_not_round_after_the_autoencoder_but_before_it() -> None:
    gt = torch.full((1, 3, 24, 24), 128 / 255)
    sr = gt.clone()
    sr[..., ::4, ::4] += 1 / 255  # one grey level in one of 16 pixels: 3/16 of a level after the auto-encoder
    level = 219 / 255 * 3 / 16 / 255
    before = eight_bit(gt)[0, 0, 0] * 255, eight_bit(sr)[0, 0, 0] * 255
    assert before[1] - before[0] == pytest.approx(1)
    assert ae_psnr(sr, gt, MeanPool(), crop=4).item() == pytest.approx(-10 * math.log10(level**2 + 1e-8), abs=1e-2)
    assert ae_psnr(gt + 0.3 / 255, gt, MeanPool(), crop=4).item() == pytest.approx(80.0)


def test_ae_psnr_ignores_what_the_autoencoder_drops() -> None:
    _, gt = pair(48, 48)
    gt = (gt * 0.8 + 0.1).mul(255).round() / 255
    texture = torch.zeros_like(gt)
    texture[..., ::4, ::4], texture[..., 1::4, 1::4] = 8 / 255, -8 / 255  # no mean in any cell
    assert ae_psnr(gt + texture, gt, MeanPool(), crop=4).item() > 79.9
    assert measure("psnr_y", gt + texture, gt, scale=4).item() < 45


def test_ae_psnr_of_the_papers_architecture() -> None:
    """Two ways to the same figure: ours, and the network's output taken apart in NumPy."""
    torch.manual_seed(0)
    network = AutoEncoder(blocks=1, growth=8, features=48, decoder_options={"features": 8, "growth": 4, "blocks": 1}).eval()
    sr, gt = pair(37, 43)
    with torch.no_grad():
        outputs = [
            network(torch.from_numpy(eight_bit(image)[:, :36, :40]).float()[None])[0].double().numpy() for image in (sr, gt)
        ]
    a, b = (luma(output)[4:-4, 4:-4] for output in outputs)
    assert ae_psnr(sr, gt, network, crop=4).item() == pytest.approx(db(a, b), abs=1e-6)


def test_without_an_autoencoder_it_says_which_option_brings_one() -> None:
    sr, gt = pair()
    with pytest.raises(MissingWeightsError, match="--autoencoder FILE"):
        measure("ae_psnr", sr, gt, scale=4)
    table = evaluate_pairs([Pair("a", sr, gt)], ["ae_psnr", "psnr_y"])
    assert "--autoencoder" in table.missing["ae_psnr"]
    assert set(table.mean()) == {"psnr_y"}
    with_it = evaluate_pairs([Pair("a", sr, gt)], ["ae_psnr"], autoencoder=MeanPool())
    assert with_it.mean()["ae_psnr"] == pytest.approx(ae_psnr(sr, gt, MeanPool(), crop=4).item())


def quarter_size(image: np.ndarray) -> np.ndarray:
    """The specification's 16 taps for 1/4, mirrored borders, rows first: another way than imresize's matrices."""
    half = np.array([-7, -45, -75, -49, 93, 399, 745, 987]) / 4096
    taps = np.concatenate([half, half[::-1]])
    for axis in (1, 2):
        count = image.shape[axis] // 4
        padded = np.pad(image, [(6, 6) if a == axis else (0, 0) for a in range(3)], mode="symmetric")
        rows = [np.tensordot(taps, np.moveaxis(padded, axis, 0)[4 * i : 4 * i + 16], 1) for i in range(count)]
        image = np.moveaxis(np.stack(rows), 0, axis)
    return image


@pytest.mark.parametrize(
    ("name", "crop", "rgb"),
    [("lr_psnr", 1, False), ("lr_psnr_crop0", 0, False), ("lr_psnr_rgb", 1, True), ("lr_psnr_rgb_crop0", 0, True)],
)
def test_lr_psnr_beside_numpy(name: str, crop: int, rgb: bool) -> None:
    sr, gt = pair(44, 52)
    lq = np.rint(np.clip(quarter_size(eight_bit(gt)), 0, 1) * 255) / 255
    small = quarter_size(eight_bit(sr))
    a, b = (x if rgb else luma(x)[None] for x in (small, lq))
    inner = (slice(None), slice(crop, a.shape[1] - crop), slice(crop, a.shape[2] - crop))
    expected = db(a[inner], b[inner])
    assert measure(name, sr, lq=torch.from_numpy(lq)[None], scale=4).item() == pytest.approx(expected, abs=1e-4)
    without_file = evaluate_pairs([Pair("a", sr, gt)], [name])
    assert without_file.mean()[name] == pytest.approx(expected, abs=1e-4)
    assert "MATLAB reduction" in without_file.remarks[0]


def test_lr_psnr_takes_ground_truth_of_any_size_and_the_file_first() -> None:
    sr, gt = pair(45, 50)
    table = evaluate_pairs([Pair("a", sr, gt)], ["lr_psnr"])
    assert table.problems == ()
    assert table.mean()["lr_psnr"] == lr_psnr(sr[..., :44, :48], reference_input(gt, 4), scale=4).item()
    sr, gt = sr[..., :44, :48], gt[..., :44, :48]
    lq = (reference_input(gt, 4) + 0.02).float()
    with_file = evaluate_pairs([Pair("a", sr, gt, lq)], ["lr_psnr"])
    assert with_file.mean()["lr_psnr"] == lr_psnr(sr, lq, scale=4).item() < table.mean()["lr_psnr"]
    assert with_file.remarks == ()


@needs_data
def test_the_reduction_is_close_to_the_sets_own_files() -> None:
    def read(path: Path) -> Tensor:
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None].float() / 255

    made, file = reference_input(read(SET14 / "hr" / "img_001.png"), 4), read(SET14 / "lr_x4" / "img_001.png")
    apart = (made - file).abs().mul(255).round()
    assert apart.max() <= 1 or apart.gt(1).double().mean() < 0.02  # the other border form; see reference_input
    assert 0 < apart.gt(0).double().mean() < 0.2


@pytest.mark.parametrize("name", ["fid", "pfid"])
def test_set_distances_in_the_table_beside_scipy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features by a small fixed network; the distance by SciPy's matrix square root of the covariances."""

    def network(x: Tensor) -> list[Tensor]:
        return [torch.cat([x.mean((2, 3)), x.std((2, 3)), x[:, :, 50, 60]], 1)[..., None, None]]

    monkeypatch.setattr(SetDistance, "load", classmethod(lambda cls, spec, device="cpu": cls(spec, network)))
    images = [U(f"protocol/fid{i}", 1, 3, 320, 610) * (0.4 + i / 20) for i in range(12)]
    worse = [(image * 0.8 + 0.1).roll(i, 2) for i, image in enumerate(images)]
    pairs = [Pair(str(i), sr, gt) for i, (sr, gt) in enumerate(zip(worse, images, strict=True))]

    def features(pictures: list[Tensor]) -> np.ndarray:
        eight = [torch.from_numpy(eight_bit(picture)).float()[None] * 2 - 1 for picture in pictures]
        if name == "fid":
            seen = [F.interpolate(x, size=(299, 299), mode="bilinear") for x in eight]
        else:
            seen = [x[..., :299, left : left + 299] for x in eight for left in (0, 299)]
        return torch.cat([network(x)[0][..., 0, 0] for x in seen]).double().numpy()

    a, b = features(worse), features(images)
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a + c_b - 2 * np.real(sqrtm(c_a @ c_b)))
    assert evaluate_pairs(pairs, [name]).mean()[name] == pytest.approx(expected, rel=1e-4)
    same = [Pair(str(i), image, image) for i, image in enumerate(images)]
    assert abs(evaluate_pairs(same, [name]).mean()[name]) < 1e-3


def test_pictures_on_another_scale_are_refused() -> None:
    sr, gt = pair(64, 64)
    for name in ("psnr_y", "ssim_rgb", "lsd", "lr_psnr"):
        lq = reference_input(gt, 4)
        with pytest.raises(ValueError, match=r"sr: expected values in \[0, 1\], got .*; divide by 255"):
            measure(name, sr * 255, gt, lq=lq, scale=4)
        with pytest.raises(ValueError, match="from_model_range"):
            measure(name, (sr * 2 - 1.2), gt, lq=lq, scale=4)
        assert torch.isfinite(measure(name, sr * 1.3 - 0.1, gt, lq=lq, scale=4))  # a network's overshoot counts as clamped
    metric = LearnedMetric(METRICS["musiq"], lambda image: image.mean((1, 2, 3)))
    with pytest.raises(ValueError, match="divide by 255"):
        metric(sr * 255)


def test_a_metric_that_draws_at_random_is_repeatable_and_leaves_the_generator_alone() -> None:
    metric = LearnedMetric(METRICS["maniqa"], lambda image: image.mean((1, 2, 3)) + torch.rand(len(image)))
    image = torch.cat(pair())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = metric(image), metric(image)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first[1:], metric(image[1:]))  # MANIQA takes one image at a time


def test_quarters() -> None:
    image = torch.arange(35.0).view(1, 1, 5, 7)
    parts = quarters(image)
    assert [tuple(part.shape[2:]) for part in parts] == [(2, 3), (2, 4), (3, 3), (3, 4)]
    assert sum(part.sum() for part in parts) == image.sum()
    assert parts[3][0, 0, 0].tolist() == [17, 18, 19, 20]


def test_a_metric_in_quarters_is_the_mean_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        LearnedMetric, "load", classmethod(lambda cls, spec, device="cpu": cls(spec, lambda image: image.amax((1, 2, 3))))
    )
    image = torch.zeros(1, 3, 64, 80)
    image[..., 0, 0], image[..., 40, 50] = 1.0, 0.4
    whole = evaluate_pairs([Pair("a", image)], ["clipiqa", "musiq"])
    cut = evaluate_pairs([Pair("a", image)], ["clipiqa", "musiq"], in_quarters=["clipiqa"])
    assert whole.mean() == {"clipiqa": 1.0, "musiq": 1.0}
    assert cut.mean() == {"clipiqa": pytest.approx(1.4 / 4), "musiq": 1.0}
    assert cut.notes() == ["note: clipiqa: mean over the four quarters of each image"]
    with pytest.raises(ValueError, match="in_quarters: expected metrics without reference, got 'psnr_y'"):
        evaluate_pairs([Pair("a", image)], ["psnr_y"], in_quarters=["psnr_y"])


def test_protocols_hold_metrics_that_exist() -> None:
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= set(METRICS)
        assert len(set(protocol.metrics)) == len(protocol.metrics)
    for name in ("aesop-real", "asasr-real", "strsr-real"):
        assert not any(METRICS[metric].needs_reference for metric in PROTOCOLS[name].metrics)
    assert not set(PROTOCOLS) & set(METRICS)
    choice = choose("aesop psnr_y,lsd")
    assert choice.names == (*PROTOCOLS["aesop"].metrics, "lsd")
    assert choice.crop is None
    assert choice.named == {"psnr_y", "lsd"}
    with pytest.raises(ValueError, match="did you mean 'aesop'"):
        choose("aesp")
    with pytest.raises(ValueError, match="got none"):
        choose(" , ")


# Published numbers


AESOP = published_papers()["AESOP"]
HAND_COPIED = [
    ("Set14", "ESRGAN", "lpips", 0.1241, "Tab. 1"),
    ("LSDIR", "AESOP (SwinIR, 300k)", "ssim_y", 0.7289, "Tab. 1"),
    ("DIV2K-val", "AESOP (RRDB, patch 128)", "psnr_y", 29.079, "Tab. 1"),
    ("DIV2K-val", "AESOP (RRDB, patch 128)", "ssim_y", 0.7978, "Tab. 1"),
    ("DIV2K-val", "AESOP (RRDB, patch 128)", "lpips", 0.0977, "Tab. 1"),
    ("DIV2K-val", "AESOP (RRDB, patch 128)", "dists", 0.0518, "Tab. 1"),
    ("Manga109", "AESOP (RRDB, patch 256)", "dists", 0.0356, "Tab. 1"),
    ("BSD100", "LDL (RRDB)", "ae_psnr", 29.595, "Tab. 9"),
    ("Urban100", "SPSR", "lr_psnr", 42.666, "Tab. 9"),
    ("DIV2K-val", "AESOP (SwinIR, iterate not said)", "lr_psnr", 49.856, "Tab. 4"),
    ("DIV2K-val", "AESOP ablation (b): no LR term", "psnr_y", 29.150, "Tab. 3"),
    ("General100", "AESOP ablation: SRResNet AE", "lpips", 0.0789, "Tab. 5"),
    ("Set14", "AESOP (RRDB, patch 256)", "fid", 38.907, "Tab. 7"),
    ("LSDIR", "AESOP (SwinIR, iterate not said)", "pfid", 11.387, "Tab. 7"),
    ("Manga109", "AESOP (DRCT)", "dists", 0.0338, "Tab. 8"),
    ("DRealSR", "AESOP (real world)", "clipiqa", 0.6025, "Tab. 2, 6"),
    ("RealSRv3", "Real-ESRGAN", "niqe", 4.6790, "Tab. 2, 6"),
    ("RealSRv3", "BSRGAN", "musiq", 63.5908, "Tab. 2, 6"),
    ("DIV2K-val", "CALGAN (SwinIR)", "lpips", 0.087, "CALGAN's own numbers, quoted"),
]


@pytest.mark.parametrize(("dataset", "method", "metric", "value", "table"), HAND_COPIED)
def test_published_numbers_copied_by_hand(dataset: str, method: str, metric: str, value: float, table: str) -> None:
    row = next(row for row in published_rows(dataset, [metric]) if row.method == method)
    assert row.scores[metric].value == value
    assert row.scores[metric].table == table


def test_tables_that_print_a_number_twice_agree() -> None:
    """Tables 3 and 5 repeat rows of Table 1; a slip in copying would show here."""
    first: dict[tuple[str, str, str], float] = {}
    repeated = 0
    for table in AESOP["tables"]:
        assert table["metric"] in METRICS
        for dataset, values in table["values"].items():
            assert len(values) == len(table["methods"]) == len(set(table["methods"]))
            for method, value in zip(table["methods"], values, strict=True):
                if value is None:
                    continue
                low, high = METRICS[table["metric"]].range
                assert low <= value <= high
                key = (dataset, method, table["metric"])
                if key in first:
                    assert value == pytest.approx(first[key], abs=0.5001 * 10 ** -table["decimals"])
                    repeated += 1
                first.setdefault(key, value)
    assert repeated == 4 + 16
    assert len(first) == 527 - 20


@pytest.mark.skipif(not (SHARED / "papers" / "aesop.md").is_file(), reason="needs ../shared/papers")
def test_every_number_of_the_specification_is_there_and_no_other() -> None:
    text = (SHARED / "papers" / "aesop.md").read_text(encoding="utf-8")
    section = text[text.index("## 6. Results") : text.index("## 7. Where")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    words = " ".join(lines).replace("|", " ").replace("/", " ").replace("*", " ").split()
    printed = sorted(float(word) for word in words if "." in word and word.replace(".", "", 1).isdigit())
    tables = [table for table in AESOP["tables"] if "CALGAN" not in table["table"]]  # those stand in a sentence
    ours = sorted(value for table in tables for values in table["values"].values() for value in values if value is not None)
    printed.remove(0.01)  # a loss weight, in the words of Table 3
    assert ours == printed


def test_names_of_sets() -> None:
    assert published_sets()[:5] == ["Set14", "Manga109", "General100", "Urban100", "DIV2K-val"]
    assert find_set("bsd-100") == "BSD100"
    with pytest.raises(ValueError, match=r"published: expected a set .*'Set5'; there are Set14, Manga109, .*DRealSR"):
        find_set("Set5")
    assert published_rows("Set14", ["lsd"]) == ()


# Several methods


def tables() -> list[Table]:
    metrics = ("psnr_y", "ssim_y", "lpips", "fid", "lsd")
    missing = {"lpips": "no file", "fid": "no file"}
    blurred = (Row("a", {"psnr_y": 30.0, "ssim_y": 0.8, "lsd": 9.0}), Row("b", {"psnr_y": 32.0, "ssim_y": 0.9, "lsd": 7.0}))
    sharp = (Row("a", {"psnr_y": 28.0, "ssim_y": 0.7, "lsd": 2.0}), Row("b", {"psnr_y": 29.0, "ssim_y": 0.8, "lsd": 3.0}))
    return [Table(metrics, blurred, missing=missing, title="blurred"), Table(metrics, sharp, missing=missing, title="sharp")]


def test_comparison_prints_means_and_marks_what_is_published() -> None:
    comparison = Comparison.of(tables(), "set14")
    text = comparison.to_text().splitlines()
    assert text[0] == "Set14"
    assert text[1].split("  ")[0] == "method"
    assert text[3].split() == ["blurred", "31.000", "0.8500", "missing", "missing", "8.000", "measured,", "2", "images"]
    assert text[4].split() == ["sharp", "28.500", "0.7500", "missing", "missing", "2.500", "measured,", "2", "images"]
    assert set(text[5]) == {"-"}
    assert text[6].split() == ["ESRGAN", "26.594", "0.7144", "0.1241", "published,", "Tab.", "1"]
    assert [line for line in text if line.startswith("missing: lpips")] == ["missing: lpips: no file"]
    assert "not measured here" in text[-1]
    assert comparison.to_text().isascii()
    assert comparison.best() == {(0, 1), (0, 2), (1, 5)}
    narrow = comparison.to_text(70).splitlines()
    assert max(map(len, narrow[:-4])) <= 70  # then two missing metrics, the number of images, the source
    assert sum(line.startswith("method") for line in narrow) > 1


def test_without_a_set_columns_without_a_number_are_only_named() -> None:
    comparison = Comparison.of(tables())
    assert [spec.name for spec in comparison.columns] == ["psnr_y", "ssim_y", "lsd"]
    assert comparison.notes() == ["missing: lpips: no file", "missing: fid: no file"]
    assert comparison.dataset == ""


def test_comparison_as_data() -> None:
    comparison = Comparison.of(tables(), "Set14")
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    ours = [row for row in rows if row["source"] == "measured"]
    assert [(row["method"], row["image"]) for row in ours] == [
        *(("blurred", name) for name in ("a", "b", "mean")),
        *(("sharp", name) for name in ("a", "b", "mean")),
    ]
    assert float(ours[5]["psnr_y"]) == 28.5
    ldl = next(row for row in rows if row["method"] == "LDL (RRDB)")
    assert (ldl["source"], ldl["image"], ldl["fid"], ldl["lsd"]) == ("published: Tab. 1, Tab. 7", "mean", "43.479", "")
    data = json.loads(comparison.to_json())
    assert [table["title"] for table in data["methods"]] == ["blurred", "sharp"]
    assert data["published"][0]["scores"]["lpips"] == {"value": 0.1241, "table": "Tab. 1"}
    assert data["images"][2] == {"name": "sharp: a", "scores": {"psnr_y": 28.0, "ssim_y": 0.7, "lsd": 2.0}}
    assert data["metrics"]["fid"]["missing"] == "no file"
    markdown = comparison.to_markdown().splitlines()
    assert markdown[:2] == ["### Set14", ""]
    assert markdown[4].startswith("| blurred | **31.000** | **0.8500** | missing | missing | 8.000 |")
    assert markdown[6].startswith("| *ESRGAN* | *26.594* |")


def test_published_numbers_of_other_images_or_another_autoencoder_are_said_to_be_so() -> None:
    def notes(count: int, metrics: tuple[str, ...], dataset: str = "Set14") -> str:
        rows = tuple(Row(str(index), dict.fromkeys(metrics, 30.0)) for index in range(count))
        return "\n".join(Comparison.of([Table(metrics, rows, title="ours")], dataset).notes())

    said = "published: Set14 has 14 images, ours was scored on 5: measured and published scores do not compare"
    assert said in notes(5, ("psnr_y",))
    assert "do not compare" not in notes(14, ("psnr_y",)), "the set as a whole, nothing to say"
    assert "AE-PSNR with the released AE_RRDBdecoder_100K.pth" in notes(14, ("psnr_y", "ae_psnr"))
    assert "AE-PSNR" not in notes(14, ("psnr_y", "ae_psnr"), "RealSRv3"), "no such number is published"


def test_the_autoencoder_is_named_where_ae_psnr_is() -> None:
    sr, gt = pair()
    options = {"autoencoder": MeanPool(), "autoencoder_name": "means"}
    table = evaluate_pairs([Pair("a", sr, gt)], ["ae_psnr"], **options)
    assert table.notes() == ["note: AE-PSNR: with the auto-encoder means"]
    assert evaluate_pairs([Pair("a", sr, gt)], ["psnr_y"], **options).notes() == []


def test_csv_has_six_digits_and_json_all() -> None:
    value = 33.40859322103779
    table = Table(("psnr_y",), (Row("a", {"psnr_y": value}),), title="ours")
    assert table.to_csv() == "name,psnr_y\na,33.4086\nmean,33.4086\n"
    assert Comparison.of([table]).to_csv() == "method,source,image,psnr_y\nours,measured,a,33.4086\nours,measured,mean,33.4086\n"
    assert json.loads(table.to_json())["mean"]["psnr_y"] == value


def test_methods_need_names_and_the_same_images() -> None:
    first, second = tables()
    with pytest.raises(ValueError, match="different names"):
        Comparison.of([first, first])
    short = Comparison.of([first, Table(second.metrics, second.rows[:1], missing=second.missing, title="sharp")])
    assert any("different numbers of images" in note for note in short.notes())


def test_methods_are_scored_one_after_the_other() -> None:
    sr, gt = pair()
    done: list[int] = []
    methods = {"one": [Pair("a", sr, gt), Pair("b", gt, gt)], "two": iter([Pair("a", gt, gt)])}
    found = evaluate_methods(methods, ["psnr_y"], progress=lambda count, _total, _name: done.append(count))
    assert done == [1, 2, 3]
    assert [table.title for table in found] == ["one", "two"]
    assert found[1].mean() == {"psnr_y": pytest.approx(80)}
    stopped = evaluate_methods(methods, ["psnr_y"], should_stop=lambda: True)
    assert [table.title for table in stopped] == ["one"]


def test_digits_are_those_of_the_papers_tables() -> None:
    printed = {"psnr_y": "27.228", "ssim_y": "0.7358", "lpips": "0.1132", "fid": "43.479", "musiq": "63.6489", "niqe": "4.2337"}
    for name, text in printed.items():
        assert score_text(METRICS[name], float(text)) == text


def test_the_plane_takes_the_perceptual_metric_that_has_scores() -> None:
    comparison = Comparison.of(tables(), "Set14")
    assert comparison.perceptual_metric() == "lsd"
    assert comparison.points() == [("blurred", 31.0, 8.0, False), ("sharp", 28.5, 2.5, False)]
    scored = Table(("psnr_y", "dists", "lpips"), (Row("a", {"psnr_y": 27.0, "dists": 0.1, "lpips": 0.2}),), title="ours")
    both = Comparison.of([scored], "Set14")
    assert both.perceptual_metric() == "lpips"
    assert both.points()[:2] == [("ours", 27.0, 0.2, False), ("ESRGAN", 26.594, 0.1241, True)]
    assert len(both.points()) == 12
    assert plane_picture(comparison).size == (900, 600)
    assert plane_picture(both).size == (1150, 600)
    assert table_picture(both).width > 600
    with pytest.raises(ValueError, match="picture: expected a method with PSNR"):
        plane_picture(Comparison.of([Table(("psnr_y",), (Row("a", {"psnr_y": 27.0}),), title="ours")]))


def test_points_lie_where_their_numbers_say() -> None:
    """The discs in the picture, found by colour, stand to each other as the numbers do."""
    rows = {"a": (26.0, 0.3), "b": (28.0, 0.1), "c": (27.0, 0.2)}
    comparison = Comparison.of(
        [Table(("psnr_y", "lpips"), (Row("x", {"psnr_y": x, "lpips": y}),), title=name) for name, (x, y) in rows.items()]
    )
    pixels = np.asarray(plane_picture(comparison)).astype(int)
    centres: list[np.ndarray] = []
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # matplotlib's first three
        places = np.argwhere(np.abs(pixels - np.array(colour)).sum(2) < 30)
        assert len(places) > 30
        centres.append(places.mean(0))
    (row_a, column_a), (row_b, column_b), (row_c, column_c) = centres
    assert column_a < column_c < column_b
    assert row_a < row_c < row_b  # rows count downwards: more LPIPS is higher up
    assert column_c == pytest.approx((column_a + column_b) / 2, abs=2)
    assert row_c == pytest.approx((row_a + row_b) / 2, abs=2)


def test_the_plane_asks_for_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert with_axes(["ssim_y", "lpips"]) == ("ssim_y", "lpips", "psnr_y", "lsd")
    monkeypatch.setattr("alignsr.core.evaluation_pictures.available", lambda name: [])
    assert with_axes(["psnr_y", "lpips"]) == ("psnr_y", "lpips")


def test_published_file_is_text_for_people() -> None:
    assert AESOP["source"].endswith("arXiv:2412.00124")
    assert (REFERENCE.parents[1] / "core" / "metrics" / "published-aesop.json").read_text(encoding="utf-8").isascii()
