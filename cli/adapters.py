"""`alignsr models convert`: a released adapter to one safetensors file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import Quiet, say

PRECISIONS = {"keep": None, "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="state_dict.pth, the folder that holds it and projector.pth, or a safetensors file, ours or ComfyUI's.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="A name ending in .safetensors; default: beside the source.", show_default=False
        ),
    ] = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="alignsr: everything. comfyui: for ComfyUI's own LoRA loader. diffusers: for its pipelines.",
        ),
    ] = "alignsr",
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="Of the matrices in the file: keep, bf16, fp16 or fp32.")
    ] = "keep",
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Turn the released weights of StrSR into one safetensors file that says what it is.

    Names and shapes are compared with the full model first, and what is missing, unexpected or of another shape is told at once.
    Pickles are read without running code.
    """
    from .downloads import sha256_of

    target = _target(source, out, file_format)
    if precision not in PRECISIONS:
        raise ValueError(f"--precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}; choose one of them")
    say(f"reading {source} ...", quiet)
    import torch

    from ..core.convert import convert as convert_adapter

    files = [source] if source.is_file() else sorted(source.glob("*.pth"))
    beside = source.with_name("projector.pth")
    files += [beside] if source.name == "state_dict.pth" and beside.is_file() else []
    notes = {"converted_from": {file.name: sha256_of(file) for file in files}}
    dtype = getattr(torch, PRECISIONS[precision] or "", None)
    adapter = convert_adapter(source, target, file_format=file_format, dtype=dtype, notes=notes)
    facts: dict[str, Any] = {
        "file": str(target),
        "bytes": target.stat().st_size,
        "layers": len(adapter.state) // 2,
        "parameters": sum(tensor.numel() for tensor in adapter.state.values()),
        "projector_parameters": sum(tensor.numel() for tensor in adapter.projector.values()),
        **adapter.info,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    projector = f", projector {facts['projector_parameters']:,}" if adapter.projector else ", no projector"
    say(
        f"{target}\n{facts['backbone']}, rank {facts['rank']}, {facts['layers']} layers, "
        f"{facts['parameters']:,} values{projector}",
        quiet or as_json,
    )


def _target(source: Path, out: Path | None, file_format: str) -> Path:
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected state_dict.pth or its folder, found nothing; check the path")
    if out is None:
        folder = source if source.is_dir() else source.parent
        stem = folder.name if source.is_dir() or source.name == "state_dict.pth" else source.stem
        out = folder / f"{stem}{'' if file_format == 'alignsr' else f'-{file_format}'}.safetensors"
    if out.suffix != ".safetensors":
        raise ValueError(f"--out: expected a name ending in .safetensors, got {out}; weights are written as safetensors only")
    if out.resolve() == source.resolve():
        raise ValueError(f"--out: expected a file apart from its source, got {out}; choose another name")
    return out
