"""One server and one browser for all tests of this folder; each starts when the first test asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from artefact_helpers import make_artefacts
from multi_step_helpers import write_asasr
from strsr_helpers import write_adapters

from comfyui.browser import Browser, find_chromium
from comfyui.materials import NETWORK, write_model, write_pictures
from comfyui.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("comfyui"))
    write_pictures(running.base / "input")
    make_artefacts(running.base / "input" / "artefacts")
    for name in NETWORK:
        write_model(running.base / "models" / "alignsr", name)
    write_adapters(running.base / "models")
    write_asasr(running.base / "models")
    try:
        yield running.start()
    finally:
        if running.process is not None:
            running.stop()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome found; install one or name it in CHROMIUM_PATH")
    running = Browser(Path(program), tmp_path_factory.mktemp("chromium"))
    try:
        yield running.start()
    finally:
        running.stop()
