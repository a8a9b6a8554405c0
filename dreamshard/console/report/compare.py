"""Sections that set several runs side by side: figures, curves, evaluations, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dreamshard.console.report import svg
from dreamshard.console.report.evaluation import TITLES, figures, subject_of, task_results
from dreamshard.console.report.learning import loss_lines
from dreamshard.console.report.material import Material, rate_of, seconds_of
from dreamshard.console.report.page import Drawing, Row, Section, Table
from dreamshard.progress import format_duration

OWN = ("run_dir", "name", "out")
"""Settings that differ between any two runs."""


def comparison() -> list[Callable[[Sequence[Material]], Section | list[Section] | None]]:
    """Return what makes the sections, in the page's order."""
    return [results, learned, spent, settings]


def results(compared: Sequence[Material]) -> list[Section]:
    """Show, task by task, what every run's own student reached."""
    names = names_of(compared)
    by_task: dict[str, dict[str, dict[str, float]]] = {}
    for name, material in zip(names, compared, strict=True):
        for task, result in task_results(material.results).items():
            row = figures(task, result).get(subject_of(result), {})
            by_task.setdefault(task, {})[name] = row
    sections = []
    for task, rows in by_task.items():
        section = Section(name=task, title=TITLES.get(task, task))
        lacking = [name for name in names if not rows.get(name)]
        section.text = f"Not evaluated so: {', '.join(lacking)}." if lacking else ""
        rows = {name: row for name, row in rows.items() if row}
        if not rows:
            continue
        section.drawings.append(Drawing(svg.bars("Held-out images", rows)))
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        best = {c: max(row[c] for row in rows.values() if c in row) for c in columns}
        lines = [
            Row(
                [name, *(f"{row[c]:.1f}" if c in row else "" for c in columns)],
                best=[place for place, c in enumerate(columns, 1) if row.get(c) == best[c]],
            )
            for name, row in rows.items()
        ]
        section.tables.append(Table(["run", *columns], lines))
        sections.append(section)
    return sections


def learned(compared: Sequence[Material]) -> Section | None:
    """Draw every run's loss on common axes; runs of other losses cannot be set side by side."""
    curves: dict[str, Sequence[tuple[float, float]]] = {}
    for name, material in zip(names_of(compared), compared, strict=True):
        run = material.train or material.pretrain
        lines = loss_lines(run) if run is not None else {}
        if lines:
            curves[name] = next(iter(lines.values()))
    if not curves:
        return None
    section = Section(name="losses", title="How they learned")
    section.text = "The whole loss as logged; it compares runs that minimise the same one."
    section.drawings.append(Drawing(svg.curves("Loss", curves)))
    return section


def spent(compared: Sequence[Material]) -> Section:
    """Show what every run was made of and what it took."""
    rows = []
    for name, material in zip(names_of(compared), compared, strict=True):
        stage = next((s for s in ("train", "pretrain", "encode") if s in material.runs), "")
        seconds, rate = seconds_of(material, stage), rate_of(material, stage)
        stats = material.runs[stage].stats if stage else {}
        rows.append(
            Row(
                [
                    name,
                    stage or "evaluate",
                    material.dataset.url.rpartition("/")[2] if material.dataset else "",
                    f"{stats['steps']:,}" if isinstance(stats.get("steps"), int) else "",
                    format_duration(seconds) if seconds else "",
                    f"{rate:,.4g}" if rate else "",
                    str(material.folder),
                ]
            )
        )
    heads = ["run", "stage", "dataset", "steps", "time", "img/s", "folder"]
    return Section(name="runs", title="The runs", tables=[Table(heads, rows, numeric=False)])


def settings(compared: Sequence[Material]) -> Section | None:
    """Show the settings in which the runs differ."""
    each = []
    for material in compared:
        run = material.train or material.pretrain or material.encode or material.evaluate
        each.append(_flat(run.settings()) if run is not None else {})
    keys = list(dict.fromkeys(key for own in each for key in own))
    lines = []
    for key in keys:
        values = [str(own.get(key, "—")) for own in each]
        if len(set(values)) > 1 and key not in OWN:
            lines.append(Row([key, *values]))
    section = Section(name="settings", title="Where their settings differ")
    if not lines:
        section.text = "Nowhere but in their names."
        return section
    section.tables.append(Table(["setting", *names_of(compared)], lines, numeric=False))
    return section


def names_of(compared: Sequence[Material]) -> list[str]:
    """Return a short name for each run, told apart by as much of the path as it takes."""
    paths = [material.folder.absolute().parts for material in compared]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
