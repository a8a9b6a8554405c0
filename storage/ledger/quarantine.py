"""Units that could not be made: their errors, kept in the manifest until somebody makes them.

`manifest/_quarantine/<unit>.json` is a note, not a state: a unit is done when it has a commit
record, and then its note is void. (Readers of the Parquet parts pass over names with `_`.)
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import numpy as np

from dreamshard.foreign.sealed import parse_sealed, sealed_json
from dreamshard.foreign.text import number_in
from storage.fs.local import Files

FOLDER = "manifest/_quarantine"
MAX_ERROR_CHARS = 500
_MAX_BYTES = 1 << 16


def note(files: Files, unit: int, *, error: str, attempts: int, fsync: bool = True) -> None:
    """Write down why a unit was left out; a later note of the unit replaces an earlier one."""
    record = {
        "unit": unit,
        "error": error[:MAX_ERROR_CHARS],
        "attempts": attempts,
        "host": socket.gethostname(),
        "time": time.time(),
    }
    files.write(f"{FOLDER}/{unit:09d}.json", sealed_json(record), fsync=fsync)


def errors(files: Files, missing: np.ndarray) -> dict[int, str]:
    """Return the errors of those units, among the missing ones, that were left out.

    Args:
        files: the dataset's files.
        missing: int64, the units that have no commit.
    """
    reasons: dict[int, str] = {}
    wanted = set(missing.tolist())
    for unit, key in sorted(notes(files)):
        if unit in wanted:
            reasons[unit] = "unknown"
            with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
                record, _ = parse_sealed(files.read(key, limit=_MAX_BYTES), where=key)
                reasons[unit] = str(record.get("error", "unknown"))[:MAX_ERROR_CHARS]
    return reasons


def forget(files: Files, done: np.ndarray) -> int:
    """Remove the notes of units that were made since; return how many.

    Args:
        files: the dataset's files.
        done: int64, the units that have a commit.
    """
    left = list(notes(files))
    if not left:
        return 0
    made = set(done.tolist())
    removed = sum(files.remove(key) for unit, key in left if unit in made)
    files.prune(FOLDER)
    return removed


def notes(files: Files) -> Iterator[tuple[int, str]]:
    """Yield (unit, key) of the notes there are."""
    for name in files.names(FOLDER):
        number, _, ending = name.partition(".")
        unit = number_in(number)
        if ending == "json" and unit is not None:
            yield unit, f"{FOLDER}/{name}"
