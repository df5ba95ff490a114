"""AE-PSNR: PSNR between what an auto-encoder keeps of two images, so that texture nobody could predict does not count."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_same_shape
from ..images import crop_to_multiple, quantize_8bit, to_rgb
from .distortion import psnr_of_raw
from .inputs import check_picture


class ImageAutoEncoder(Protocol):
    """What AE-PSNR needs of an auto-encoder (`networks.autoencoder.AutoEncoder`): its scale and image -> image."""

    scale: int

    def __call__(self, image: Tensor, /) -> Tensor:
        """[B, 3, H, W] in [0, 1], sides a multiple of `scale` -> the same shape, neither clamped nor rounded."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights; they say on which device it computes."""
        ...


@torch.no_grad()
def project(image: Tensor, autoencoder: ImageAutoEncoder) -> Tensor:
    """AE(image) in float32, one image at a time, on the CPU; neither clamped nor rounded."""
    weight = next(iter(autoencoder.parameters()), None)
    device = image.device if weight is None else weight.device
    parts = [autoencoder(image[index : index + 1].float().to(device)).cpu() for index in range(len(image))]
    return torch.cat(parts)


def ae_psnr(sr: Tensor, gt: Tensor, autoencoder: ImageAutoEncoder, *, crop: int, quantize: bool = True) -> Tensor:
    """PSNR of what an auto-encoder keeps of each image, in dB: the fidelity bias of the super-resolved image.

        AE-PSNR = PSNR_Y( AE(round8(sr)), AE(round8(gt)) ),  AE's output neither clamped nor rounded

    Args:
        sr: restored image, [B, C, H, W] float, range [0, 1], C in (1, 3, 4).
        gt: reference image, same size. Rows and columns over a multiple of the auto-encoder's scale are cut off both at the
            bottom and the right.
        autoencoder: frozen, in eval mode; computes in float32, one image at a time.
        crop: border in pixels removed from both outputs; the paper uses 4.
        quantize: round both images to 8 bit before the auto-encoder.

    Returns:
        [B] float64 on the CPU, higher is better, 80 for equal images.

    Raises:
        ValueError: sizes differ, an image is not finite or not in [0, 1], or nothing is left after the crop.
    Source:
        Lee et al. 2025 (AESOP), arXiv:2412.00124, Tables 4 and 9; official metrics/custom_psnr_ssim_pytorch.py,
        calculate_aepsnr_pytorch. Ours runs without a training run around it (specification, sections 5 and 7).
    """
    images = [to_rgb(check_picture(image, name)).float() for image, name in ((sr, "sr"), (gt, "gt"))]
    check_same_shape(images[0], images[1], "sr", "gt")
    images = [crop_to_multiple(quantize_8bit(image) if quantize else image, autoencoder.scale) for image in images]
    return psnr_of_raw(project(images[0], autoencoder), project(images[1], autoencoder), crop=crop)
