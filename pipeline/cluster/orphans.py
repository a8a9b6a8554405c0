"""End the processes of an embedded cluster whose driver was killed.

Ray's servers die with the driver, and its agents notice that within seconds; but before they leave
they try for a minute to report it to the server that is gone. A small process looks on from
outside: `python orphans.py DRIVER MARK`. It imports nothing of ours, so that it costs little.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "DREAMSHARD_CLUSTER"
"""Marks the processes of one embedded cluster: those started while it is set, and theirs."""
TITLE = b"ray::"
"""How the titles begin that processes of Ray's give themselves."""
LOOK_S = 0.5
"""Time between two looks at the driver (seconds)."""
GRACE_S, TERM_S = 3.0, 3.0
"""Time to leave by themselves, and after being asked to (seconds)."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Mark the processes that start inside, and have them end soon after this one, come what may.

    Yields once the watcher runs. It goes when the context ends, or, where a stop cut Ray's own end
    short and agents are left, after the driver and what it watches.
    """
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark]
    nowhere = subprocess.DEVNULL  # or whoever reads the driver's output would wait for its end
    watcher = subprocess.Popen(
        command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    os.environ[VARIABLE] = mark
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if not marked(mark):
            watcher.kill()
            watcher.wait()


def watch(driver: int, mark: str) -> None:
    """Wait until the driver is gone, then end all processes that bear the mark."""
    while os.getppid() == driver:
        time.sleep(LOOK_S)
    for number, patience in ((0, GRACE_S), (signal.SIGTERM, TERM_S), (signal.SIGKILL, 0.0)):
        alive = marked(mark)
        for pid in alive if number else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        ends = time.monotonic() + patience
        while alive and time.monotonic() < ends:
            time.sleep(LOOK_S)
            alive = marked(mark)


def marked(mark: str) -> list[int]:
    """Return the process numbers of this user's processes that were started under a mark."""
    words, numbers = f"{VARIABLE}={mark}".encode(), []
    logs = re.compile(rf"/session_[\d_-]+_{mark.partition('-')[0]}/logs/")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if words in (entry / "environ").read_bytes().split(b"\0") or _writes(entry, logs):
                numbers.append(int(entry.name))
    return numbers


def _writes(entry: Path, logs: re.Pattern[str]) -> bool:
    """Tell whether a process of Ray's writes into the logs of the cluster that a driver started.

    Ray's agents write their title over their environment, the mark included if it lies in the way;
    each holds the logs of its cluster open, whose folder is named after the driver's number.
    """
    if not (entry / "cmdline").read_bytes().startswith(TITLE):
        return False
    if os.readlink(entry / "ns/pid") != os.readlink("/proc/self/ns/pid"):
        return False  # a container of its own, where another process has the driver's number
    return any(logs.search(os.readlink(file)) for file in (entry / "fd").iterdir())


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
