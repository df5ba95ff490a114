"""Previews from latents: exact where colours are linear in them, and for models whose latents are pixels."""

import torch
import torch.nn.functional as F
from multi_step_helpers import Known, picture

from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.previews import PREVIEW_PX, fit_preview


def test_colours_that_are_linear_in_the_latents_are_found() -> None:
    backbone, lq = Known(), picture(96, 160)
    show = fit_preview(backbone, lq)
    seen = show(backbone.encode(lq * 2 - 1))
    assert seen.shape == (1, 3, 12, 20)
    assert float((seen - F.avg_pool2d(lq, 8)).abs().max()) < 0.05  # the ridge draws 192 latents of noise towards the mean


def test_one_small_picture_is_encoded(monkeypatch) -> None:
    backbone, sizes = Known(), list[tuple[int, ...]]()
    real = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda image: sizes.append(tuple(image.shape)) or real(image))
    show = fit_preview(backbone, picture(300, 1000, batch=2))
    assert sizes == [(1, 3, 80, PREVIEW_PX)]
    assert show(torch.zeros(2, 192, 5, 7)).shape == (2, 3, 5, 7)
    fit_preview(backbone, picture(1, 1))
    assert sizes[-1] == (1, 3, 16, 16)


def test_pixels_are_shown_as_they_are() -> None:
    x = picture(8, 8)
    assert torch.allclose(fit_preview(PixelBackbone(), x)(x * 2 - 1), x, atol=1e-6)
