"""Folders of pictures in, folders of pictures out: what becomes what, and any kind of picture through a model.

A bad file does not stop the others. Nothing here prints; the command line shows what these functions report.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .backbones.base import AnyBackbone
from .channels import Channels, join_channels, split_channels
from .checks import check_image, check_positive_int
from .diffusion import MultiStepBackbone
from .image_files import SUFFIXES, list_images, read_image, write_image
from .memory import DoesNotFitError, is_out_of_memory, with_oom_retry
from .previews import fit_preview
from .records import Conditioning, Restored
from .restore import fitting_overlap, is_latent, restore, tiles_for
from .sampling import Step, restore_multi_step
from .staged import Conditioner

LARGEST_PICTURE_BYTES = 2**31  # what a picture's own maps may take of a device: that of a result of 4096 x 5400
_PICTURE_MAPS = 8  # float32 maps of three channels that live at once: input, enlarged, padded, blended, and steps between
STOPPING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later file of a job can be written either


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class JobResult:
    """What became of a job.

    Attributes:
        job: the job.
        status: `done`, `skipped` (the result was there already) or `failed`.
        seconds: wall time.
        facts: what the work reported, JSON-able.
        error: one readable line when it failed.
    """

    job: Job
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for reports."""
        plain: dict[str, Any] = {"source": str(self.job.source), "output": str(self.job.target), "status": self.status}
        if self.status == "done":
            plain |= {"seconds": round(self.seconds, 3), **self.facts}
        return plain | ({"error": self.error} if self.error else {})


def plan_jobs(source: str | Path, out: str | Path, suffix: str = "") -> list[Job]:
    """Decide which file becomes which.

    A folder is read with everything below it, and its structure and file names are kept under `out`. A single file goes to `out`
    if that name ends in an image suffix, else into the folder `out` under its own name. A name that ends in a slash, or an
    existing folder, is a folder whatever its suffix. Results of an earlier run that lie inside the source folder are not taken
    for sources.

    Args:
        source: an image file or a folder.
        out: a folder, or a file name for a single picture; a string, where its last slash matters.
        suffix: file type of the results, such as `.png`; empty keeps each file's own. Not applied to a file name in `out`.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no images, two files that would have one result, a result that would overwrite its source or be of an
            unknown type, or a picture's name for the results of a folder.
    """
    source = Path(source)
    named = _names_a_file(out, source)
    out = Path(out)
    if source.is_file() and not named and not suffix and source.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{source}: expected a picture ({', '.join(SUFFIXES)}), got {source.suffix or 'no suffix'}; for a picture of another "
            "type give the result's file name"
        )
    if source.is_file():
        jobs = [Job(source, out if named else out / (source.stem + (suffix or source.suffix)))]
    elif source.is_dir():
        inside = out.resolve()
        keep = inside == source.resolve() or not inside.is_relative_to(source.resolve())
        files = [path for path in list_images(source) if keep or not path.resolve().is_relative_to(inside)]
        if not files:
            raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), found none; check the folder")
        jobs = [Job(path, out / path.relative_to(source).with_suffix(suffix or path.suffix)) for path in files]
    else:
        raise FileNotFoundError(f"{source}: expected an image file or a folder of images, found nothing; check the path")
    seen: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() == job.source.resolve():
            raise ValueError(
                f"{job.target}: expected a result apart from its source, got the same file; choose another output folder"
            )
        if job.target.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{job.target}: expected a result ending in {', '.join(SUFFIXES)}, got {job.target.suffix or 'no suffix'}; "
                "give the result's file name"
            )
        if job.target in seen:
            raise ValueError(
                f"{job.target}: expected one source per result, got {seen[job.target]} and {job.source}; rename one of them"
            )
        seen[job.target] = job.source
    return jobs


