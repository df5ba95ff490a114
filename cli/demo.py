"""`alignsr demo`: one real photograph through the bundled models of a single pass, with a side-by-side picture and a report."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .large import open_whole
from .terminal import Progress, check_tiles, find_weights, say, write_json

SCALE = 4
CAT_CROPS = ((690, 450), (1049, 964))  # an eye, and nose with whiskers, in pixels of the result
CROP_PX = 192
MAX_SIDE_PX = 768  # of a larger picture the centre is taken: the demo should end within a minute on two cores


def photograph(path: Path | None) -> tuple[Any, str, str]:
    """(picture, name, where it comes from)."""
    from ..core.image_files import ImageFile, read_image

    if path is not None:
        return read_image(path), path.stem, str(path)
    import torch
    from skimage import data

    pixels = torch.from_numpy(data.chelsea().copy()).movedim(-1, 0)[None].float() / 255
    return ImageFile(pixels, 8), "chelsea", "skimage.data.chelsea (photograph by Stefan van der Walt, CC0)"


def _centre(picture: Any) -> tuple[Any, bool]:
    """The middle of a large picture, and whether anything was cut off."""
    from dataclasses import replace

    height, width = picture.pixels.shape[-2:]
    top, left = max(0, height - MAX_SIDE_PX) // 2, max(0, width - MAX_SIDE_PX) // 2
    pixels = picture.pixels[..., top : top + MAX_SIDE_PX, left : left + MAX_SIDE_PX]
    return replace(picture, pixels=pixels), pixels.shape != picture.pixels.shape


def run_demo(image: Path | None, out: Path, names: Sequence[str], tile_px: int, device: Any, quiet: bool) -> None:
    """Restore, compare and report; raises what the library raises."""
    import torch

    from ..core.batch import check_writable, restore_picture
    from ..core.image_files import write_image
    from ..core.images import to_rgb
    from ..core.metrics import score
    from ..core.pictures import side_by_side
    from ..core.resize import bicubic
    from ..core.restore import move
    from ..core.weights import MissingModelError, single_pass_models, write_atomic

    check_writable(out)
    picture, name, origin = photograph(image)
    picture, cropped = _centre(picture)
    if cropped:
        say(f"large picture: the demo takes its centre ({MAX_SIDE_PX} px); `alignsr upscale` takes all of it", quiet)
    height, width = picture.pixels.shape[-2:]
    chosen = list(names) or single_pass_models()
    if not chosen:
        raise MissingModelError("model: expected bundled models in core/assets, found none; name one with --model")
    files = [find_weights(model) for model in chosen]  # a wrong name is told before the first model works
    lq = to_rgb(picture.pixels)
    panels = {f"bicubic x{SCALE}": bicubic(lq, (height * SCALE, width * SCALE)).clamp(0, 1)}
    entries: list[dict[str, Any]] = []
    with Progress(len(chosen), quiet) as bar:
        for index, (model, file) in enumerate(zip(chosen, files, strict=True)):
            bar.update(index, model)
            backbone = move(open_whole(file), device)
            check_tiles(tile_px, -1, backbone.spec, quiet or index > 0)
            started = time.perf_counter()
            restored = restore_picture(
                backbone,
                picture.pixels,
                scale=SCALE,
                tile_px=tile_px,
                on_tile=lambda done, total, index=index, model=model: bar.update(index + done / total, model),
                notify=bar.line,
            )
            seconds, sr = time.perf_counter() - started, restored.sr
            target = write_image(out / f"{name}_x{SCALE}_{backbone.spec.name}.png", sr, like=picture)
            panels[backbone.spec.name] = to_rgb(sr)
            entries.append(
                {
                    "model": backbone.spec.name,
                    "parameters": backbone.spec.parameters,
                    "licence": backbone.spec.licence,
                    "result": target.name,
                    "seconds": round(seconds, 3),
                    "megapixels_per_second": round(sr.shape[-1] * sr.shape[-2] / 1e6 / seconds, 4),
                    # nothing is left of a side of 1 or 2 pixels once the border is cut off
                    "lr_psnr": round(float(score("lr_psnr", to_rgb(sr), lq=lq, scale=SCALE)[0]), 3)
                    if min(width, height) > 2
                    else None,
                    **restored.info,
                }
            )
            bar.line(f"{backbone.spec.name}: {width}x{height} -> {sr.shape[-1]}x{sr.shape[-2]} in {seconds:.1f} s")
    comparison = out / f"{name}_side_by_side.png"
    places: Any = 2 if image is not None else CAT_CROPS
    zoom_px = min(CROP_PX, height * SCALE, width * SCALE)
    write_atomic(
        comparison,
        side_by_side(
            panels, crops=places, crop_px=zoom_px, title=f"{name}, {width}x{height} -> {width * SCALE}x{height * SCALE}"
        ).save,
    )
    report = {
        "image": origin,
        "only_the_centre": cropped,
        "input_size": [width, height],
        "output_size": [width * SCALE, height * SCALE],
        "scale": SCALE,
        "side_by_side": comparison.name,
        "models": entries,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    write_json(out / "report.json", report)
    say(f"results, {comparison.name} and report.json are in {out}", quiet)
