"""`alignsr models download` of models with several files, against a local server and a stand-in for huggingface_hub."""

import functools
import hashlib
import http.server
import importlib
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_helpers import call

from alignsr.cli import hub
from alignsr.cli.hub import HUB

FILES = {  # of a repository: what is needed and what is not
    "README.md": b"words",
    "testdata/HR/1.png": b"picture",
    "pretrained/StrSR-flux/state_dict.pth": bytes(range(256)) * 40,
    "pretrained/StrSR-flux/projector.pth": b"small",
    "pretrained/StrSR-zimage/state_dict.pth": b"other",
}
TARGET = "pretrained/StrSR-flux/state_dict.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, place: "Place", *arguments: object) -> None:
        self.place = place
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        path = self.path.partition("/resolve/abc123/")[2]
        self.place.requests.append((path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        content = self.place.served[path]
        body = content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if path == TARGET and self.place.break_after:
            body, self.place.break_after = body[: self.place.break_after], 0
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Place:
    """A model folder, and what the stand-ins do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served = folder, dict(FILES)
        self.requests: list[tuple[str, str]] = []
        self.break_after, self.error = 0, ""
        self.listed = list(FILES)

    def model_info(self, repository: str, files_metadata: bool) -> SimpleNamespace:
        assert repository == "jkwang28/StrSR" and files_metadata
        if self.error:
            raise RuntimeError(self.error)
        return SimpleNamespace(sha="abc123", siblings=[self._entry(path) for path in self.listed])

    def _entry(self, path: str) -> SimpleNamespace:
        content = FILES[path]
        lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if len(content) > 100 else None
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        return SimpleNamespace(rfilename=path, size=len(content), lfs=lfs, blob_id=blob)

    def files(self) -> list[str]:
        root = self.folder / "models"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    here = Place(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, here)) as running:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: here))  # type: ignore[misc]
        monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "models"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield here
        running.shutdown()


BOTH = ["loras/StrSR-flux/projector.pth", "loras/StrSR-flux/state_dict.pth"]


def test_what_is_needed_arrives_in_its_folder_and_is_not_fetched_again(place: Place) -> None:
    done = call("models", "download", "StrSR-flux")
    assert done.code == 0, done.err
    assert "non-commercial" in done.err and "2 files, checksums as published" in done.err
    assert place.files() == BOTH
    assert (place.folder / "models" / BOTH[1]).read_bytes() == FILES[TARGET]
    assert len(place.requests) == 2
    assert call("models", "download", "StrSR-flux").code == 0
    assert len(place.requests) == 2
    assert call("models", "download", "StrSR-flux", "--to", place.folder / "other").code == 0
    assert (place.folder / "other" / BOTH[0]).is_file()


def test_an_interrupted_download_goes_on(place: Place) -> None:
    place.break_after = 4000
    broken = call("models", "download", "StrSR-flux")
    assert broken.code == 1 and "run the same command to go on" in broken.errors[0]
    assert "loras/StrSR-flux/state_dict.pth.part" in place.files()
    assert call("models", "download", "StrSR-flux").code == 0
    assert [wanted for path, wanted in place.requests if path == TARGET] == ["", "bytes=4000-"]
    assert place.files() == BOTH


@pytest.mark.parametrize(("path", "words"), [(TARGET, "expected SHA-256"), (TARGET.replace("state_dict", "projector"), "git id")])
def test_damaged_files_are_removed(place: Place, path: str, words: str) -> None:
    place.served[path] = place.served[path][:-1] + b"!"
    done = call("models", "download", "StrSR-flux")
    assert done.code == 1 and words in done.errors[0] and "run the command again" in done.errors[0]
    assert not any(Path(name).name.startswith(Path(path).name) for name in place.files())


def test_what_can_go_wrong_before_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.error = "no\nroute to host"
    done = call("models", "download", "StrSR-flux")
    assert (done.code, len(done.errors)) == (1, 1) and "could not be listed (no route to host)" in done.errors[0]
    place.error, place.listed = "", ["README.md", TARGET]
    done = call("models", "download", "StrSR-flux")
    assert "expected files *StrSR-flux/projector.pth, the repository has none" in done.errors[0]
    assert "did you mean 'StrSR-flux'" in call("models", "download", "StrSR-flx").errors[0]
    real = importlib.import_module

    def without(name: str) -> object:
        if name == "huggingface_hub":
            raise ModuleNotFoundError("No module named 'huggingface_hub'", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    done = call("models", "download", "StrSR-flux")
    assert "huggingface_hub: expected an installed package, got none; run `python -m pip install" in done.errors[0]


def test_every_entry_says_what_a_user_must_know_and_is_listed() -> None:
    listed = call("models", "list").out
    for name, item in HUB.items():
        assert name in listed and item.about in listed and item.licence in listed
        assert item.repository.count("/") == 1 and item.patterns and item.key in ("diffusers", "loras", "text_encoders")


def test_entries_are_those_that_nodes_name() -> None:
    from alignsr.core.backbones import LATENT_KINDS
    from alignsr.core.backbones.published import PUBLISHED
    from alignsr.core.conditioning.text import TEXT_STYLES
    from alignsr.core.conditioning.vlm import VLM_FOLDER
    from alignsr.nodes.lora import FOLDER_KEYS, RELEASED

    for kind in LATENT_KINDS:
        name = PUBLISHED[kind].download
        assert HUB[name].folder in PUBLISHED[kind].folders and HUB[f"{name}-text"].folder in TEXT_STYLES[kind].folder.names
    assert HUB["qwen3-vl"].folder in VLM_FOLDER.names
    for spec in (
        VLM_FOLDER,
        *(style.folder for style in TEXT_STYLES.values()),
    ):  # what its message names is what the download does
        assert (HUB[spec.download].key, HUB[spec.download].folder) == (spec.key, spec.names[0])
    assert all(HUB[name].folder == name and HUB[name].key in FOLDER_KEYS for name in RELEASED)


def test_entries_of_models_of_many_steps_are_those_that_nodes_name() -> None:
    from alignsr.core.backbones.published import PUBLISHED
    from alignsr.core.conditioning import PROMPT_STYLES
    from alignsr.nodes import multi_step, prompts
    from alignsr.nodes.lora import ASASR

    for backbone in multi_step.BACKBONES:
        name = PUBLISHED[backbone].download
        if not name:
            assert not prompts.DOWNLOADS[backbone]
            continue
        assert HUB[name].folder in PUBLISHED[backbone].folders and HUB[name].key in multi_step.FOLDER_KEYS
        text = HUB[prompts.DOWNLOADS[backbone]]
        assert text.folder in PROMPT_STYLES[backbone].folder.names and text.key in prompts.FOLDER_KEYS
    assert all(f"{HUB['ASASR'].folder}/{pattern.split('/')[0]}" in " ".join(ASASR) for pattern in HUB["ASASR"].patterns[:2])


def test_what_no_program_can_fetch_says_where_it_is_and_where_it_belongs() -> None:
    from alignsr.cli.hub import BY_HAND
    from alignsr.core.backbones import MULTI_STEP_KINDS
    from alignsr.core.backbones.published import PUBLISHED

    listed = call("models", "list").out
    branches = [entry.control for entry in MULTI_STEP_KINDS.values()]
    known = {f"{part.folder}/{name}" for part in branches if part is not None for name in part.file_names}
    for name, item in BY_HAND.items():
        assert name in listed and item.place in listed and item.licence in listed
        assert item.place in known or item.place == f"diffusers/{PUBLISHED['sd2'].folders[0]}"
        done = call("models", "download", name)
        assert done.code == 2 or done.code == 1
        assert f"open {item.url} and put it into {item.place}" in " ".join(done.errors)


def test_gated_models_ask_for_a_login_and_send_the_token_to_that_server_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from alignsr.cli import downloads

    monkeypatch.setattr(hub, "_token", lambda: "")
    done = call("models", "download", "flux1")
    assert done.code == 1 and "gated; accept its licence on that page, then run `hf auth login`" in done.errors[0]
    sent: list[tuple[dict[str, str], dict[str, str]]] = []

    def answer(request: urllib.request.Request, timeout: int) -> object:
        sent.append((dict(request.headers), dict(request.unredirected_hdrs)))
        raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", request.headers, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    item = downloads.Download("https://example.org/x.safetensors", "none", "x", token="secret")
    assert "secret" not in repr(item)
    with pytest.raises(downloads.DownloadError, match="HTTP 403 Forbidden; accept its licence on the model's page"):
        downloads.fetch(item, tmp_path, lambda *_: None)
    ((plain, unredirected),) = sent
    assert unredirected == {"Authorization": "Bearer secret"} and "Authorization" not in plain
