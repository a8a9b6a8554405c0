"""A user's own storage.py or pipeline.py in the working folder breaks nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "storage.py").write_text("raise SystemExit('the user''s own')\n")
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the user''s own')\n")
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "__init__.py").write_text("raise SystemExit('own')\n")
    return tmp_path


def test_commands_work_beside_them(folder: Path) -> None:
    done = start(folder, "-m", "dreamshard", "ls", ".")
    assert done.returncode == 0, done.stderr
    done = start(folder, "-m", "dreamshard", "train", "--stepz", "3")
    assert done.returncode == 2 and "Did you mean steps?" in done.stderr
    script = "import sys; from dreamshard.console.cli import entry; sys.argv[1:] = ['ls', '.']; "
    done = start(folder, "-c", script + "raise SystemExit(entry())")
    assert done.returncode == 0, done.stderr


def test_a_notebook_is_told_which_file_hides_ours(folder: Path) -> None:
    done = start(folder, "-c", "import dreamshard; dreamshard.open_dataset('x')")
    assert done.returncode == 1 and f"{folder / 'storage.py'}: got a file or folder" in done.stderr
    (folder / "storage.py").unlink()
    (folder / "pipeline.py").unlink()
    done = start(folder, "-c", "import dreamshard; dreamshard.open_dataset('x')")
    assert f"{folder / 'distill' / '__init__.py'}: got" in done.stderr
    done = start(folder, "-c", "import dreamshard, storage; dreamshard.open_dataset('x')")
    assert "hides dreamshard's own package `distill`" in done.stderr


def test_the_user_s_own_module_stays_theirs(tmp_path: Path) -> None:
    (tmp_path / "storage.py").write_text("MINE = 1\n")
    done = start(tmp_path, "-c", "import dreamshard, storage; assert storage.MINE")
    assert done.returncode == 0, done.stderr
