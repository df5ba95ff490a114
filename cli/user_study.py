"""The commands user-study make and user-study read: voting pages for a blind comparison, and what the votes say."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command import Command
from .evaluate import folders_of, terminal_width
from .terminal import JsonFile, Progress, Quiet, check_reports, say, write_json, write_text

user_study = typer.Typer(
    help="A blind user study: make voting pages, and read the votes back.", rich_markup_mode=None, no_args_is_help=True
)


@user_study.command("make", cls=Command)
def make(
    sr: Annotated[
        list[str],
        typer.Option("--sr", metavar="[NAME=]DIR", help="Folder of results; once per method.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.", show_default=False)],
    lq: Annotated[
        Path | None, typer.Option("--lq", metavar="DIR", help="Folder of inputs, shown beside the results.", show_default=False)
    ] = None,
    gt: Annotated[
        Path | None, typer.Option("--gt", metavar="DIR", help="Folder of references, shown likewise.", show_default=False)
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", metavar="MODE", help="rank: all places, for Top-k at every k; top1: the best alone.")
    ] = "rank",
    groups: Annotated[int, typer.Option("--groups", metavar="N", help="How many scenes, drawn at random; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the orders; the same pages again.")] = 0,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="What voters read at the top.")] = "Image comparison",
    quiet: Quiet = False,
) -> None:
    """Write voting pages: plain files that open in a browser, without a server and without a network.

    Hand out the folder `page` (zipped, on a stick, on any web space) and keep `key.json`, which says what is what: the pages name
    no method. Voters compare, save their votes as a file and send it back; `alignsr user-study read` counts.
    """
    from ..core.user_study.pages import make_study

    methods = folders_of(sr, "--sr")
    with Progress(1, quiet) as bar:
        made = make_study(
            methods,
            out,
            lq=lq,
            gt=gt,
            mode=mode,  # pyright: ignore[reportArgumentType]  # checked there
            seed=seed,
            groups=groups,
            title=title,
            progress=lambda done, total: bar.update(done / total, f"scene {done} of {total}"),
        )
    for remark in made.remarks:
        say(f"note: {remark}", quiet)
    say(f"hand out: {made.page.parent}\nkeep: {made.key}\n{made.groups} scenes, {len(made.methods)} methods", quiet)
    typer.echo(made.page)


@user_study.command("read", cls=Command)
def read(
    votes: Annotated[list[Path], typer.Argument(metavar="VOTES...", help="Files that voters saved, or folders with them.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="key.json of the study.", show_default=False)],
    published: Annotated[
        str,
        typer.Option(
            "--published", metavar="SET", help='Numbers to print beside ours: "ASASR user study", ...', show_default=False
        ),
    ] = "",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the intervals over groups.")] = 0,
    quiet: Quiet = False,
    json_file: JsonFile = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV table.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Draw bars with intervals.", show_default=False)
    ] = None,
) -> None:
    """Count votes: Top-k of every method with 95 % intervals.

    Top-k is the share of votes that put a method among the best k (ASASR, Eq. 47). Two intervals: Wilson's, which takes all votes
    as independent, and one over groups drawn anew with all of their votes.
    """
    from ..core.user_study.report import StudyReport, find_study
    from ..core.user_study.votes import read_votes

    check_reports(json_file, csv, markdown, picture)
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"--picture: expected the name of a PNG file, got {picture}; end it in .png")
    report = StudyReport(read_votes(key, votes), find_study(published) if published else "", seed)
    write_json(json_file, report.to_dict())
    if csv is not None:
        write_text(csv, report.to_csv())
    if markdown is not None:
        write_text(markdown, report.to_markdown())
    if picture is not None:
        _draw(report, picture)
    if not quiet:
        typer.echo(report.to_text(terminal_width()), nl=False, err=str(json_file) == "-")


def _draw(report: Any, path: Path) -> None:
    from ..core.weights import write_atomic

    image = report.picture()
    write_atomic(path, lambda part: image.save(part, format="PNG"))
