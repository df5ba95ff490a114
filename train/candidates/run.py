"""Pipeline A from a config to preference pairs; every stage finds what is finished and does the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import CandidatesConfig
from .curate import Curation, curate_folder
from .processes import SilentWatch, Team, Watch
from .record import write_config
from .sample import Draw, sample_candidates
from .score import score_candidates
from .store import CandidateStore

STAGES = ("sample", "score", "curate")


@dataclass(frozen=True)
class CandidatesResult:
    """What a run gives.

    Attributes:
        folder: the run folder.
        store: its candidates.
        scores: the table of scores, where that stage has run.
        pairs: the pair table, likewise.
        curation: its content, likewise; None in all processes but the first.
    """

    folder: Path
    store: CandidateStore
    scores: Path | None
    pairs: Path | None
    curation: Curation | None


def run_candidates(
    config: CandidatesConfig,
    folder: Path,
    *,
    watch: Watch | None = None,
    until: str = "curate",
    verify: bool = False,
    model_folders: Sequence[str | Path] = (),
    draw: Draw | None = None,
) -> CandidatesResult:
    """Sample, score and pair.

    Args:
        config: the whole config.
        folder: run folder; may hold an interrupted or finished run of the same sampling.
        watch: the host.
        until: the last of STAGES to run.
        verify: compare finished shards with their checksums first.
        model_folders: where models are looked for.
        draw: in place of the config's model.

    Returns:
        Paths and results. The same config gives the same tables, byte for byte, whatever was interrupted and however many
        processes took part.

    Raises:
        ValueError: `until` is no stage.
        DataError, MissingWeightsError, MissingModelError, WeightsError: see the stages.
    """
    if until not in STAGES:
        raise ValueError(f"until: expected one of {', '.join(STAGES)}, got {until!r}; choose one of them")
    watch = watch or SilentWatch()
    with Team.joined(config.num_threads) as team:
        store = sample_candidates(config, folder, team=team, watch=watch, verify=verify, model_folders=model_folders, draw=draw)
        scores = pairs = curation = None
        if until != "sample":
            scores = score_candidates(config.scoring, store, team=team, watch=watch)
        if team.is_main:
            write_config(config, folder)
            if until == "curate":
                pairs, curation = curate_folder(store, config.reward, config.pairs)
                watch.progress("pairs", 1, 1)
        team.meet()
    return CandidatesResult(folder, store, scores, pairs, curation)
