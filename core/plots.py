"""Plots: loss curves, radial spectra, methods in a plane; drawn by matplotlib without its global state."""

from collections.abc import Callable, Collection, Mapping, Sequence
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


def panels(
    draws: Mapping[str, Callable[[Any], None]], *, columns: int = 3, cell: tuple[float, float] = (4.6, 3.4)
) -> Image.Image:
    """Several plots in a grid.

    Args:
        draws: title -> function that draws into matplotlib's axes.
        columns: plots per row.
        cell: width and height of one in units of 100 pixels.

    Raises:
        ValueError: no plot.
    """
    if not draws:
        raise ValueError("draws: expected at least one plot, got none; pass title -> function")
    from matplotlib.figure import Figure

    columns = min(columns, len(draws))
    rows = -(-len(draws) // columns)
    figure = Figure(figsize=(cell[0] * columns, cell[1] * rows), dpi=100, layout="constrained")
    for number, (title, draw) in enumerate(draws.items(), start=1):
        axes: Any = figure.add_subplot(rows, columns, number)
        draw(axes)
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)
    return _to_image(figure)


def curves(
    series: Mapping[str, Points],
    *,
    x_label: str,
    title: str,
    y_label: str = "",
    log_y: bool = False,
    decibels: Collection[str] = (),
) -> Image.Image:
    """Lines over a common x axis; series far above the first, or 20 times as large, get the right-hand axis.

    Series of more than 60 points are drawn pale with their moving mean on top; a single point is written out as a number, in the
    legend where there are many. Equal series share one line and one label. The ticks of x are whole where x is. Lines differ in
    colour, from the eleventh on in their dashes too.

    Args:
        series: name -> (x, y) points, not empty.
        x_label: of the x axis.
        title: above the picture.
        y_label: of the left y axis.
        log_y: logarithmic left axis.
        decibels: names of series that get a panel of their own below the others.

    Returns:
        RGB picture 800 pixels wide; 480 high, and 160 more for each of a second panel and a long legend.

    Raises:
        ValueError: no series.
    """
    if not series:
        raise ValueError("series: expected at least one curve, got none; log something first")
    merged: dict[str, Points] = {}
    below: set[str] = set()
    for name, points in series.items():
        twin = next((other for other, known in merged.items() if list(known) == list(points)), None)
        if twin is None:
            merged[name] = points
        else:
            merged = {f"{other}, {name}" if other == twin else other: known for other, known in merged.items()}
            below = {f"{other}, {name}" if other == twin else other for other in below}
        if twin is None and name in decibels:
            below.add(name)
    upper = {name: points for name, points in merged.items() if name not in below}
    has_two = bool(below and upper)
    figure, axes = _figure(8, 4.8 + 1.6 * has_two + 1.6 * (len(merged) > _MANY))
    lower: Any = axes
    if has_two:
        figure.clear()
        axes, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    first = next(iter(upper.values() or merged.values()))
    right = None
    is_crowded = sum(len(points) == 1 for points in merged.values()) > _MANY // 2
    for index, (name, points) in enumerate(merged.items()):
        target = lower if name in below else axes
        if target is axes and _is_elsewhere(points, first):
            right = right or axes.twinx()
            target, name = right, f"{name} (right axis)"
        _draw_line(target, name, points, index, is_crowded)
    lower.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if has_two:
        lower.set_ylabel("dB")
        lower.grid(alpha=0.3)
    steps = {x for points in merged.values() for x, _ in points}
    _whole_ticks(axes, steps)
    if len(steps) == 1 and right is not None:  # the middle of both axes is one place: move one of the two points down
        low, high = right.get_ylim()
        right.set_ylim(low, high + (high - low) / 2)
    if log_y:
        axes.set_yscale("log")
    for panel in dict.fromkeys((axes, right, lower)):
        if panel is not None and not (log_y and panel is axes):
            panel.ticklabel_format(axis="y", useOffset=False)
    _add_legend(figure)
    return _to_image(figure)


