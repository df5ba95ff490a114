"""What a state looks like, without its decoder: a linear map from latents to colours, fitted on the very picture at work."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_image
from .diffusion import MultiStepBackbone
from .images import from_model_range, to_model_range
from .resize import bicubic

PREVIEW_PX = 256  # longer side of what is encoded for the fit
_RIDGE = 1e-3


def fit_preview(backbone: MultiStepBackbone, lq: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit colours to latents on the first picture of a batch.

        rgb = A z + b,   (A, b) = argmin sum |A z + b - mean of the pixels under z|^2 + ridge |A|^2

    Autoencoders of diffusion models keep colours almost linear in their latents, so this shows the picture at an eighth of its
    size for nothing, whatever the autoencoder.

    Args:
        backbone: encodes a small copy of the picture, once.
        lq: low-resolution pictures, [B, 3, h, w] in [0, 1].

    Returns:
        A function of latents [B, C, h, w]: pictures [B, 3, h, w] float32 in [0, 1] on the CPU.
    """
    check_image(lq, "lq", channels=(3,))
    stride, multiple = backbone.spec.latent_stride, backbone.spec.size_multiple
    if stride == 1:
        return lambda z: from_model_range(z.detach().float().cpu()).clamp(0, 1)
    shrink = min(1.0, PREVIEW_PX / max(lq.shape[-2:]))
    height, width = (max(1, round(side * shrink / multiple)) * multiple for side in lq.shape[-2:])
    image = bicubic(lq[:1].float(), (height, width)).clamp(0, 1)
    with torch.no_grad():
        z = backbone.encode(to_model_range(image)).detach().double().cpu()
    colours = F.avg_pool2d(image.cpu(), stride).double().flatten(2)[0]
    features = F.pad(z.flatten(2)[0], (0, 0, 0, 1), value=1.0)
    system = features @ features.T + _RIDGE * features.shape[1] * torch.eye(features.shape[0], dtype=torch.float64)
    linalg: Any = torch.linalg
    weights: Tensor = linalg.solve(system, features @ colours.T).float()

    def show(z: Tensor) -> Tensor:
        flat = z.detach().float().cpu().movedim(1, -1)
        return (flat @ weights[:-1] + weights[-1]).movedim(-1, 1).clamp(0, 1)

    return show
