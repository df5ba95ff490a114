"""Pictures of a curation study: distributions, best of m, the table of (M, N) and the paper's grid beside the recommendation."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .curation import FINDINGS, LARGE, MODELS, RATIOS, SMALL, BestOf, Recommendation, Setting, counts_up_to, published_grid
from .drawing import paste_rows
from .pictures import table
from .plots import panels

BINS = 40


def study_picture(
    settings: Sequence[Setting], best: BestOf, advice: Recommendation, title: str = "Curation study"
) -> Image.Image:
    """All of it on one page: six plots, then the table of settings.

    Args:
        settings: of `curation.study`.
        best: of `curation.best_of`.
        advice: of `curation.recommend`; its row is marked.
        title: above the table.
    """
    return paste_rows([plots_picture(settings, best, advice), settings_picture(settings, advice, title)], gap=10)


def plots_picture(settings: Sequence[Setting], best: BestOf, advice: Recommendation) -> Image.Image:
    """Reward spread, gaps, share of pairs, weights, best of m, mean gap."""
    most = max(setting.candidates for setting in settings)
    largest = [setting for setting in settings if setting.candidates == most]
    counts = sorted({setting.candidates for setting in settings})
    chosen = chosen_setting(settings, advice)

    def spreads(axes: Any) -> None:
        for number, m in enumerate(counts):
            setting = next(s for s in settings if s.candidates == m)
            _histogram(axes, setting.table.spread, f"M = {m}", f"C{number}")
        _name(axes, "standard deviation of rewards in a group", "density")

    def gaps(axes: Any) -> None:
        for number, setting in enumerate(largest):
            _histogram(axes, setting.table.gap, f"N = {setting.picks} ({setting.ratio})", f"C{number}")
        _name(axes, "gap between chosen and rejected", "density")

    def shares(axes: Any) -> None:
        for number, m in enumerate(counts):
            points = sorted((s.candidates / s.picks, s.share) for s in settings if s.candidates == m)
            axes.plot([x for x, _ in points], [100 * y for _, y in points], "o-", color=f"C{number}", label=f"M = {m}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({setting.candidates / setting.picks for setting in settings})
        axes.set_xticks(ticks, [f"1:{tick:g}" for tick in ticks])
        _name(axes, "N : M", "% of all pairs of M")

    def weights(axes: Any) -> None:
        parts = {"total": chosen.table.weight, "within groups": chosen.table.intra, "between groups": chosen.table.inter}
        for number, (name, values) in enumerate(parts.items()):
            _histogram(axes, values, f"{name}: {float(values.min()):.2f} to {float(values.max()):.2f}", f"C{number}")
        axes.axvline(1, color="0.4", linewidth=0.9)
        _name(axes, "weight of a pair", "density")

    def extremes(axes: Any) -> None:
        for (name, values), color in zip(
            (("best", best.best), ("mean", best.mean), ("worst", best.worst)), ("C2", "0.3", "C3"), strict=True
        ):
            axes.plot(best.counts, values, "o-", color=color, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(best.counts, [str(count) for count in best.counts])
        _name(axes, "of m candidates", "reward (ranges of each picture's pool)")

    def mean_gaps(axes: Any) -> None:
        for number, m in enumerate(counts):
            points = sorted((s.picks, s.mean_gap) for s in settings if s.candidates == m)
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=f"C{number}", label=f"M = {m}")
        axes.set_xscale("log", base=2)
        ticks = sorted({setting.picks for setting in settings})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        _name(axes, "N, picks from each end", "mean gap")

    return panels(
        {
            "Reward spread inside groups": spreads,
            f"Gaps of pairs, M = {most}": gaps,
            "Share of pairs": shares,
            f"Weights, M = {chosen.candidates}, N = {chosen.picks}": weights,
            "Best, mean and worst of m": extremes,
            "Coverage against gap": mean_gaps,
        }
    )


def chosen_setting(settings: Sequence[Setting], advice: Recommendation) -> Setting:
    """The measured setting that is recommended, or the nearest one."""
    return min(settings, key=lambda s: (abs(s.candidates - advice.candidates), abs(s.picks - advice.picks)))


HEADER = ("M", "N", "N:M", "groups", "pairs", "% of pairs", "% used", "spread", "mean gap", "chosen", "rejected", "weights")


def settings_rows(settings: Sequence[Setting]) -> list[list[str]]:
    """The table as text, one row per (M, N); columns are HEADER."""
    return [
        [
            str(s.candidates),
            str(s.picks),
            s.ratio,
            str(s.groups),
            str(s.pairs),
            f"{100 * s.share:.3g}",
            f"{100 * s.used:.3g}",
            f"{s.spread:.4f}",
            f"{s.mean_gap:.4f}",
            f"{s.chosen:.4f}",
            f"{s.rejected:.4f}",
            f"{float(s.table.weight.min()):.2f}..{float(s.table.weight.max()):.2f}",
        ]
        for s in settings
    ]


def settings_picture(settings: Sequence[Setting], advice: Recommendation, title: str) -> Image.Image:
    """The table of settings; the recommended row is marked."""
    row = list(settings).index(chosen_setting(settings, advice))
    marked = {(row, column) for column in range(len(HEADER))}
    note = f"recommended: M = {advice.candidates}, N = {advice.picks}; {advice.reason}"
    return table(HEADER, settings_rows(settings), title=title, notes=[note], marked=marked)


def published_picture(advice: Recommendation) -> Image.Image:
    """The paper's reward after training for every (M, N) and both models, with the recommended place marked where it is there."""
    counts = counts_up_to(64)
    header = ["reward after 1000 steps", *(f"M = {m}" for m in counts)]
    rows, start = list[list[str]](), 0.0
    marked: set[tuple[int, int]] = set()
    nearer = MODELS[advice.parameters**2 >= SMALL * LARGE]
    for model, size in zip(MODELS, (SMALL, LARGE), strict=True):
        start, grid = published_grid(model)
        is_nearer = model == nearer
        for ratio in RATIOS:
            label = f"{model} ({size / 1e9:g} B), N:M = 1:{ratio}"
            rows.append([label, *("" if m not in grid[ratio] else f"{grid[ratio][m]:.3f}" for m in counts)])
            if is_nearer and advice.candidates in grid[ratio] and advice.candidates == ratio * advice.picks:
                marked.add((len(rows) - 1, 1 + counts.index(advice.candidates)))
    notes = [f"Before training: {start:.3f} for both. Read off figures, +-0.003; not measured here.", *FINDINGS]
    notes.append(f"Recommended here: M = {advice.candidates}, N = {advice.picks}; {advice.reason}.")
    return table(header, rows, title="What DP2O-SR found", notes=notes, marked=marked, ruled=(len(RATIOS),))


def _histogram(axes: Any, values: Tensor, label: str, color: str) -> None:
    """Outline of the density; one bar where all values are the same."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        axes.axvline(low, color=color, label=label, linewidth=2)
        return
    bins = max(5, min(BINS, round(len(values) ** 0.5)))
    heights, edges = torch.histogram(values.double(), bins=bins, density=True)
    axes.stairs(heights.tolist(), edges.tolist(), color=color, label=label, linewidth=1.5)


def _name(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)
