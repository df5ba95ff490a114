"""The host outside ComfyUI: folders of the user's choice, one progress line on stderr, cancel by a flag."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .host_base import Bar, Host, Interrupted


class _LocalBar:
    """Bar of one node. Reports to the host, which shows one line for the whole run."""

    def __init__(self, host: "LocalHost", total: int, desc: str) -> None:
        self.host, self.total, self.desc = host, max(int(total), 1), desc

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        self.host.check_interrupt()
        self.host.report(self, min(max(int(value), 0), self.total), preview)


LINE_EVERY_S = 10.0


class _Lines:
    """What is said where nobody watches a bar, in a log file say: a line per node and, of a long one, another now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, text: str, *, is_due: bool = False) -> None:
        """Write a line on stderr: at once if it is due, else only when the last one is LINE_EVERY_S seconds old."""
        if is_due or time.monotonic() - self._last >= LINE_EVERY_S:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            self._last = time.monotonic()


class LocalHost(Host):
    """The host outside ComfyUI: the runner, the command line, plain Python.

    Args:
        output_dir: where results go; the current folder's `output` if not given.
        input_dirs: where inputs are looked for, after paths that exist as given; the current folder if none is given.
        models_dirs: instead of ALIGNSR_MODELS and ~/.cache/alignsr/models.
        show_progress: draw one bar on stderr, or write plain lines where stderr is no terminal.
        on_progress: called with (value, total, desc, preview) at every update; for tests and other user interfaces.
    """

    def __init__(
        self,
        *,
        output_dir: str | Path | None = None,
        input_dirs: Sequence[str | Path] = (),
        models_dirs: Sequence[str | Path] = (),
        show_progress: bool = False,
        on_progress: Callable[[int, int, str, Image.Image | None], None] | None = None,
    ) -> None:
        self._output_dir = Path(output_dir).expanduser() if output_dir is not None else None
        self._input_dirs = [Path(folder).expanduser() for folder in input_dirs]
        self._models_dirs = [Path(folder).expanduser() for folder in models_dirs]
        self._temp_dir: Path | None = None
        self._cancelled = threading.Event()
        self._on_progress = on_progress
        self._show_progress = show_progress
        self._display: Any = None  # rich's Progress while something is shown
        self._task: Any = None
        self._lines: _Lines | None = None  # in its place where stderr is no terminal
        self._job_total, self._job_done, self._job_label = 0, 0, ""

    # cancel

    def cancel(self) -> None:
        """Ask the running node to stop at its next update; safe from any thread and from a signal handler."""
        self._cancelled.set()

    def clear_cancel(self) -> None:
        """Forget an earlier `cancel()`."""
        self._cancelled.clear()

    def check_interrupt(self) -> None:
        if self._cancelled.is_set():
            if self._display is not None and self._job_total == 0:  # a lone bar has no `job` block to end it
                self._display.stop()
                self._display = None
            raise Interrupted("cancelled by the user")

    # progress

    def progress(self, total: int, desc: str = "") -> Bar:
        return _LocalBar(self, total, desc)

    @contextmanager
    def job(self, total_nodes: int) -> Iterator[None]:
        """Show one bar over a run of `total_nodes` nodes; `node_started` and `node_finished` move it."""
        self._job_total, self._job_done, self._job_label = total_nodes, 0, ""
        try:
            if self._show_progress:
                self._start_display()
            yield
        finally:
            if self._display is not None:
                self._display.stop()
            self._display, self._lines, self._job_total = None, None, 0

    def node_started(self, label: str) -> None:
        """Name the node that runs now."""
        self._job_label = label
        if self._lines is not None:
            self._lines.say(f"[{self._job_done + 1}/{self._job_total}] {label}", is_due=True)
        self._draw(0.0, "")

    def node_finished(self) -> None:
        """Move the bar by one node."""
        self._job_done += 1
        self._draw(0.0, "")

    def report(self, bar: _LocalBar, value: int, preview: Image.Image | None) -> None:
        """Called by the bars of nodes."""
        if self._on_progress is not None:
            self._on_progress(value, bar.total, bar.desc, preview)
        if self._show_progress and self._job_total == 0:
            self._lone_bar(bar, value)
        else:
            detail = f"{bar.desc} {value}/{bar.total}".strip()
            if self._lines is not None:
                self._lines.say(f"[{self._job_done + 1}/{self._job_total}] {self._job_label}: {detail}")
            self._draw(value / bar.total, detail)

    def _start_display(self) -> None:
        if not sys.stderr.isatty():
            self._lines = _Lines()
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._display = Progress(*columns, console=Console(stderr=True), transient=False)
        self._display.start()
        self._task = self._display.add_task("", total=max(self._job_total, 1))

    def _draw(self, fraction: float, detail: str) -> None:
        if self._display is not None:
            description = f"{self._job_label}: {detail}" if detail else self._job_label
            self._display.update(self._task, completed=min(self._job_done + fraction, self._job_total), description=description)

    def _lone_bar(self, bar: _LocalBar, value: int) -> None:
        """A node called as a plain object, outside any run: its bar is the whole job."""
        if self._display is None and self._lines is None:
            self._start_display()
        if self._lines is not None:
            self._lines.say(f"{bar.desc} {value}/{bar.total}".strip(), is_due=value >= bar.total)
            self._lines = self._lines if value < bar.total else None
            return
        self._display.update(self._task, completed=value, total=bar.total, description=bar.desc)
        if value >= bar.total:
            self._display.stop()
            self._display = None

    # folders

    def input_dirs(self) -> list[Path]:
        return self._input_dirs or [Path.cwd()]

    def output_dir(self) -> Path:
        return self._output_dir or Path.cwd() / "output"

    def temp_dir(self) -> Path:
        if self._temp_dir is None:
            self._temp_dir = Path(tempfile.mkdtemp(prefix="alignsr-"))
            atexit.register(shutil.rmtree, self._temp_dir, ignore_errors=True)
        return self._temp_dir

    def model_dirs(self, key: str = "alignsr") -> list[Path]:
        # a root may be a folder that the user made for us, with the files right inside, or ComfyUI's, with a subfolder per key
        roots = self._model_roots()
        return [root / key for root in roots] + (roots if key == "alignsr" else [])

    def _model_roots(self) -> list[Path]:
        listed = [Path(part).expanduser() for part in os.environ.get("ALIGNSR_MODELS", "").split(os.pathsep) if part]
        return self._models_dirs or listed or [Path.home() / ".cache" / "alignsr" / "models"]

    def _weight_files(self, folder: Path) -> list[Path]:
        found = super()._weight_files(folder)
        return [path for path in found if path.parent == folder] if folder in self._model_roots() else found

    def _input_candidates(self, name: str, folders: Sequence[Path]) -> list[Path]:
        # the local user owns the disk: any path goes
        return [Path(name).expanduser(), *(folder / name for folder in folders)]

    # device and memory

    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def free_memory(self, vram_bytes: int) -> None:
        if self.device().type == "cuda" and torch.cuda.mem_get_info()[0] < vram_bytes:
            gc.collect()
            self.soft_empty_cache()

    def soft_empty_cache(self) -> None:
        kind = self.device().type
        if kind == "cuda":
            torch.cuda.empty_cache()
        elif kind == "mps":
            torch.mps.empty_cache()


@contextmanager
def cancel_on_sigint(host: LocalHost) -> Iterator[None]:
    """Inside the block the first Ctrl-C cancels at the next step, the second stops at once. Off the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: object) -> None:
        host.cancel()
        sys.stderr.write("\nstopping after this step; press Ctrl-C again to stop at once\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
