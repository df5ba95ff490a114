"""The command published: what papers print, by itself."""

import json
from typing import Annotated, Any

import typer

from .evaluate import terminal_width


def published(
    name: Annotated[str, typer.Argument(metavar="[SET]", help="A set from the list.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the test sets with published numbers, or print the numbers of one.

    The same names go to `alignsr evaluate --published SET`, which measures what the paper measures there.
    """
    from ..core.metrics.published import published_set, published_sets

    if not name:
        sets = [published_set(each) for each in published_sets()]
        if as_json:
            typer.echo(json.dumps([_facts(each) for each in sets], indent=2))
            return
        header = ["set", "measured by", "images", "metrics"]
        rows = [[each.name, _how(each), str(each.images or ""), ", ".join(each.metrics)] for each in sets]
        typer.echo(_left([header, *rows]))
        return
    facts = published_set(name)
    typer.echo(json.dumps(_with_rows(facts), indent=2) if as_json else _text(facts), nl=as_json)


COMMANDS = {"top1": "user-study read", "latency_s": "bench multi-step", "reward_best": "study"}  # of what is not a score


def _how(facts: Any) -> str:
    """What measures such numbers: a metrics list for `alignsr evaluate`, or another command."""
    if facts.protocol:
        return f"--metrics {facts.protocol}"
    if facts.task:
        return f"evaluate-task {facts.task}"
    return next((COMMANDS[metric] for metric in facts.metrics if metric in COMMANDS), "-")


def _facts(facts: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(facts)


def _with_rows(facts: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from ..core.metrics.published import published_rows

    return _facts(facts) | {"rows": [asdict(row) for row in published_rows(facts.name)]}


def _text(facts: Any) -> str:
    from ..core.metrics.comparison import fitted
    from ..core.metrics.published import published_rows
    from ..core.metrics.quantities import column_of

    columns = [column_of(metric) for metric in facts.metrics]
    cells = [["method", *(f"{spec.title} {spec.arrow}" for spec in columns), "table"]]
    for row in published_rows(facts.name):
        scores = [row.scores.get(spec.name) for spec in columns]
        cells.append([row.method, *(score.text if score else "" for score in scores), row.source])
    notes = [*facts.notes, *([facts.input] if facts.input else []), f"as printed in {facts.source}; not measured here"]
    lines = [line for part, _ in fitted(cells, terminal_width()) for line in part]
    return "\n".join([facts.name, *lines, *notes]) + "\n"


def _left(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
