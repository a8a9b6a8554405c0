"""`dreamshard list students`: the students found below some folders, and what one can be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(list(argv))
    lines = [*found(options.folders), "", *networks(options.timm)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def found(folders: Sequence[str]) -> list[str]:
    """Return a line per trained student: where, network, strides, method, steps, licence."""
    from distill.students.card import read_card

    lines = []
    for folder in folders:
        for path in _students(Path(folder), MAX_DEPTH):
            try:
                card, _ = read_card(path)
            except DreamshardError as error:
                lines.append(f"{path}  cannot be read: {str(error)[:120]}")
                continue
            told = card.provenance
            name = str(card.student.get("name"))
            strides = ", ".join(f"s{stride}" for stride in card.strides)
            method, steps = told.get("method", "?"), told.get("steps", "?")
            lines.append(
                f"{path}  {name}  {strides}  {card.size[0]}x{card.size[1]} pixels  {method}, "
                f"{steps} steps  licence {told.get('licence', 'unknown')}"
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
