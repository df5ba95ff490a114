"""Golden cases whose input is a piece of a photograph: read from ../shared/data, compared at scattered places.

None of that data may be committed, so the repository holds neither the pieces nor pictures made from them: photographs.json
keeps a flat list of single values per case (see `formula.scattered`) with the tolerances for a float32 implementation.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from paths import REFERENCE, SHARED

from .formula import scattered

CASES: dict[str, dict[str, Any]] = json.loads((REFERENCE / "photographs.json").read_text(encoding="utf-8"))
SET14 = SHARED / "data" / "set14"
needs_photographs = pytest.mark.skipif(
    not SET14.is_dir(), reason="needs ../shared/data/set14, which may not be copied into the repository"
)


def crop(name: str, top: int, left: int, height: int, width: int, folder: str = "hr") -> Tensor:
    """A region of a picture, [3, H, W] in [0, 1]."""
    pixels = np.array(Image.open(SET14 / folder / f"{name}.png").convert("RGB"))[top : top + height, left : left + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def check(key: str, ours: Tensor, outside: float = 0.0) -> None:
    """Hold the whole array `ours` to the golden values; a share `outside` may miss `atol` (rounding edges of JPEG)."""
    case = CASES[key]
    golden = torch.tensor(case["values"], dtype=torch.float64)
    gap = (scattered(key, ours).double() - golden).abs()
    if "atol" not in case:  # 8-bit values
        assert float(gap.max()) <= 1
        assert float((gap > 0).double().mean()) <= max(outside, 0.005)
        return
    good = gap <= case["atol"]
    assert float((~good).double().mean()) <= outside
    assert float(gap[good].mean()) <= case["mean_atol"]
