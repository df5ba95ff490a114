"""What a workflow shows on ComfyUI's page, for a terminal: texts are printed, pictures of previews kept on request."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_LINES = 60  # of one text; --json holds all of it
FOLDER = "previews"


def texts(outputs: Mapping[str, Mapping[str, Sequence[Any]]], titles: Mapping[str, str]) -> list[str]:
    """What nodes such as Preview as Text show, each below its node's title.

    Args:
        outputs: node id -> its `ui` result.
        titles: node id -> title.

    Returns:
        A paragraph per text that is not empty; a long one is cut, and says so.

    Example:
        >>> texts({"6": {"text": ["a"]}, "7": {"text": [""]}}, {"6": "Weights"})
        ['Weights: a']
    """
    found: list[str] = []
    for node_id, shown in outputs.items():
        for text in shown.get("text", ()):
            lines = str(text).rstrip().splitlines()
            if lines:
                more = len(lines) - MAX_LINES
                cut = [*lines[:MAX_LINES], f"... {more} more lines; --json FILE holds them"] if more > 0 else lines
                found.append(f"{titles.get(node_id, node_id)}:{' ' if len(cut) == 1 else chr(10)}" + "\n".join(cut))
    return found


def keep_previews(previews: Mapping[str, Sequence[Path]], titles: Mapping[str, str], folder: Path) -> list[Path]:
    """Copy the pictures of previews to `folder/previews`, named by their node and numbered; nothing there is overwritten.

    Args:
        previews: node id -> pictures in the temporary folder.
        titles: node id -> title.
        folder: of the results.

    Returns:
        The new files.
    """
    from ..core.weights import write_atomic

    kept: list[Path] = []
    for node_id, pictures in previews.items():
        stem = re.sub(r"[^A-Za-z0-9]+", "-", titles.get(node_id, node_id)).strip("-").lower() or node_id
        for picture in pictures:
            number = 1
            while (target := folder / FOLDER / f"{stem}_{number:05}_{picture.suffix}").exists():
                number += 1
            data = picture.read_bytes()
            kept.append(write_atomic(target, lambda part, data=data: part.write_bytes(data)))
    return kept


def not_kept(previews: Mapping[str, Sequence[Path]], titles: Mapping[str, str]) -> str:
    """One line that names the previews that are gone when the program ends, "" without any."""
    names = [titles.get(node_id, node_id) for node_id, pictures in previews.items() if pictures]
    return f"previews not kept: {', '.join(names)}; --previews saves them in {FOLDER}/" if names else ""
