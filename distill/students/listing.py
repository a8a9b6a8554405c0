"""`dreamshard list students`: the students found below some folders, and what one can be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreamshard.errors import DreamshardError

MAX_DEPTH = 4
"""Folders below the one named in which a student is looked for."""
SHOWN = 40
"""Networks of timm that are named at once (count)."""


def main(argv: Sequence[str]) -> int:
    """Print a line per student found, and what students can be; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="dreamshard list students",
        description="Show the trained students found, and the networks that students can be.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="*", default=["runs"], help="where to look; default: runs")
    parser.add_argument("--timm", default="", help="name timm's networks of a pattern: '*resnet*'")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(list(argv))
    if options.json:
        from storage.verbs.as_json import SCHEMA
        from storage.verbs.commands import print_json

        print_json({"schema": SCHEMA, "found": look(options.folders)})
        return 0
    lines = [*found(options.folders), "", *networks(options.timm)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def look(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Describe the trained students below some folders.

    Members: path; network, strides, image_size, method, steps, licence, or else error.
    """
    from distill.students.card import read_card

    rows: list[dict[str, Any]] = []
    for folder in folders:
        for path in _students(Path(folder), MAX_DEPTH):
            try:
                card, _ = read_card(path)
            except DreamshardError as error:
                rows.append({"path": str(path), "error": str(error)})
                continue
            told = card.provenance
            rows.append(
                {
                    "path": str(path),
                    "network": str(card.student.get("name")),
                    "strides": card.strides,
                    "image_size": card.image_size,
                    "method": told.get("method", "?"),
                    "steps": told.get("steps", "?"),
                    "licence": told.get("licence", "unknown"),
                }
            )
    return rows


def found(folders: Sequence[str]) -> list[str]:
    """Return a line per trained student: where, network, strides, method, steps, licence."""
    lines = []
    for one in look(folders):
        if "error" in one:
            lines.append(f"{one['path']}  cannot be read: {one['error'][:120]}")
            continue
        strides = ", ".join(f"s{stride}" for stride in one["strides"])
        height, width = one["image_size"]
        lines.append(
            f"{one['path']}  {one['network']}  {strides}  {height}x{width} pixels  "
            f"{one['method']}, {one['steps']} steps  licence {one['licence']}"
        )
    return lines or [f"no trained student found below {', '.join(folders)}"]


def networks(pattern: str = "") -> list[str]:
    """Return a line per kind of network that a student can be, or per name of timm's.

    Args:
        pattern: of timm's names, with `*`; empty for their number alone.
    """
    import timm

    from distill.students.backbones import BACKBONES

    names = timm.list_models(pattern or "*")
    if pattern:
        more = [f"... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        return [*names[:SHOWN], *more] or [f"timm has no network {pattern}"]
    lines = [f"student.name {name}: ours, its first map at full resolution" for name in BACKBONES]
    return [
        *lines,
        f"student.name NAME: one of timm's {len(names):,} (list students --timm 'resnet*')",
        "student.name module:Class: a class of your own",
    ]


def _students(folder: Path, depth: int) -> Iterator[Path]:
    from distill.students.card import CARD

    if (folder / CARD).is_file():
        yield folder
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".")
        if depth and entry.is_dir() and not entry.is_symlink() and not hidden:
            yield from _students(entry, depth - 1)
