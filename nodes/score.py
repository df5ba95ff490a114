"""IQA Reward: scores of pictures by any metric, and one reward per candidate."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ..core.metrics import Scorer, hybrid_reward, require_available, spec_of
from ..core.metrics.table import Row, Table
from ..core.pictures import table as draw_table
from .common import as_list, first, input_names, match_batch, take, to_image
from .host import get_host

DEFAULT_METRICS = "psnr_y, ssim_y, lsd"
UP, DOWN = "\u2191", "\u2193"  # which direction is better


@dataclass(frozen=True)
class _Group:
    """The candidates of one scene: one IMAGE batch with its partners."""

    names: list[str]
    sr: Tensor
    gt: Tensor | None
    lq: Tensor | None


def _names_of(text: str) -> list[str]:
    """Metric names separated by commas or spaces, checked, without repeats."""
    names = list(dict.fromkeys(text.replace(",", " ").split()))
    if not names:
        raise ValueError(f"metrics: expected at least one name, got {text!r}; the usual ones are {DEFAULT_METRICS}")
    for name in names:
        with input_names(metric="metrics"):
            spec = spec_of(name)
        if spec.kind == "set":
            raise ValueError(f"metrics: expected metrics of single images, got {name}; use `alignsr evaluate` for whole sets")
    return names


def weights_of(text: str) -> dict[str, float] | None:
    """`psnr_y=2, lsd=1` as a mapping; None when empty."""
    weights: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.replace("\n", ",").split(","))):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise ValueError(f"weights: expected name=number, got {part!r}; write for example psnr_y=2, lsd=1") from None
    return weights or None


def _groups(images: list[Any], references: list[Any], inputs: list[Any], names: list[str]) -> list[_Group]:
    """Pair up the lists; shorter ones repeat their last element, as everywhere in ComfyUI."""
    groups: list[_Group] = []
    for index, image in enumerate(images):
        sr = take(image, "images").rgb
        gt = take(references[min(index, len(references) - 1)], "reference").rgb if references else None
        lq = take(inputs[min(index, len(inputs) - 1)], "lq").rgb if inputs else None
        if gt is not None:
            gt = match_batch(gt, sr.shape[0], "reference")
            if gt.shape != sr.shape:
                sizes = "x".join(map(str, gt.shape[:1:-1])), "x".join(map(str, sr.shape[:1:-1]))
                raise ValueError(
                    f"reference: expected the size of the images {sizes[1]}, got {sizes[0]}; check scale and cropping"
                )
        lq = None if lq is None else match_batch(lq, sr.shape[0], "lq")
        groups.append(_Group(_labels(index, sr.shape[0], len(images), names), sr, gt, lq))
    return groups


def _labels(index: int, batch: int, lists: int, names: list[str]) -> list[str]:
    lines = names[index].splitlines() if index < len(names) else []
    if len(lines) == batch > 1:
        return lines
    stem = names[index] if index < len(names) else (f"image {index + 1}" if lists > 1 or batch == 1 else "candidate")
    return [stem] if batch == 1 else [f"{stem} {k + 1}" for k in range(batch)]


def _score(groups: Sequence[_Group], metrics: Sequence[str], scale: int) -> list[dict[str, Tensor]]:
    """Per group metric -> [B]; one metric in memory at a time, one bar over everything, cancelled between pictures."""
    host = get_host()
    scores: list[dict[str, Tensor]] = [{} for _ in groups]
    bar, done = host.progress(len(metrics) * sum(len(group.names) for group in groups), "scoring"), 0
    for name in metrics:
        host.check_interrupt()
        scorer = Scorer(name, host.device())
        for group, found in zip(groups, scores, strict=True):
            parts: list[Tensor] = []
            for sr, gt, lq in zip(group.sr.split(1), _singles(group.gt), _singles(group.lq), strict=False):
                with input_names(sr="images", x="images", image="images", gt="reference"):
                    parts.append(scorer(sr, gt, lq=lq, scale=scale))
                done += 1
                bar.update(done)
            found[name] = torch.cat(parts)
        del scorer
    host.soft_empty_cache()
    return scores


def _singles(images: Tensor | None) -> Iterable[Tensor | None]:
    return repeat(None) if images is None else images.split(1)


class IQAReward:
    """Node AlignSRIQAReward."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Scores pictures with the metrics you name and combines them into one reward per picture. The pictures of a batch "
        "count as "
        "candidates for the same scene: each metric is scaled between the worst and the best of them, then averaged."
    )
    FUNCTION = "score"
    INPUT_IS_LIST = True
    RETURN_TYPES = ("STRING", "FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("scores", "rewards", "table", "table_image")
    OUTPUT_IS_LIST = (False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "Everything as JSON: per picture, means, what is missing. For Save Report.",
        "One reward per picture, 0..1 (1: best in every metric of its batch; 0.5 for a single picture).",
        "The table as text; connect Preview as Text to see it.",
        "The table as a picture; the best score of each column is marked.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "images": (
                    "IMAGE",
                    {"tooltip": "Pictures to score. A batch holds candidates for one scene; a list holds several scenes."},
                ),
                "metrics": (
                    "STRING",
                    {
                        "default": DEFAULT_METRICS,
                        "tooltip": "Names separated by commas. Without weights on disk: psnr_y, psnr_rgb, ssim_y, "
                        "ssim_rgb, lsd, hf_energy (need the "
                        "reference), lr_psnr (needs lq), sharpness. Learned ones such as lpips, musiq, clipiqa run through pyiqa "
                        "when their weights "
                        "are on disk; nothing is downloaded.",
                    },
                ),
                "scale": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 16,
                        "tooltip": "The upscaling factor: PSNR and SSIM leave out a border that wide.",
                    },
                ),
            },
            "optional": {
                "reference": ("IMAGE", {"tooltip": "Ground truth of the same size; one for the whole batch, or one each."}),
                "lq": (
                    "IMAGE",
                    {"tooltip": "Low-resolution input, for lr_psnr: how well the result agrees with what was given."},
                ),
                "names": (
                    "STRING",
                    {"forceInput": True, "tooltip": "Row titles: from Load Image Folder, or one line per picture of a batch."},
                ),
                "weights": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "How much each metric counts in the reward, such as psnr_y=2, lsd=1. Empty: metrics "
                        "with and without "
                        "reference count half each.",
                    },
                ),
            },
        }

    def score(
        self, images: Any, metrics: Any, scale: Any, reference: Any = None, lq: Any = None, names: Any = None, weights: Any = ""
    ) -> tuple[str, list[float], str, Tensor]:
        wanted = _names_of(first(metrics))
        references, inputs = as_list(reference), as_list(lq)
        for name in wanted:
            if spec_of(name).needs_reference and not references:
                raise ValueError(f"reference: expected ground truth for {name}, got none; connect it or choose other metrics")
            if spec_of(name).needs_input and not inputs:
                raise ValueError(
                    f"lq: expected the low-resolution input for {name}, got none; connect it or choose other metrics"
                )
        counts = weights_of(first(weights))
        with input_names("metrics"):
            require_available(wanted)
        groups = _groups(as_list(images), references, inputs, [str(name) for name in as_list(names)])
        scores = _score(groups, wanted, first(scale))
        rewards: list[float] = []
        rows: list[Row] = []
        for group, found in zip(groups, scores, strict=True):
            columns = torch.stack([found[name] for name in wanted], 1)
            rewards += hybrid_reward(columns, wanted, weights=counts).tolist()
            rows += [
                Row(name, dict(zip(wanted, line, strict=True))) for name, line in zip(group.names, columns.tolist(), strict=True)
            ]
        table = Table(tuple(wanted), tuple(rows), scale=first(scale), crop=first(scale), title="Scores")
        record = table.to_dict()
        for entry, reward in zip(record["images"], rewards, strict=True):
            entry["reward"] = reward if math.isfinite(reward) else None
        header, lines, marked = _cells(table, rewards)
        picture = draw_table(header, lines, title="Scores", notes=table.notes(), marked=marked, has_summary=True)
        return json.dumps(record, indent=2), rewards, _as_text([header, *lines], table.notes()), to_image([picture])


