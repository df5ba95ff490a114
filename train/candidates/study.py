"""The curation study of a run folder: every (M, N) from its largest M, as a table, pictures and a recommendation."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.curation import (
    FINDINGS,
    MODELS,
    BestOf,
    Recommendation,
    Setting,
    best_of,
    evaluation_rewards,
    published_grid,
    recommend,
    study,
)
from ...core.curation_pictures import HEADER, published_picture, settings_rows, study_picture
from ...core.metrics.table import aligned
from ...core.weights import write_atomic
from ..config import from_mapping
from ..sources import DataError
from .config import RewardConfig
from .curate import ranges_of
from .sample import MODEL
from .score import SCORES, Scores, read_scores

FOLDER = "study"  # inside the run folder


@dataclass(frozen=True)
class Study:
    """What a study says.

    Attributes:
        settings: one per (M, N).
        best: best, mean and worst of m.
        advice: which (M, N) to take.
        metrics: the scores it rests on.
        groups: how many pictures.
    """

    settings: tuple[Setting, ...]
    best: BestOf
    advice: Recommendation
    metrics: tuple[str, ...]
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            {
                "candidates": s.candidates,
                "picks": s.picks,
                "groups": s.groups,
                "pairs": s.pairs,
                "share_of_pairs": s.share,
                "share_of_candidates": s.used,
                "mean_spread": s.spread,
                "mean_gap": s.mean_gap,
                "mean_reward_chosen": s.chosen,
                "mean_reward_rejected": s.rejected,
                "weights": [float(s.table.weight.min()), float(s.table.weight.max())],
            }
            for s in self.settings
        ]
        return {
            "groups": self.groups,
            "metrics": list(self.metrics),
            "settings": rows,
            "best_of": asdict(self.best),
            "recommendation": asdict(self.advice),
            "published": {
                **{model: dict(zip(("start", "after_1000_steps"), published_grid(model), strict=True)) for model in MODELS},
                "findings": list(FINDINGS),
            },
        }

    def to_text(self) -> str:
        """The table for a terminal, best of m and the recommendation below, with the paper's findings."""
        lines, rule = aligned([list(HEADER), *settings_rows(self.settings)])
        best = [
            f"best / mean / worst of {m}: {b:.4f} / {a:.4f} / {w:.4f}" for m, b, a, w in zip(*_columns(self.best), strict=True)
        ]
        advice = f"recommended: M = {self.advice.candidates}, N = {self.advice.picks}; {self.advice.reason}"
        return "\n".join([*lines, rule, *best, advice, *(f"paper: {finding}" for finding in FINDINGS)]) + "\n"

    def to_csv(self) -> str:
        """The table with a line per (M, N)."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(settings_rows(self.settings))
        return out.getvalue()

    def pictures(self) -> dict[str, Image.Image]:
        """`study`: plots and table; `published`: the paper's grid."""
        title = f"Curation study: {self.groups} pictures"
        return {"study": study_picture(self.settings, self.best, self.advice, title), "published": published_picture(self.advice)}


def _columns(best: BestOf) -> tuple[Sequence[Any], ...]:
    return best.counts, best.best, best.mean, best.worst


def study_scores(scores: Scores, parameters: float, *, most: int = 0, reward: RewardConfig | None = None) -> Study:
    """The study of a table of scores.

    Args:
        scores: the table.
        parameters: of the model that is going to be trained.
        most: use the first so many candidates of each picture; 0: all.
        reward: weights and normalisation; None: full-reference and other metrics half each, per group.

    Raises:
        ValueError: fewer than two candidates, or none that differ.
    """
    groups = [group[:most] if most else group for group in scores.groups]
    largest = max(len(group) for group in groups)
    told = reward or RewardConfig()
    weights, is_fixed = told.weights or None, told.normalization == "fixed"
    ranges = partial(ranges_of, scores.metrics, told) if is_fixed else None
    settings = tuple(study(groups, scores.metrics, weights=weights, ranges=ranges))
    best = best_of(evaluation_rewards(groups, scores.metrics, weights=weights))
    return Study(settings, best, recommend(parameters, largest), scores.metrics, len(groups))


def model_parameters(folder: Path) -> float:
    """Size of the model that a run folder was sampled with.

    Raises:
        DataError: not known.
    """
    try:
        return float(json.loads((folder / MODEL).read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"parameters: expected the size of the model that is to be trained, since {folder / MODEL} does not say it; "
            "give it, such as 0.8e9 for Stable Diffusion 2 or 12e9 for FLUX.1"
        ) from error


def study_folder(folder: Path, *, parameters: float = 0.0, most: int = 0, out: Path | None = None) -> tuple[Study, Path]:
    """Study the scores of a run folder and write the result.

    Args:
        folder: run folder with scores; its config's reward counts, weights and normalisation.
        parameters: of the model that is going to be trained; 0: of the one that was sampled.
        most: see `study_scores`.
        out: folder for `study.json`, `study.csv`, `study.png` and `published.png`; None: `study` inside the run folder.

    Returns:
        (the study, where it was written).

    Raises:
        DataError: no scores, or the model's size is not known.
    """
    scores = read_scores(folder / SCORES)
    found = study_scores(scores, parameters or model_parameters(folder), most=most, reward=_reward(folder, scores))
    target = out or folder / FOLDER
    for name, picture in found.pictures().items():
        write_atomic(target / f"{name}.png", lambda part, picture=picture: picture.save(part, format="PNG"))
    texts = {"study.csv": found.to_csv(), "study.json": json.dumps(found.to_dict(), indent=1) + "\n"}
    for name, text in texts.items():
        write_atomic(target / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    return found, target


def _reward(folder: Path, scores: Scores) -> RewardConfig | None:
    """The reward in the run's config, where it is for these metrics."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))["reward"]
        reward = from_mapping(RewardConfig, values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = all(not table or set(table) == set(scores.metrics) for table in (reward.weights, reward.ranges))
    return reward if fits else None
