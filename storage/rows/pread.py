"""Copy rows by reading files at an offset, where a mapping is slow or unsafe (network disks)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.rows.chunk_files import (
    ChunkFiles,
    OpenFile,
    OpenUnits,
    ReadableSnapshot,
    descriptors,
)


class PreadChunks:
    """Keep chunk files open and read rows from them; see `storage.rows.chunk_files.Chunks`."""

    def __init__(self, snapshot: ReadableSnapshot, names: Sequence[str], max_open: int) -> None:
        self._files = ChunkFiles(snapshot, names, descriptors(max_open))
        self._open = OpenUnits(self._open_unit, self._files.max_units)
        self.read_ahead, self.close = self._files.read_ahead, self._open.clear

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        units, rows = self._files.locate(samples)
        views = [target.reshape(-1).view(np.uint8).data for target in targets]
        sizes = self._files.row_bytes.tolist()
        for number, (unit, row) in enumerate(zip(units.tolist(), rows.tolist(), strict=True)):
            (files,) = self._open.use([unit])
            for file, view, size in zip(files, views, sizes, strict=True):
                read_exactly(file.descriptor, view[number * size : (number + 1) * size], row * size)

    def _open_unit(self, unit: int) -> list[OpenFile]:
        arrays = range(len(self._files.names))
        return [OpenFile(self._files.open(array, unit)[0]) for array in arrays]


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
