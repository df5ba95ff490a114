"""Distortion metrics of our own: PSNR, SSIM and LR-PSNR, one number per image, in float64.

Definitions are those of AESOP's evaluation code (BasicSR family): both images are clamped and rounded to 8 bit, a border of
`crop` pixels is removed, and the luma channel of BT.601 studio range is compared unless RGB is asked for.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_image, check_positive_int, check_same_shape
from ..images import crop_border, crop_to_multiple, quantize_8bit, rgb_to_y, to_float64, to_rgb
from ..resize import imresize
from .inputs import check_picture

Channel = Literal["y", "rgb"]

PSNR_EPS = 1e-8
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def _prepare(image: Tensor, name: str, crop: int, channel: Channel, quantize: bool) -> Tensor:
    """Checked image -> what is compared: float64, 8-bit grid, border removed, Y or RGB."""
    check_picture(image, name)
    height, width = image.shape[-2:]
    if min(height, width) <= 2 * crop:
        raise ValueError(
            f"{name}: expected more than {2 * crop} pixels per side for crop {crop}, got {height}x{width}; use a smaller crop"
        )
    image = to_float64(to_rgb(image))
    image = quantize_8bit(image) if quantize else image
    image = crop_border(image, crop) if crop else image
    if channel == "y":
        return rgb_to_y(image)
    if channel == "rgb":
        return image
    raise ValueError(f"channel: expected 'y' or 'rgb', got {channel!r}; choose one of them")


def _prepare_pair(sr: Tensor, gt: Tensor, crop: int, channel: Channel, quantize: bool) -> tuple[Tensor, Tensor]:
    if crop < 0:
        raise ValueError(f"crop: expected a number of pixels >= 0, got {crop}; 0 keeps the whole picture")
    check_image(sr, "sr")
    check_image(gt, "gt")
    check_same_shape(to_rgb(sr), to_rgb(gt), "sr", "gt")
    return _prepare(sr, "sr", crop, channel, quantize), _prepare(gt, "gt", crop, channel, quantize)


def _psnr_of_prepared(a: Tensor, b: Tensor) -> Tensor:
    mse = (a - b).square().flatten(1).mean(1)
    return -10.0 * torch.log10(mse + PSNR_EPS)


def psnr_of_raw(a: Tensor, b: Tensor, *, crop: int) -> Tensor:
    """PSNR on Y, in float64, of RGB tensors that are what they are: no range is asked for, nothing is clamped or rounded."""
    return _psnr_of_prepared(*(rgb_to_y(crop_border(to_float64(x), crop)) for x in (a, b)))


def psnr(sr: Tensor, gt: Tensor, *, crop: int, channel: Channel = "y", quantize: bool = True) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB.

        PSNR_i = 10 log10( 1 / (MSE_i + 1e-8) ),  MSE over the pixels (and colours, for "rgb") of image i in [0, 1]

    Args:
        sr: restored image, [B, C, H, W] float, range [0, 1] (an overshoot of up to 0.5 is clamped), C in (1, 3, 4); grey counts
            as RGB, alpha is left out.
        gt: reference image, same size.
        crop: border in pixels removed on each side; the literature uses the upscale factor.
        channel: "y" compares Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255, "rgb" all three colours.
        quantize: round both images to 8 bit first, as images on disk would be.

    Returns:
        [B] float64, higher is better, 80 for equal images (the eps caps it and costs 0.0038 dB at 49.45 dB).

    Raises:
        ValueError: sizes differ, an image is not finite or not in [0, 1], or nothing is left after the crop.
    Source:
        Lee et al. (AESOP), official metrics/custom_psnr_ssim_pytorch.py, calculate_psnr_pytorch; the arithmetic before Y is
        float64 here too.

    Example:
        >>> a = torch.zeros(1, 3, 16, 16)
        >>> round(psnr(a + 1 / 255, a, crop=4).item(), 4)
        49.4489
    """
    return _psnr_of_prepared(*_prepare_pair(sr, gt, crop, channel, quantize))


def _gaussian_window(device: torch.device) -> Tensor:
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=device) - SSIM_WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    return weight / weight.sum()


