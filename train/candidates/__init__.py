"""Pipeline A of DP2O-SR: candidates -> scores -> reward -> preference pairs, on disk, resumable at any kill.

`run_candidates` runs a config; each stage is a function of its own (`sample_candidates`, `score_candidates`, `curate_folder`).
"""

from .config import CandidatesConfig, build_candidates_config, load_candidates_config
from .curate import Curation, curate, curate_folder
from .processes import SilentWatch, Team, Watch
from .run import STAGES, CandidatesResult, run_candidates
from .sample import sample_candidates
from .score import Scores, read_scores, score_candidates
from .store import CandidateStore
from .study import Study, study_folder, study_scores

__all__ = [
    "STAGES",
    "CandidateStore",
    "CandidatesConfig",
    "CandidatesResult",
    "Curation",
    "Scores",
    "SilentWatch",
    "Study",
    "Team",
    "Watch",
    "build_candidates_config",
    "curate",
    "curate_folder",
    "load_candidates_config",
    "read_scores",
    "run_candidates",
    "sample_candidates",
    "score_candidates",
    "study_folder",
    "study_scores",
]
