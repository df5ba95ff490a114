"""Third-party packages, imported late and made to work: the one place for workarounds.

The torchvision wheels of the package index for Linux link CUDA libraries. Beside a CPU build of torch their compiled part
cannot be loaded, and `import torchvision` fails with "operator torchvision::nms does not exist", and with it every package that
imports torchvision: timm, open_clip, peft, pyiqa, spandrel, parts of transformers and diffusers. Two operator schemas are all
that the import misses; with them declared, transforms and models work (`ops.deform_conv2d` and `io` still do not). Detectors
call `ops.nms` and `ops.roi_align` as well: `import_detection` brings both.

Every process imports third-party packages through the functions below, so a subprocess or a spawned worker is covered as well.
"""

import functools
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .torchvision_ops import in_parts, nms

_TORCHVISION_SCHEMAS = ("nms", "qnms")


def _torchvision_extension() -> Path | None:
    """Path of torchvision's compiled part, or None where torchvision is absent; imports nothing of torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("_C*.so"))), None)


def _loads(extension: Path) -> bool:
    """Whether the linker accepts the compiled part; torchvision's own import repeats the same call."""
    ops: Any = torch.ops
    try:
        ops.load_library(str(extension))
    except (ImportError, OSError):
        return False
    return True


@functools.cache
def prepare_torchvision() -> tuple[str, ...]:
    """Make `import torchvision` work for this process, whoever does the import.

    Nothing happens where torchvision already works: it is imported, torch has CUDA or ROCm, the system is not Linux, or the
    compiled part can be loaded. Calling it again costs nothing.

    Returns:
        Names of the operators that were declared here, empty when none was needed.
    """
    accelerated = torch.version.cuda is not None or torch.version.hip is not None
    if accelerated or sys.platform != "linux" or "torchvision" in sys.modules:
        return ()
    extension = _torchvision_extension()
    if extension is None or _loads(extension):
        return ()
    ops: Any = torch.ops
    library: Any = torch.library
    missing = tuple(name for name in _TORCHVISION_SCHEMAS if not hasattr(ops.torchvision, name))
    for name in missing:
        library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return missing


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()


def import_third_party(name: str) -> ModuleType:
    """Import a heavy third-party module, after what it needs to be importable here.

    Args:
        name: dotted module name, for example "diffusers" or "skimage.data".

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.

    Example:
        >>> import_third_party("json").dumps([1])
        '[1]'
    """
    prepare_torchvision()
    # bitsandbytes (through peft) warns on some processors that an optional 4-bit kernel is not installed; nothing here uses it
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_kernels)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise  # the package is there and one of its own imports is missing: its message is the right one
        message = f"{package}: expected an installed package, got none; run `python -m pip install {package}`"
        raise ModuleNotFoundError(message, name=error.name) from error


def import_torchvision() -> ModuleType:
    """torchvision, on a CPU-only torch too."""
    return import_third_party("torchvision")


@functools.cache
def import_detection() -> ModuleType:
    """torchvision.models.detection, with the operators that its detectors call.

    Where torchvision's compiled part cannot be loaded, `nms` gets a kernel for the CPU (torchvision_ops.nms), and `roi_align`
    runs in its own plain form, which torchvision would compile at the first call (a compiler is not there everywhere).
    """
    detection = import_third_party("torchvision.models.detection")
    extension = importlib.import_module("torchvision.extension")
    if extension._has_ops():
        return detection
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    regions: Any = importlib.import_module("torchvision.ops.roi_align")
    library: Any = torch.library
    library.impl("torchvision::nms", "cpu", nms)
    boxes._assert_has_ops = lambda: None
    regions._roi_align = in_parts(regions._roi_align.__wrapped__)
    return detection


def import_spandrel() -> ModuleType:
    """spandrel (MIT; each architecture keeps its own licence), which imports torchvision."""
    return import_third_party("spandrel")


def import_pyiqa() -> ModuleType:
    """pyiqa (PolyForm-Noncommercial-1.0.0: imported only when a learned metric is asked for), which imports torchvision."""
    return import_third_party("pyiqa")


def import_diffusers() -> ModuleType:
    """diffusers, whose LoRA side imports peft, transformers and with them torchvision."""
    return import_third_party("diffusers")


def import_transformers() -> ModuleType:
    """transformers, whose image processors import torchvision."""
    return import_third_party("transformers")


def import_peft() -> ModuleType:
    """peft, which imports transformers."""
    return import_third_party("peft")


def import_timm() -> ModuleType:
    """timm, which imports torchvision."""
    return import_third_party("timm")


def import_open_clip() -> ModuleType:
    """open_clip, which imports torchvision."""
    return import_third_party("open_clip")


def import_accelerate() -> ModuleType:
    """accelerate, which imports no torchvision but costs more than a second."""
    return import_third_party("accelerate")
