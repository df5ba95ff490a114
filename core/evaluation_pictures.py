"""Pictures of an evaluation: the table of means, and the methods in the perception-distortion plane."""

from collections.abc import Sequence

from PIL import Image

from .metrics import available, spec_of
from .metrics.comparison import Comparison
from .pictures import scatter, table

DISTORTION = "psnr_y"
FALLBACK = "lsd"  # needs no weights


def with_axes(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics and those that the plane needs besides: PSNR, and LSD where no learned metric of single images can run."""
    can_run = [name for name in names if spec_of(name).kind == "learned" and not available(name)]
    return tuple(dict.fromkeys([*names, DISTORTION, *([] if can_run else [FALLBACK])]))


def table_picture(comparison: Comparison) -> Image.Image:
    """The table of means, the best measured scores marked, published rows below a line with their source, notes."""
    header, rows = comparison.cells()
    header = [_arrow(title) for title in header]
    marked = comparison.best()
    ruled = (len(comparison.tables),) if comparison.published else ()
    title = comparison.dataset or "Evaluation"
    return table(header, rows, title=title, notes=comparison.notes(), marked=marked, ruled=ruled)


def _arrow(title: str) -> str:
    return title.replace(" ^", " \u2191") if title.endswith("^") else title[:-1] + "\u2193" if title.endswith(" v") else title


def plane_picture(comparison: Comparison) -> Image.Image:
    """Distortion against perception: PSNR to the right, LPIPS or the first other perceptual metric (else LSD) upwards.

    Raises:
        ValueError: no method has both scores.
    """
    vertical = comparison.perceptual_metric()
    points = comparison.points(DISTORTION, vertical)
    if vertical is None or not points:
        raise ValueError(
            "picture: expected a method with PSNR and a perceptual score, got none; give ground truth and ask for psnr_y and lsd"
        )
    across, up = spec_of(DISTORTION), spec_of(vertical)
    title = f"Distortion and perception{', ' + comparison.dataset if comparison.dataset else ''}"
    if comparison.published and not any(point.is_published for point in points):
        title += f" (nothing published for {up.title})"
    return scatter(
        {point.method: (point.x, point.y) for point in points if not point.is_published},
        published={point.method: (point.x, point.y) for point in points if point.is_published},
        x_label=f"{across.title}, dB",
        y_label=f"{up.title}, dB" if vertical == FALLBACK else up.title,
        better=(across.higher_is_better, up.higher_is_better),
        title=title,
    )
