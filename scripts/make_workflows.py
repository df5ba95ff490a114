"""Write workflows/*.json (for the page), workflows/api/*.json (headless twins) and workflows/*.jpg from one description.

python scripts/make_workflows.py                       both JSON forms
python scripts/make_workflows.py --thumbnails          also the thumbnails, from real runs of the bundled models on free pictures
python scripts/make_workflows.py --thumbnails NAME...  only these thumbnails

Needs the bundled models: the settings saved here name them, and nothing is written that would not run.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from workflow_graphs import EXAMPLE, GRAPHS, Graph

from alignsr.core.weights import write_atomic
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import api_to_ui, default_display_names, default_node_classes, fill_defaults

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"


def build(name: str) -> tuple[dict[str, Any], Graph]:
    """(UI format, API format) of a workflow; asks the current host for models and the example picture."""
    graph, note = GRAPHS[name]
    classes, names = default_node_classes(), default_display_names()
    titled: Graph = {
        node_id: {**entry, "_meta": entry.get("_meta", {"title": names[entry["class_type"]]})} for node_id, entry in graph.items()
    }
    return api_to_ui(titled, classes, names, note), fill_defaults(titled, classes)


def dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def write_json(folder: Path = WORKFLOWS) -> None:
    """Write both forms of every workflow."""
    with tempfile.TemporaryDirectory() as name:
        Image.new("RGB", (8, 8)).save(Path(name) / EXAMPLE)
        with use_host(LocalHost(input_dirs=[name])):
            for workflow in GRAPHS:
                ui, api = build(workflow)
                _write_text(folder / f"{workflow}.json", dump(ui))
                _write_text(folder / "api" / f"{workflow}.json", dump(api))


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", nargs="*", metavar="NAME", help="make these thumbnails too, without names all of them")
    arguments = parser.parse_args()
    write_json()
    if arguments.thumbnails is not None:
        from workflow_thumbnails import write_thumbnails

        write_thumbnails(WORKFLOWS, arguments.thumbnails or list(GRAPHS))
