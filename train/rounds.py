"""Preference training online: rounds of pipelines A and B, each with the policy of the round before.

    candidates of the current policy -> scores -> pairs -> training against that policy -> the next policy

Round r draws noises that no round before it has used, of the same pictures, cut and degraded alike, so that the rewards of all
rounds can be compared: they are by the ranges of round 0's candidates of each picture (dp2o-sr.md 5.2). None of the papers does
this; DP2O-SR trains offline, once.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..core.metrics import hybrid_reward
from ..core.metrics.ranking import score_ranges
from ..core.weights import read_info, write_atomic
from .candidates import CandidatesConfig, SilentWatch, Watch, run_candidates
from .candidates.run import CandidatesResult
from .candidates.score import SCORES, Scores, read_scores
from .config import ConfigError, apply_sets, config_hash, find_config, from_mapping, overlay, positive, published, read_toml
from .loop import Hooks, SilentHooks
from .origins import learned_from
from .policy import trained_file
from .recipes import perceptual_dpo
from .session import finished_weights
from .sources import DataError

LOGGER = logging.getLogger("alignsr")
KIND = "dp2o_rounds"  # what `recipe` says in a TOML file of this kind
RECORD = "rounds.json"


@dataclass(frozen=True)
class RoundsConfig:
    """How many rounds of what; `base` in [candidates] and [training] names a published config that the table changes."""

    name: str = "dp2o-online"
    rounds: int = 3
    measure_last: bool = True  # sample and score once more after the last round
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    training: perceptual_dpo.PerceptualDpoConfig = field(default_factory=perceptual_dpo.PerceptualDpoConfig)

    def __post_init__(self) -> None:
        positive(self, "rounds")
        for key, there, here in (
            ("model.backbone", self.candidates.model.backbone, self.training.model.backbone),
            ("model.scale", self.candidates.model.scale, self.training.model.scale),
        ):
            if there != here:
                raise ValueError(f"training.{key}: expected {there} as in [candidates], got {here}; train what is sampled")


@dataclass(frozen=True)
class Round:
    """What a round found and did.

    Attributes:
        number: counted from 0; the last one, without training, is what came out.
        reward: mean over pictures and candidates, by the ranges of round 0.
        spread: standard deviation over the candidates of a picture, mean over pictures.
        best: of a picture's candidates, mean over pictures.
        worst: likewise.
        pairs: that were trained on; 0 without training.
        steps: of training.
        stopped: why training ended early, or an empty text.
        weights: file of the policy that came out of it; empty without training.
    """

    number: int
    reward: float
    spread: float
    best: float
    worst: float
    pairs: int = 0
    steps: int = 0
    stopped: str = ""
    weights: str = ""


@dataclass(frozen=True)
class RoundsResult:
    """What a run gives.

    Attributes:
        folder: its folder.
        rounds: one entry per round, and one for the last policy where it was measured.
        weights: the last policy.
    """

    folder: Path
    rounds: tuple[Round, ...]
    weights: Path

    def to_text(self) -> str:
        """A table for a terminal."""
        from ..core.metrics.table import aligned

        header = ["round", "reward", "spread", "best", "worst", "pairs", "steps", ""]
        rows = [
            [
                str(r.number),
                *(f"{x:.4f}" for x in (r.reward, r.spread, r.best, r.worst)),
                str(r.pairs or ""),
                str(r.steps or ""),
                r.stopped,
            ]
            for r in self.rounds
        ]
        lines, _ = aligned([header, *rows])
        return "\n".join(lines) + "\n"


def build_rounds_config(values: Mapping[str, Any]) -> RoundsConfig:
    """The config that a TOML file's values describe.

    Raises:
        ConfigError: of another kind, an unknown key or a wrong value; the message names the key.
    """
    if values.get("recipe") != KIND:
        names = ", ".join(name for name in published("rounds") if not name.startswith("tiny-"))
        raise ConfigError(f"recipe: expected {KIND!r}, got {values.get('recipe')!r}; published here are {names}")
    plain = {key: value for key, value in values.items() if key != "recipe"}
    for key in ("candidates", "training"):
        table = dict(plain.get(key, {}))
        base = table.pop("base", None)
        below = read_toml(find_config(str(base).removesuffix(".toml"))) if base else {}
        plain[key] = {name: value for name, value in overlay(below, table).items() if name != "recipe"}
    return from_mapping(RoundsConfig, plain)


def load_rounds_config(name: str | Path, sets: Sequence[str] = ()) -> RoundsConfig:
    """Read a TOML file (or a published config by name), apply `--set` items and build the config.

    Raises:
        ConfigError: see `train.config`.
    """
    return build_rounds_config(apply_sets(read_toml(find_config(name)), sets))


def rounds_hash(config: RoundsConfig) -> str:
    """Changes with whatever can change a round; more rounds of the same are the same run."""
    return config_hash(replace(config, rounds=1, measure_last=True))


def run_rounds(
    config: RoundsConfig,
    folder: Path,
    *,
    watch: Watch | None = None,
    hooks: Hooks | None = None,
    model_folders: Sequence[str | Path] = (),
) -> RoundsResult:
    """Run whatever is not there yet; the same config gives the same weights and the same record, whatever was interrupted.

    Args:
        config: the whole config.
        folder: run folder; gets `round-0/candidates`, `round-0/training`, ... and `rounds.json`. What is sampled after the last
            round lies where those of a further round do.
        watch: the host of the candidates' stages.
        hooks: the host of training.
        model_folders: where models are looked for.

    Raises:
        DataError: the folder holds rounds of another config.
        Stopped, MissingModelError, WeightsError, NonFiniteError: see the stages.
    """
    folder, watch, hooks = folder.expanduser().resolve(), watch or SilentWatch(), hooks or SilentHooks()
    _claim(config, folder)
    found: list[Round] = []
    start: Path | None = None
    first: Scores | None = None
    for number in range(config.rounds):
        place = folder / f"round-{number}"
        sampled = run_candidates(
            candidates_of(config, number, start), place / "candidates", watch=watch, model_folders=model_folders
        )
        scores = read_scores(sampled.folder / SCORES)
        first = first or scores
        training = training_of(config, number, start, sampled.folder)
        began = perceptual_dpo.learned_from(training) | learned_from(training, model_folders)
        weights = finished_weights(place / "training", training, began)
        if weights is None:
            weights = perceptual_dpo.train(training, place / "training", hooks, True, model_folders).weights
        found.append(_noted(number, config, first, scores, sampled, weights, folder))
        _record(folder, config, found)
        start = weights
    assert start is not None and first is not None
    if config.measure_last:
        last = candidates_of(config, config.rounds, start)
        place = folder / f"round-{config.rounds}" / "candidates"  # where a further round finds them, should one follow
        sampled = run_candidates(last, place, watch=watch, until="score", model_folders=model_folders)
        found.append(Round(config.rounds, **compared(first, read_scores(sampled.folder / SCORES), config)))
        _record(folder, config, found)
    return RoundsResult(folder, tuple(found), start)


def candidates_of(config: RoundsConfig, number: int, start: Path | None) -> CandidatesConfig:
    """The candidates of a round: of the policy that the round before gave, with noises that nobody has drawn."""
    mine = config.candidates
    sampling = replace(mine.sampling, first=mine.sampling.first + number * mine.sampling.candidates)
    return replace(mine, sampling=sampling, model=_from(mine.model, start))


def training_of(config: RoundsConfig, number: int, start: Path | None, pairs: Path) -> perceptual_dpo.PerceptualDpoConfig:
    """The training of a round: its reference, and where the policy starts, is the policy that the round before gave."""
    mine = config.training
    return replace(
        mine,
        model=_from(mine.model, start),
        data=replace(mine.data, pairs=str(pairs)),
        run=replace(mine.run, seed=mine.run.seed + number),
    )


def _from(model: Any, start: Path | None) -> Any:
    if start is None:
        return model
    key, value = trained_file(start)
    return replace(model, **{key: value})


def compared(first: Scores, scores: Scores, config: RoundsConfig) -> dict[str, float]:
    """Reward, spread, best and worst of candidates, by the ranges of round 0's candidates of the same pictures."""
    weights = config.candidates.reward.weights or None
    rewards = [
        hybrid_reward(mine, scores.metrics, weights=weights, ranges=score_ranges(there))
        for mine, there in zip(scores.groups, first.groups, strict=True)
        if bool(torch.isfinite(there).all(1).any())
    ]
    usable = [values[~torch.isnan(values)] for values in rewards]
    usable = [values for values in usable if len(values)]
    if not usable:
        raise DataError("scores: expected candidates with finite scores, got none; look at the metrics")

    def mean(values: Sequence[torch.Tensor]) -> float:
        return float(torch.stack(list(values)).mean())

    return {
        "reward": mean([v.mean() for v in usable]),
        "spread": mean([v.std(correction=0) for v in usable]),
        "best": mean([v.max() for v in usable]),
        "worst": mean([v.min() for v in usable]),
    }


def _noted(
    number: int, config: RoundsConfig, first: Scores, scores: Scores, sampled: CandidatesResult, weights: Path, folder: Path
) -> Round:
    info = read_info(weights)
    pairs = perceptual_dpo.open_data(training_of(config, number, None, sampled.folder))
    return Round(
        number,
        **compared(first, scores, config),
        pairs=len(pairs),
        steps=int(info["step"]),
        stopped=str(info.get("stopped", "")),
        weights=weights.relative_to(folder).as_posix(),
    )


def _record(folder: Path, config: RoundsConfig, found: Sequence[Round]) -> None:
    text = json.dumps({"config": config_hash(config), "rounds": [asdict(entry) for entry in found]}, indent=1) + "\n"
    write_atomic(folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))


def _claim(config: RoundsConfig, folder: Path) -> None:
    """Raise DataError where the folder holds rounds of another config; more of the same rounds may follow."""
    path, wanted = folder / "config.json", rounds_hash(config)
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8")).get("hash")
        if there != wanted:
            raise DataError(
                f"{folder}: expected an empty folder or rounds of this config, got those of another; choose another folder"
            )
        return
    text = json.dumps({"hash": wanted, "config": asdict(config)}, indent=1, default=str) + "\n"
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
