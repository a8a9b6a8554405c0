"""Copy rows out of mapped tar shards, found by the index written beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.formats.tar_format import decode_png
from storage.formats.tar_index import shard_bytes
from storage.formats.tar_layout import TarLayout
from storage.fs.beneath import is_unreadable, refused
from storage.rows.chunk_files import (
    Access,
    ChunkFiles,
    OpenFile,
    OpenUnits,
    ReadableSnapshot,
    descriptors,
    open_again,
    runs,
)
from storage.rows.mapped import MappedFile, load_gather
from storage.rows.pread import read_exactly

_TRIES = 3  # a shard that is replaced while it is opened is looked at again


class _Shard:
    """Hold a shard's file, its mapping and where its members are; all end with this object."""

    def __init__(self, chunks: TarChunks, unit: int) -> None:
        for _ in range(_TRIES):
            file, self.map = chunks.map_shard(unit)
            self.table = chunks.layout.read_index(unit)
            if len(self.map) == shard_bytes(self.table):
                break
        else:
            allowed = f"{shard_bytes(self.table)}, as its index has it"
            raise chunks.damaged(unit, f"{len(self.map)} bytes", allowed)
        chunks.check_index(unit, self.table)
        self.file = file if chunks.preads else None  # a mapping needs none
        self.addresses = self.table[0].astype(np.uint64) + np.uint64(self.map.address)


