"""Draw the charts of a report as PNG bytes, in a light and a dark theme.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. matplotlib and
Pillow are imported by the functions that use them; pyplot and its global state are never touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 144
_FONT = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9}


@dataclass(frozen=True)
class Theme:
    """Colours of one reading mode; `series` is used in order for the things compared."""

    background: str
    text: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    text="#24292f",
    faint="#d9dde2",
    series=("#7d8690", "#e69f00", "#56b4e9", "#007a5a", "#cc79a7", "#0072b2", "#d55e00"),
)
DARK = Theme(
    background="#1b2027",
    text="#dfe4ea",
    faint="#3a424d",
    series=("#8c959f", "#e69f00", "#56b4e9", "#1fc198", "#cc79a7", "#4c9be0", "#f0803c"),
)


def loss_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], theme: Theme
) -> bytes:
    """Draw one panel per run with one line per loss: each value faint, their running mean strong.

    Args:
        curves: {panel title: {line name: [(step, loss), ...]}}; panels and lines in drawing order.
    """
    figure, panels = new_figure(theme, width=4.6 * len(curves), height=3.3, columns=len(curves))
    for axes, (title, lines) in zip(panels, curves.items(), strict=True):
        values: list[float] = []
        for number, (name, points) in enumerate(lines.items()):
            steps, losses = np.asarray(points, float).reshape(-1, 2).T
            colour = theme.series[(5, 6, 3, 4, 1)[number % 5]]
            mean = _running_mean(losses, max(1, len(losses) // 25))
            if len(losses) > 30:
                axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(
                steps, mean, color=colour, linewidth=1.8, label=f"{name}, ending at {mean[-1]:.3g}"
            )
            values.extend(mean)
        positive = [value for value in values if value > 0]
        if len(positive) == len(values) and values and max(values) > 8 * min(values):
            _plain_log(axes)
        axes.set(title=title, xlabel="step", ylabel="loss")
        axes.set_xlim(left=0)
        _legend(axes, theme)
        style(axes, theme, grid="both")
    return to_png(figure)


def probe_chart(
    accuracies: Mapping[str, Mapping[int, Sequence[float]]],
    theme: Theme,
    *,
    ours: str | None = None,
) -> bytes:
    """Draw probe accuracies as grouped bars with error bars, and one method's paired gains beside.

    Args:
        accuracies: {method: {labels per class: accuracy in percent of each label draw}}.
        ours: the method whose gain over each other one, draw by draw, fills the second panel.
    """
    methods, counts = list(accuracies), sorted({n for by in accuracies.values() for n in by})
    others = [name for name in methods if name != ours] if ours in accuracies else []
    ratios = [1.55, 1.0] if others else [1.0]
    width = 10.2 if others else 6.4
    figure, panels = new_figure(theme, width=width, height=3.7, columns=len(ratios), ratios=ratios)
    bars, bar_width = panels[0], 0.84 / len(methods)
    for number, name in enumerate(methods):
        colour = theme.series[number % len(theme.series)]
        for place, count in enumerate(counts):
            draws = np.asarray(accuracies[name].get(count, ()), float)
            if draws.size == 0:
                continue
            x = place + (number - (len(methods) - 1) / 2) * bar_width
            mean, std = draws.mean(), _std(draws)
            bars.bar(x, mean, bar_width * 0.9, color=colour, label=name if place == 0 else None)
            bars.errorbar(x, mean, yerr=std, color=theme.text, linewidth=1, capsize=2)
            bars.text(x, mean + std + 1.5, f"{mean:.1f}", ha="center", va="bottom", fontsize=7.5)
    bars.set_xticks(range(len(counts)), [f"{count} per class" for count in counts])
    bars.set(title="Probe accuracy, mean and standard deviation", ylabel="% correct", ylim=(0, 112))
    bars.set_yticks(range(0, 101, 20))
    style(bars, theme, grid="y")
    if others:
        _gain_panel(panels[1], accuracies, theme, ours=str(ours), others=others, counts=counts)
    legend_below(figure, bars, theme, columns=4)
    return to_png(figure)


def _gain_panel(
    axes: Axes,
    accuracies: Mapping[str, Mapping[int, Sequence[float]]],
    theme: Theme,
    *,
    ours: str,
    others: Sequence[str],
    counts: Sequence[int],
) -> None:
    """Draw `ours` minus each other method: a dot per label draw, a bar at the mean, a zero line."""
    methods, step = list(accuracies), 0.84 / len(others)
    axes.axhline(0, color=theme.text, linewidth=0.9)
    for number, name in enumerate(others):
        colour = theme.series[methods.index(name) % len(theme.series)]
        for place, count in enumerate(counts):
            first = np.asarray(accuracies[ours].get(count, ()), float)
            second = np.asarray(accuracies[name].get(count, ()), float)
            if first.size == 0 or first.size != second.size:
                continue
            x, gain = place + (number - (len(others) - 1) / 2) * step, first - second
            spread = np.linspace(-0.22, 0.22, gain.size) * step if gain.size > 1 else np.zeros(1)
            axes.scatter(x + spread, gain, s=11, color=colour, alpha=0.75, linewidths=0, zorder=2)
            ends = (x - 0.4 * step, x + 0.4 * step)
            axes.plot(ends, (gain.mean(),) * 2, color=theme.text, linewidth=2, zorder=3)
    for place in range(1, len(counts)):
        axes.axvline(place - 0.5, color=theme.faint, linewidth=0.8)
    axes.set_xticks(range(len(counts)), [f"{count} per class" for count in counts])
    axes.set(title=f"Gain of {ours} over each, draw by draw", ylabel="percentage points")
    style(axes, theme, grid="y")


def stage_bars(stages: Mapping[str, tuple[float | None, float | None]], theme: Theme) -> bytes:
    """Draw seconds and images per second of each stage as two panels of horizontal bars.

    Args:
        stages: {stage: (seconds, images per second)} in order; None leaves a bar out.
    """
    height = 0.9 + 0.33 * len(stages)
    figure, panels = new_figure(theme, width=9.2, height=height, columns=2)
    titles = ("Seconds", "Images per second")
    for column, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        values = [pair[column] for pair in stages.values()]
        axes.set_xlim(0, 1.18 * max([value for value in values if value] or [1.0]))
        for place, value in enumerate(values):
            axes.barh(place, value or 0, 0.62, color=theme.series[5 if column == 0 else 3])
            text = _short(value) if value else "not counted in images" if column else "-"
            axes.annotate(
                text, (value or 0, place), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(stages)), list(stages) if column == 0 else [""] * len(stages))
        axes.set(title=title, ylim=(len(stages) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=5)
        style(axes, theme, grid="x")
        axes.tick_params(axis="y", length=0)
    return to_png(figure)


def scatter_panels(
    planes: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    names: Sequence[str],
    theme: Theme,
) -> bytes:
    """Draw points of a plane, one panel per thing compared, coloured by class.

    Args:
        planes: {panel title: float (N, 2)}, the same N samples in each.
        labels: int64 (N,), -1 for none; None: all points have one colour.
        names: of the classes by number; the number stands in where there is no name.
        theme: of the picture. Up to 20 classes have a legend; more share colours.
    """
    import matplotlib

    figure, panels = new_figure(theme, width=3.4 * len(planes), height=3.9, columns=len(planes))
    groups = np.unique(labels) if labels is not None else np.zeros(1, int)
    wheel = matplotlib.colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for axes, (title, points) in zip(panels, planes.items(), strict=True):
        for place, value in enumerate(groups):
            rows = labels == value if labels is not None else slice(None)
            known = int(value) < len(names) and value >= 0
            label = str(names[int(value)]) if known else str(value)
            colour = theme.series[0] if labels is None or value < 0 else wheel(place % wheel.N)
            kind = {"s": 6, "linewidths": 0, "color": [colour], "label": label}
            axes.scatter(points[rows, 0], points[rows, 1], **kind)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        style(axes, theme, grid="both")
    if 1 < len(groups) <= 20:
        legend_below(figure, panels[0], theme, columns=10)
    return to_png(figure)


def _plain_log(axes: Axes) -> None:
    """Make the y axis logarithmic with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _std(draws: np.ndarray) -> float:
    return float(draws.std(ddof=1)) if draws.size > 1 else 0.0


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Average over up to `half` neighbours on each side, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))
    return (total[place + reach + 1] - total[place - reach]) / (2 * reach + 1)


