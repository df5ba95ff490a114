"""The command evaluate: folders of results, or models, scored against ground truth, beside what papers print."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .large import open_whole
from .terminal import (
    DeviceOption,
    JsonFile,
    PrecisionOption,
    Progress,
    Quiet,
    ScaleOption,
    TileOption,
    check_reports,
    check_tiles,
    choose_device,
    choose_precision,
    ctrl_c_asks,
    find_weights,
    say,
    whole_number,
    write_json,
    write_text,
)

DEFAULT_METRICS = "psnr_y,ssim_y"


class Method(NamedTuple):
    """One row of the table: its name, and its pairs as a list whose `sr` a model may still have to make."""

    name: str
    pairs: list[Any]
    model: str | None


def evaluate(
    gt: Annotated[
        Path | None,
        typer.Option("--gt", metavar="DIR", help="Folder of ground truth; not for real-world pictures.", show_default=False),
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option("--sr", metavar="[NAME=]DIR", help="Folder of results to score; once per method.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Score a model instead (with --lq); `bicubic` is the baseline; once per model.",
            show_default=False,
        ),
    ] = None,
    lq: Annotated[
        Path | None,
        typer.Option("--lq", metavar="DIR", help="Folder of low-resolution inputs, also for LR-PSNR.", show_default=False),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            metavar="A,B",
            help="Names, separated by commas, or a paper's protocol: aesop, asasr, dp2o, strsr, and aesop-real, asasr-real, "
            "strsr-real without ground truth. Default: psnr_y,ssim_y; with --published, what the paper measures on that set.",
            show_default=False,
        ),
    ] = "",
    published: Annotated[
        str,
        typer.Option(
            "--published",
            metavar="SET",
            help="Print published numbers beside ours: Set14, asasr-realsr, ... (`alignsr published` lists them).",
            show_default=False,
        ),
    ] = "",
    autoencoder: Annotated[
        str, typer.Option("--autoencoder", metavar="FILE", help="Auto-encoder for ae_psnr.", show_default=False)
    ] = "",
    quarters: Annotated[
        str,
        typer.Option(
            "--quarters", metavar="A,B", help="Metrics that see each image cut in four: clipiqa for DRealSR.", show_default=False
        ),
    ] = "",
    scale: ScaleOption = 4,
    crop: Annotated[
        int, typer.Option("--crop", metavar="PX", help="Border that PSNR and SSIM leave out; -1: the protocol's, else the scale.")
    ] = -1,
    tile_px: TileOption = 0,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    quiet: Quiet = False,
    json_file: JsonFile = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV table.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="PNG", help="Draw the methods in the perception-distortion plane.", show_default=False),
    ] = None,
    spectra: Annotated[
        Path | None,
        typer.Option(
            "--spectra", metavar="PNG", help="Draw mean spectra of --sr beside --gt; their distances by band.", show_default=False
        ),
    ] = None,
) -> None:
    """Score folders of results, or models, against ground truth.

    Give either --sr, or --model with --lq, as often as there are methods to compare. Files are matched by name. Metrics whose
    weights are not on this computer are named, not downloaded: one that you name yourself then makes the exit code 1, one that
    only a protocol (aesop, asasr, ...) asks for does not. Ctrl-C stops after the running picture; the reports then hold what was
    scored.
    """
    from ..core.evaluation_pictures import with_axes
    from ..core.metrics.comparison import Comparison
    from ..core.metrics.protocols import choose, preset
    from ..core.metrics.published import find_set

    factor = whole_number(scale, "--scale")
    choice = choose(metrics) if metrics else preset(published) if published else choose(DEFAULT_METRICS)
    check_reports(json_file, csv, markdown, picture, spectra)
    dataset = find_set(published) if published else ""
    _check_picture(picture, gt)
    _check_spectra(spectra, gt, model)
    methods = _methods(gt, sr or [], model or [], lq)
    where = choose_device(device)
    options: dict[str, Any] = {
        "metrics": choice.names if picture is None else with_axes(choice.names),
        "scale": factor,
        "crop": choice.crop if crop < 0 else crop,
        "device": where,
        "autoencoder": _load_autoencoder(autoencoder, where),
        "autoencoder_name": Path(autoencoder).stem,
        "in_quarters": choose(quarters).names if quarters else choice.quarters,
        "remarks": choice.remarks,
    }
    restoring: dict[str, Any] = {
        "scale": factor, "tile_px": tile_px, "device": where, "precision": choose_precision(precision)
    }  # fmt: skip
    comparison = Comparison.of(_tables(methods, options, restoring, quiet), dataset)
    _write(comparison, json_file, csv, markdown)
    if not quiet:
        for text in _texts(comparison):
            typer.echo(text, nl=False, err=str(json_file) == "-")
    if not all(table.complete for table in comparison.tables):
        raise KeyboardInterrupt
    if picture is not None:
        _draw(comparison, picture)
    if spectra is not None:
        _draw_spectra(methods, spectra, quiet, is_err=str(json_file) == "-")
    _demand(comparison, choice.named)


def _check_spectra(spectra: Path | None, gt: Path | None, model: list[str] | None) -> None:
    if spectra is None:
        return
    if spectra.suffix.lower() != ".png":
        raise ValueError(f"--spectra: expected the name of a PNG file, got {spectra}; end it in .png")
    if gt is None or model:
        raise ValueError("--spectra: expected folders, --sr with --gt; save the models' results with `alignsr upscale` first")


def _draw_spectra(methods: list[Method], path: Path, quiet: bool, is_err: bool) -> None:
    """Look at the pictures once more; Ctrl-C ends without a file."""
    from ..core.spectral_view import compare_spectra
    from ..core.weights import write_atomic

    with Progress(sum(len(method.pairs) for method in methods), quiet) as bar:
        seen = compare_spectra({method.name: method.pairs for method in methods}, progress=lambda n, name: bar.update(n, name))
    image = seen.picture()
    write_atomic(path, lambda part: image.save(part, format="PNG"))
    if not quiet:
        typer.echo("\n" + seen.to_text(), nl=False, err=is_err)


def _check_picture(picture: Path | None, gt: Path | None) -> None:
    if picture is None:
        return
    if picture.suffix.lower() != ".png":
        raise ValueError(f"--picture: expected the name of a PNG file, got {picture}; end it in .png")
    if gt is None:
        raise ValueError("--picture: expected --gt DIR with it, got none; the plane's first axis is PSNR")


def _methods(gt: Path | None, sr: list[str], model: list[str], lq: Path | None) -> list[Method]:
    """The rows to come; every folder is looked at before anything is scored.

    Raises:
        ValueError: neither or both of --sr and --model, --model without --lq, or two methods of one name.
    """
    from ..core.evaluate import pairs_from_folders

    wanted = "--sr: expected either --sr DIR, or --model NAME with --lq DIR"
    if not sr and not model:
        raise ValueError(f"{wanted}, got neither; name the results to score")
    if sr and model:
        raise ValueError(f"{wanted}, got both; save the models' results with `alignsr upscale` and compare folders")
    if model and lq is None:
        raise ValueError(f"{wanted}, got --model {model[0]} without --lq; name the folder of inputs")
    methods = [Method(name, pairs_from_folders(folder, gt, lq), None) for name, folder in folders_of(sr, "--sr").items()]
    for name in model:
        assert lq is not None
        methods.append(Method(Path(name).stem if Path(name).is_file() else name, pairs_from_folders(lq, gt, lq), name))
    names = [method.name for method in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--model: expected a name of its own for every method, got {twice} twice; name each model once")
    return methods


def folders_of(texts: list[str], option: str) -> dict[str, Path]:
    """`NAME=DIR` or `DIR` of each method.

    Raises:
        ValueError: two methods of one name.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, folder = _named(text)
        if name in folders:
            raise ValueError(f"{option}: expected a name of its own for every method, got {name} twice; write {option} NAME=DIR")
        folders[name] = folder
    return folders


