"""Runs ComfyUI workflows without ComfyUI.

from alignsr.runner import run_workflow
result = run_workflow("upscale.json", sets=["1.image=photo.jpg"], out_dir="out")
result.files
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..nodes.host import LocalHost, cancel_on_sigint, use_host
from .convert import convert
from .errors import WorkflowError, WorkflowInterrupted
from .execute import Executor, RunResult
from .layout import api_to_ui, fill_defaults
from .sets import apply_sets
from .specs import Graph, NodeClasses, object_info
from .validate import check_api_shape, is_ui_format, load_json, validate

__all__ = [
    "Executor",
    "RunResult",
    "WorkflowError",
    "WorkflowInterrupted",
    "api_to_ui",
    "apply_sets",
    "convert",
    "default_display_names",
    "default_node_classes",
    "fill_defaults",
    "load_workflow",
    "object_info",
    "run_workflow",
    "validate",
]


def default_node_classes() -> dict[str, type]:
    """Our nodes and the stand-ins for ComfyUI's."""
    from ..nodes import NODE_CLASS_MAPPINGS
    from .builtins import BUILTIN_CLASSES

    return {**BUILTIN_CLASSES, **NODE_CLASS_MAPPINGS}


def default_display_names() -> dict[str, str]:
    """class_type -> the name that users see."""
    from ..nodes import NODE_DISPLAY_NAME_MAPPINGS
    from .builtins import BUILTIN_DISPLAY_NAMES

    return {**BUILTIN_DISPLAY_NAMES, **NODE_DISPLAY_NAME_MAPPINGS}


def load_workflow(
    source: str | Path | Mapping[str, Any],
    *,
    node_classes: NodeClasses | None = None,
    display_names: Mapping[str, str] | None = None,
) -> tuple[Graph, dict[str, Any] | None]:
    """Read a workflow of either format.

    Returns:
        The API-format graph (a copy), and the UI-format document if `source` was one.

    Raises:
        WorkflowError: not a workflow.
    """
    document = load_json(source) if isinstance(source, (str, Path)) else json.loads(json.dumps(dict(source)))
    if not is_ui_format(document):
        return check_api_shape(document), None
    classes = default_node_classes() if node_classes is None else node_classes
    names = default_display_names() if display_names is None else display_names
    return convert(document, classes, names), document


def run_workflow(
    source: str | Path | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    out_dir: str | Path,
    input_dirs: Sequence[str | Path] = (),
    progress: bool = True,
    quiet: bool = False,
    node_classes: NodeClasses | None = None,
    host: LocalHost | None = None,
) -> RunResult:
    """Validate and run a workflow file (API or UI format).

    Args:
        source: path of the JSON file, or the parsed document.
        sets: `node.input=value`, see `sets.apply_sets`.
        out_dir: folder for results; made if absent, and checked before anything runs.
        input_dirs: where inputs are looked for: after the current folder, before the workflow's own folder.
        progress: draw one bar on stderr.
        quiet: no bar and no warnings.
        node_classes: class_type -> node class; `default_node_classes()` if not given.
        host: instead of one made from out_dir, input_dirs and progress.

    Returns:
        What ran, what was shown, which files were written.

    Raises:
        WorkflowError: invalid workflow (nothing ran), or a node failed (`partial` is the RunResult so far).
        WorkflowInterrupted: cancelled by Ctrl-C or `host.cancel()`; `partial` likewise.
    """
    classes = default_node_classes() if node_classes is None else node_classes
    beside = [Path(source).parent] if isinstance(source, (str, Path)) else []
    host = host or LocalHost(
        output_dir=out_dir, input_dirs=[Path.cwd(), *input_dirs, *beside], show_progress=progress and not quiet
    )
    with use_host(host):
        graph, document = load_workflow(source, node_classes=classes)
        apply_sets(graph, sets, classes)
        validate(json.loads(json.dumps(graph)), classes)  # before the output folder is made
        _check_writable(host.output_dir())
        pnginfo = {"workflow": document} if document is not None else None
        with cancel_on_sigint(host):
            result = Executor(classes, keep_results=False).run(graph, extra_pnginfo=pnginfo, host=host)
    if not quiet:
        for warning in result.warnings:
            sys.stderr.write(f"warning: {warning}\n")
    return result


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".alignsr-write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise WorkflowError(
            f"out_dir: expected a folder that can be written to, got {folder}: {error.strerror}; choose another one"
        ) from error
