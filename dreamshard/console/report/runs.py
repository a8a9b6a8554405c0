"""Read back what run folders keep: commands, configuration, environment, metrics and figures."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamshard.errors import DataError
from dreamshard.foreign import text
from dreamshard.foreign.files import MAX_BYTES, read_bytes
from dreamshard.foreign.text import parse_json

VERBS = ("pretrain", "encode", "synthesize", "train", "evaluate")
METRICS_BYTES = 256 << 20
"""The most that is read of metrics.jsonl: some two million steps."""
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
        for line in _text_of(file, limit=METRICS_BYTES).splitlines():
            try:
                values = parse_json(line, where=str(file), infinite=True)
            except ValueError:
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
        import yaml  # where runs are listed alone, this is a fifth of the start

        from dreamshard.config.yaml12 import parse_yaml

        try:
            value = parse_yaml(self.config)
        except (yaml.YAMLError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def next_command(self) -> str:
        """Return the command that README.txt says to type next; empty if there is none."""
        try:
            lines = _text_of(self.path / "README.txt").splitlines()
        except (OSError, DataError):
            return ""
        return lines[1].strip() if len(lines) > 1 and lines[0] == "Next:" else ""


def read_run(path: Path) -> Run | None:
    """Read one run folder; None if no run was ever started in it."""
    history = path / "command.txt"
    if not history.exists():
        return None
    lines = _text_of(history).splitlines()
    commands = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    match = _VERB.search(commands[-1]) if commands else None
    config = path / "config.resolved.yaml"
    return Run(
        path=path,
        verb=match.group(1) if match else "",
        commands=commands,
        config=_text_of(config) if config.exists() else "",
        environment=read_json(path / "environment.json"),
        stats=read_json(path / "stats.json"),
    )


def _text_of(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Read a record of a run; a pipe or a device is refused, not waited for."""
    return read_bytes(path, limit=limit, error=DataError).decode("utf-8", "replace")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no file, or no object in it."""
    try:
        value = text.read_json(path, infinite=True)
    except DataError:
        return {}
    return value if isinstance(value, dict) else {}


def find_runs(folder: Path) -> list[Run]:
    """Return the run in a folder and those up to two folders below it, by path."""
    places = [folder, *folder.glob("*/"), *folder.glob("*/*/")]
    runs = (read_run(place) for place in sorted(places))
    return [run for run in runs if run is not None]


def mapping_in(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key of a record; empty where there is none, or another value."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


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


def folder_tree(folder: Path, *, max_entries: int = 12, max_alike: int = 4, depth: int = 4) -> str:
    """Draw a folder as a tree with the size of every file and the total of every folder.

    Args:
        folder: its root.
        max_entries: entries shown per folder; of longer ones the first, and a count of the rest.
        max_alike: the same for entries whose names differ in numbers alone.
        depth: levels shown below the root.
    """
    lines: list[tuple[str, int]] = [(f"{folder.name}/", _size(folder))]

    def branches(folder: Path, indent: str, depth: int) -> None:
        shown = _shorten(folder, max_entries=max_entries, max_alike=max_alike)
        for number, (entry, name, size) in enumerate(shown, 1):
            last = number == len(shown)
            lines.append((f"{indent}{'└── ' if last else '├── '}{name}", size))
            if name.endswith("/") and depth > 1:
                branches(entry, indent + ("    " if last else "│   "), depth - 1)

    branches(folder, "", depth)
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  {format_bytes(size):>8}" for text, size in lines)


def _shorten(folder: Path, *, max_entries: int, max_alike: int) -> list[tuple[Path, str, int]]:
    """List (place, name, bytes) of a folder's lines, the ends of long lists counted."""
    entries = sorted(
        (entry for entry in folder.iterdir() if not entry.name.startswith(".")),
        key=lambda entry: (not entry.is_dir(), _natural(entry.name)),
    )
    lines: list[tuple[Path, str, int]] = []
    for _, group in itertools.groupby(entries, key=lambda entry: re.sub(r"\d+", "0", entry.name)):
        lines += _cut([(*_chain(entry), _size(entry)) for entry in group], max_alike)
    return _cut(lines, max_entries)


def _cut(lines: list[tuple[Path, str, int]], most: int) -> list[tuple[Path, str, int]]:
    """Keep a list as it is, or its first entries and a line that counts the others."""
    if len(lines) <= most:
        return lines
    rest = lines[most - 1 :]
    return [*lines[: most - 1], (rest[0][0], f"… {len(rest)} more", sum(line[2] for line in rest))]


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
    """Return the bytes of a file, or of all below a folder however deep; links are not followed."""
    total, left = 0, [entry]
    while left:
        place = left.pop()
        mode = os.lstat(place).st_mode
        if stat.S_ISDIR(mode):
            left += place.iterdir()
        elif stat.S_ISREG(mode):
            total += os.lstat(place).st_size
    return total
