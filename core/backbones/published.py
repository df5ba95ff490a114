"""Under which names the large models are published as diffusers folders, and where a model lies that a user did not choose."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..weights import MissingModelError
from .files import find_components
from .latent import components_of, find_kind


@dataclass(frozen=True)
class Published:
    """A model as it is published whole.

    Attributes:
        folders: names of its diffusers folder, best first.
        download: what `alignsr models download` calls it; empty: it is fetched by hand.
    """

    folders: tuple[str, ...]
    download: str = ""


PUBLISHED: dict[str, Published] = {
    "flux2_klein": Published(("FLUX.2-klein-base-4B", "FLUX.2-klein-4B"), "flux2-klein"),
    "z_image": Published(("Z-Image-Turbo",), "z-image"),
    "flux1": Published(("FLUX.1-dev",), "flux1"),
    "sd2": Published(("stable-diffusion-2-base",)),
    "sd15": Published(("stable-diffusion-v1-5",), "sd15"),
    "sdxl": Published(("stable-diffusion-xl-base-1.0",), "sdxl"),
}
DIFFUSERS = "diffusers"  # ComfyUI's folder of diffusers folders, and below `--to` that of the command
OURS = "alignsr"  # our folder among ComfyUI's
STABLE_DIFFUSION = "sd2"  # which one it is where nothing says


def find_folder(name: str, main: str, places: Iterable[str | Path]) -> Path | None:
    """A diffusers folder directly inside one of `places`, or None.

    Args:
        name: of the folder.
        main: its sub-folder with the network that denoises: `transformer` or `unet`.
        places: folders to search.
    """
    found = (Path(place).expanduser() / name for place in places)
    return next((folder for folder in found if (folder / main / "config.json").is_file()), None)


def find_source(
    name: str,
    folders: Mapping[str, Iterable[str | Path]],
    places: Iterable[str | Path],
    *,
    version: str = "",
    chosen: Mapping[str, str | Path] | None = None,
) -> Path | None:
    """Where a model lies of which a user said nothing: in single files, else in a diffusers folder of a published name.

    Args:
        name: a key of `LATENT_KINDS` or `MULTI_STEP_KINDS`.
        folders: as `open_backbone` takes them, for single files.
        places: folders that may hold a diffusers folder.
        version: of Stable Diffusion: `sd15`, `sd2` or `sdxl`; empty: sd2.
        chosen: parts that do come from another place: name -> file.

    Returns:
        None for single files, else the folder: the `source` of `open_backbone` and `open_multi_step`.

    Raises:
        MissingModelError: neither; names each missing file, the folders searched and where to get it.
    """
    kind, places = find_kind(name), [Path(place).expanduser() for place in places]
    whole = PUBLISHED[name if name in PUBLISHED else version or STABLE_DIFFUSION]
    try:
        find_components(components_of(kind, version), folders, chosen)
    except MissingModelError as error:
        found = (find_folder(folder, kind.main, places) for folder in whole.folders)
        if (folder := next(filter(None, found), None)) is not None:
            return folder
        beside = (place.parent / DIFFUSERS for place in places if place.name == OURS)  # where training looks, once it is there
        kept = next((place for place in places if place.name == DIFFUSERS), next(beside, None))
        home, command = kept or next(iter(places), Path(DIFFUSERS)), f"alignsr models download {whole.download}"
        if whole.download and kept is not None:  # --to, since a terminal need not know the model folders of who says this
            get = f'`{command} --to "{kept.parent}"`, to {kept / whole.folders[0]}'
        else:
            get = f"a diffusers folder{f' (`{command}` gets one)' if whole.download else ''} in {home / whole.folders[0]}"
        raise MissingModelError(f"{error}. Or {get}") from error
    return None
