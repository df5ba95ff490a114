"""Folders of inputs and what methods made of them, for tests of the adversary."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignsr.core.resize import bicubic
from reference.formula import U

METHODS = ("rough", "smooth")


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def make_artefacts(folder: Path, count: int = 3, side: int = 24, scale: int = 4, with_gt: bool = False) -> Path:
    """`smooth` is the bicubically enlarged input, `rough` the same with a checkerboard; each picture a little wider."""
    for number in range(count):
        coarse = torch.from_numpy(np.asarray(U(f"artefacts/{number}", 1, 3, 6, 6))).float()
        lq = (bicubic(coarse, (side, side + 2 * number)).clamp(0, 1) * 255).round() / 255
        up = bicubic(lq, (scale * side, scale * (side + 2 * number)))
        board = torch.ones_like(up)
        board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
        name = f"picture_{number}.png"
        save(lq, folder / "lq" / name)
        save(up, folder / "smooth" / name)
        save(up + 0.1 * board, folder / "rough" / name)
        if with_gt:
            save(up, folder / "gt" / name)
    return folder
