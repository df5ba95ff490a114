"""The formula gives the check values printed beside its definition."""

import pytest
import torch

from reference.formula import S, U, formula_tensor


def test_uniform_starts_as_published() -> None:
    assert U("check", 4).tolist() == pytest.approx([0.232975599822, 0.826867329190, 0.551668752450, 0.508721761405], abs=1e-7)
    assert torch.allclose(S("check", 4, dtype=torch.float64), 2 * U("check", 4, dtype=torch.float64) - 1, atol=1e-7)


def test_weights_have_the_published_check_values() -> None:
    first = formula_tensor("conv_first.weight", torch.Size((64, 3, 3, 3)))
    assert first.flatten()[:4].tolist() == pytest.approx([0.1595215, -0.1053046, -0.0054549, 0.0505818], abs=1e-7)
    last = formula_tensor("features.34.weight", torch.Size((512, 512, 3, 3)))
    assert last.flatten()[-2:].tolist() == pytest.approx([-0.02520472, -0.00706560], abs=1e-7)


def test_unknown_vector_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="name: expected"):
        formula_tensor("layer.gamma", torch.Size((3,)))