def _cells(table: Table, rewards: Sequence[float]) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Header, lines with the mean as last one, and the (line, column) of the best scores."""
    header = [
        "image",
        *(f"{spec.title} {UP if spec.higher_is_better else DOWN}" for spec in table.columns),
        f"reward {UP}",
    ]
    columns = [[row.values[spec.name] for row in table.rows] for spec in table.columns]
    lines = [[row.name] for row in table.rows]
    marked: set[tuple[int, int]] = set()
    means = ["mean"]
    directions = [spec.higher_is_better for spec in table.columns] + [True]
    for index, (values, is_up) in enumerate(zip([*columns, list(rewards)], directions, strict=True), start=1):
        digits = 2 if max(map(abs, filter(math.isfinite, values)), default=0.0) >= 10 else 4
        for line, value in zip(lines, values, strict=True):
            line.append(f"{value:.{digits}f}")
        finite = [value for value in values if math.isfinite(value)]
        means.append(f"{math.fsum(finite) / len(finite):.{digits}f}" if finite else "")
        if len(set(finite)) > 1:
            best = max(finite) if is_up else min(finite)
            marked |= {(row, index) for row, value in enumerate(values) if value == best}
    return header, [*lines, means], marked


def _as_text(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pad = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    head, *body = ("  ".join(line).rstrip() for line in pad)
    return "\n".join([head, rule, *body[:-1], rule, body[-1], *notes])
