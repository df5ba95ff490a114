"""No network while a metric is being built: a download that pyiqa would start becomes an error that names the file."""

import contextlib
import io
import os
import threading
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from ..compat import import_third_party
from .spec import MissingWeightsError

_LOCK = threading.Lock()  # two threads must not undo each other's replacements


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Generator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def no_downloads(metric: str) -> Generator[None]:
    """Keep pyiqa, torch.hub and the Hugging Face client from the network inside the block.

    pyiqa fixes its cache folder when it is imported; inside the block it follows `torch.hub.get_dir()`, where `files.find` looks.
    What pyiqa prints on standard output is dropped, since standard output belongs to our callers.

    Args:
        metric: name for the error.

    Yields:
        Nothing.

    Raises:
        MissingWeightsError: something inside wanted to download a file; that includes a CLIP file with a wrong checksum.
    """

    def refuse(url: str, *where: Any, **_: Any) -> NoReturn:
        place = f" for {where[0]}" if where else ""
        raise MissingWeightsError(metric, [f"{url}{place}: absent, or there with a wrong checksum; download it by hand"])

    with _environment("HF_HUB_OFFLINE", "1"):  # before the first import of the client, which reads it once
        constants = import_third_party("huggingface_hub.constants")
        downloads = import_third_party("pyiqa.utils.download_util")
        clips = [import_third_party(f"pyiqa.archs.{name}") for name in ("clip_model", "afineclip_model")]
    # the two CLIP loaders use the name `urllib` for nothing but urllib.request.urlopen
    no_urllib = SimpleNamespace(request=SimpleNamespace(urlopen=refuse))
    with _LOCK, contextlib.ExitStack() as stack:
        stack.enter_context(_environment("HF_HUB_OFFLINE", "1"))
        stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(_replaced(torch.hub, "download_url_to_file", refuse))
        stack.enter_context(_replaced(downloads, "download_url_to_file", refuse))
        stack.enter_context(_replaced(downloads, "DEFAULT_CACHE_DIR", str(Path(torch.hub.get_dir()) / "pyiqa")))
        for clip in clips:
            stack.enter_context(_replaced(clip, "urllib", no_urllib))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
