"""Models of several files on Hugging Face: which ones, where they go, and a download that goes on and is verified.

`huggingface_hub` says what a repository holds, with sizes and checksums; the files come through `downloads.fetch`.
"""

import fnmatch
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .downloads import CHUNK, Download, DownloadError, fetch

ENDPOINT = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")  # as huggingface_hub reads it


@dataclass(frozen=True)
class HubModel:
    """Files of one repository.

    Attributes:
        repository: `owner/name`.
        patterns: what is needed of it, as in a shell; matched against whole paths.
        key: which of ComfyUI's model folders it goes to.
        folder: its name in there.
        licence: of the weights.
        about: one line for the list.
        is_flat: keep the files' names alone, without their folders.
        is_gated: only for users who have accepted its licence on its page and are logged in (`hf auth login`, or HF_TOKEN).
    """

    repository: str
    patterns: tuple[str, ...]
    key: str
    folder: str
    licence: str
    about: str
    is_flat: bool = False
    is_gated: bool = False

    @property
    def url(self) -> str:
        """Its page."""
        return f"{ENDPOINT}/{self.repository}"


_BODY = ("model_index.json", "transformer/*.json", "transformer/*.safetensors", "vae/*.json", "vae/*.safetensors")
_TEXT = ("text_encoder/*.json", "text_encoder/*.safetensors", "tokenizer/*")
_STRSR = "non-commercial, see its page"
_FLUX1 = "FLUX.1 [dev] Non-Commercial License"
_UNET = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json")
_UNET += ("vae/diffusion_pytorch_model.safetensors", "scheduler/*.json")
_CLIP = ("text_encoder*/config.json", "text_encoder*/model.safetensors", "tokenizer*/*")

