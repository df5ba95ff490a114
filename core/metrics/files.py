"""Which weight files of a metric are on this computer. Looks, never downloads."""

import importlib.util
from pathlib import Path

import torch

from ..compat import import_third_party
from .spec import MetricSpec, WeightFile


def folder_of(file: WeightFile) -> Path:
    """The folder in which a file is looked for.

    Args:
        file: entry of a MetricSpec.

    Returns:
        The folder; for the Hugging Face cache that of the repository.
    Source:
        pyiqa 0.1.16 utils/download_util.py, archs/clip_model.py, archs/afineclip_model.py; torch.hub; huggingface_hub.
    """
    hub = Path(torch.hub.get_dir())
    if file.folder == "home_clip":
        return Path("~/.cache/clip").expanduser()
    if file.folder == "hub":
        return hugging_face_cache() / f"models--{file.source.replace('/', '--')}"
    return hub / file.folder


def hugging_face_cache() -> Path:
    """The Hugging Face cache as the client resolved it (`HF_HUB_CACHE`, `HF_HOME`, or `~/.cache/huggingface/hub`)."""
    return Path(import_third_party("huggingface_hub.constants").HF_HUB_CACHE)


def find(file: WeightFile) -> Path | None:
    """Path of a file that is there, or None.

    Args:
        file: entry of a MetricSpec; any of its names will do.

    Returns:
        The first match; in the Hugging Face cache the snapshot that `refs/main` names.
    """
    folder = folder_of(file)
    if file.folder == "hub":
        ref = folder / "refs" / "main"
        if not ref.is_file():
            return None
        folder = folder / "snapshots" / ref.read_text(encoding="utf-8").strip()
    return next((folder / name for name in file.names if (folder / name).is_file()), None)


def describe_missing(file: WeightFile) -> str:
    """One line for the user: which file, where it was looked for, where to get it."""
    names = " or ".join(file.names)
    folder = folder_of(file)
    if file.folder == "hub":
        return f"{names} of the repository {file.source}: not in {folder}; get it with `hf download {file.source}`"
    checksum = f" (SHA-256 {file.sha256}, no other file is accepted)" if file.sha256 else ""
    return f"{names}: not in {folder}; get it from {file.source}{checksum}"


def missing_files(spec: MetricSpec) -> list[str]:
    """What a metric lacks on this computer.

    Args:
        spec: facts of the metric.

    Returns:
        One line per missing file or package, empty when the metric can run.
    """
    lines = [describe_missing(file) for file in spec.weights if find(file) is None]
    lines += [
        f"the Python package {name}: not installed; `pip install {name}`"
        for name in spec.packages
        if importlib.util.find_spec(name) is None
    ]
    return lines
