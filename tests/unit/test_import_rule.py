"""dreamshard <- storage <- pipeline <- distill, and nothing heavy before it is needed."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamshard.console.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["dreamshard", "storage", "pipeline", "distill"]
HEAVY = {"torch", "ray", "torchvision", "diffusers", "timm", "accelerate", "sklearn", "matplotlib"}
BEHIND = {
    f"dreamshard/console/{name}.py"
    for name in (
        *("api/batches", "api/dataset", "own/look", "own/presets", "own/writing"),
        *("importing/command", "importing/shards", "importing/values"),
        *(
            f"view/{room}"
            for room in ("answers", "features", "feed", "places", "samples", "server", "students")
        ),
    )
}
"""Rooms behind the front door: opened once somebody has knocked, they import what they need."""
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(node: ast.AST, *, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield each top-level module imported below a node, and whether lazily or for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield (child.module or "").partition(".")[0], lazy
        called = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, lazy=lazy or called or typing_only)


def _run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = set(ORDER[ORDER.index(package) + 1 :])
    if path.relative_to(ROOT).as_posix() in BEHIND:
        return
    for module, lazy in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        # The front door may call what lies behind it, once somebody knocks.
        assert module not in above or (package == "dreamshard" and lazy), module
        if package in ("dreamshard", "storage"):
            assert module not in HEAVY or lazy, f"{module} at module level"


def test_rooms_behind_the_door_are_opened_by_who_has_knocked() -> None:
    behind = {name.removesuffix(".py").replace("/", ".") for name in BEHIND}
    for path in FILES:
        if path.relative_to(ROOT).as_posix() in BEHIND:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & behind, path


def test_light_packages_load_neither_torch_nor_ray() -> None:
    behind = {name.removesuffix(".py").replace("/", ".") for name in BEHIND}
    code = (
        f"behind = {sorted(behind)}"
        + """
import importlib, pkgutil, sys
import dreamshard, storage
for package in (dreamshard, storage):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in behind:
            importlib.import_module(module.name)
print(sorted({"torch", "ray", "pipeline", "distill"} & set(sys.modules)))
"""
    )
    assert _run(code).strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_config_errors_come_before_heavy_imports(verb: str) -> None:
    if importlib.util.find_spec(VERBS[verb][0].partition(":")[0]) is None:
        pytest.skip(f"{verb} is not there yet")
    code = f"""
import contextlib, io, sys
from dreamshard.console.cli import main
from dreamshard.errors import run_main
with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(io.StringIO()):
    codes = []
    for argument in ("--help", "--no_such_setting"):
        try:
            codes.append(run_main(main, [{verb!r}, argument]))
        except SystemExit as stop:
            codes.append(stop.code or 0)
heavy = sorted({{"torch", "ray"}} & set(sys.modules))
print(codes, "usage: dreamshard {verb}" in text.getvalue(), heavy)
"""
    assert _run(code).strip() == "[0, 2] True []"
