"""Configs are frozen dataclasses read from TOML; an unknown key or a wrong type is an error before anything is trained."""

import dataclasses
import hashlib
import json
import tomllib
import types
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..core.checks import did_you_mean
from ..core.weights import MissingModelError

T = TypeVar("T")
CONFIGS = Path(__file__).parent.parent / "configs"


_RUN_ONLY, _ADDED = "run_only", "added"


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key."""


@contextmanager
def setting(key: str) -> Generator[None]:
    """Inside the block a model that is missing is put down to this key of the config, not to an argument of the core.

    Raises:
        MissingModelError: the block's, with the key in front.
    """
    try:
        yield
    except MissingModelError as error:
        text = str(error)
        if text.startswith(f"{key}:"):
            raise
        raise MissingModelError(f"{key}: {text.removeprefix('model: ')}") from error


def run_only(default: Any) -> Any:
    """A field that cannot change what is learned: left out of `config_hash`, so it may change between a start and a resume."""
    return field(default=default, metadata={_RUN_ONLY: True})


def added(default: Any, *, is_run_only: bool = False) -> Any:
    """A field that joined its config later: left out of `config_hash` at its default, so older runs can still be resumed."""
    return field(default=default, metadata={_ADDED: True, _RUN_ONLY: is_run_only})


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Adam when weight_decay is 0)."""

    learning_rate: float = 1e-3  # peak rate
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # clip the global norm; 0 turns clipping off
    bits: Literal[32, 8] = added(32)  # of the optimiser's state; 8 needs bitsandbytes and saves three quarters of that memory


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a pure function of the step, so a resumed run needs no state for it."""

    kind: Literal["constant", "cosine", "multistep"] = "cosine"
    warmup_steps: int = 0  # linear from 0
    final_ratio: float = 0.0  # cosine: share of the peak rate that is left at the end
    milestones: tuple[int, ...] = ()  # multistep: steps after which the rate is multiplied by gamma
    gamma: float = 0.5


@dataclass(frozen=True)
class RunConfig:
    """What every recipe's loop needs."""

    steps: int = 1000  # optimiser steps
    batch_size: int = 16  # samples per forward pass and process
    accumulation_steps: int = 1  # forward passes per optimiser step
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast of the forward pass; weights stay fp32
    ema_decay: float = 0.999  # exponential moving average of the weights; 0 turns it off
    checkpoint_every: int = run_only(500)
    keep_checkpoints: int = run_only(2)  # the newest ones; the last step is always kept
    export_every: int = added(0, is_run_only=True)  # weight files kept for good, to choose the best later; 0: only the last
    log_every: int = run_only(10)
    preview_every: int = run_only(100)
    validate_every: int = run_only(1000)  # 0 turns validation off
    num_threads: int = 0  # CPU threads of torch; 0 leaves them alone. Bit-for-bit repeats need the same number.
    channels_last: bool = False  # faster convolutions


