"""What a metric is: its facts, the files it needs, and the one error for files that are not there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["distortion", "spectral", "statistic", "autoencoded", "learned", "set", "downstream", "printed"]
Folder = Literal["pyiqa", "checkpoints", "clip", "home_clip", "hub"]

PYIQA_LICENCE = "PolyForm-Noncommercial-1.0.0 (pyiqa); the weights have licences of their own"


@dataclass(frozen=True)
class WeightFile:
    """One file that a learned metric reads.

    Attributes:
        names: accepted file names, in the order in which they are looked for; one is enough.
        folder: where pyiqa and its dependencies look: "pyiqa" = `<torch hub>/pyiqa`, "checkpoints" = `<torch hub>/checkpoints`,
            "clip" = `<torch hub>/clip`, "home_clip" = `~/.cache/clip` (whatever TORCH_HOME says), "hub" = the Hugging Face cache.
        source: where to get it: an address, or "owner/name" of a Hugging Face repository for the folder "hub".
        sha256: checksum where the loader refuses any other file, else "".
    """

    names: tuple[str, ...]
    folder: Folder
    source: str
    sha256: str = ""


@dataclass(frozen=True)
class MetricSpec:
    """The facts of a metric, so that callers never guess.

    Attributes:
        name: our name, the key in METRICS.
        title: name for tables, as the papers write it.
        kind: "distortion", "spectral" and "statistic" are ours and need no weights, "autoencoded" is ours and needs an
            auto-encoder that the caller names, "learned" wraps pyiqa, "set" compares two sets of images. Columns of tables only:
            "downstream" scores a task on a set of images, "printed" is what papers print and nothing here measures.
        higher_is_better: direction.
        range: (low, high) of possible or, for learned metrics, usual scores; infinities where open.
        crop: "scale" removes a border as wide as the upscale factor before comparing, "none" compares whole images.
        channel: "y" or "rgb".
        needs_reference: compares with the ground truth `gt`.
        needs_input: compares with the low-resolution input `lq`.
        needs_autoencoder: compares what an auto-encoder keeps of the images; the caller brings it.
        pyiqa_name: name for pyiqa.create_metric, "" for our own.
        options: keyword arguments for pyiqa.create_metric beyond its defaults.
        weights: files it reads.
        packages: importable packages that pyiqa needs for it and does not declare.
        max_batch: largest batch per call, None = no limit; `score` splits larger ones.
        size_multiple: sides must be multiples of this; `score` cuts the surplus off around the centre.
        min_side_px: smallest accepted side.
        mutates_input: overwrites the tensors it is given; `score` hands out copies.
        in_reward: one of the nine metrics of DP2O-SR's hybrid reward.
        licence: of the code that computes it.
        note: what a user should know.
    """

    name: str
    title: str
    kind: Kind
    higher_is_better: bool
    range: tuple[float, float]
    crop: Literal["scale", "none"] = "none"
    channel: Literal["y", "rgb"] = "rgb"
    needs_reference: bool = False
    needs_input: bool = False
    needs_autoencoder: bool = False
    pyiqa_name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weights: tuple[WeightFile, ...] = ()
    packages: tuple[str, ...] = ()
    max_batch: int | None = None
    size_multiple: int = 1
    min_side_px: int = 1
    mutates_input: bool = False
    in_reward: bool = False
    licence: str = "Apache-2.0"
    note: str = ""

    @property
    def arrow(self) -> str:
        """An ASCII sign for table headers: `^` higher is better, `v` lower is better."""
        return "^" if self.higher_is_better else "v"


class MissingWeightsError(FileNotFoundError):
    """Weights of a learned metric are not on this computer. Nothing was downloaded, nothing was tried.

    Attributes:
        metric: name of the metric.
        missing: one line per missing file: its name, the folder searched, where to get it.
    """

    def __init__(self, metric: str, missing: Sequence[str]) -> None:
        self.metric = metric
        self.missing = tuple(missing)
        lines = "\n".join(f"  - {line}" for line in self.missing)
        super().__init__(
            f"{metric}: expected its weights on disk, got {len(self.missing)} missing; get and place these files, then run again "
            f"(nothing was downloaded):\n{lines}"
        )


INF = math.inf
