"""Starts ComfyUI's main.py in an environment with a CPU-only torch too: `python launch.py COMFYUI_PATH [main.py arguments]`.

ComfyUI imports torchvision, which there needs `core/compat.py` first. torch itself must not be imported before main.py has
read its arguments, so the preparation waits until somebody asks for torchvision.
"""

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CORE = Path(__file__).resolve().parents[2] / "core"


def load_compat() -> Any:
    """`core/compat.py` with its neighbours, under a package name of its own: alignsr need not be installed here."""
    package = ModuleType("alignsr_core_for_tests")
    package.__path__ = [str(CORE)]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.compat")


class PrepareTorchvision:
    """A finder that finds nothing; it prepares the import of torchvision and steps aside."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(PrepareTorchvision)  # type: ignore[arg-type]
        load_compat().prepare_torchvision()


if __name__ == "__main__":
    comfyui = Path(sys.argv[1])
    sys.meta_path.insert(0, PrepareTorchvision)  # type: ignore[arg-type]
    sys.argv = [str(comfyui / "main.py"), *sys.argv[2:]]
    sys.path[0] = str(comfyui)
    runpy.run_path(sys.argv[0], run_name="__main__")
