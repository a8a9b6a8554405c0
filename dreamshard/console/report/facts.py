"""Sections of facts: headline numbers, what is on disk, how to make it again."""

from __future__ import annotations

import shlex

from dreamshard.console.report.material import Material
from dreamshard.console.report.page import (
    Block,
    Row,
    Section,
    Table,
    Tile,
    compared,
    plural,
)
from dreamshard.console.report.runs import folder_tree, format_bytes, is_number, mapping_in
from dreamshard.versions import VERSION

LOOKED_AT = 64
"""Samples that a level's statistics are taken from."""


def few_label_tiles(material: Material) -> list[Tile]:
    """Choose the few-label probe's headline numbers."""
    chosen = []
    if material.probe is not None:
        rows, subject = material.probe["rows"], material.probe["subject"]
        for shots, cell in rows[subject].items():
            others = [row[shots]["mean"] for name, row in rows.items() if name != subject]
            label = f"{subject}, {plural(shots, 'label')} per class"
            chosen.append(compared(cell["mean"], label, others))
    return chosen


def tiles(material: Material) -> list[Tile]:
    """Choose the headline numbers of dataset and time."""
    chosen = []
    if material.dataset is not None:
        from storage.verbs.inspect import summarize

        facts = summarize(material.dataset, max_errors=0)
        levels = plural(len(material.dataset.levels), "level")
        size = format_bytes(facts.stored_bytes)
        chosen.append(Tile(f"{facts.samples:,}", f"images with {levels} of features, {size}"))
    if material.seconds:
        total = sum(material.seconds.values())
        stages = plural(len(material.seconds), "stage")
        chosen.append(Tile(f"{total / 60:.1f}", f"for {stages}, on this machine", "min"))
    return chosen


def made(material: Material) -> Section:
    """Show the folder tree and the facts of the dataset."""
    section = Section(name="made", title="What is on disk")
    section.blocks.append(Block(folder_tree(material.folder, depth=3)))
    if material.dataset is None:
        return section
    from storage.verbs.inspect import describe, summarize

    facts = summarize(material.dataset)
    arrays = [
        Row(
            [
                array.name,
                array.kind or "as given",
                str(array.stride or ""),
                " × ".join(map(str, array.shape)) or "scalar",
                array.codec if array.kind else array.dtype,
                f"{array.stored_bytes:,}",
                format_bytes(array.stored_bytes * facts.samples),
            ]
        )
        for array in facts.arrays
    ]
    heads = ["array", "kind", "stride", "shape", "stored as", "bytes per image", "in all"]
    units = plural(facts.units, "unit")
    each = f"{material.dataset.samples_per_unit:,} images"
    section.tables.append(Table(heads, arrays, title=f"{facts.url.rpartition('/')[2]}: arrays"))
    about = [
        ("state", f"{facts.samples:,} of {facts.requested:,} images, {facts.invalid:,} unusable"),
        ("units", f"{units} of up to {each}, {facts.missing:,} missing"),
        *describe(material.dataset),
    ]
    lines = [Row([what, value]) for what, value in about]
    section.tables.append(Table(["", ""], lines, title="Its description", numeric=False))
    return section


def statistics(material: Material) -> Section | None:
    """Show what every level holds, from samples spread over the dataset."""
    if material.dataset is None:
        return None
    from storage.verbs.statistics import level_statistics, spread

    snapshot = material.dataset.snapshot()
    if not snapshot.num_valid:
        return None
    samples = spread(snapshot, LOOKED_AT)
    rows = []
    for level in snapshot.levels:
        facts = level_statistics(snapshot, level, samples)
        numbers = (facts.mean, facts.std, facts.low, facts.high, facts.norm)
        rows.append(
            Row(
                [
                    level.name,
                    *(f"{number:.4g}" for number in numbers),
                    f"{100 * facts.zeros:.1f} %",
                    f"{facts.dead:,} of {level.shape[0] if level.shape else 1:,}",
                ]
            )
        )
    section = Section(name="statistics", title="What the levels hold")
    section.text = (
        f"As decoded, from {plural(len(samples), 'image')} spread over the dataset. A dead channel "
        "never changes; the length is that of a position's vector over the channels, on average."
    )
    heads = ["level", "mean", "std", "lowest", "highest", "length", "zeros", "dead channels"]
    section.tables.append(Table(heads, rows))
    return section


def following(material: Material) -> Section | None:
    """Show the command to type next: what the last stage's own run names, with its own paths."""
    stages = list(material.runs.values())
    command = stages[-1].next_command() if stages else ""
    if material.dataset is not None and material.train is None and "train" not in command:
        command = f"dreamshard train --data.dataset {shlex.quote(material.dataset.url)}"
    if not command or command.startswith("dreamshard report"):
        return None
    return Section(name="next", title="What to type next", blocks=[Block(wrapped(command))])


def again(material: Material) -> Section | None:
    """Show the commands, configurations and the environment."""
    section = Section(name="again", title="How to make it again")
    if not material.runs:
        return None
    commands = [wrapped(run.commands[-1]) for run in material.runs.values() if run.commands]
    section.blocks.append(Block("\n\n".join(commands), title="Commands"))
    section.blocks += [
        Block(run.config, title=f"{name}: the whole configuration", folded=True)
        for name, run in material.runs.items()
    ]
    environment = list(material.runs.values())[-1].environment
    machine = {key: value for key, value in environment.items() if not isinstance(value, dict)}
    packages = mapping_in(environment, "packages")
    variables = mapping_in(environment, "variables")
    text = "\n".join(f"{key:<18} {value}" for key, value in [*machine.items(), *packages.items()])
    section.blocks.append(Block(text, title="Machine and versions", folded=True))
    if variables:
        text = "\n".join(f"{key}={value}" for key, value in variables.items())
        section.blocks.append(Block(text, title="Environment variables", folded=True))
    return section


def wrapped(command: str) -> str:
    """Break a long command into lines that a shell reads as one."""
    return command if len(command) <= 100 else command.replace(" --", " \\\n    --")


def stamp(material: Material) -> str:
    """Say on what machine and with which version the runs were made."""
    environment = next((run.environment for run in material.runs.values()), {})
    known = [str(environment[name]) for name in ("platform",) if name in environment]
    if is_number(environment.get("cpus")):
        known.append(plural(environment["cpus"], "CPU"))
    version = mapping_in(environment, "packages").get("dreamshard")
    return " · ".join([*known, f"dreamshard {version or VERSION}"])