class TarChunks:
    """Keep shards mapped and gather rows from them; see `storage.rows.chunk_files.Chunks`."""

    def __init__(
        self,
        layout: TarLayout,
        snapshot: ReadableSnapshot,
        names: Sequence[str],
        *,
        access: Access,
        max_open: int,
    ) -> None:
        self.layout, self._snapshot, self.preads = layout, snapshot, access != "map"
        self._files = ChunkFiles(snapshot, names, max_open)
        # One file a unit, whatever the arrays.
        self._max_units = max_units = descriptors(max_open) if self.preads else max(1, max_open)
        self._fits = self._files.units <= max_units
        self._open = OpenUnits(self._map_unit, max_units)
        columns = {name: number for number, name in enumerate(layout.arrays)}
        self._columns = np.array([columns[name] for name in names], np.int64)
        self._specs = [layout.arrays[name] for name in names]
        packed = [spec.compression == "png" for spec in self._specs]
        self._plain = [number for number, is_packed in enumerate(packed) if not is_packed]
        self._packed = [number for number, is_packed in enumerate(packed) if is_packed]
        # address of every row, 0 = not mapped; unused where shards come and go
        width = snapshot.num_samples if self._fits else 0
        self._table = np.zeros((len(names), width), np.uint64)
        self._ready = np.zeros(self._files.units if self._fits else 0, bool)
        self._gather = load_gather()

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        if not samples.size:
            return
        units, rows = self._files.locate(samples)
        whole = [slice(0, len(units))]
        for part in whole if self._fits else runs(units, self._max_units):
            some = [target[part] for target in targets]
            self._copy(samples[part], units[part], rows[part], some)

    def _copy(
        self,
        samples: np.ndarray,
        units: np.ndarray,
        rows: np.ndarray,
        targets: Sequence[np.ndarray],
    ) -> None:
        sources, held = self._addresses(samples, units, rows)
        if self.preads:
            for number in self._plain:
                self._read(number, units, rows, targets[number])
        elif self._plain:
            addresses = np.array([targets[n].ctypes.data for n in self._plain], np.uint64)
            row_bytes = self._files.row_bytes[self._plain]
            self._gather(np.ascontiguousarray(sources[self._plain]), row_bytes, addresses)
        for number in self._packed:
            self._unpack(number, units, rows, targets[number])
        del held

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read the shards' parts that hold sample ranges."""
        if not hasattr(os, "posix_fadvise"):
            return
        per_unit = self._snapshot.samples_per_unit
        for first, stop in ranges:
            for unit in range(first // per_unit, -(-stop // per_unit)):
                table = self.layout.read_index(unit)
                low = max(first - unit * per_unit, 0)
                high = min(stop - unit * per_unit, table.shape[2]) - 1
                start, end = int(table[0, 0, low]), int(table[0, -1, high])
                file = self._open_shard(unit)
                os.posix_fadvise(file.descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close every file that no copy under way still needs."""
        self._ready[:] = False
        self._open.clear()

    def damaged(self, unit: int, got: str, allowed: str) -> DataError:
        """Return the error that says what is wrong with a shard, and how to mend it."""
        url = self.layout.files.path(self.layout.array_key("", unit))
        mend = f"Run `dreamshard verify --repair {self._snapshot.url}`."
        return DataError(f"{url}: got {got}, allowed {allowed}. {mend}")

    def map_shard(self, unit: int) -> tuple[OpenFile, MappedFile]:
        """Open and map a shard."""
        try:
            file = self._open_shard(unit)
        except OSError as error:
            if is_unreadable(error):
                path = self.layout.files.path(self.layout.array_key("", unit))
                raise refused(path, "read", error) from error
            why = error.strerror or type(error).__name__
            raise self.damaged(unit, why, "a shard") from None
        size = os.fstat(file.descriptor).st_size
        if size == 0:
            raise self.damaged(unit, "0 bytes", "a shard")
        try:
            return file, MappedFile(file.descriptor, size, stays=self._fits)
        except OSError as error:
            path = self.layout.files.path(self.layout.array_key("", unit))
            raise refused(path, "read", error) from error

    def check_index(self, unit: int, table: np.ndarray) -> None:
        """Refuse an index by which a row would be read that is not one of its array."""
        for sizes, spec in zip(table[1], self.layout.arrays.values(), strict=False):
            if spec.compression != "png" and (sizes != spec.row_bytes).any():
                where = self.layout.files.path(self.layout.index_key(unit))
                raise DataError(
                    f"{where}: got rows of {sizes.min()} to {sizes.max()} bytes for {spec.name}, "
                    f"allowed {spec.row_bytes}. Run `dreamshard verify --repair "
                    f"{self._snapshot.url}`."
                )

    def _open_shard(self, unit: int) -> OpenFile:
        def ask() -> str:  # on a remote root the path of a local copy, which may go until opened
            return self._snapshot.chunk_path(self._files.names[0], unit)

        return OpenFile(open_again(ask(), ask))

    def _addresses(
        self, samples: np.ndarray, units: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, object]:
        if self._fits and self._ready[units].all():
            return np.take(self._table, samples, axis=1), None
        distinct, where = np.unique(units, return_inverse=True)
        used = self._open.use(distinct.tolist())
        sources = np.empty((len(self._specs), len(samples)), np.uint64)
        for number, shard in enumerate(used):
            here = np.flatnonzero(where == number)
            count, last = shard.table.shape[2], int(rows[here].max())
            if last >= count:
                raise self.damaged(int(distinct[number]), f"{count} samples", f"more than {last}")
            sources[:, here] = shard.addresses[self._columns[:, None], rows[here]]
        return sources, used

    def _map_unit(self, unit: int) -> _Shard:
        shard = _Shard(self, unit)
        if self._fits:
            size, end = self._snapshot.samples_per_unit, self._table.shape[1]
            first = unit * size
            count = min(shard.table.shape[2], end - first)
            self._table[:, first : first + count] = shard.addresses[self._columns, :count]
            self._ready[unit] = first + count == min(first + size, end)
        return shard

    def _shards(self, units: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, _Shard, int]]:
        """Yield each sample's place among those asked for, its unit's shard, and its row there."""
        for place, (unit, row) in enumerate(zip(units.tolist(), rows.tolist(), strict=True)):
            (shard,) = self._open.use([unit])
            yield place, shard, row

    def _read(self, number: int, units: np.ndarray, rows: np.ndarray, target: np.ndarray) -> None:
        """Read one array's rows into memory by system calls."""
        column, size = int(self._columns[number]), int(self._files.row_bytes[number])
        view = target.reshape(-1).view(np.uint8).data
        for place, shard, row in self._shards(units, rows):
            piece = view[place * size : (place + 1) * size]
            assert shard.file is not None, "kept by who reads"
            read_exactly(shard.file.descriptor, piece, int(shard.table[0, column, row]))

    def _unpack(self, number: int, units: np.ndarray, rows: np.ndarray, target: np.ndarray) -> None:
        column, spec = int(self._columns[number]), self._specs[number]
        for place, shard, row in self._shards(units, rows):
            start, size = shard.table[:, column, row].tolist()
            where = self.layout.files.path(self.layout.array_key("", int(units[place])))
            target[place] = decode_png(shard.map.read(start, size), spec.shape, where=where)