def _named(text: str) -> tuple[str, Path]:
    """`NAME=DIR` or `DIR`, which is then the name; a folder with = in its path wins."""
    name, sign, folder = text.partition("=")
    if sign and name and not Path(text).is_dir():
        return name, Path(folder)
    return Path(text).resolve().name, Path(text)


def _load_autoencoder(name: str, device: Any) -> Any:
    """The auto-encoder on its device, or None without a name."""
    if not name:
        return None
    from ..core.networks.autoencoder import load_autoencoder
    from ..nodes.host import get_host

    return load_autoencoder(get_host().resolve_model(name)).to(device)


def _tables(methods: list[Method], options: dict[str, Any], restoring: dict[str, Any], quiet: bool) -> list[Any]:
    """A table per method; Ctrl-C ends with the one that was begun."""
    from ..core.evaluate import evaluate_methods

    sources = {
        method.name: method.pairs if method.model is None else _restored(method.pairs, method.model, **restoring)
        for method in methods
    }
    with Progress(sum(len(method.pairs) for method in methods), quiet) as bar, ctrl_c_asks() as cancelled:
        bar.update(0, methods[0].name)
        return evaluate_methods(
            sources, progress=lambda done, _total, name: bar.update(done, name), should_stop=cancelled, **options
        )


def _restored(pairs: Any, model: str, scale: int, tile_px: int, device: Any, precision: Any) -> Iterator[Any]:
    """The pairs with the model's result in place of a file, one at a time."""
    from dataclasses import replace

    from ..core.batch import restore_picture
    from ..core.image_files import read_image
    from ..core.images import to_rgb
    from ..core.resize import imresize
    from ..core.restore import move, scale_warning
    from ..nodes.host import get_host

    backbone = None if model == "bicubic" else move(open_whole(find_weights(model)), device, precision)
    if backbone is not None:
        check_tiles(tile_px, -1, backbone.spec)
        if warning := scale_warning(backbone, scale):
            say(f"warning: --scale: {warning}")
    for pair in pairs:
        pixels = to_rgb(read_image(pair.sr).pixels)
        if backbone is None:
            yield replace(pair, sr=imresize(pixels, scale).clamp(0, 1))
        else:
            result = restore_picture(backbone, pixels, scale=scale, tile_px=tile_px, is_oom=get_host().is_oom, notify=say)
            yield replace(pair, sr=result.sr)


