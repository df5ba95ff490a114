"""Pictures that compare: side by side with zoomed crops, where they differ, and how their spectra do."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.checks import check_same_shape
from ..core.images import bchw_to_bhwc
from ..core.pictures import difference, side_by_side
from ..core.resize import bicubic
from ..core.spectral_view import GRID_SIDE_PX, LEAST_SIDE_PX, REFERENCE, SpectralComparison
from .common import match_batch, take, to_image
from .host import get_host


def _centres(text: str, width: int, height: int) -> list[tuple[int, int]]:
    """`120,80; 300,40` as [(x, y), ...]."""
    centres: list[tuple[int, int]] = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        numbers = part.replace(",", " ").split()
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            raise ValueError(
                f"crop_centers: expected pairs x,y separated by semicolons, got {part!r}; write for example 120,80; 300,40"
            )
        x, y = int(numbers[0]), int(numbers[1])
        if x >= width or y >= height:
            raise ValueError(f"crop_centers: expected places inside {width}x{height}, got {x},{y}; choose another place")
        centres.append((x, y))
    return centres


TITLES = ("input (bicubic)", "restored", "ground truth")
MORE = {
    "result_2": "second",
    "result_3": "third",
    "result_4": "fourth",
    "result_5": "fifth",
}  # inputs for results of other methods


class Compare:
    """Node AlignSRCompare."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Puts input, up to five results and (if connected) ground truth side by side with zoomed crops, and shows where they "
        "differ."
    )
    FUNCTION = "compare"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("comparison", "difference", "results", "titles")
    OUTPUT_TOOLTIPS = (
        "One sheet per picture: labelled panels, framed crops enlarged pixel by pixel.",
        "Heat map of the mean absolute difference: result against reference, or against the enlarged input without one.",
        "All results as one batch, for IQA Reward.",
        "Their titles, one per line, for IQA Reward's names.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "result": ("IMAGE", {"tooltip": "The restored pictures."}),
                "input": ("IMAGE", {"tooltip": "What they were made from; enlarged by bicubic interpolation for showing."}),
                "num_crops": (
                    "INT",
                    {"default": 2, "min": 0, "max": 4, "tooltip": "Zoomed places, chosen where there is most detail. 0: none."},
                ),
                "crop_px": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1024, "tooltip": "Side of a crop in pixels of the result. 0: about a sixth."},
                ),
                "panel_px": ("INT", {"default": 400, "min": 100, "max": 2048, "tooltip": "Width of one panel in the sheet."}),
            },
            "optional": {
                "reference": ("IMAGE", {"tooltip": "Ground truth of the result's size. One for all, or one each."}),
                "labels": (
                    "STRING",
                    {
                        "default": ", ".join(TITLES),
                        "tooltip": "Titles of the panels, separated by commas: input, results, ground truth.",
                    },
                ),
                "crop_centers": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Where to zoom, in pixels of the result: x,y; x,y. Empty: chosen automatically.",
                    },
                ),
                **{name: ("IMAGE", {"tooltip": f"Result of a {nth} method, beside the first."}) for name, nth in MORE.items()},
            },
        }

    def compare(
        self,
        result: Tensor,
        input: Tensor,  # the socket's name
        num_crops: int = 2,
        crop_px: int = 0,
        panel_px: int = 400,
        reference: Tensor | None = None,
        labels: str = ", ".join(TITLES),
        crop_centers: str = "",
        result_2: Tensor | None = None,
        result_3: Tensor | None = None,
        result_4: Tensor | None = None,
        result_5: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        sr = take(result, "result").rgb
        others = zip(MORE, (result_2, result_3, result_4, result_5), strict=True)
        results = [sr, *(_like(sr, image, name) for name, image in others if image is not None)]
        before = bicubic(match_batch(take(input, "input").rgb, sr.shape[0], "input"), (sr.shape[-2], sr.shape[-1])).clamp(0, 1)
        panels = [before, *results] if reference is None else [before, *results, _like(sr, reference, "reference")]
        titles = _titles(labels, len(panels), reference is not None)
        crops = _centres(crop_centers, sr.shape[-1], sr.shape[-2]) or num_crops
        bar = get_host().progress(sr.shape[0], "comparing")
        sheets: list[Image.Image] = []
        heats: list[Image.Image] = []
        other, name = (panels[-1], titles[-1]) if reference is not None else (before, titles[0])
        for index in range(sr.shape[0]):
            views = {title: panel[index : index + 1] for title, panel in zip(titles, panels, strict=True)}
            sheets.append(side_by_side(views, crops=crops, crop_px=crop_px, panel_px=panel_px))
            heats.append(difference(sr[index : index + 1], other[index : index + 1], title=f"{titles[1]} - {name}"))
            bar.update(index + 1)
        names = "\n".join(titles[1 : 1 + len(results)])
        return to_image(sheets), to_image(heats), bchw_to_bhwc(torch.cat(results)), names


def _like(sr: Tensor, image: Tensor, name: str, first: str = "result") -> Tensor:
    """Another picture of the same scenes as RGB, of the first one's size."""
    other = match_batch(take(image, name).rgb, sr.shape[0], name)
    if other.shape != sr.shape:
        sizes = "x".join(map(str, sr.shape[:1:-1])), "x".join(map(str, other.shape[:1:-1]))
        raise ValueError(f"{name}: expected the size of the {first} {sizes[0]}, got {sizes[1]}; check scale and cropping")
    return other


def _titles(labels: str, count: int, has_reference: bool) -> list[str]:
    """One title per panel: input, results, ground truth."""
    titles = [title.strip() for title in labels.split(",")]
    if labels == ", ".join(TITLES):  # nobody gave any: number the results
        numbered = [*TITLES[:2], *(f"{TITLES[1]} {k}" for k in range(2, 2 + len(MORE)))]
        titles = numbered[: count - has_reference] + [TITLES[2]] * has_reference
    titles = titles[:count]
    if has_reference and len(titles) == count - 1:
        titles.append(TITLES[2])  # labels for the others, and the ground truth was connected later
    if len(set(titles)) != count:
        raise ValueError(f"labels: expected {count} different titles, got {labels!r}; separate them with commas")
    return titles


class Spectrum:
    """Node AlignSRSpectrum."""

    CATEGORY = "AlignSR/evaluation"
    DESCRIPTION = (
        "Draws the energy of pictures by spatial frequency against their reference, for up to five methods, and measures how far "
        "apart the spectra are, overall and by band."
    )
    FUNCTION = "analyse"
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("spectrum", "log_spectral_distance", "table", "table_image")
    OUTPUT_TOOLTIPS = (
        "The curves as a picture, averaged over the batch; the legend has each distance to the reference.",
        "Root mean square difference of the log spectra in dB, averaged over the batch; 0 for equal spectra, lower is better. "
        "Of image, the first method.",
        "Every method's distance, energy by band less the reference's, and grid score; connect Preview as Text to see it.",
        "The table as a picture; the least distance and the energies nearest the reference's are marked.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The restored pictures; sides of at least 4 px."}),
                "reference": ("IMAGE", {"tooltip": "Ground truth of the same size; one for all, or one each."}),
            },
            "optional": {
                "input": (
                    "IMAGE",
                    {"tooltip": "What they were made from; enlarged by bicubic interpolation and drawn as a further curve."},
                ),
                "labels": (
                    "STRING",
                    {
                        "default": TITLES[1],
                        "tooltip": "Names of the methods, separated by commas or one per line, as Compare's titles has them.",
                    },
                ),
                **{
                    name.replace("result", "image"): ("IMAGE", {"tooltip": f"Result of a {nth} method, beside the first."})
                    for name, nth in MORE.items()
                },
            },
        }

    def analyse(
        self,
        image: Tensor,
        reference: Tensor,
        input: Tensor | None = None,
        labels: str = TITLES[1],
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        image_4: Tensor | None = None,
        image_5: Tensor | None = None,
    ) -> tuple[Tensor, float, str, Tensor]:
        sr = take(image, "image").rgb
        gt = match_batch(take(reference, "reference").rgb, sr.shape[0], "reference")
        check_same_shape(gt, sr, "reference", "image")
        if min(sr.shape[-2:]) < LEAST_SIDE_PX:
            size = "x".join(map(str, sr.shape[:1:-1]))
            raise ValueError(f"image: expected sides of at least {LEAST_SIDE_PX} px, got {size}; use a larger picture")
        others = {"image_2": image_2, "image_3": image_3, "image_4": image_4, "image_5": image_5}
        results = [sr, *(_like(sr, other, name, "image") for name, other in others.items() if other is not None)]
        shown = dict(zip(_names(labels, len(results)), results, strict=True))
        if input is not None:
            before = match_batch(take(input, "input").rgb, sr.shape[0], "input")
            shown[TITLES[0]] = bicubic(before, (sr.shape[-2], sr.shape[-1])).clamp(0, 1)
        seen, bar = SpectralComparison(), get_host().progress(len(shown), "spectra")
        for number, (name, pixels) in enumerate(shown.items(), start=1):
            seen.add(name, pixels, gt)
            bar.update(number)
        found = seen.methods
        first = next(iter(shown))
        title = "Radial power spectra"
        if len(results) == 1 and min(sr.shape[-2:]) >= GRID_SIDE_PX:
            title += f"; grid score {found[first].grid:.2f}, reference {found[REFERENCE].grid:.2f}"
        sheets = [to_image([picture]) for picture in (seen.picture(title), seen.table_picture())]
        return sheets[0], found[first].distance, seen.to_text(), sheets[1]


def _names(labels: str, count: int) -> list[str]:
    """One name per method; numbered if nobody gave any."""
    names = [name.strip() for name in labels.replace("\n", ",").split(",") if name.strip()]
    if labels == TITLES[1]:
        names = [TITLES[1], *(f"{TITLES[1]} {number}" for number in range(2, count + 1))]
    if len(names) != count or len({*names, REFERENCE, TITLES[0]}) != count + 2:
        raise ValueError(f"labels: expected {count} different names, got {labels!r}; separate them with commas")
    return names
