"""The house: floors, circles, rooms. What stands on a floor may import only what stands below it.

Lazy imports inside functions count: a circle that closes later is still one.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dreamshard", "storage", "pipeline", "distill")
FLOORS: dict[str, tuple[str, ...]] = {
    "storage": (
        "schema", "level_names fs", "codecs", "rows", "ledger", "formats", "snapshot", "batches",
        "dataset", "catalog join relabel", "verbs",
    ),
    "pipeline": (
        "teachers", "images", "learning", "cluster", "request", "offline streaming",
        "run pretrain_gan",
        "encode synthesize pretrain interpret serve",
    ),
    "pipeline.teachers": (
        "pixels", "base", "weights request", "recording", "diffusion gan noise timm", "posthoc",
        "interpreted",
        "load", "door", "inspecting",
    ),
    "pipeline.images": (
        "listing labels judges", "evidence ranges", "source", "sources",
        "prepare quality reading",
        "inputs", "labelled pair stored",
    ),
    "distill": (
        "tables", "probes", "configs", "losses", "students modules", "data", "methods", "training",
        "bench", "tasks", "train evaluate publish",
    ),
    "dreamshard.console": (
        "shadow", "cli", "report verify api", "doctor demo view publish completion importing",
        "own",
    ),
}  # fmt: skip
"""Place -> its floors, the lowest first; rooms on one floor do not import one another."""
MAX_ROOMS = 14
MAX_LINES, MAX_MEDIAN = 400, 140
DOOR = ("dreamshard", "dreamshard.__main__")
"""Modules that belong to the console: they open the way to everything once somebody knocks."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> the modules of ours that it imports anywhere."""
    known, graph = modules(), {}
    for module, path in known.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                dotted = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in known else node.module for name in dotted}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        graph[module] = frozenset(names & known.keys())
    return graph


def _storey(module: str) -> int:
    if module.startswith("dreamshard.console") or module in DOOR:
        return len(PACKAGES)
    return PACKAGES.index(module.split(".")[0])


def _room(place: str, module: str) -> tuple[int, str]:
    room = module.removeprefix(f"{place}.").split(".")[0]
    for floor, rooms in enumerate(FLOORS[place]):
        if room in rooms.split():
            return floor, room
    raise AssertionError(f"{module}: {place} has no floor for {room}")


def test_packages_stand_on_one_another() -> None:
    up = [(m, d) for m, deps in imports().items() for d in deps if _storey(d) > _storey(m)]
    assert not up


@pytest.mark.parametrize("place", FLOORS)
def test_rooms_import_what_stands_below(place: str) -> None:
    up = []
    for module, needed in imports().items():
        if not module.startswith(f"{place}."):
            continue
        floor, room = _room(place, module)
        for other in needed:
            if other.startswith(f"{place}."):
                its_floor, its_room = _room(place, other)
                if its_room != room and its_floor >= floor:
                    up.append(f"{module} -> {other}")
    assert not up


def test_no_circles() -> None:
    graph = {module: set(needed) - {module} for module, needed in imports().items()}
    # What imports nothing that is left stands; whatever never stands is part of a circle.
    while standing := [module for module, needed in graph.items() if not needed]:
        for module in standing:
            del graph[module]
        for needed in graph.values():
            needed.difference_update(standing)
    assert not graph


def test_folders_have_few_rooms_and_say_what_they_are() -> None:
    for folder in sorted({path.parent for path in modules().values()}):
        rooms = [
            entry.name
            for entry in folder.iterdir()
            if (entry.suffix == ".py" and entry.stem != "__init__")
            or (entry / "__init__.py").exists()
        ]
        assert len(rooms) <= MAX_ROOMS, f"{folder}: {len(rooms)} rooms"
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and "TODO" not in doc, folder


def test_files_are_short() -> None:
    lengths = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in modules().items()}
    assert not {module: lines for module, lines in lengths.items() if lines > MAX_LINES}
    files = sorted(n for m, n in lengths.items() if modules()[m].stem != "__init__")
    assert files[len(files) // 2] <= MAX_MEDIAN
