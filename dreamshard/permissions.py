"""Give files that a library wrote the permissions that the user's umask asks for."""

from __future__ import annotations

import os
from pathlib import Path

_UMASK = os.umask(0o077)  # the only way to read it is to set it; once, before threads start
os.umask(_UMASK)


def apply_umask(path: Path) -> None:
    """Let others read a file as they could read one made by `open`.

    safetensors makes its files readable by their owner alone; a teacher or a student on a shared
    disk is meant for the actors and trainers of other users, too.
    """
    path.chmod(0o666 & ~_UMASK)
