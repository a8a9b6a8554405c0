"""The training format: one Zarr v3 array per level over the whole dataset, chunk k = unit k.

Chunks are uncompressed: raw little-endian C-order bytes of `samples_per_unit` rows, so that a
reader may map the files. Metadata is written as JSON by us; any Zarr v3 reader opens `data.zarr`.
The last unit's chunk is padded with fill values.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast

import numpy as np
import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.text import number_in, parse_json
from storage.codecs.base import ArraySpec
from storage.codecs.lossless import compress, decompress, zarr_codec
from storage.formats.ranged import Range, RangedChunks
from storage.formats.unit_files import UnitFiles
from storage.fs.beneath import damage, open_regular
from storage.fs.local import Files
from storage.fs.remote import RemoteFiles
from storage.ledger.commits import Commit
from storage.ledger.publish import Staged
from storage.rows.chunk_files import Access, Chunks, ReadableSnapshot
from storage.rows.chunks import open_raw
from storage.rows.packed import PackedChunks
from storage.schema import FeatureBatch

GROUP = "data.zarr"
_MAX_METADATA = 1 << 20
"""Of a file whose text follows from the description: some kilobytes per array."""
_PAD_BYTES = 1 << 20
_READ_BYTES = 4 << 20


class ZarrStore:
    """Lay a dataset's arrays out as a Zarr v3 group."""

    def __init__(self, files: Files, arrays: Sequence[ArraySpec], *, samples_per_unit: int) -> None:
        self.files, self.samples_per_unit = files, samples_per_unit
        self.arrays = {spec.name: spec for spec in arrays}

    def array_key(self, name: str, unit: int) -> str:
        """Return the key of the file that holds one array's rows of one unit."""
        return "/".join([GROUP, name, "c", str(unit), *["0"] * len(self.arrays[name].shape)])

    def unit_keys(self, unit: int) -> list[str]:
        """List the files of a unit."""
        return [self.array_key(name, unit) for name in self.arrays]

    def unit_of(self, key: str) -> int | None:
        """Return the unit whose file a key names, None if it is no unit's."""
        parts = key.split("/")
        return number_in(parts[3]) if len(parts) > 3 else None

    def file_bytes(self, name: str) -> int:
        """Return the size every one of an array's files must have."""
        return self.arrays[name].row_bytes * self.samples_per_unit

    def metadata_keys(self) -> list[str]:
        """List the files that are not part of a unit."""
        return [f"{GROUP}/zarr.json", *(f"{GROUP}/{name}/zarr.json" for name in self.arrays)]

    def resize(self, num_samples: int, *, fsync: bool = True) -> None:
        """Write the metadata for a number of samples, the group's own last.

        Readers that use the group's consolidated metadata see all arrays change in one step.
        """
        for key, data in self.metadata(num_samples).items():
            self.files.write(key, data, fsync=fsync)

    def metadata(self, num_samples: int) -> dict[str, bytes]:
        """Return the text of each metadata file for a number of samples, by key; all follows from
        what `dataset.json` says.
        """
        nodes = {
            name: _array_metadata(spec, num_samples, self.samples_per_unit)
            for name, spec in self.arrays.items()
        }
        group = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"num_samples": num_samples, "samples_per_unit": self.samples_per_unit},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": nodes,
            },
        }
        values = [*((f"{name}/", node) for name, node in nodes.items()), ("", group)]
        return {f"{GROUP}/{key}zarr.json": json.dumps(v, indent=1).encode() for key, v in values}

    def open_chunks(
        self, snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
    ) -> Chunks:
        """Return what copies rows out of the chunk files; compressed ones are decoded whole."""
        specs = [self.arrays[name] for name in names]
        if any(spec.compression for spec in specs):
            return PackedChunks(snapshot, names, specs)
        if access == "range" and isinstance(self.files, RemoteFiles):
            return RangedChunks(self.files, snapshot, specs, self._row_range)
        return open_raw(snapshot, names, access=access, max_open=max_open)

    def _row_range(self, name: str, unit: int, row: int) -> Range:
        size = self.arrays[name].row_bytes
        return self.array_key(name, unit), row * size, (row + 1) * size

    def num_samples(self) -> int | None:
        """Return the number of samples the metadata is for, None where it is not whole."""
        try:
            nodes = [
                parse_json(self.files.read(key, limit=_MAX_METADATA), where=key)
                for key in self.metadata_keys()
            ]
            sizes = {int(node["shape"][0]) for node in nodes[1:]}
            sizes.add(int(nodes[0]["attributes"]["num_samples"]))
        except CannotReadError:
            raise
        except (FileNotFoundError, DataError, ValueError, KeyError, TypeError, IndexError):
            return None
        return sizes.pop() if len(sizes) == 1 else None

    def holds(self, commit: Commit) -> bool:
        """Say whether a unit's files are those that its commit record describes."""
        return not self.problems(commit, quick=False)

    def problems(self, commit: Commit, *, quick: bool) -> list[tuple[str, str]]:
        """Check a unit's files against its commit record: sizes, and bytes unless `quick`.

        Returns:
            (path, what is wrong) of each damaged file.

        Raises:
            CannotReadError: if one cannot be read, which says nothing of what it holds.
        """
        damaged: list[tuple[str, str]] = []
        for name in self.arrays:
            key = self.array_key(name, commit.unit)
            problem = self._size_problem(name, key)
            if not problem and not quick:
                problem = self._content_problem(name, key, commit)
            if problem:
                damaged.append((self.files.path(key), problem))
        return damaged

    def strays(self, done: set[int]) -> Iterator[str]:
        """Yield the keys of units that are not done and yet have files."""
        for name in self.arrays:
            for entry in self.files.names(f"{GROUP}/{name}/c"):
                if number_in(entry) not in done:
                    yield f"{GROUP}/{name}/c/{entry}"

    def _size_problem(self, name: str, key: str) -> str:
        if os.path.islink(self.files.path(key)):
            return "got a link, allowed a file"
        size = self.files.size(key)
        if size is None:
            return "got no file"
        if size != self.file_bytes(name) and not self.arrays[name].compression:
            return f"got {size} bytes, allowed {self.file_bytes(name)}"
        return ""

    def _content_problem(self, name: str, key: str, commit: Commit) -> str:
        try:
            with self.files.fetched(key) as path:
                return self.check_file(name, path, commit)
        except (OSError, DataError, MemoryError) as error:
            return damage(error, path=self.files.path(key))

    def check_file(self, name: str, path: str, commit: Commit) -> str:
        """Return what is wrong with a local file of one of a unit's arrays, "" if nothing is.

        Raises:
            CannotReadError: if it cannot be read.
        """
        spec, valid, state, finite = self.arrays[name], commit.valid, xxhash.xxh3_128(), True
        rows = commit.count if spec.compression else max(1, _READ_BYTES // spec.row_bytes)
        size = os.path.getsize(path)
        if size != self.file_bytes(name) and not spec.compression:
            return f"got {size} bytes, allowed {self.file_bytes(name)}"
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                for start in range(0, commit.count, rows):
                    some = min(rows, commit.count - start)
                    block = self._rows(name, path, cast("BinaryIO", file), some)
                    state.update(block.view(np.uint8).data)
                    good = block.reshape(-1, *spec.shape)[valid[start : start + some]]
                    finite = finite and not spec.has_nonfinite(good)
        except (OSError, ValueError, DataError, MemoryError) as error:
            return damage(error, path=path)
        if state.hexdigest() != commit.digests[name]:
            return f"got digest {state.hexdigest()}, allowed {commit.digests[name]}"
        return "" if finite else "got NaN or infinity in a valid sample"

    def _rows(self, name: str, path: str, file: BinaryIO, count: int) -> np.ndarray:
        """Read the next rows of a file, all of them where it is compressed."""
        spec = self.arrays[name]
        if not spec.compression:
            return np.fromfile(file, spec.dtype, count * math.prod(spec.shape))
        chunk = np.empty(self.samples_per_unit * math.prod(spec.shape), spec.dtype)
        limit = 2 * chunk.nbytes + (1 << 16)
        data = file.read(limit + 1)
        if len(data) > limit:
            raise DataError(f"{path}: got more than {limit} bytes.")
        decompress(spec, data, chunk, where=path)
        return chunk[: count * math.prod(spec.shape)]

    def prune(self, unit: int) -> None:
        """Remove the empty folders of a unit whose files are gone."""
        for name in self.arrays:
            self.files.prune(f"{GROUP}/{name}/c/{unit}")

    def open_unit(self, unit: int, *, run_id: str) -> ZarrUnit:
        """Start the files of a unit, under names that carry the run."""
        return ZarrUnit(self, unit, run_id=run_id)


class ZarrUnit(UnitFiles):
    """Write one chunk file per array, padded to the full chunk."""

    def __init__(self, store: ZarrStore, unit: int, *, run_id: str) -> None:
        super().__init__(store.files, unit, run_id=run_id)
        self._store = store
        self._held: dict[str, list[np.ndarray]] = {}

    def begin(self, batch: FeatureBatch) -> None:
        """Keys and labels are in the commit record: nothing of them is needed here."""

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append encoded rows (n, *shape) to one array."""
        if self._store.arrays[name].compression:  # compressed whole, by `finish`
            self._held.setdefault(name, []).append(rows.copy())
        else:
            self._sink(name).write(rows.reshape(-1).view(np.uint8).data)

    def finish(self, count: int, *, fsync: bool) -> dict[str, Staged]:
        """Pad all files to the full chunk and close them; return them by array name."""
        missing = self._store.samples_per_unit - count
        for name, spec in self._store.arrays.items():
            for rows in _padding(spec, missing):
                self.append(name, rows)
            if spec.compression:
                self._sink(name).write(compress(spec, np.concatenate(self._held.pop(name))))
        finals = {name: self._store.array_key(name, self._unit) for name in self._store.arrays}
        return self._seal(finals, fsync=fsync)


def _padding(spec: ArraySpec, missing: int) -> list[np.ndarray]:
    if missing == 0:
        return []
    some = max(1, min(missing, _PAD_BYTES // max(1, spec.row_bytes)))
    block = np.full((some, *spec.shape), spec.fill, spec.dtype)
    return [block[: min(some, missing - start)] for start in range(0, missing, some)]


def _array_metadata(spec: ArraySpec, num_samples: int, samples_per_unit: int) -> dict[str, object]:
    bytes_codec: dict[str, object] = {"name": "bytes"}
    if spec.dtype.itemsize > 1:
        bytes_codec["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_samples, *spec.shape],
        "data_type": spec.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [samples_per_unit, *spec.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if math.isnan(spec.fill) else spec.fill,
        "codecs": [bytes_codec, *([zarr_codec(spec)] if spec.compression else [])],
        "attributes": dict(spec.attributes),
        "dimension_names": ["sample", *_dimension_names(spec)],
        "storage_transformers": [],
    }


def _dimension_names(spec: ArraySpec) -> Sequence[str]:
    known: Mapping[int, tuple[str, ...]] = {1: ("channel",), 3: ("channel", "height", "width")}
    if not spec.level:  # an image, labels or masks
        return ("height", "width", "rgb")[: len(spec.shape)]
    rank = len(spec.shape)
    return known.get(rank, tuple(f"d{axis}" for axis in range(rank)))
