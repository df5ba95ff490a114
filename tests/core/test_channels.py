"""Grey, RGB and RGBA through functions on RGB: nothing lost, nothing changed."""

import pytest
import torch

from alignsr.core.channels import join_channels, split_channels
from alignsr.core.resize import bicubic


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_function_that_changes_nothing_gives_the_picture_back(channels):
    pixels = torch.rand(2, channels, 5, 7)
    parts = split_channels(pixels)
    assert parts.rgb.shape == (2, 3, 5, 7) and parts.size == (5, 7)
    torch.testing.assert_close(join_channels(parts.rgb, parts), pixels, atol=1e-6, rtol=0)


def test_grey_becomes_luma_of_the_result():
    parts = split_channels(torch.rand(1, 1, 4, 4))
    colour = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    expected = 0.299 * 0.2 + 0.587 * 0.5 + 0.114 * 0.9
    torch.testing.assert_close(join_channels(colour, parts), torch.full((1, 1, 8, 8), expected))


def test_alpha_is_resized_alongside_and_everything_stays_in_range():
    pixels = torch.rand(1, 4, 6, 6).round()
    result = join_channels(torch.rand(1, 3, 24, 24) * 2 - 0.5, split_channels(pixels))
    assert torch.equal(result[:, 3:], bicubic(pixels[:, 3:], (24, 24)).clamp(0, 1))
    assert float(result.min()) >= 0 and float(result.max()) <= 1
