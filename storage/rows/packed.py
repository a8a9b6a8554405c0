"""Copy rows out of compressed chunks: whole chunks are decoded, the last few are kept."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import ArraySpec
from storage.codecs.lossless import decompress
from storage.fs.beneath import is_unreadable, refused
from storage.rows.chunk_files import ChunkFiles, OpenUnits, ReadableSnapshot, open_again

MAX_DECODED_BYTES = 1 << 30
"""Memory for decoded chunks; two units at least. Read in blocks: a full shuffle over more than this
decodes a chunk for every row."""
_MIN_UNITS = 2


class PackedChunks:
    """Decode chunks and copy rows from them; see `storage.rows.chunk_files.Chunks`."""

    def __init__(
        self, snapshot: ReadableSnapshot, names: Sequence[str], specs: Sequence[ArraySpec]
    ) -> None:
        self._snapshot, self._names, self._specs = snapshot, list(names), list(specs)
        self._files = ChunkFiles(snapshot, names, 1)
        unit_bytes = int(self._files.row_bytes.sum()) * snapshot.samples_per_unit
        limit = max(_MIN_UNITS, MAX_DECODED_BYTES // max(1, unit_bytes))
        self._open = OpenUnits(self._decode, limit)
        self.close = self._open.clear

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        units, rows = self._files.locate(samples)
        for unit in np.unique(units).tolist():
            (chunks,) = self._open.use([unit])
            here = np.flatnonzero(units == unit)
            for chunk, target in zip(chunks, targets, strict=True):
                target[here] = chunk[rows[here]]

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: chunks are read whole, in order, which the kernel sees for itself."""

    def _decode(self, unit: int) -> list[np.ndarray]:
        return [self._decode_one(n, unit) for n in range(len(self._names))]

    def _decode_one(self, number: int, unit: int) -> np.ndarray:
        spec, size = self._specs[number], self._snapshot.samples_per_unit
        chunk = np.empty((size, *spec.shape), spec.dtype)
        path = self._snapshot.chunk_path(self._names[number], unit)
        mend = f"Run `dreamshard verify --repair {self._snapshot.url}`."
        try:
            ask = partial(self._snapshot.chunk_path, self._names[number], unit)
            with os.fdopen(open_again(path, ask), "rb", buffering=0) as file:
                stored = os.fstat(file.fileno()).st_size
                if not spec.compression and stored != chunk.nbytes:
                    raise DataError(
                        f"{path}: got {stored} bytes, allowed exactly {chunk.nbytes}. {mend}"
                    )
                if stored > 2 * chunk.nbytes + (1 << 16):
                    raise DataError(f"{path}: got {stored} bytes, far too many. {mend}")
                data = file.read()
        except OSError as error:
            if is_unreadable(error):
                raise refused(path, "read", error) from error
            raise DataError(f"{path}: got {error.strerror}, allowed a chunk. {mend}") from None
        if spec.compression:
            decompress(spec, data, chunk, where=path)
            return chunk
        return np.frombuffer(data, spec.dtype, size * math.prod(spec.shape)).reshape(chunk.shape)
