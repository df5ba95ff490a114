"""What nodes do with pictures of every kind, under inference mode as in ComfyUI: nothing changed, lost or half-written."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from node_helpers import picture, save_tiny_network, save_tiny_pixel
from PIL import Image

from alignsr.core import batch
from alignsr.core.metrics import MissingWeightsError, score
from alignsr.core.spectral_view import SpectralComparison
from alignsr.core.weights import MissingModelError
from alignsr.nodes import NODE_CLASS_MAPPINGS
from alignsr.nodes import score as score_module
from alignsr.nodes.host import Interrupted, LocalHost, use_host


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_network(folder / "net.safetensors")
    save_tiny_pixel(folder / "pix.safetensors")
    return folder


@pytest.fixture
def host(models, tmp_path):
    """A local host whose folders are temporary, in inference mode."""
    events = []
    local = LocalHost(
        output_dir=tmp_path / "out",
        input_dirs=[tmp_path],
        models_dirs=[models],
        on_progress=lambda value, total, desc, preview: events.append((value, total, desc, preview)),
    )
    local.events = events
    with use_host(local), torch.inference_mode():
        yield local


def call(node_id: str, **inputs):
    node = NODE_CLASS_MAPPINGS[f"AlignSR{node_id}"]
    return getattr(node(), node.FUNCTION)(**inputs)


def load(name="net.safetensors", **options):
    return call("LoadSRModel", model_name=name, **options)[0]


# Load SR Model


def test_models_are_listed_when_asked(host, models):
    listed = NODE_CLASS_MAPPINGS["AlignSRLoadSRModel"].INPUT_TYPES()["required"]["model_name"][0]
    assert {"net.safetensors", "pix.safetensors"} <= set(listed)
    late = save_tiny_network(models / "late.safetensors")
    try:
        assert "late.safetensors" in NODE_CLASS_MAPPINGS["AlignSRLoadSRModel"].INPUT_TYPES()["required"]["model_name"][0]
    finally:
        late.unlink()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_are_frozen_and_no_inference_tensors(host, precision):
    model = load(precision=precision)
    for _, module in model.backbone.modules():
        for parameter in module.parameters():
            assert not parameter.is_inference() and not parameter.requires_grad
            assert parameter.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_a_replaced_file_counts_as_changed(host, models):
    node = NODE_CLASS_MAPPINGS["AlignSRLoadSRModel"]
    path = save_tiny_network(models / "changing.safetensors")
    before = node.IS_CHANGED("changing.safetensors", "fp32", "auto")
    save_tiny_network(path, scale=2)
    assert node.IS_CHANGED("changing.safetensors", "fp32", "auto") != before
    path.unlink()


def test_missing_model_names_the_place(host, models):
    with pytest.raises(MissingModelError, match=r"^model_name: .*no 'absent'"):
        load("absent")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_name": "broken.safetensors"}, r"^model_name: .*broken.safetensors: expected a safetensors file, got 6 bytes"),
        ({"precision": "fp8"}, "^precision: expected one of fp32"),
        ({"device": "tpu"}, "^device: expected one of auto"),
    ],
)
def test_load_errors_name_the_input(host, models, change, text):
    (models / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=text):
        call("LoadSRModel", **{"model_name": "net.safetensors"} | change)
    (models / "broken.safetensors").unlink()


def test_loading_is_shown_while_it_lasts(host, caplog):
    caplog.set_level("INFO", "alignsr")
    load("pix.safetensors")
    assert [event[:3] for event in host.events] == [(0, 1, "loading pix.safetensors"), (1, 1, "loading pix.safetensors")]
    assert "loading pix.safetensors ..." in caplog.text


# One-Step SR


@pytest.mark.parametrize("name", ["net.safetensors", "pix.safetensors"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 12)])
def test_any_size_and_channels(host, name, channels, size):
    image = picture(2, *size, channels)
    kept = image.clone()
    sr, enlarged, info = call("OneStepSR", model=load(name), image=image, scale=4)
    assert sr.shape == enlarged.shape == (2, size[0] * 4, size[1] * 4, channels)
    assert sr.dtype == torch.float32 and sr.device.type == "cpu" and sr.is_contiguous()
    assert float(sr.min()) >= 0 and float(sr.max()) <= 1
    assert torch.equal(image, kept)
    assert json.loads(info)["model_file"] == name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_number_formats_and_strides(host, dtype):
    image = picture(1, 8, 8).to(dtype).transpose(1, 2)
    sr, *_ = call("OneStepSR", model=load(), image=image, scale=4)
    assert sr.dtype == torch.float32 and sr.shape == (1, 32, 32, 3)


def test_alpha_is_enlarged_and_leaves_colours_alone(host):
    image = picture(1, 8, 8, 4)
    image[..., 3] = torch.linspace(0, 1, 8)
    sr, *_ = call("OneStepSR", model=load(), image=image, scale=4)
    plain, *_ = call("OneStepSR", model=load(), image=image[..., :3], scale=4)
    assert torch.equal(sr[..., :3], plain)
    columns = sr[0, 0, :, 3]
    assert bool((columns.diff() >= -1e-6).all()) and float(columns[0]) < 0.05 and float(columns[-1]) > 0.95


def test_samples_do_not_influence_each_other(host):
    images = picture(3, 8, 8)
    together, *_ = call("OneStepSR", model=load(), image=images, scale=4)
    alone, *_ = call("OneStepSR", model=load(), image=images[1:2], scale=4)
    assert torch.allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(("name", "tile"), [("net.safetensors", 64), ("pix.safetensors", 64)])
def test_tiles_make_one_bar_over_all_pictures(host, name, tile):
    model = load(name)
    host.events.clear()
    call("OneStepSR", model=model, image=picture(2, 70, 40), scale=2, tile_px=tile, overlap_px=16)
    values, totals = [event[0] for event in host.events], {event[1] for event in host.events}
    assert len(totals) == 1 and values == sorted(values) and values[-1] == totals.pop()


def test_strength_zero_is_the_enlarged_input(host):
    for name in ("net.safetensors", "pix.safetensors"):
        sr, enlarged, _ = call("OneStepSR", model=load(name), image=picture(), scale=4, strength=0.0)
        assert torch.allclose(sr, enlarged, atol=1e-5)


def test_out_of_memory_halves_the_tile_aloud(host, monkeypatch, caplog):
    tried = []
    real = batch.restore

    def small_only(*args, tile_px, **options):
        tried.append(tile_px)
        if not 0 < tile_px <= 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, tile_px=tile_px, **options)

    monkeypatch.setattr(batch, "restore", small_only)
    sr, _, info = call("OneStepSR", model=load(), image=picture(1, 150, 20), scale=1)
    assert tried == [0, 75] and sr.shape == (1, 150, 20, 3)
    assert json.loads(info)["tile_px"] == 75
    assert "150" in caplog.text and "75" in caplog.text


@pytest.mark.parametrize("name", ["net.safetensors", "pix.safetensors"])
def test_cancel_is_noticed_within_a_tile(host, name, monkeypatch):
    """Of ten tiles only the one that runs is finished; a wish from before the node costs none."""
    model, passes = load(name), []
    network = dict(model.backbone.modules())["network"]

    def cancel_in_the_second(*_):
        passes.append(1)
        if len(passes) == 2:
            host.cancel()

    network.register_forward_hook(cancel_in_the_second)
    job = {"model": model, "image": picture(1, 400, 20), "scale": 1, "tile_px": 48, "overlap_px": 8}
    with pytest.raises(Interrupted):
        call("OneStepSR", **job)
    assert len(passes) == 2
    with pytest.raises(Interrupted):
        call("OneStepSR", **job)
    assert len(passes) == 2
    host.clear_cancel()


def test_cancel_is_noticed_between_tries(host, monkeypatch):
    tried = []

    def no_memory(*_, tile_px, **__):
        tried.append(tile_px)
        host.cancel()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch, "restore", no_memory)
    with pytest.raises(Interrupted):
        call("OneStepSR", model=load(), image=picture(1, 300, 20), scale=1)
    assert tried == [0]
    host.clear_cancel()


BAD = {
    "nan": (lambda: torch.full((1, 4, 4, 3), math.nan), ValueError, "NaN"),
    "two channels": (lambda: torch.rand(1, 4, 4, 2), ValueError, r"got \(1, 4, 4, 2\)"),
    "five channels": (lambda: torch.rand(1, 4, 4, 5), ValueError, r"got \(1, 4, 4, 5\)"),
    "channels first": (lambda: torch.rand(1, 3, 40, 40), ValueError, r"\[B, H, W, C\]"),
    "no pixels": (lambda: torch.rand(1, 0, 4, 3), ValueError, r"got \(1, 0, 4, 3\)"),
    "no tensor": (lambda: "photo.png", TypeError, "expected an IMAGE"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("node", ["OneStepSR", "Degrade", "ColorFix", "IQAReward", "Compare"])
def test_bad_pictures_are_refused_by_name(host, node, case):
    make, kind, text = BAD[case]
    bad, good = make(), picture()
    inputs = {
        "OneStepSR": {"model": load(), "image": bad, "scale": 4},
        "Degrade": {"image": bad, "preset": "bicubic", "seed": 0, "scale": 2},
        "ColorFix": {"image": good, "reference": bad},
        "IQAReward": {"images": [bad], "metrics": ["psnr_y"], "scale": [1], "reference": [good]},
        "Compare": {"result": bad, "input": good},
    }[node]
    name = {"ColorFix": "reference", "IQAReward": "images", "Compare": "result"}.get(node, "image")
    with pytest.raises(kind, match=rf"^{name}: .*{text}"):
        call(node, **inputs)


def test_no_input_is_changed(host):
    """What comes in lies in the cache of earlier nodes: pictures and weights must be the same bits afterwards."""
    model = load()
    text = json.dumps({"metrics": {}, "images": []})
    calls = {
        "OneStepSR": {"model": model, "image": picture(2, channels=4), "scale": 4, "color_fix": "adain"},
        "Degrade": {"image": picture(2, 24, 24, 4), "preset": "realesrgan", "seed": 0, "scale": 4},
        "ColorFix": {"image": picture(2, channels=1), "reference": picture(1)},
        "IQAReward": {
            "images": [picture(2, 24, 24)],
            "metrics": ["psnr_y, ssim_rgb, lsd"],
            "scale": [1],
            "reference": [picture(1, 24, 24, seed=1)],
        },
        "Compare": {"result": picture(), "input": picture(), "reference": picture(seed=1)},
        "Spectrum": {"image": picture(), "reference": picture(seed=1), "input": picture(1, 5, 5)},
        "SaveReport": {"scores": [text], "filename_prefix": ["r"], "pictures": [picture(1, channels=4)]},
    }
    weights = {name: value.clone() for name, value in dict(model.backbone.modules())["network"].state_dict().items()}
    for node, inputs in calls.items():
        tensors = [
            value
            for item in inputs.values()
            for value in (item if isinstance(item, list) else [item])
            if isinstance(value, torch.Tensor)
        ]
        kept = [tensor.clone() for tensor in tensors]
        call(node, **inputs)
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True)), node
    after = dict(model.backbone.modules())["network"].state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


# Degrade


@pytest.mark.parametrize("preset", ["realesrgan", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_degrade_keeps_channels_and_fits_the_target(host, preset, channels):
    image = picture(2, 43, 34, channels)
    kept = image.clone()
    lq, gt, params = call("Degrade", image=image, preset=preset, seed=5, scale=4)
    assert lq.shape == (2, 10, 8, channels) and gt.shape == (2, 40, 32, channels)
    assert len(json.loads(params)) == 2
    assert torch.equal(image, kept)


def test_degrade_depends_on_the_seed_of_each_picture_only(host):
    images = picture(3, 32, 32)
    together, *_ = call("Degrade", image=images, preset="realesrgan", seed=10, scale=4)
    alone, *_ = call("Degrade", image=images[2:], preset="realesrgan", seed=12, scale=4)
    other, *_ = call("Degrade", image=images[2:], preset="realesrgan", seed=13, scale=4)
    assert torch.equal(together[2:], alone) and not torch.equal(alone, other)


def test_degrade_target(host):
    image = picture(1, 32, 32)
    gts = {
        target: call("Degrade", image=image, preset="realesrgan", seed=0, scale=4, target=target)[1]
        for target in ("as preset", "plain", "sharpened")
    }
    assert torch.equal(gts["plain"], image)
    assert torch.equal(gts["as preset"], gts["sharpened"]) and not torch.equal(gts["sharpened"], image)


def test_the_largest_seed_works(host):
    call("Degrade", image=picture(2, 16, 16), preset="realesrgan", seed=2**64 - 1, scale=4)


# Colour Fix


def test_color_fix_takes_the_mean_from_a_small_reference(host):
    image, reference = picture(2, 48, 40), picture(1, 12, 10, seed=1)
    (fixed,) = call("ColorFix", image=image, reference=reference, method="adain")
    assert fixed.shape == image.shape
    assert abs(float(fixed.mean() - reference.mean())) < 0.5 * abs(float(image.mean() - reference.mean()))
    (same,) = call("ColorFix", image=image, reference=reference, method="none")
    assert torch.equal(same, image)


# IQA Reward


def test_scores_are_those_of_the_core_and_the_best_candidate_wins(host):
    gt = picture(1, 24, 24)
    noise = torch.randn(3, 24, 24, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.1, 0.02, 0.05]).view(
        3, 1, 1, 1
    )
    candidates = (gt + noise).clamp(0, 1)
    scores, rewards, table, sheet = call("IQAReward", images=[candidates], metrics=["psnr_y ssim_y"], scale=[2], reference=[gt])
    record = json.loads(scores)
    found = [entry["scores"]["psnr_y"] for entry in record["images"]]
    wanted = score("psnr_y", candidates.movedim(-1, 1), gt.movedim(-1, 1).expand(3, -1, -1, -1), scale=2)
    assert found == pytest.approx(wanted.tolist(), abs=1e-9)
    assert rewards == [entry["reward"] for entry in record["images"]]
    assert rewards[1] == 1.0 and rewards[0] == 0.0 and 0 < rewards[2] < 1
    assert "PSNR (Y)" in table and "mean" in table
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3


def test_list_elements_are_groups_of_their_own_with_names(host):
    images = [picture(1, 16, 16), picture(2, 12, 20, seed=3)]
    scores, rewards, *_ = call(
        "IQAReward", images=images, metrics=["psnr_rgb"], scale=[1], reference=images, names=["a", "sub/b"]
    )
    record = json.loads(scores)
    assert [entry["name"] for entry in record["images"]] == ["a", "sub/b 1", "sub/b 2"]
    assert rewards == [0.5, 0.5, 0.5] and record["mean"]["psnr_rgb"] == 80.0


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ({"metrics": ["psnr"]}, ValueError, "^metrics: .*did you mean"),
        ({"metrics": [" , "]}, ValueError, "^metrics: expected at least one name"),
        ({"metrics": ["psnr_y"]}, ValueError, "^reference: expected ground truth for psnr_y"),
        ({"metrics": ["lr_psnr"]}, ValueError, "^lq: expected"),
        (
            {"metrics": ["psnr_y"], "reference": [picture(1, 9, 9)]},
            ValueError,
            "^reference: expected the size of the images 10x12, got 9x9",
        ),
        ({"metrics": ["psnr_y"], "reference": [picture(3)]}, ValueError, "^reference: expected 1 or 2 images"),
        ({"metrics": ["psnr_y"], "reference": [picture()], "weights": ["psnr_y"]}, ValueError, "^weights: expected name=number"),
        ({"metrics": ["fid"], "reference": [picture()]}, ValueError, "^metrics: expected metrics of single images"),
        (
            {"metrics": ["lpips, musiq"], "reference": [picture()]},
            MissingWeightsError,
            r"(?s)^metrics: lpips, musiq: .*nothing was downloaded",
        ),
        ({"metrics": ["ssim_y"], "reference": [picture()]}, ValueError, "^images: expected at least 11 pixels per side"),
        ({"metrics": ["lr_psnr"], "lq": [picture()], "scale": [4]}, ValueError, "^images: expected 48x40"),
        ({"metrics": ["psnr_y"], "reference": [picture()], "scale": [5]}, ValueError, "^images: expected more than 10 pixels"),
        (
            {"metrics": ["psnr_y"], "reference": [picture()], "weights": ["ssim_y=1"]},
            ValueError,
            "^weights: expected one weight for each of",
        ),
    ],
)
def test_reward_refusals(host, inputs, error, text, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(error, match=text):
        call("IQAReward", **{"images": [picture(2)], "scale": [1]} | inputs)


def test_weights_change_the_reward(host):
    gt = picture(1, 24, 24)
    first = (gt + 0.03).clamp(0, 1)  # right structure, wrong light
    second = (gt + 0.02 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    batch = torch.cat((first, second))
    options = {"images": [batch], "metrics": ["psnr_y, ssim_y"], "scale": [1], "reference": [gt]}
    by_ssim = call("IQAReward", **options, weights=["psnr_y=0, ssim_y=1"])[1]
    by_psnr = call("IQAReward", **options, weights=["psnr_y=1, ssim_y=0"])[1]
    assert by_ssim == [1.0, 0.0] and by_psnr == [0.0, 1.0]


def test_scoring_is_cancelled_between_pictures(host, monkeypatch):
    """A batch may take minutes with a learned metric: after the wish to stop, the picture in work is the last one."""
    scored = []

    class Slow(score_module.Scorer):
        def __call__(self, sr, gt=None, **options):
            scored.append(sr.shape[0])
            if len(scored) == 2:
                host.cancel()
            return super().__call__(sr, gt, **options)

    monkeypatch.setattr(score_module, "Scorer", Slow)
    with pytest.raises(Interrupted):
        call("IQAReward", images=[picture(6)], metrics=["psnr_rgb, lsd"], scale=[1], reference=[picture()])
    assert scored == [1, 1]
    host.clear_cancel()


def test_scoring_makes_one_bar_over_pictures_and_metrics(host):
    call("IQAReward", images=[picture(2), picture(1)], metrics=["psnr_rgb, lsd"], scale=[1], reference=[picture()])
    assert [event[:2] for event in host.events] == [(value, 6) for value in range(1, 7)]


# Compare


def test_compare_makes_a_sheet_and_a_map_per_picture(host):
    sr, lq = picture(2, 64, 48), picture(2, 16, 12)
    sheets, heats, *_ = call("Compare", result=sr, input=lq, reference=sr, num_crops=1, panel_px=120)
    assert sheets.shape[0] == heats.shape[0] == 2
    without = call("Compare", result=sr, input=lq, num_crops=1, panel_px=120)[0]
    assert sheets.shape[2] > without.shape[2]


def test_methods_are_compared_on_one_sheet_and_scored_by_name(host):
    """Four results of one scene: a sheet of six panels, and a table with a row per method."""
    gt, lq = picture(1, 64, 48), picture(1, 16, 12)
    results = [(gt + shift).clamp(0, 1) for shift in (0.1, 0.0, 0.05, 0.2)]
    more = {f"result_{k}": result for k, result in enumerate(results[1:], start=2)}
    sheet, _, batch, titles = call(
        "Compare", result=results[0], input=lq, reference=gt, labels="input, LDL, (a), (b), (c), truth", panel_px=120, **more
    )
    assert sheet.shape[2] > 2 * call("Compare", result=results[0], input=lq, panel_px=120)[0].shape[2]
    assert torch.equal(batch, torch.cat(results)) and titles == "LDL\n(a)\n(b)\n(c)"
    scores, *_ = call("IQAReward", images=[batch], metrics=["psnr_y"], scale=[1], reference=[gt], names=[titles])
    found = {entry["name"]: entry["scores"]["psnr_y"] for entry in json.loads(scores)["images"]}
    assert list(found) == ["LDL", "(a)", "(b)", "(c)"] and sorted(found, key=found.get) == ["(c)", "LDL", "(b)", "(a)"]
    unnamed = call("Compare", result=results[0], input=lq, reference=gt, result_2=results[1], panel_px=120)[3]
    assert unnamed == "restored\nrestored 2"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"crop_centers": "a,b"}, "^crop_centers: expected pairs"),
        ({"crop_centers": "500,1"}, "^crop_centers: expected places inside 10x12"),
        ({"labels": "x"}, "^labels: expected 2 different titles"),
        ({"reference": picture(1, 9, 9)}, "^reference: expected the size"),
        ({"result_3": picture(1, 9, 9)}, "^result_3: expected the size of the result 10x12, got 9x9"),
        ({"result_2": picture(), "labels": "x, y"}, "^labels: expected 3 different titles"),
    ],
)
def test_compare_refusals(host, inputs, text):
    with pytest.raises(ValueError, match=text):
        call("Compare", **{"result": picture(), "input": picture()} | inputs)


# Spectrum


def test_spectrum_measures_half_amplitude_as_six_decibels(host):
    gt = picture(2, 72, 64)
    same = call("Spectrum", image=gt, reference=gt)
    half = call("Spectrum", image=gt / 2, reference=gt, input=picture(1, 18, 16))
    assert same[1] == 0.0 and half[1] == pytest.approx(20 * math.log10(2), abs=0.01)
    assert same[0].shape == (1, 540, 900, 3) and half[0].shape == (1, 760, 900, 3), "a second panel from two curves on"
    with pytest.raises(ValueError, match=r"^reference: expected the shape of image"):
        call("Spectrum", image=gt, reference=gt[:, :60])


def test_spectrum_of_several_methods_is_what_the_core_finds(host):
    gt = picture(2, 72, 64)
    inputs = {"image": gt / 2, "reference": gt, "image_2": gt, "image_4": gt / 4}
    _, distance, table, sheet = call("Spectrum", **inputs, labels="half\nsame, quarter")
    seen = SpectralComparison()
    for name, image in (("half", gt / 2), ("same", gt), ("quarter", gt / 4)):
        seen.add(name, image.movedim(-1, 1), gt.movedim(-1, 1))
    assert table == seen.to_text() and distance == seen.methods["half"].distance
    assert [line.split()[0] for line in table.splitlines()[2:6]] == ["half", "same", "quarter", "reference"]
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[2] > 300
    numbered = call("Spectrum", **inputs, input=picture(1, 18, 16))[2].splitlines()[2:6]
    assert [line[:15].strip() for line in numbered] == ["restored", "restored 2", "restored 3", "input (bicubic)"]
    for labels in ("one, two", "one, one, two", "one, two, reference", "one, two, input (bicubic)"):
        with pytest.raises(ValueError, match=r"^labels: expected 3 different names"):
            call("Spectrum", **inputs, labels=labels)
    with pytest.raises(ValueError, match=r"^image_3: expected the size of the image 64x72, got 64x60"):
        call("Spectrum", image=gt, reference=gt, image_3=gt[:, :60])


# Save Report


def scores_text():
    return call("IQAReward", images=[picture(2, 16, 16)], metrics=["psnr_y"], scale=[1], reference=[picture(1, 16, 16)])[0]


def test_report_files_belong_together(host):
    text = scores_text()
    for number in (1, 2):
        shown = call(
            "SaveReport",
            scores=[text],
            filename_prefix=["sub/r"],
            pictures=[picture(2)],
            more_pictures=[picture(1, 5, 5)],
            note=["hello"],
        )
        record_path = host.output_dir() / "sub" / f"r_{number:05}_.json"
        assert shown["result"] == (str(record_path),)
        record = json.loads(record_path.read_text())
        assert record["note"] == "hello" and record["scores"] == json.loads(text)
        assert all((record_path.parent / name).is_file() for name in record["pictures"]) and len(record["pictures"]) == 3
        assert [entry["filename"] for entry in shown["ui"]["images"]] == record["pictures"]
    rows = list(csv.DictReader(record_path.with_suffix(".csv").open()))
    assert [row["name"] for row in rows] == ["candidate 1", "candidate 2", "mean"]
    assert float(rows[0]["psnr_y"]) == pytest.approx(json.loads(text)["images"][0]["scores"]["psnr_y"], rel=1e-5)
    assert max(len(row["psnr_y"]) for row in rows) <= 7, "six digits and the point"
    rewards = [float(row["reward"]) for row in rows]
    assert rewards[2] == pytest.approx(sum(rewards[:2]) / 2, rel=1e-5), "the line of means has one, as the table picture has"
    assert len(list(record_path.parent.iterdir())) == 10


def test_report_without_pictures_draws_the_table(host):
    shown = call("SaveReport", scores=[scores_text(), scores_text()], filename_prefix=["r"])
    assert len(shown["ui"]["images"]) == 1
    with Image.open(host.output_dir() / shown["ui"]["images"][0]["filename"]) as drawn:
        assert drawn.width > 100


def test_report_is_written_whole_or_not_at_all(host, monkeypatch):
    from alignsr.nodes import report

    real = report.write_atomic

    def full_disk(path, write):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        return real(path, write)

    monkeypatch.setattr(report, "write_atomic", full_disk)
    with pytest.raises(OSError, match="No space left"):
        call("SaveReport", scores=[scores_text()], filename_prefix=["r"])
    assert [path for path in host.output_dir().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("text", ["", "plain text", "[1]", '{"a": 1}'])
def test_report_refuses_other_texts(host, text):
    with pytest.raises(ValueError, match=r"^scores: expected"):
        call("SaveReport", scores=[text], filename_prefix=["r"])


# Load Image Folder


def test_folder_reads_every_kind(host, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (4, 7, 4), np.uint8)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 255, (3, 3), np.uint8)).save(folder / "sub" / "c.png")
    sixteen = rng.integers(0, 65535, (5, 5), np.uint16)
    Image.fromarray(sixteen).save(folder / "sub" / "d.png")
    images, names, skipped = call("LoadImageFolder", folder="pictures")
    assert names == ["a", "b", "sub/c", "sub/d"] and skipped == ""
    assert [tuple(image.shape) for image in images] == [(1, 6, 5, 3), (1, 4, 7, 4), (1, 3, 3, 3), (1, 5, 5, 3)]
    assert torch.allclose(images[3][0, ..., 0], torch.from_numpy(sixteen.astype(np.float32)) / 65535)
    images, names, _ = call("LoadImageFolder", folder=str(folder), start=1, limit=2)
    assert names == ["b", "sub/c"]


def test_a_bad_file_stops_or_is_listed(host, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad.png: expected an image"):
        call("LoadImageFolder", folder="pictures")
    images, names, skipped = call("LoadImageFolder", folder="pictures", on_error="skip")
    assert names == ["good"] and len(images) == 1 and "bad.png" in skipped


def test_folder_refusals_and_change(host, tmp_path):
    node = NODE_CLASS_MAPPINGS["AlignSRLoadImageFolder"]
    for name, kind in (("", ValueError), ("absent", FileNotFoundError), (str(tmp_path / "absent"), FileNotFoundError)):
        with pytest.raises(kind, match=r"^folder: expected"):
            call("LoadImageFolder", folder=name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^folder: expected images"):
        call("LoadImageFolder", folder="empty")
    before = node.IS_CHANGED("empty", 0, 0, "stop")
    Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "new.png")
    assert node.IS_CHANGED("empty", 0, 0, "stop") != before


MISUSES = {
    "colour fix": (
        "OneStepSR",
        {"model": "net.safetensors", "image": picture(), "scale": 4, "color_fix": "wavlet"},
        "color_fix: expected one of",
    ),
    "tile": (
        "OneStepSR",
        {"model": "pix.safetensors", "image": picture(), "scale": 4, "tile_px": 2},
        "tile_px: expected at least 4",
    ),
    "overlap": (
        "OneStepSR",
        {"model": "net.safetensors", "image": picture(), "scale": 4, "tile_px": 8, "overlap_px": 8},
        "overlap_px: expected 0 <= overlap_px < tile_px",
    ),
    "scale 3.5": ("Degrade", {"image": picture(), "preset": "dp2o", "seed": 0, "scale": 3.5}, "scale: expected an integer"),
    "scale 0": ("Degrade", {"image": picture(), "preset": "dp2o", "seed": 0, "scale": 0}, "scale: expected an integer"),
    "scale -1": ("Degrade", {"image": picture(), "preset": "dp2o", "seed": 0, "scale": -1}, "scale: expected an integer"),
    "preset": ("Degrade", {"image": picture(), "preset": "dp20", "seed": 0, "scale": 4}, "preset: expected one of"),
    "thin": (
        "Spectrum",
        {"image": picture(1, 3, 50), "reference": picture(1, 3, 50)},
        "image: expected sides of at least 4 px, got 50x3",
    ),
    "outside": (
        "Compare",
        {"result": picture(1, 40, 30), "input": picture(), "labels": "a, b", "crop_centers": "30,10"},
        "crop_centers: expected places inside 30x40, got 30,10",
    ),
    "other size": (
        "Compare",
        {"result": picture(1, 8, 8), "input": picture(), "reference": picture(1, 4, 5)},
        "reference: expected the size of the result 8x8, got 5x4; check",
    ),
}


@pytest.mark.parametrize("case", MISUSES)
def test_errors_name_the_input_of_the_node(host, case):
    node_id, inputs, text = MISUSES[case]
    inputs = {name: load(value) if name == "model" else value for name, value in inputs.items()}
    with pytest.raises((ValueError, TypeError), match=f"^{text}"):
        call(node_id, **inputs)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [5]}',
        '{"images": [{"scores": [1]}]}',
        '{"images": [{"scores": {"psnr_y": "high"}}]}',
        '{"images": [], "mean": 5}',
        '{"images": [{"scores": {"psnr_y": NaN}}]}',
    ],
)
def test_reports_refuse_other_json(host, tmp_path, text):
    with pytest.raises(ValueError, match=r"^scores: expected .*JSON"):
        call("SaveReport", scores=[text], filename_prefix=["r"])
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_results_are_those_of_the_command_line(host, channels):
    image, model = picture(1, 70, 20, channels), load()
    sr, enlarged, _ = call("OneStepSR", model=model, image=image, scale=4, tile_px=48, color_fix="wavelet")
    alike = batch.restore_picture(
        model.backbone, image.movedim(-1, 1), scale=4, tile_px=48, color_fix="wavelet", notify=pytest.fail
    )
    assert torch.equal(sr.movedim(-1, 1), alike.sr) and torch.equal(enlarged.movedim(-1, 1), alike.lq_up)


def test_linked_values_are_unknown_before_the_run(host):
    """IS_CHANGED gets None for a link: always run, without the warning of a failure."""
    assert math.isnan(NODE_CLASS_MAPPINGS["AlignSRLoadImageFolder"].IS_CHANGED(None, 0, 0, "stop"))
    assert math.isnan(NODE_CLASS_MAPPINGS["AlignSRLoadSRModel"].IS_CHANGED(None, "fp32", "auto"))
