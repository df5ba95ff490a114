"""Third-party imports work on a CPU-only torch, in this process, in subprocesses and in spawned workers."""

import multiprocessing
import subprocess
import sys

import pytest
import torch

from alignsr.core import compat

CPU_ONLY = torch.version.cuda is None and torch.version.hip is None


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def operators_in_a_worker(_: int) -> tuple[str, bool]:
    """Runs in a spawned process: nothing of the parent's state is there."""
    before = "torchvision" in sys.modules
    return compat.import_torchvision().__name__, before


def test_torchvision_imports_and_transforms_work() -> None:
    compat.import_torchvision()
    resize = compat.import_third_party("torchvision.transforms.v2").Resize((4, 6))
    assert resize(torch.rand(3, 8, 8)).shape == (3, 4, 6)


def test_preparing_twice_changes_nothing() -> None:
    assert compat.prepare_torchvision() == compat.prepare_torchvision()


def test_spandrel_imports_in_a_subprocess_that_only_knows_alignsr() -> None:
    code = "from alignsr.core import compat; print(compat.import_spandrel().ModelLoader.__name__)"
    assert python(code) == "ModelLoader"


def test_a_package_that_imports_torchvision_itself_works_after_preparing() -> None:
    assert python("from alignsr.core import compat; compat.prepare_torchvision(); import timm; print(timm.__name__)") == "timm"


def test_declarations_outlive_garbage_collection() -> None:
    code = """
import gc
from alignsr.core import compat
declared = compat.prepare_torchvision()
compat.prepare_torchvision.cache_clear()
gc.collect()
import torchvision, torch
print(all(hasattr(torch.ops.torchvision, name) for name in declared), compat.prepare_torchvision())
"""
    assert python(code) == "True ()"


def test_spawned_workers_import_torchvision() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(operators_in_a_worker, [0]) == [("torchvision", False)]


@pytest.mark.skipif(not CPU_ONLY or sys.platform != "linux", reason="needs a CPU-only torch on Linux")
def test_nothing_is_declared_where_torch_has_cuda() -> None:
    code = """
import torch
torch.version.cuda = "13.0"
from alignsr.core import compat
print(compat.prepare_torchvision(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert python(code) == "() False"


def test_a_missing_package_is_named_with_its_remedy() -> None:
    with pytest.raises(
        ModuleNotFoundError, match="alignsr_nonesuch: expected an installed package, got none; run `python -m pip"
    ):
        compat.import_third_party("alignsr_nonesuch.part")


def test_an_import_missing_inside_a_package_keeps_its_own_message(tmp_path, monkeypatch) -> None:
    (tmp_path / "alignsr_half.py").write_text("import alignsr_other_half\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'alignsr_other_half'"):
        compat.import_third_party("alignsr_half")
