"""Golden numbers of the losses: `check(key, array)` holds an array to the official code's values."""

import json
from typing import Any

import torch
from torch import Tensor

from paths import REFERENCE
from reference.formula import scattered

CASES: dict[str, dict[str, Any]] = json.loads((REFERENCE / "losses.json").read_text(encoding="utf-8"))


def check(key: str, ours: Tensor | None) -> None:
    """The whole array, of which up to 16 values are kept as they are and of larger ones a scattered part, or a scalar."""
    assert ours is not None
    case = CASES[key]
    if "value" in case:
        assert ours.numel() == 1
        assert abs(ours.item() - case["value"]) <= case["atol"]
        return
    golden = torch.tensor(case["values"], dtype=torch.float64)
    flat = ours.detach().flatten()
    gap = ((flat if flat.numel() <= 16 else scattered(key, flat)).double() - golden).abs()
    assert float(gap.max()) <= case["atol"]
    assert float(gap.mean()) <= case["mean_atol"]
