"""Make Voting Pages and Read Votes: a blind user study from folders of results."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.image_files import list_images
from ..core.metrics.published import published_set, published_sets
from ..core.user_study.pages import MODES, make_study
from ..core.user_study.report import StudyReport
from ..core.user_study.votes import read_votes
from .common import file_stamp, to_image
from .folder import find_folder, find_method_folders
from .host import get_host

NONE = "none"


def _optional_folder(name: str, what: str) -> Path | None:
    return find_folder(name, what) if name.strip() else None


def _free_folder(name: str) -> Path:
    """`name` inside the output folder, or `name-2`, `name-3`, ..., the first that is not there."""
    base = get_host().output_dir()
    target = (base / name.strip()).resolve()
    if not name.strip() or base.resolve() not in target.parents:
        raise ValueError(f"out_name: expected a name inside {base}, got {name!r}; use letters, digits and / for subfolders")
    number = 1
    while (free := target if number == 1 else target.with_name(f"{target.name}-{number}")).exists():
        number += 1
    return free


class MakeVotingPages:
    """Node AlignSRMakeVotingPages."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Makes the pages of a blind user study from folders of results: plain files that open in any browser. Letters stand for "
        "methods, in another order for every picture; voters send back a file, and Read Votes counts."
    )
    FUNCTION = "make"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "STRING", "STRING")
    RETURN_NAMES = ("page", "key", "notes")
    OUTPUT_TOOLTIPS = (
        "Path of index.html. Hand out its folder, which names no method.",
        "Path of key.json, which says which letter is which method. Keep it: Read Votes needs it.",
        "How much there is to compare, and pictures that are the same.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "sr": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Folders of results, one per line, at least two: a path, or a folder inside the input folder; "
                        "NAME = folder gives the method a name, which voters never see.",
                    },
                ),
                "mode": (
                    list(MODES),
                    {"default": MODES[0], "tooltip": "rank: voters order all results (Top-1, Top-2, ...); top1: the best alone."},
                ),
                "groups": (
                    "INT",
                    {"default": 0, "min": 0, "max": 10000, "tooltip": "How many pictures, drawn at random. 0: all of them."},
                ),
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2**31 - 1, "tooltip": "Of all orders. The same seed makes the same pages."},
                ),
                "title": ("STRING", {"default": "Image comparison", "tooltip": "What voters read at the top."}),
                "out_name": (
                    "STRING",
                    {"default": "alignsr/study", "tooltip": "Folder inside the output folder; a number is added if it exists."},
                ),
            },
            "optional": {
                "lq": ("STRING", {"default": "", "tooltip": "Folder of inputs with the same names, shown beside the results."}),
                "gt": ("STRING", {"default": "", "tooltip": "Folder of ground truth with the same names, shown likewise."}),
            },
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, sr: str | None, mode: str | None, groups: int | None, seed: int | None, title: str | None, out_name: str | None,
        lq: str | None = "", gt: str | None = "",
    ) -> str | float:  # fmt: skip
        """Make them again when files came, went or changed."""
        if sr is None or lq is None or gt is None:
            return math.nan
        folders = [*find_method_folders(sr, "sr").values(), *(find_folder(name) for name in (lq, gt) if name.strip())]
        facts = [(str(path), file_stamp(path)) for folder in folders for path in list_images(folder)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def make(
        self, sr: str, mode: str, groups: int, seed: int, title: str, out_name: str, lq: str = "", gt: str = ""
    ) -> tuple[str, str, str]:
        host = get_host()
        bars: list[Any] = []

        def report(done: int, total: int) -> None:
            if not bars:
                bars.append(host.progress(total, "voting pages"))
            bars[0].update(done)

        made = make_study(
            find_method_folders(sr, "sr"),
            _free_folder(out_name),
            lq=_optional_folder(lq, "lq"),
            gt=_optional_folder(gt, "gt"),
            mode=mode,
            seed=seed,
            groups=groups,
            title=title,
            progress=report,
        )
        notes = [f"{made.groups} pictures, {len(made.methods)} methods", f"hand out {made.page.parent}", f"keep {made.key}"]
        return str(made.page), str(made.key), "\n".join([*notes, *made.remarks])


class ReadVotes:
    """Node AlignSRReadVotes."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Counts the votes of a study made by Make Voting Pages: how often each method is among the best k, with 95 % intervals."
    )
    FUNCTION = "read"
    RETURN_TYPES = ("STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("table", "json", "chart")
    OUTPUT_TOOLTIPS = (
        "The table as text; connect Preview as Text to see it.",
        "Everything as JSON text.",
        "Bars of Top-1 to Top-3 with both intervals, and what chance gives.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        studies = [name for name in published_sets() if "top1" in published_set(name).metrics]
        return {
            "required": {
                "votes": (
                    "STRING",
                    {"default": "votes", "tooltip": "Folder of the files that voters saved: a path, or inside the input folder."},
                ),
                "key": (
                    "STRING",
                    {"default": "", "tooltip": "key.json of the study: its path, or the output key of Make Voting Pages."},
                ),
                "published": (
                    [NONE, *studies],
                    {"default": NONE, "tooltip": "Show what a paper's user study printed beside ours, marked as published."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, votes: str | None, key: str | None, published: str | None) -> str | float:  # noqa: N802
        """Count again when votes came or changed."""
        if votes is None or key is None:
            return math.nan
        facts = [(path.name, file_stamp(path)) for path in sorted(find_folder(votes, "votes").glob("*.json"))]
        return hashlib.sha256(repr((facts, key)).encode()).hexdigest()

    def read(self, votes: str, key: str, published: str) -> tuple[str, str, Tensor]:
        if not key.strip():
            raise ValueError("key: expected the path of a study's key.json, got an empty text; Make Voting Pages wrote it")
        folder = find_folder(votes, "votes")
        report = StudyReport(read_votes(key.strip(), [folder]), "" if published == NONE else published)
        return report.to_text(), json.dumps(report.to_dict(), indent=2), to_image([report.picture()])
