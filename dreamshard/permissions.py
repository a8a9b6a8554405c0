"""Give files the permissions that the user's umask asks for, whoever writes them."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DREAMSHARD_UMASK"
"""Carries the umask, in octal, to processes that another program starts: Ray's workers."""

_umask = os.umask(0o077)  # the only way to read it is to set it; once, before threads start
os.umask(_umask)


def umask() -> int:
    """Return this process's umask."""
    return _umask


def adopt_umask() -> None:
    """Take the umask of the process that asked for this one, if it told one.

    A worker has that of whoever started the cluster; what it writes belongs to the run.
    """
    global _umask
    told = os.environ.get(VARIABLE, "")
    if told and set(told) <= set("01234567"):
        _umask = int(told, 8) & 0o777
        os.umask(_umask)


def apply_umask(path: Path) -> None:
    """Let others read a file as they could read one made by `open`.

    safetensors makes its files readable by their owner alone; a teacher or a student on a shared
    disk is meant for the actors and trainers of other users, too.
    """
    path.chmod(0o666 & ~_umask)
