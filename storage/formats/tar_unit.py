"""Write one tar shard sample by sample: headers and buffers straight to the file, uncopied."""

from __future__ import annotations

import numpy as np

from storage.formats.tar_format import (
    BLOCK,
    END,
    MemberHeader,
    encode_png,
    extension,
    header,
    json_member,
    npy_front,
    padding,
)
from storage.formats.tar_index import index_bytes
from storage.formats.tar_layout import TarLayout
from storage.formats.unit_files import UnitFiles
from storage.ledger.commits import MAX_ERROR_CHARS
from storage.ledger.publish import Staged
from storage.schema import FeatureBatch

_ZEROS = bytes(BLOCK)
_Member = tuple[bytes, bytes | memoryview, bytes]  # header, data, padding


class TarUnit(UnitFiles):
    """Write one shard, sample by sample, and its index."""

    def __init__(self, layout: TarLayout, unit: int, *, run_id: str) -> None:
        super().__init__(layout.files, unit, run_id=run_id)
        self._layout = layout
        self._batch: FeatureBatch | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._tables: list[np.ndarray] = []
        self._offset = 0
        self._headers: dict[str, MemberHeader] = {}
        self._json_headers: dict[int, MemberHeader] = {}  # by the text's size; few differ
        fronts = []  # bytes before each member's data, the JSON's last
        for name, spec in layout.arrays.items():
            prefix = b""
            if spec.compression != "png":
                prefix = npy_front(spec)
                size = len(prefix) + spec.row_bytes
                self._headers[name] = MemberHeader(extension(spec), size, prefix)
            fronts.append(BLOCK + len(prefix))
        self._fronts = np.array([*fronts, BLOCK], np.int64)

    def begin(self, batch: FeatureBatch) -> None:
        """Be told of the samples whose rows come next."""
        self._batch, self._rows = batch, {}
        if not self._layout.arrays:
            self._write()

    def append(self, name: str, rows: np.ndarray) -> None:
        """Take one array's rows (n, *shape); with the last array's the samples are written."""
        self._rows[name] = rows
        if len(self._rows) == len(self._layout.arrays):
            self._write()

    def finish(self, count: int, *, fsync: bool) -> dict[str, Staged]:
        """End the archive, write the index, and close both."""
        self._sink("tar").write(END)
        self._sink("idx").write(index_bytes(np.concatenate(self._tables, axis=2)))
        tar, index = self._layout.unit_keys(self._unit)
        return self._seal({"tar": tar, "idx": index}, fsync=fsync)

    def _write(self) -> None:
        """Write the samples at hand: one gathered request."""
        batch = self._batch
        assert batch is not None, "begin comes before append"
        keys = [
            self._layout.sample_key(int(index), str(key)).encode("ascii")
            for index, key in zip(batch.index, batch.key, strict=True)
        ]
        sums = [sum(key) for key in keys]
        members = [self._members(name, keys, sums) for name in self._layout.arrays]
        members.append(self._json_members(batch, keys, sums))
        buffers: list[bytes | memoryview] = []
        for sample in zip(*members, strict=True):
            for front, data, gap in sample:
                buffers += (front, data, gap) if gap else (front, data)
        sizes = np.array([[len(data) for _, data, _ in column] for column in members], np.int64)
        self._tables.append(self._places(sizes))
        self._sink("tar").write_many(buffers)
        self._rows = {}

    def _places(self, sizes: np.ndarray) -> np.ndarray:
        """Return where the data of members of these sizes comes to lie, (2, members, samples)."""
        fronts = self._fronts[:, None]
        blocks = -(-(fronts + sizes) // BLOCK) * BLOCK
        ends = self._offset + np.cumsum(blocks.T.ravel()).reshape(blocks.T.shape).T
        self._offset = int(ends[-1, -1]) if ends.size else self._offset
        return np.stack([ends - blocks + fronts, sizes])

    def _members(self, name: str, keys: list[bytes], sums: list[int]) -> list[_Member]:
        """Return (header, data, padding) of one array's member of every sample."""
        spec, rows = self._layout.arrays[name], self._rows[name]
        if spec.compression == "png":
            ending = extension(spec)
            return [
                _member(key.decode("ascii") + ending, encode_png(row))
                for key, row in zip(keys, rows, strict=True)
            ]
        view, size, front = (
            rows.reshape(-1).view(np.uint8).data,
            spec.row_bytes,
            self._headers[name],
        )
        gap = _ZEROS[: padding(len(npy_front(spec)) + size)]
        return [
            (front(key, total), view[place * size : (place + 1) * size], gap)
            for place, (key, total) in enumerate(zip(keys, sums, strict=True))
        ]

    def _json_members(
        self, batch: FeatureBatch, keys: list[bytes], sums: list[int]
    ) -> list[_Member]:
        labels = [None] * len(batch) if batch.label is None else batch.label.tolist()
        valid, index = batch.valid.tolist(), batch.index.tolist()
        members: list[_Member] = []
        for row, (key, total) in enumerate(zip(keys, sums, strict=True)):
            text = json_member(
                index=index[row],
                key=str(batch.key[row]),
                label=labels[row],
                valid=valid[row],
                error=str(batch.error[row])[:MAX_ERROR_CHARS] if row in batch.error else None,
            )
            size = len(text)
            if size not in self._json_headers:
                self._json_headers[size] = MemberHeader(".json", size)
            members.append((self._json_headers[size](key, total), text, _ZEROS[: padding(size)]))
        return members


def _member(name: str, data: bytes) -> _Member:
    return header(name, len(data)), data, _ZEROS[: padding(len(data))]
