"""Copy rows by reading files at an offset, where a mapping is slow or unsafe (network disks)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.rows.chunk_files import ChunkFiles, OpenUnits, ReadableSnapshot


class _OpenFile:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class PreadChunks:
    """Keep chunk files open and read rows from them; see `storage.rows.chunks.Chunks`."""

    def __init__(self, snapshot: ReadableSnapshot, names: Sequence[str], max_open: int) -> None:
        self._files = ChunkFiles(snapshot, names, max_open)
        self._lock = threading.Lock()
        self._open: OpenUnits[list[_OpenFile]] = OpenUnits()
        self.read_ahead = self._files.read_ahead

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        units, rows = self._files.locate(samples)
        views = [target.reshape(-1).view(np.uint8).data for target in targets]
        sizes = self._files.row_bytes.tolist()
        for number, (unit, row) in enumerate(zip(units.tolist(), rows.tolist(), strict=True)):
            with self._lock:
                files = self._open.use([unit], self._open_unit, self._files.max_units)[0]
            for file, view, size in zip(files, views, sizes, strict=True):
                read_exactly(file.descriptor, view[number * size : (number + 1) * size], row * size)

    def _open_unit(self, unit: int) -> list[_OpenFile]:
        arrays = range(len(self._files.names))
        return [_OpenFile(self._files.open(array, unit)[0]) for array in arrays]

    def close(self) -> None:
        """Close every file that no copy under way still needs."""
        with self._lock:
            self._open.clear()


def read_exactly(descriptor: int, target: memoryview, offset: int) -> None:
    """Fill memory from an open file, from an offset on.

    Raises:
        DataError: if the file ends before that.
    """
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            raise DataError(f"chunk file: ended {len(target) - done} bytes early while being read.")
        done += count
