"""`alignsr evaluate` over several methods: the table, the files, the exit code, and what it says when something is missing."""

import csv
import json
from pathlib import Path

import pytest
import torch
from cli_helpers import call, picture
from PIL import Image
from train_helpers import make_pictures

from alignsr.core.image_files import write_image
from alignsr.core.metrics import psnr, score
from alignsr.core.networks.autoencoder import AutoEncoder
from alignsr.core.weights import save_weights

AE = {"blocks": 1, "growth": 8, "features": 48, "decoder_options": {"features": 8, "growth": 4, "blocks": 1}}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gt, and two methods: `noisy` and `dim`. No weights of learned metrics, wherever the tests run."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "models"))
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        gt = picture(48, 56, name=f"evaluate/{index}") * 0.8 + 0.1
        noise = 0.05 * torch.randn(gt.shape, generator=generator)
        for folder, image in (("gt", gt), ("noisy", gt + noise), ("dim", gt * 0.9)):
            write_image(tmp_path / folder / f"p{index}.png", image.clamp(0, 1))
    return tmp_path


def mean(folder: Path, name: str) -> float:
    """The metric of the files in `folder`, one by one."""
    from alignsr.core.image_files import read_image

    values = []
    for path in sorted((folder / name).iterdir()):
        sr, gt = (read_image(p).pixels for p in (path, folder / "gt" / path.name))
        values.append(psnr(sr, gt, crop=4).item())
    return sum(values) / len(values)


def test_two_methods_and_the_published_numbers_in_one_table(folders: Path) -> None:
    files = {kind: folders / f"out.{kind}" for kind in ("json", "csv", "md", "png")}
    done = call(
        *("evaluate", "--gt", folders / "gt", "--sr", f"first={folders / 'noisy'}", "--sr", folders / "dim"),
        *("--metrics", "aesop", "--published", "set14", "--json", files["json"], "--csv", files["csv"]),
        *("--markdown", files["md"], "--picture", files["png"]),
    )
    assert done.code == 0, done.err  # weights that only the protocol asks for do not count as a failure
    lines = done.out.splitlines()
    assert lines[0] == "Set14"
    assert lines[3].split()[:2] == ["first", f"{mean(folders, 'noisy'):.3f}"]
    assert lines[4].split()[:2] == ["dim", f"{mean(folders, 'dim'):.3f}"]
    assert lines[3].endswith("measured, 2 images") and "missing" in lines[3]
    assert any(line.startswith("AESOP (RRDB, patch 128)") and "published, Tab. 1, Tab. 9, Tab. 7" in line for line in lines)
    for name in ("lpips", "dists", "ae_psnr", "fid", "pfid", "niqe", "maniqa", "musiq", "clipiqa"):
        assert sum(line.startswith(f"missing: {name}: ") for line in lines) == 1, name
    report = json.loads(files["json"].read_text())
    assert report["methods"][0]["mean"]["psnr_y"] == pytest.approx(mean(folders, "noisy"))
    assert {"psnr_y", "ssim_y", "lr_psnr", "lr_psnr_crop0", "lr_psnr_rgb", "lr_psnr_rgb_crop0", "lsd"} == set(
        report["methods"][0]["mean"]
    )
    rows = list(csv.DictReader(files["csv"].open()))
    assert [row["image"] for row in rows if row["method"] == "first"] == ["p0", "p1", "mean"]
    assert files["md"].read_text().startswith("### Set14")
    with Image.open(files["png"]) as drawn:
        assert drawn.size == (900, 600)


def test_ae_psnr_takes_a_file(folders: Path) -> None:
    torch.manual_seed(1)
    network = AutoEncoder(**AE).eval()
    info = {"architecture": "autoencoder", "options": AE, "scale": 4, "name": "ae"}
    path = save_weights(folders / "models" / "ae.safetensors", network.state_dict(), info)
    for name in (path, "ae.safetensors"):
        done = call(
            *("evaluate", "--gt", folders / "gt", "--sr", folders / "dim", "--metrics", "ae_psnr"),
            *("--autoencoder", name, "--json", "-"),
        )
        assert done.code == 0, done.err
        from alignsr.core.image_files import read_image

        pairs = [
            (read_image(folders / "dim" / f"p{i}.png").pixels, read_image(folders / "gt" / f"p{i}.png").pixels) for i in range(2)
        ]
        values = [score("ae_psnr", sr, gt, scale=4, autoencoder=network).item() for sr, gt in pairs]
        assert json.loads(done.out)["mean"]["ae_psnr"] == pytest.approx(sum(values) / 2, abs=1e-6)
    gone = call("evaluate", "--gt", folders / "gt", "--sr", folders / "dim", "--metrics", "ae_psnr", "--autoencoder", "no-such")
    assert gone.code == 1
    assert "no-such" in gone.errors[0]


