"""Commands of preference data: candidates samples, scores and pairs; study looks at what (M, N) would make of them."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import OK, STOPPED, JsonFile, Progress, Quiet, as_folder, check_reports, ctrl_c_asks, say, write_json

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key first, e.g. pairs.picks=4. May be repeated.", show_default=False
    ),
]


class TerminalWatch:
    """A run's line to the terminal; Ctrl-C stops between two units, and what is finished stays.

    Args:
        bar: where progress goes; its total is 1, for all stages together.
        stages: names of what is to be done, in that order.
        cancelled: has the user asked to stop?
    """

    def __init__(self, bar: Progress, stages: list[str], cancelled: Callable[[], bool]) -> None:
        self.bar, self.stages, self.cancelled = bar, stages, cancelled

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar, and stop if asked."""
        place = self.stages.index(stage) if stage in self.stages else 0
        self.bar.update((place + done / max(total, 1)) / len(self.stages), f"{stage} {done}/{total}")
        if self.cancelled():
            raise KeyboardInterrupt

    def preview(self, image: Any) -> None:
        """A terminal shows none."""


def candidates(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a published config such as dp2o-candidates-pixel."),
    ],
    sets: Sets = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="RUN_DIR", help="Run folder; default: runs/NAME-HASH.", show_default=False),
    ] = None,
    until: Annotated[
        str, typer.Option("--until", metavar="STAGE", help="The last stage to run: sample, score or curate.")
    ] = "curate",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what is there with its checksums first; sample damaged parts again.")
    ] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Make preference pairs: sample candidates of every picture, score them, rank and pair them.

    The run folder gets shards with candidates, scores.parquet, rewards.parquet and pairs.parquet, which training reads. Run it
    again after an interruption of any kind: finished parts are found and the tables are the same. With torchrun, several
    processes share the work.
    """
    from ..core.batch import check_writable
    from ..nodes.host import LocalHost
    from ..train.candidates import STAGES, load_candidates_config, run_candidates

    settings = load_candidates_config(config, sets or [])
    if until not in STAGES:
        raise ValueError(f"--until: expected one of {', '.join(STAGES)}, got {until!r}; choose one of them")
    folder = as_folder(out) if out else Path("runs") / f"{settings.name}-{settings.sampling_hash}"
    check_writable(folder)
    check_reports(json_file)
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # with several processes, the first one speaks
    stages = ["sampling", *(settings.scoring.metrics if until != "sample" else ()), *(["pairs"] if until == "curate" else [])]
    try:
        with Progress(1.0, quiet) as bar, ctrl_c_asks() as cancelled:
            watch = TerminalWatch(bar, stages, cancelled)
            result = run_candidates(
                settings, folder, watch=watch, until=until, verify=verify, model_folders=LocalHost().training_dirs()
            )
    except KeyboardInterrupt:
        parts = ["alignsr", "candidates", str(config), *(p for item in sets or () for p in ("--set", item)), "--out", str(folder)]
        say(f"stopped; finished parts are kept\n{shlex.join(parts)}")
        raise typer.Exit(STOPPED) from None
    report: dict[str, Any] = {"folder": str(folder), "scores": str(result.scores) if result.scores else None}
    report["pairs"] = str(result.pairs) if result.pairs else None
    if result.curation is not None:
        from ..train.candidates.curate import report_of

        report["curation"] = report_of(result.curation, settings.pairs, result.store.names)
        facts = report["curation"]
        say(
            f"{facts['pairs']} pairs of {facts['groups_used']} of {facts['groups']} pictures, mean gap {facts['mean_gap']:.4f}, "
            f"weights {facts['weights'][0]:.2f} to {facts['weights'][1]:.2f}",
            quiet,
        )
    say(str(result.pairs or result.scores or folder), quiet)
    if os.environ.get("RANK", "0") == "0":
        write_json(json_file, report)
    raise typer.Exit(OK)


def study(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of `alignsr candidates` with scores.")],
    parameters: Annotated[
        float,
        typer.Option(
            "--parameters", metavar="N", help="Size of the model to be trained, e.g. 12e9; 0: of the one that was sampled."
        ),
    ] = 0.0,
    most: Annotated[int, typer.Option("--candidates", metavar="M", help="Use the first M of each picture; 0: all.")] = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the results; default: RUN_DIR/study.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Study which N out of M to take, from one set of scored candidates.

    For every M = 2, 4, ... and N = M/2, M/4, ... the table and plots of what training would see: reward spread, gaps, share of
    pairs, weights; best, mean and worst of m; and a recommendation by the size of the model, beside what DP2O-SR found.
    """
    from ..train.candidates import study_folder

    check_reports(json_file)
    found, target = study_folder(folder, parameters=parameters, most=most, out=as_folder(out) if out else None)
    if not quiet:
        typer.echo(found.to_text(), nl=False, err=str(json_file) == "-")
    say(str(target), quiet)
    write_json(json_file, found.to_dict())


def seeds(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN_DIR...", help="Run folders of `alignsr candidates` with scores, of the same pictures."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Also write table and pictures here.", show_default=False),
    ] = None,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Compare models by mean and deviation over seeds, before and after training, say.

    Every metric that all runs have: mean over pictures and seeds, deviation over the seeds of a picture, deviation of the mean;
    as Table 2 of DP2O-SR, with ten seeds. Sample and score each model with `alignsr candidates CONFIG --until score`, with
    --set sampling.candidates=10 and the same pictures.
    """
    from ..train.seed_study import compare_runs, write_comparison

    check_reports(json_file)
    named: dict[str, Path] = {}
    for item in runs:
        name, separator, folder = item.partition("=")
        path = as_folder(folder if separator else item)
        named[name if separator else path.name] = path
    if len(named) < len(runs):
        raise ValueError(f"runs: expected a name for each, got {', '.join(runs)}; write NAME=RUN_DIR")
    table = compare_runs(named)
    if not quiet:
        typer.echo(table.to_text(), nl=False, err=str(json_file) == "-")
    if out:
        say(str(write_comparison(table, named, as_folder(out))), quiet)
    write_json(json_file, table.to_dict())
