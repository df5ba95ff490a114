"""Degradation against the official code: golden cases c06_strsr/usm, c08_degradation, c08b_noise and c08c_chain."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignsr.core.degradation import RESIZE_MODES, replay, sharpen
from alignsr.core.degradation.blur import filter_images, sinc_kernel, smooth_kernel
from alignsr.core.degradation.jpeg import jpeg_diffjpeg
from alignsr.core.degradation.noise import gaussian_field, poisson_counts, poisson_field, random_bits
from alignsr.core.degradation.steps import resize
from paths import REFERENCE
from reference.photographs import check, crop, needs_photographs

GOLDEN = load_file(REFERENCE / "degradation.safetensors")
NUMBERS = json.loads((REFERENCE / "degradation.json").read_text(encoding="utf-8"))
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@pytest.mark.parametrize("size", [7, 15, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_smooth_kernels(kind: str, size: int) -> None:
    beta = 0.7 if kind.startswith("generalized") else 1.6
    kernel = smooth_kernel(kind, size, sigma_x=2.3, sigma_y=0.9, rotation=0.6, beta=beta)
    assert torch.allclose(kernel, GOLDEN[f"c08_degradation/kernel/{kind}_{size}"].double(), atol=1e-7, rtol=0)


def test_sinc_kernels() -> None:
    for size in (7, 15, 21):
        assert torch.allclose(sinc_kernel(size, 1.9), GOLDEN[f"c08_degradation/kernel/sinc_{size}"].double(), atol=1e-7, rtol=0)
    padded = GOLDEN["c08_degradation/kernel/sinc_13_padded21"].double()
    assert torch.allclose(sinc_kernel(13, 2.4, pad_to=21), padded, atol=1e-7, rtol=0)


@needs_photographs
def test_filter_with_a_kernel_per_sample_and_with_one_for_all() -> None:
    images = [crop("img_002", 200, 260, 48, 48), crop("img_008", 100, 140, 48, 48)]
    aniso, sinc = (GOLDEN[f"c08_degradation/kernel/{name}_21"].float() for name in ("aniso", "sinc"))
    check("c08_degradation/filter2d_per_sample", torch.stack(filter_images(images, [aniso, sinc])))
    check("c08_degradation/filter2d_shared", torch.stack(filter_images(images, [aniso, aniso])))


@needs_photographs
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_resize_by_factor_and_to_size(mode: str) -> None:
    image = crop("img_006", 90, 110, 45, 62)
    for factor in (0.37, 1.41):
        ours = resize(image, mode, (int(45 * factor), int(62 * factor)), factor)
        check(f"c08_degradation/resize/{mode}_{factor}", ours[None])
    check(f"c08_degradation/resize/{mode}_to_30x51", resize(image, mode, (30, 51))[None])


@needs_photographs
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_of_the_official_form(quality: int) -> None:
    ours = jpeg_diffjpeg([crop("img_004", 80, 120, 56, 72)], [quality])[0]
    check(f"c08_degradation/jpeg/q{quality}", ours[None], outside=0.02)
    check(f"c08_degradation/jpeg/q{quality}_uint8", (ours[None] * 255).round(), outside=0.02)


@needs_photographs
def test_unsharp_mask() -> None:
    check("c06_strsr/usm", sharpen(crop("img_007", 120, 160, 80, 80)[None]))


@needs_photographs
@pytest.mark.parametrize("grey", [False, True])
def test_noise_has_the_variance_of_the_official_noise(grey: bool) -> None:
    image, suffix, tolerance = crop("img_013", 200, 100, 128, 128), "_gray" if grey else "", 0.10 if grey else 0.05
    if grey:
        image = (image * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    levels = (image * 255).round().to(torch.int32)[None]
    bits = random_bits([(11, 12)], levels.shape[1], 128, 128, torch.device("cpu"))
    counts = poisson_counts(levels)
    assert counts == [NUMBERS["noise"]["c08b_noise/poisson/vals" + suffix]]
    gaussian, poisson = gaussian_field(bits), poisson_field(levels, bits, counts)
    cases = [(f"gaussian_np/s{s}{suffix}", gaussian * (s / 255)) for s in (5.0, 25.0)]
    cases += [(f"poisson_pt/s{s}{suffix}", poisson * s) for s in (0.5, 2.0)]
    for key, noise in cases:
        expected = NUMBERS["noise"][f"c08b_noise/{key}/var_expected"]
        assert float(noise.var()) == pytest.approx(expected, rel=tolerance)
        assert abs(float(noise.mean())) <= 5 * (expected / noise.numel()) ** 0.5


@needs_photographs
@pytest.mark.parametrize(
    ("order", "modes"),
    [("resize_sinc_then_jpeg", ("area", "bicubic", "bilinear")), ("jpeg_then_resize_sinc", ("bicubic", "bilinear", "area"))],
)
def test_whole_chain_with_scripted_draws(order: str, modes: tuple[str, str, str]) -> None:
    def blur(**kernel: Any) -> dict[str, Any]:
        return {"op": "blur", "kernel": kernel}

    def shrink(mode: str, side: int, factor: float | None = None) -> dict[str, Any]:
        return {"op": "resize", "mode": mode, "factor": factor, "size": [side, side]}

    silent = {"op": "noise", "kind": "gaussian", "std_255": 0.0, "grey": False, "key": [1, 2]}
    first = [blur(kind="aniso", size=15, sigma_x=2.3, sigma_y=0.9, rotation=0.6), shrink(modes[0], 80, 0.63), silent]
    second = [blur(kind="plateau_iso", size=7, sigma_x=2.3, beta=1.6), shrink(modes[1], 35), silent]
    back, last = [shrink(modes[2], 32), blur(kind="sinc", size=13, cutoff=2.4)], [{"op": "jpeg", "quality": 81}]
    steps = [*first, {"op": "jpeg", "quality": 62}, *second, *(back + last if order.startswith("resize") else last + back)]
    record = {"steps": steps, "sharpen_input": True, "round_lq": False, "resize_back": True}
    out = replay(crop("img_014", 120, 200, 128, 128)[None], [record], jpeg="diffjpeg")
    assert out.lq_up is not None
    check(f"c08c_chain/{order}/low_LQ", out.lq, outside=0.02)
    check(f"c08c_chain/{order}/LQ_uint8", (out.lq_up * 255).round(), outside=0.02)
