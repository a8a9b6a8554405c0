"""One way to copy rows of a snapshot, whether its files are mapped or read."""

from __future__ import annotations

from collections.abc import Sequence

from dreamshard.errors import ConfigError, Problem
from storage.rows.chunk_files import Access, Chunks, ReadableSnapshot
from storage.rows.mapped import MappedChunks
from storage.rows.pread import PreadChunks


def open_chunks(
    snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
) -> Chunks:
    """Return a way to copy rows of the named arrays.

    Args:
        snapshot: what to read.
        names: arrays to read; no other array's file is touched.
        access: "map" copies out of memory mappings (fastest); "pread" reads into the targets (for
            file systems where a mapping is slow or unsafe); "range" asks a remote store for these
            rows alone, unchecked and without keeping them, and is "pread" elsewhere.
        max_open: files kept open at most, 1 or more; at least one unit's stay open.

    Raises:
        ConfigError: if an array does not exist, or a setting is out of range.
    """
    problems: list[Problem | str] = [
        Problem("levels", repr(name), ", ".join(snapshot.array_names))
        for name in names
        if name not in snapshot.array_names
    ]
    if access not in ("map", "pread", "range"):
        problems.append(Problem("access", repr(access), "map, pread, range"))
    if max_open < 1:
        problems.append(Problem("max_open", str(max_open), "1 or more"))
    if problems:
        raise ConfigError(problems)
    return snapshot.open_chunks(names, access=access, max_open=max_open)


def open_raw(
    snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
) -> Chunks:
    """Return a way to copy rows out of chunk files of raw bytes."""
    return (MappedChunks if access == "map" else PreadChunks)(snapshot, names, max_open)
