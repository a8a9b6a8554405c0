"""Three true raylets in a process of their own, as the tests that disturb them see them."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import processes

ROOT = Path(__file__).resolve().parents[2]
when = functools.partial(processes.when, timeout_s=90.0)
FULL = bool(int(os.environ.get("DREAMSHARD_CHAOS", "0")))


@dataclass
class Raylets:
    """A running cluster of three nodes."""

    process: subprocess.Popen[str]
    address: str
    token: str

    def tell(self, word: str) -> None:
        """Have a node killed or added, and wait until that is done."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"

    def actors(self, kind: str) -> list[int]:
        """Return the process numbers of the actors of a class."""
        return processes.children_named(kind, of=self.process.pid)

    def start(self, script: str, *words: str, folder: Path, log: str) -> subprocess.Popen[bytes]:
        """Start a script of the checkout that joins the cluster, in a folder, its output in a file.

        Args:
            script: relative to the checkout.
            words: its arguments.
            folder: where it runs.
            log: name of the file in that folder, which is appended to.
        """
        joining = {"RAY_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}
        with (folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, ROOT / script, *words],
                cwd=folder,
                env={**os.environ, **joining, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
            )


@contextlib.contextmanager
def three_raylets() -> Iterator[Raylets]:
    """Start the cluster; end it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.raylets"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        address, token = process.stdout.readline().split()
        yield Raylets(process, address, token)
        process.stdin.close()
        process.wait(60)
    finally:
        process.kill()