@dataclass(frozen=True)
class DataConfig:
    """Where ground truth comes from and how it is cut."""

    folders: tuple[str, ...] = ("data/train",)  # read recursively; relative to the working folder
    gt_patch_px: int = 192
    augment: bool = True  # flips and quarter turns
    turns: Literal["all", "horizontal"] = added("all")  # of `augment`: all eight, or mirroring left to right only
    holdout: int = 0  # the last N files (by name) are kept for validation
    cache_images: bool = run_only(True)  # keep decoded images in memory
    decoded_cache: str = added("", is_run_only=True)  # folder to decode pictures into once, so that crops read only their rows
    subimage_px: int = added(0)  # draw from a grid of sub-images of this side: large pictures count more; 0: whole pictures
    subimage_step_px: int = added(240)
    lq_folders: tuple[str, ...] = added(())  # low-resolution files made beforehand, one folder per entry of `folders`
    lq_suffix: str = added("")  # what their names have after the ground truth's: "x4" for 0801.png and 0801x4.png
    shards: tuple[str, ...] = added(())  # WebDataset tar files instead of folders; {000..041} and * are expanded
    workers: int = added(0, is_run_only=True)  # threads that prepare coming batches; 0: each batch when it is needed
    degradation: str = "matlab"  # `matlab`: 8-bit imresize of the whole picture, as the benchmarks; else a preset's name
    jpeg: Literal["codec", "differentiable", "diffjpeg"] = "codec"  # diffjpeg: as the released training code simulates it
    pool_size: int = 0  # degradation presets: pairs kept for reuse; 0 degrades every sample anew
    pool_patch_px: int = 384  # side of the ground truth of a pooled pair; patches are cut from it
    pool_refresh: int = 4  # new pairs per optimiser step
    pair_pool: int = added(0)  # mix the order of samples as a pool of so many pairs does, without keeping any
    crop: Literal["random", "fit"] = added("random")  # fit: whole pictures, short side resized to the patch, middle cut out
    gt_scale_min: float = added(1.0)  # degradation presets: shrink each ground truth by a factor from here to 1; more scales
    on_error: Literal["stop", "skip"] = "stop"  # what an unreadable file does


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain values, strictly.

    Args:
        cls: a frozen dataclass whose fields are dataclasses, tuples, literals or scalars.
        values: what the TOML file says.
        where: dotted prefix for messages.

    Raises:
        ConfigError: unknown key (with a suggestion) or a value of another type.
    """
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}{key}: unknown key; {did_you_mean(key, names)}")
    converted = {key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {value!r}; write it as [{where}]")
        return from_mapping(hint, value, f"{where}.")
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r}; "
                f"{did_you_mean(str(value), [str(a) for a in args])}"
            )
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}; write it in brackets")
        items = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(items) != len(value):
            raise ConfigError(f"{where}: expected {len(items)} values, got {len(value)}; give exactly that many")
        return tuple(_convert(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {value!r}; write it as [{where}]")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or type(value) is hint:
        return value
    raise ConfigError(
        f"{where}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__} {value!r}; change the value's type"
    )


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; `base = "other.toml"` (relative to the file) is read first and overlaid, table by table.

    Raises:
        ConfigError: no such file, not TOML, or a circle of bases.
    """
    return _read(Path(path), ())


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"config: expected a TOML file at {path}, found none; the published ones are {', '.join(published()) or 'missing'}"
        )
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` leads back to itself; remove one of them")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, got {error}; mend that line") from error
    base = values.pop("base", None)
    return overlay(_read(path.parent / base, (*seen, path.resolve())), values) if base else values


def published(of: Literal["train", "candidates", "rounds"] = "train") -> list[str]:
    """Names of the configs that ship with the package, of that command: `train`, `candidates` or `dp2o`.

    Those of `alignsr candidates` have the word in them, those of `alignsr dp2o` the word online.
    """

    def command(name: str) -> str:
        return "candidates" if "candidates" in name else "rounds" if "-online-" in name else "train"

    return sorted(path.stem for path in CONFIGS.glob("*.toml") if command(path.stem) == of)


def find_config(name: str | Path) -> Path:
    """A path as given, or a published config by name."""
    path = Path(name)
    return path if path.suffix == ".toml" or path.exists() else CONFIGS / f"{name}.toml"


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, recursing into tables."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def apply_sets(values: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Apply `--set a.b=value`; the value is read as TOML and, failing that, as a string.

    Raises:
        ConfigError: no `=`, or a table where a value stands.
    """
    result = dict(values)
    for item in sets:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {item}: expected key=value, such as run.steps=100; add the equals sign")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        result = overlay(result, value)
    return result


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain values of a config, for metadata."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """12 hexadecimal digits that change with any value that can change what is learned: the name of a run's folder."""
    return _digest(_hashed_values(config, keep_run_only=False))


def accepted_hashes(config: Any) -> tuple[str, ...]:
    """The hashes under which a checkpoint of this config may have been written: today's, and the one over every value before."""
    return config_hash(config), _digest(_hashed_values(config, keep_run_only=True))


def _hashed_values(config: Any, keep_run_only: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, is_run_only = getattr(config, item.name), item.metadata.get(_RUN_ONLY, False)
        if item.metadata.get(_ADDED, False) and (is_run_only or value == item.default):
            continue
        if not is_run_only or keep_run_only:
            is_table = dataclasses.is_dataclass(value)
            values[item.name] = _hashed_values(value, keep_run_only) if is_table else value
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def positive(config: Any, *names: str, low: float = 1) -> None:
    """Raise ValueError unless the named fields are at least `low`; for `__post_init__`."""
    for name in names:
        value = getattr(config, name)
        if value < low:
            raise ValueError(f"{name}: expected at least {low:g}, got {value}; raise it")


def empty_table() -> dict[str, Any]:
    """Default of free-form option tables."""
    return {}


options_field = lambda: field(default_factory=empty_table)  # noqa: E731  # a field per call, as dataclasses want it
