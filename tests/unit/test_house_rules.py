"""Rules of the house that no linter knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["dreamshard", "storage", "pipeline", "distill"]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FOLDERS = [*PACKAGES, "tests", "recipes", "benchmarks", "cluster_configs", "docs", ".ci"]
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


def _configs() -> list[ast.ClassDef]:
    """Return every configuration dataclass in the packages."""
    return [
        node
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list
    ]


def _reads(node: ast.AST) -> Iterator[str]:
    """Yield every attribute that is read; checking a setting in `problems` is not using it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function) and child.name == "problems":
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr
        yield from _reads(child)


def test_every_setting_is_used() -> None:
    read = {name for path in SOURCES for name in _reads(_tree(path))}
    unused = [
        f"{config.name}.{item.target.id}"
        for config in _configs()
        for item in config.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if item.target.id not in read
    ]
    assert not unused


def test_every_setting_is_explained() -> None:
    silent = []
    for config in _configs():
        for item, after in zip(config.body, [*config.body[1:], ast.Pass()], strict=True):
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and not explained:
                silent.append(f"{config.name}.{ast.unparse(item.target)}")
    assert not silent
