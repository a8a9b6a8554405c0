"""Copy rows out of mapped tar shards, found by the index written beside them."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.formats.tar_format import decode_png
from storage.formats.tar_index import shard_bytes
from storage.formats.tar_layout import TarLayout
from storage.rows.chunk_files import ChunkFiles, OpenUnits, ReadableSnapshot, open_again
from storage.rows.chunks import Access
from storage.rows.mapped import gather_plainly, in_memory, load_gather
from storage.rows.pread import read_exactly

_TRIES = 3  # a shard that is replaced while it is opened is looked at again


class _MappedShard:
    """Hold a shard's mapping and where its members are; it ends with this object."""

    descriptor = -1

    def __init__(self, chunks: TarChunks, unit: int) -> None:
        for _ in range(_TRIES):
            self.map = self._map(chunks, unit)
            self.table = chunks.layout.read_index(unit)
            if len(self.map) == shard_bytes(self.table):
                break
        else:
            raise DataError(
                f"{chunks.url(unit)}: got {len(self.map)} bytes, allowed "
                f"{shard_bytes(self.table)}, as its index has it. {chunks.mend}"
            )
        self._check(chunks, unit)
        view = np.frombuffer(self.map, np.uint8)
        self.addresses = (self.table[0] + view.ctypes.data).astype(np.uint64)

    def _map(self, chunks: TarChunks, unit: int) -> mmap.mmap:
        path = chunks.path(unit)
        try:
            descriptor = open_again(lambda: chunks.path(unit), path)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise DataError(
                f"{chunks.url(unit)}: got {why}, allowed a shard. {chunks.mend}"
            ) from None
        self.__del__()  # of an earlier try
        self.descriptor = descriptor  # closed with this object
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise DataError(f"{chunks.url(unit)}: got 0 bytes, allowed a shard. {chunks.mend}")
            populate = getattr(mmap, "MAP_POPULATE", 0)
            if populate and not (chunks.fits and in_memory(descriptor, size)):
                populate = 0
            return mmap.mmap(
                descriptor, size, flags=mmap.MAP_SHARED | populate, prot=mmap.PROT_READ
            )
        except Exception:
            self.__del__()
            raise

    def __del__(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _check(self, chunks: TarChunks, unit: int) -> None:
        """Refuse an index by which a row would be read that is not one of this array."""
        arrays = chunks.layout.arrays.values()
        for sizes, spec in zip(self.table[1], arrays, strict=False):
            if spec.compression != "png" and (sizes != spec.row_bytes).any():
                where = chunks.layout.files.path(chunks.layout.index_key(unit))
                raise DataError(
                    f"{where}: got rows of {sizes.min()} to {sizes.max()} bytes for {spec.name}, "
                    f"allowed {spec.row_bytes}. {chunks.mend}"
                )


class TarChunks:
    """Keep shards mapped and gather rows from them; see `storage.rows.chunks.Chunks`."""

    def __init__(
        self,
        layout: TarLayout,
        snapshot: ReadableSnapshot,
        names: Sequence[str],
        *,
        access: Access,
        max_open: int,
    ) -> None:
        self.layout, self._access = layout, access
        self.mend = f"Run `dreamshard verify --repair {snapshot.url}`."
        self._files = ChunkFiles(snapshot, names, max_open)
        self._files.max_units = max(1, max_open)  # one file a unit, whatever the arrays
        self.fits = self._files.units <= self._files.max_units
        columns = {name: number for number, name in enumerate(layout.arrays)}
        packed = [name for name in names if layout.arrays[name].compression == "png"]
        self._plain = [number for number, name in enumerate(names) if name not in packed]
        self._packed = [number for number, name in enumerate(names) if name in packed]
        self._columns = np.array([columns[name] for name in names], np.int64)
        self._names = list(names)
        self._lock = threading.Lock()
        self._open: OpenUnits[_MappedShard] = OpenUnits()
        # address of every row, 0 = not mapped; unused where shards come and go
        width = snapshot.num_samples if self.fits else 0
        self._table = np.zeros((len(self._names), width), np.uint64)
        self._ready = np.zeros(self._files.units if self.fits else 0, bool)
        self._gather = load_gather() if access == "map" else gather_plainly

    def path(self, unit: int) -> str:
        """Return the path of a shard, on a remote root of a local copy; open it at once."""
        return self._files.snapshot.chunk_path(self._names[0], unit)

    def url(self, unit: int) -> str:
        """Return where a shard is, for messages."""
        return self.layout.files.path(self.layout.array_key("", unit))

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        if not samples.size:
            return
        units, rows = self._files.locate(samples)
        sources, held = self._addresses(samples, units, rows)
        if self._access == "pread":
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
        per_unit = self._files.snapshot.samples_per_unit
        for first, stop in ranges:
            for unit in range(first // per_unit, -(-stop // per_unit)):
                table = self.layout.read_index(unit)
                low = max(first - unit * per_unit, 0)
                high = min(stop - unit * per_unit, table.shape[2]) - 1
                start, end = int(table[0, 0, low]), int(table[0, -1, high])
                descriptor = open_again(lambda unit=unit: self.path(unit), self.path(unit))
                os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)
                os.close(descriptor)

    def close(self) -> None:
        """Close every file that no copy under way still needs."""
        with self._lock:
            self._ready[:] = False
            self._open.clear()

    def _addresses(
        self, samples: np.ndarray, units: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, object]:
        if self.fits and self._ready[units].all():
            return np.take(self._table, samples, axis=1), None
        distinct, where = np.unique(units, return_inverse=True)
        with self._lock:
            used = self._open.use(distinct.tolist(), self._map_unit, self._files.max_units)
        sources = np.empty((len(self._names), len(samples)), np.uint64)
        for number, shard in enumerate(used):
            here = np.flatnonzero(where == number)
            self._check_rows(int(distinct[number]), shard, rows[here])
            sources[:, here] = shard.addresses[self._columns[:, None], rows[here]]
        return sources, used

    def _map_unit(self, unit: int) -> _MappedShard:
        shard = _MappedShard(self, unit)
        if self.fits:
            first = unit * self._files.snapshot.samples_per_unit
            count = min(shard.table.shape[2], self._table.shape[1] - first)
            self._table[:, first : first + count] = shard.addresses[self._columns, :count]
            self._ready[unit] = first + count == min(
                first + self._files.snapshot.samples_per_unit, self._table.shape[1]
            )
        return shard

    def _check_rows(self, unit: int, shard: _MappedShard, rows: np.ndarray) -> None:
        if rows.size and int(rows.max()) >= shard.table.shape[2]:
            raise DataError(
                f"{self.url(unit)}: got {shard.table.shape[2]} samples, allowed more than "
                f"{int(rows.max())}. {self.mend}"
            )

    def _read(self, number: int, units: np.ndarray, rows: np.ndarray, target: np.ndarray) -> None:
        """Read one array's rows into memory by system calls."""
        column, size = int(self._columns[number]), int(self._files.row_bytes[number])
        view = target.reshape(-1).view(np.uint8).data
        for place, (unit, row) in enumerate(zip(units.tolist(), rows.tolist(), strict=True)):
            with self._lock:
                shard = self._open.use([unit], self._map_unit, self._files.max_units)[0]
            piece, offset = (
                view[place * size : (place + 1) * size],
                int(shard.table[0, column, row]),
            )
            read_exactly(shard.descriptor, piece, offset)

    def _unpack(self, number: int, units: np.ndarray, rows: np.ndarray, target: np.ndarray) -> None:
        column = int(self._columns[number])
        spec = self.layout.arrays[self._names[number]]
        pairs = zip(units.tolist(), rows.tolist(), strict=True)
        for place, (unit, row) in enumerate(pairs):
            with self._lock:
                shard = self._open.use([unit], self._map_unit, self._files.max_units)[0]
            start = int(shard.table[0, column, row])
            data = shard.map[start : start + int(shard.table[1, column, row])]
            target[place] = decode_png(data, spec.shape, where=self.url(unit))
