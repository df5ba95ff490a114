"""Save Report: scores and pictures as files, together or not at all."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.image_files import to_pil
from ..core.images import bhwc_to_bchw
from ..core.metrics.table import csv_number
from ..core.pictures import table as draw_table
from ..core.weights import write_atomic
from .common import as_list, first, give, read_json, take
from .host import get_host


class SaveReport:
    """Node AlignSRSaveReport."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Saves scores and pictures into the output folder: a JSON record, a CSV table and PNG pictures, together or not at all."
    )
    FUNCTION = "save"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Path of the JSON file; the CSV and PNG files beside it have the same number.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "scores": ("STRING", {"forceInput": True, "tooltip": "JSON from IQA Reward or Evaluate Folders."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "alignsr/report",
                        "tooltip": "Name inside the output folder; / makes subfolders, %year% and so on work.",
                    },
                ),
            },
            "optional": {
                "pictures": (
                    "IMAGE",
                    {"tooltip": "Pictures to keep with it, from Compare, say. Without any, the table is drawn."},
                ),
                "more_pictures": ("IMAGE", {"tooltip": "More of them, of any size: spectra, difference maps."}),
                "params": ("STRING", {"forceInput": True, "tooltip": "How the input was degraded: JSON from Degrade."}),
                "info": ("STRING", {"forceInput": True, "tooltip": "How it was restored: JSON from One-Step SR."}),
                "note": ("STRING", {"default": "", "multiline": True, "tooltip": "Your own words, kept in the JSON file."}),
            },
        }

    def save(
        self,
        scores: Any,
        filename_prefix: Any,
        pictures: Any = None,
        more_pictures: Any = None,
        params: Any = None,
        info: Any = None,
        note: Any = "",
    ) -> dict[str, Any]:
        records = [read_json(text, "scores") for text in as_list(scores)]
        if not records or not all(map(_is_record, records)):
            raise ValueError(
                "scores: expected the JSON of IQA Reward or Evaluate Folders, got something else; connect the output `scores`"
            )
        host = get_host()
        shown = _pages(pictures, "pictures") + _pages(more_pictures, "more_pictures")
        shown = shown or [_scores_picture(records)]
        target = host.save_target(first(filename_prefix))
        base = target.path(0, ".json")
        stem = base.stem.rstrip("_")
        report = {
            "scores": records[0] if len(records) == 1 else records,
            "degradation": [read_json(text, "params") for text in as_list(params)],
            "restoration": [read_json(text, "info") for text in as_list(info)],
            "note": first(note),
            "pictures": [f"{stem}_{'' if index == 0 else index + 1}.png" for index in range(len(shown))],
        }
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        jobs: dict[Path, Callable[[Path], None]] = {
            base.with_name(name): (lambda part, page=page: page.save(part, format="PNG"))
            for name, page in zip(report["pictures"], shown, strict=True)
        }
        jobs[base.with_name(f"{stem}_.csv")] = lambda part: _write_text(part, _as_csv(records))
        jobs[base] = lambda part: _write_text(part, text)
        _write_all(jobs, host.progress(len(jobs), "saving").update)
        entries = [{"filename": path.name, "subfolder": target.subfolder, "type": "output"} for path in jobs]
        images, files = entries[: len(shown)], entries[len(shown) :]
        return {"ui": {"images": images, "files": files}, "result": (str(base),)}


def _is_record(record: Any) -> bool:
    """Has it the shape of what IQA Reward writes? Any text may be linked to `scores`."""
    if not isinstance(record, dict) or not isinstance(record.get("images"), list):
        return False
    tables = [record.get("metrics", {}), record.get("mean", {})]
    for image in record["images"]:
        if not isinstance(image, dict):
            return False
        tables += [image.get("scores", {}), {"reward": image.get("reward")}]
    numbers = [value for table in tables[1:] if isinstance(table, dict) for value in table.values() if value is not None]
    return all(isinstance(table, dict) for table in tables) and all(isinstance(value, (int, float)) for value in numbers)


def _pages(images: Any, name: str) -> list[Image.Image]:
    """Every picture of a list of batches; alpha is kept."""
    taken = [take(image, name) for image in as_list(images)]
    return [to_pil(page) for pixels in taken for page in bhwc_to_bchw(give(pixels.rgb, pixels)).split(1)]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _write_all(jobs: Mapping[Path, Callable[[Path], None]], update: Callable[[int], None]) -> None:
    """Write every file atomically; whatever stops this takes back those already written."""
    written: list[Path] = []
    try:
        for path, write in jobs.items():
            written.append(write_atomic(path, write))
            update(len(written))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name for record in records for name in record.get("metrics", {})]
    has_reward = any("reward" in image for record in records for image in record["images"])
    return [*dict.fromkeys(names), *(["reward"] if has_reward else [])]


def _lines(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, column -> value) of every picture, and of the mean where there is one record."""
    lines = [
        (str(image.get("name", "")), {**image.get("scores", {}), "reward": image.get("reward")})
        for record in records
        for image in record["images"]
    ]
    return lines + ([("mean", {**records[0]["mean"], "reward": _mean_reward(records[0])})] if _has_mean(records) else [])


def _mean_reward(record: Mapping[str, Any]) -> float | None:
    rewards = [image["reward"] for image in record["images"] if image.get("reward") is not None]
    return math.fsum(rewards) / len(rewards) if rewards else None


def _has_mean(records: Sequence[Mapping[str, Any]]) -> bool:
    """One record of one method; Evaluate Folders has no common mean for several methods."""
    return len(records) == 1 and bool(records[0].get("mean"))


def _as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = _columns(records)
    writer.writerow(["name", *columns])
    for name, values in _lines(records):
        writer.writerow([name, *("" if values.get(column) is None else csv_number(values[column]) for column in columns)])
    return out.getvalue()


def _scores_picture(records: Sequence[Mapping[str, Any]]) -> Image.Image:
    columns = _columns(records)
    rows = [
        [name, *("" if values.get(column) is None else f"{values[column]:.4g}" for column in columns)]
        for name, values in _lines(records)
    ]
    return draw_table(["image", *columns], rows, title="Scores", has_summary=_has_mean(records))
