"""Published numbers of ASASR, DP2O-SR and StrSR: each of the specifications' is there and no other, and some copied by hand."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from alignsr.core.evaluate import Pair, evaluate_pairs
from alignsr.core.metrics import METRICS
from alignsr.core.metrics.comparison import Comparison
from alignsr.core.metrics.protocols import PROTOCOLS, choose, preset
from alignsr.core.metrics.published import find_set, published_papers, published_rows, published_set, published_sets
from alignsr.core.metrics.quantities import COLUMNS, DOWNSTREAM, PRINTED, column_of
from alignsr.core.metrics.table import Row, Table
from paths import SHARED
from reference.formula import U

needs_papers = pytest.mark.skipif(not (SHARED / "papers" / "asasr.md").is_file(), reason="needs ../shared/papers")

HAND_COPIED = [
    ("ASASR DIV2K-Val", "ASASR", "dists", "0.2038", "Tab. 1"),
    ("ASASR DIV2K-Val", "StableSR", "lpips", "0.3016", "Tab. 1"),
    ("ASASR DIV2K-Val", "FaithDiff", "musiq", "70.59", "Tab. 1"),
    ("ASASR LSDIR-Val", "SUPSR (SUPIR)", "maniqa", "0.6392", "Tab. 1"),
    ("ASASR LSDIR-Val", "DP2O-SR", "clipiqa+", "0.7773", "Tab. 1"),
    ("ASASR RealSR", "SwinIR-GAN", "psnr_y", "24.44", "Tab. 1"),
    ("ASASR DrealSR", "DreamClear", "musiq", "42.82", "Tab. 1"),
    ("ASASR COCO", "ground truth", "ap_box", "48.32", "Tab. 2"),
    ("ASASR COCO", "input", "ap75_mask", "11.12", "Tab. 2"),
    ("ASASR COCO", "ASASR", "ap50_box", "52.64", "Tab. 2"),
    ("ASASR ADE20K", "SeeSR", "miou", "39.11", "Tab. 2"),
    ("ASASR ADE20K", "ASASR", "pix_acc", "80.24", "Tab. 2"),
    ("ASASR Occluded RoadText", "DreamClear", "ocr_recall", "23.95", "Tab. 2"),
    ("ASASR Occluded RoadText", "SUPSR (SUPIR)", "ocr_recall", "36.78", "Tab. 2"),
    ("ASASR ablation", "full: Sobolev + adversarial", "dists", "0.2088", "Tab. 3"),
    ("ASASR ablation", "Euclidean guidance (no SSR)", "psnr_y", "18.34", "Tab. 3"),
    ("ASASR ablation", "only supervised (no SSR, no AMG)", "ap_mask", "28.72", "Tab. 3"),
    ("ASASR adversary rank", "rank, alpha (16, 16)", "adapter_m", "29.5", "Tab. 4"),
    ("ASASR adversary rank", "rank, alpha (4, 4)", "psnr_y", "19.43", "Tab. 4"),
    ("ASASR efficiency", "ASASR", "latency_s", "19.60", "Tab. 5"),
    ("ASASR efficiency", "ASASR", "mfu_percent", "46.6", "Tab. 5"),
    ("ASASR backbones", "SDXL, +SSR+AMG", "maniqa", "0.6104", "Tab. 6"),
    ("ASASR RealLQ250", "DreamClear", "niqe", "3.55", "Tab. 7"),
    ("ASASR old films", "ASASR", "clipiqa+", "0.6078", "Tab. 8"),
    ("ASASR user study", "ASASR", "top1", "91.1", "user study"),
    ("DP2O-SR Syn-Test", "DP2O-SR (FLUX)", "qalign", "4.7060", "Tab. 1"),
    ("DP2O-SR Syn-Test", "SeeSR", "afine_fr", "-1.0931", "Tab. 1"),
    ("DP2O-SR RealSR", "OSEDiff", "psnr_y", "25.15", "Tab. 1"),
    ("DP2O-SR RealSR", "C-SD2", "vq_r1", "4.08", "Tab. 1"),
    ("DP2O-SR RealSR, ten seeds", "C-FLUX", "musiq", "69.70 +- 2.15", "Tab. 2"),
    ("DP2O-SR HPO ablation", "HPO", "reward", "0.651", "Tab. 3"),
    ("DP2O-SR curation, C-SD2", "N:M = 1:64, M = 64", "reward", "0.464", "figure"),
    ("DP2O-SR curation, C-FLUX", "N:M = 1:16, M = 64", "reward_peak", "0.654", "figure"),
    ("DP2O-SR best and worst of M", "DP2O-SR (FLUX), M = 64", "reward_worst", "0.556", "figure"),
    ("DP2O-SR user study, FLUX", "DP2O-SR (FLUX)", "top1", "44.0", "user study"),
    ("StrSR DIV2K-val", "StrSR-F", "lpips", "0.2992", "table"),
    ("StrSR DIV2K-val", "OSEDiff", "ssim_y", "0.6441", "table"),
    ("StrSR RealSR", "TSD-SR", "musiq", "69.0501", "table"),
    ("StrSR RealLQ250", "StrSR-Z", "qalign", "4.2595", "table"),
    ("StrSR ablation", "without GAN", "musiq", "54.086", "ablation"),
]


@pytest.mark.parametrize(("dataset", "method", "metric", "text", "table"), HAND_COPIED)
def test_published_numbers_copied_by_hand(dataset: str, method: str, metric: str, text: str, table: str) -> None:
    row = next(row for row in published_rows(dataset) if row.method == method)
    assert row.scores[metric].text == text
    assert row.scores[metric].table == table


def numbers(text: str) -> Iterator[float]:
    """Numbers that stand alone, such as `20.60`, `**0.2784**`, `.597@500` (two) and `.416+-.018` (two)."""
    for word in re.sub(r"\+-|[|*()/@+~%]", " ", text).split():
        number = word.strip(",;").rstrip(".")
        if re.fullmatch(r"-?\d*\.\d+|-?\d{3,4}", number):
            yield float(number)


def rows_of(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def between(text: str, start: str, end: str) -> str:
    begin = text.index(start)
    return text[begin : text.index(end, begin)]


def of_paper(paper: str, *tables: str) -> Counter[float]:
    """All numbers of a paper's tables."""
    chosen = [table for table in published_papers()[paper]["tables"] if not tables or table["table"] in tables]
    parts = [part for table in chosen for key in ("values", "spreads") for part in table.get(key, {}).values()]
    return Counter(float(value) for part in parts for value in part if value is not None)


