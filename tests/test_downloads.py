"""`alignsr models download` against a local server: whole, interrupted and resumed, damaged, refused, unreachable."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import call, save_tiny

from alignsr.cli import downloads
from alignsr.cli.downloads import DOWNLOADS, Download, find_download


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path, with ranges; breaks off the first answer after `break_after` bytes."""

    content = b""
    break_after = 0
    with_ranges = True
    status = 0
    requests: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append(wanted)
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.with_ranges else 0
        whole = len(self.server.content)
        if start >= whole:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{whole}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        if self.server.break_after:
            body, self.server.break_after = body[: self.server.break_after], 0
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content = save_tiny(tmp_path / "source" / "net-x4.safetensors").read_bytes()
        running.requests = []
        url = f"http://127.0.0.1:{running.server_port}/files/net-x4.safetensors"
        digest = hashlib.sha256(running.content).hexdigest()
        monkeypatch.setitem(DOWNLOADS, "net-x4", Download(url, "Apache-2.0", "tiny", digest))
        monkeypatch.setenv("ALIGNSR_MODELS", str(tmp_path / "models"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "models").rglob("*")) if (tmp_path / "models").exists() else []


def test_a_download_is_verified_and_found(server: Server, tmp_path: Path) -> None:
    done = call("models", "download", "net-x4")
    assert done.code == 0, done.err
    assert "(as published)" in done.err
    assert files(tmp_path) == ["net-x4.safetensors"]
    assert call("models", "check", "net-x4").code == 0
    assert call("models", "download", "net-x4").code == 0
    assert len(server.requests) == 1  # the second call found the file


@pytest.mark.parametrize("with_ranges", [True, False])
def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path, with_ranges: bool) -> None:
    server.break_after, server.with_ranges = 1000, with_ranges
    broken = call("models", "download", "net-x4")
    assert broken.code == 1
    assert len(broken.errors) == 1
    assert "run the same command to go on" in broken.errors[0]
    assert files(tmp_path) == ["net-x4.safetensors.part"]
    assert call("models", "download", "net-x4").code == 0
    assert server.requests == ["", "bytes=1000-"]
    assert (tmp_path / "models" / "net-x4.safetensors").read_bytes() == server.content
    assert files(tmp_path) == ["net-x4.safetensors"]


def test_a_download_that_ended_with_its_last_byte_is_finished(server: Server, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net-x4.safetensors.part").write_bytes(server.content)
    assert call("models", "download", "net-x4").code == 0
    assert files(tmp_path) == ["net-x4.safetensors"]


def test_a_part_of_another_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net-x4.safetensors.part").write_bytes(b"x" * 1000)
    done = call("models", "download", "net-x4")
    assert done.code == 1
    assert "expected SHA-256" in done.errors[0]
    assert files(tmp_path) == []
    assert call("models", "download", "net-x4").code == 0


def test_without_a_published_checksum_the_found_one_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DOWNLOADS, "net-x4", Download(DOWNLOADS["net-x4"].url, "Apache-2.0", "tiny"))
    done = call("models", "download", "net-x4", "--to", tmp_path / "elsewhere")
    assert done.code == 0
    assert hashlib.sha256(server.content).hexdigest() in done.err
    assert "no published checksum" in done.err


def test_a_refusal_and_a_dead_server_are_one_line(server: Server, tmp_path: Path) -> None:
    server.status = 404
    refused = call("models", "download", "net-x4")
    assert refused.code == 1
    assert "HTTP 404" in refused.errors[0]
    server.shutdown()
    server.server_close()
    dead = call("models", "download", "net-x4")
    assert (dead.code, len(dead.err.splitlines())) == (1, 1)
    assert "could not be reached" in dead.errors[0]
    assert files(tmp_path) == []


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'RealESRGAN_x4plus'"):
        find_download("RealESRGAN_x4plu.pth")


@pytest.mark.parametrize("name", list(DOWNLOADS))
def test_every_entry_says_what_a_user_must_know(name: str) -> None:
    item = DOWNLOADS[name]
    assert item.url.startswith("https://")
    assert item.file_name.endswith((".pth", ".safetensors"))
    assert item.licence
    assert item.about
    assert item.sha256 == "" or (len(item.sha256) == 64 and set(item.sha256) <= set("0123456789abcdef"))


def test_chunks_are_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CHUNK", 4096)
    seen: list[tuple[int, int]] = []
    downloads.fetch(DOWNLOADS["net-x4"], tmp_path / "to", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(server.content), len(server.content))
    assert len(seen) > 3
