"""The command line in-process, tiny models on disk, and a picture of a folder for "nothing changed"."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignsr.cli import main
from alignsr.cli.made import RECORD
from alignsr.core.backbones.network import build
from alignsr.core.backbones.pixel import PixelBackbone
from alignsr.core.weights import save_weights
from reference.formula import U

LITE: dict[str, Any] = {"features": 8, "blocks": 1}
PIXEL: dict[str, Any] = {"patch_px": 8, "width": 16, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was written to the two streams."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def call(*arguments: object) -> Outcome:
    """`alignsr ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(item) for item in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def picture(height: int, width: int, channels: int = 3, name: str = "cli") -> Tensor:
    """[1, channels, height, width] in [0, 1], smooth."""
    coarse = U(name, 1, channels, 4, 4).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def save_tiny(path: Path, kind: str = "network", **changes: Any) -> Path:
    """A tiny x4 model with random weights: a header as the recipes write it."""
    if kind == "network":
        backbone: Any = build("lite", LITE)
        info = {"backbone": "network", "architecture": "lite", "options": LITE}
    else:
        backbone = PixelBackbone(PIXEL)
        info = {"backbone": "pixel", "architecture": "pixel", "options": dict(backbone.options)}
    with torch.no_grad():
        for index, value in enumerate(backbone.network.parameters()):
            value.copy_((U(f"tiny/{index}", *value.shape) - 0.5) * 0.1)
    info |= {"name": path.stem, "scale": 4, "licence": "Apache-2.0"} | changes
    return save_weights(path, backbone.network.state_dict(), info)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def results(folder: Path) -> list[str]:
    """Names of the files below a folder, but the record of what made them."""
    return [name for name in tree(folder) if Path(name).name != RECORD]


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Fails when the block makes, changes or removes a file."""
    before = tree(folder)
    yield
    after = tree(folder)
    assert after == before, sorted(set(after) ^ set(before)) or "a file was changed"
