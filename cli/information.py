"""Commands that tell: models and nodes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import Command
from .terminal import Progress, Quiet, find_weights, say

models = typer.Typer(
    help="Which models there are, whether one loads, how to get more and how to pass one on. Without a subcommand: list.",
    rich_markup_mode=None,
    invoke_without_command=True,
)


@models.callback()
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@models.command("list", cls=Command)
def list_models(as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List bundled models, weight files in the model folders, and what `download` knows."""
    from ..nodes.host import get_host
    from .downloads import DOWNLOADS
    from .hub import BY_HAND, HUB

    host = get_host()
    known = [_file_facts(name, host.resolve_model(name)) for name in host.list_models()]
    known += [_file_facts(f"loras/{name}", path) for name, path in _files_in(host.model_dirs("loras")).items()]
    parts = [folder for key in ("loras", "controlnet") for folder in host.model_dirs(key) if folder.is_dir()]
    folders = [str(folder) for folder in dict.fromkeys([*host.training_dirs(), *parts])]
    more = [
        {"name": name, "about": item.about, "licence": item.licence, "url": item.url, "on_disk": _place(name, item)}
        for name, item in (DOWNLOADS | HUB).items()
    ]
    by_hand = [
        {
            "name": name,
            "about": item.about,
            "licence": item.licence,
            "url": item.url,
            "place": item.place,
            "on_disk": next((str(root / item.place) for root in host.model_dirs("alignsr") if (root / item.place).exists()), ""),
        }
        for name, item in BY_HAND.items()
    ]
    if as_json:
        typer.echo(json.dumps({"models": known, "folders": folders, "downloads": more, "by_hand": by_hand}, indent=2))
        return
    rows = [["name", "backbone", "scale", "parameters", "size", "licence"]]
    for item in known:
        count = "-" if item["parameters"] is None else f"{item['parameters']:,}"
        rows.append(
            [item["name"], _kind(item), str(item["scale"] or "-"), count, f"{item['bytes'] / 1e6:.1f} MB", item["licence"]]
        )
    typer.echo(_table(rows) if len(rows) > 1 else "no models found")
    typer.echo(f"\nmodel folders: {', '.join(folders)}\n\nto be had with `alignsr models download NAME`:")
    rows = [[item["name"], "yes" if item["on_disk"] else "-", item["licence"], item["about"]] for item in more]
    typer.echo(_table([["name", "on disk", "licence", "what"], *rows]))
    typer.echo("\nto be had from a page, by hand:")
    rows = [
        [item["name"], "yes" if item["on_disk"] else "-", item["licence"], item["about"], f"{item['url']} -> {item['place']}"]
        for item in by_hand
    ]
    typer.echo(_table([["name", "on disk", "licence", "what", "from and to"], *rows]))


@models.command("check", cls=Command)
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bundled model, a file in the model folders, or a path.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Load a model strictly and say what it is, with the SHA-256 of its file.

    An adapter is compared with its base model, name by name; that model need not be there.
    """
    from dataclasses import asdict

    from ..core.backbones import load_backbone
    from ..core.weights import read_info
    from .downloads import sha256_of
    from .large import adapter_facts, find_any, part_facts

    path = find_any(name)
    file = path / "state_dict.pth" if path.is_dir() else path
    facts: dict[str, Any] = {"file": str(path), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
    info = read_info(file) if file.suffix == ".safetensors" else {}
    if part := part_facts(info):
        facts |= part
        verdict = "whole, as far as its header says; only the training that it belongs to can tell whether it fits"
    elif info.get("architecture", "lora") == "lora" and (adapter := adapter_facts(path)):
        facts |= adapter
        verdict = f"fits its {adapter['base']} base model: every matrix is there and of its shape, all values are finite"
    else:
        facts |= asdict(load_backbone(path).spec)
        verdict = "loads strictly: every weight is there and fits"
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    is_flow = facts.get("start_sigma") is not None
    inner = () if is_flow else ("latent_channels", "latent_stride", "bytes_per_pixel")
    said = {
        key: value for key, value in facts.items() if value not in (None, 0, ()) and key not in inner
    }  # the rest is in the JSON
    typer.echo(
        _table(
            [
                [key.replace("_", " "), f"{value:,}" if key in ("bytes", "parameters") else str(value)]
                for key, value in said.items()
            ]
        )
    )
    typer.echo(verdict)


@models.command("download", cls=Command)
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `alignsr models list`.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder; default: the first model folder.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download a known model; a download that was cut off goes on where it stopped, and what arrived is verified.

    Models of several files go to ComfyUI's folder of their kind below the model folder, for example diffusers or loras.
    """
    from ..nodes.host import get_host
    from .downloads import fetch, find_download
    from .hub import HUB, fetch_model

    if name in HUB:
        model = HUB[name]
        place = (to / model.key if to else get_host().model_dirs(model.key)[-1]) / model.folder
        say(f"{model.url}\nlicence: {model.licence}", quiet)
        with Progress(1, quiet) as bar:
            paths = fetch_model(
                model,
                place,
                lambda file, done, total: bar.update(done / max(total, 1), f"{file}  {done / 1e9:.2f} of {total / 1e9:.2f} GB"),
            )
        say(f"{place}\n{len(paths)} files, checksums as published", quiet)
        return
    item = find_download(name)
    folder = to or get_host().model_dirs("alignsr")[-1]
    with Progress(1, quiet) as bar:
        path, digest = fetch(
            item,
            folder,
            lambda done, total: bar.update(done / max(total, 1), f"{name}  {done / 1e6:.1f} of {total / 1e6:.1f} MB"),
        )
    verified = "as published" if item.sha256 else "no published checksum to compare with"
    say(f"{path}\nlicence: {item.licence}\nsha256: {digest} ({verified})", quiet)


