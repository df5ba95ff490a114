"""The command dp2o: rounds of candidates and preference training."""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .candidates import Sets
from .terminal import OK, STOPPED, JsonFile, Progress, Quiet, as_folder, check_reports, ctrl_c_asks, say, write_json


class RoundsTerminal:
    """All stages of all rounds as lines: what is done, and Ctrl-C as a wish to stop between two units.

    Args:
        bar: where progress goes.
        cancelled: has the user asked to stop?
    """

    def __init__(self, bar: Progress, cancelled: Callable[[], bool]) -> None:
        self.bar, self.cancelled = bar, cancelled

    def progress(self, stage: str | int, done: int, total: int | Mapping[str, float]) -> None:
        """Of a stage of the candidates (stage, done, total), or of training (step, steps, figures)."""
        if isinstance(total, Mapping):
            self.bar.update(int(stage) / max(done, 1), f"training {stage}/{done}  loss {total.get('loss', 0):.4g}")
            return
        self.bar.update(done / max(total, 1), f"{stage} {done}/{total}")
        if self.cancelled():
            raise KeyboardInterrupt

    def preview(self, image: Any) -> None:
        """A terminal shows none; the run folders keep them."""

    def validating(self, done: int, total: int) -> None:
        """Training by preferences has its own probe in place of a validation."""

    def should_stop(self) -> bool:
        """Has the user asked to stop?"""
        return self.cancelled()


def dp2o(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a published config such as dp2o-online-pixel.")
    ],
    sets: Sets = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="RUN_DIR", help="Run folder; default: runs/NAME-HASH.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Train a multi-step model by preferences, in rounds: sample and score its candidates, train on their pairs, repeat.

    The run folder gets round-0/candidates, round-0/training, ... and rounds.json with the reward of every round. Run it again
    after an interruption of any kind: it goes on. With more rounds (--set rounds=5) a finished run goes on, too.
    """
    from ..core.batch import check_writable
    from ..nodes.host import LocalHost
    from ..train.loop import Stopped
    from ..train.rounds import load_rounds_config, rounds_hash, run_rounds

    settings = load_rounds_config(config, sets or [])
    folder = as_folder(out) if out else Path("runs") / f"{settings.name}-{rounds_hash(settings)}"
    check_writable(folder)
    check_reports(json_file)
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # with several processes, the first one speaks
    try:
        with Progress(1.0, quiet) as bar, ctrl_c_asks() as cancelled:
            host = RoundsTerminal(bar, cancelled)
            result = run_rounds(settings, folder, watch=host, hooks=host, model_folders=LocalHost().training_dirs())
    except (Stopped, KeyboardInterrupt):
        parts = ["alignsr", "dp2o", str(config), *(p for item in sets or () for p in ("--set", item)), "--out", str(folder)]
        say(f"stopped; finished parts are kept\n{shlex.join(parts)}")
        raise typer.Exit(STOPPED) from None
    if not quiet:
        typer.echo(result.to_text(), nl=False, err=str(json_file) == "-")
    say(str(result.weights), quiet)
    if os.environ.get("RANK", "0") == "0":
        write_json(
            json_file, {"folder": str(folder), "weights": str(result.weights), "rounds": [asdict(r) for r in result.rounds]}
        )
    raise typer.Exit(OK)
