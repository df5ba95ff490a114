"""The host object: which one answers, and that both sides keep the same promises."""

import io
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import alignsr.nodes.host as host_module
import alignsr.nodes.host_local as host_local
from alignsr.core.weights import MissingModelError
from alignsr.nodes.host import ComfyHost, Interrupted, LocalHost, get_host, register_model_folder, use_host


def test_local_without_comfyui_and_no_comfyui_is_imported() -> None:
    code = (
        "import sys; from alignsr.nodes.host import get_host, LocalHost; assert type(get_host()) is LocalHost; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('comfy', 'folder_paths', 'rich', 'torchvision')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_reports_and_cancel_raises() -> None:
    seen: list[Any] = []
    host = LocalHost(on_progress=lambda *report: seen.append(report))
    bar = host.progress(2, "steps")
    picture = Image.new("RGB", (2, 2))
    bar.update(1, picture)
    host.cancel()
    with pytest.raises(Interrupted):
        bar.update(2)
    with pytest.raises(Interrupted):
        host.check_interrupt()
    host.clear_cancel()
    bar.update(5)
    assert seen == [(1, 2, "steps", picture), (2, 2, "steps", None)]


class Terminal(io.StringIO):
    """A stderr that says that somebody watches."""

    def isatty(self) -> bool:
        return True


def work_on_two_nodes(host: LocalHost) -> None:
    with host.job(2):
        for name in ("1 Load", "2 Train"):
            host.node_started(name)
            bar = host.progress(10, "steps")
            for step in (5, 10):
                bar.update(step)
            host.node_finished()
    host.progress(1, "alone").update(1)


def test_one_bar_for_the_job_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    work_on_two_nodes(LocalHost(show_progress=True))
    shown = screen.getvalue()
    assert "2 Train" in shown
    assert "100%" in shown
    assert "alone" in shown


@pytest.mark.parametrize("every_s", [0.0, 1000.0])
def test_lines_where_stderr_is_no_terminal(
    every_s: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log file gets the nodes' names, and of a long node its progress now and then."""
    monkeypatch.setattr(host_local, "LINE_EVERY_S", every_s)
    work_on_two_nodes(LocalHost(show_progress=True))
    captured = capsys.readouterr()
    assert captured.out == ""
    steps = [
        [f"[{n}/2] {name}: steps {k}/10" for k in (5, 10)] if not every_s else [] for n, name in ((1, "1 Load"), (2, "2 Train"))
    ]
    assert captured.err.splitlines() == ["[1/2] 1 Load", *steps[0], "[2/2] 2 Train", *steps[1], "alone 1/1"]


def test_quiet_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    host = LocalHost()
    with host.job(1):
        host.progress(1, "x").update(1)
    assert capsys.readouterr() == ("", "")


def test_model_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "own.safetensors",
        "alignsr/deep/lite.safetensors",
        "upscale_models/net.pth",
        "vae/other.safetensors",
        "alignsr/readme.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path))
    host = LocalHost()
    bundled = list(host_module.Host.list_models(LocalHost(models_dirs=[tmp_path / "none"])))
    assert [name for name in host.list_models() if name not in bundled] == ["deep/lite.safetensors", "net.pth", "own.safetensors"]
    assert host.resolve_model("deep/lite.safetensors") == tmp_path / "alignsr/deep/lite.safetensors"
    assert host.resolve_model("net") == tmp_path / "upscale_models/net.pth"
    with pytest.raises(MissingModelError, match="nothing"):
        host.resolve_model("nothing")
    monkeypatch.delenv("ALIGNSR_MODELS")
    assert LocalHost().model_dirs("upscale_models") == [Path.home() / ".cache/alignsr/models/upscale_models"]


def test_inputs_are_found_by_path_folder_and_annotation(tmp_path: Path) -> None:
    host = LocalHost(output_dir=tmp_path / "out", input_dirs=[tmp_path / "a", tmp_path / "b"])
    for name in ("a/one.png", "b/two.jpg", "b/notes.txt", "out/three.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert host.list_inputs() == ["one.png", "two.jpg"]
    assert host.find_input("two.jpg") == tmp_path / "b/two.jpg"
    assert host.find_input(str(tmp_path / "b/notes.txt")) == tmp_path / "b/notes.txt"
    assert host.find_input("three.png [output]") == tmp_path / "out/three.png"
    for missing in ("three.png", "", "one.png [output]"):
        with pytest.raises(FileNotFoundError, match="image: expected a file in"):
            host.find_input(missing)


def test_out_of_memory_is_recognised() -> None:
    host = LocalHost()
    assert host.is_oom(torch.OutOfMemoryError("CUDA out of memory"))
    assert host.is_oom(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert host.is_oom(MemoryError())
    assert not host.is_oom(RuntimeError("shape mismatch"))


def test_previews_go_to_the_temp_folder() -> None:
    host = LocalHost()
    ui = host.save_preview_images([Image.new("RGB", (2, 3)), Image.new("L", (4, 4))])
    assert [entry["type"] for entry in ui["images"]] == ["temp", "temp"]
    with Image.open(host.temp_dir() / ui["images"][0]["filename"]) as saved:
        assert saved.size == (2, 3)


class _Stopped(Exception):  # noqa: N818  # stands for a class of that kind
    pass


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """Modules with the names and signatures of ComfyUI's, recording what is asked of them."""
    state = types.SimpleNamespace(stop=False, updates=[], freed=[], folders={})

    def throw() -> None:
        if state.stop:
            raise _Stopped

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            state.updates.append((value, total, preview))

    management = types.ModuleType("comfy.model_management")
    vars(management).update(
        __file__=str(tmp_path / "comfy" / "model_management.py"),
        InterruptProcessingException=_Stopped,
        OOM_EXCEPTION=torch.OutOfMemoryError,
        throw_exception_if_processing_interrupted=throw,
        get_torch_device=lambda: torch.device("cpu"),
        free_memory=lambda amount, device: state.freed.append((amount, device)),
        soft_empty_cache=lambda: None,
    )
    utils = types.ModuleType("comfy.utils")
    vars(utils).update(ProgressBar=ProgressBar)
    comfy = types.ModuleType("comfy")
    vars(comfy).update(model_management=management, utils=utils)
    paths = types.ModuleType("folder_paths")

    def add_model_folder_path(key: str, path: str) -> None:
        state.folders.setdefault(key, []).append(path)

    vars(paths).update(
        models_dir=str(tmp_path / "models"),
        get_input_directory=lambda: str(tmp_path / "input"),
        get_output_directory=lambda: str(tmp_path / "output"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
        get_folder_paths=lambda key: state.folders[key],
        add_model_folder_path=add_model_folder_path,
    )
    for module in (comfy, management, utils, paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(host_module, "_comfy", None)
    return state


def test_comfyui_is_used_when_it_is_loaded(comfyui: types.SimpleNamespace, tmp_path: Path) -> None:
    host = get_host()
    assert isinstance(host, ComfyHost)
    assert get_host() is host
    with use_host(LocalHost()) as local:
        assert get_host() is local
    host.progress(3, "x").update(2, Image.new("L", (4, 4)))
    value, total, (kind, picture, _) = comfyui.updates[0]
    assert (value, total, kind, picture.mode) == (2, 3, "JPEG", "RGB")
    host.free_memory(10)
    assert comfyui.freed == [(10, torch.device("cpu"))]
    assert host.output_dir() == tmp_path / "output"
    assert host.is_oom(torch.OutOfMemoryError())
    assert host.tokenizer_dirs() == [tmp_path / "comfy" / "text_encoders"] and LocalHost().tokenizer_dirs() == []


def test_comfyui_cancel_comes_through_as_its_own_exception(comfyui: types.SimpleNamespace) -> None:
    host = get_host()
    comfyui.stop = True
    with pytest.raises(_Stopped):
        host.progress(3).update(1)
    with pytest.raises(_Stopped):
        host.check_interrupt()
    assert _Stopped in host.interrupt_types


def test_comfyui_model_folders(comfyui: types.SimpleNamespace, tmp_path: Path) -> None:
    register_model_folder()
    assert comfyui.folders == {"alignsr": [str(tmp_path / "models/alignsr")]}
    (tmp_path / "models/alignsr").mkdir(parents=True)
    (tmp_path / "models/alignsr/a.safetensors").write_bytes(b"")
    host = get_host()
    assert host.model_dirs("upscale_models") == []
    assert "a.safetensors" in host.list_models()
    assert host.resolve_model("a.safetensors") == tmp_path / "models/alignsr/a.safetensors"


def test_comfyui_inputs_stay_in_their_folder(comfyui: types.SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/a.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    assert get_host().find_input("a.png") == tmp_path / "input/a.png"
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(FileNotFoundError):
            get_host().find_input(name)
