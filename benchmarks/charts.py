"""Draw the charts of the studies as PNG bytes, in the style of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dreamshard.charts import Theme, legend_below, new_figure, style, to_png


def level_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    theme: Theme,
    *,
    xlabel: str,
    ylabel: str,
) -> bytes:
    """Draw one panel per measure with one marked line per thing compared, over uneven levels.

    Args:
        panels: {panel title: {line name: [(x, y), ...]}}; x is at least 0, drawn as a square root
            so that small values stay apart.
        theme: colours.
        xlabel: of every panel.
        ylabel: of every panel.
    """
    figure, axeses = new_figure(theme, width=4.6 * len(panels), height=3.9, columns=len(panels))
    for axes, (title, lines) in zip(axeses, panels.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            x, y = np.asarray(points, float).reshape(-1, 2).T
            colour = theme.series[number % len(theme.series)]
            dash = ("-", "--", ":")[number // len(theme.series) % 3]
            axes.plot(x, y, dash, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        style(axes, theme, grid="both")
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, axeses[0], theme, columns=6)
    return to_png(figure)


def half_interval(values: Sequence[float]) -> float | None:
    """Return half the 95 % interval of the mean by Student's t; None of fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread


def paired_intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float | None]]], theme: Theme, *, xlabel: str
) -> bytes:
    """Draw one panel per measure: a row per variant, a dot at its difference, a bar its interval.

    Args:
        panels: {panel title: {row name: (difference, half its confidence interval or None)}}; the
            rows of all panels are the same.
        theme: colours.
        xlabel: of every panel.
    """
    names = list(next(iter(panels.values())))
    height = 1.1 + 0.27 * len(names)
    figure, axeses = new_figure(theme, width=4.9 * len(panels), height=height, columns=len(panels))
    for column, (axes, (title, rows)) in enumerate(zip(axeses, panels.items(), strict=True)):
        axes.axvline(0, color=theme.text, linewidth=0.9)
        for place, (difference, half) in enumerate(rows.values()):
            if half is not None:
                ends = (difference - half, difference + half)
                axes.plot(ends, (place, place), color=theme.series[0], linewidth=2)
            axes.plot(difference, place, "o", color=theme.series[0], markersize=5)
        axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
        axes.set(title=title, xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        style(axes, theme, grid="x")
        axes.tick_params(axis="y", length=0)
    return to_png(figure)
