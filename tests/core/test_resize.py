"""imresize of MATLAB in both forms: official numbers, benchmark files, hand-derived weights; antialiased bicubic."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from alignsr.core.resize import bicubic, imresize, imresize_uint8
from paths import REFERENCE, SHARED
from reference.formula import U
from reference.photographs import check, crop, needs_photographs

GOLDEN = load_file(REFERENCE / "resize.safetensors")
TOLERANCE = json.loads((REFERENCE / "resize.json").read_text(encoding="utf-8"))
FACTORS = {"1_4": 1 / 4, "1_3": 1 / 3, "1_2": 1 / 2, "x2": 2.0, "x3": 3.0, "x4": 4.0}
DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def read_uint8(path: Path) -> Tensor:
    """A PNG as [C, H, W] uint8."""
    array = np.array(Image.open(path))
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).movedim(-1, 0)


def check_against_golden(result: Tensor, key: str) -> None:
    """Hold `result` to the golden array; of the large ones every fifth row and column and the four corners are kept."""
    atol, mean_atol = TOLERANCE[key]["atol"], TOLERANCE[key]["mean_atol"]
    if key in GOLDEN:
        parts = [(result, GOLDEN[key])]
    else:
        corners = torch.stack([result[..., :8, :8], result[..., :8, -8:], result[..., -8:, :8], result[..., -8:, -8:]])
        parts = [(result[..., ::5, ::5], GOLDEN[f"{key}/every5"]), (corners, GOLDEN[f"{key}/corners"])]
    for ours, golden in parts:
        gap = (ours.double() - golden.double()).abs()
        assert gap.max() <= atol
        assert gap.mean() <= mean_atol


@pytest.mark.parametrize("name", FACTORS)
def test_double_form_is_the_official_one(name: str) -> None:
    image = U("c09/img", 1, 3, 37, 53, dtype=torch.float64)
    result = imresize(image, FACTORS[name])[0]
    check_against_golden(result, f"c09_imresize/{name}")
    in_float32 = imresize(image.float(), FACTORS[name])[0]
    assert in_float32.dtype == torch.float32
    assert (in_float32 - result).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["1_4", "1_3", "1_2"])
def test_double_form_is_within_a_millionth(name: str) -> None:
    result = imresize(U("c09/img", 1, 3, 37, 53, dtype=torch.float64), FACTORS[name])[0]
    assert (result - GOLDEN[f"c09_imresize/{name}"]).abs().max() < 1e-6


@needs_photographs
def test_plain_bicubic_is_that_of_the_released_scripts() -> None:
    low = crop("img_014", 20, 40, 20, 24, folder="lr_x4")[None]
    check("c06_strsr/bicubic_up4", bicubic(low, (80, 96), antialias=False).clamp(0, 1))


def test_ramp_has_the_published_values() -> None:
    ramp = (torch.arange(64, dtype=torch.float64) / 63).view(1, 1, 8, 8)
    expected = torch.tensor([[0.19656809, 0.26399740], [0.73600262, 0.80343193]], dtype=torch.float64)
    assert torch.allclose(imresize(ramp, 1 / 4)[0, 0], expected, atol=1e-8)
    half = imresize(ramp, 1 / 2)[0, 0]
    assert half[0].tolist() == pytest.approx([0.06417411, 0.09654018, 0.12865824, 0.16102431], abs=1e-8)
    assert half[-1, -1].item() == pytest.approx(0.93582590, abs=1e-8)


def test_step_overshoots_as_derived() -> None:
    step = (torch.arange(16) >= 8).double().view(1, 1, 1, 16)
    result = imresize(step, 1 / 4, size=(1, 4))[0, 0, 0]
    assert result.tolist() == pytest.approx([-0.01269531, 0.07714844, 0.92285156, 1.01269531], abs=1e-8)


@pytest.mark.parametrize("scale", [0.13, 0.25, 0.5, 0.77, 1.0, 1.5, 3.0, 4.0])
def test_constant_stays_constant(scale: float) -> None:
    image = torch.full((2, 3, 17, 9), 0.3, dtype=torch.float64)
    assert torch.allclose(imresize(image, scale), torch.tensor(0.3, dtype=torch.float64), atol=1e-12)
    grey = torch.full((1, 17, 9), 77, dtype=torch.uint8)
    assert imresize_uint8(grey, scale).unique().tolist() == [77]


@pytest.mark.parametrize(
    ("length", "scale", "expected"), [(17, 1 / 4, 5), (16, 1 / 4, 4), (37, 1 / 3, 13), (37, 3, 111), (3, 0.1, 1)]
)
def test_output_size_is_rounded_up(length: int, scale: float, expected: int) -> None:
    assert imresize(torch.zeros(1, 1, length, length), scale).shape[-2:] == (expected, expected)
    assert imresize_uint8(torch.zeros(length, length, dtype=torch.uint8), scale).shape == (expected, expected)


def test_border_differs_from_torch_and_the_interior_does_not() -> None:
    image = U("resize/border", 1, 3, 64, 64, dtype=torch.float64)
    gap = (imresize(image, 1 / 4) - F.interpolate(image, scale_factor=1 / 4, mode="bicubic", antialias=True)).abs()
    assert gap[..., 3:-3, 3:-3].max() < 1e-6
    assert gap.max() > 1e-3


def eight_bit_by_hand(image: np.ndarray, factor: int) -> np.ndarray:
    """The 8-bit form from the printed weights: replicated border, rows first, rounded after each pass. [H, W] uint8."""
    half = {4: (-7, -45, -75, -49, 93, 399, 745, 987), 2: (-3, -9, 29, 111)}[factor]
    weights = np.array(half + half[::-1], dtype=np.int64)
    total, first = int(weights.sum()), {4: -6, 2: -3}[factor]

    def shrink_rows(x: np.ndarray) -> np.ndarray:
        starts = factor * np.arange(-(-len(x) // factor)) + first
        taps = np.clip(starts[:, None] + np.arange(len(weights)), 0, len(x) - 1)
        summed = np.einsum("k,nkw->nw", weights, x[taps].astype(np.int64))
        return np.clip((2 * summed + total) // (2 * total), 0, 255).astype(np.uint8)  # round half up in integers

    return shrink_rows(shrink_rows(image).T).T


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(("height", "width"), [(40, 56), (12, 8), (4, 4)])
def test_eight_bit_form_by_hand(factor: int, height: int, width: int) -> None:
    noise = (U("resize/uint8", height, width, dtype=torch.float64) * 256).to(torch.uint8)
    for image in (noise, noise // 128 * 255):  # the second saturates: overshoot is clipped after each pass
        ours = imresize_uint8(image, 1 / factor)
        assert torch.equal(ours, torch.from_numpy(np.ascontiguousarray(eight_bit_by_hand(image.numpy(), factor))))


@needs_data
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("collection", ["set5", "set14"])
def test_eight_bit_form_is_matlab_without_any_difference(collection: str, factor: int) -> None:
    made_from_another_original = {"img_005", "img_007", "img_014"} if (collection, factor) == ("set14", 2) else set()
    compared = 0
    for path in sorted((DATA / collection / "hr").glob("*.png")):
        if path.stem not in made_from_another_original:
            expected = read_uint8(DATA / collection / f"lr_x{factor}" / path.name)
            assert torch.equal(imresize_uint8(read_uint8(path), 1 / factor), expected), path.name
            compared += 1
    assert compared == {"set5": 5, "set14": 14}[collection] - len(made_from_another_original)


def test_gradient_flows_through_the_double_form() -> None:
    image = U("resize/grad", 1, 1, 6, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image)


def test_usable_for_training_after_a_first_call_in_inference_mode() -> None:
    with torch.inference_mode():
        imresize(torch.zeros(1, 1, 21, 23), 1 / 4)
    image = torch.ones(1, 1, 21, 23, requires_grad=True)
    imresize(image, 1 / 4).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_bicubic_gives_the_exact_size_and_keeps_half_precision() -> None:
    image = U("resize/half", 1, 3, 11, 7)
    assert bicubic(image, (29, 15)).shape == (1, 3, 29, 15)
    assert bicubic(image.half(), (29, 15)).dtype == torch.float16
    assert bicubic(image, (11, 7)) is image


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale: expected"):
        imresize(torch.zeros(1, 3, 8, 8), scale)


def test_eight_bit_form_wants_eight_bit() -> None:
    with pytest.raises(TypeError, match="uint8"):
        imresize_uint8(torch.zeros(8, 8), 0.5)
