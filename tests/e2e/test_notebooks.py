"""Every notebook runs, in their order and one folder; what is kept of them is small and clean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

for package in ("ipykernel", "ray", "timm", "sklearn", "matplotlib"):
    pytest.importorskip(package)
nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 200_000
"""Bytes of a notebook with what it shows."""
DEADLINE_S = 900


def play(path: Path, folder: Path) -> Any:
    """Run a notebook's cells in a folder; a cell that fails raises."""
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        book, timeout=DEADLINE_S, kernel_name="python3", resources=where
    ).execute()
    return book


def shown(book: Any) -> str:
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "\n".join(str(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_small_whole_and_of_no_machine(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds and "error" not in kinds
    assert not re.search(r"/(tmp|work|home|root|Users)/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.ray
def test_notebooks_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = {path.stem[2:]: shown(play(path, tmp_path)) for path in BOOKS}
    assert "(1, 512)" in said["own-images"]
    assert "nearest cells in other images" in said["teacher-features"]
    assert "True" in said["reading-shards"] and "(16, 3, 32, 32)" in said["reading-shards"]
    assert re.search(r"^228 \[", said["two-teachers"], re.M)
