"""What a node needs from the program that runs it: progress, cancel, folders, device, memory. The only file that knows ComfyUI.

`get_host()` answers with a `ComfyHost` inside ComfyUI and a `LocalHost` elsewhere. Nodes ask when they run, never at import:

    bar = get_host().progress(num_steps, "training")
    for step in range(num_steps):
        ...
        bar.update(step + 1, preview=curve)  # raises when the user cancels: let it through

Models are looked for, outside ComfyUI, in the folders of the environment variable ALIGNSR_MODELS (several: separated as in
PATH), else in ~/.cache/alignsr/models; each may hold files directly or in subfolders named as ComfyUI's (alignsr,
upscale_models), so that ComfyUI's own models folder serves too.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from .host_base import Bar, Host, Interrupted, SaveTarget
from .host_local import LocalHost, cancel_on_sigint

__all__ = [
    "Bar",
    "ComfyHost",
    "Host",
    "Interrupted",
    "LocalHost",
    "SaveTarget",
    "cancel_on_sigint",
    "get_host",
    "register_model_folder",
    "use_host",
]

PREVIEW_MAX_PX = 768  # larger frames are shrunk before they are sent to the page


class _ComfyBar:
    """ComfyUI's bar: progress, preview frame inside the node and cancellation in one call."""

    def __init__(self, total: int) -> None:
        import comfy.utils

        self.total = max(int(total), 1)
        self.bar = comfy.utils.ProgressBar(self.total)

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        import comfy.model_management

        frame = ("JPEG", preview.convert("RGB"), PREVIEW_MAX_PX) if preview is not None else None
        self.bar.update_absolute(value, self.total, frame)
        # the server's progress hook raises on cancel; without the server (tests, in-process use) there is no hook
        comfy.model_management.throw_exception_if_processing_interrupted()


class ComfyHost(Host):
    """The host inside ComfyUI. Its modules are imported when a method needs them."""

    def __init__(self) -> None:
        import comfy.model_management

        self.interrupt_types = (comfy.model_management.InterruptProcessingException, Interrupted)

    def progress(self, total: int, desc: str = "") -> Bar:
        return _ComfyBar(total)

    def check_interrupt(self) -> None:
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()

    def input_dirs(self) -> list[Path]:
        import folder_paths

        return [Path(folder_paths.get_input_directory())]

    def output_dir(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory())

    def temp_dir(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    def model_dirs(self, key: str = "alignsr") -> list[Path]:
        import folder_paths

        try:
            return [Path(folder) for folder in folder_paths.get_folder_paths(key)]
        except KeyError:  # a key that nobody registered has no folders
            return []

    def tokenizer_dirs(self) -> list[Path]:
        import comfy.model_management

        return [Path(comfy.model_management.__file__).parent / "text_encoders"]

    def device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    def free_memory(self, vram_bytes: int) -> None:
        import comfy.model_management

        comfy.model_management.free_memory(vram_bytes, self.device())

    def soft_empty_cache(self) -> None:
        import comfy.model_management

        comfy.model_management.soft_empty_cache()

    def is_oom(self, error: BaseException) -> bool:
        import comfy.model_management

        return isinstance(error, comfy.model_management.OOM_EXCEPTION) or super().is_oom(error)


_chosen: Host | None = None  # set for the time of a run by `use_host`
_local = LocalHost()
_comfy: ComfyHost | None = None


def get_host() -> Host:
    """The host of the running process: the one of `use_host`, else ComfyUI when it is loaded already, else the local one."""
    global _comfy
    if _chosen is not None:
        return _chosen
    if "comfy.model_management" not in sys.modules:  # never `import comfy` to find out: some other package may answer
        return _local
    if _comfy is None:
        _comfy = ComfyHost()
    return _comfy


@contextmanager
def use_host(host: Host) -> Iterator[Host]:
    """Make `get_host()` answer with `host` inside the block (all threads)."""
    global _chosen
    before, _chosen = _chosen, host
    try:
        yield host
    finally:
        _chosen = before


def register_model_folder() -> None:
    """Tell ComfyUI about `models/alignsr`; called by the pack's door. Does nothing outside ComfyUI."""
    if "comfy.model_management" not in sys.modules:
        return
    import folder_paths

    folder_paths.add_model_folder_path("alignsr", os.path.join(folder_paths.models_dir, "alignsr"))
