"""Talking to the user: messages and one progress bar on stderr, JSON to a file or stdout, options of several commands."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer

OK, WRONG, STOPPED = 0, 1, 130

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write a JSON report; - is stdout.", show_default=False)
]
ScaleOption = Annotated[float, typer.Option("--scale", metavar="N", help="Upscaling factor, a whole number in 1..16.")]
TileOption = Annotated[
    int,
    typer.Option(
        "--tile-px",
        metavar="N",
        help="Largest tile on the model's input grid, 16 or more; 0: the model's own. Less needs less memory.",
    ),
]
OverlapOption = Annotated[
    int, typer.Option("--overlap-px", metavar="N", help="Overlap of neighbouring tiles; -1: the model's own.")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, ...")]
PrecisionOption = Annotated[str, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16.")]

MIN_TILE_PX = 16  # below, a pass costs many times its work and the tiles see too little of their surroundings
LINE_EVERY_S = 10.0  # of a long job, where nobody watches a bar

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def say(text: str, quiet: bool = False) -> None:
    """A line on stderr."""
    if not quiet:
        typer.echo(text, err=True)


def complain(error: BaseException | str) -> None:
    """An error on stderr, on one line unless it is a list of several."""
    if isinstance(error, str):
        text = error
    elif isinstance(error, OSError) and error.errno is not None:
        from ..core.batch import error_line

        text = error_line(error)
    else:
        text = str(error).strip() or type(error).__name__
        if not isinstance(error, (ValueError, TypeError, OSError, MemoryError)) and type(error).__module__ in (
            "builtins",
            "torch",
        ):
            text = f"{type(error).__name__}: {text}"
    typer.echo(f"error: {text}", err=True)


def write_json(target: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report to a file, atomically, or to stdout for `-`; nothing when no target is given."""
    if target is None:
        return
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if str(target) == "-":
        typer.echo(text, nl=False)
        return
    write_text(target, text)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    from ..core.weights import write_atomic

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(target, write)


def whole_number(value: float, name: str) -> int:
    """3.0 -> 3; 3.5 is refused in our own words.

    Raises:
        ValueError: not a whole number.
    """
    if not float(value).is_integer():
        raise ValueError(f"{name}: expected a whole number, got {value:g}; choose 2, 3, 4, ...")
    return int(value)


def as_folder(out: str, name: str = "--out") -> Path:
    """The folder that an option names; a picture's name there is a mistake unless such a folder exists or a / ends it.

    Raises:
        ValueError: a picture's name.
    """
    from ..core.image_files import SUFFIXES

    folder = Path(out)
    if folder.suffix.lower() in SUFFIXES and not folder.is_dir() and not out.endswith(("/", os.sep)):
        raise ValueError(f"{name}: expected a folder, got the picture name {out}; end it in / for a folder of that name")
    return folder


def existing_name(text: str) -> Path:
    """A path from the command line; an empty text, such as an unset shell variable, is not the current folder."""
    if not text:
        raise typer.BadParameter("expected a path, got an empty text; . is the current folder")
    return Path(text)


def check_reports(*files: Path | None) -> None:
    """Make sure that the reports can be written before the work that they are about.

    Raises:
        OSError: a file stands in the way, or the place is read-only.
    """
    from ..core.batch import check_writable

    for file in files:
        if file is not None and str(file) != "-":
            if file.is_dir():
                raise IsADirectoryError(f"{file}: expected the name of a file, got a folder; add a file name")
            check_writable(file.parent)


def check_source(source: Path) -> None:
    """Refuse a picture or folder that is not there before torch is imported, which takes seconds.

    Raises:
        FileNotFoundError: nothing there.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected an image file or a folder of images, found nothing; check the path")


def find_weights(name: str) -> Path:
    """The weight file of a model's name or path.

    Raises:
        MissingModelError: no such model; says how to get it when it is one that `alignsr models download` knows.
    """
    from ..core.weights import MissingModelError
    from ..nodes.host import get_host
    from .downloads import DOWNLOADS
    from .large import ADAPTERS, how_to_get, known_name

    try:
        return get_host().resolve_model(name)
    except MissingModelError as error:
        known = next((item for item in DOWNLOADS if name in (item, DOWNLOADS[item].file_name)), None)
        if known is not None:
            how = f"get it with `alignsr models download {known}`"
        elif large := known_name(name):
            how = how_to_get(large)
            if large in ADAPTERS:  # on disk or not, it does not restore by itself
                how = f"it takes a base model too: `alignsr run {ADAPTERS[large]}` upscales with both; where it is missing, {how}"
        else:
            raise
        raise MissingModelError(f"model: expected a model of one file on this computer, found no {name!r}; {how}") from error


def check_tiles(tile_px: int, overlap_px: int, spec: Any, quiet: bool = False) -> None:
    """Refuse tiles that a model cannot work with before any picture is touched; say it when they are too small to be good.

    Raises:
        ValueError: a tile below MIN_TILE_PX, or an overlap that does not fit into it.
    """
    from ..core.memory import MIN_TILE_PX as SENSIBLE_TILE_PX
    from ..core.tiling import plan

    if tile_px and tile_px < MIN_TILE_PX:
        raise ValueError(
            f"--tile-px: expected 0 or at least {MIN_TILE_PX}, got {tile_px}; 0 takes the model's own {spec.tile_px} px, "
            f"{SENSIBLE_TILE_PX} is small enough for little memory"
        )
    tile, unit = tile_px or spec.tile_px, spec.size_multiple
    overlap = min(spec.overlap_px, tile // 2) if overlap_px == -1 else overlap_px
    plan(4 * tile * unit, 4 * tile * unit, tile, overlap, unit)  # says what is wrong with the pair
    if tile < SENSIBLE_TILE_PX:
        say(
            f"warning: tiles of {tile} px take longer and give visibly other results than large ones; "
            f"--tile-px {SENSIBLE_TILE_PX} needs little memory too",
            quiet,
        )


def choose_device(name: str) -> Any:
    """`auto` is the host's choice; anything else as torch names it.

    Raises:
        ValueError: no such device on this machine.
    """
    import torch

    from ..nodes.host import get_host

    if name == "auto":
        return get_host().device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device: expected a device of this machine, got {name!r}; use cpu or auto") from error
    return device


def choose_precision(name: str) -> Any:
    """The torch dtype of a precision's name.

    Raises:
        ValueError: unknown name.
    """
    import torch

    if name not in PRECISIONS:
        raise ValueError(f"--precision: expected one of {', '.join(PRECISIONS)}, got {name!r}; choose one of them")
    return getattr(torch, PRECISIONS[name])


@contextmanager
def ctrl_c_asks() -> Iterator[Callable[[], bool]]:
    """Inside the block the first Ctrl-C only makes the yielded question answer True; the second one stops at once."""
    from ..nodes.host import LocalHost, cancel_on_sigint

    host = LocalHost()

    def cancelled() -> bool:
        try:
            host.check_interrupt()
        except host.interrupt_types:
            return True
        return False

    with cancel_on_sigint(host):
        yield cancelled


class Progress:
    """One bar on stderr where somebody watches, plain lines where nobody does, nothing when quiet.

    Args:
        total: units of the whole job.
        quiet: show nothing.
    """

    def __init__(self, total: float, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self.is_live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: Any = None
        self._task: Any = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.is_live:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, text: str) -> None:
        """Move the bar; where nobody watches, a line every LINE_EVERY_S seconds."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self.line(f"{done / max(self.total, 1e-9):.0%} done, at {text}")

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._last_line = time.monotonic()
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)
