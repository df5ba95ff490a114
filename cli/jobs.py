"""Commands that run longer jobs: saved workflows and training."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .shown import keep_previews, not_kept, texts
from .terminal import (
    OK,
    STOPPED,
    WRONG,
    JsonFile,
    Progress,
    Quiet,
    as_folder,
    check_reports,
    complain,
    ctrl_c_asks,
    say,
    write_json,
)


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A workflow saved by ComfyUI, in API or UI format.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="Change an input first; NODE is an id, title or class. May be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder for results.")] = "output",
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="Folder to look for input pictures in; beside the current folder and the workflow's own.",
            show_default=False,
        ),
    ] = None,
    previews: Annotated[
        bool, typer.Option("--previews", help="Keep the pictures of preview nodes as well, in DIR/previews.")
    ] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Run a saved workflow without ComfyUI.

    The whole workflow is checked before anything runs. An error names node id, class and input. The first Ctrl-C stops at
    the next step and keeps finished results. What save nodes write goes to DIR, texts are printed, and previews are named but
    not kept without --previews.
    """
    from ..runner import WorkflowError, WorkflowInterrupted, run_workflow

    folder = as_folder(out)
    check_reports(json_file)
    code, error, result = OK, "", None
    try:
        result = run_workflow(file, sets=sets or (), out_dir=folder, input_dirs=inputs or (), quiet=quiet)
    except WorkflowError as problem:
        code, error, result = WRONG, str(problem), problem.partial
    except WorkflowInterrupted as stop:
        code, error, result = STOPPED, str(stop), stop.partial
    report: dict[str, Any] = {"workflow": str(file), "out": str(folder), "error": error or None}
    if result is not None:
        files = result.files + (keep_previews(result.previews, result.titles, folder) if previews else [])
        lost = "" if previews else not_kept(result.previews, result.titles)
        for line in [*texts(result.outputs, result.titles), *map(str, files), *([lost] if lost else [])]:
            say(line, quiet)
        report |= {
            "files": [str(path) for path in files],
            "executed": result.executed,
            "cached": result.cached,
            "warnings": result.warnings,
        }
        report["outputs"] = result.outputs
    write_json(json_file, report)
    if error:
        complain(error)
    raise typer.Exit(code)


class TerminalHooks:
    """A training run's line to the terminal: one bar with the losses, the curve as a picture, Ctrl-C as a wish to stop.

    Args:
        bar: where progress goes.
        folder: the run folder.
        cancelled: asked before every forward pass.
        log_every: steps between plain lines where there is no live bar.
    """

    def __init__(self, bar: Progress, folder: Path, cancelled: Callable[[], bool], log_every: int) -> None:
        self.bar, self.folder, self.cancelled, self.log_every = bar, folder, cancelled, log_every
        self.done = 0

    def progress(self, step: int, total: int, logs: Mapping[str, float]) -> None:
        """Move the bar; say the losses."""
        self.done = step
        shown = [f"{key} {value:.4g}" for key, value in logs.items() if key not in ("step", "seconds", "learning_rate")]
        text = f"step {step}/{total}  {'  '.join(shown)}"
        self.bar.update(step, text)
        if not self.bar.is_live and (step % self.log_every == 0 or step in (1, total)):
            self.bar.line(f"{text}  ({logs.get('seconds', 0):.0f} s)")

    def preview(self, image: Any) -> None:
        """Keep the newest curve on disk, between checkpoints too."""
        from ..core.weights import write_atomic

        write_atomic(self.folder / "curve.png", image.save)

    def validating(self, done: int, total: int) -> None:
        """Say how far it is."""
        self.bar.update(self.done, f"validating, picture {done + 1} of {total}")

    def should_stop(self) -> bool:
        """Has the user asked to stop?"""
        return self.cancelled()


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a published config such as lite-x4.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key first, e.g. run.steps=100. May be repeated.", show_default=False
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="RUN_DIR", help="Run folder; default: runs/NAME-HASH.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Train, or go on where a run stopped.

    The run folder gets checkpoints, a log, the loss curve and, at the end, the weight file. The first Ctrl-C stops after the
    running step and writes a checkpoint, the second stops at once. A resumed run equals one that was never interrupted.
    """
    from ..core.batch import check_writable
    from ..core.checks import did_you_mean
    from ..nodes.host import LocalHost
    from ..train.config import config_hash, find_config, published
    from ..train.loop import Stopped
    from ..train.recipes import load_config
    from ..train.sources import check_sources
    from ..train.state import checkpoints

    if config.is_dir() or config.suffix.lower() == ".json":
        got, hint = ("a folder", "name a file in it") if config.is_dir() else ("a JSON file", "`alignsr run` runs workflows")
        raise ValueError(f"{config}: expected a TOML file, got {got}; {hint}")
    if not find_config(config).is_file():
        is_tiny = config.name.startswith("tiny-")
        names = [name for name in published() if name.startswith("tiny-") == is_tiny]
        near = did_you_mean(str(config), names)
        few = "README lists them, such as lite-x4, aesop-rrdb-128, strsr-flux2-klein-stage1, asasr-flux and dp2o-sd2"
        raise FileNotFoundError(
            f"config: expected a TOML file or the name of a published config, found no {str(config)!r}; "
            f"{near if len(near) < 200 else few}"  # there are too many to list them all
        )
    recipe, settings = load_config(config, sets or [])
    folder = as_folder(out) if out else Path("runs") / f"{settings.name}-{config_hash(settings)}"
    check_writable(folder)
    check_reports(json_file)
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # with several processes, the first one speaks
    if resume:
        found = checkpoints(folder)
        say(f"resuming from {found[-1]}" if found else f"no checkpoint in {folder}; starting at step 0", quiet)
    again = shlex.join(
        [
            "alignsr",
            "train",
            str(config),
            *(part for item in sets or () for part in ("--set", item)),
            "--out",
            str(folder),
            "--resume",
        ]
    )
    if not resume:  # a finished run needs no pictures to be found again
        check_sources(settings)
    try:
        with Progress(settings.run.steps, quiet) as bar, ctrl_c_asks() as cancelled:
            hooks = TerminalHooks(bar, folder, cancelled, settings.run.log_every)
            result = recipe.train(settings, folder, hooks, resume, LocalHost().training_dirs())
    except (Stopped, KeyboardInterrupt) as stop:
        saved = checkpoints(folder)
        at = f"at {saved[-1].name}" if saved else "before the first checkpoint"
        say(f"{stop or f'stopped {at}'}\n{again}")
        raise typer.Exit(STOPPED) from None
    say(f"{result.weights}\n{result.curve}", quiet)
    last = dict(result.logs[-1]) if result.logs else {}
    write_json(
        json_file,
        {"folder": str(folder), "weights": str(result.weights), "curve": str(result.curve), "step": result.step, "last": last},
    )
