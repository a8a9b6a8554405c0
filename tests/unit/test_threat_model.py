"""Every promise of the threat model names a test that is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (.+?) \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", PAGE, re.M)


def test_every_promise_has_its_test() -> None:
    assert len(PROMISES) > 30
    for promise, path, name in PROMISES:
        assert (ROOT / path).is_file(), f"{promise}: {path} has moved"
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{promise}: {path} has no {name}"


def test_no_row_of_a_promise_is_without_one() -> None:
    tables = PAGE.split("## Promises")[1].split("## Not promised")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    heads = [line for line in rows if line == "| promise | test |"]
    assert len(rows) - len(heads) == len(PROMISES)


def test_readers_find_the_page() -> None:
    assert "docs/threat-model.md" in (ROOT / "README.md").read_text(encoding="utf-8")
