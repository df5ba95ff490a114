"""Known weight files of others: where they are, under which licence, and a download that survives interruptions."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 1 << 20
TIMEOUT_S = 30
_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"


class DownloadError(OSError):
    """A download that did not succeed; what has arrived is kept for the next try."""


@dataclass(frozen=True)
class Download:
    """One file on the net.

    Attributes:
        url: where it is; the last part is the file's name.
        licence: of the weights.
        about: one line for the list.
        sha256: published checksum, empty where none is known.
        token: sent to that server alone, for files that ask who wants them.
    """

    url: str
    licence: str
    about: str
    sha256: str = ""
    token: str = field(default="", repr=False)

    @property
    def file_name(self) -> str:
        """Name on disk."""
        return self.url.rpartition("/")[2]


DOWNLOADS: dict[str, Download] = {
    "RealESRGAN_x4plus": Download(
        f"{_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        "BSD-3-Clause",
        "RRDB, x4, 16.7 M parameters, photographs (GAN)",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
    "RealESRNet_x4plus": Download(
        f"{_RELEASES}/v0.1.1/RealESRNet_x4plus.pth",
        "BSD-3-Clause",
        "RRDB, x4, 16.7 M parameters, photographs (fidelity)",
    ),
    "RealESRGAN_x2plus": Download(
        f"{_RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        "BSD-3-Clause",
        "RRDB, x2, 16.7 M parameters, photographs (GAN)",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
    "RealESRGAN_x4plus_anime_6B": Download(
        f"{_RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        "BSD-3-Clause",
        "RRDB, x4, 4.5 M parameters, drawings (GAN)",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    ),
    "realesr-general-x4v3": Download(
        f"{_RELEASES}/v0.2.5.0/realesr-general-x4v3.pth",
        "BSD-3-Clause",
        "Compact, x4, 1.2 M parameters, photographs (GAN)",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
    ),
}


def find_download(name: str) -> Download:
    """A known download by name, with or without its suffix.

    Raises:
        ValueError: unknown name.
    """
    from ..core.checks import did_you_mean
    from .hub import BY_HAND, HUB

    plain = name.removesuffix(".pth").removesuffix(".safetensors")
    if plain in BY_HAND:
        item = BY_HAND[plain]
        raise ValueError(
            f"NAME: {plain} ({item.licence}) lies where no program can fetch it; open {item.url} and put it into "
            f"{item.place} of a model folder"
        )
    if plain not in DOWNLOADS:
        raise ValueError(
            f"NAME: expected a model that can be downloaded, got {name!r}; {did_you_mean(plain, [*DOWNLOADS, *HUB, *BY_HAND])}"
        )
    return DOWNLOADS[plain]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(item: Download, folder: Path, on_bytes: Callable[[int, int], None]) -> tuple[Path, str]:
    """Download into `folder`, going on with `<name>.part` when an earlier try left one.

    Args:
        item: what to get.
        folder: made when missing.
        on_bytes: called as on_bytes(done, total); total is 0 where the server does not say.

    Returns:
        The file and its SHA-256. A file that is there already (with the right checksum, where one is known) is not fetched again.

    Raises:
        DownloadError: no connection, a refusal, an early end, or a wrong checksum; one line.
    """
    target, part = folder / item.file_name, folder / f"{item.file_name}.part"
    if target.is_file():
        digest = sha256_of(target)
        if item.sha256 in ("", digest):
            return target, digest
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _receive(item.url, part, on_bytes, item.token)
    except urllib.error.HTTPError as error:
        remedy = "try again later"
        if item.token and error.code in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            remedy = "accept its licence on the model's page with the account that is logged in"
        raise DownloadError(f"{item.url}: expected the file, got HTTP {error.code} {error.reason}; {remedy}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{item.url}: could not be reached ({reason}); check the network and run the same command to go on"
        ) from error
    digest = sha256_of(part)
    if item.sha256 and digest != item.sha256:
        part.unlink()
        raise DownloadError(
            f"{item.url}: expected SHA-256 {item.sha256}, got {digest}; the damaged file was removed, run the command again"
        )
    os.replace(part, target)
    return target, digest


def _receive(url: str, part: Path, on_bytes: Callable[[int, int], None], token: str = "") -> None:
    """Append what is missing to `part`; a server without ranges starts it anew."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "alignsr"} | ({"Range": f"bytes={have}-"} if have else {}))
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # the last try ended with the last byte
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # longer than the file: of another version
        _receive(url, part, on_bytes, token)
        return
    with answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            have = 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                on_bytes(have, total)
    if total and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
