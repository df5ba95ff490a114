"""Pictures for people: curves, spectra, side-by-sides, tables. Everything returns a PIL image; nothing is written here."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

Points = Sequence[tuple[float, float]]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure without pyplot's global state, and its only axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.add_subplot()


def _to_image(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def curves(series: Mapping[str, Points], *, x_label: str, title: str, y_label: str = "", log_y: bool = False) -> Image.Image:
    """Lines over a common x axis; series on a scale more than 20 times another's get the right-hand axis.

    Args:
        series: name -> (x, y) points, not empty.
        x_label: of the x axis.
        title: above the picture.
        y_label: of the left y axis.
        log_y: logarithmic left axis.

    Returns:
        800x480 RGB picture.
    """
    if not series:
        raise ValueError("series: expected at least one curve, got none; log something first")
    figure, axes = _figure(8, 4.8)
    first = next(iter(series.values()))
    typical = max((abs(y) for _, y in first), default=1.0) or 1.0
    right = None
    for index, (name, points) in enumerate(series.items()):
        size = max((abs(y) for _, y in points), default=1.0) or 1.0
        target = axes
        if size > 20 * typical:
            right = right or axes.twinx()
            target = right
        few = len(points) < 30
        target.plot([x for x, _ in points], [y for _, y in points], label=name, color=f"C{index}", marker="o" if few else "", markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if log_y:
        axes.set_yscale("log")
    lines, labels = axes.get_legend_handles_labels()
    if right is not None:
        more_lines, more_labels = right.get_legend_handles_labels()
        lines, labels = lines + more_lines, labels + [f"{label} (right)" for label in more_labels]
    axes.legend(lines, labels, loc="best", fontsize=8)
    return _to_image(figure)