_MANY = 6  # series, above which the legend takes rows of its own and values of single points stand in it
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def _draw_line(target: Any, name: str, points: Points, index: int, is_crowded: bool) -> None:
    """One series with a look of its own: ten colours, then the same with other dashes and markers."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    turn = index // 10 % len(_DASHES)
    look: dict[str, Any] = {"color": f"C{index % 10}", "marker": _MARKERS[turn] if len(points) < 30 else "", "markersize": 3}
    look["linestyle"] = _DASHES[turn]
    if len(points) == 1:  # no line to follow: the point itself is the curve, with its value above it
        look["markersize"] = 8
        if is_crowded:
            name = f"{name} {ys[0]:.4g}"
        else:
            above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "color": look["color"]}
            target.annotate(f"{ys[0]:.4g}", (xs[0], ys[0]), **above)
    if len(points) > 60:
        target.plot(xs, ys, alpha=0.3, linewidth=0.8, **look)
        ys = _moving_mean(ys, len(ys) // 20)
    target.plot(xs, ys, label=name, **look)


def _add_legend(figure: Any) -> None:
    """Below everything, in as many columns as fit beside each other."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _is_elsewhere(points: Points, first: Points) -> bool:
    """Whether one axis for both would flatten one of them."""
    low, high = min(y for _, y in first), max(y for _, y in first)
    gap = min(y for _, y in points) - high
    return _largest(points) > 20 * _largest(first) or gap > 5 * (high - low) > 0


def _whole_ticks(axes: Any, xs: set[float]) -> None:
    """No tick at half a step: where x is counted in whole numbers, the ticks are whole too, and a lone one is in the middle."""
    from matplotlib.ticker import MaxNLocator

    if not all(float(x).is_integer() for x in xs):
        return
    if len(xs) == 1:
        (only,) = xs
        axes.set_xlim(only - 1, only + 1)
        axes.set_xticks([only])
        axes.margins(y=0.2)  # room for the values above the points
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))


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
    marks: Mapping[str, float] | None = None,
    reference: str = "reference",
    title: str = "",
    has_difference: bool = False,
) -> Image.Image:
    """Radial power spectra over spatial frequency, with lines where a grid of 8 or 16 pixels would put energy.

    Args:
        series: label -> (frequency in cycles per pixel, power in dB) points.
        distances: label -> log-spectral distance to the reference in dB, shown in the legend.
        grid_px: periods whose harmonics k / period get a thin line.
        marks: label -> frequency in cycles per pixel of further lines.
        reference: label of the curve drawn in black.
        title: above the picture.
        has_difference: a second panel below with each curve less that of the reference, which must be there.

    Returns:
        900x540 RGB picture, 900x760 with the second panel.
    """
    if not series:
        raise ValueError("series: expected at least one spectrum, got none; connect an image")
    figure, axes = _figure(9, 7.6 if has_difference else 5.4)
    below: Any = None
    if has_difference:
        figure.clear()
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    top = max(x for points in series.values() for x, _ in points)
    for index, (name, points) in enumerate(series.items()):
        apart = (distances or {}).get(name)
        label = name if apart is None else f"{name} (LSD {apart:.2f} dB)"
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.2} if name == reference else {"color": f"C{index}", "linewidth": 1.5}
        )
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
        if below is not None:
            ground = dict(series[reference])
            apart_by = [(x, y - ground[x]) for x, y in points if x in ground]
            below.plot([x for x, _ in apart_by], [y for _, y in apart_by], **style)
    seen: set[float] = set()
    for index, period in enumerate(sorted(grid_px)):
        places = [k / period for k in range(1, period) if k / period <= top + 1e-9 and k / period not in seen]
        seen |= set(places)
        look: dict[str, Any] = {"color": "0.55", "linestyle": "--"} if index == 0 else {"color": "0.75", "linestyle": ":"}
        for number, place in enumerate(places):
            label = f"{period} px grid and harmonics" if number == 0 else None
            for panel in (axes,) if below is None else (axes, below):
                panel.axvline(place, linewidth=0.9, label=label, zorder=0, **look)
    for label, place in (marks or {}).items():
        axes.axvline(place, linewidth=1.1, label=label, zorder=0, color="0.4", linestyle="-.")
    lowest = axes if below is None else below
    lowest.set_xlabel("spatial frequency (cycles per pixel)")
    if below is not None:
        below.set_ylabel(f"less {reference} (dB)")
        below.grid(alpha=0.25)
    axes.set_ylabel("power (dB)")
    axes.set_title(title)
    axes.set_xlim(0, top)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize=9)
    return _to_image(figure)


