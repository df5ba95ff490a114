"""Sample Candidates and Score Candidates: the first two stages of pipeline A of DP2O-SR inside a workflow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.pictures import contact_sheet
from ..core.pictures import table as draw_table
from .common import input_names, to_image
from .host import Host, get_host
from .train import check_name, read_values

CANDIDATES = "ALIGNSR_CANDIDATES"  # socket type; the value is a CandidateRun
RUNS = "alignsr/candidates"  # inside the output folder
SHOWN = 4  # pictures on a sheet
STEPS = 1000  # of a node's bar


@dataclass(frozen=True)
class CandidateRun:
    """The value of an ALIGNSR_CANDIDATES socket.

    Attributes:
        folder: run folder with candidates, and after Score Candidates with scores.
        config: `train.candidates.CandidatesConfig`.
    """

    folder: Path
    config: Any


class NodeWatch:
    """`train.candidates.Watch` on the node's progress bar; an interruption by the user leaves finished parts on disk.

    Args:
        host: where the bar is.
        title: of the bar.
        stages: names of what is to be done, in that order.
    """

    def __init__(self, host: Host, title: str, stages: Sequence[str]) -> None:
        self.bar, self.stages = host.progress(STEPS, title), list(stages)
        self.frame: Image.Image | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        place = self.stages.index(stage) + done / max(total, 1)
        frame, self.frame = self.frame, None
        self.bar.update(int(STEPS * place / len(self.stages)), preview=frame)

    def preview(self, image: Image.Image) -> None:
        self.frame = image


class SampleCandidates:
    """Node AlignSRSampleCandidates."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Draws many results of every picture with different noise and keeps them on disk, as the start of preference training. "
        "Interrupt it at any time: queue it again and it goes on. Finished candidates are found and not drawn again."
    )
    FUNCTION = "sample"
    RETURN_TYPES = (CANDIDATES, "IMAGE", "STRING")
    RETURN_NAMES = ("candidates", "sheet", "info")
    OUTPUT_TOOLTIPS = (
        "The run with its candidates, for Score Candidates.",
        "Ground truth and the first candidates of some pictures.",
        "Facts as JSON: folder, model, number of pictures and candidates.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "config": (
                    "STRING",
                    {
                        "default": "dp2o-candidates-pixel",
                        "multiline": True,
                        "tooltip": "Name of a published config (dp2o-candidates-pixel, dp2o-candidates-sd2, "
                        "dp2o-candidates-flux), path of a "
                        'TOML file, or TOML text; text may start from a published one with base = "dp2o-candidates-pixel".',
                    },
                ),
                "data_folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Folder of sharp pictures: absolute, or inside the input folder. Empty: the folders of "
                        "the config.",
                    },
                ),
                "overrides": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Changes to the config, one key=value per line, such as sampling.candidates=8 or "
                        "data.limit=100.",
                    },
                ),
                "out_name": (
                    "STRING",
                    {"default": "", "tooltip": "Name of the run folder, before its hash. Empty: the name in the config."},
                ),
            },
            "optional": {
                "weights": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Path of trained weights, from Perceptual DPO Trainer, to sample with in place of the "
                        "config's: a control branch, an adapter or a pixel model. Empty: the config's model.",
                    },
                ),
            },
        }

    def sample(
        self, config: str, data_folder: str = "", overrides: str = "", out_name: str = "", weights: str = ""
    ) -> tuple[CandidateRun, Tensor, str]:
        from ..train.candidates import Team, build_candidates_config, sample_candidates

        tables = {"model": dict([_trained(weights.strip())])} if weights.strip() else None
        settings = build_candidates_config(read_values(config, overrides, data_folder, out_name, tables=tables))
        check_name(settings.name, out_name)
        host = get_host()
        folder = host.output_dir() / RUNS / f"{settings.name}-{settings.sampling_hash}"
        host.free_memory(2**33)
        watch = NodeWatch(host, f"sampling {settings.name}", ["sampling"])
        with Team.joined(settings.num_threads) as team:
            store = sample_candidates(settings, folder, team=team, watch=watch, model_folders=host.training_dirs())
        watch.progress("sampling", 1, 1)
        host.soft_empty_cache()
        facts = {"folder": str(folder), "pictures": len(store.names), "candidates": store.candidates, "scale": store.scale}
        model = folder / "model.json"
        facts |= {"model": json.loads(model.read_text(encoding="utf-8"))} if model.is_file() else {}
        return CandidateRun(folder, settings), to_image([_first_sheet(store)]), json.dumps(facts, indent=2)


def _trained(weights: str) -> tuple[str, str]:
    """The key of [model] that a file of trained weights belongs to, and the file."""
    from ..core.weights import MissingModelError
    from ..train.policy import trained_file

    path = Path(weights).expanduser()
    if not path.is_file():
        raise MissingModelError(f"weights: expected a file that Perceptual DPO Trainer wrote, found no {path}; check the path")
    return trained_file(path)