@needs_papers
def test_every_number_of_asasr_is_there_and_no_other() -> None:
    text = (SHARED / "papers" / "asasr.md").read_text(encoding="utf-8")
    printed = Counter(numbers(rows_of(between(text, "### 4.5 Table 2", "### 4.7"))))
    printed += Counter(numbers(rows_of(between(text, "### 4.8 Table 6", "## 5. Ambiguities"))))
    for label, *cells in (line.strip("|").split("|") for line in rows_of(between(text, "### 4.4", "### 4.5")).splitlines()[2:]):
        metric, *scores, best, _rank = cells
        printed += Counter(numbers("|".join(scores)))
        number, method = re.fullmatch(r" ([\d.]+) \((.+)\) ", best).groups()
        named = {"SUPSR": "SUPSR (SUPIR)"}.get(method, method)
        row = next(row for row in published_rows(f"ASASR {label.strip()}") if row.method == named)
        metrics = {COLUMNS[name].title.split(" (")[0].replace("-", "").upper(): name for name in row.scores}
        name = metrics[metric.strip().replace("-", "").upper()]
        assert row.scores[name].value == float(number)
        if method not in ("Real-ESRGAN", "SeeSR", "DreamClear", "DP2O-SR", "DiT4SR"):  # a row of its own, not one of the six
            printed[float(number)] += 1
    capacity = rows_of(between(text, "Adversary capacity", "### 4.2"))
    printed += Counter(numbers(re.sub(r"([\d.]+)M", r"\1", capacity)))
    printed += Counter([19.60, 33.02, 96.2, 2.85, 46.6, 91.1])  # Tab. 5 and the user study stand in sentences
    assert of_paper("ASASR") == printed


