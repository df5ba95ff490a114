"""The application: its commands, what every command shares, and how errors reach the user."""

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from . import images, information, jobs, measure
from .terminal import OK, STOPPED, WRONG, complain, say

EPILOG = (
    "Exit codes: 0 done, 1 error, 2 wrong use, 130 stopped by Ctrl-C. Messages go to stderr, results to stdout. "
    "ALIGNSR_MODELS names folders with weight files (default: ~/.cache/alignsr/models)."
)

app = typer.Typer(
    name="alignsr",
    help="Image super-resolution: restore, degrade, measure and train.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"alignsr {version('alignsr')}")
        raise typer.Exit()


@app.callback()
def _shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    del version, debug


app.command("demo")(images.demo)
app.command("upscale")(images.upscale)
app.command("degrade")(images.degrade)
app.command("evaluate")(measure.evaluate)
app.command("run")(jobs.run)
app.command("train")(jobs.train)
app.add_typer(information.models, name="models")
app.command("nodes")(information.nodes)
app.command("bench")(measure.bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user sees one line for an error, never a traceback (but with --debug)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [item for item in arguments if item != "--debug"]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns, when imported, of kernels that nobody asked for
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # third-party packages talk to programmers, not to users
            app(args=arguments, prog_name="alignsr")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK if end.code is None else WRONG
    except KeyboardInterrupt:
        say("stopped; finished results are kept")
        return STOPPED
    except Exception as error:  # noqa: BLE001  # the last stop: whatever went wrong becomes one line
        if debug:
            traceback.print_exc()
        complain(error)
        return WRONG
    return OK