def test_notes_stand_once_below_a_single_method(folders: Path) -> None:
    base = ("evaluate", "--gt", folders / "gt", "--sr", folders / "dim", "--metrics", "aesop")
    for published in ((), ("--published", "Set14")):
        done = call(*base, *published)
        assert done.out.count("missing: lpips: ") == 1 and done.out.count("note: LR-PSNR") == 1
        assert "p0 " in done.out, "its images are listed"


def test_a_metric_that_was_named_must_be_there(folders: Path) -> None:
    base = ("evaluate", "--gt", folders / "gt", "--sr", folders / "dim", "--csv", folders / "out.csv", "--metrics")
    named = call(*base, "psnr_y,lpips")
    assert named.code == 1
    assert "a score of every metric that was named, got none of lpips: LPIPS_v0.1_alex-df73285e.pth" in named.errors[0]
    assert len(named.errors) == 1
    assert "missing: lpips" in named.out  # the table is printed and the files are written all the same
    assert (folders / "out.csv").read_text().startswith("name,psnr_y,lpips\n")
    assert call(*base, "aesop").code == 0
    assert call(*base, "aesop,lpips").code == 1
    nothing = call(*base, "aesop-real")
    assert nothing.code == 1
    assert "at least one metric that can run here" in nothing.errors[0]


