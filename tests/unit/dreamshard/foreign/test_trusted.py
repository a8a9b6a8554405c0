"""No second door: nothing but `dreamshard.foreign.trusted` turns a name into code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.foreign import trusted

ROOT = Path(__file__).resolve().parents[4]
FILES = [
    path
    for package in ("dreamshard", "storage", "pipeline", "distill")
    for path in sorted((ROOT / package).rglob("*.py"))
]
DOOR = ROOT / "dreamshard" / "foreign" / "trusted.py"
IMPORTERS = {
    "importlib", "imp", "runpy", "pkgutil", "zipimport", "code", "codeop", "marshal", "shelve",
    "dill", "cloudpickle", "joblib",
}  # fmt: skip
CALLS = {"__import__", "exec", "eval", "compile", "execfile"}
METHODS = {
    "torch.hub.load", "hub.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "jit.load",
    "torch.jit.load", "export.load", "torch.export.load", "metadata.entry_points", "entry_points",
}  # fmt: skip
FACTS = {
    "importlib.metadata", "importlib.metadata.version", "importlib.metadata.PackageNotFoundError",
    "importlib.util.find_spec", "importlib.resources", "importlib.machinery.ModuleSpec",
    "importlib.machinery.PathFinder",
}  # fmt: skip
"""What only tells facts: versions, whether a package is there and where, our own files."""
PICKLES = {"torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle"}


def modules_of(tree: ast.AST) -> set[str]:
    """Names that stand for modules in a file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def doors(tree: ast.AST) -> Iterator[str]:
    modules = modules_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in IMPORTERS)
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (n for n in names - FACTS if n.partition(".")[0] in IMPORTERS)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in CALLS or name in METHODS:
            yield name
        if name in PICKLES:
            told = {word.arg: ast.unparse(word.value) for word in node.keywords}
            safe = {"weights_only": "True", "allow_pickle": "False"}[PICKLES[name]]
            if told.get(PICKLES[name]) != safe:
                yield f"{name} without {PICKLES[name]}={safe}"
        computed = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
        of_module = name == "getattr" and dotted(node.args[0]).partition(".")[0] in modules
        if computed and of_module:
            yield ast.unparse(node)
        if name == "trusted.module" and not isinstance(node.args[0], ast.Constant):
            yield ast.unparse(node)
        for word in node.keywords:
            if word.arg == "trust_remote_code" and ast.unparse(word.value) != "False":
                yield "trust_remote_code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_no_second_door(path: Path) -> None:
    if path != DOOR:
        assert list(doors(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import importlib",
        "from importlib import import_module",
        "__import__(name)",
        "exec(text)",
        "import torch\ntorch.hub.load(a, b)",
        "import pickle\npickle.load(file)",
        "import torch\ngetattr(torch, name)",
        "import torchvision\ngetattr(torchvision.datasets, name)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path)",
        "trusted.module(name)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_test_sees_doors(text: str) -> None:
    assert list(doors(ast.parse(text)))


def test_own_names_lead_to_tables_and_import_paths() -> None:
    table = {"path": "pathlib:Path"}
    assert trusted.find("path", table=table) is Path
    assert trusted.find("pathlib:Path", table={}) is Path
    assert trusted.listed("path", table=table) is Path
    with pytest.raises(KeyError):
        trusted.listed("pathlib:Path", table=table)
    for name in ("", "pathlib", ":Path", "pathlib:"):
        with pytest.raises(ImportError):
            trusted.find(name, table={})
    import math

    assert trusted.attribute(math, "pi", allowed=("pi",)) == math.pi
    with pytest.raises(AttributeError, match="none of pi"):
        trusted.attribute(math, "__loader__", allowed=("pi",))


@pytest.mark.parametrize(
    "name", ["os:system", "torch.hub:load", "hf-hub:a/b", "../x", "", None, 3, "a b", "x" * 200]
)
def test_names_from_files_are_data(name: object) -> None:
    with pytest.raises(DataError, match=r"card\.json: student\.name: got "):
        trusted.plain_name(name, where="card.json", key="student.name", flag="--own_class.name")


def test_names_from_files_say_which_flag_to_give() -> None:
    def read(said: str) -> str:
        return trusted.plain_name("m:C", where="c", key="k", flag="--own_class.name", said=said)

    with pytest.raises(DataError, match=r"say so: --own_class\.name m:C$"):
        read("")
    with pytest.raises(DataError):
        read("m:D")
    assert read("m:C") == "m:C"
    assert trusted.plain_name("torchvision/resnet50", where="c", key="k", flag="f")
