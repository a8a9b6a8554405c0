"""Copy a few rows out of remote files by range requests: nothing else is fetched, nothing is kept.

For looking at a dataset. What comes is measured and not digested: digests are of whole files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import ArraySpec
from storage.formats.tar_format import decode_png
from storage.fs.remote import RemoteFiles
from storage.rows.chunk_files import ChunkFiles, ReadableSnapshot

Range = tuple[str, int, int]
"""(key, first byte, end)."""
Place = Callable[[str, int, int], Range]
"""(array, unit, row) -> where the row's bytes lie."""
GAP = 16 << 10
"""Ranges of one file that are nearer than this are one request (bytes)."""
_SPARE = 64 << 10  # bytes of an encoded image beyond its pixels


class RangedChunks:
    """Read rows of remote files; see `storage.rows.chunk_files.Chunks`.

    Args:
        files: the dataset's.
        snapshot: what is read.
        specs: the arrays to read.
        place: where a row lies.
    """

    def __init__(
        self,
        files: RemoteFiles,
        snapshot: ReadableSnapshot,
        specs: Sequence[ArraySpec],
        place: Place,
    ) -> None:
        self._files, self._specs, self._place = files, specs, place
        self._chunks = ChunkFiles(snapshot, [spec.name for spec in specs], 1)

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        units, rows = self._chunks.locate(samples)
        for spec, target in zip(self._specs, targets, strict=True):
            pairs = zip(units.tolist(), rows.tolist(), strict=True)
            wanted = [self._checked(spec, self._place(spec.name, *pair)) for pair in pairs]
            for number, data in enumerate(self._read(wanted)):
                if spec.compression == "png":
                    where = self._files.path(wanted[number][0])
                    target[number] = decode_png(data, spec.shape, where=where)
                else:
                    target[number] = np.frombuffer(data, spec.dtype).reshape(spec.shape)

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: what is fetched is what is asked for."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _checked(self, spec: ArraySpec, place: Range) -> Range:
        """Refuse a place of more or fewer bytes than a row has, or an image may have."""
        key, start, stop = place
        packed, size = spec.compression == "png", stop - start
        if size > 2 * spec.row_bytes + _SPARE or (not packed and size != spec.row_bytes):
            raise DataError(
                f"{self._files.path(key)}: got a row of {size} bytes for {spec.name}, allowed "
                f"{spec.row_bytes}. Run `dreamshard verify --repair {self._files.url}`."
            )
        return place

    def _read(self, wanted: Sequence[Range]) -> list[bytes]:
        """Fetch ranges, those that lie together at once."""
        spans: list[Range] = []
        span_of: dict[Range, int] = {}
        for key, start, stop in sorted(set(wanted)):
            if spans and spans[-1][0] == key and start <= spans[-1][2] + GAP:
                spans[-1] = (key, spans[-1][1], max(stop, spans[-1][2]))
            else:
                spans.append((key, start, stop))
            span_of[key, start, stop] = len(spans) - 1
        try:
            blocks = self._files.objects.ranges(spans)
        except FileNotFoundError as error:
            raise DataError(
                f"{self._files.url}: got no {error}, allowed a file of every unit. Run `dreamshard "
                f"verify --repair {self._files.url}`."
            ) from None
        pieces = []
        for one in wanted:
            first = spans[span_of[one]][1]
            pieces.append(blocks[span_of[one]][one[1] - first : one[2] - first])
        return pieces
