"""Commands that measure: evaluate and bench."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .terminal import (
    DeviceOption,
    JsonFile,
    PrecisionOption,
    Progress,
    Quiet,
    ScaleOption,
    TileOption,
    choose_device,
    choose_precision,
    ctrl_c_asks,
    say,
    whole_number,
    write_json,
    write_text,
)


class Benchmark(NamedTuple):
    """A script in benchmarks/: its file, what it measures, and the arguments without which it does not run."""

    file: str
    about: str
    needs: str = ""


BENCHMARKS = {
    "import-time": Benchmark("import_time.py", "seconds and memory of importing the pack over `import torch`"),
    "degradation": Benchmark("degradation.py", "degraded images per second beside a per-image OpenCV pipeline"),
    "tiling": Benchmark("tiling.py", "work and time of tiles over one whole pass"),
    "upscale": Benchmark("upscale.py", "megapixels per second of each bundled model"),
    "bundled-models": Benchmark("bundled_models.py", "PSNR and SSIM of each bundled model against bicubic", "--data DIR"),
}
BENCHMARK_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def evaluate(
    gt: Annotated[Path, typer.Option("--gt", metavar="DIR", help="Folder of ground truth.")],
    sr: Annotated[
        Path | None, typer.Option("--sr", metavar="DIR", help="Folder of results to score.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Score a model instead (with --lq); `bicubic` is the baseline.",
            show_default=False,
        ),
    ] = None,
    lq: Annotated[
        Path | None, typer.Option("--lq", metavar="DIR", help="Folder of low-resolution inputs.", show_default=False)
    ] = None,
    metrics: Annotated[str, typer.Option("--metrics", metavar="A,B", help="Names, separated by commas.")] = "psnr_y,ssim_y",
    scale: ScaleOption = 4,
    crop: Annotated[int, typer.Option("--crop", metavar="PX", help="Border that PSNR and SSIM leave out; -1: the scale.")] = -1,
    tile_px: TileOption = 0,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    quiet: Quiet = False,
    json_file: JsonFile = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV table.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", show_default=False)
    ] = None,
) -> None:
    """Score a folder of results, or a model, against ground truth.

    Give either --sr, or --model with --lq. Files are matched by name. Metrics whose weights are not on this computer are named,
    not downloaded. Ctrl-C stops after the running picture; the reports then hold what was scored.
    """
    from ..core.evaluate import Pair, evaluate_pairs, pairs_from_folders
    from ..core.metrics import spec_of

    factor = whole_number(scale, "--scale")
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    for name in names:
        spec_of(name)
    if (sr is None) == (model is None) or (model is not None and lq is None):
        raise ValueError("--sr: expected either --sr DIR, or --model NAME with --lq DIR, got another choice; give one of the two")
    where = choose_device(device)
    if sr is not None:
        pairs: list[Pair] = pairs_from_folders(sr, gt, lq)
        source: Any = pairs
        title = sr.name
    else:
        assert lq is not None and model is not None
        pairs = pairs_from_folders(lq, gt, lq)
        source = _restored(pairs, model, factor, tile_px, where, choose_precision(precision))
        title = model
    with Progress(len(pairs), quiet) as bar, ctrl_c_asks() as cancelled:
        bar.update(0, title)
        table = evaluate_pairs(
            source,
            names,
            scale=factor,
            crop=None if crop < 0 else crop,
            device=where,
            title=title,
            progress=lambda done, _total, name: bar.update(done, name),
            should_stop=cancelled,
        )
    write_json(json_file, table.to_dict())
    if csv is not None:
        write_text(csv, table.to_csv())
    if markdown is not None:
        write_text(markdown, table.to_markdown())
    if not quiet:
        typer.echo(table.to_text(), nl=False, err=str(json_file) == "-")
    if not table.complete:
        raise KeyboardInterrupt
    if not table.columns:
        raise ValueError(f"--metrics: expected at least one metric that can run here, got none; {'; '.join(table.notes())}")


def _restored(pairs: Any, model: str, scale: int, tile_px: int, device: Any, precision: Any) -> Iterator[Any]:
    """The pairs with the model's result in place of a file, one at a time."""
    from dataclasses import replace

    from ..core.backbones import load_backbone
    from ..core.batch import restore_picture
    from ..core.image_files import read_image
    from ..core.images import to_rgb
    from ..core.resize import imresize
    from ..core.restore import move
    from ..nodes.host import get_host

    backbone = None if model == "bicubic" else move(load_backbone(model, get_host().all_model_dirs()), device, precision)
    for pair in pairs:
        pixels = to_rgb(read_image(pair.sr).pixels)
        if backbone is None:
            yield replace(pair, sr=imresize(pixels, scale).clamp(0, 1))
        else:
            yield replace(
                pair, sr=restore_picture(backbone, pixels, scale=scale, tile_px=tile_px, is_oom=get_host().is_oom, notify=say)[0]
            )


def bench(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One benchmark; default: all that need no arguments.", show_default=False),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENTS]", help="For the benchmark itself, after --, e.g. -- --help.", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    list_only: Annotated[bool, typer.Option("--list", help="Say which there are.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run the benchmarks of the repository and print their tables."""
    if list_only:
        for known, item in BENCHMARKS.items():
            typer.echo(f"{known:15} {item.about}" + (f" (needs -- {item.needs})" if item.needs else ""))
        return
    chosen = _choose(name)
    report: dict[str, Any] = {}
    failed: list[str] = []
    for known, item in chosen.items():
        say(f"== {known}: {item.about}", quiet)
        to_stderr = str(json_file) == "-"
        code, report[known] = _run_benchmark(BENCHMARK_FOLDER / item.file, arguments or [], to_stderr=to_stderr, quiet=quiet)
        if code:
            failed.append(f"{known} (exit code {code})")
    write_json(json_file, next(iter(report.values())) or {} if name else report)
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: expected to pass, did not; see above")


def _choose(name: str | None) -> dict[str, Benchmark]:
    """The named benchmark, or all that run without arguments; their files exist.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: installed without the repository.
    """
    from ..core.checks import did_you_mean

    key = name.replace("_", "-") if name is not None else None
    if key is not None and key not in BENCHMARKS:
        raise ValueError(f"NAME: expected a benchmark, got {name!r}; {did_you_mean(key, list(BENCHMARKS))}")
    chosen = {key: BENCHMARKS[key]} if key else {known: item for known, item in BENCHMARKS.items() if not item.needs}
    for item in chosen.values():
        if not (BENCHMARK_FOLDER / item.file).is_file():
            raise FileNotFoundError(
                f"{BENCHMARK_FOLDER / item.file}: expected the benchmarks of the repository, found none; they are not part of an "
                "installed package: clone the repository and install it with `pip install -e .`"
            )
    return chosen


def _run_benchmark(path: Path, arguments: list[str], *, to_stderr: bool, quiet: bool) -> tuple[int, Any]:
    """Run one benchmark in a process of its own and read its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        output: Any = subprocess.DEVNULL if quiet else sys.stderr if to_stderr else None
        code = subprocess.run(
            [sys.executable, str(path), *arguments, "--json", str(result)], stdout=output, check=False
        ).returncode
        return code, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None