@needs_papers
def test_every_number_of_dp2o_is_there_and_no_other() -> None:
    text = (SHARED / "papers" / "dp2o-sr.md").read_text(encoding="utf-8")
    printed = Counter(numbers(rows_of(between(text, "### 4.1", "### 4.3"))))
    assert of_paper("DP2O-SR", "Tab. 1", "Tab. 2") == printed
    assert of_paper("DP2O-SR", "Tab. 3") == Counter(numbers(between(text, "perceptual reward base", "Backbone and test set")))
    curves = Counter(numbers(rows_of(between(text, "### 4.4", "### 4.5")))) + Counter([0.535, 0.535])  # the start of both models
    said = between(text, "### 4.5", "OSEDiff's line is passed")
    steps = Counter(number for number in numbers(said.replace(": ", " ").replace(". ", " ")) if number < 1)
    best = between(text, "### 4.6", "Best-to-worst range")
    best = Counter(numbers(rows_of(re.sub(r"(\.\d+)-(\.\d+) \|", r"\1 \2 |", best))))
    assert of_paper("DP2O-SR", "figure") == curves + steps + best
    votes = [28.0, 19.5, 18.5, 44.0, 12.0, 67.5, 69.5, 27.68, 22.39]
    assert of_paper("DP2O-SR", "user study", "quoted by OARS", "quoted by GDPO-SR") == Counter(votes)
    section = between(text, "### 4.7", "### 4.9")
    assert all(re.search(rf"\b{number:g}", section) for number in votes)


@needs_papers
def test_every_number_of_strsr_is_there_and_no_other() -> None:
    text = (SHARED / "papers" / "strsr.md").read_text(encoding="utf-8")
    section = between(text, "## 4. Reported results", "## 5. Ambiguities")
    tables = Counter(numbers(rows_of(section)))
    best = Counter([23.93, 0.6441, 26.18, 0.7652])  # in brackets below the tables
    assert set(best) <= set(numbers(section))
    assert of_paper("StrSR", "table") == tables + best
    assert of_paper("StrSR", "ablation") == Counter(numbers(between(section, "**Ablation", "[paper]").replace(";", " ")))


@pytest.mark.parametrize("paper", list(published_papers()))
def test_files_are_whole(paper: str) -> None:
    data = published_papers()[paper]
    assert str(data).isascii()
    used = {key for table in data["tables"] for key in table["values"]}
    assert used == set(data["sets"])
    first: dict[tuple[str, str, str], float] = {}
    for table in data["tables"]:
        low, high = COLUMNS[table["metric"]].range
        assert len(set(table["methods"])) == len(table["methods"])
        for key, values in table["values"].items():
            assert len(values) == len(table["methods"])
            for method, value in zip(table["methods"], values, strict=True):
                if value is not None:
                    assert low <= value <= high, (table["metric"], value)
                    assert first.setdefault((key, method, table["metric"]), value) == pytest.approx(value, rel=2e-3)
    for facts in data["sets"].values():
        assert set(facts) <= {"protocol", "task", "images", "quarters", "input", "notes"}
        assert facts.get("protocol", "asasr") in PROTOCOLS


def test_what_tables_hold_apart_from_metrics() -> None:
    assert not set(DOWNSTREAM) & set(METRICS) and not set(PRINTED) & set(METRICS)
    assert {spec.kind for spec in DOWNSTREAM.values()} == {"downstream"}
    used = {table["metric"] for data in published_papers().values() for table in data["tables"]}
    assert used - set(METRICS) == set(DOWNSTREAM) | set(PRINTED), "no quantity without a number"
    with pytest.raises(ValueError, match="did you mean 'psnr_y'"):
        column_of("psnr_x")


def test_names_of_sets() -> None:
    assert find_set("div2k_val") == "DIV2K-val", "AESOP's, which has no prefix"
    assert find_set("asasr-div2k-val") == find_set("ASASR DIV2K-Val") == "ASASR DIV2K-Val"
    assert find_set("old films") == "ASASR old films"
    with pytest.raises(ValueError, match="expected the paper with the set, got 'RealSR'; there are ASASR RealSR, DP2O-SR RealSR"):
        find_set("RealSR")
    assert "ASASR COCO" in published_sets()
    assert "ASASR COCO" not in published_sets(is_measured=True)
    plain = ["".join(filter(str.isalnum, name.lower())) for name in published_sets()]
    assert len(set(plain)) == len(plain)


