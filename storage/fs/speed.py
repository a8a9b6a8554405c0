"""Measure a root: how fast it is written and read, and how far its clock is from ours."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from storage.fs.open import open_files

SPEED_BYTES = 128 << 20
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class RootSpeed:
    """Hold what was measured.

    Args:
        write_bytes_per_s: flushed to the device, or taken by the store.
        read_bytes_per_s: read back, from the device where the system lets go of its cache.
        skew_s: the root's clock minus ours, seconds.
    """

    write_bytes_per_s: float
    read_bytes_per_s: float
    skew_s: float


def measure_root(root: str) -> RootSpeed:
    """Write a file of SPEED_BYTES below a root, read it back and remove it.

    Args:
        root: folder or URL of datasets.

    Raises:
        DataError: if the root cannot be written or read.
    """
    files = open_files(root)
    key, block = files.temporary(), os.urandom(_BLOCK_BYTES)
    target = f"{key}.speed"
    try:
        started = time.perf_counter()
        sink = files.create(key)
        for _ in range(max(1, SPEED_BYTES // _BLOCK_BYTES)):
            sink.write(block)
        sink.seal(fsync=True)
        files.rename(key, target)
        written = time.perf_counter()
        if not files.remote:
            _forget(files.path(target))
        begin = time.perf_counter()
        size = len(files.read(target, limit=2 * SPEED_BYTES + _BLOCK_BYTES))
        read_s = time.perf_counter() - begin
        skew_s = files.now() - time.time()
    finally:
        with contextlib.suppress(Exception):
            files.remove(key)
        files.remove(target)
        files.prune("staging")
    return RootSpeed(size / (written - started), size / read_s, skew_s)


def _forget(path: str) -> None:
    """Ask the system to drop a file from its cache."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
