"""Commands that make pictures: demo, upscale, degrade."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .downloads import sha256_of
from .large import open_whole
from .made import Records, differences, other_size, picture_size
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
    as_folder,
    check_reports,
    check_source,
    check_tiles,
    choose_device,
    choose_precision,
    complain,
    existing_name,
    find_weights,
    say,
    whole_number,
    write_json,
    write_text,
)

DEFAULT_MODEL = "lite-x4"


def upscale(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER", parser=existing_name, help="A picture, or a folder that is read with all its subfolders."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="A folder; for a single picture also a file name, whose suffix chooses the format. A name that ends in / is a "
            "folder.",
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
        str, typer.Option("--color-fix", metavar="NAME", help="none, wavelet or adain: take the colours from the input.")
    ] = "none",
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo results that exist; without it they are skipped.")] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Make pictures larger; keeps EXIF, ICC profile, transparency, bit depth and format.

    Results keep the names and subfolders of their sources, inside OUT. Each is written whole or not at all, so a run that was
    stopped goes on where it ended when started again: results that exist are skipped, and one that was made with another model,
    scale or colour fix is named. A file that cannot be read does not stop the others: it is named at the end, and the exit code
    is 1. When memory runs out, smaller tiles are tried.
    """
    check_source(source)
    from ..core.batch import Job, check_writable, plan_jobs, restore_picture, upscale_file
    from ..core.checks import check_positive_int, did_you_mean
    from ..core.color import COLOR_FIXES
    from ..core.restore import move, scale_warning
    from ..nodes.host import get_host

    factor = check_positive_int(whole_number(scale, "--scale"), "--scale", high=16)
    if color_fix not in COLOR_FIXES:
        hint = did_you_mean(color_fix, list(COLOR_FIXES))
        raise ValueError(f"--color-fix: expected one of {', '.join(COLOR_FIXES)}, got {color_fix!r}; {hint}")
    where, dtype = choose_device(device), choose_precision(precision)
    check_positive_int(tile_px, "--tile-px", low=0)
    plan = plan_jobs(source, out)
    check_writable(plan[0].target.parent)
    check_reports(json_file)
    path = find_weights(model)
    say(f"loading {path.stem} ...", quiet)  # seconds, for models that need diffusers
    backbone = move(open_whole(path), where, dtype)
    check_tiles(tile_px, overlap_px, backbone.spec, quiet)
    if warning := scale_warning(backbone, factor):
        say(f"warning: --scale: {warning}")

    host = get_host()
    asked = {"model": backbone.spec.name, "weights": sha256_of(path)[:16], "scale": factor, "color_fix": color_fix}
    records = Records()
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
                device=where,
                on_tile=on_tile,
                is_oom=host.is_oom,
                notify=out_of_memory,
            ),
        )
        records.add(job.target, asked)
        if fell_back:
            fitting[0] = int(facts["tile_px"])
        return facts

    def what_is_there(job: Job) -> str:
        made = records.of(job.target)
        if made is not None:
            return differences(made, asked)
        try:
            width, height = picture_size(job.source)
        except (OSError, SyntaxError, ValueError):
            return ""  # without overwriting, nobody needs this source
        return other_size(job.target, (width * factor, height * factor))

    report = {"command": "upscale", "model": backbone.spec.name, "scale": factor, "parameters": backbone.spec.parameters}
    report |= {"warning": warning} if warning else {}
    raise typer.Exit(_do(plan, work, what_is_there, overwrite, quiet, json_file, report))


