"""`alignsr artefacts`: is a folder of other methods' outputs fit to train an adversary on?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from .terminal import say


def artefacts(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="With the inputs in lq/, optional ground truth in gt/, and a folder per method."),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="A method's folder. May be repeated; default: all.", show_default=False),
    ] = None,
    scale: Annotated[int, typer.Option("--scale", metavar="S", help="How many times larger outputs are than inputs.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Check a folder of what other methods made of inputs, before an adversary is trained on it.

    Every method must have every picture of lq/, under the same name and SCALE times as large; all that is not so is told at once.
    """
    from ..train.artefacts import open_artefacts

    found = open_artefacts(folder, scale, methods or ())
    facts = {"methods": list(found.methods), "scale": scale, "names": [picture.name for picture in found.pictures]}
    facts["with_ground_truth"] = sum(picture.gt is not None for picture in found.pictures)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    truth = f", {facts['with_ground_truth']} with ground truth" if facts["with_ground_truth"] else ""
    say(f"{folder}: {len(found.pictures)} pictures by {', '.join(found.methods)}{truth}", as_json)
