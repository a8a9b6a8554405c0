"""Run the commands that a user would type, from a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_command(words: Sequence[str], *, cwd: Path) -> None:
    """Run `dreamshard WORDS` of this checkout in a process of its own, its output on stderr.

    Raises:
        SystemExit: it failed.
    """
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": python_path}
    line = [sys.executable, "-m", "dreamshard", *words]
    done = subprocess.run(line, cwd=cwd, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"dreamshard {' '.join(words[:3])} failed with code {done.returncode}")
