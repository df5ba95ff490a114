"""Commands that make pictures: demo, upscale, degrade."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import (
    OK,
    WRONG,
    DeviceOption,
    JsonFile,
    OverlapOption,
    PrecisionOption,
    Progress,
    Quiet,
    ScaleOption,
    TileOption,
    choose_device,
    choose_precision,
    complain,
    say,
    whole_number,
    write_json,
)

DEFAULT_MODEL = "lite-x4"


def upscale(
    source: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", help="A picture, or a folder that is read with all its subfolders.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT", help="A folder; for a single picture also a file name, whose suffix chooses the format."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="NAME", help="A bundled model, a file in the model folders, or a path; see `alignsr models`."
        ),
    ] = DEFAULT_MODEL,
    scale: ScaleOption = 4,
    tile_px: TileOption = 0,
    overlap_px: OverlapOption = -1,
    color_fix: Annotated[
        str, typer.Option("--color-fix", help="none, wavelet or adain: take the colours from the input.")
    ] = "none",
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo results that exist; without it they are skipped.")] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Make pictures larger; keeps EXIF, ICC profile, transparency, bit depth and format.

    Results keep the names and subfolders of their sources, inside OUT. Each is written whole or not at all, so a run that was
    stopped goes on where it ended when started again. A file that cannot be read does not stop the others: it is named at the
    end, and the exit code is 1. When memory runs out, smaller tiles are tried.
    """
    from ..core.batch import Job, check_writable, plan_jobs, restore_picture, upscale_file
    from ..core.checks import check_positive_int, did_you_mean
    from ..core.color import COLOR_FIXES

    factor = check_positive_int(whole_number(scale, "--scale"), "--scale", high=16)
    if color_fix not in COLOR_FIXES:
        hint = did_you_mean(color_fix, list(COLOR_FIXES))
        raise ValueError(f"--color-fix: expected one of {', '.join(COLOR_FIXES)}, got {color_fix!r}; {hint}")
    check_positive_int(tile_px, "--tile-px", low=0)
    plan = plan_jobs(source, out)
    check_writable(plan[0].target.parent)

    from ..core.backbones import load_backbone
    from ..core.restore import move
    from ..nodes.host import get_host

    host = get_host()
    path, where, dtype = host.resolve_model(model), choose_device(device), choose_precision(precision)
    report: dict[str, Any] = {"command": "upscale", "model": model, "scale": factor}
    if not overwrite and all(job.target.exists() for job in plan):
        raise typer.Exit(_do(plan, lambda *_: {}, overwrite, quiet, json_file, report))
    backbone = move(load_backbone(path), where, dtype)
    fitting = [tile_px]  # a smaller tile that fitted after memory ran out serves the next pictures too

    def work(job: Job, on_tile: Callable[[int, int], None], notify: Callable[[str], None]) -> Mapping[str, Any]:
        def out_of_memory(text: str) -> None:
            host.soft_empty_cache()
            notify(f"{job.source}: {text}")
            fell_back.append(True)

        fell_back: list[bool] = []
        facts = upscale_file(
            job,
            lambda pixels: restore_picture(
                backbone,
                pixels,
                scale=factor,
                tile_px=fitting[0],
                overlap_px=overlap_px,
                color_fix=color_fix,
                on_tile=on_tile,
                is_oom=host.is_oom,
                notify=out_of_memory,
            ),
        )
        if fell_back:
            fitting[0] = int(facts["tile_px"])
        return facts

    report |= {"model": backbone.spec.name, "parameters": backbone.spec.parameters}
    raise typer.Exit(_do(plan, work, overwrite, quiet, json_file, report))


