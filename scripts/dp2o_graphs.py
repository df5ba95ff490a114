"""The workflows of DP2O-SR's two pipelines: preference pairs, training on them, and before against after by seeds."""

from graph_parts import EXAMPLE, Graph, node

PICTURES = "training-pictures"
TEST = "Set14"
TEN_SEEDS = 'sampling.candidates=10\ndata.crop="center"'


def sample_score_curate() -> Graph:
    return {
        "1": node("AlignSRSampleCandidates", config="dp2o-candidates-pixel", data_folder=PICTURES),
        "2": node("AlignSRScoreCandidates", candidates=["1", 0]),
        "3": node("AlignSRCurationStudy", candidates=["2", 0]),
        "4": node("AlignSRCuratePreferences", candidates=["2", 0], picks=["3", 0]),
        "5": node("PreviewImage", "Candidates", images=["1", 1]),
        "6": node("PreviewAny", "Scores", source=["2", 1]),
        "7": node("PreviewImage", "Curation study", images=["3", 2]),
        "8": node("PreviewImage", "What DP2O-SR found", images=["3", 3]),
        "9": node("PreviewImage", "Chosen and rejected", images=["4", 2]),
        "10": node("PreviewAny", "Pairs", source=["4", 1]),
    }


def training() -> Graph:
    """Nodes 1 to 4: from pictures to a policy."""
    return {
        "1": node("AlignSRSampleCandidates", config="dp2o-candidates-pixel", data_folder=PICTURES),
        "2": node("AlignSRScoreCandidates", candidates=["1", 0]),
        "3": node("AlignSRCuratePreferences", candidates=["2", 0]),
        "4": node("AlignSRPerceptualDPOTrainer", config="dp2o-pixel", preferences=["3", 0], out_name="my-dp2o"),
    }


def train_dp2o() -> Graph:
    return training() | {
        "5": node("LoadImage", image=EXAMPLE),
        "6": node("AlignSRMultiStepSR", model=["4", 1], image=["5", 0], scale=4),
        "7": node("SaveImage", images=["6", 0], filename_prefix="alignsr/my-dp2o"),
        "8": node("AlignSRCompare", result=["6", 0], input=["5", 0], labels="input (bicubic), trained"),
        "9": node("PreviewImage", "Comparison", images=["8", 0]),
        "10": node("PreviewImage", "Chosen and rejected", images=["3", 2]),
        "11": node("PreviewImage", "Curves", images=["4", 2]),
        "12": node("PreviewAny", "Weights", source=["4", 0]),
    }


def compare_dp2o() -> Graph:
    given = {"config": "dp2o-candidates-pixel", "data_folder": TEST, "overrides": TEN_SEEDS}
    return training() | {
        "5": node("AlignSRSampleCandidates", "Before", out_name="before", **given),
        "6": node("AlignSRSampleCandidates", "After", out_name="after", weights=["4", 0], **given),
        "7": node("AlignSRScoreCandidates", "Scores before", candidates=["5", 0]),
        "8": node("AlignSRScoreCandidates", "Scores after", candidates=["6", 0]),
        "9": node("AlignSRCompareSeeds", before=["7", 0], after=["8", 0], labels="before, after"),
        "10": node("PreviewImage", "Mean and deviation over seeds", images=["9", 1]),
        "11": node("PreviewImage", "The same seeds", images=["9", 2]),
        "12": node("PreviewAny", "Table", source=["9", 0]),
    }


LARGE = (
    "- the paper's models: `dp2o-candidates-sd2` and `dp2o-sd2`, or `dp2o-candidates-flux` and `dp2o-flux` (`dp2o-flux-lora` in "
    "24 GB), on a GPU, with the nine metrics' weights\n"
)
AGAIN = "Interrupt at any time and queue again: it goes on."

DP2O_GRAPHS: dict[str, tuple[Graph, str]] = {
    "sample-score-curate": (
        sample_score_curate(),
        f"## Preference pairs (DP2O-SR)\n\nPut sharp pictures (at least 128 px) into `input/{PICTURES}` and queue. Every picture "
        "is restored 16 times with different noise, each result is scored, and the best are paired with the worst, as many "
        f"as the study recommends. {AGAIN}\n\n"
        "- **Pairs** names the table (`pairs.parquet`) that **Perceptual DPO Trainer** reads\n"
        "- other metrics: `metrics` in **Score Candidates**; learned ones need their weights on disk\n"
        f"{LARGE}- fewer pictures for a first look: `data.limit=10` in `overrides`",
    ),
    "train-dp2o": (
        train_dp2o(),
        f"## Train by preferences (DP2O-SR)\n\nPut sharp pictures (at least 128 px, better hundreds) into `input/{PICTURES}` and "
        "queue. The model restores each of them 16 times, metrics choose among its own results, and it is trained towards what "
        f"they prefer. {AGAIN}\n\n"
        "- the last two pictures are kept out of training: their fresh results, in the curve as `probe_reward`, stop it before "
        "it collapses\n"
        f"{LARGE}- best against worst only: `picks` 1; all pairs alike: `weighting` uniform\n"
        "- before against after with ten seeds: the template compare-dp2o\n"
        "- several rounds with the better model: `alignsr dp2o dp2o-online-pixel`",
    ),
    "compare-dp2o": (
        compare_dp2o(),
        f"## Before against after, ten seeds\n\nTrains as train-dp2o does (what is finished is found), then restores every "
        f"picture of `input/{TEST}` ten times by both models: the mean of every metric and its deviation over seeds, as Table 2 "
        f"of DP2O-SR. {AGAIN}\n\n- means should rise and deviations fall\n"
        "- weights of yours: their path in `weights` of **After**, and no training nodes\n"
        f"{LARGE}",
    ),
}
