"""Work of the even split beside the snapped scheme of the released StrSR code, and what tiling itself costs.

python benchmarks/tiling.py [--side 1024] [--tile-px 416] [--rounds 5] [--threads 2] [--device cpu] [--json FILE]

First table: pixel factor, the pixels of all tiles over those of the image, for tiles up to 1152 (even) and of 1024 (snapped, as
released), overlap 64. Second: seconds for a small convolution net on a whole image and in tiles. The overhead beyond the pixel
factor is what cutting and blending cost; for a real model, many times slower per pixel, it vanishes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignsr.core.images import pad_to_multiple
from alignsr.core.tiling import blend, plan, plan_snapped

SIZES = ((2048, 2048), (1360, 2048), (2160, 3840), (4096, 4096))
LIMITS = (1.064, 1.092, 1.089, 1.096)
OVERLAP_PX = 64
MULTIPLE = 16


def pixel_factors() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (height, width), limit in zip(SIZES, LIMITS, strict=True):
        even, snapped = plan(height, width, 1152, OVERLAP_PX, MULTIPLE), plan_snapped(height, width, 1024, OVERLAP_PX)
        rows.append(
            {
                "size": f"{height}x{width}",
                "even_tiles": len(even.starts),
                "even_tile_size": list(even.tile_size),
                "even_pixel_factor": round(even.pixel_factor, 4),
                "limit": limit,
                "snapped_tiles": len(snapped.starts),
                "snapped_pixel_factor": round(snapped.pixel_factor, 4),
            }
        )
    return rows


def seconds(run: Callable[[], Tensor], device: str) -> tuple[float, float]:
    """(wall-clock, processor) seconds; the second hardly depends on what else the machine does."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


@torch.inference_mode()
def overhead(side: int, tile_px: int, rounds: int, device: str) -> dict[str, Any]:
    """Median seconds whole and tiled, measured in turn so that other work on the machine hits both."""
    torch.manual_seed(0)
    middle = (nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *middle, nn.Conv2d(32, 3, 3, padding=1)).to(device).eval()
    image, _ = pad_to_multiple(torch.rand(1, 3, side, side, device=device), MULTIPLE)
    tiles = plan(*image.shape[-2:], tile_px, OVERLAP_PX, MULTIPLE)
    runs: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: net(image),
        "tiled": lambda: blend(lambda x, _: net(x), image, tiles),
        "blend_only": lambda: blend(lambda x, _: x, image, tiles),
    }
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    medians = {name: statistics.median(wall for wall, _ in values) for name, values in times.items()}
    processor = {name: statistics.median(seconds for _, seconds in values) for name, values in times.items()}
    return {
        "side": side,
        "tile_size": list(tiles.tile_size),
        "tiles": len(tiles.starts),
        "pixel_factor": round(tiles.pixel_factor, 4),
        "device": device,
        "threads": torch.get_num_threads(),
        **{f"{name}_seconds": round(value, 5) for name, value in medians.items()},
        "tiled_over_whole": round(medians["tiled"] / medians["whole"], 4),
        "tiled_over_whole_processor": round(processor["tiled"] / max(processor["whole"], 1e-9), 4),
        "blend_megapixels_per_second": round(side * side / 1e6 / medians["blend_only"], 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=1024, help="side of the measured image in pixels")
    parser.add_argument("--tile-px", type=int, default=416, help="largest tile of the measurement in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    factors = pixel_factors()
    print(f"{'output':>10} {'even':>20} {'limit':>6} {'snapped':>16}")
    for row in factors:
        even = f"{row['even_tiles']} tiles {row['even_pixel_factor']:.4f}"
        print(f"{row['size']:>10} {even:>20} {row['limit']:>6} {row['snapped_tiles']:>3} tiles {row['snapped_pixel_factor']:.3f}")
    cost = overhead(options.side, options.tile_px, options.rounds, options.device)
    print(
        f"{cost['side']}x{cost['side']} in {cost['tiles']} tiles of {cost['tile_size']}, factor {cost['pixel_factor']:.3f}: "
        f"whole {cost['whole_seconds']:.3f} s, tiled {cost['tiled_seconds']:.3f} s, "
        f"{cost['tiled_over_whole']:.3f}x ({cost['tiled_over_whole_processor']:.3f}x in processor time); "
        f"cut and blend alone {cost['blend_only_seconds']:.3f} s ({cost['blend_megapixels_per_second']:.1f} MP/s)"
    )
    if options.json:
        options.json.write_text(json.dumps({"pixel_factors": factors, "overhead": cost}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
