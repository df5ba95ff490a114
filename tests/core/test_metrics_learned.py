"""The pyiqa adapters with random weights: no network, one clear error, no trap of the wrapped code reaches the caller."""

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignsr.core.compat import import_third_party, import_torchvision
from alignsr.core.metrics import (
    METRICS,
    LearnedMetric,
    MissingWeightsError,
    SetDistance,
    available,
    frechet_distance,
    patches,
    require_available,
    score,
    score_many,
)
from alignsr.core.metrics.adapter import build_network, center_crop_to_multiple
from alignsr.core.metrics.offline import no_downloads
from reference.formula import S, U

LEARNED = [name for name, spec in METRICS.items() if spec.weights]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a metric tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty weight folders; the path is torch hub's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(import_third_party("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hf"))
    for folder in ("pyiqa", "checkpoints", "clip"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def musiq() -> Iterator[LearnedMetric]:
    yield LearnedMetric(METRICS["musiq"], build_network(METRICS["musiq"], "cpu", pretrained=False))


def batch(height: int = 64, width: int = 80) -> tuple[Tensor, Tensor]:
    gt = U("learned/gt", 2, 3, height, width)
    return (gt + 0.2 * S("learned/sr", 2, 3, height, width)).clamp(0, 1), gt


@pytest.mark.parametrize("name", LEARNED)
def test_missing_weights_are_one_error_that_names_every_file_and_where_it_goes(name: str, cache: Path) -> None:
    sr, gt = batch()
    spec = METRICS[name]
    lines = available(name)
    assert len(lines) >= len(spec.weights)
    with pytest.raises(MissingWeightsError) as caught:
        SetDistance.load(spec) if spec.kind == "set" else score(name, sr, gt)
    assert isinstance(caught.value, FileNotFoundError)
    text = str(caught.value)
    for file in spec.weights:
        assert any(known in text for known in file.names)
        assert file.source in text
    assert str(cache.parent) in text
    assert name in text


def test_many_metrics_fail_together_before_the_first_is_computed(cache: Path) -> None:
    done: list[str] = []
    with pytest.raises(MissingWeightsError) as caught:
        score_many(["psnr_y", "lpips", "musiq"], *batch(), scale=4, on_metric=lambda _, __, name: done.append(name))
    assert done == []
    assert {"lpips", "musiq"} <= set(caught.value.metric.split(", "))
    assert len(caught.value.missing) == 3
    require_available(["psnr_y", "ssim_y"])


def test_a_download_that_starts_anyway_becomes_the_same_error(cache: Path) -> None:
    for name, file in (
        ("lpips", "alexnet"),
        ("clipiqa", "RN50.pt"),
        ("topiq_iaa", "swin_base"),
        ("maniqa", "locate the file on the Hub"),
    ):
        with pytest.raises(MissingWeightsError, match=file):
            build_network(METRICS[name], "cpu")
    assert not list((cache / "clip").iterdir())


def test_a_clip_file_with_a_wrong_checksum_is_left_alone(cache: Path) -> None:
    (cache / "clip" / "RN50.pt").write_bytes(b"not it")
    assert available("clipiqa") == []
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(MissingWeightsError, match="wrong checksum"):
        score("clipiqa", *batch())
    assert (cache / "clip" / "RN50.pt").read_bytes() == b"not it"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("icecream" in line and "pip install" in line for line in available("qalign"))


def test_lpips_reads_the_files_where_the_error_says(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alexnet = import_torchvision().models.alexnet(weights=None)
    torch.save(alexnet.state_dict(), cache / "checkpoints" / "alexnet-owt-7be5be79.pth")
    heads = {f"lin{i}.model.1.weight": U(f"lpips/{i}", 1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, cache / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth")
    assert available("lpips") == []
    before = torch.get_rng_state()
    metric = LearnedMetric.load(METRICS["lpips"])
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""
    sr, gt = batch()
    values = metric(sr, gt)
    assert values.shape == (2,)
    assert values.dtype == torch.float64
    assert bool((values > 0).all())
    assert metric(gt, gt).tolist() == [0.0, 0.0]
    assert torch.allclose(values, torch.cat([metric(sr[i : i + 1], gt[i : i + 1]) for i in range(2)]), atol=1e-6)
    with pytest.raises(ValueError, match="gt: expected a reference image for lpips"):
        metric(sr)


def test_niqe_takes_any_batch_and_says_which_size_it_needs(cache: Path) -> None:
    mix = S("niqe/mix", 36, 36, dtype=torch.float64).numpy()
    model = {"mu_prisparam": U("niqe/mean", 1, 36).numpy(), "cov_prisparam": mix @ mix.T + np.eye(36)}
    import_third_party("scipy.io").savemat(cache / "pyiqa" / "niqe_modelparameters.mat", model)
    metric = LearnedMetric.load(METRICS["niqe"])
    values = metric(U("niqe/image", 2, 1, 192, 200))
    assert values.shape == (2,)
    assert bool(torch.isfinite(values).all())
    with pytest.raises(ValueError, match="at least 192x192 pixels for niqe, got 96x200"):
        metric(torch.zeros(1, 3, 96, 200))


class Counting(nn.Module):
    """A feature network that notes how many pictures it saw."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: Tensor) -> Any:
        self.seen += len(x)
        return self.inner(x)


@pytest.mark.parametrize(("name", "part"), [("topiq_fr", "semantic_model"), ("lpips", "net")])
def test_a_shared_reference_is_looked_at_once(name: str, part: str, cache: Path) -> None:
    if name == "lpips":
        torch.save(
            import_torchvision().models.alexnet(weights=None).state_dict(), cache / "checkpoints" / "alexnet-owt-7be5be79.pth"
        )
    network = build_network(METRICS[name], "cpu", pretrained=False)
    counting = Counting(getattr(network.net, part))  # pyright: ignore[reportArgumentType]
    setattr(network.net, part, counting)
    metric = LearnedMetric(METRICS[name], network)
    sr, gt = batch()
    sr = torch.cat([sr, sr.flip(-1)])
    shared = gt[:1].expand(4, -1, -1, -1)
    together = metric(sr, shared)
    assert counting.seen == 4 + 1
    again = metric(sr[:2].contiguous(), shared[:2])
    assert counting.seen == 5 + 2, "the next batch of the same picture"
    assert torch.allclose(again, together[:2], atol=1e-5)
    alone = torch.cat([metric(sr[i : i + 1], gt[:1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5) and len(set(together.tolist())) == 4
    mixed = torch.cat([gt, gt])
    assert torch.allclose(metric(sr, mixed)[2:], metric(sr[2:], gt), atol=1e-5), "references of their own"


@pytest.mark.parametrize("name", ["topiq_nr", "topiq_fr"])
def test_topiq_scores_a_batch(name: str) -> None:
    metric = LearnedMetric(METRICS[name], build_network(METRICS[name], "cpu", pretrained=False))
    values = metric(*batch())
    assert values.shape == (2,)
    assert bool(torch.isfinite(values).all())
    assert values[0] != values[1]


def test_what_is_scored_is_the_eight_bit_rgb_image(musiq: LearnedMetric) -> None:
    _, gt = batch()
    rounded = (gt * 255).round() / 255
    assert torch.equal(musiq(gt), musiq(rounded))
    assert not torch.equal(musiq(gt, quantize=False), musiq(rounded, quantize=False))
    grey = gt[:, :1]
    assert torch.equal(musiq(grey), musiq(grey.repeat(1, 3, 1, 1)))
    assert torch.equal(musiq(torch.cat([gt, grey], dim=1)), musiq(gt))


class FakeClip(nn.Module):
    """Stands in for A-FINE's fine-tuned CLIP: a patch embedding whose output serves as all twelve feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 768, 32, 32)

    def encode_image(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        return tokens.mean(1), [tokens * (1 + 0.1 * layer) for layer in range(12)]


@pytest.fixture
def afine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, LearnedMetric]:
    """pyiqa's A-FINE with random heads on a small network in place of CLIP."""
    arch: Any = import_third_party("pyiqa.archs.afine_arch")
    clip = FakeClip()
    monkeypatch.setattr(arch, "load", lambda *_, **__: (clip, None))
    parts = {"natural": arch.AFINEQhead(), "fidelity": arch.AFINEDhead(), "adapter": arch.AFINELearnLambda()}
    parts |= {
        "fidelity_scale": arch.AFINENLM_FR_Fit_with_limit(),
        "natural_scale": arch.AFINENLM_NR_Fit(),
        "finetuned_clip": clip,
    }
    torch.save({key: part.state_dict() for key, part in parts.items()}, cache / "pyiqa" / "afine.pth")
    names = ("afine_fr", "afine_nr")
    return {name: LearnedMetric(METRICS[name], build_network(METRICS[name], "cpu")) for name in names}


def test_afine_leaves_nothing_behind_for_the_metric_after_it(afine: dict[str, LearnedMetric], musiq: LearnedMetric) -> None:
    sr, gt = batch()
    alone, copies = musiq(sr), (sr.clone(), gt.clone())
    for metric in afine.values():
        metric(sr, gt)
        metric(sr, gt, quantize=False)
    assert torch.equal(sr, copies[0])
    assert torch.equal(gt, copies[1])
    assert torch.equal(musiq(sr), alone)
    unguarded = sr[:1, :, :64, :64].clone()  # the trap is really there: without our copies the input is overwritten
    afine["afine_nr"].network.network(unguarded)
    assert not torch.equal(unguarded, sr[:1, :, :64, :64])


@pytest.mark.parametrize("name", ["afine_fr", "afine_nr"])
def test_afine_of_a_batch_is_that_of_each_picture_by_pyiqas_own_forward(name: str, afine: dict[str, LearnedMetric]) -> None:
    sr = torch.cat([batch()[0], batch()[0].flip(-1)])[..., :64, :64]
    other, shared = batch()[1].repeat(2, 1, 1, 1)[..., :64, :64], batch()[1][:1, :, :64, :64].expand(4, -1, -1, -1)
    for gt in (other, shared):
        single = afine[name].network.network
        with torch.no_grad():
            theirs = [single(x.clone(), y.clone()) for x, y in zip(sr.split(1), gt.split(1), strict=True)]
        ours = afine[name](sr, gt, quantize=False)
        assert torch.allclose(ours, torch.cat([value.reshape(1) for value in theirs]).double(), atol=1e-6)
    assert len(set(ours.tolist())) == 4


@pytest.mark.parametrize("name", ["afine_fr", "afine_nr"])
def test_afine_takes_batches_and_sizes_that_are_no_multiple_of_32(name: str, afine: dict[str, LearnedMetric]) -> None:
    sr, gt = batch(70, 101)
    values = afine[name](sr, gt)
    assert values.shape == (2,)
    assert torch.allclose(values[1:], afine[name](sr[1:], gt[1:]))
    cut = [image[..., 3:67, 2:98] for image in (sr, gt)]
    assert torch.allclose(values, afine[name](*cut))
    with pytest.raises(ValueError, match=f"at least 32x32 pixels for {name}, got 31x40"):
        afine[name](torch.zeros(1, 3, 31, 40), torch.zeros(1, 3, 31, 40))


def test_centre_crop() -> None:
    image = torch.arange(35.0).view(1, 1, 5, 7)
    assert center_crop_to_multiple(image, 2)[0, 0].tolist() == image[0, 0, 0:4, 0:6].tolist()
    assert center_crop_to_multiple(image, 3)[0, 0].tolist() == image[0, 0, 1:4, 0:6].tolist()
    assert torch.equal(center_crop_to_multiple(image, 1), image)


def test_directions_ranges_and_names_are_those_of_pyiqa() -> None:
    configs = import_third_party("pyiqa.default_model_configs").DEFAULT_CONFIGS
    for name in LEARNED:
        spec, theirs = METRICS[name], configs[METRICS[name].pyiqa_name]
        assert spec.higher_is_better != theirs.get("lower_better", False), name
        low, high = (float(part.strip().removeprefix("~") or "inf") for part in theirs["score_range"].split(","))
        assert (low, high) == spec.range, name
        if spec.kind == "learned":
            assert spec.needs_reference == (theirs["metric_mode"] == "FR"), name


def test_weight_files_are_those_that_pyiqa_asks_for() -> None:
    import_third_party("pyiqa")
    folder = Path(str(import_third_party("pyiqa.archs").__file__)).parent
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
    timm = import_third_party("timm")
    torchvision_models = import_torchvision().models
    urls = {torchvision_models.AlexNet_Weights.IMAGENET1K_V1.url, torchvision_models.VGG16_Weights.IMAGENET1K_V1.url}
    hubs = {timm.models.get_pretrained_cfg(name).hf_hub_id for name in ("vit_base_patch8_224", "inception_resnet_v2")}
    for name in LEARNED:
        for file in METRICS[name].weights:
            if file.folder == "hub":
                assert file.source in hubs or f"'{file.source}'" in source, file
            else:
                assert unquote(file.names[0]) in source or file.source in urls, file
            if file.sha256:
                assert file.source in source, file


def test_a_file_under_the_name_of_the_table_is_found_by_pyiqa(cache: Path) -> None:
    """Also where its address has escapes: pyiqa takes the name from the address as it is."""
    download = import_third_party("pyiqa.utils.download_util")
    for name in LEARNED:
        for file in (file for file in METRICS[name].weights if file.folder == "pyiqa"):
            (cache / "pyiqa" / file.names[0]).touch()
            with no_downloads(name):
                assert Path(download.load_file_from_url(file.source)) == cache / "pyiqa" / file.names[0]


def test_frechet_distance_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # mean (1, 1), covariance 4/3 I
    b = torch.tensor([[3.0, 1.0], [5.0, 1.0], [3.0, 3.0], [5.0, 3.0]])  # mean (4, 2), the same covariance
    assert frechet_distance(a, b) == pytest.approx(10.0, abs=1e-9)
    assert frechet_distance(a, 2 * a) == pytest.approx(2.0 + 2 * (4 / 3) * (1 - 2) ** 2, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("count_a", "count_b", "dimensions"), [(5, 7, 12), (40, 30, 8), (6, 40, 8)])
def test_frechet_distance_agrees_with_the_matrix_square_root(count_a: int, count_b: int, dimensions: int) -> None:
    a = S("frechet/a", count_a, dimensions, dtype=torch.float64)
    b = S("frechet/b", count_b, dimensions, dtype=torch.float64) * 0.7 + 0.2
    c_a, c_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(c_a @ c_b).real.clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + c_a.trace() + c_b.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)


@pytest.mark.parametrize(("height", "width", "count"), [(600, 900, 6), (299, 299, 1), (256, 400, 1), (100, 100, 1)])
def test_patches_of_pfid(height: int, width: int, count: int) -> None:
    image = U("patches", 1, 3, height, width)
    tiles = patches(image)
    assert tiles.shape == (count, 3, 299, 299)
    h, w = min(height, 299), min(width, 299)
    assert torch.equal(tiles[0, :, :h, :w], image[0, :, :h, :w])
    assert not tiles[0, :, h:].any()
    if count == 6:
        assert torch.equal(tiles[4], image[0, :, 299:598, 299:598])


@pytest.mark.parametrize("name", ["fid", "pfid"])
def test_set_distance_of_a_set_with_itself_is_zero_and_grows_with_blur(name: str) -> None:
    filters = S("fid/filters", 16, 3, 23, 23)

    def network(x: Tensor) -> list[Tensor]:
        assert x.shape[1:] == (3, 299, 299)
        assert x.min() >= -1
        assert x.max() <= 1
        return [torch.conv2d(x, filters, stride=23).abs().amax((2, 3), keepdim=True)]

    images = [U(f"fid/{i}", 1, 3, 310, 330) * (0.5 + i / 12) for i in range(6)]
    distances: list[float] = []
    for blend in (0.0, 0.3, 0.9):
        distance = SetDistance(METRICS[name], network)
        for image in images:
            distance.update(blend * image.mean() + (1 - blend) * image, image)
        distances.append(distance.result())
    assert abs(distances[0]) < 1e-3
    assert distances[0] < distances[1] < distances[2]
    with pytest.raises(ValueError, match="at least two images"):
        SetDistance(METRICS[name], network).result()


def test_fid_reads_pyiqas_inception(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inception(nn.Module):
        def __init__(self, output_blocks: Any) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[:, :, :3, :3].mean((2, 3), keepdim=True)]

    real = import_third_party("pyiqa.archs.fid_arch").InceptionV3
    monkeypatch.setattr(real, "__new__", lambda cls, output_blocks: Inception(output_blocks))
    (cache / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth").touch()
    distance = SetDistance.load(METRICS["fid"])
    distance.update(U("fid/in", 3, 1, 40, 30), U("fid/in", 3, 1, 40, 30))
    assert math.isclose(distance.result(), 0.0, abs_tol=1e-6)