def test_a_set_says_how_its_paper_measures() -> None:
    chosen = preset("asasr-realsr")
    assert chosen.names == (*("psnr_y", "ssim_y", "lpips", "dists", "maniqa", "musiq", "clipiqa+"), "lsd")
    assert (chosen.crop, chosen.named, chosen.quarters) == (0, frozenset(), ())
    assert "whole images (crop 0)" in chosen.remarks[0]
    assert preset("Set14").crop is None
    assert preset("DRealSR").quarters == ("clipiqa",)
    for name in published_sets(is_measured=True):
        learned_or_own = set(preset(name).names)
        printed = {metric for metric in published_set(name).metrics if metric in METRICS}
        assert printed <= learned_or_own | {"niqe"}, name
    with pytest.raises(ValueError, match="got ASASR COCO; `alignsr evaluate-task detection` measures it"):
        preset("asasr-coco")
    with pytest.raises(ValueError, match="got ASASR efficiency; nothing here measures it"):
        preset("efficiency")


def test_protocols_of_one_border_at_a_time() -> None:
    assert choose("dp2o, asasr").crop == 0
    assert choose("asasr-real aesop").crop is None, "the real-world protocol has no metric with a border"
    with pytest.raises(ValueError, match=r"leave out one border, got aesop \(the scale\), asasr \(0\); score them one after"):
        choose("aesop, asasr")


def test_a_preset_scores_whole_images_and_says_so() -> None:
    gt = U("published/gt", 1, 3, 40, 48)
    sr = gt.clone()
    sr[..., 0, 0] = 1 - sr[..., 0, 0]  # a wrong corner: seen without a border only
    chosen = preset("asasr-div2k-val")
    table = evaluate_pairs([Pair("a", sr, gt)], ["psnr_y"], crop=chosen.crop, remarks=chosen.remarks, title="ours")
    assert (table.crop, table.sizes) == (0, ("48x40",))
    assert table.mean()["psnr_y"] < 80 == evaluate_pairs([Pair("a", sr, gt)], ["psnr_y"]).mean()["psnr_y"]
    notes = Comparison.of([table], "asasr-div2k-val").notes()
    assert any("crop 0" in note for note in notes)
    assert any("512x512 from 128x128 by the release: say which one you take; scored here: 48x40" in note for note in notes)
    assert any("DISTS of the full method is 0.2088 in Tab. 3 and 0.2038 in Tab. 1" in note for note in notes)


def test_many_sizes_are_counted() -> None:
    table = Table(("psnr_y",), (Row("a", {"psnr_y": 30.0}),), sizes=tuple(f"{n}x8" for n in range(8, 13)), title="ours")
    (said,) = [note for note in Comparison.of([table], "asasr-realsr").notes() if "scored here" in note]
    assert said.endswith("scored here: 8x8, 9x8, 10x8 and 2 other sizes")


def test_downstream_scores_stand_in_the_same_table() -> None:
    rows = tuple(Row(str(index), {}) for index in range(3))
    ours = Table(("ap_box", "ap_mask"), rows, sets={"ap_box": 12.345, "ap_mask": 100.0}, title="ours")
    comparison = Comparison.of([ours], "asasr-coco")
    text = comparison.to_text().splitlines()
    assert text[1].split() == ["method", "APb", "^", "APm", "^", "source"]
    assert text[3].split() == ["ours", "12.35", "100.00", "measured,", "3", "images"]
    assert next(line for line in text if line.startswith("ASASR  ")).split()[1:3] == ["35.62", "30.98"]
    assert "ap_box" in comparison.to_json()
    truth = Table(("ap_box",), rows, sets={"ap_box": 47.0}, title="ground truth")
    other = Table(("ap_box",), rows, sets={"ap_box": 11.0}, title="other")
    assert Comparison.of([truth, ours, other], "asasr-coco", ("ground truth",)).best() == {(1, 1)}, (
        "the ground truth is no method"
    )
    assert Comparison.of([truth, ours, other], "asasr-coco").best() == {(0, 1)}
    spread = Comparison.of([Table(("musiq",), rows, title="ours")], "dp2o-sr realsr, ten seeds")
    assert "69.70 +- 2.15" in spread.to_text()
