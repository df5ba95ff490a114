"""Colour transfer: golden numbers of the official code, and what must hold for every image."""

import pytest
import torch

from alignsr.core.color import COLOR_FIXES, adain_transfer, apply_color_fix, wavelet_decompose, wavelet_transfer
from reference.photographs import check, crop, needs_photographs

C06_CONTENT, C06_STYLE = ("img_010", 160, 240, 64, 64), ("img_009", 96, 128, 64, 64)
C07_TARGET, C07_SOURCE = ("img_011", 150, 300, 64, 64), ("img_014", 100, 220, 64, 64)
SIZES = [(1, 1), (1, 9), (3, 2), (17, 40), (64, 64)]


def random_image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@needs_photographs
def test_wavelet_equals_strsr():
    content, style = crop(*C06_CONTENT)[None], crop(*C06_STYLE)[None]
    check("c06_strsr/wavelet", wavelet_transfer(content, style))
    check("c06_strsr/wavelet_low_of_style", wavelet_decompose(style)[1])


@needs_photographs
def test_wavelet_and_adain_equal_dp2o():
    target, source = crop(*C07_TARGET)[None], crop(*C07_SOURCE)[None]
    check("c07_colour/wavelet", wavelet_transfer(target, source))
    check("c07_colour/adain", adain_transfer(target, source))


@needs_photographs
@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_8_bit_results_equal_dp2o(method):
    """The official functions for files clamp and then truncate to 8 bit."""
    ours = apply_color_fix(crop(*C07_TARGET)[None], crop(*C07_SOURCE)[None], method)[0]
    check(f"c07_colour/{method}_uint8", (ours.clamp(0, 1) * 255).to(torch.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", sorted(COLOR_FIXES))
def test_every_fix_of_an_image_with_itself_changes_nothing(method, size):
    image = random_image(2, 3, *size)
    torch.testing.assert_close(apply_color_fix(image, image, method), image, atol=0 if method != "adain" else 1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_wavelet_bands_sum_to_the_image(size):
    image = random_image(1, 3, *size)
    high, low = wavelet_decompose(image)
    torch.testing.assert_close(high + low, image, atol=2e-7, rtol=0)


def test_wavelet_takes_the_low_band_of_the_style_and_the_detail_of_the_content():
    """Smooth colour cast: the restored image with a cast comes back without it, detail untouched."""
    content, cast = random_image(1, 3, 48, 48), torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)
    torch.testing.assert_close(wavelet_transfer(content + cast, content), content, atol=1e-6, rtol=0)
    style = random_image(1, 3, 48, 48, seed=1)
    result = wavelet_transfer(content, style)
    torch.testing.assert_close(result - wavelet_decompose(style)[1], wavelet_decompose(content)[0], atol=1e-6, rtol=0)


def test_wavelet_low_band_of_the_result_is_close_to_that_of_the_style():
    """strsr.md check 27. Not exact: the blur is no projection, it lets some of the content's detail through."""
    content, style = random_image(1, 3, 64, 64), 0.3 + 0.4 * random_image(1, 3, 64, 64, seed=1)
    content = content * torch.linspace(0.2, 0.9, 64)
    wanted = wavelet_decompose(style)[1]
    before = (wavelet_decompose(content)[1] - wanted).abs().mean()
    after = (wavelet_decompose(wavelet_transfer(content, style))[1] - wanted).abs().mean()
    assert after < 0.25 * before


@pytest.mark.parametrize("size", [(3, 2), (64, 64)])
def test_adain_result_has_the_statistics_of_the_style(size):
    """dp2o-sr.md check 16; exact up to the 1e-5 that is added to both variances."""
    content, style = random_image(2, 3, *size), 0.3 * random_image(2, 3, *size, seed=1) + 0.4
    result = adain_transfer(content, style)
    torch.testing.assert_close(result.mean((2, 3)), style.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((2, 3)), style.std((2, 3)), atol=1e-3, rtol=0)


def test_adain_by_hand():
    content, style = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.4, 0.6]).view(1, 1, 1, 2)
    torch.testing.assert_close(adain_transfer(content, style), style, atol=1e-4, rtol=0)


def test_flat_images_are_finite():
    flat = torch.full((1, 3, 8, 8), 0.5)
    for fix in COLOR_FIXES.values():
        assert bool(torch.isfinite(fix(flat, random_image(1, 3, 8, 8))).all())


def test_samples_do_not_mix_and_half_precision_is_widened():
    content, style = random_image(2, 3, 20, 20), random_image(2, 3, 20, 20, seed=1)
    for fix in COLOR_FIXES.values():
        torch.testing.assert_close(fix(content, style)[1:], fix(content[1:], style[1:]), atol=1e-6, rtol=0)
        assert fix(content.bfloat16(), style.bfloat16()).dtype == torch.float32


def test_nothing_is_clamped():
    assert wavelet_transfer(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 1.5)).max() > 1


def test_bad_arguments_are_named():
    image = random_image(1, 3, 8, 8)
    with pytest.raises(ValueError, match="method: expected one of wavelet, adain, none, got 'lab'"):
        apply_color_fix(image, image, "lab")
    with pytest.raises(ValueError, match="sr: expected the shape of lq_up"):
        apply_color_fix(image, image[..., :4], "none")
    with pytest.raises(ValueError, match="levels: expected"):
        wavelet_decompose(image, levels=0)
