"""One process at a time writes into a run folder: a second start of the same run is refused.

The owner of a folder is a run, by its settings (`dreamshard.owner.folders`), and two processes of
one run own it alike: each would remove and rename what the other is writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dreamshard.errors import ConfigError, Problem

LOCK = ".lock"
POLL_S = 0.2
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""

log = logging.getLogger(__name__)


@contextmanager
def only_one(folder: Path, *, key: str = "run_dir", wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends.

    A folder that may not be written needs none: what is there can only be found.

    Args:
        folder: made if it is not there, and removed again where nothing was put into it.
        key: dotted key of its setting, for messages.
        wait_s: how long another process may take to end (seconds).

    Raises:
        ConfigError: another process is at work in it, or there can be no such folder.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    lock = _held(folder, key, wait_s)
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: nobody else has it
            lock.close()
        with contextlib.suppress(OSError):  # what was put there stays
            for each in made:
                each.rmdir()


def _held(folder: Path, key: str, wait_s: float) -> TextIO | None:
    """Return the folder's lock, held; None where nothing may be written."""
    ends = time.monotonic() + wait_s
    while (lock := _open(folder, key)) is not None:
        if _take(lock):
            with contextlib.suppress(OSError):  # a full disk holds a lock, and no name in it
                os.ftruncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"{os.getpid()} on {socket.gethostname()}\n".encode())
            return lock
        with lock:
            if time.monotonic() > ends:
                lock.seek(0)
                got = f"{folder}, in which process {lock.read().strip() or '?'} is at work"
                hint = f"Wait for it, or choose another folder with --{key}."
                raise ConfigError(Problem(key, got, "a folder of its own", hint))
        time.sleep(POLL_S)
    return None


def _open(folder: Path, key: str) -> TextIO | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        got, hint = f"{folder} ({error.strerror})", f"Choose another with --{key}."
        raise ConfigError(Problem(key, got, "a folder to write to", hint)) from error


def _take(lock: TextIO) -> bool:
    """Take a lock; False where another process has it, or has removed the file with its end."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN_HERE:
            raise
        log.warning("%s: this disk has no locks: start no second run there", lock.name)
        return True
