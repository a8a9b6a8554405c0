"""Three true raylets in a process of their own, as the tests that disturb them see them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
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
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if kind in " ".join(_words(child))]

    def environment(self) -> dict[str, str]:
        """Return the variables with which a command joins the cluster."""
        joining = {"RAY_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}
        return {**os.environ, **joining, "RAY_AUTH_MODE": "token"}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


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


def when(condition: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
    """Wait until something holds; fail if it does not in time."""
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.02)
