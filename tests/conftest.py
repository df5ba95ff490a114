"""What every test process needs before torch is imported: no network, one thread, no window system."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)  # busy machines are slow, not wrong
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a checkout of ComfyUI where none is named."""
    if os.environ.get("COMFYUI_PATH"):
        return
    skip = pytest.mark.skip(reason="COMFYUI_PATH is not set")
    for item in items:
        if item.get_closest_marker("comfyui"):
            item.add_marker(skip)