def degrade(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", help="A clean picture, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="A folder; for a single picture also a file name.")],
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="realesrgan, strsr, aesop_realworld, asasr, dp2o or bicubic.")
    ] = "realesrgan",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="The N-th file of a folder (sorted by path, from 0) gets seed + N.")
    ] = 0,
    scale: Annotated[float, typer.Option("--scale", metavar="S", help="Shrinking factor, any number from 1 on.")] = 4,
    jpeg: Annotated[str, typer.Option("--jpeg", help="codec (libjpeg), differentiable or diffjpeg.")] = "codec",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo results that exist.")] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Make low-quality inputs from clean pictures with a published degradation.

    Results are PNG files under the names of their sources; beside each, a JSON file holds the parameters that were drawn.
    """
    from ..core.batch import Job, check_writable, plan_jobs
    from ..core.degradation import degrade as degrade_images
    from ..core.degradation import find_config
    from ..core.image_files import read_image, write_image
    from ..core.images import to_rgb
    from .terminal import write_text

    config = find_config(preset)
    plan = plan_jobs(source, out, suffix=".png")
    check_writable(plan[0].target.parent)
    seeds = {job: seed + index for index, job in enumerate(plan)}

    def work(job: Job, on_tile: Callable[[int, int], None], notify: Callable[[str], None]) -> Mapping[str, Any]:
        del on_tile, notify
        gt = to_rgb(read_image(job.source).pixels)
        result = degrade_images(gt, config, seeds=[seeds[job]], scale=scale, jpeg=jpeg)  # pyright: ignore[reportArgumentType]  # checked there
        write_text(job.target.with_suffix(".json"), json.dumps(result.params[0], indent=2) + "\n")
        write_image(job.target, result.lq)
        return {"seed": seeds[job], "size": [result.lq.shape[-1], result.lq.shape[-2]]}

    raise typer.Exit(
        _do(plan, work, overwrite, quiet, json_file, {"command": "degrade", "preset": config.name, "scale": scale, "seed": seed})
    )


def _do(
    plan: list[Any],
    work: Callable[..., Mapping[str, Any]],
    overwrite: bool,
    quiet: bool,
    json_file: Path | None,
    report: dict[str, Any],
) -> int:
    """Run the jobs under one progress bar, report failures at the end and return the exit code."""
    from ..core.batch import JobResult, run_jobs

    results: list[JobResult] = []

    def finish() -> dict[str, int]:
        counts = {status: sum(result.status == status for result in results) for status in ("done", "skipped", "failed")}
        write_json(
            json_file,
            report | counts | {"complete": len(results) == len(plan), "files": [result.to_dict() for result in results]},
        )
        return counts

    try:
        with Progress(len(plan), quiet) as bar:

            def one(job: Any) -> Mapping[str, Any]:
                bar.update(len(results), str(job.source.name))
                return work(job, lambda done, total: bar.update(len(results) + done / total, job.source.name), bar.line)

            for result in run_jobs(plan, one, overwrite=overwrite):
                results.append(result)
                bar.update(len(results), str(result.job.source.name))
                if result.status == "done":
                    bar.line(f"{result.job.source} -> {result.job.target} ({result.seconds:.1f} s)")
                elif result.status == "skipped":
                    bar.line(f"{result.job.target} exists, skipped")
    except BaseException:  # Ctrl-C or a full disk: the report still says what is finished
        finish()
        raise
    counts = finish()
    for result in results:
        if result.status == "failed":
            complain(result.error if str(result.job.source) in result.error else f"{result.job.source}: {result.error}")
    if len(plan) > 1 or counts["skipped"]:
        hint = "; --overwrite redoes them" if counts["skipped"] else ""
        say(f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed{hint}", quiet)
    return WRONG if counts["failed"] else OK


def demo(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGE]", help="Your own picture; default: a CC0 photograph of a cat.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results.")] = Path("outputs/demo"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="May be repeated; default: every bundled model.", show_default=False),
    ] = None,
    tile_px: TileOption = 0,
    device: DeviceOption = "auto",
    quiet: Quiet = False,
) -> None:
    """Restore one photograph, four times larger, with the bundled models: results, a side-by-side picture and a JSON report."""
    from .demo import run_demo

    run_demo(image, out, model or [], tile_px, choose_device(device), quiet)
