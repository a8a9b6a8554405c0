"""The compiled row copy equals the plain one, byte for byte and not one byte more."""

import importlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.rows.gather import gather
from storage.rows.mapped import gather_plainly


@pytest.mark.parametrize("copy", [gather, gather_plainly], ids=["compiled", "plain"])
@pytest.mark.parametrize("size", [1, 8, 20, 127, 128, 129, 384, 3072, 5001, 70_000])
def test_rows_are_copied_exactly(copy, size: int) -> None:
    random = np.random.default_rng(size)
    source = random.integers(1, 256, (50, size), dtype=np.uint8)
    other = random.integers(1, 256, (50, 8), dtype=np.uint8)
    rows = random.integers(0, 50, 33)
    target = np.zeros(33 * size + 2, np.uint8)  # one byte off any alignment, and a guard each side
    second = np.zeros((33, 8), np.uint8)
    sources = np.stack([source.ctypes.data + rows * size, other.ctypes.data + rows * 8])
    addresses = np.array([target.ctypes.data + 1, second.ctypes.data], np.uint64)
    copy(sources.astype(np.uint64), np.array([size, 8], np.uint64), addresses)
    assert np.array_equal(target[1:-1].reshape(33, size), source[rows])
    assert target[0] == target[-1] == 0
    assert np.array_equal(second, other[rows])


def test_nothing_to_copy() -> None:
    none = np.zeros((0, 0), np.uint64)
    gather(none, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    gather(np.zeros((1, 0), np.uint64), np.ones(1, np.uint64), np.ones(1, np.uint64))


def test_a_read_only_installation_compiles_without_a_cache(tmp_path: Path, repo_root: Path) -> None:
    for package in ("storage", "dreamshard"):
        shutil.copytree(
            repo_root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    code = (
        "import os, numba.core.caching as caching\n"
        "def refuse(self): raise OSError('read-only')\n"
        "caching._CacheLocator.ensure_cache_path = refuse\n"  # also for root, whom no mode stops
        "import storage.rows.gather as module\n"
        "print(module.gather.__name__, module.gather.stats.cache_path)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["_gather", "None"]
    assert not list(tmp_path.rglob("*.nbc"))


class Broken(types.ModuleType):
    """Stand in for a module whose libraries cannot be loaded."""

    def __getattr__(self, name: str) -> None:
        raise OSError("libllvmlite.so: failed to map segment from shared object")


@pytest.mark.parametrize("module", [None, Broken("gather")], ids=["missing", "broken"])
def test_reading_works_without_numba_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: Any
) -> None:
    mapped = importlib.import_module("storage.rows.mapped")
    monkeypatch.setitem(sys.modules, "storage.rows.gather", module)
    mapped.load_gather.cache_clear()
    try:
        assert mapped.load_gather() is gather_plainly
    finally:
        mapped.load_gather.cache_clear()
    assert "numba cannot be loaded here" in caplog.text
