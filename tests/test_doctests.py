"""Every example in a docstring of core runs, on CPU and without a network."""

import doctest
import importlib
import pkgutil

import pytest

import alignsr.core

MODULES = [item.name for item in pkgutil.walk_packages(alignsr.core.__path__, "alignsr.core.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
