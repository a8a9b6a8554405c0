"""What tests that start other processes share: to find them by name, and to wait for something."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

psutil = pytest.importorskip("psutil")


def children_named(word: str, *, of: int | None = None) -> list[int]:
    """Return the process numbers of descendants whose command line holds a word.

    Args:
        word: to look for.
        of: whose descendants; None: this process's.
    """
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def when(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Wait until something holds; fail if it does not in time."""
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.02)
