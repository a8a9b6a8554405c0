"""Lay results out as tables, as wide as they are: a log has no edge to wrap at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TextTable:
    """Hold a table as text.

    Args:
        title: what the figures are.
        header: one heading per column.
        lines: one text per column and row.
    """

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


def print_tables(tables: Iterable[TextTable]) -> None:
    """Print tables to standard output; wider than the terminal rather than cut or wrapped."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    for table in tables:
        shown = Table(*table.header, title=table.title, title_justify="left")
        for line in table.lines:
            shown.add_row(*line)
        console = Console(markup=False, emoji=False, color_system=None)
        wide = console.options.update(max_width=10_000)
        need = max(Measurement.get(console, wide, shown).maximum, len(table.title))
        plain = {"markup": False, "emoji": False, "color_system": None}
        Console(width=max(console.width, need), **plain).print(shown)


def accuracy_lines(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Lay {row: {column: {"mean": value, "std": spread}}} out as "value ± spread"."""
    lines = []
    for name, cells in rows.items():
        line = [name]
        for cell in cells.values():
            spread = f" ± {cell['std']:.1f}" if "std" in cell else ""
            line.append(f"{cell['mean']:.1f}{spread}")
        lines.append(line)
    return lines


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean and sample standard deviation (n - 1; 0 for one value)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread}
