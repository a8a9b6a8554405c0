"""Copy rows out of memory-mapped chunk files: one copy, no system call, no interpreter lock."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dreamshard.foreign.guard import reason
from storage.fs.beneath import refused
from storage.rows.chunk_files import ChunkFiles, OpenUnits, ReadableSnapshot, runs

log = logging.getLogger(__name__)
_PROBES = 8  # pages asked per file whether they are in memory
_C: Any = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _C.mmap, _C.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _MappedUnit:
    """Hold one unit's mappings and their addresses; they end with this object."""

    def __init__(self, files: ChunkFiles, unit: int) -> None:
        self.maps = [self._map(files, array, unit) for array in range(len(files.names))]
        self.bases = np.array([item.address for item in self.maps], np.uint64)

    @staticmethod
    def _map(files: ChunkFiles, array: int, unit: int) -> MappedFile:
        descriptor, size = files.open(array, unit)
        try:
            return MappedFile(descriptor, size, stays=files.fits)
        except OSError as error:
            path = files.snapshot.chunk_path(files.names[array], unit)
            raise refused(path, "read", error) from error
        finally:
            os.close(descriptor)


class MappedChunks:
    """Keep chunk files mapped and gather rows from them; see `storage.rows.chunk_files.Chunks`."""

    def __init__(self, snapshot: ReadableSnapshot, names: Sequence[str], max_open: int) -> None:
        self._files = ChunkFiles(snapshot, names, max_open)
        self._open = OpenUnits(self._map_unit, self._files.max_units)
        # one address per array and unit, 0 = not mapped; unused where units come and go
        width = self._files.units if self._files.fits else 0
        self._bases = np.zeros((len(self._files.names), width), np.uint64)
        self._gather = load_gather()
        self.read_ahead = self._files.read_ahead

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        if not samples.size:
            return
        units, rows = self._files.locate(samples)
        if self._files.fits:
            self._copy(units, rows, targets)
            return
        for part in runs(units, self._files.max_units):
            self._copy(units[part], rows[part], [target[part] for target in targets])

    def _copy(self, units: np.ndarray, rows: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        bases, held = self._addresses(units)
        row_bytes = self._files.row_bytes
        sources = bases + rows.astype(np.uint64) * row_bytes[:, None]
        addresses = np.array([target.ctypes.data for target in targets], np.uint64)
        self._gather(sources, row_bytes, addresses)
        del held  # only now may a unit that fell out of the bounded set be unmapped

    def _addresses(self, units: np.ndarray) -> tuple[np.ndarray, object]:
        if self._files.fits:
            bases = np.take(self._bases, units, axis=1)
            if bases.all():
                return bases, None
        distinct, where = np.unique(units, return_inverse=True)
        used = self._open.use(distinct.tolist())
        bases = np.stack([unit.bases for unit in used], axis=1)
        return np.take(bases, where, axis=1), used

    def _map_unit(self, unit: int) -> _MappedUnit:
        mapped = _MappedUnit(self._files, unit)
        if self._files.fits:
            self._bases[:, unit] = mapped.bases
        return mapped

    def close(self) -> None:
        """Close every file that no copy under way still needs."""
        self._bases[:] = 0
        self._open.clear()


class MappedFile:
    """A file in memory for reading, for as long as this object lives; it keeps no descriptor.

    Python's own mappings keep one each, and a process may have no more than 1024 of them.

    Args:
        descriptor: of the open file; not needed any more after this.
        size: of the file, 1 or more (bytes).
        stays: whether it stays mapped. If it is in memory already, all its pages are then mapped at
            once, by one call in place of a fault per 64 KiB; else that would read the whole file
            from disk, perhaps for one row.

    Raises:
        OSError: the system refuses.
    """

    def __init__(self, descriptor: int, size: int, *, stays: bool) -> None:
        self.address, self.size = 0, size
        flags = mmap.MAP_SHARED
        if stays and in_memory(descriptor, size):
            flags |= getattr(mmap, "MAP_POPULATE", 0)
        address = _mmap(None, size, mmap.PROT_READ, flags, descriptor, 0)
        if address in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = int(address)

    def read(self, start: int, size: int) -> bytes:
        """Return a copy of some bytes.

        Raises:
            ValueError: they are not all in the file.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"bytes {start}..{start + size} of a file of {self.size}")
        return ctypes.string_at(self.address + start, size)

    def __len__(self) -> int:
        return self.size

    def __del__(self, unmap: Callable[[int, int], int] = _munmap) -> None:
        if self.address:
            unmap(self.address, self.size)


def in_memory(descriptor: int, size: int) -> bool:
    """Say whether a file's pages seem to be cached, by asking a few of them without waiting."""
    no_wait = getattr(os, "RWF_NOWAIT", None)
    if no_wait is None:
        return False
    if os.fstat(descriptor).st_blocks * 512 < size:  # holes seem cached, and would take memory
        return False
    try:
        for probe in range(_PROBES):
            os.preadv(descriptor, [bytearray(1)], probe * (size - 1) // _PROBES, no_wait)
    except OSError:  # EAGAIN: on disk only; anything else: cannot tell
        return False
    return True


@lru_cache(maxsize=1)
def load_gather() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """Return the compiled row copy, or a slower one where numba cannot be loaded."""
    try:
        from storage.rows.gather import gather
    except Exception as error:  # of its libraries: OSError, MemoryError, RuntimeError, its own
        log.warning(
            "numba cannot be loaded here (%s: %s): the same rows are copied, more slowly. Give the "
            "process more memory (ulimit -v), or install numba anew.",
            type(error).__name__, reason(error),
        )  # fmt: skip
        return gather_plainly
    return gather


def gather_plainly(sources: np.ndarray, row_bytes: np.ndarray, targets: np.ndarray) -> None:
    """Do what `storage.rows.gather.gather` does, one C library call per row."""
    starts = zip(sources.tolist(), row_bytes.tolist(), targets.tolist(), strict=True)
    for rows, size, target in starts:
        for number, source in enumerate(rows):
            ctypes.memmove(target + number * size, source, size)
