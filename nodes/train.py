"""Train SR Network: a recipe inside a workflow, with a live curve; interrupted runs go on, finished ones are found again."""

import itertools
import json
import logging
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .common import SR_MODEL, file_stamp, to_image
from .folder import find_folder
from .host import Host, get_host
from .models import LoadedModel, load_model

LOGGER = logging.getLogger("alignsr")
RUNS = "alignsr/training"  # inside the output folder
EVERYTHING = 2**40  # bytes: all that the host can give back
OF_CONFIG = -1.0  # of a number's widget: what the config says


class NodeHooks:
    """`train.loop.Hooks` on the node's progress bar: every step moves it, shows the newest curve and lets the user interrupt."""

    def __init__(self, host: Host, title: str) -> None:
        self.host, self.title = host, title
        self.bar: Any = None
        self.scale: Any = None  # of a validation, in the bar's place while it lasts
        self.looked = -1  # pictures of it that are done
        self.frame: Image.Image | None = None
        self.stop: BaseException | None = None  # the host's interruption, kept until the loop has saved its state

    def progress(self, step: int, total: int, logs: Mapping[str, float]) -> None:
        self.bar = self.bar or self.host.progress(total, f"training {self.title}")
        frame, self.frame, self.looked = self.frame, None, -1
        self.bar.update(step, preview=frame)

    def preview(self, image: Image.Image) -> None:
        self.frame = image

    def validating(self, done: int, total: int) -> None:
        if done == self.looked:  # another tile of the same picture
            return
        if done == 0 or self.scale is None:
            self.scale = self.host.progress(total, f"validating {self.title}")
        self.looked = done
        try:
            self.scale.update(done)
        except self.host.interrupt_types as stop:
            self.stop = stop

    def should_stop(self) -> bool:
        try:
            self.host.check_interrupt()
        except self.host.interrupt_types as stop:
            self.stop = stop
        return self.stop is not None