def _blur_valid(x: Tensor, window: Tensor) -> Tensor:
    """Separable Gaussian over the area where the whole window fits, each channel by itself."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, 1, height, width)
    x = F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return x.reshape(batch, channels, *x.shape[-2:])


def ssim(sr: Tensor, gt: Tensor, *, crop: int, channel: Channel = "y", quantize: bool = True) -> Tensor:
    """Structural similarity of each image.

        SSIM = mean over the valid area of  (2 m_a m_b + C1)(2 c_ab + C2) / ((m_a^2 + m_b^2 + C1)(v_a + v_b + C2))

    with Gaussian local means m, (biased) variances v and covariance c, window 11x11, sigma 1.5, C1 = 0.01^2, C2 = 0.03^2 on the
    [0, 1] scale (= (0.01*255)^2 and (0.03*255)^2 on 0..255). "rgb" averages the maps of the three colours.

    Args:
        sr: restored image, [B, C, H, W] float, range [0, 1], C in (1, 3, 4).
        gt: reference image, same size.
        crop: border in pixels removed on each side before the windows are laid.
        channel: "y" or "rgb", as in `psnr`.
        quantize: round both images to 8 bit first.

    Returns:
        [B] float64, higher is better, 1 iff equal.

    Raises:
        ValueError: sizes differ, an image is not finite, or fewer than 11 pixels per side are left after the crop.
    Source:
        Wang et al. 2004, IEEE TIP 13(4), Eq. (13); AESOP metrics/custom_psnr_ssim_pytorch.py, calculate_ssim_pytorch. Equals
        skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1):
        scikit-image pads, then averages over the same valid area (its full map differs at the border, its mean does not).
    """
    a, b = _prepare_pair(sr, gt, crop, channel, quantize)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"sr: expected at least {SSIM_WINDOW} pixels per side after a crop of {crop}, got {a.shape[-2]}x{a.shape[-1]}; "
            "use larger images or less crop"
        )
    window = _gaussian_window(a.device)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    mean_a, mean_b = _blur_valid(a, window), _blur_valid(b, window)
    var_a = _blur_valid(a * a, window) - mean_a * mean_a
    var_b = _blur_valid(b * b, window) - mean_b * mean_b
    cov = _blur_valid(a * b, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def lr_psnr(sr: Tensor, lq: Tensor, *, scale: int, crop: int = 1, channel: Channel = "y", quantize: bool = True) -> Tensor:
    """How well the restored image, downscaled again, explains the input it came from, in dB.

        LR-PSNR = PSNR( imresize(round8(sr), 1/scale), lq )        the downscaled image is not rounded

    Args:
        sr: restored image, [B, C, scale*h, scale*w] float, range [0, 1].
        lq: the input, [B, C, h, w].
        scale: upscale factor, an integer >= 1.
        crop: border in *input* pixels removed on each side.
        channel: "y" or "rgb", as in `psnr`.
        quantize: round `sr` and `lq` to 8 bit before the downscaling.

    Returns:
        [B] float64, higher is better.

    Raises:
        ValueError: `sr` is not `scale` times `lq`, an image is not finite, or nothing is left after the crop.
    Source:
        AESOP Tables 4 and 9 name the metric without code or details; MATLAB bicubic in doubles, 8-bit SR, Y and one cropped input
        pixel are our choice (specification, section 5). `lr_psnr_crop0`, `lr_psnr_rgb` and `lr_psnr_rgb_crop0` are the others.
    """
    check_positive_int(scale, "scale")
    check_image(sr, "sr")
    check_image(lq, "lq")
    expected = (lq.shape[-2] * scale, lq.shape[-1] * scale)
    if tuple(sr.shape[-2:]) != expected:
        raise ValueError(
            f"sr: expected {expected[0]}x{expected[1]} ({scale} x lq), got {sr.shape[-2]}x{sr.shape[-1]}; "
            "pass the lq this image was made from"
        )
    check_picture(sr, "sr")
    small = to_float64(to_rgb(sr))
    small = imresize(quantize_8bit(small) if quantize else small, 1 / scale)
    a = _prepare(small, "sr", crop, channel, quantize=False)
    b = _prepare(lq, "lq", crop, channel, quantize)
    check_same_shape(a, b, "sr", "lq")
    return _psnr_of_prepared(a, b)


def reference_input(gt: Tensor, scale: int) -> Tensor:
    """The low-resolution input of a benchmark, made from its ground truth: what LR-PSNR compares with where no file is given.

        lq = round8( imresize(round8(gt), 1/scale) ),  MATLAB's bicubic on doubles, as the sets' own files are made

    Args:
        gt: [B, C, H, W] float, range [0, 1]; rows and columns over a multiple of `scale` are cut off at the bottom and the right.
        scale: upscale factor.

    Returns:
        [B, 3, H // scale, W // scale] float64 on the 8-bit grid.
    Source:
        AESOP specification, section 5; Set5 and Set14 files come from another form (`resize.imresize_uint8`), which differs from
        this one by one grey level in 7 to 16 % of the values.
    """
    check_positive_int(scale, "scale")
    check_picture(gt, "gt")
    return quantize_8bit(imresize(quantize_8bit(to_float64(to_rgb(crop_to_multiple(gt, scale)))), 1 / scale))
