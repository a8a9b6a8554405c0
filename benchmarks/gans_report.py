"""Intervals and tables of what benchmarks/gans.py has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.charts import half_interval


def compared(arms: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return intervals of every figure at every mark, over the seeds of which all arms reached it.

    Args:
        arms: arm -> seed -> the unit's figures.
    """
    found: dict[str, Any] = {}
    first, *others = arms
    marks = dict.fromkeys(mark for unit in arms[first].values() for mark in unit.get("marks", {}))
    for mark in marks:
        seeds = [
            seed for seed in arms[first]
            if all(mark in of_arm[seed].get("marks", {}) for of_arm in arms.values())
        ]  # fmt: skip
        for figure in arms[first][seeds[0]]["marks"][mark] if seeds else ():
            values = {
                arm: [of_arm[seed]["marks"][mark][figure] for seed in seeds]
                for arm, of_arm in arms.items()
            }
            at = f"{figure} at {mark}" if mark != "end" else figure
            found |= {f"{at}, {arm}": interval(each) for arm, each in values.items()}
            for other in others:
                found |= paired(at, values, first, other)
    return found


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, count and, of two seeds or more, half the 95 % interval of Student's t."""
    found = {"mean": float(np.mean(values)), "seeds": len(values)}
    half = half_interval(values)
    return found if half is None else found | {"half": half}


def paired(
    figure: str, values: Mapping[str, Sequence[float]], one: str, other: str
) -> dict[str, dict[str, float]]:
    """Return the interval of the difference of two arms, seed by seed."""
    apart = [a - b for a, b in zip(values[one], values[other], strict=True)]
    return {f"{figure}, {one} - {other}": interval(apart)}


def table(part: str, told: Mapping[str, Any]) -> str:
    """Return the comparisons as Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in told["settings"].items())
    lines = [
        f"# {part} at CIFAR-10, narrow networks",
        "",
        about,
        "",
        "| figure | mean | ± 95 % | seeds |",
    ]
    lines.append("|---|---|---|---|")
    for name, each in told["compared"].items():
        half = f"{each['half']:.2g}" if "half" in each else ""
        lines.append(f"| {name} | {each['mean']:.4g} | {half} | {each['seeds']} |")
    return "\n".join(lines) + "\n"
