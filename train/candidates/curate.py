"""Stage 3 of pipeline A: rewards and preference pairs, as Parquet tables that training reads."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.metrics import hybrid_reward
from ...core.metrics.ranking import score_ranges
from ...core.preferences import PairTable, pair_table, unusable
from ...core.weights import write_atomic
from ..sources import DataError
from .config import PairsConfig, RewardConfig
from .score import SCORES, Scores, read_scores
from .store import CandidateStore
from .tables import write_table

LOGGER = logging.getLogger("alignsr")
REWARDS, PAIRS, REPORT = "rewards.parquet", "pairs.parquet", "curation.json"


@dataclass(frozen=True)
class Curation:
    """What came of a set of scores.

    Attributes:
        rewards: per group [M] float64, NaN for candidates that dropped out.
        groups: numbers of the groups that are used, in the order in which `table` counts them.
        table: their pairs.
        dropped: number -> reason, of the groups that are not used.
    """

    rewards: tuple[Tensor, ...]
    groups: tuple[int, ...]
    table: PairTable
    dropped: Mapping[int, str]


def ranges_of(metrics: Sequence[str], config: RewardConfig, groups: Sequence[Tensor]) -> Tensor:
    """The metrics' ranges of a fixed normalisation, [K, 2]: the config's, or those of all groups together."""
    if config.ranges:
        return torch.tensor([config.ranges[name] for name in metrics], dtype=torch.float64)
    return score_ranges(torch.cat(list(groups)))


def rewards_of(scores: Scores, config: RewardConfig, candidates: int = 0) -> tuple[Tensor, ...]:
    """One reward per candidate of every group.

    Args:
        scores: the table.
        config: weights and normalisation.
        candidates: use the first so many of each group, for the min-max too; 0: all.

    Raises:
        ValueError: no group with a usable candidate, or weights that do not fit the metrics.
    """
    groups = [group[:candidates] if candidates else group for group in scores.groups]
    ranges = ranges_of(scores.metrics, config, groups) if config.normalization == "fixed" else None
    weights = config.weights or None
    return tuple(hybrid_reward(group, scores.metrics, weights=weights, ranges=ranges) for group in groups)


def curate(scores: Scores, reward: RewardConfig, pairs: PairsConfig, names: Sequence[str] = ()) -> Curation:
    """Rewards and pairs of a table of scores.

    Args:
        scores: the table.
        reward: how scores become rewards.
        pairs: who is compared.
        names: of the groups, for messages.

    Raises:
        DataError: a group that cannot be used, unless such are dropped, or none that can.
    """
    rewards = rewards_of(scores, reward, pairs.candidates)
    reasons = {number: unusable(values, pairs.picks) for number, values in enumerate(rewards)}
    dropped = {number: reason for number, reason in reasons.items() if reason}
    if dropped and (pairs.on_unusable == "stop" or len(dropped) == len(rewards)):
        number, reason = next(iter(dropped.items()))
        label = names[number] if number < len(names) else f"group {number}"
        if len(dropped) == len(rewards):
            hint = "lower pairs.picks, choose other metrics or sample more candidates"
        else:
            hint = 'lower pairs.picks, or leave such groups out with pairs.on_unusable = "drop"'
        raise DataError(f"{label}: {reason} ({len(dropped)} of {len(rewards)} groups are like that); {hint}")
    used = tuple(number for number in range(len(rewards)) if number not in dropped)
    return Curation(rewards, used, pair_table([rewards[number] for number in used], pairs.picks), dropped)


def write_curation(store: CandidateStore, curation: Curation, scores: Scores, reward: RewardConfig, pairs: PairsConfig) -> Path:
    """Write rewards, pairs and a report into the run folder; the pairs last, so that where they are everything is.

    Returns:
        The path of the pairs.
    """
    info = {
        "kind": "preferences",
        "sampling": store.manifest["hash"],
        "metrics": list(scores.metrics),
        "picks": pairs.picks,
        "candidates": pairs.candidates or store.candidates,
        "normalization": reward.normalization,
        "mean_spread": float(curation.table.spread.mean()),
    }
    counts = [len(values) for values in curation.rewards]
    rewards = {
        "group": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
        "candidate": np.concatenate([np.arange(count) for count in counts]).astype(np.int32),
        "reward": torch.cat(list(curation.rewards)).numpy(),
    }
    write_table(store.folder / REWARDS, rewards, {**info, "kind": "rewards"})
    report = json.dumps(report_of(curation, pairs, store.names), indent=1) + "\n"
    write_atomic(store.folder / REPORT, lambda part: part.write_text(report, encoding="utf-8"))
    return write_table(store.folder / PAIRS, pair_columns(curation), info)


def pair_columns(curation: Curation) -> dict[str, Any]:
    """The columns of the pair table; `group` is the group's number in the run."""
    table = curation.table
    groups = np.asarray(curation.groups, dtype=np.int32)
    return {
        "group": groups[table.group.numpy()],
        "chosen": table.chosen.numpy().astype(np.int32),
        "rejected": table.rejected.numpy().astype(np.int32),
        "gap": table.gap.numpy(),
        "intra": table.intra.numpy(),
        "inter": table.inter.numpy(),
        "weight": table.weight.numpy(),
    }


def report_of(curation: Curation, pairs: PairsConfig, names: Sequence[str]) -> dict[str, Any]:
    """The numbers of a curation that a person wants to see."""
    table, usable = curation.table, [values[~torch.isnan(values)] for values in curation.rewards]
    lost = sum(len(values) for values in curation.rewards) - sum(map(len, usable))
    return {
        "groups": len(curation.rewards),
        "groups_used": len(curation.groups),
        "candidates": sum(len(values) for values in curation.rewards),
        "candidates_without_scores": lost,
        "picks": pairs.picks,
        "pairs": len(table),
        "mean_reward": float(torch.cat(usable).mean()) if sum(map(len, usable)) else None,
        "mean_reward_chosen": float(table.reward.mean()),
        "mean_reward_rejected": float((table.reward - table.gap).mean()),
        "mean_gap": float(table.gap.mean()),
        "mean_spread": float(table.spread.mean()),
        "mean_weight": float(table.weight.mean()),
        "weights": [float(table.weight.min()), float(table.weight.max())],
        "dropped": {names[number] if number < len(names) else str(number): reason for number, reason in curation.dropped.items()},
    }


def curate_folder(store: CandidateStore, reward: RewardConfig, pairs: PairsConfig) -> tuple[Path, Curation]:
    """Stage 3 in a run folder: read its scores, write its pairs."""
    scores = read_scores(store.folder / SCORES)
    curation = curate(scores, reward, pairs, store.names)
    for number, reason in curation.dropped.items():
        LOGGER.warning("%s: left out; %s", store.names[number], reason)
    return write_curation(store, curation, scores, reward, pairs), curation