def _names_a_file(out: str | Path, source: Path) -> bool:
    """Whether `out` is the name of a picture and not of a folder.

    Raises:
        ValueError: a suffix that is no picture's for a single picture, or a picture's name for a folder's results.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if not suffix or path.is_dir() or str(out).endswith(("/", os.sep)):
        return False
    if source.is_dir():
        if suffix in SUFFIXES:
            raise ValueError(f"out: expected a folder for the results of a folder, got the picture name {out}; give a folder")
        return False
    if suffix not in SUFFIXES:
        raise ValueError(
            f"out: expected a folder or a name ending in {', '.join(SUFFIXES)}, got {out}; end it in / for a folder of that name"
        )
    return True


def check_writable(folder: str | Path) -> None:
    """Make sure that files can be made in `folder` (which need not exist yet), without making anything.

    Raises:
        OSError: a file stands in the way, or the place is read-only; the message names it.
    """
    place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(
            f"{folder}: expected a folder to write into, got {place}, which is a file; choose another output"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{folder}: expected a folder to write into, got {place}, which is not writable; choose another output"
        )


def run_jobs(jobs: Sequence[Job], work: Callable[[Job], Mapping[str, Any]], *, overwrite: bool = False) -> Iterator[JobResult]:
    """Do the jobs one by one and report each; a file that fails does not stop the others.

    Args:
        jobs: what to do.
        work: reads, computes and writes one job (atomically) and returns facts for the report.
        overwrite: redo results that exist.

    Yields:
        One result per job, in order.

    Raises:
        OSError: the disk is full or read-only, so that no other job could succeed; what is finished stays.
    """
    for job in jobs:
        if job.target.exists() and not overwrite:
            yield JobResult(job, "skipped")
            continue
        started = time.perf_counter()
        try:
            facts = work(job)
        except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ArithmeticError) as error:
            if isinstance(error, OSError) and error.errno in STOPPING:
                raise
            yield JobResult(job, "failed", time.perf_counter() - started, error=error_line(error))
        else:
            yield JobResult(job, "done", time.perf_counter() - started, facts)


def error_line(error: BaseException) -> str:
    """One line for people: our own messages as they are, the system's with the file they belong to."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        hints = {
            errno.ENOSPC: "free some space and run it again; finished results are kept",
            errno.EDQUOT: "free some space and run it again; finished results are kept",
            errno.EROFS: "choose another place",
            errno.EACCES: "check its permissions or choose another place",
            errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
            errno.EEXIST: "a file stands where a folder is needed; choose another place",
        }
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {hints.get(error.errno, 'check the path')}"
    return text or type(error).__name__


def restore_picture(
    backbone: AnyBackbone,
    pixels: Tensor,
    *,
    scale: int = 4,
    tile_px: int = 0,
    overlap_px: int = -1,
    batch_size: int = 1,
    sigma: float | None = None,
    strength: float = 1.0,
    color_fix: str = "none",
    conditioning: Conditioning | Conditioner | None = None,
    mode: str = "best",
    seed: int = 0,
    device: str | torch.device | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
    notify: Callable[[str], None],
) -> Restored:
    """Upscale pictures of any kind with tiles that fit into memory.

    Grey goes through the model as RGB and comes back as BT.601 luma; alpha is resized by antialiased bicubic and put back. The
    tile is tried as given; each smaller one gets the overlap that fits it.

    Args:
        backbone: from `load_backbone`.
        pixels: [B, C, h, w] in [0, 1], C = 1, 3 or 4.
        scale: upscaling factor.
        tile_px: largest tile on the model's input grid; 0: the backbone's own.
        overlap_px: overlap of tiles; -1: the backbone's own.
        batch_size: see `restore`.
        sigma: see `restore`.
        strength: see `restore`.
        color_fix: see `restore`.
        conditioning: see `restore`.
        mode: see `restore`.
        seed: of what parity mode draws; every try and every picture of the batch starts from it.
        device: where pictures are enlarged, cut and put together, usually the backbone's: on a processor that takes longer than
            a large GPU needs for the model. None, very large pictures and new tries after memory ran out: where they lie.
        on_tile: see `restore`.
        is_oom: see `with_oom_retry`.
        notify: told, in one line, when memory ran out and what is tried: a smaller tile, or the pictures in main memory.

    Returns:
        `Restored` with the channels of `pixels`; `tile_px` in its facts is the tile that fitted.

    Raises:
        DoesNotFitError: no memory for weights, or while conditioning; no smaller tile is tried.
        MemoryError: the smallest tile did not fit either.
    """
    check_image(pixels, "pixels")
    check_positive_int(scale, "scale", high=16)
    parts, first = split_channels(pixels), largest_tile(backbone, pixels, scale, tile_px, mode)
    home = parts.rgb.device
    place = home if device is None or picture_bytes(pixels, scale) > LARGEST_PICTURE_BYTES else torch.device(device)

    def run(tile: int, where: torch.device) -> Restored:
        is_retry = tile < first
        with torch.no_grad():
            return restore(
                backbone,
                parts.rgb.to(where),
                scale=scale,
                tile_px=tile if is_retry else tile_px,
                overlap_px=min(overlap_px, fitting_overlap(backbone, tile)) if is_retry else overlap_px,
                batch_size=batch_size,
                sigma=sigma,
                strength=strength,
                color_fix=color_fix,
                conditioning=conditioning,
                mode=mode,
                generator=torch.Generator().manual_seed(seed) if mode == "parity" and is_latent(backbone) else None,
                on_tile=on_tile,
            )

    done = _fitting(run, first, place, home, is_oom, notify)
    sr, lq_up = done.sr.to(home), done.lq_up.to(home)
    return Restored(join_channels(sr, parts), join_channels(lq_up, parts), done.info)


