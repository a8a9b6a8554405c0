"""Draw curves and bars as vector pictures with values under the pointer, without any script.

One picture serves light and dark pages, as its colours are the page's CSS variables. Whatever lies
under the pointer is told by the browser itself, from the picture's own <title> elements.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from dreamshard.foreign.shown import plain

WIDTH, HEIGHT = 660.0, 310.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 46.0, 40.0
SERIES = 7
"""Colours of the page, --series-0 to --series-6."""
COLUMNS = 160
"""Places along a curve that answer to the pointer."""


@dataclass(frozen=True)
class Axis:
    """Place values along an axis from `begin` to `end` (pixels).

    Args:
        low, high: values at its ends; equal ones are set apart.
        begin, end: pixels of the ends.
        logarithmic: equal factors, not differences, are equally long; then low > 0.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return a value's pixel."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / ((high - low) or 1.0)
        return self.begin + share * (self.end - self.begin)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values between its ends."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        locator = LogLocator(subs=(1, 2, 5)) if self.logarithmic else MaxNLocator(most)
        margin = 1e-9 * (self.high - self.low)
        values = [float(value) for value in locator.tick_values(self.low, self.high)]
        values = [value for value in values if self.low - margin <= value <= self.high + margin]
        return values[:: max(1, -(-len(values) // (most + 2)))]


def curves(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, x: str = "step", y: str = ""
) -> str:
    """Draw curves over a common axis, with all their values under the pointer.

    Args:
        title: of the picture, also read aloud.
        lines: {name: [(x, y), ...]}, x ascending, in the order of their colours; values that are
            not finite leave gaps.
        x, y: what the axes are.

    Returns:
        An <svg> element as text; everything given is escaped.

    Raises:
        ValueError: no finite point.
    """
    kept = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points}
    values = [value for points in kept.values() for _, value in points]
    steps = sorted({step for points in kept.values() for step, _ in points})
    if not values:
        raise ValueError("curves: got no finite point, allowed one or more.")
    low, high = min(values), max(values)
    across = Axis(min(0.0, steps[0]), steps[-1] or 1.0, LEFT, WIDTH - RIGHT)
    wide = low > 0 and high > 8 * low
    pad = 0.0 if wide else 0.04 * (high - low or abs(high) or 1.0)
    up = Axis(low - pad, high + pad, HEIGHT - BOTTOM, TOP, logarithmic=wide)
    root = _canvas(title, across=across, up=up, x=x, y=y)
    for number, points in enumerate(kept.values()):
        at = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in points)
        tag = {"class": f"line s{number % SERIES}", "points": at}
        ET.SubElement(root, "polyline", tag)
        if len(points) == 1:
            place = {"cx": at.partition(",")[0], "cy": at.partition(",")[2], "r": "3"}
            ET.SubElement(root, "circle", {"class": f"dot s{number % SERIES}", **place})
    _legend(root, list(kept))
    _pointers(root, kept, steps, across=across, x=x)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def bars(
    title: str, rows: Mapping[str, Mapping[str, float]], *, unit: str = "%", ours: str = ""
) -> str:
    """Draw grouped bars, one group per column, one colour per row.

    Args:
        title: of the picture, also read aloud.
        rows: {row: {column: value 0 or more}}; a row may lack columns.
        unit: of the values.
        ours: the row to stress.

    Returns:
        An <svg> element as text; everything given is escaped.

    Raises:
        ValueError: no value.
    """
    groups = list(dict.fromkeys(column for row in rows.values() for column in row))
    high = max((value for row in rows.values() for value in row.values()), default=-1.0)
    if high < 0:
        raise ValueError("bars: got no value, allowed one or more.")
    up = Axis(0.0, 1.12 * high or 1.0, HEIGHT - BOTTOM, TOP)
    root = _canvas(title, across=None, up=up, x="", y=unit)
    group = (WIDTH - LEFT - RIGHT) / len(groups)
    width = 0.84 * group / len(rows)
    for place, column in enumerate(groups):
        middle = LEFT + (place + 0.5) * group
        _text(root, middle, HEIGHT - BOTTOM + 16, column, anchor="middle")
        for number, (name, row) in enumerate(rows.items()):
            if column not in row:
                continue
            left, top = middle + (number - len(rows) / 2) * width, up(row[column])
            stress = " ours" if name == ours else ""
            size = {"width": f"{0.92 * width:.1f}", "height": f"{up(0.0) - top:.1f}"}
            tag = {"class": f"bar s{number % SERIES}{stress}", "x": f"{left:.1f}"}
            bar = ET.SubElement(root, "rect", {**tag, "y": f"{top:.1f}", **size})
            _title(bar, f"{name}, {column}: {row[column]:.4g} {unit}")
            if width >= 26:
                at = left + 0.46 * width
                _text(root, at, top - 4, f"{row[column]:.1f}", anchor="middle", kind="value")
    _legend(root, list(rows))
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _canvas(title: str, *, across: Axis | None, up: Axis, x: str, y: str) -> ET.Element:
    """Make a picture with axes, grid and names, and nothing drawn in it yet."""
    size = {"viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}", "role": "img", "class": "drawing"}
    root = ET.Element("svg", {**size, "aria-label": title})
    for value in up.ticks():
        at = f"{up(value):.1f}"
        ends = {"x1": f"{LEFT:.0f}", "x2": f"{WIDTH - RIGHT:.0f}", "y1": at, "y2": at}
        ET.SubElement(root, "line", {"class": "grid", **ends})
        _text(root, LEFT - 7, up(value) + 4, f"{value:g}", anchor="end")
    for value in across.ticks(8) if across is not None else ():
        assert across is not None
        _text(root, across(value), HEIGHT - BOTTOM + 16, f"{value:,.6g}", anchor="middle")
    _text(root, WIDTH - RIGHT, HEIGHT - 6, x, anchor="end")
    _text(root, 4, TOP - 32, f"{title}{f', {y}' if y else ''}", kind="name")
    return root


def _pointers(
    root: ET.Element,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    steps: Sequence[float],
    *,
    across: Axis,
    x: str,
) -> None:
    """Lay columns over the picture that tell every curve's value at their place."""
    if len(steps) > COLUMNS:
        chosen = {round(n * (len(steps) - 1) / (COLUMNS - 1)) for n in range(COLUMNS)}
        steps = [steps[place] for place in sorted(chosen)]
    middles = [across(step) for step in steps]
    edges = [across.begin, *((a + b) / 2 for a, b in itertools.pairwise(middles))]
    for step, left, right in zip(steps, edges, [*edges[1:], across.end], strict=True):
        told = [f"{x} {step:,.6g}"]
        for name, points in lines.items():
            place = bisect.bisect_right(points, step, key=lambda point: point[0]) - 1
            told += [f"{name} {points[place][1]:.4g}"] if place >= 0 else []
        tag = {"class": "pointer", "x": f"{left:.1f}", "y": f"{TOP:.0f}"}
        size = {"width": f"{max(0.0, right - left):.1f}", "height": f"{HEIGHT - BOTTOM - TOP:.0f}"}
        _title(ET.SubElement(root, "rect", {**tag, **size}), "\n".join(told))


def _legend(root: ET.Element, names: Sequence[str]) -> None:
    at = LEFT
    for number, name in enumerate(names):
        short = name if len(name) <= 28 else f"{name[:27]}…"
        box = {"x": f"{at:.0f}", "y": f"{TOP - 12:.0f}", "width": "10", "height": "4"}
        ET.SubElement(root, "rect", {"class": f"bar s{number % SERIES}", **box})
        _text(root, at + 14, TOP - 7, short)
        at += 26 + 6.1 * len(short)


def _title(element: ET.Element, text: str) -> None:
    ET.SubElement(element, "title").text = plain(text)


def _text(
    root: ET.Element, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick"
) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": kind}
    ET.SubElement(root, "text", place).text = plain(text)
