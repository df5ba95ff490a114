import pytest
import torch

from alignsr.core import images
from alignsr.core.checks import check_finite, check_image, check_positive_int, check_range, check_same_shape, check_unit_range


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_layouts_round_trip(channels):
    x = torch.rand(2, 5, 7, channels)
    back = images.bchw_to_bhwc(images.bhwc_to_bchw(x))
    assert torch.equal(back, x)
    assert back.is_contiguous()


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channel_counts_are_refused_by_name(channels):
    with pytest.raises(ValueError, match=r"image: expected \[B, H, W, 1\|3\|4\]"):
        images.bhwc_to_bchw(torch.rand(1, 4, 4, channels))


def test_ranges_round_trip_and_map_the_ends():
    assert images.to_model_range(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    x = torch.rand(100)
    assert torch.allclose(images.from_model_range(images.to_model_range(x)), x, atol=1e-7)


def test_quantise_rounds_to_the_nearest_level_and_clamps():
    values = torch.tensor([-0.1, 0.4 / 255, 0.6 / 255, 1.3])
    assert (images.quantize_8bit(values) * 255).round().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(("height", "width", "multiple"), [(1, 1, 16), (5, 40, 16), (16, 32, 16), (3, 2, 8), (17, 31, 1)])
def test_padding_reaches_the_multiple_and_crops_back(height, width, multiple):
    x = torch.rand(1, 3, height, width)
    padded, (h, w) = images.pad_to_multiple(x, multiple)
    assert padded.shape[-2] % multiple == 0 == padded.shape[-1] % multiple
    assert padded.shape[-2] - height < multiple > padded.shape[-1] - width
    assert torch.equal(padded[..., :h, :w], x)


def test_padding_reflects_where_it_can():
    x = torch.arange(6.0).view(1, 1, 1, 6)
    assert images.pad_to_multiple(x, 8)[0][0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]


def test_luma_by_hand():
    """aesop.md check 10: grey 128/255 gives Y * 255 = 125.9294; white and black are 235 and 16."""
    grey = torch.full((1, 3, 1, 1), 128 / 255, dtype=torch.float64)
    assert float(images.rgb_to_y(grey)) * 255 == pytest.approx(125.9294, abs=1e-4)
    assert float(images.rgb_to_y(torch.ones(1, 3, 1, 1))) * 255 == pytest.approx(235, abs=1e-3)
    assert float(images.rgb_to_y(torch.zeros(1, 3, 1, 1))) * 255 == pytest.approx(16, abs=1e-4)
    assert torch.allclose(images.rgb_to_y(grey[:, :1]), images.rgb_to_y(grey))


def test_crops():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    assert images.crop_border(x, 1).flatten().tolist() == [6, 7, 8, 11, 12, 13]
    assert images.crop_to_multiple(x, 3).shape == (1, 1, 3, 3)
    with pytest.raises(ValueError, match="below half of the short side"):
        images.crop_border(x, 2)


def test_alpha_is_split_off():
    x = torch.rand(1, 4, 2, 2)
    rgb, alpha = images.split_alpha(x)
    assert torch.equal(torch.cat((rgb, alpha), 1), x)
    assert images.split_alpha(x[:, :3])[1] is None


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ("text", TypeError, "expected a tensor"),
        (torch.zeros(1, 8, 8, 3), ValueError, "looks channels-last, use images.bhwc_to_bchw"),
        (torch.zeros(3, 8, 8), ValueError, r"got \(3, 8, 8\) float32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "divide 8-bit images by 255"),
        (torch.zeros(1, 3, 0, 8), ValueError, "at least one image of at least 1x1"),
        (torch.zeros(1, 2, 8, 8), ValueError, "convert it to grey, RGB or RGBA"),
    ],
)
def test_bad_images_are_named_with_what_came_and_what_to_do(x, error, message):
    with pytest.raises(error, match=f"lq: .*{message}"):
        check_image(x, "lq")


def test_other_checks_name_the_argument():
    bad = torch.zeros(3, 1, 2, 2)
    bad[1, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"gt: expected finite values, got 1 NaN.*first in sample 1"):
        check_finite(bad, "gt")
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\].*divide by 255"):
        check_unit_range(torch.full((1, 1, 1, 1), 200.0), "gt")
    with pytest.raises(ValueError, match="from_model_range"):
        check_unit_range(torch.full((1, 1, 1, 1), -0.9), "gt")
    with pytest.raises(ValueError, match=r"sr: expected the shape of gt"):
        check_same_shape(torch.zeros(1), torch.zeros(2), "sr", "gt")
    for value, error in ((0, ValueError), (-1, ValueError), (3.5, TypeError), (True, TypeError), (17, ValueError)):
        with pytest.raises(error, match=r"scale: expected an integer in 1\.\.16"):
            check_positive_int(value, "scale", high=16)
    with pytest.raises(ValueError, match="strength"):
        check_range(float("nan"), "strength", 0, 1)