@models.command("export", cls=Command)
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model in the model folders, or a path.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Name to write, ending in .safetensors.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write an RRDBNet, SwinIR or DRCT as ComfyUI's own Load Upscale Model reads it.

    Takes weights of ours and released .pth files. Put FILE into ComfyUI's models/upscale_models.
    """
    from ..core.networks.official import export_for_comfy

    if to.suffix.lower() != ".safetensors":
        raise ValueError(f"--to: expected a name ending in .safetensors, got {to}; choose another name")
    if to.exists() and not overwrite:
        raise FileExistsError(f"--to: expected a new file, got {to}, which exists; choose another name or pass --overwrite")
    path = export_for_comfy(find_weights(name), to)
    say(f"{path}\nloads strictly in spandrel, which ComfyUI's Load Upscale Model uses", quiet)


def nodes(
    as_json: Annotated[bool, typer.Option("--json", help="What ComfyUI's /object_info would say, on stdout.")] = False,
) -> None:
    """List the nodes."""
    from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from ..runner.specs import object_info

    info = object_info(NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS)
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    rows = [[name, item["display_name"], item["category"]] for name, item in info.items()]
    typer.echo(_table([["id", "name", "category"], *rows]))


def _file_facts(name: str, path: Path) -> dict[str, Any]:
    """What a weight file's header says; other programs' files are known only after loading (`check`)."""
    facts: dict[str, Any] = {"name": name, "file": str(path), "bytes": path.stat().st_size, "backbone": "network?", "scale": None}
    facts |= {"parameters": None, "licence": "unknown", "problem": None, "kind": "model"}
    if path.suffix != ".safetensors":
        return facts
    from safetensors import safe_open

    from ..core.weights import WeightsError, read_info
    from .large import part_facts

    try:
        info = read_info(path)
        with safe_open(path, framework="pt") as file:
            facts["parameters"] = sum(_count(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118  # not a dict
    except WeightsError as error:
        return facts | {"backbone": "damaged", "problem": str(error)}
    return facts | {
        "backbone": str(info.get("backbone", facts["backbone"])),
        "scale": info.get("scale"),
        "licence": str(info.get("licence", facts["licence"])),
        "kind": "adapter" if info.get("architecture") == "lora" else str((part_facts(info) or facts)["kind"]),
    }


def _files_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Weight files by their path inside the first of the folders that has them, sorted."""
    from ..core.weights import WEIGHT_SUFFIXES

    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.suffix in WEIGHT_SUFFIXES and path.is_file():
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return dict(sorted(found.items()))


def _kind(item: Mapping[str, Any]) -> str:
    """`network`, `adapter of z_image`, `critic_heads`, ..."""
    backbone, kind = str(item["backbone"]), str(item["kind"])
    return backbone if kind == "model" else f"adapter of {backbone}" if kind == "adapter" else kind


def _place(name: str, item: Any) -> str:
    """Where a download lies, or an empty text."""
    from ..nodes.host import get_host
    from .hub import HubModel
    from .large import place_on_disk

    host = get_host()
    if isinstance(item, HubModel):
        return str(place_on_disk(item, host.model_dirs(item.key)) or "")
    return next((str(folder / item.file_name) for folder in host.all_model_dirs() if (folder / item.file_name).is_file()), "")


def _count(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
