"""FID and pFID: how far apart two sets of images are in the feature space of an Inception network."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import quantize_8bit, to_rgb
from .adapter import build_network
from .files import missing_files
from .inputs import check_picture
from .spec import MetricSpec, MissingWeightsError

PATCH_PX = 299


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of feature vectors.

        d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr( (C_a C_b)^{1/2} )

    With centred features X / sqrt(n - 1) = A, C = A^T A, the last trace is the sum of the singular values of A B^T (n_a x n_b),
    so neither a matrix square root nor a covariance is formed; a set with more vectors than dimensions is first reduced to an
    equal triangular factor.

    Args:
        features_a: [n_a, D] float, n_a >= 2.
        features_b: [n_b, D] float, n_b >= 2.

    Returns:
        The distance, >= 0 up to rounding, 0 iff mean and covariance agree.

    Raises:
        ValueError: fewer than two vectors, or different D.
    Source:
        Heusel et al. 2017, arXiv:1706.08500, Eq. (6); covariances with n - 1 as in pytorch-fid.
    """
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"{name}: expected [n, D] with n >= 2, got {tuple(features.shape)}; compare sets of at least two images"
            )
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"features_a: expected {features_b.shape[1]} dimensions, got {features_a.shape[1]}; use one network for both sets"
        )
    a, b = features_a.double(), features_b.double()
    mean_gap = (a.mean(0) - b.mean(0)).square().sum()
    factor_a, factor_b = _covariance_factor(a), _covariance_factor(b)
    linalg: Any = torch.linalg
    overlap: Tensor = linalg.svdvals(factor_a @ factor_b.T).sum()
    return float(mean_gap + factor_a.square().sum() + factor_b.square().sum() - 2 * overlap)


def _covariance_factor(features: Tensor) -> Tensor:
    """A with A^T A = covariance, at most D rows."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    linalg: Any = torch.linalg
    triangular: Tensor = linalg.qr(centred, mode="r").R
    return triangular


def patches(image: Tensor, size_px: int = PATCH_PX) -> Tensor:
    """Non-overlapping square patches from the top-left corner; the leftover margin is dropped.

    Args:
        image: [B, C, H, W]. A side shorter than `size_px` is padded with zeros at the right or bottom.
        size_px: side of a patch.

    Returns:
        [B * rows * columns, C, size_px, size_px].
    Source:
        AESOP names patch FID without code; the grid and the padding are our choice (specification, section 5).
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, size_px - width), 0, max(0, size_px - height)))
    tiles = image.unfold(2, size_px, size_px).unfold(3, size_px, size_px)  # [B, C, rows, columns, size, size]
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, image.shape[1], size_px, size_px)


class SetDistance:
    """FID or pFID, fed one batch at a time; only feature vectors are kept.

    Args:
        spec: METRICS["fid"] or METRICS["pfid"].
        network: Inception network, callable [B, 3, 299, 299] in [-1, 1] -> a list whose first entry is [B, 2048, 1, 1].
        device: where the network is.

    Source:
        AESOP metrics/fid.py with LDL's script as the caller: whole images resized bilinearly (no antialiasing) to 299x299, pixels
        in [-1, 1], pytorch-fid's weights, 2048-d pool. pFID takes 299x299 patches instead of resizing.
    """

    def __init__(self, spec: MetricSpec, network: Any, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.network = network
        self.device = torch.device(device)
        self._features: tuple[list[Tensor], list[Tensor]] = ([], [])

    @classmethod
    def load(cls, spec: MetricSpec, device: torch.device | str = "cpu") -> "SetDistance":
        """Load the network from the file on disk.

        Raises:
            MissingWeightsError: the file is not there.
        """
        missing = missing_files(spec)
        if missing:
            raise MissingWeightsError(spec.name, missing)
        model: Any = build_network(spec, device)
        return cls(spec, model.net.model, device)

    @torch.no_grad()
    def _extract(self, image: Tensor, name: str) -> Tensor:
        check_picture(image, name)
        image = quantize_8bit(to_rgb(image).float()).to(self.device)
        if self.spec.name == "pfid":
            image = patches(image)
        else:
            image = F.interpolate(image, size=(PATCH_PX, PATCH_PX), mode="bilinear", align_corners=False)
        return self.network(image * 2 - 1)[0].flatten(1).cpu()

    def update(self, sr: Tensor, gt: Tensor) -> None:
        """Add images to both sets: [B, C, H, W] float in [0, 1]; sizes may differ from call to call."""
        self._features[0].append(self._extract(sr, "sr"))
        self._features[1].append(self._extract(gt, "gt"))

    def result(self) -> float:
        """The distance between what has been added so far; lower is better.

        Raises:
            ValueError: fewer than two images (or patches).
        """
        if not self._features[0]:
            raise ValueError(f"{self.spec.name}: expected at least two images, got none; add images first")
        return frechet_distance(torch.cat(self._features[0]), torch.cat(self._features[1]))
