"""Rules of the house that no linter knows."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.setting_reads import Reads

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["dreamshard", "storage", "pipeline", "distill"]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FOLDERS = [
    *PACKAGES, "tests", "recipes", "benchmarks", "cluster_configs", "docs", "notebooks", ".ci"
]  # fmt: skip
TEXTS = [
    path
    for path in [*ROOT.iterdir(), *(p for name in FOLDERS for p in (ROOT / name).rglob("*"))]
    if path.is_file() and path.suffix in ("", ".py", ".md", ".toml", ".txt", ".yaml", ".j2", ".sh")
]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _lines(function: Function) -> int:
    """Count a function's lines, its docstring's left out."""
    first = function.body[0]
    doc = first if ast.get_docstring(function) else None
    doc_lines = (doc.end_lineno or 0) - doc.lineno + 1 if doc else 0
    return (function.end_lineno or 0) - function.lineno + 1 - doc_lines


def _public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions, classes and methods of a module or class."""
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield f"{prefix}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{prefix}.{child.name}")


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(_tree(path)) if isinstance(node, Function)]
    lengths = {node.name: _lines(node) for node in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_everything_public_is_documented(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree), "the module"
    missing = [
        name
        for name, node in _public(tree, path.stem)
        if isinstance(node, Function | ast.ClassDef) and not ast.get_docstring(node)
    ]
    assert not missing


def test_no_private_places_are_named() -> None:
    private = re.compile(r"(?<![\w.>}])/(work|opt/wheels|opt/pypi|tmp/ds|root)\b/?|file:///")
    found = [
        f"{_name(path)}: {match.group()}"
        for path in TEXTS
        for match in private.finditer(path.read_text(encoding="utf-8"))
        if path != Path(__file__)
    ]
    assert not found


@cache
def _configs() -> list[ast.ClassDef]:
    """Return every configuration dataclass in the packages."""
    return [
        node
        for path in SOURCES
        if "Config" in path.read_text(encoding="utf-8")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list
    ]


def _is_setting(item: ast.AnnAssign) -> bool:
    return "ClassVar" not in ast.unparse(item.annotation)


def test_every_setting_is_used() -> None:
    reads = Reads(map(_tree, SOURCES))
    unused = [
        f"{config.name}.{item.target.id}"
        for config in _configs()
        for item in config.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if _is_setting(item) and not reads.of(config.name, item.target.id)
    ]
    assert not unused


def test_a_setting_is_read_on_its_own_class_alone() -> None:
    """An attribute of the same name elsewhere is no use of it, nor is its check."""
    source = """
class AConfig:
    steps: int
    lr: float
    warm: int
    floor: float
    def problems(self):
        return [self.warm]
class BConfig:
    parts: list[AConfig] | None
    steps: int
class Other:
    def __init__(self, config: BConfig, more):
        self.config = config
        self.lr = 1.0
        print(self.lr, more.floor)
    def run(self):
        return [part.steps for _, part in enumerate(self.config.parts)]
"""
    reads = Reads([ast.parse(source)])
    assert reads.of("AConfig", "steps") and reads.of("BConfig", "parts")
    assert not reads.of("BConfig", "steps") and not reads.of("AConfig", "lr")
    assert not reads.of("AConfig", "warm") and not reads.of("AConfig", "floor")


def test_every_setting_is_explained() -> None:
    silent = []
    for config in _configs():
        for item, after in zip(config.body, [*config.body[1:], ast.Pass()], strict=True):
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and _is_setting(item) and not explained:
                silent.append(f"{config.name}.{ast.unparse(item.target)}")
    assert not silent