def degrade(
    source: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", parser=existing_name, help="A clean picture, or a folder of them.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="A folder; for a single picture also a file name that ends in .png. A name that ends in / is a folder.",
        ),
    ],
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="realesrgan, strsr, aesop_realworld, asasr, dp2o, bicubic or mild.")
    ] = "realesrgan",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="The N-th file of a folder (sorted by path, from 0) gets seed + N.")
    ] = 0,
    scale: Annotated[float, typer.Option("--scale", metavar="S", help="Shrinking factor, any number from 1 on.")] = 4,
    jpeg: Annotated[str, typer.Option("--jpeg", metavar="NAME", help="codec (libjpeg), differentiable or diffjpeg.")] = "codec",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo results that exist.")] = False,
    quiet: Quiet = False,
    json_file: JsonFile = None,
) -> None:
    """Make low-quality inputs from clean pictures with a published degradation.

    Results are PNG files under the names of their sources; beside each, a JSON file holds the parameters that were drawn.
    Results that exist are skipped, and one that was made with another preset, seed, scale or form of JPEG is named.
    """
    check_source(source)
    import torch

    from ..core.batch import Job, check_writable, plan_jobs
    from ..core.degradation import degrade as degrade_images
    from ..core.degradation import find_config
    from ..core.image_files import read_image, write_image
    from ..core.images import to_rgb

    config = find_config(preset)
    plan = plan_jobs(source, out, suffix=".png")
    if plan[0].target.suffix.lower() != ".png":
        raise ValueError(
            f"--out: expected a name ending in .png, got {plan[0].target}; another format could change the pixels once more"
        )
    seeds = {job: seed + index for index, job in enumerate(plan)}
    first_and_last = [seeds[plan[0]], seeds[plan[-1]]]
    # every option is refused here, before a picture is read or skipped
    degrade_images(torch.zeros(2, 3, 8, 8), config, seeds=first_and_last, scale=scale, jpeg=jpeg)  # pyright: ignore[reportArgumentType]
    check_writable(plan[0].target.parent)
    check_reports(json_file)

    def work(job: Job, on_tile: Callable[[int, int], None], notify: Callable[[str], None]) -> Mapping[str, Any]:
        del on_tile, notify
        gt = to_rgb(read_image(job.source).pixels)
        result = degrade_images(gt, config, seeds=[seeds[job]], scale=scale, jpeg=jpeg)  # pyright: ignore[reportArgumentType]  # checked there
        write_text(job.target.with_suffix(".json"), json.dumps(result.params[0] | {"jpeg": jpeg}, indent=2) + "\n")
        write_image(job.target, result.lq)
        return {"seed": seeds[job], "size": [result.lq.shape[-1], result.lq.shape[-2]]}

    def what_is_there(job: Job) -> str:
        try:
            made = json.loads(job.target.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "without a JSON file that says how it was made"
        made = made if isinstance(made, dict) else {}
        asked = {"preset": config.name, "seed": seeds[job], "scale": float(scale), "jpeg": jpeg}
        return differences({**made, "preset": made.get("config")}, asked)

    report = {"command": "degrade", "preset": config.name, "scale": scale, "seed": seed}
    raise typer.Exit(_do(plan, work, what_is_there, overwrite, quiet, json_file, report))


def _do(
    plan: list[Any],
    work: Callable[..., Mapping[str, Any]],
    what_is_there: Callable[[Any], str],
    overwrite: bool,
    quiet: bool,
    json_file: Path | None,
    report: dict[str, Any],
) -> int:
    """Run the jobs under one progress bar, report failures at the end and return the exit code.

    Args:
        plan: the jobs.
        work: see `core.batch.run_jobs`; it also gets on_tile and notify.
        what_is_there: says of a job whose result exists what is not as asked for, or unknown; empty where all is as asked.
        overwrite: redo results that exist.
        quiet: say nothing but errors.
        json_file: where the report goes.
        report: its first entries.
    """
    from ..core.batch import JobResult, run_jobs

    results: list[JobResult] = []
    others: dict[Any, str] = {}

    def entry(result: JobResult) -> dict[str, Any]:
        return result.to_dict() | ({"note": others[result.job]} if result.job in others else {})

    def finish() -> dict[str, int]:
        counts = {status: sum(result.status == status for result in results) for status in ("done", "skipped", "failed")}
        write_json(
            json_file, report | counts | {"complete": len(results) == len(plan), "files": [entry(result) for result in results]}
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
                    other = what_is_there(result.job)
                    if other:
                        others[result.job] = other
                    bar.line(f"{result.job.target} exists, {f'{other}; ' if other else ''}skipped")
    except BaseException as stop:  # Ctrl-C or a full disk: the report still says what is finished
        finish()
        if isinstance(stop, KeyboardInterrupt):
            say("stopped; finished results are kept", quiet)
        raise
    counts = finish()
    for result in results:
        if result.status == "failed":
            complain(result.error if str(result.job.source) in result.error else f"{result.job.source}: {result.error}")
    if len(plan) > 1 or counts["skipped"]:
        hint = "; --overwrite redoes them" if counts["skipped"] else ""
        skipped = f"{counts['skipped']} skipped" + (f" ({len(others)} of them not known to be as asked for)" if others else "")
        say(f"{counts['done']} done, {skipped}, {counts['failed']} failed{hint}", quiet)
    return WRONG if counts["failed"] else OK


def demo(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="Your own picture; default: a CC0 photograph of a cat.", show_default=False),
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results.")] = "outputs/demo",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="May be repeated; default: every bundled model.", show_default=False),
    ] = None,
    tile_px: TileOption = 0,
    device: DeviceOption = "auto",
    quiet: Quiet = False,
) -> None:
    """Restore one photograph, four times larger, with the bundled models: results, a side-by-side picture and a JSON report."""
    if image is not None:
        check_source(image)
    from .demo import run_demo

    run_demo(image, as_folder(out), model or [], tile_px, choose_device(device), quiet)
