"""Half-written files: named after the process that writes them, swept once it is dead.

A file is written beside its place as `.NAME.OWNER.partial` and renamed when it is whole. Whoever
writes the same file next sweeps what dead processes left of it; a run that starts sweeps all of its
folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import time
from pathlib import Path

from dreamshard.errors import ConfigError, Problem
from dreamshard.owner.processes import has_ended, is_dead, owner

SUFFIX = ".partial"
_counter = itertools.count()
OTHER_HOST_S = 86_400.0
"""Age after which a part is stale whose process cannot be looked for from here (seconds)."""
_OWNER = re.compile(r"\.([0-9a-f]{12}-[0-9]+-[0-9]+)~[0-9]+\.partial\Z")
_NUMBER = re.compile(r"\.([0-9]+)(\.[0-9a-f]{8})?\.partial\Z")
"""How versions before named the process: without its host and start."""


def part_of(path: Path) -> Path:
    """Return where this process writes a file before it takes its place; sweep stale parts of it.

    Args:
        path: of the whole file or folder.
    """
    sweep(path.parent, name=path.name)
    return path.with_name(f".{path.name}.{owner()}~{next(_counter)}{SUFFIX}")


def sweep(folder: Path, *, name: str = "") -> None:
    """Remove parts whose processes are dead; what cannot be removed stays.

    Args:
        folder: looked through, not below.
        name: of the file whose parts are looked for; "" for a whole folder that belongs to a run
            which is just starting: parts that name no process are then stale, too.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not entry.name.startswith(f".{name}") or not entry.name.endswith(SUFFIX):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if not _is_stale(entry.name, status.st_mtime, named=bool(name)):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def _is_stale(name: str, changed: float, *, named: bool) -> bool:
    if match := _OWNER.search(name):
        dead = is_dead(match[1])
        return time.time() - changed > OTHER_HOST_S if dead is None else dead
    if match := _NUMBER.search(name):
        return has_ended(int(match[1]))
    return not named


def put_in_place(part: Path, out: Path, *, key: str = "out") -> None:
    """Give a finished folder its name, where nobody has put one meanwhile.

    Raises:
        ConfigError: somebody has, or it cannot be written.
    """
    try:
        part.rename(out)
    except OSError as error:
        if out.exists():
            got, hint = f"{out}, made meanwhile", "Choose another folder, or remove that one."
            problem = Problem(key, got, "a folder that does not exist yet", hint)
        else:
            got = f"{out} ({error.strerror or error})"
            problem = Problem(key, got, "a folder that can be written")
        raise ConfigError(problem) from error
