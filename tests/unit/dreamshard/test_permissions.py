from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamshard import permissions
from dreamshard.permissions import VARIABLE, adopt_umask, apply_umask, umask


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = umask()
    yield
    os.umask(before)
    permissions._umask = before


def test_a_private_file_becomes_as_readable_as_an_opened_one(tmp_path: Path) -> None:
    opened, private = tmp_path / "opened", tmp_path / "private"
    opened.write_text("x")
    private.write_text("x")
    private.chmod(0o600)
    apply_umask(private)
    assert private.stat().st_mode == opened.stat().st_mode


def test_nothing_is_copied_with_the_permissions_of_what_is_copied() -> None:
    with_modes = re.compile(r"shutil\.(copy|copy2|copytree|copymode|copystat)\(")
    root = Path(__file__).resolve().parents[3]
    for package in ("dreamshard", "storage", "pipeline", "distill"):
        for path in (root / package).rglob("*.py"):
            assert not with_modes.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("told", ["077", "027", "002"])
def test_a_worker_takes_the_umask_of_the_run(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.umask(0o022)  # that of whoever started the cluster
    monkeypatch.setenv(VARIABLE, told)
    adopt_umask()
    (tmp_path / "opened").write_text("x")
    (tmp_path / "private").touch(mode=0o600)
    apply_umask(tmp_path / "private")
    (tmp_path / "folder").mkdir()
    asked = int(told, 8)
    for name, mode in (("opened", 0o666), ("private", 0o666), ("folder", 0o777)):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode & ~asked


@pytest.mark.parametrize("told", ["", "nonsense", "8"])
def test_without_a_umask_that_was_told_nothing_changes(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, told)
    before = umask()
    adopt_umask()
    assert umask() == before


def test_actors_are_told_it() -> None:
    from pipeline.cluster.worker import worker_env

    assert int(worker_env(1)[VARIABLE], 8) == umask()