def read_config(
    config: str,
    overrides: str,
    data_folder: str,
    out_name: str,
    changes: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """(recipe, config) of a config that trains; see `read_values`.

    Raises:
        ConfigError: unknown key, wrong value, no such config; the message names the key.
    """
    from ..train.recipes import build_config

    recipe, settings = build_config(read_values(config, overrides, data_folder, out_name, changes, tables))
    check_name(settings.name, out_name)
    return recipe, settings


def read_values(
    config: str,
    overrides: str,
    data_folder: str,
    out_name: str,
    changes: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain values from a published name, a path, or TOML text, with the node's other inputs on top.

    `changes` take the place of whole top-level entries (the losses, say), `tables` of single keys in them; `overrides` come last.

    Raises:
        ConfigError: no such config, or no TOML.
    """
    from ..train.config import ConfigError, apply_sets, find_config, overlay, read_toml

    if "=" in config or "\n" in config.strip():
        try:
            values = tomllib.loads(config)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"config: expected TOML text, got {error}; mend that line") from error
        base = values.pop("base", None)
        values = overlay(read_toml(find_config(str(base).removesuffix(".toml"))), values) if base else values
    else:
        values = read_toml(find_config(config.strip()))
    sets = [line.strip() for line in overrides.splitlines() if line.strip() and not line.strip().startswith("#")]
    for line in sets:
        if not line.partition("=")[0].strip() or "=" not in line:
            raise ConfigError(f"overrides: expected key=value lines, such as run.steps=100, got {line!r}; add the equals sign")
    if data_folder.strip():
        sets.append(f"data.folders={json.dumps([str(find_folder(data_folder, 'data_folder'))])}")
    if out_name.strip():
        sets.append(f"name={json.dumps(out_name.strip())}")
    return apply_sets(overlay({**values, **(changes or {})}, tables or {}), sets)


def check_name(name: str, out_name: str) -> None:
    """A name becomes a folder's: a workflow must not leave the output folder.

    Raises:
        ConfigError: other characters than those of plain names.
    """
    from ..train.config import ConfigError

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        key = "out_name" if out_name.strip() else "config: name"
        raise ConfigError(f"{key}: expected letters, digits, '.', '_' or '-', got {name!r}; leave out the rest")


def run_folder(root: Path, config: Any, resume: bool, learned_from: Mapping[str, Any] | None = None) -> Path:
    """`<name>-<hash of the config>`, or the first of -2, -3, ... that is not there yet or, with resume, is of the same contents.

    Contents are what the config names by a path alone, see `finished_weights`: of preference pairs, 8 digits come before the
    hash; those of weights are told by the run's files.
    """
    from ..train.config import config_hash
    from ..train.origins import ORIGINS, differing, recorded

    contents = dict(learned_from or {})
    now = contents.pop(ORIGINS, {})
    folder = root / "-".join([config.name, *(value[:8] for value in contents.values()), config_hash(config)])
    places = itertools.chain([folder], (folder.with_name(f"{folder.name}-{count}") for count in itertools.count(2)))
    return next(place for place in places if not place.exists() or (resume and not differing(recorded(place, config.name), now)))


def _with_cache_inside(config: Any, root: Path) -> Any:
    """The config with a relative cache of decoded pictures inside `root`: a server's working folder is nobody's choice."""
    from ..train.config import DataConfig

    cache = config.data.decoded_cache if isinstance(config.data, DataConfig) else ""
    if not cache or Path(cache).expanduser().is_absolute():
        return config
    return replace(config, data=replace(config.data, decoded_cache=str(root / cache)))


def _train(recipe: Any, config: Any, folder: Path, hooks: NodeHooks, resume: bool) -> Path:
    """Run the recipe; an interruption by the user leaves as the host's own exception, after the loop has saved its state."""
    from ..train.loop import Stopped

    try:
        weights: Path = recipe.train(config, folder, hooks, resume, hooks.host.training_dirs()).weights
    except Stopped as stopped:
        raise (hooks.stop or stopped) from stopped
    finally:
        hooks.host.soft_empty_cache()
    if hooks.stop is not None:  # it came with the last step: the run is finished, the workflow is not to go on
        raise hooks.stop
    return weights


@dataclass(frozen=True)
class FinishedRun:
    """What a training node gives.

    Attributes:
        folder: the run's folder, inside the output folder.
        weights: the final weight file.
        curve: the loss curve as an IMAGE.
        log: JSON lines.
        losses: the values of ComfyUI's LOSS_MAP.
        config: of the recipe, with everything that the node's inputs changed.
    """

    folder: Path
    weights: Path
    curve: Tensor
    log: str
    losses: dict[str, list[float]]
    config: Any

    def answer(self, *result: Any) -> dict[str, Any]:
        """The node's return value, with the curve and the newest samples shown in the node."""
        relative = self.folder.relative_to(get_host().output_dir()).as_posix()
        shown = [name for name in ("curve.png", "samples.png") if (self.folder / name).is_file()]
        return {
            "ui": {"images": [{"filename": name, "subfolder": relative, "type": "output"} for name in shown]},
            "result": result,
        }


def run_recipe(
    node: str,
    kinds: Collection[str],
    config: str,
    overrides: str,
    data_folder: str,
    out_name: str,
    resume: bool,
    changes: Mapping[str, Any] | None = None,
    *,
    tables: Mapping[str, Any] | None = None,
    vram_bytes: int = 2**31,
    learned_from: Callable[[Any], Mapping[str, str]] | None = None,
) -> FinishedRun:
    """Train by a recipe inside a workflow, or find the finished run.

    Args:
        node: its title, for messages.
        kinds: recipes that this node can give the result of.
        config: see `read_config`.
        overrides: see `read_config`.
        data_folder: see `read_config`.
        out_name: see `read_config`.
        resume: go on with, or reuse, a run of exactly this config.
        changes: see `read_config`.
        tables: see `read_config`.
        vram_bytes: how much the host is asked to free before training.
        learned_from: of a config, what `finished_weights` is to find in the header of its weights beside its `origins`.

    Raises:
        ConfigError: see `read_config`; also a config of another recipe.
    """
    from ..train import origins
    from ..train.config import ConfigError, config_hash
    from ..train.recipes import RECIPES
    from ..train.session import finished_weights

    host = get_host()
    recipe, settings = read_config(config, overrides, data_folder, out_name, changes, tables)
    settings = _with_cache_inside(settings, host.output_dir() / RUNS)
    kind = next(name for name, known in RECIPES.items() if known is recipe)
    if kind not in kinds:
        raise ConfigError(f"config: expected one of the recipe {' or '.join(kinds)}, got {kind}; {node} cannot use its result")
    contents = {
        **(learned_from(settings) if learned_from is not None else {}),
        **origins.learned_from(settings, host.training_dirs()),
    }
    folder = run_folder(host.output_dir() / RUNS, settings, resume, contents)
    weights = finished_weights(folder, settings, contents)
    if weights is None:
        host.free_memory(vram_bytes)
        LOGGER.info("%s: training in %s", node, folder)
        weights = _train(recipe, settings, folder, NodeHooks(host, settings.name), resume)
    else:
        LOGGER.info("%s: found the finished run %s (%s)", node, folder, config_hash(settings))
    logs = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    with Image.open(folder / "curve.png") as opened:
        curve = to_image([opened.convert("RGB")])
    losses = {"loss": [entry["loss"] for entry in logs if "loss" in entry]}
    return FinishedRun(folder, weights, curve, "\n".join(map(json.dumps, logs)), losses, settings)


def find_run(name: str, runs: str) -> Path:
    """A run folder, or a file of one, by its path, or by its name inside `runs` in the output folder."""
    direct, inside = Path(name).expanduser(), get_host().output_dir() / runs / name
    return inside if inside.exists() and not direct.exists() else direct


def number_of(name: str, value: float, *, may_be_zero: bool, usual: str) -> dict[str, float]:
    """The entry of a config's table that a number's widget gives: none for `OF_CONFIG`.

    Raises:
        ValueError: not finite, or below what it may be; `usual` ends the message.
    """
    if value == OF_CONFIG:
        return {}
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        kind = "of at least 0" if may_be_zero else "above 0"
        raise ValueError(f"{name}: expected a number {kind}, or -1 for the config's, got {value}; {usual}")
    return {name: float(value)}


def widgets(default: str, published: str) -> dict[str, Any]:
    """The inputs that every training node has."""
    return {
        "config": (
            "STRING",
            {
                "default": default,
                "multiline": True,
                "tooltip": f"Name of a published config ({published}), path of a TOML file, or TOML text; text may start from a "
                f'published one with base = "{default}".',
            },
        ),
        "data_folder": (
            "STRING",
            {
                "default": "",
                "tooltip": "Folder of training pictures: absolute, or inside the input folder. Empty: the folders of the config.",
            },
        ),
        "overrides": (
            "STRING",
            {
                "default": "",
                "multiline": True,
                "tooltip": "Changes to the config, one key=value per line, such as run.steps=2000 or data.gt_patch_px=128.",
            },
        ),
        "out_name": (
            "STRING",
            {"default": "", "tooltip": "File name of the weights without suffix. Empty: the name in the config."},
        ),
        "resume": (
            "BOOLEAN",
            {
                "default": True,
                "tooltip": "On: go on with, or reuse, a run of exactly this config. Off: start afresh in a new folder.",
            },
        ),
    }


def stamps(place: Path) -> list[str]:
    """Changes when a file, or a file directly inside a folder, is replaced."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [file_stamp(file) for file in files if file.is_file()]


class TrainingNode:
    """What the training nodes share: a file that their texts name by its path alone may be replaced while the server runs."""

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls,
        config: str | None,
        overrides: str | None = "",
        data_folder: str | None = "",
        out_name: str | None = "",
        start_from: str | None = "",
        **_: Any,
    ) -> str | float:
        """Train again when a config, or weights that training starts from, were replaced; always where the config is linked.

        A run that comes by a link changes with the node that gives it.
        """
        from ..train.config import ConfigError
        from ..train.origins import origin_files

        if config is None or overrides is None or data_folder is None or out_name is None:
            return math.nan
        tables = {"start_from": str(find_run(start_from.strip(), RUNS))} if start_from and start_from.strip() else {}
        try:
            values = read_values(config, overrides, data_folder, out_name, tables=tables)
        except (ConfigError, OSError):  # running says it
            return math.nan
        places = origin_files(values, get_host().training_dirs()).values()
        return json.dumps([values, [stamps(place) for place in places]], sort_keys=True, default=str)


class TrainSRNetwork(TrainingNode):
    """Node AlignSRTrainSRNetwork."""

    CATEGORY = "AlignSR/training"
    DESCRIPTION = (
        "Trains a super-resolution model on your pictures by a published recipe and shows the loss curve while it runs. "
        "Interrupt it at "
        "any time: queue it again and it goes on where it stood. A finished run is found on disk and not repeated."
    )
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", SR_MODEL, "IMAGE", "STRING", "LOSS_MAP")
    RETURN_NAMES = ("weights", "model", "curve", "log", "loss_map")
    OUTPUT_TOOLTIPS = (
        "Path of the weight file (safetensors). Copy it to models/alignsr to choose it in Load SR Model.",
        "The trained model, for One-Step SR.",
        "The loss curve of the whole run as a picture.",
        "One JSON line per logged step: loss, validation, learning rate, seconds.",
        "The losses for ComfyUI's own Plot Loss Graph.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": widgets("lite-x4", "lite-x4, lite-real-x4, pixel-x4")}

    def train(
        self, config: str, data_folder: str = "", overrides: str = "", out_name: str = "", resume: bool = True
    ) -> dict[str, Any]:
        run = run_recipe("Train SR Network", ("fidelity",), config, overrides, data_folder, out_name, resume)
        model: LoadedModel = load_model(run.weights)
        return run.answer(str(run.weights), model, run.curve, run.log, run.losses)
