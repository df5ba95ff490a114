"""What pipeline A is told: which model samples, from which pictures, how candidates are scored, ranked and paired."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.metrics import REWARD_METRICS, spec_of
from ..config import (
    ConfigError,
    added,
    apply_sets,
    config_hash,
    empty_table,
    find_config,
    from_mapping,
    positive,
    published,
    read_toml,
    run_only,
)

KIND = "candidates"  # what `recipe` says in a TOML file of this kind


@dataclass(frozen=True)
class CandidateModelConfig:
    """The model that is sampled: the reference of the later training."""

    backbone: Literal["pixel", "flux1", "stable_diffusion"] = "pixel"
    # pixel: a bundled name or weight file; others: a diffusers folder, or its name in a model folder; empty: single files in the
    # model folders, else the diffusers folder of the published name; "tiny": an untrained miniature
    source: str = "pixel-flow-x4"
    version: str = ""  # of stable_diffusion: sd2, sd15, sdxl; empty: what the weights say
    network: str = ""  # weight file of transformer or UNet in place of the published one
    autoencoder: str = ""  # the same for the autoencoder
    control: str = ""  # control branch: a folder or weight file; "auto": the released one; "tiny"; empty: none
    adapter: str = added("")  # adapter file of the network, merged into it: of supervised or of preference training
    text: str = ""  # text encoders: a diffusers folder; empty: the published one; "tiny"; "none": no text, zeros
    options: dict[str, Any] = field(default_factory=empty_table)  # of a tiny pixel model: changes to it
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    scale: int = 4


@dataclass(frozen=True)
class CandidateDataConfig:
    """Ground truth, one group of candidates for each picture."""

    folders: tuple[str, ...] = ("data/train",)  # read recursively; relative to the working folder
    shards: tuple[str, ...] = ()  # WebDataset tar files instead of folders; {000..041} and * are expanded
    lq_folders: tuple[str, ...] = ()  # low-resolution files made beforehand, one folder per entry of `folders`
    lq_suffix: str = ""  # what their names have after the ground truth's
    gt_patch_px: int = 512  # side of the ground truth; 0: whole pictures
    crop: Literal["random", "center", "fit"] = "random"  # fit: short side resized to the patch, middle cut out
    degradation: str = "dp2o"  # a preset's name; "matlab": 8-bit imresize
    candidates: str = ""  # candidates made elsewhere instead of sampling: folder with NAME/*.png for each picture NAME
    prompts: str = ""  # folder with NAME.txt for each picture: tags as text; empty: no text
    skip: int = 0  # leave out the first pictures
    limit: int = 0  # use so many; 0: all


@dataclass(frozen=True)
class CandidateSamplingConfig:
    """How candidates are drawn."""

    candidates: int = 32  # M
    steps: int = 0  # network steps; 0: the model's own
    sampler: str = "auto"
    guidance: float = -1.0  # the model's input, or true classifier-free guidance, as the model has it; -1: its own
    negative_prompt: str = ""
    control_scale: float = 1.0
    color_fix: Literal["adain", "wavelet", "none"] = "adain"  # of the pictures that are scored; latents stay as sampled
    noise: Literal["shared", "own"] = "shared"  # shared: candidate k starts from the same noise for every picture
    seed: int = 0  # candidate k of the shared noise has generator seed + first + k
    first: int = added(0)  # leave out so many of the pool of noises: candidates that were never drawn before
    batch_size: int = 4  # candidates per forward pass
    latents: Literal["fp32", "fp16", "none"] = "fp32"  # kept for training; none: training encodes the pictures


@dataclass(frozen=True)
class CandidateStoreConfig:
    """How candidates lie on disk."""

    kind: Literal["shards", "folder"] = "shards"  # tar files as WebDataset reads them, or plain files
    groups_per_shard: int = 1  # what an interruption can lose; folder: a folder holds one group


@dataclass(frozen=True)
class ScoringConfig:
    """Which metrics see the candidates."""

    metrics: tuple[str, ...] = REWARD_METRICS
    batch_size: int = run_only(16)  # pictures per call of a metric
    precision: Literal["fp32", "tf32"] = "fp32"  # of learned metrics on a GPU; tf32 is faster and moves scores by about 1e-3
    cache: str = run_only("")  # folder of scores by picture; empty: inside the run folder; share it between runs
    workers: int = run_only(4)  # threads that decode pictures ahead


@dataclass(frozen=True)
class RewardConfig:
    """How scores become one number."""

    weights: dict[str, float] = field(default_factory=dict[str, float])  # empty: full-reference and other metrics half each
    normalization: Literal["group", "fixed"] = "group"  # group: min-max over the candidates of a picture, as published
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])  # of fixed; empty: over all


@dataclass(frozen=True)
class PairsConfig:
    """Which candidates are compared."""

    picks: int = 8  # N, taken from each end
    candidates: int = 0  # use the first so many of each group; 0: all
    on_unusable: Literal["stop", "drop"] = "stop"  # groups with too few usable candidates or equal rewards


@dataclass(frozen=True)
class CandidatesConfig:
    """Sampling, scoring, reward and pairs in one file."""

    name: str = "candidates"
    model: CandidateModelConfig = field(default_factory=CandidateModelConfig)
    data: CandidateDataConfig = field(default_factory=CandidateDataConfig)
    sampling: CandidateSamplingConfig = field(default_factory=CandidateSamplingConfig)
    store: CandidateStoreConfig = field(default_factory=CandidateStoreConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    num_threads: int = 1  # CPU threads of torch; bit-for-bit repeats need the same number; 0 leaves them alone

    def __post_init__(self) -> None:
        positive(self.model, "scale")
        positive(self.sampling, "candidates", "batch_size")
        positive(self.sampling, "steps", "seed", "first", low=0)
        positive(self.store, "groups_per_shard")
        positive(self.scoring, "batch_size")
        positive(self.pairs, "picks")
        positive(self.data, "gt_patch_px", "skip", "limit", low=0)
        if self.model.adapter and self.model.backbone == "pixel":
            raise ValueError(f"model.adapter: expected none for pixel, got {self.model.adapter!r}; a pixel model is one file")
        _check_metrics(self)
        _check_pairs(self)
        if self.data.gt_patch_px % self.model.scale:
            raise ValueError(
                f"data.gt_patch_px: expected a multiple of model.scale {self.model.scale}, got {self.data.gt_patch_px}; change it"
            )
        if self.data.crop == "fit" and (self.data.lq_folders or not self.data.gt_patch_px):
            raise ValueError(
                "data.crop: expected random or center with data.lq_folders or whole pictures, got fit; it resizes pictures"
            )
        if self.data.lq_folders and self.data.degradation != "matlab":
            raise ValueError(
                f"data.degradation: expected matlab beside data.lq_folders, got {self.data.degradation!r}; "
                "low-resolution files from disk are taken as they are"
            )
        if self.data.candidates and self.data.gt_patch_px:
            raise ValueError(
                f"data.gt_patch_px: expected 0 beside data.candidates, got {self.data.gt_patch_px}; those pictures are whole"
            )
        if self.store.kind == "folder" and self.store.groups_per_shard != 1:
            raise ValueError(
                f"store.groups_per_shard: expected 1 with store.kind folder, got {self.store.groups_per_shard}; leave it out"
            )

    @property
    def sampling_hash(self) -> str:
        """Changes with whatever can change a candidate; what comes after sampling may be done again in the same folder."""
        return config_hash(SamplingPart(self.model, self.data, self.sampling, self.store, self.num_threads))


@dataclass(frozen=True)
class SamplingPart:
    """The tables that decide what the candidates are."""

    model: CandidateModelConfig
    data: CandidateDataConfig
    sampling: CandidateSamplingConfig
    store: CandidateStoreConfig
    num_threads: int


def check_metrics(names: tuple[str, ...]) -> None:
    """Raise ValueError unless every name is a metric of single pictures that a reward can be made of."""
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"scoring.metrics: expected names without repeats, got {list(names)}; the published nine are the default"
        )
    for name in names:
        try:
            spec = spec_of(name)
        except ValueError as error:
            raise ValueError(f"scoring.{error}") from error
        if spec.kind == "set" or spec.needs_autoencoder:
            raise ValueError(f"scoring.metrics: expected metrics of single pictures, got {name}; choose another")


def _check_metrics(config: CandidatesConfig) -> None:
    check_metrics(config.scoring.metrics)
    names, reward = set(config.scoring.metrics), config.reward
    if reward.weights and set(reward.weights) != names:
        raise ValueError(
            f"reward.weights: expected one for each of {sorted(names)}, got {sorted(reward.weights)}; add or remove names"
        )
    if reward.ranges and reward.normalization != "fixed":
        raise ValueError('reward.ranges: expected none with reward.normalization = "group", got some; set it to "fixed"')
    if reward.ranges and set(reward.ranges) != names:
        raise ValueError(
            f"reward.ranges: expected one for each of {sorted(names)}, got {sorted(reward.ranges)}; add or remove names"
        )


def _check_pairs(config: CandidatesConfig) -> None:
    count = config.pairs.candidates or config.sampling.candidates
    if count > config.sampling.candidates:
        raise ValueError(
            f"pairs.candidates: expected at most sampling.candidates {config.sampling.candidates}, got {count}; sample more"
        )
    if 2 * config.pairs.picks > count:
        raise ValueError(
            f"pairs.picks: expected at most half of {count} candidates, got {config.pairs.picks}; take fewer or sample more"
        )


def build_candidates_config(values: Mapping[str, Any]) -> CandidatesConfig:
    """The config that a TOML file's values describe.

    Raises:
        ConfigError: of another kind, an unknown key or a wrong value; the message names the key.
    """
    kind = values.get("recipe")
    if kind != KIND:
        names = ", ".join(name for name in published(KIND) if not name.startswith("tiny-"))
        raise ConfigError(f"recipe: expected {KIND!r}, got {kind!r}; `alignsr train` runs the others, published here are {names}")
    return from_mapping(CandidatesConfig, {key: value for key, value in values.items() if key != "recipe"})


def load_candidates_config(name: str | Path, sets: tuple[str, ...] | list[str] = ()) -> CandidatesConfig:
    """Read a TOML file (or a published config by name), apply `--set` items and build the config.

    Raises:
        ConfigError: see `train.config`.
    """
    return build_candidates_config(apply_sets(read_toml(find_config(name)), sets))
