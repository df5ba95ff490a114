"""The application: its commands, what every command shares, and how errors reach the user."""

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from . import adapters, artefacts, candidates, images, information, jobs, measure, published, rounds, task, user_study
from .command import Command
from .terminal import OK, STOPPED, WRONG, complain, say

EPILOG = (
    "Exit codes: 0 done; 1 error, a value that is not accepted included; 2 no such command or option, or one left out; "
    "130 stopped by Ctrl-C. Messages go to stderr, results to stdout. "
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


app.command("demo", cls=Command)(images.demo)
app.command("upscale", cls=Command)(images.upscale)
app.command("degrade", cls=Command)(images.degrade)
app.command("evaluate", cls=Command)(measure.evaluate)
app.command("evaluate-task", cls=Command)(task.evaluate_task)
app.add_typer(user_study.user_study, name="user-study")
app.command("published", cls=Command)(published.published)
app.command("run", cls=Command)(jobs.run)
app.command("train", cls=Command)(jobs.train)
app.command("artefacts", cls=Command)(artefacts.artefacts)
app.command("candidates", cls=Command)(candidates.candidates)
app.command("study", cls=Command)(candidates.study)
app.command("seeds", cls=Command)(candidates.seeds)
app.command("dp2o", cls=Command)(rounds.dp2o)
information.models.command("convert", cls=Command)(adapters.convert)
app.add_typer(information.models, name="models")
app.command("nodes", cls=Command)(information.nodes)
app.command("bench", cls=Command)(measure.bench)


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
            code = app(args=arguments, prog_name="alignsr", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK if end.code is None else WRONG
    except KeyboardInterrupt:
        say("stopped; finished results are kept")
        return STOPPED
    except typer.TyperException as error:  # what the parser refuses
        if type(error) is typer.BadParameter:  # a value: like one that a command refuses
            complain(_one_line(error))
            return WRONG
        error.show()
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # the last stop: whatever went wrong becomes one line
        if debug:
            traceback.print_exc()
        complain(error)
        return WRONG


def _one_line(error: typer.BadParameter) -> str:
    """`--scale: 'four' is not a valid float; see alignsr upscale --help`."""
    names = getattr(error.param, "opts", None) or ["value"]
    command = error.ctx.command_path if error.ctx is not None else "alignsr"
    return f"{max(names, key=len)}: {error.message.rstrip('.')}; see `{command} --help`"