def _first_sheet(store: Any) -> Image.Image:
    pictures: dict[str, Tensor] = {}
    for index in range(min(SHOWN, len(store.names))):
        entry = store.entry(index)
        pictures[f"{entry.name}"] = store.picture(entry, "gt")[None].float() / 255
        for k in range(min(SHOWN, entry.candidates)):
            pictures[f"{index}: candidate {k}"] = store.picture(entry, f"{k:02d}.png")[None].float() / 255
    return contact_sheet(pictures, columns=1 + min(SHOWN, store.candidates), cell_px=180)


class ScoreCandidates:
    """Node AlignSRScoreCandidates."""

    CATEGORY = "AlignSR/preferences"
    DESCRIPTION = (
        "Scores every candidate with the metrics you name, one metric in memory at a time, and keeps the scores in a table. "
        "What was scored once is not scored again, in this run or another one that shares the cache folder."
    )
    FUNCTION = "score"
    RETURN_TYPES = (CANDIDATES, "STRING", "IMAGE", "STRING")
    RETURN_NAMES = ("candidates", "table", "table_image", "path")
    OUTPUT_TOOLTIPS = (
        "The run with its scores, for Curate Preferences and Curation Study.",
        "Each metric's mean, range and spread within a picture, as text.",
        "The same as a picture.",
        "Path of the Parquet table with columns group, candidate, metric, score.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "candidates": (CANDIDATES, {"tooltip": "From Sample Candidates."}),
                "metrics": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Names separated by commas; empty: those of the config. Without weights on disk: psnr_y, "
                        "ssim_y, lsd, "
                        "hf_energy (full reference), sharpness (no reference). Nothing is downloaded.",
                    },
                ),
            },
            "optional": {
                "cache": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Folder of scores by picture, inside the output folder or absolute, to be shared by "
                        "several runs. "
                        "Empty: inside the run's own folder.",
                    },
                ),
            },
        }

    def score(self, candidates: CandidateRun, metrics: str = "", cache: str = "") -> tuple[CandidateRun, str, Tensor, str]:
        from ..train.candidates import CandidateStore, Team, read_scores, score_candidates
        from ..train.candidates.config import check_metrics
        from ..train.candidates.record import write_config

        host, config = get_host(), candidates.config
        scoring = config.scoring
        if metrics.strip():
            names = tuple(dict.fromkeys(metrics.replace(",", " ").split()))
            with input_names(**{"scoring.metrics": "metrics"}):
                check_metrics(names)
            scoring = replace(scoring, metrics=names)
        if place := cache.strip() or scoring.cache:  # a server's working folder is nobody's choice
            scoring = replace(scoring, cache=str(host.output_dir() / Path(place).expanduser()))
        config = replace(config, scoring=scoring, reward=_fitting(config.reward, scoring.metrics))
        store = CandidateStore(candidates.folder)
        with input_names("metrics"), Team.joined(config.num_threads) as team:
            watch = NodeWatch(host, "scoring candidates", scoring.metrics)
            path = score_candidates(scoring, store, team=team, watch=watch)
        write_config(config, candidates.folder)
        host.soft_empty_cache()
        header, rows = _score_rows(read_scores(path))
        text = "\n".join("  ".join(cell.ljust(14) for cell in row).rstrip() for row in [header, *rows])
        picture = draw_table(header, rows, title=f"Scores of {len(store.names)} pictures, {store.candidates} candidates each")
        return replace(candidates, config=config), text, to_image([picture]), str(path)


def _fitting(reward: Any, metrics: Sequence[str]) -> Any:
    """The reward's tables where they are for these metrics, else its defaults."""
    fits = {name: value for name in ("weights", "ranges") if set(value := getattr(reward, name)) != set(metrics)}
    return replace(reward, **{name: {} for name in fits})


def _score_rows(scores: Any) -> tuple[list[str], list[list[str]]]:
    """Per metric: mean, lowest, highest, mean spread within a group, and how many candidates have no score."""
    from ..core.metrics import spec_of

    together = torch.cat(list(scores.groups))
    rows: list[list[str]] = []
    for column, name in enumerate(scores.metrics):
        values = together[:, column]
        finite = values[torch.isfinite(values)]
        within = [group[:, column][torch.isfinite(group[:, column])] for group in scores.groups]
        spread = [float(part.std(correction=0)) for part in within if len(part)]
        numbers = (
            [float(finite.mean()), float(finite.min()), float(finite.max()), sum(spread) / len(spread)] if len(finite) else []
        )
        cells = [f"{number:.4g}" for number in numbers] or [""] * 4
        arrow = "higher" if spec_of(name).higher_is_better else "lower"
        rows.append([name, arrow, *cells, str(len(values) - len(finite))])
    return ["metric", "better", "mean", "lowest", "highest", "spread", "missing"], rows