def _is_plain(comparison: Any) -> bool:
    """One method and nothing beside it: its own table says it all."""
    return len(comparison.tables) == 1 and not comparison.dataset


def _texts(comparison: Any) -> list[str]:
    """What is printed: the images of a single method, and the methods where there is something to compare."""
    alone = _is_plain(comparison)
    images = [comparison.tables[0].to_text(notes=alone)] if len(comparison.tables) == 1 else []
    return images if alone else [*(text + "\n" for text in images), comparison.to_text(terminal_width())]


def terminal_width() -> int:
    """Characters per line where somebody watches, else 0: a file or a pipe takes lines of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _write(comparison: Any, json_file: Path | None, csv: Path | None, markdown: Path | None) -> None:
    report = comparison.tables[0] if _is_plain(comparison) else comparison
    write_json(json_file, report.to_dict())
    if csv is not None:
        write_text(csv, report.to_csv())
    if markdown is not None:
        write_text(markdown, report.to_markdown())


def _draw(comparison: Any, path: Path) -> None:
    from ..core.evaluation_pictures import plane_picture
    from ..core.weights import write_atomic

    image = plane_picture(comparison)
    write_atomic(path, lambda part: image.save(part, format="PNG"))


def _demand(comparison: Any, named: frozenset[str]) -> None:
    """What was asked for by name has to be there.

    Raises:
        ValueError: nothing could be scored, or not a metric that was named.
    """
    if not any(table.mean() for table in comparison.tables):
        notes = "; ".join(comparison.notes())
        raise ValueError(f"--metrics: expected at least one metric that can run here, got none; {notes}")
    for table in comparison.tables:
        lost = [name for name in table.metrics if name in named and name not in table.mean()]
        if lost:
            reasons = "; ".join(f"{name}: {table.missing.get(name, 'see the problems above')}" for name in lost)
            raise ValueError(f"--metrics: expected a score of every metric that was named, got none of {reasons}")