def sample_picture(
    backbone: MultiStepBackbone,
    pixels: Tensor,
    *,
    scale: int = 4,
    tile_px: int = 0,
    overlap_px: int = -1,
    device: str | torch.device | None = None,
    on_tile: Callable[[int, int], None] | None = None,
    on_preview: Callable[[Tensor], None] | None = None,
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
    notify: Callable[[str], None],
    **options: Any,
) -> Restored:
    """Upscale pictures of any kind by sampling from noise, with tiles that fit into memory; see `restore_picture`.

    Args:
        backbone: sampled in many steps.
        pixels: [B, C, h, w] in [0, 1], C = 1, 3 or 4.
        scale: upscaling factor.
        tile_px: largest tile; 0: the backbone's own.
        overlap_px: overlap of tiles; -1: the backbone's own.
        device: see `restore_picture`.
        on_tile: see `restore_multi_step`.
        on_preview: called after each step with what the pictures look like, [B, 3, h, w] in [0, 1] (`fit_preview`).
        is_oom: see `with_oom_retry`.
        notify: told, in one line, when memory ran out and what is tried: a smaller tile, or the pictures in main memory.
        options: further arguments of `restore_multi_step`.

    Returns:
        `Restored` with the channels of `pixels`; `tile_px` in its facts is the tile that fitted.

    Raises:
        DoesNotFitError: no memory for weights, or while conditioning; no smaller tile is tried.
        MemoryError: the smallest tile did not fit either.
    """
    check_image(pixels, "pixels")
    check_positive_int(scale, "scale", high=16)
    parts, spec = split_channels(pixels), backbone.spec
    side = max(pixels.shape[-2:]) * scale
    first, home = min(tile_px or spec.tile_px, side + -side % spec.size_multiple), parts.rgb.device
    place = home if device is None or picture_bytes(pixels, scale) > LARGEST_PICTURE_BYTES else torch.device(device)
    show = None if on_preview is None else fit_preview(backbone, parts.rgb)

    def step(now: Step) -> None:
        if show is not None and on_preview is not None:
            on_preview(show(now.clean))

    def run(tile: int, where: torch.device) -> Restored:
        is_retry = tile < first
        with torch.no_grad():
            return restore_multi_step(
                backbone,
                parts.rgb.to(where),
                scale=scale,
                tile_px=tile if is_retry else tile_px,
                overlap_px=min(overlap_px, fitting_overlap(backbone, tile)) if is_retry else overlap_px,
                on_tile=on_tile,
                on_step=step,
                **options,
            )

    done = _fitting(run, first, place, home, is_oom, notify)
    sr, lq_up = done.sr.to(home), done.lq_up.to(home)
    return replace(done, sr=join_channels(sr, _many(parts, sr)), lq_up=join_channels(lq_up, _many(parts, sr)))


def _fitting(
    run: Callable[[int, torch.device], Restored],
    first: int,
    place: torch.device,
    home: torch.device,
    is_oom: Callable[[BaseException], bool],
    notify: Callable[[str], None],
) -> Restored:
    """Smaller tiles, and the pictures at home, when memory runs out; the latter alone where weights do not fit beside them."""
    where = place

    def run_there(tile: int) -> Restored:
        nonlocal where
        where = place if tile == first else home
        return run(tile, where)

    try:
        return with_oom_retry(run_there, first, is_oom=is_oom, notify=notify)
    except DoesNotFitError as error:
        if where == home:
            raise
        what = error.what
    notify(f"out of memory for {what}; trying again with the pictures in main memory")
    return with_oom_retry(lambda tile: run(tile, home), first, is_oom=is_oom, notify=notify)


def _many(parts: Channels, sr: Tensor) -> Channels:
    """One picture may have become several results."""
    alpha = None if parts.alpha is None else parts.alpha.expand(sr.shape[0], -1, -1, -1)
    return replace(parts, alpha=alpha)


def picture_bytes(pixels: Tensor, scale: int) -> int:
    """Memory that enlarging pictures needs beside the model: a few maps of the result's size."""
    batch, _, height, width = pixels.shape
    return _PICTURE_MAPS * batch * 3 * 4 * height * width * scale**2


def largest_tile(backbone: AnyBackbone, pixels: Tensor, scale: int, tile_px: int = 0, mode: str = "best") -> int:
    """Side of the largest tile that `restore` will run: a picture that is smaller than `tile_px` is one tile of its own size."""
    side = max(pixels.shape[-2:]) * (1 if backbone.spec.kind == "network" else scale)
    return min(tiles_for(backbone, tile_px, mode=mode)[0], side + -side % backbone.spec.size_multiple)


def upscale_file(job: Job, restore_pixels: Callable[[Tensor], Restored]) -> dict[str, Any]:
    """Read, upscale and write one file; EXIF, ICC profile, alpha and bit depth stay as far as the target's type can hold them."""
    picture = read_image(job.source)
    restored = restore_pixels(picture.pixels)
    write_image(job.target, restored.sr, like=picture)
    return {"input_size": [picture.pixels.shape[-1], picture.pixels.shape[-2]], **restored.info}
