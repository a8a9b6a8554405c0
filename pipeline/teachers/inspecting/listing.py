"""`dreamshard list teachers`: the families there are, and the teachers found below some folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from dreamshard.errors import DreamshardError
from pipeline.teachers import weights
from pipeline.teachers.diffusion.checkpoints import FOLDERS, family_of, kind_of
from pipeline.teachers.load import TEACHERS, parts_of
from pipeline.teachers.timm import choice

MAX_DEPTH = 4
"""Folders below the one named in which a teacher is looked for."""
MARKS = ("model_index.json", "student.json", "config.json", "teacher_card.json")
CHECKPOINTS = ("*.pt", "*.pth", "*.pkl", "*.safetensors", "*.ckpt")
INNER = {"unet", "transformer", "vae", "scheduler", "text_encoder", "tokenizer"}
"""Parts of a pipeline's folder, which is one teacher."""


def main(argv: Sequence[str]) -> int:
    """Print a line per family, and a line per teacher found; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="dreamshard list teachers",
        description="Show the families of teachers (teacher.kind), and the teachers found.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="*", default=["."], help="where to look; default: here")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(list(argv))
    if options.json:
        from storage.verbs.as_json import SCHEMA
        from storage.verbs.commands import print_json

        teachers, others = look(options.folders)
        told = {"schema": SCHEMA, "families": known_families(), "found": teachers}
        print_json(told | {"not_teachers": others})
        return 0
    sys.stdout.write("\n".join([*families(), "", *found(options.folders)]) + "\n")
    return 0


def known_families() -> list[dict[str, object]]:
    """Describe every family and part: kind, part ("" for the only one), modes, about."""
    rows: list[dict[str, object]] = []
    for kind in TEACHERS:
        for part, cls in parts_of(kind).items():
            about = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()
            told = about[0].rstrip(":") if about else ""
            rows.append({"kind": kind, "part": part, "modes": list(cls.modes), "about": told})
    return rows


def families() -> list[str]:
    """Return a line per family and part: its kind, what it can do, what it is."""
    rows = []
    for one in known_families():
        name = f"{one['kind']} ({one['part']})" if one["part"] else str(one["kind"])
        rows.append((name, ", ".join(cast("list[str]", one["modes"])), str(one["about"])))
    return _columns([("kind", "does", "what it is"), *rows])


def look(folders: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """Find the teachers below some folders (path, kind, licence), and files that are none."""
    rows, others = [], []
    for folder in folders:
        for path in _teachers(Path(folder), MAX_DEPTH):
            try:
                kind = kind_of(path)
                if kind == "diffusers" and path.is_file():
                    family_of(path)
                rows.append({"path": str(path), "kind": kind, "licence": _licence(path, kind)})
            except DreamshardError:
                others.append(str(path))
    return rows, others


def found(folders: Sequence[str]) -> list[str]:
    """Return a line per teacher below some folders: where, which kind, under which licence."""
    teachers, others = look(folders)
    rows = [(one["path"], one["kind"], f"licence {one['licence']}") for one in teachers]
    lines = _columns([("found", "kind", ""), *rows]) if rows else []
    if others:
        lines.append(f"{len(others)} files that are no teacher, such as {others[0]}")
    return lines or [f"no teacher found below {', '.join(folders)}"]


def _licence(path: Path, kind: str) -> str:
    if kind == "timm":
        return choice.of_folder(path if path.is_dir() else path.parent).licence
    if kind == "student":
        return choice.licence_of(path, {})
    return weights.licence(path if path.is_dir() else path.parent)


def _teachers(folder: Path, depth: int) -> Iterator[Path]:
    """Yield folders and single checkpoints that look like teachers, in order of their names."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    named = [name for names in FOLDERS.values() for name in names]
    if any((folder / mark).is_file() for mark in MARKS) or any(
        any(folder.glob(name)) for name in named
    ):
        yield folder
        return
    if (folder / "dataset.json").exists():  # features, not a network
        return
    for pattern in CHECKPOINTS:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
    for entry in entries:
        inside = entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
        if depth and inside and entry.name not in INNER:
            yield from _teachers(entry, depth - 1)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
