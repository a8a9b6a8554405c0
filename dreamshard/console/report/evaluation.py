"""Sections on what a student is worth: every task of an evaluation, drawn and as its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamshard.console.report import svg
from dreamshard.console.report.material import Material
from dreamshard.console.report.page import Drawing, Row, Section, Strip, Table, Tile, compared
from dreamshard.console.report.runs import is_number
from dreamshard.foreign.files import read_bytes

FEW_LABEL = "few_label"
"""Has a section of its own, with the paired draws."""
TITLES = {
    "few_label": "A few labels per class",
    "linear_probe": "Linear probe on frozen features",
    "knn": "Nearest neighbours of frozen features",
    "finetune": "Fine-tuned on a part of the labels",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "cluster_alignment": "Clusters as classes",
    "mmd": "Real and synthetic images, squared MMD x 1000",
    "transfer": "Transfer to other datasets",
    "pictures": "Embeddings of held-out images",
}
COLUMNS = {
    "few_label": "{} per class",
    "knn": "k = {}",
    "finetune": "{} of labels",
    "segmentation": "{} images",
}
"""What a task's columns are counts of."""
NO_SCORES = ("mmd", "pictures")
"""Tasks whose figures are not the better the larger, per cent: no headline numbers."""
MAX_BARS = 60


def task_results(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the tasks in a results.json that have rows to show: {task: result}."""
    return {
        name: result
        for name, result in results.items()
        if isinstance(result, dict) and isinstance(result.get("rows"), dict) and result["rows"]
    }


def figures(task: str, result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Reduce a task's result to numbers: {row: {column: value}}.

    A cell may be a number, hold one as `mean`, or hold several by name, which become columns of
    their own. What was not measured (null) is left out.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, row in result["rows"].items():
        cells = rows.setdefault(str(name), {})
        for column, cell in row.items() if isinstance(row, dict) else ():
            told = column if "=" in column else COLUMNS.get(task, "{}").format(column)
            if is_number(cell):
                cells[told] = float(cell)
            elif isinstance(cell, dict) and is_number(cell.get("mean")):
                cells[told] = float(cell["mean"])
            elif isinstance(cell, dict):
                inner = {f"{column} {key}": value for key, value in cell.items()}
                cells |= {key: float(value) for key, value in inner.items() if is_number(value)}
    return rows


def subject_of(result: Mapping[str, Any]) -> str:
    """Return the row that an evaluation is about: the one it names, else the last."""
    return str(result.get("subject") or list(result["rows"])[-1])


def tasks(material: Material) -> list[Section]:
    """Show every task but the few-label probe, which has its own section."""
    sections = []
    for name, result in task_results(material.results).items():
        if name == FEW_LABEL and material.probe is not None:
            continue
        section = Section(name=name, title=TITLES.get(name, name.replace("_", " ").capitalize()))
        rows, ours = figures(name, result), subject_of(result)
        drawn = {row: cells for row, cells in rows.items() if cells}
        if drawn and name not in NO_SCORES and sum(map(len, drawn.values())) <= MAX_BARS:
            section.drawings.append(Drawing(svg.bars("Held-out images", drawn, ours=ours)))
        section.tables += kept_tables(material.results, name, ours) or [plain_table(rows, ours)]
        section.strips += _pictures(material, name)
        sections.append(section)
    return sections


def kept_tables(results: Mapping[str, Any], task: str, ours: str) -> list[Table]:
    """Return a task's tables as `dreamshard evaluate` printed them; none of earlier versions."""
    kept = results.get("tables")
    printed = kept.get(task, []) if isinstance(kept, dict) else []
    tables = []
    for table in printed:
        rows = [
            Row([str(cell) for cell in line], ours=str(line[0]) == ours)
            for line in table["lines"]
            if line
        ]
        tables.append(Table([str(head) for head in table["header"]], rows, title=table["title"]))
    return tables


def plain_table(rows: Mapping[str, Mapping[str, float]], ours: str) -> Table:
    """Lay figures out that come without tables."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    best = {c: max((row[c] for row in rows.values() if c in row), default=None) for c in columns}
    lines = [
        Row(
            [name, *(f"{row[c]:.1f}" if c in row else "" for c in columns)],
            best=[place for place, c in enumerate(columns, 1) if row.get(c) == best[c]],
            ours=name == ours,
        )
        for name, row in rows.items()
    ]
    return Table(["", *columns], lines)


def tiles(material: Material) -> list[Tile]:
    """Choose a headline number per task: the subject's best column, beside its best rival."""
    chosen = []
    for name, result in task_results(material.results).items():
        if name == FEW_LABEL and material.probe is not None:
            continue
        rows, ours = figures(name, result), subject_of(result)
        own = rows.get(ours, {})
        if not own or name in NO_SCORES:
            continue
        column = max(own, key=own.__getitem__)
        others = [
            row[column] for row_name, row in rows.items() if row_name != ours if column in row
        ]
        label = f"{ours}, {TITLES.get(name, name).lower()}, {column}"
        chosen.append(compared(own[column], label, others))
    return chosen


def _pictures(material: Material, task: str) -> list[Strip]:
    """Return the pictures that a task left in the evaluation's folder."""
    if material.evaluate is None:
        return []
    places = sorted(material.evaluate.path.glob(f"{task}*.png"))
    return [Strip(read_bytes(place), alt=place.stem) for place in places if place.is_file()]
