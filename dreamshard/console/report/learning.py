"""Sections on learning: losses, what a few labels are worth, where the time went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dreamshard.charts import DARK, LIGHT, Theme, probe_chart, stage_bars
from dreamshard.console.report import svg
from dreamshard.console.report.material import Material, rate_of, seconds_of
from dreamshard.console.report.page import (
    Chart,
    Drawing,
    Row,
    Section,
    Table,
    mean_and_std,
    plural,
)
from dreamshard.console.report.runs import Run, is_number

LOSS_NAMES = {"at": "attention transfer", "mse": "whitened regression"}
NOT_A_LOSS = frozenset(
    "step time lr img_per_s wait_percent grad_norm memory_gb skipped averaged".split()
)
MONITOR = "monitor_"  # how the names of what a run's monitor saw begin
GRADIENT, WEIGHT = "gradient.", "weight."  # and of what is told of each term of the loss
MOST_LINES, MAX_LOOKS = 6, 12


def losses(material: Material) -> Section | None:
    """Show the loss curves of teacher and student."""
    section = Section(name="losses", title="How they learned")
    for title, run in (("Teacher", material.pretrain), ("Student", material.train)):
        lines = loss_lines(run) if run is not None else {}
        if lines:
            section.drawings.append(Drawing(svg.curves(title, lines, y="loss")))
    if material.train is not None:
        section.tables += term_tables(material.train)
        section.tables += monitor_tables(material.train)
    if not section.drawings and not section.tables:
        return None
    section.text = "Losses as logged; the values under the pointer are told."
    return section


def loss_lines(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Return a run's losses by name, `loss` first; those that say the same share a line."""
    names = {key for line in run.metrics() for key, value in line.items() if is_number(value)}
    beside = (MONITOR, GRADIENT, WEIGHT)
    names = {name for name in names - NOT_A_LOSS if not name.startswith(beside)}
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in sorted(names, key=lambda name: (name != "loss", name)):
        points = [point for point in run.curve(name) if math.isfinite(point[1])]
        shown = LOSS_NAMES.get(name, name)
        same = next((other for other, its in lines.items() if its == points), None)
        if same is not None:
            lines = {f"{k} = {shown}" if k == same else k: v for k, v in lines.items()}
        elif points and len(lines) < MOST_LINES:
            lines[shown] = points
    return lines


def term_tables(run: Run) -> list[Table]:
    """Lay out each term of the loss, first and last as logged: value, weight, gradient."""
    lines = [line for line in run.metrics() if any(name.startswith(WEIGHT) for name in line)]
    if not lines:
        return []
    terms = [name.removeprefix(WEIGHT) for name in lines[-1] if name.startswith(WEIGHT)]
    ends = (lines[0], lines[-1])
    rows = [
        Row([LOSS_NAMES.get(term, term)] + [
            f"{line[key]:.3g}" if is_number(line.get(key)) else "-"
            for key in (term, f"{WEIGHT}{term}", f"{GRADIENT}{term}")
            for line in (ends[1:] if key.startswith(WEIGHT) else ends)
        ])
        for term in terms
    ]  # fmt: skip
    first, last = (f"step {line.get('step', '?'):,}" for line in ends)
    heads = ["term", first, last, "weight", f"gradient, {first}", f"gradient, {last}"]
    text = "Gradient: its norm at the student's deepest map, before the weight."
    return [Table(heads, rows, title="Terms of the loss", text=text)]


def monitor_tables(run: Run) -> list[Table]:
    """Lay out what a training run's monitor saw, at most a dozen looks evenly spaced."""
    names = {name for line in run.metrics() for name in line if name.startswith(MONITOR)}
    tables = []
    for name in sorted(names):
        points = run.curve(name)
        every = max(1, -(-len(points) // MAX_LOOKS))
        shown = points[::-1][::every][::-1]  # the last look is always there
        rows = [Row([f"{step:,.0f}", f"{value:.1f}"]) for step, value in shown]
        kind = name.removeprefix(MONITOR)
        title = f"Accuracy of the student while it learned ({kind}), in per cent"
        tables.append(Table(["step", kind], rows, title=title))
    return tables


def probe(material: Material) -> Section | None:
    """Show the probe's accuracies and the paired differences."""
    section = Section(name="probe", title="What a few labels are worth")
    if material.probe is None:
        return None
    rows, subject = material.probe["rows"], material.probe["subject"]
    draws = max(len(cell["accuracy"]) for row in rows.values() for cell in row.values())
    section.text = (
        "A linear probe on frozen features, fitted on a few labelled images per class and judged "
        "on images held out from everything. Every representation gets the same "
        f"{draws} draws of labels, and the better of two scalings by its training images: "
        "standardised feature by feature (s) or centred only (c)."
    )
    accuracies = {
        name: {int(shots): cell["accuracy"] for shots, cell in row.items()}
        for name, row in rows.items()
    }
    section.charts.append(
        _chart(lambda theme: probe_chart(accuracies, theme, ours=subject), "probe accuracies")
    )
    section.tables += [accuracy_table(rows, subject), paired_table(material.probe)]
    return section


def accuracy_table(rows: Mapping[str, Any], subject: str) -> Table:
    """Lay out mean ± std per representation and label count, the best of each count marked."""
    counts = list(next(iter(rows.values())))
    best = {n: max(rows, key=lambda name: rows[name][n]["mean"]) for n in counts}
    lines = [
        Row(
            [name, *(mean_and_std(row[n]) for n in counts)],
            best=[place for place, n in enumerate(counts, 1) if best[n] == name],
            ours=name == subject,
        )
        for name, row in rows.items()
    ]
    heads = ["representation", *(f"{plural(n, 'label')} per class" for n in counts)]
    return Table(heads, lines, title="Accuracy in per cent, mean ± standard deviation over draws")


def paired_table(result: Mapping[str, Any]) -> Table:
    """Lay out the subject's gain over each other representation on the same label draws."""
    counts = list(next(iter(result["rows"].values())))
    lines = []
    for name, cells in result["paired"].items():
        shown = []
        for n in counts:
            cell = cells[n]
            ties = f", {cell['ties']} tied" if cell["ties"] else ""
            draws = cell["wins"] + cell["ties"] + cell["losses"]
            shown.append(
                f"{cell['mean']:+.1f} ± {cell['std']:.1f} (won {cell['wins']} of {draws}{ties})"
            )
        lines.append(Row([f"over {name}", *shown]))
    heads = [result["subject"], *(f"{plural(n, 'label')} per class" for n in counts)]
    return Table(heads, lines, title="Gain in percentage points, draw by draw")


def throughput(material: Material) -> Section | None:
    """Show how long each stage took and how fast it was."""
    section = Section(name="throughput", title="Where the time went")
    names = list(dict.fromkeys([*material.runs, *material.seconds]))
    stages = {name: (seconds_of(material, name), rate_of(material, name)) for name in names}
    stages = {name: pair for name, pair in stages.items() if any(pair)}
    if not stages:
        return None
    section.text = (
        "Seconds are of the run that did the work, start-up included; a stage reused later costs "
        "a look-up. Images per second count while images flow."
    )
    section.charts.append(_chart(lambda theme: stage_bars(stages, theme), "seconds per stage"))
    return section


def _chart(draw: Callable[[Theme], bytes], alt: str) -> Chart:
    return Chart(draw(LIGHT), draw(DARK), alt)
