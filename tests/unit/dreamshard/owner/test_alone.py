"""One process at a time in a run folder; the lock goes with it, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError
from dreamshard.owner.alone import LOCK, only_one


def test_a_second_process_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with only_one(folder):
        with (
            pytest.raises(ConfigError, match=rf"run_dir: got .*process {os.getpid()} on .*at work"),
            only_one(folder),
        ):
            pass
        with only_one(tmp_path / "runs" / "b"):
            pass
    assert not list(tmp_path.iterdir())
    with only_one(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from dreamshard.owner.alone import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert (tmp_path / LOCK).exists()
    with only_one(tmp_path):
        pass


def test_one_that_waits_is_next(tmp_path: Path) -> None:
    entered = threading.Event()

    def wait() -> None:
        with only_one(tmp_path / "a", wait_s=60):
            entered.set()

    with only_one(tmp_path / "a"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.5)
    assert entered.wait(30)
    waiting.join()


def test_a_folder_that_may_not_be_written_needs_no_lock(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with only_one(tmp_path):
        pass


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path):
        assert "this disk has no locks" in caplog.text
