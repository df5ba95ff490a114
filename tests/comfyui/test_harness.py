"""The tools of this folder themselves; these tests need no ComfyUI."""

import json
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from comfyui.server import read_preview, trouble


def test_trouble_sees_our_lines_and_only_ours() -> None:
    log = """Starting server
Traceback (most recent call last):
  File "comfy_extras/nodes_audio.py", line 4, in <module>
ModuleNotFoundError: No module named 'torchaudio'

Traceback (most recent call last):
  File "custom_nodes/Align-SR/__init__.py", line 4, in <module>
ImportError: no
Cannot import Align-SR module for custom nodes: no
   0.0 seconds (IMPORT FAILED): Align-SR
"""
    assert len(trouble(log)) == 3
    assert trouble(log)[0].endswith("ImportError: no")


def test_preview_frames_of_both_kinds_are_read() -> None:
    picture = BytesIO()
    Image.new("RGB", (6, 4)).save(picture, "JPEG")
    metadata = json.dumps({"node_id": "7"}).encode()
    plain = read_preview(struct.pack(">II", 1, 1) + picture.getvalue(), 2)
    named = read_preview(struct.pack(">II", 4, len(metadata)) + metadata + picture.getvalue(), 3)
    assert plain is not None
    assert named is not None
    assert (plain.image.size, plain.image.format, plain.node_id, plain.after) == ((6, 4), "JPEG", None, 2)
    assert (named.image.size, named.node_id, named.after) == ((6, 4), "7", 3)


def test_a_frame_that_is_no_picture_is_left_out() -> None:
    assert read_preview(struct.pack(">I", 3) + b"text", 0) is None


def test_the_launcher_prepares_torchvision_without_an_installed_alignsr() -> None:
    """ComfyUI's own environment need not have the package: `core/compat.py` and what it imports come from the checkout."""
    code = "import sys; sys.modules['alignsr'] = None; from launch import load_compat; load_compat().prepare_torchvision()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
