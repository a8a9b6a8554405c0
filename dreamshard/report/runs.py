"""Read back what run folders keep: commands, configuration, environment, metrics and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VERBS = ("pretrain", "encode", "synthesize", "train", "evaluate")
_VERB = re.compile(rf"(?:^|[\s/])({'|'.join(VERBS)})(?:\.py)?(?:\s|$)")


@dataclass(frozen=True)
class Run:
    """Hold the records of one run folder; a record that is not there is empty."""

    path: Path
    verb: str
    commands: tuple[str, ...]
    config: str
    environment: dict[str, Any]
    stats: dict[str, Any]

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl in order; a torn last line is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(values, dict):
                yield values

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return the points (step, value) of one metric.

        A run that was resumed may log a step twice; the later value stands.
        """
        points = {
            float(line["step"]): float(line[name])
            for line in self.metrics()
            if is_number(line.get("step")) and is_number(line.get(name))
        }
        return sorted(points.items())

    def settings(self) -> dict[str, Any]:
        """Return the configuration as plain values; empty if there is none to read."""
        try:
            value = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return value if isinstance(value, dict) else {}


def read_run(path: Path) -> Run | None:
    """Read one run folder; None if no run was ever started in it."""
    history = path / "command.txt"
    if not history.exists():
        return None
    lines = history.read_text(encoding="utf-8").splitlines()
    commands = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    found = _VERB.search(commands[-1]) if commands else None
    config = path / "config.resolved.yaml"
    return Run(
        path=path,
        verb=found.group(1) if found else "",
        commands=commands,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        environment=read_json(path / "environment.json"),
        stats=read_json(path / "stats.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no file, or no object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def find_runs(folder: Path) -> list[Run]:
    """Return the run in a folder and those up to two folders below it, by path."""
    places = [folder, *folder.glob("*/"), *folder.glob("*/*/")]
    runs = (read_run(place) for place in sorted(places))
    return [run for run in runs if run is not None]


def is_number(value: object) -> bool:
    """Tell numbers from everything else, truth values included."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def format_bytes(count: int) -> str:
    """Format a number of bytes in decimal units."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def folder_tree(folder: Path, *, max_entries: int = 7, max_depth: int = 4) -> str:
    """Draw a folder as a tree with the size of every file and the total of every folder.

    Args:
        folder: its root.
        max_entries: entries shown per folder; of longer ones the first, and a count of the rest.
        max_depth: levels shown below the root.
    """
    lines: list[tuple[str, int]] = [(f"{folder.name}/", _size(folder))]
    _branches(folder, "", lines, max_entries=max_entries, depth=max_depth)
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  {format_bytes(size):>8}" for text, size in lines)


def _branches(
    folder: Path, indent: str, lines: list[tuple[str, int]], *, max_entries: int, depth: int
) -> None:
    entries = sorted(
        (entry for entry in folder.iterdir() if not entry.name.startswith(".")),
        key=lambda entry: (not entry.is_dir(), _natural(entry.name)),
    )
    shown, hidden = entries, entries[:0]
    if len(entries) > max_entries:
        shown, hidden = entries[: max_entries - 1], entries[max_entries - 1 :]
    for number, entry in enumerate(shown):
        last = number == len(shown) - 1 and not hidden
        entry, name = _chain(entry)
        is_folder = name.endswith("/")
        lines.append((f"{indent}{'└── ' if last else '├── '}{name}", _size(entry)))
        if is_folder and depth > 1:
            below = indent + ("    " if last else "│   ")
            _branches(entry, below, lines, max_entries=max_entries, depth=depth - 1)
    if hidden:
        lines.append((f"{indent}└── … {len(hidden)} more", sum(map(_size, hidden))))


def _chain(entry: Path) -> tuple[Path, str]:
    """Follow folders that hold one thing alone; return the last and the names on the way."""
    name = entry.name
    while entry.is_dir() and not entry.is_symlink():
        name += "/"
        inside = list(entry.iterdir())
        if len(inside) != 1:
            break
        entry = inside[0]
        name += entry.name
    return entry, name


def _natural(name: str) -> Sequence[str | int]:
    """Sort 9 before 10: digits compare as numbers, never against letters."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _size(entry: Path) -> int:
    if entry.is_symlink() or not entry.exists():
        return 0
    if entry.is_dir():
        return sum(_size(child) for child in entry.iterdir())
    return entry.stat().st_size
