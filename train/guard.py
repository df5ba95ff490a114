"""What stops preference training before it collapses: the reward of fresh candidates of a few pictures, and the drift of errors.

While the margin between chosen and rejected samples grows, held-out reward may already fall (dp2o-sr.md 4.4, 4.9 D3).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.metrics import Scorer, hybrid_reward, require_available, spec_of
from ..core.metrics.ranking import score_ranges
from ..core.weights import load_into, load_state_dict, read_info, save_weights
from .candidates.config import CandidatesConfig
from .candidates.model import drawer
from .candidates.sample import make_group
from .candidates.score import SCORES, read_scores
from .candidates.sources import Group
from .candidates.store import Candidates, CandidateStore
from .config import ConfigError
from .prompts import Tell
from .validation import Watch, unwatched

LOGGER = logging.getLogger("alignsr")
BEST = "best.safetensors"


@dataclass(frozen=True)
class GuardConfig:
    """When training stops by itself. All of it is off with pictures = 0 and max_drift = 0."""

    pictures: int = 0  # the last so many of the candidates' pictures are kept out of training and sampled anew; 0: no probe
    seeds: int = 2  # fresh candidates of each, always from the same noises
    every: int = 50  # steps between two looks
    steps: int = 0  # sampling steps; 0: the candidates' own
    metrics: tuple[str, ...] = ()  # of the candidates' metrics; empty: all of them
    patience: int = 3  # stop when so many looks in a row fell short of the best by more than the tolerance; 0: never
    tolerance: float = 0.01
    max_drift: float = 0.0  # stop when the policy's error on chosen samples exceeds the reference's by this share; 0: never

    def __post_init__(self) -> None:
        for name, low in (("pictures", 0), ("seeds", 1), ("every", 1), ("steps", 0), ("patience", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}; raise it")
        for name in ("tolerance", "max_drift"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}; raise it")


@dataclass(frozen=True)
class Look:
    """What fresh candidates are worth.

    Attributes:
        reward: mean over pictures and seeds, by the ranges of each picture's candidates of the reference: these lie in [0, 1].
        spread: standard deviation over the seeds of a picture, mean over pictures.
        worst: the worst seed of a picture, mean over pictures.
        pictures: of the first picture, [seeds, 3, H, W] uint8.
    """

    reward: float
    spread: float
    worst: float
    pictures: Tensor


class Probe:
    """Pictures that are kept out of training, sampled with noises that no candidate had.

    Rewards are by fixed ranges, those of the reference's candidates of the same picture: they can be compared over time.

    Args:
        config: how much is looked at.
        settings: what the candidates were sampled and scored with.
        store: the candidates.
        groups: numbers of the pictures.
        tell: prompts to embeddings.
        device: where models work.

    Raises:
        ConfigError: metrics that the candidates have no scores of.
        MissingWeightsError: a metric's files are missing.

    Source:
        dp2o-sr.md 5.2: ranges frozen once per image over a pool of baseline outputs, not clipped.
    """

    def __init__(
        self,
        config: GuardConfig,
        settings: CandidatesConfig,
        store: CandidateStore,
        groups: tuple[int, ...],
        tell: Tell,
        device: torch.device,
    ) -> None:
        scores = read_scores(store.folder / SCORES)
        self.metrics = config.metrics or scores.metrics
        if lacking := [name for name in self.metrics if name not in scores.metrics]:
            raise ConfigError(
                f"guard.metrics: expected some of {', '.join(scores.metrics)}, got {', '.join(lacking)}; score them first"
            )
        require_available(self.metrics)
        columns = [scores.metrics.index(name) for name in self.metrics]
        self.ranges = [score_ranges(scores.groups[number][:, columns]) for number in groups]
        weights = settings.reward.weights
        self.weights: Mapping[str, float] | None = weights if set(weights) == set(self.metrics) else None
        sampling = replace(settings.sampling, steps=config.steps or settings.sampling.steps)
        self.settings = replace(settings, sampling=sampling)
        self.seeds, self.store, self.tell, self.device = config.seeds, store, tell, device
        self.groups = [group_of(store, number) for number in groups]

    def look(self, backbone: Any, watch: Watch = unwatched) -> Look:
        """Sample and score.

        Args:
            backbone: the policy, its answers in float32.
            watch: told before every picture, while they are sampled and again, as in the last one, while they are scored.

        Raises:
            FloatingPointError: NaN or infinity; the message names picture, step and sample.
        """
        drawn = drawer(self.settings, backbone, lambda text: self.tell([text]), self.device)

        def draw(group: Group, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
            with torch.inference_mode(False), torch.no_grad():  # whatever modules remember must serve training too
                return drawn(group, seeds)

        made: list[Candidates] = []
        for group in self.groups:
            watch(len(made), len(self.groups))
            made.append(make_group(self.settings, group, draw, fresh=self.seeds))
        table = torch.stack([self._scores(name, made, watch) for name in self.metrics], -1)  # [pictures, seeds, metrics]
        rewards = [
            hybrid_reward(scores, self.metrics, weights=self.weights, ranges=ranges)
            for scores, ranges in zip(table, self.ranges, strict=True)
        ]
        found = torch.stack(rewards)
        if not bool(torch.isfinite(found).all()):
            raise FloatingPointError(f"guard: expected finite rewards, got {found.tolist()}; look at the metrics")
        spread = found.std(1, correction=0)
        return Look(float(found.mean()), float(spread.mean()), float(found.amin(1).mean()), made[0].pictures)

    def _scores(self, name: str, made: list[Candidates], watch: Watch) -> Tensor:
        scorer, spec = Scorer(name, self.device), spec_of(name)
        rows: list[Tensor] = []
        for group in made:
            watch(len(made) - 1, len(made))  # no picture is done before its scores are known
            sr = group.pictures.float() / 255
            gt, lq = ((x.float() / 255).expand(len(sr), -1, -1, -1) for x in (group.gt, group.lq))
            rows.append(
                scorer(sr, gt if spec.needs_reference else None, lq=lq if spec.needs_input else None, scale=self.store.scale)
            )
        return torch.stack(rows).double()


def group_of(store: CandidateStore, number: int) -> Group:
    """A picture as it was sampled."""
    entry = store.entry(number)
    gt, lq = (store.picture(entry, key) for key in ("gt", "lq"))
    return Group(number, entry.name, gt, lq, store.read(entry, "txt").decode())


class Guard:
    """Notes what the probe says over time, keeps the best weights, and says when to stop.

    Args:
        config: when to stop.
        probe: what looks, or None.
        folder: run folder, for the best weights.
        state: JSON-able and kept in checkpoints; changed in place.
    """

    def __init__(self, config: GuardConfig, probe: Probe | None, folder: Path, state: dict[str, Any]) -> None:
        self.config, self.probe, self.folder, self.state = config, probe, folder, state
        self.state.setdefault("history", [])
        self.state.setdefault("stopped", "")
        self.state.setdefault("drifts", 0)

    @property
    def stopped(self) -> str:
        """Why training is over, or an empty text."""
        return str(self.state["stopped"])

    @property
    def best_step(self) -> int:
        """The step with the best reward; 0: before training, and where nobody looked."""
        history = self.state["history"]
        return max(history, key=lambda entry: entry[1])[0] if history else 0

    def is_due(self, step: int, last: int) -> bool:
        """Whether to look after `step` steps."""
        return self.probe is not None and (step % self.config.every == 0 or step == last)

    def is_owed(self, step: int, last: int) -> bool:
        """Whether the look where a run stands, after `step` steps, is due and was not taken: it was cut, or nobody has begun."""
        return self.is_due(step, last) and all(entry[0] != step for entry in self.state["history"])

    def look(self, step: int, backbone: Any, part: nn.Module, watch: Watch = unwatched) -> dict[str, float]:
        """Look, and note what was seen.

        Args:
            step: steps done.
            backbone: the policy.
            part: what is trained; kept where it is the best so far.
            watch: told before every picture; where it raises, nothing was seen.

        Returns:
            Figures for the log.
        """
        assert self.probe is not None
        seen = self.probe.look(backbone, watch)
        history: list[list[float]] = self.state["history"]
        best = max((entry[1] for entry in history), default=-math.inf)
        history.append([step, seen.reward, seen.spread, seen.worst])
        if seen.reward > best:
            save_weights(self.folder / BEST, dict(part.state_dict()), {"kind": "best", "step": step})
        patience, recent = self.config.patience, history[-self.config.patience :]
        best = max(entry[1] for entry in history)
        if patience and len(history) > patience and all(entry[1] < best - self.config.tolerance for entry in recent):
            self.state["stopped"] = (
                f"the reward of fresh candidates fell from {best:.4f} (step {self.best_step}) to {seen.reward:.4f} (step {step})"
            )
        return {"probe_reward": seen.reward, "probe_spread": seen.spread, "probe_worst": seen.worst}

    def watch(self, step: int, drift: float) -> None:
        """Note how much worse than the reference the policy fits chosen samples; three steps in a row above the limit stop it."""
        limit = self.config.max_drift
        self.state["drifts"] = self.state["drifts"] + 1 if limit and drift > limit else 0
        if self.state["drifts"] >= 3:
            self.state["stopped"] = f"the error on chosen samples lies {drift:.1%} above the reference's at step {step}"

    def restore_best(self, part: nn.Module) -> int:
        """Put the best weights back, if anybody looked; returns their step.

        An interruption between a look and the next checkpoint leaves weights of a look that is forgotten. On a CPU the run comes
        by them again; where it does not, their step is told all the same.
        """
        path = self.folder / BEST
        if self.probe is None or not path.is_file():
            return 0
        load_into(part, load_state_dict(path), str(path))
        step = int(read_info(path)["step"])
        if step != self.best_step:
            LOGGER.warning(
                "%s: of step %d, seen before an interruption; the best since then is step %d", path, step, self.best_step
            )
        return step