def scatter(
    points: Mapping[str, tuple[float, float]],
    *,
    published: Mapping[str, tuple[float, float]] | None = None,
    x_label: str,
    y_label: str,
    better: tuple[bool, bool] = (True, False),
    title: str = "",
) -> Image.Image:
    """Methods as points in a plane: ours as named discs, published ones as numbered hollow diamonds with a key at the side.

    Args:
        points: method -> (x, y), as measured.
        published: method -> (x, y), as printed in a paper.
        x_label: of the horizontal axis; the direction that is better is added.
        y_label: of the vertical axis, likewise.
        better: is more better on the horizontal and on the vertical axis?
        title: above the picture.

    Returns:
        900x600 RGB picture, 1150x600 with published points.

    Raises:
        ValueError: no point at all.
    """
    printed = published or {}
    if not points and not printed:
        raise ValueError("points: expected at least one method with both scores, got none; choose other metrics")
    figure, axes = _figure(11.5 if printed else 9, 6)
    for index, (x, y) in enumerate(points.values()):
        axes.plot([x], [y], "o", color=f"C{index}", markersize=9, zorder=3)
    numbered = {str(number): place for number, place in enumerate(printed.values(), start=1)}
    for number, name in zip(numbered, printed, strict=True):
        axes.plot([numbered[number][0]], [numbered[number][1]], "D", color="0.45", fillstyle="none", label=f"{number}  {name}")
    axes.margins(0.15)
    arrows = ["\u2192" if better[0] else "\u2190", "\u2191" if better[1] else "\u2193"]
    axes.set_xlabel(f"{x_label}   ({arrows[0]} better)")
    axes.set_ylabel(f"{y_label}   ({arrows[1]} better)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.ticklabel_format(useOffset=False)
    if printed:
        key: dict[str, Any] = {"title": "published, not measured here", "handlelength": 1, "frameon": False}
        figure.legend(loc="outside right upper", fontsize=9, title_fontsize=9, alignment="left", **key)
    _name_points(figure, axes, points, numbered)
    return _to_image(figure)


def bars(
    series: Mapping[str, Mapping[str, tuple[float, Sequence[tuple[float, float]]]]],
    *,
    y_label: str,
    title: str = "",
    marks: Mapping[str, float] | None = None,
    top: float | None = None,
) -> Image.Image:
    """Groups of bars, one group per name on the horizontal axis, with intervals as lines that get thinner.

    Args:
        series: label -> name -> (value, its intervals as (low, high), the first drawn thickest). The same names in each.
        y_label: of the vertical axis.
        title: above the picture.
        marks: label -> value of a dashed line in the colour of that series, "chance" in the legend.
        top: end of the vertical axis.

    Returns:
        900x540 RGB picture.

    Raises:
        ValueError: no bar.
    """
    names = [name for values in series.values() for name in values][: max(map(len, series.values()), default=0)]
    if not names:
        raise ValueError("series: expected at least one bar, got none; count something first")
    figure, axes = _figure(9, 5.4)
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(names))]
        axes.bar(places, [values[name][0] for name in names], width * 0.92, label=label, color=f"C{index}", alpha=0.75)
        for place, name in zip(places, names, strict=True):
            for thin, (low, high) in enumerate(values[name][1]):
                axes.plot([place, place], [low, high], color="0.15", linewidth=4 if thin == 0 else 1.2, solid_capstyle="butt")
        if marks and label in marks:
            axes.axhline(marks[label], color=f"C{index}", linestyle="--", linewidth=1.2, label=f"{label} by chance", zorder=0)
    axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 12 else 0)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.set_ylim(0, top)
    axes.grid(alpha=0.25, axis="y")
    figure.legend(loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return _to_image(figure)


def _name_points(
    figure: Any, axes: Any, strong: Mapping[str, tuple[float, float]], weak: Mapping[str, tuple[float, float]]
) -> None:
    """Write each name beside its point, at the one of eight places that covers least of other points and names."""
    figure.draw_without_rendering()
    places = [axes.transData.transform(place) for place in (*strong.values(), *weak.values())]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    inside = axes.get_window_extent().extents
    sides = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
    for index, (name, (x, y)) in enumerate(zip((*strong, *weak), places, strict=True)):
        look: dict[str, Any] = {"fontsize": 10, "color": "0.1"} if index < len(strong) else {"fontsize": 8, "color": "0.35"}
        tried: list[tuple[float, int, Any, Sequence[float]]] = []
        for order, (across, up) in enumerate(sides):
            reach = 9 if across and up else 11
            align = {"ha": ("right", "center", "left")[across + 1], "va": ("top", "center_baseline", "bottom")[up + 1]}
            text = axes.text(x + across * reach, y + up * reach, name, transform=None, **align, **look)
            box: Sequence[float] = text.get_window_extent().extents
            hidden = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, inside)
            tried.append((hidden + sum(_overlap(box, other) for other in taken), order, text, box))
        tried.sort(key=lambda attempt: attempt[:2])
        for _, _, text, _ in tried[1:]:
            text.remove()
        taken.append((tried[0][3][0], tried[0][3][1], tried[0][3][2], tried[0][3][3]))


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
