"""Models of more than one file, for the commands that take one: what is on disk, what a file is, and the way to use it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .hub import BY_HAND, HUB, HubModel

WORKFLOWS = {  # kind of the base model -> what upscales with an adapter of it
    "flux2_klein": "workflows/upscale-with-strsr-flux.json",
    "z_image": "workflows/upscale-with-strsr-z.json",
    "flux1": "workflows/upscale-with-asasr.json",
    "stable_diffusion": "workflows/upscale-with-dp2o-sd2.json",
}
ADAPTERS = {  # name of a download, or of what is fetched by hand -> the same
    "StrSR-flux": WORKFLOWS["flux2_klein"],
    "StrSR-zimage": WORKFLOWS["z_image"],
    "ASASR": WORKFLOWS["flux1"],
    "dp2o-flux": "workflows/upscale-with-dp2o-flux.json",
    "dp2o-sd2": WORKFLOWS["stable_diffusion"],
}
_BINARY = (".safetensors", ".pth")


def known_name(name: str) -> str:
    """The name under which `models download` knows what a user asks for, or an empty text."""
    plain = Path(name).name.removesuffix(".pth").removesuffix(".safetensors")
    return plain if plain in HUB or plain in BY_HAND else ""


def how_to_get(name: str) -> str:
    """For the end of a message: the command, or the page from which a person gets it."""
    if name in HUB:
        return f"get it with `alignsr models download {name}`"
    return f"get it by hand from {BY_HAND[name].url} and put it into {BY_HAND[name].place} of a model folder"


def place_on_disk(item: HubModel, folders: Iterable[Path]) -> Path | None:
    """Where all weights that a download brings lie: its folder in one of `folders`, or an adapter as one file; None: nowhere."""
    patterns = [pattern for pattern in item.patterns if pattern.endswith(_BINARY)]
    if item.is_flat:
        patterns = [pattern.rsplit("/", 1)[-1] for pattern in patterns]
    for folder in folders:
        place = folder / item.folder
        if all(any(place.glob(pattern)) for pattern in patterns):
            return place
        if item.is_flat and (single := folder / f"{item.folder}.safetensors").is_file():
            return single
    return None


def find_any(name: str) -> Path:
    """A weight file, or the folder of a released adapter, by path or by its name in any model folder, those of parts included.

    Raises:
        MissingModelError: nothing there; says how to get it where that is known.
    """
    from ..core.weights import MissingModelError, find_model
    from ..nodes.host import get_host
    from .terminal import find_weights

    host = get_host()
    item, direct = HUB.get(name), Path(name).expanduser()
    if (direct / "state_dict.pth").is_file():
        return direct
    if item is not None and item.is_flat and (place := place_on_disk(item, host.model_dirs(item.key))):
        return place
    try:
        return find_model(name, host.training_dirs())
    except MissingModelError:
        return find_weights(name)


def adapter_facts(path: Path) -> dict[str, Any] | None:
    """What an adapter is, after its names, shapes and values were compared with its base model; None for any other file.

    Raises:
        WeightsError: an adapter that is damaged, incomplete, or of another network.
    """
    from ..core.convert import check_fitting
    from ..core.lora_files import read_adapter
    from ..core.weights import WeightsError, read_info

    is_told = path.suffix == ".safetensors" and path.is_file() and read_info(path).get("architecture") == "lora"
    try:
        adapter = read_adapter(path)
    except (WeightsError, KeyError):
        if is_told or path.is_dir():
            raise
        return None
    base = check_fitting(adapter)
    return {
        "kind": "adapter",
        "backbone": adapter.info["backbone"],
        "base": base,
        "rank": adapter.rank,
        "alpha": adapter.scale * adapter.rank,
        "layers": len(adapter.state) // 2,
        "parameters": sum(tensor.numel() for tensor in adapter.state.values()),
        "projector_parameters": sum(tensor.numel() for tensor in adapter.projector.values()),
        **{key: adapter.info[key] for key in ("latents", "start_sigma", "step_length", "licence", "step") if key in adapter.info},
    }


def part_facts(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of ours is that belongs to training or beside a model, by its header; None for models."""
    said = {
        "critic_heads": "the heads of StrSR's critic: `discriminator.init` of stage 2 starts from them",
        "projector": "the projector of a vision-language model's tokens, trained beside a whole model",
    }
    kind = str(info.get("architecture", ""))
    return {"kind": kind, "what": said[kind]} if kind in said else None


def open_whole(path: Path) -> Any:
    """The model in a file that restores by itself.

    Raises:
        ValueError: an adapter; the message names the workflow that upscales with it.
        WeightsError: damaged, or another network.
    """
    from ..core.backbones import load_backbone
    from ..core.lora_files import read_adapter
    from ..core.weights import WeightsError

    try:
        return load_backbone(path)
    except ValueError as error:
        try:
            kind = str(read_adapter(path).info["backbone"])
        except (WeightsError, KeyError):
            raise error from None
        raise WeightsError(
            f"{path}: expected a whole model, got an adapter of {kind}; upscale with it and its base model by `alignsr run "
            f"{ADAPTERS.get(path.stem) or WORKFLOWS[kind]}`, where Load LoRA names the file"
        ) from error
