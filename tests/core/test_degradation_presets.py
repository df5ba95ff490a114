"""Every number of the papers, typed by hand from their tables, and the distributions that the draws follow."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignsr.core.degradation import KERNEL_KINDS, PRESETS, BlurConfig, FinalConfig, StageConfig, find_config
from alignsr.core.degradation.draw import draw_steps

PI = math.pi
# preset: (resize range 1, noise 1, Poisson 1), (resize range 2, noise 2, Poisson 2), JPEG, kernel 1, kernel 2 and final sinc
SECOND_ORDER = {
    "realesrgan": (((0.15, 1.5), (1, 30), (0.05, 3)), ((0.3, 1.2), (1, 25), (0.05, 2.5)), (30, 95), (7, 21), (7, 21)),
    "strsr": (((0.15, 1.5), (1, 30), (0.05, 3)), ((0.3, 1.2), (1, 25), (0.05, 2.5)), (30, 95), (7, 21), (7, 21)),
    "aesop_realworld": (((0.20, 1.5), (1, 30), (0.05, 2)), ((0.3, 1.2), (1, 20), (0.05, 2)), (50, 95), (7, 21), (7, 21)),
    "asasr": (((0.15, 1.5), (1, 30), (0.05, 3)), ((0.3, 1.2), (1, 25), (0.05, 2.5)), (30, 95), (7, 21), (7, 11)),
}
# preset: sharpened input, sharpened target, result rounded to 8 bits, enlarged back
TARGETS = {
    "realesrgan": (True, True, True, False),
    "strsr": (True, True, False, True),
    "aesop_realworld": (True, False, True, False),
    "asasr": (True, True, True, False),
    "dp2o": (False, False, True, False),
    "bicubic": (False, False, True, False),
    "mild": (False, False, True, False),
}


def check_blur(blur: BlurConfig, probability: float, sigma: tuple[float, float], kernel: tuple[int, int]) -> None:
    assert (blur.probability, blur.sigma, blur.kernel_size) == (probability, sigma, kernel)
    assert blur.sinc_probability == 0.1
    assert (blur.sinc_cutoff_small, blur.sinc_cutoff_large) == ((PI / 3, PI), (PI / 5, PI))
    assert blur.kind_probabilities == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert blur.rotation == (-PI, PI)
    assert (blur.generalized_beta, blur.plateau_beta) == ((0.5, 4), (1, 2))


def check_stage(stage: StageConfig, resize: tuple[float, float, float], numbers: Any, quality: tuple[int, int] | None) -> None:
    assert stage.resize_probabilities == resize
    assert (stage.resize_range, stage.noise_std_255, stage.poisson_scale) == numbers
    assert (stage.gaussian_probability, stage.grey_probability, stage.jpeg_quality) == (0.5, 0.4, quality)


def test_kernel_kinds_stand_in_the_order_of_their_probabilities() -> None:
    assert KERNEL_KINDS == ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_presets(name: str) -> None:
    config = PRESETS[name]
    first, second, quality, kernel, small_kernel = SECOND_ORDER[name]
    assert config.first is not None and config.second is not None
    check_stage(config.first, (0.2, 0.7, 0.1), first, quality)
    check_stage(config.second, (0.3, 0.4, 0.3), second, None)
    check_blur(config.first.blur, 1.0, (0.2, 3), kernel)
    check_blur(config.second.blur, 0.8, (0.2, 1.5), small_kernel)
    assert config.final == FinalConfig(
        jpeg_quality=quality, sinc_probability=0.8, kernel_size=small_kernel, sinc_cutoff=(PI / 3, PI)
    )


def test_dp2o_is_first_order() -> None:
    config = PRESETS["dp2o"]
    assert config.first is not None and config.second is None
    check_stage(config.first, (0.2, 0.7, 0.1), ((0.15, 1.5), (1, 30), (0.05, 3)), (30, 95))
    check_blur(config.first.blur, 1.0, (0.2, 3), (7, 21))
    assert config.final == FinalConfig(jpeg_quality=(30, 95), sinc_probability=0.8, kernel_size=(7, 21), sinc_cutoff=(PI / 3, PI))


def test_bicubic_has_no_stage() -> None:
    assert (PRESETS["bicubic"].first, PRESETS["bicubic"].second, PRESETS["bicubic"].final) == (None, None, None)


def test_mild_is_first_order_and_far_milder() -> None:
    config = PRESETS["mild"]
    assert config.first is not None and config.second is None
    check_stage(config.first, (0.1, 0.4, 0.5), ((0.5, 1.2), (0, 8), (0.05, 0.6)), None)
    assert (config.first.blur.probability, config.first.blur.sigma, config.first.blur.kernel_size) == (0.7, (0.2, 1.5), (7, 15))
    assert config.final == FinalConfig(
        jpeg_quality=(70, 100), sinc_probability=0.3, kernel_size=(7, 11), sinc_cutoff=(2 * PI / 3, PI)
    )


def test_targets_and_names() -> None:
    assert set(PRESETS) == set(TARGETS)
    for name, config in PRESETS.items():
        assert config.name == name
        assert config.resize_modes == ("area", "bilinear", "bicubic")
        assert (config.sharpen_input, config.sharpen_target, config.round_lq, config.resize_back) == TARGETS[name]


def draw_many(name: str, count: int = 1500) -> list[list[dict[str, Any]]]:
    config = find_config(name)
    return [draw_steps(config, (256, 256), (64, 64), 4, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def share(events: list[bool]) -> float:
    return sum(events) / len(events)


def test_draws_follow_the_probabilities() -> None:
    samples = draw_many("realesrgan")
    tolerance = 4 * 0.5 / len(samples) ** 0.5  # four standard deviations of the widest coin
    first = [steps[0]["kernel"] for steps in samples]
    kinds = Counter(kernel["kind"] for kernel in first)
    assert kinds["sinc"] / len(samples) == pytest.approx(0.1, abs=tolerance)
    for kind, probability in zip(KERNEL_KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        assert kinds[kind] / len(samples) == pytest.approx(0.9 * probability, abs=tolerance)
    assert {kernel["size"] for kernel in first} == {7, 9, 11, 13, 15, 17, 19, 21}
    factors = [steps[1]["factor"] for steps in samples]
    assert share([f > 1 for f in factors]) == pytest.approx(0.2, abs=tolerance)
    assert share([f < 1 for f in factors]) == pytest.approx(0.7, abs=tolerance)
    assert share([steps[4]["kernel"] is None for steps in samples]) == pytest.approx(0.2, abs=tolerance)
    for position in (2, 6):
        noise = [steps[position] for steps in samples]
        assert share([step["kind"] == "gaussian" for step in noise]) == pytest.approx(0.5, abs=tolerance)
        assert share([step["grey"] for step in noise]) == pytest.approx(0.4, abs=tolerance)
    assert share([steps[7]["op"] == "jpeg" for steps in samples]) == pytest.approx(0.5, abs=tolerance)
    sinc = [next(s for s in steps[7:] if s["op"] == "blur")["kernel"] for steps in samples]
    assert share([kernel is None for kernel in sinc]) == pytest.approx(0.2, abs=tolerance)
    modes = Counter(step["mode"] for steps in samples for step in steps if step["op"] == "resize")
    assert all(count / sum(modes.values()) == pytest.approx(1 / 3, abs=tolerance) for count in modes.values()) and len(modes) == 3


def test_draws_stay_inside_the_ranges_and_reach_their_ends() -> None:
    samples = draw_many("aesop_realworld")
    qualities = [step["quality"] for steps in samples for step in steps if step["op"] == "jpeg"]
    assert (min(qualities), max(qualities)) == (50, 95)
    stds = [steps[6]["std_255"] for steps in samples if steps[6]["kind"] == "gaussian"]
    assert 1 <= min(stds) < 1.5 and 19.5 < max(stds) <= 20
    assert all(0.2 <= steps[1]["factor"] <= 1.5 for steps in samples)
    assert all(19 <= steps[5]["size"][0] <= 76 for steps in samples)  # int(64 * 0.3) .. int(64 * 1.2)
    kernels = [steps[p]["kernel"] for steps in samples for p in (0, 4) if steps[p]["kernel"]]
    plateau = [kernel["beta"] for kernel in kernels if kernel["kind"].startswith("plateau")]
    assert share([beta == 1 for beta in plateau]) == pytest.approx(0.5, abs=0.12) and max(plateau) <= 2
    general = [kernel["beta"] for kernel in kernels if kernel["kind"].startswith("generalized")]
    assert share([beta < 1 for beta in general]) == pytest.approx(0.5, abs=0.12) and min(general) >= 0.5 and max(general) <= 4
    cutoffs = [(kernel["size"], kernel["cutoff"]) for kernel in kernels if kernel["kind"] == "sinc"]
    assert all((PI / 3 if size < 13 else PI / 5) <= cutoff <= PI for size, cutoff in cutoffs)


def test_asasr_kernels_of_the_second_order_stop_at_11() -> None:
    samples = draw_many("asasr", 300)
    assert {k["size"] for steps in samples for k in [steps[4]["kernel"]] if k} == {7, 9, 11}
    assert {k["size"] for steps in samples for k in [steps[0]["kernel"]]} == {7, 9, 11, 13, 15, 17, 19, 21}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, first=replace(c.first, resize_probabilities=(0.5, 0.7, 0.1))), "resize_probabilities: expected"),
        (lambda c: replace(c, first=replace(c.first, noise_std_255=(30, 1))), "noise_std_255: expected"),
        (lambda c: replace(c, first=replace(c.first, jpeg_quality=(0, 95))), "jpeg_quality: expected"),
        (
            lambda c: replace(c, first=replace(c.first, blur=replace(c.first.blur, kernel_size=(7, 20)))),
            "kernel_size: expected odd",
        ),
        (lambda c: replace(c, first=replace(c.first, grey_probability=1.4)), "grey_probability: expected"),
        (lambda c: replace(c, resize_modes=("area", "lanczos")), "resize_modes: expected"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(PRESETS["realesrgan"])