HUB: dict[str, HubModel] = {
    "flux2-klein": HubModel(
        "black-forest-labs/FLUX.2-klein-base-4B", _BODY, "diffusers", "FLUX.2-klein-base-4B", "Apache-2.0",
        "FLUX.2 [klein] base 4B, transformer and autoencoder, 8 GB",
    ),
    "flux2-klein-text": HubModel(
        "black-forest-labs/FLUX.2-klein-base-4B", _TEXT, "diffusers", "FLUX.2-klein-base-4B", "Apache-2.0",
        "its text encoder, for Text Encode, 8 GB",
    ),
    "z-image": HubModel(
        "Tongyi-MAI/Z-Image-Turbo", _BODY, "diffusers", "Z-Image-Turbo", "Apache-2.0",
        "Z-Image-Turbo 6B, transformer and autoencoder, 12 GB or more",
    ),
    "z-image-text": HubModel(
        "Tongyi-MAI/Z-Image-Turbo", _TEXT, "diffusers", "Z-Image-Turbo", "Apache-2.0",
        "its text encoder, for Text Encode, 8 GB",
    ),
    "qwen3-vl": HubModel(
        "Qwen/Qwen3-VL-4B-Instruct", ("*.json", "*.safetensors", "merges.txt", "*.jinja"), "text_encoders",
        "Qwen3-VL-4B-Instruct", "Apache-2.0", "the vision-language model of StrSR, 9 GB",
    ),
    "StrSR-flux": HubModel(
        "jkwang28/StrSR", ("*StrSR-flux/state_dict.pth", "*StrSR-flux/projector.pth"), "loras", "StrSR-flux", _STRSR,
        "released adapter and projector for flux2-klein, 1.2 GB", True,
    ),
    "StrSR-zimage": HubModel(
        "jkwang28/StrSR", ("*StrSR-zimage/state_dict.pth", "*StrSR-zimage/projector.pth"), "loras", "StrSR-zimage", _STRSR,
        "released adapter and projector for z-image, 2.4 GB", True,
    ),
    "flux1": HubModel(
        "black-forest-labs/FLUX.1-dev", _BODY, "diffusers", "FLUX.1-dev", _FLUX1,
        "FLUX.1 [dev] 12B, transformer and autoencoder, 24 GB; gated", is_gated=True,
    ),
    "flux1-text": HubModel(
        "black-forest-labs/FLUX.1-dev",
        ("text_encoder/*.json", "text_encoder/*.safetensors", "text_encoder_2/*.json", "text_encoder_2/*.safetensors",
         "tokenizer/*", "tokenizer_2/*"),
        "diffusers", "FLUX.1-dev", _FLUX1, "its text encoders, needed once per prompt, 10 GB; gated", is_gated=True,
    ),
    "ASASR": HubModel(
        "wafer-bob/ASASR",
        ("sr_lora/*.safetensors", "dpo_lora/*.safetensors", "adv_lora/*.safetensors", "*_lora/adapter_config.json"),
        "loras", "ASASR", "CC-BY-NC-4.0", "released adapters for flux1: super-resolution, policy, adversary, 1.1 GB",
    ),
    "sd15": HubModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", _UNET, "diffusers", "stable-diffusion-v1-5", "CreativeML Open RAIL-M",
        "Stable Diffusion 1.5, UNet and autoencoder, 4 GB",
    ),
    "sd15-text": HubModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", _CLIP, "diffusers", "stable-diffusion-v1-5", "CreativeML Open RAIL-M",
        "its text encoder, needed once per prompt, 0.5 GB",
    ),
    "sdxl": HubModel(
        "stabilityai/stable-diffusion-xl-base-1.0", _UNET, "diffusers", "stable-diffusion-xl-base-1.0",
        "CreativeML Open RAIL++-M", "Stable Diffusion XL, UNet and autoencoder, 11 GB",
    ),
    "sdxl-text": HubModel(
        "stabilityai/stable-diffusion-xl-base-1.0", _CLIP, "diffusers", "stable-diffusion-xl-base-1.0",
        "CreativeML Open RAIL++-M", "its text encoders, needed once per prompt, 3.3 GB",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ByHand:
    """A model that a program cannot fetch: a person has to, from a page.

    Attributes:
        url: the page.
        place: where it belongs, below the model folder.
        licence: of the weights.
        about: one line for the list.
    """

    url: str
    place: str
    licence: str
    about: str


_DRIVE = "https://drive.google.com/drive/folders/1LVSwWbjJdn5Wxy79AwV5LdPX2S2Hotx1"  # as cswry/DP2O-SR@bc216ec says
_UNSTATED = "none stated by its authors"

BY_HAND: dict[str, ByHand] = {
    "dp2o-flux": ByHand(
        _DRIVE, "controlnet/dp2o-flux.safetensors", _UNSTATED, "DP2O-SR's control branch for flux1, 1.4 B parameters"
    ),
    "c-flux": ByHand(_DRIVE, "controlnet/c-flux.safetensors", _UNSTATED, "C-FLUX, where DP2O-SR starts from"),
    "dp2o-sd2": ByHand(
        _DRIVE, "controlnet/dp2o-sd2.safetensors", _UNSTATED, "DP2O-SR's control branch for sd2, 0.36 B parameters"
    ),
    "c-sd2": ByHand(_DRIVE, "controlnet/c-sd2.safetensors", _UNSTATED, "C-SD2, where DP2O-SR starts from"),
    "sd2": ByHand(
        _DRIVE, "diffusers/stable-diffusion-2-base", "CreativeML Open RAIL++-M",
        "Stable Diffusion 2 base with its text encoder; its own page was taken down",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class HubFile:
    """One file as the repository lists it: its path, size, and SHA-256 (large files) or git's blob id (small ones)."""

    path: str
    size: int
    sha256: str
    blob_id: str


def list_files(item: HubModel) -> tuple[str, list[HubFile]]:
    """The commit and the files that a model needs.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed; the message says how to install it.
        DownloadError: no connection, no such repository, or one that lacks what is needed; one line.
    """
    from ..core.compat import import_third_party

    hub: Any = import_third_party("huggingface_hub")
    try:
        info: Any = hub.HfApi().model_info(item.repository, files_metadata=True)
    except Exception as error:  # the library raises those of its HTTP client too
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(f"{item.url}: could not be listed ({reason}); check the network and run the command again") from error
    found = [
        HubFile(one.rfilename, int(one.size or 0), _sha256(one.lfs), str(one.blob_id or ""))
        for one in info.siblings
        if any(fnmatch.fnmatchcase(one.rfilename, pattern) for pattern in item.patterns)
    ]
    idle = [pattern for pattern in item.patterns if item.is_flat and not _any(found, pattern)]
    if not found or idle:
        raise DownloadError(
            f"{item.url}: expected files {', '.join(idle or item.patterns)}, the repository has none; see what changed there"
        )
    return str(info.sha), found


def _token() -> str:
    """The user's own token, wherever huggingface_hub keeps it; empty without one."""
    from ..core.compat import import_third_party

    hub: Any = import_third_party("huggingface_hub")
    return str(hub.get_token() or "")


def _any(files: list[HubFile], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(file.path, pattern) for file in files)


def _sha256(lfs: Any) -> str:
    if lfs is None:
        return ""
    return str(lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256)


def fetch_model(item: HubModel, folder: Path, on_bytes: Callable[[str, int, int], None]) -> list[Path]:
    """Download what a model needs into `folder`; whole files are kept, a part goes on where it ended.

    Args:
        item: an entry of HUB.
        folder: made when missing.
        on_bytes: called as on_bytes(file name, bytes of all files that are there, bytes of all).

    Returns:
        The files.

    Raises:
        DownloadError: see `list_files` and `downloads.fetch`; or a file that is not what the repository lists.
    """
    token = _token() if item.is_gated else ""
    if item.is_gated and not token:
        raise DownloadError(
            f"{item.url}: expected a user who is logged in, since this model is gated; accept its licence on that page, then run "
            "`hf auth login` (or set HF_TOKEN) and the same command again"
        )
    commit, files = list_files(item)
    total, before, paths = sum(file.size for file in files), 0, list[Path]()
    for file in files:
        place = folder / (Path(file.path).name if item.is_flat else file.path)
        if not place.resolve().is_relative_to(folder.resolve()):
            raise DownloadError(f"{item.url}: expected paths inside the repository, got {file.path!r}; do not trust it")
        url = f"{item.url}/resolve/{commit}/{file.path}"
        name, start = place.name, before
        if not (place.is_file() and not file.sha256 and _blob_id(place) == file.blob_id):
            single = Download(url, item.licence, item.about, file.sha256, token)
            fetch(single, place.parent, lambda done, _, name=name, start=start: on_bytes(name, start + done, total))
        if not file.sha256 and file.blob_id and _blob_id(place) != file.blob_id:
            place.unlink()
            raise DownloadError(
                f"{url}: expected the file of git id {file.blob_id}, got another; it was removed, run the command again"
            )
        before += file.size
        on_bytes(name, before, total)
        paths.append(place)
    return paths


def _blob_id(path: Path) -> str:
    """What git calls a file: SHA-1 of its length and content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