def new_figure(
    theme: Theme,
    *,
    width: float,
    height: float,
    columns: int,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make a figure without pyplot, so that nothing global is touched and no display is needed."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {**_FONT, "text.color": theme.text, "axes.titlesize": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.background)
        grid = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)
    for axes in grid[0]:
        axes.set_facecolor(theme.background)
    return figure, list(grid[0])


def style(axes: Axes, theme: Theme, *, grid: Literal["both", "x", "y"]) -> None:
    """Give a finished panel the theme's colours and grid lines along the axes named."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)
    axes.tick_params(colors=theme.text, which="both", labelsize=8.5)
    axes.title.set_color(theme.text)
    axes.title.set_fontsize(10)
    for label in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        label.set_color(theme.text)
    axes.grid(visible=True, axis=grid, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, theme: Theme, *, columns: int) -> None:
    """Put one panel's legend below the whole figure, in so many columns."""
    handles, labels = axes.get_legend_handles_labels()
    place = "outside lower center"
    legend = figure.legend(handles, labels, loc=place, ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_color(theme.text)


def _legend(axes: Axes, theme: Theme) -> None:
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_color(theme.text)


def to_png(figure: Figure) -> bytes:
    """Render a figure to a PNG of 128 colours: charts need no more and shrink to a third."""
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    out = io.BytesIO()
    picture = Image.open(raw).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
