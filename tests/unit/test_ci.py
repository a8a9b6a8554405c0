"""The script that continuous integration runs, with a `make` that notes what it is asked for."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


STEPS = ["test", "lint", "kit"]


@pytest.mark.parametrize("fails", [[], *([step] for step in STEPS), STEPS[:2], STEPS], ids="+".join)
def test_all_steps_run_and_all_count(fails: list[str], tmp_path: Path) -> None:
    make, asked = tmp_path / "make", tmp_path / "asked"
    noting = f'#!/bin/sh\necho "$1" >> {asked}\n'
    make.write_text(noting + f'case " {" ".join(fails)} " in *" $1 "*) exit 2 ;; esac\n')
    make.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / ".ci/run")], env=environment, capture_output=True, text=True
    )
    assert asked.read_text().split() == STEPS
    assert done.returncode == (1 if fails else 0)
    assert " ".join(fails) in done.stderr
