"""Evaluate Folders: methods as folders of pictures, scored by a paper's protocol, beside what papers print."""

import hashlib
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.evaluate import evaluate_methods, pairs_from_folders
from ..core.evaluation_pictures import plane_picture, table_picture
from ..core.image_files import list_images
from ..core.metrics.comparison import Comparison
from ..core.metrics.protocols import choose, preset
from ..core.metrics.published import published_sets
from .autoencoder import AUTOENCODER, LoadedAutoEncoder
from .common import on_device, to_image
from .folder import find_folder, find_method_folders
from .host import get_host

DEFAULT_METRICS = "psnr_y, ssim_y, lr_psnr, lsd"
NONE = "none"
AUTOENCODER_BYTES = 2**31  # what AE(image) may need on the device


def _optional_folder(name: str, what: str) -> Path | None:
    return find_folder(name, what) if name.strip() else None


class EvaluateFolders:
    """Node AlignSREvaluateFolders."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Scores folders of results, one per method, against a folder of ground truth, as the papers do: 8 bit, border left out, "
        "luma. Prints published numbers of the same set beside them, marked as published, and draws the methods in the "
        "perception-distortion plane."
    )
    FUNCTION = "evaluate"
    RETURN_TYPES = ("STRING", "STRING", "STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("scores", "csv", "table", "table_image", "plane")
    OUTPUT_TOOLTIPS = (
        "Everything as JSON: every image of every method, means, published numbers, what is missing. For Save Report.",
        "The same as CSV text, a line per method and image.",
        "The table of means as text; connect Preview as Text to see it.",
        "The table as a picture; the best measured score of each column is marked.",
        "PSNR against LPIPS, or the first perceptual metric that has scores; without both, the table again.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "sr": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Folders of results, one per line: a path, or a folder inside the input folder; "
                        "NAME = folder gives the method a name.",
                    },
                ),
                "metrics": (
                    "STRING",
                    {
                        "default": DEFAULT_METRICS,
                        "tooltip": "Names separated by commas, or a protocol: aesop, asasr, dp2o, strsr (all of a paper's), "
                        "aesop-real, asasr-real, strsr-real (without ground truth). Empty: what the paper measures on the set "
                        "in published. Metrics whose weights are not on disk are listed as missing; nothing is downloaded.",
                    },
                ),
                "scale": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 16,
                        "tooltip": "The upscaling factor: the border that PSNR, SSIM and AE-PSNR leave out, and that of LR-PSNR.",
                    },
                ),
                "published": (
                    [NONE, *published_sets(is_measured=True)],
                    {"default": NONE, "tooltip": "Show a paper's numbers for this test set beside ours, marked as published."},
                ),
            },
            "optional": {
                "gt": (
                    "STRING",
                    {"default": "", "tooltip": "Folder of ground truth with the same names. Empty for real-world pictures."},
                ),
                "lq": (
                    "STRING",
                    {"default": "", "tooltip": "Folder of inputs for LR-PSNR. Empty: the ground truth's MATLAB reduction."},
                ),
                "autoencoder": (AUTOENCODER, {"tooltip": "From AESOP Auto-Encoder: for ae_psnr."}),
                "quarters": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Metrics that see each picture cut in four, such as clipiqa for DRealSR in AESOP's tables.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, sr: str | None, metrics: str | None, scale: int | None, published: str | None,
        gt: str | None = "", lq: str | None = "", autoencoder: Any = None, quarters: str | None = "",
    ) -> str | float:  # fmt: skip
        """Score again when files came, went or changed; always where a folder comes through a link."""
        if sr is None or gt is None or lq is None:
            return math.nan
        folders = [*find_method_folders(sr, "sr").values(), *(find_folder(name) for name in (gt, lq) if name.strip())]
        files = [path for folder in folders for path in list_images(folder)]
        facts = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def evaluate(
        self,
        sr: str,
        metrics: str,
        scale: int,
        published: str,
        gt: str = "",
        lq: str = "",
        autoencoder: LoadedAutoEncoder | None = None,
        quarters: str = "",
    ) -> tuple[str, str, str, Tensor, Tensor]:
        host, is_preset = get_host(), not metrics.strip() and published != NONE
        choice = preset(published) if is_preset else choose(metrics)
        in_quarters = choose(quarters).names if quarters.strip() else choice.quarters
        folders = {"gt": _optional_folder(gt, "gt"), "lq": _optional_folder(lq, "lq")}
        pairs = {name: pairs_from_folders(folder, **folders) for name, folder in find_method_folders(sr, "sr").items()}
        bar, device = host.progress(sum(map(len, pairs.values())), "scoring"), host.device()
        with on_device(autoencoder, device, host, AUTOENCODER_BYTES) if autoencoder else nullcontext():
            tables = evaluate_methods(
                pairs,
                choice.names,
                scale=scale,
                crop=choice.crop,
                remarks=choice.remarks,
                device=device,
                autoencoder=autoencoder.module if autoencoder else None,
                autoencoder_name=Path(autoencoder.source).stem if autoencoder else "",
                in_quarters=in_quarters,
                progress=lambda done, _total, _name: bar.update(done),
            )
        host.soft_empty_cache()
        comparison = Comparison.of(tables, "" if published == NONE else published)
        if not any(table.mean() for table in tables):
            raise ValueError(f"metrics: expected at least one that can run here, got none; {'; '.join(comparison.notes())}")
        return (comparison.to_json(), comparison.to_csv(), comparison.to_text(), *map(to_image, _pictures(comparison)))


def _pictures(comparison: Comparison) -> tuple[list[Any], list[Any]]:
    """Table and plane, the latter only where there is something to put on its axes."""
    table = table_picture(comparison)
    return [table], [plane_picture(comparison) if comparison.points() else table]
