"""What made a result: kept beside the results, so that a later run with other settings can say that it skips something else.

`alignsr upscale` adds a line per result to a hidden file of the result's folder; `alignsr degrade` has a JSON file per result.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = ".alignsr-results.jsonl"
UNKNOWN = "with no record of what made it"


class Records:
    """What made the results in some folders; each folder's file is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, dict[str, Any]]] = {}

    def of(self, target: Path) -> dict[str, Any] | None:
        """The newest entry for a result, or None when there is none or the file was changed since."""
        if target.parent not in self._known:
            self._known[target.parent] = _read(target.parent / RECORD)
        entry = self._known[target.parent].get(target.name)
        return entry if entry is not None and entry.get("bytes") == target.stat().st_size else None

    def add(self, target: Path, made: Mapping[str, Any]) -> None:
        """Note what made a result that has just been written: one line at the end, so that several runs may write."""
        entry = {"file": target.name, "bytes": target.stat().st_size, **made}
        with open(target.parent / RECORD, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._known.setdefault(target.parent, {})[target.name] = entry


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    entries: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off when the machine went down: nothing is known about that result
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            entries[entry["file"]] = entry
    return entries


def differences(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """`made with scale 2, not 4`; empty when every setting that is asked for is the one it was made with."""
    other = [key for key in asked if made.get(key) != asked[key]]
    if "model" in other and "weights" in other:
        other.remove("weights")
    words = [
        "another version of the weights" if key == "weights" else f"{key.replace('_', '-')} {made.get(key)}, not {asked[key]}"
        for key in other
    ]
    return f"made with {'; '.join(words)}" if words else ""


def other_size(target: Path, wanted: tuple[int, int]) -> str:
    """What can be said of a result without a record: another size, no picture, or only that nobody knows what made it."""
    from PIL import Image

    try:
        found = picture_size(target)
    except Image.DecompressionBombError:  # more than Pillow opens: a large result, whose size stays unknown too
        return UNKNOWN
    except (OSError, SyntaxError, ValueError):
        return "but is no picture that can be read"
    return UNKNOWN if found == wanted else f"with {found[0]}x{found[1]} px, not {wanted[0]}x{wanted[1]} px"


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the header alone.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: as Pillow does for what it does not open.
    """
    from PIL import ExifTags, Image

    with Image.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)
