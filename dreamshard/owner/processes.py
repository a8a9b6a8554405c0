"""Tell whether the process that left a file behind still lives.

An owner is a text that fits into a file name: host, process number, start time. The host is the
machine's boot and process namespace, because two containers may share a host name and count their
processes apart, and the start time guards against a reused process number.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import socket
from pathlib import Path

_counter = itertools.count()


@functools.cache
def host_id() -> str:
    """Return 12 hex digits that only processes which can see each other share."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]


def owner() -> str:
    """Return this process's owner text: `<host>-<pid>-<start>`."""
    return f"{host_id()}-{os.getpid()}-{_start_time(os.getpid())}"


def own_name(unit: int) -> str:
    """Return a name for a file about a unit that no other process or call uses."""
    return f"{unit:09d}~{owner()}~{next(_counter)}"


def is_dead(text: str) -> bool | None:
    """Say whether an owner is gone; None where that cannot be told from here."""
    host, _, rest = text.partition("-")
    pid, _, start = rest.partition("-")
    if host != host_id() or not pid.isdecimal():
        return None
    return has_ended(int(pid)) or _start_time(int(pid)) != start


def has_ended(pid: int) -> bool:
    """Say whether no process of this host has a number, or only one that nobody waited for yet."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return _is_zombie(pid)


def _start_time(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else "0"


def _is_zombie(pid: int) -> bool:
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] in "ZX"


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name; none without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