def test_real_world_pictures_need_no_ground_truth(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignsr.core.metrics import LearnedMetric

    monkeypatch.setattr(
        LearnedMetric, "load", classmethod(lambda cls, spec, device="cpu": cls(spec, lambda image: image.mean((1, 2, 3))))
    )
    write_image(folders / "real" / "p0.png", picture(96, 72))
    done = call(
        *("evaluate", "--sr", folders / "real", "--metrics", "aesop-real", "--published", "DRealSR"),
        *("--quarters", "clipiqa", "--json", "-"),
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report["methods"][0]["mean"]) == {"maniqa", "musiq", "clipiqa"}  # the picture is too small for NIQE, which is said
    assert any("p0, niqe" in note for note in report["notes"])
    assert any("clipiqa: mean over the four quarters" in note for note in report["notes"])
    assert "AESOP (real world)" in done.err


def test_a_published_set_is_a_preset(folders: Path) -> None:
    """Without --metrics it brings what its paper measures: for ASASR whole images, on Y."""
    base = ("evaluate", "--gt", folders / "gt", "--sr", f"first={folders / 'noisy'}", "--sr", folders / "dim")
    done = call(*base, "--published", "asasr-div2k-val", "--json", folders / "out.json")
    assert done.code == 0, done.err
    report = json.loads((folders / "out.json").read_text())
    assert report["dataset"] == "ASASR DIV2K-Val"
    assert list(report["metrics"]) == [*("psnr_y", "ssim_y", "lpips", "dists", "maniqa", "musiq", "clipiqa+"), "lsd"]
    assert [table["crop"] for table in report["methods"]] == [0, 0]
    lines = done.out.splitlines()
    assert any(line.startswith("ASASR ") and line.endswith("published, Tab. 1") for line in lines)
    assert any("scored here: 56x48" in line for line in lines)
    assert any(line.startswith("note: asasr: PSNR and SSIM on Y, whole images") for line in lines)
    own = call(*base, "--published", "asasr-div2k-val", "--crop", "4", "--metrics", "psnr_y", "--json", "-")
    assert json.loads(own.out)["methods"][0]["mean"] == {"psnr_y": pytest.approx(mean(folders, "noisy"))}


def test_spectra_of_folders(folders: Path) -> None:
    base = ("evaluate", "--gt", folders / "gt", "--sr", folders / "noisy", "--sr", folders / "dim", "--metrics", "lsd")
    done = call(*base, "--spectra", folders / "spectra.png")
    assert done.code == 0, done.err
    with Image.open(folders / "spectra.png") as drawn:
        assert drawn.size == (900, 760)
    means = {line.split()[0]: line.split()[1] for line in done.out.splitlines() if line.startswith(("noisy", "dim"))}
    table = done.out[done.out.index("below 1/8") :].splitlines()
    for name in ("noisy", "dim"):
        line = next(line for line in table if line.startswith(name))
        assert float(line.split()[1]) == pytest.approx(float(means[name]), abs=0.01), "the same distance as in the table above"
    assert call(*base, "--spectra", "s.jpg").code == 1
    alone = call("evaluate", "--model", "bicubic", "--lq", folders / "gt", "--gt", folders / "gt", "--spectra", "s.png")
    assert "--spectra: expected folders, --sr with --gt" in alone.errors[0]


def test_published_numbers_by_themselves() -> None:
    listed = call("published").out.splitlines()
    measured = {"ASASR COCO": "evaluate-task detection", "ASASR efficiency": "bench multi-step"}
    measured |= {"ASASR user study": "user-study read", "DP2O-SR best and worst of M": "study"}
    for name, command in measured.items():
        (line,) = (line for line in listed if line.startswith(name))
        assert line.removeprefix(name).split()[: len(command.split())] == command.split()
    done = call("published", "asasr-efficiency")
    assert done.out.splitlines()[3].split() == ["ASASR", "19.60", "33.02", "96.2", "2.85", "46.6", "Tab.", "5"]
    assert "not measured here" in done.out
    facts = json.loads(call("published", "asasr-backbones", "--json").out)
    assert facts["rows"][3]["method"] == "SDXL, +SSR+AMG"
    assert facts["rows"][3]["scores"]["psnr_y"] == {"value": 19.92, "decimals": 2, "table": "Tab. 6", "spread": None}
    assert "ASASR old films" in [each["name"] for each in json.loads(call("published", "--json").out)]
    wrong = call("published", "realsr")
    assert wrong.code == 1 and "there are ASASR RealSR, DP2O-SR RealSR, StrSR RealSR" in wrong.errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gt", "gt", "--sr", "dim", "--published", "asasr-coco"), "`alignsr evaluate-task detection` measures it"),
        (("--gt", "gt", "--sr", "dim", "--metrics", "aesop,asasr"), "expected protocols that leave out one border"),
        (("--gt", "gt"), "either --sr DIR, or --model NAME with --lq DIR, got neither"),
        (("--gt", "gt", "--sr", "dim", "--model", "bicubic"), "either --sr DIR, or --model NAME with --lq DIR, got both"),
        (("--gt", "gt", "--model", "bicubic"), "got --model bicubic without --lq"),
        (("--gt", "gt", "--sr", "dim", "--sr", "dim"), "got dim twice; write --sr NAME=DIR"),
        (("--gt", "gt", "--sr", "dim", "--published", "Set15"), "'Set15'; there are Set14, Manga109"),
        (("--gt", "gt", "--sr", "dim", "--metrics", "aesp"), "did you mean 'aesop'?"),
        (("--gt", "gt", "--sr", "dim", "--quarters", "psnr_y"), "in_quarters: expected metrics without reference"),
        (("--gt", "gt", "--sr", "dim", "--picture", "p.jpg"), "--picture: expected the name of a PNG file, got p.jpg"),
        (("--sr", "dim", "--picture", "p.png"), "--picture: expected --gt DIR"),
        (("--gt", "gt", "--sr", "x=nowhere"), "sr: expected a folder of images at nowhere, found none"),
    ],
)
def test_one_clear_line_for_each_mistake(
    arguments: tuple[str, ...], message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    done = call("evaluate", *arguments)
    assert done.code == 1
    assert len(done.errors) == 1
    assert message in done.errors[0]


def test_unmatched_partners_are_counted(folders: Path) -> None:
    make_pictures(folders / "more", 7)
    alone = call("evaluate", "--gt", folders / "gt", "--sr", folders / "more")
    assert "got none for 7 of 7: " in alone.errors[0]
    assert " and 2 more; names must agree" in alone.errors[0]
    (folders / "dim" / "p1.png").unlink()
    assert "got none for 1 of 2: p1; restore" in call("evaluate", "--gt", folders / "gt", "--sr", folders / "dim").errors[0]
