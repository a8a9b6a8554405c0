"""Describe the page of a report as plain data and render it to one self-contained HTML text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from dreamshard.versions import VERSION


def data_uri(png: bytes) -> str:
    """Return PNG bytes as an address that carries the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True)
class Tile:
    """Hold one headline number; `best` marks the one to look at first."""

    value: str
    label: str
    unit: str = ""
    best: bool = False


def compared(value: float, label: str, others: Sequence[float]) -> Tile:
    """Make the tile of a percentage beside the best of its rivals, marked where it is ahead."""
    ahead = value - max(others) if others else 0.0
    if others:
        label += f"; next best {max(others):.1f} ({ahead:+.1f})"
    return Tile(f"{value:.1f}", label, "%", best=ahead > 0)


@dataclass(frozen=True)
class Strip:
    """Hold a picture made of images; `name` and `note` are written to its left in a level table.

    `width_px` is the largest width it is shown at, 0 for the page's.
    """

    png: bytes
    alt: str = ""
    name: str = ""
    note: str = ""
    width_px: int = 0

    @property
    def source(self) -> str:
        """Return the picture as an address."""
        return data_uri(self.png)


@dataclass(frozen=True)
class Chart:
    """Hold a chart twice, for light and for dark reading, and what it says in words."""

    light_png: bytes
    dark_png: bytes
    alt: str

    @property
    def light(self) -> str:
        """Return the light picture as an address."""
        return data_uri(self.light_png)

    @property
    def dark(self) -> str:
        """Return the dark picture as an address."""
        return data_uri(self.dark_png)


@dataclass(frozen=True)
class Row:
    """Hold a row's cells; `best` are positions of cells in bold, `ours` marks the row."""

    cells: Sequence[str]
    best: Sequence[int] = ()
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """Hold a table; `numeric` sets every column but the first flush right."""

    heads: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    text: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Block:
    """Hold text in a fixed-width font, folded away if asked."""

    text: str
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Drawing:
    """Hold a vector picture for both ways of reading, an <svg> element of `report.svg`."""

    svg: str


@dataclass(kw_only=True)
class Section:
    """Hold one section of the page; its parts appear in the order of the fields.

    With an `error`, which says why it cannot be shown, nothing else of it appears.
    """

    name: str
    title: str
    error: str = ""
    text: str = ""
    strips: list[Strip] = field(default_factory=list)
    levels: list[Strip] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(kw_only=True)
class Page:
    """Hold a whole report."""

    title: str
    subtitle: str
    tiles: list[Tile] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """Render a page to HTML that needs no other file and no script; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (
        resources.files("dreamshard.console.report")
        .joinpath("page.html.j2")
        .read_text(encoding="utf-8")
    )
    return environment.from_string(source).render(
        version=VERSION,
        title=page.title,
        subtitle=page.subtitle,
        tiles=page.tiles,
        sections=page.sections,
    )


def mean_and_std(cell: Mapping[str, Any]) -> str:
    """Write a probe's mean ± deviation, with the letter of the scaling chosen, where one was."""
    scaling = f" {cell['scaling'][0]}" if "scaling" in cell else ""
    return f"{cell['mean']:.1f} ± {cell['std']:.1f}{scaling}"


def plural(count: int | str, noun: str) -> str:
    """Write a count with its noun."""
    return f"{int(count):,} {noun}" if int(count) == 1 else f"{int(count):,} {noun}s"
