"""Plots over an axis: loss curves and radial spectra, drawn by matplotlib without its global state."""

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
    """Lines over a common x axis; series on a scale more than 20 times the first's get the right-hand axis.

    Series of more than 60 points are drawn pale with their moving mean on top. Equal series share one line and one label.

    Args:
        series: name -> (x, y) points, not empty.
        x_label: of the x axis.
        title: above the picture.
        y_label: of the left y axis.
        log_y: logarithmic left axis.

    Returns:
        800x480 RGB picture.

    Raises:
        ValueError: no series.
    """
    if not series:
        raise ValueError("series: expected at least one curve, got none; log something first")
    figure, axes = _figure(8, 4.8)
    merged: dict[str, Points] = {}
    for name, points in series.items():
        twin = next((other for other, known in merged.items() if list(known) == list(points)), None)
        if twin is None:
            merged[name] = points
        else:
            merged = {f"{other}, {name}" if other == twin else other: known for other, known in merged.items()}
    typical = _largest(next(iter(merged.values())))
    right = None
    for index, (name, points) in enumerate(merged.items()):
        target = axes
        if _largest(points) > 20 * typical:
            right = right or axes.twinx()
            target, name = right, f"{name} (right axis)"
        xs, ys = [x for x, _ in points], [y for _, y in points]
        look: dict[str, Any] = {"color": f"C{index}", "marker": "o" if len(points) < 30 else "", "markersize": 3}
        if len(points) > 60:
            target.plot(xs, ys, alpha=0.3, linewidth=0.8, **look)
            ys = _moving_mean(ys, len(ys) // 20)
        target.plot(xs, ys, label=name, **look)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if log_y:
        axes.set_yscale("log")
    for panel in (axes, right):
        if panel is not None and not (log_y and panel is axes):
            panel.ticklabel_format(axis="y", useOffset=False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return _to_image(figure)


def _largest(points: Points) -> float:
    return max((abs(y) for _, y in points), default=1.0) or 1.0


def _moving_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean over up to `half` neighbours on each side; at the ends over those that exist."""
    windows = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def spectra(
    series: Mapping[str, Points],
    *,
    distances: Mapping[str, float] | None = None,
    grid_px: Sequence[int] = (8, 16),
    title: str = "",
) -> Image.Image:
    """Radial power spectra over spatial frequency, with lines where a grid of 8 or 16 pixels would put energy.

    Args:
        series: label -> (frequency in cycles per pixel, power in dB) points.
        distances: label -> log-spectral distance to the reference in dB, shown in the legend.
        grid_px: periods whose harmonics k / period get a thin line.
        title: above the picture.

    Returns:
        900x540 RGB picture.
    """
    if not series:
        raise ValueError("series: expected at least one spectrum, got none; connect an image")
    figure, axes = _figure(9, 5.4)
    top = max(x for points in series.values() for x, _ in points)
    for index, (name, points) in enumerate(series.items()):
        apart = (distances or {}).get(name)
        label = name if apart is None else f"{name} (LSD {apart:.2f} dB)"
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.2} if name == "reference" else {"color": f"C{index}", "linewidth": 1.5}
        )
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
    seen: set[float] = set()
    for index, period in enumerate(sorted(grid_px)):
        places = [k / period for k in range(1, period) if k / period <= top + 1e-9 and k / period not in seen]
        seen |= set(places)
        look: dict[str, Any] = {"color": "0.55", "linestyle": "--"} if index == 0 else {"color": "0.75", "linestyle": ":"}
        for number, place in enumerate(places):
            label = f"{period} px grid and harmonics" if number == 0 else None
            axes.axvline(place, linewidth=0.9, label=label, zorder=0, **look)
    axes.set_xlabel("spatial frequency (cycles per pixel)")
    axes.set_ylabel("power (dB)")
    axes.set_title(title)
    axes.set_xlim(0, top)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize=9)
    return _to_image(figure)
