"""The exchange format: WebDataset tar shards, each with an offset index beside it.

`shards/000000.tar` holds unit 0's samples in order: `<key>.png` or `<key>.image.npy`,
`<key>.<array>.npy` for every other array, `<key>.json` last. `webdataset` and the `webdataset`
builder of Hugging Face `datasets` read them as they are. Shards are not padded to full units.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from dreamshard.errors import DataError
from storage.codecs.arrays import ArraySpec
from storage.formats.tar_format import (
    END,
    MAX_NAME,
    decode_png,
    extension,
    header,
    json_member,
    member_key,
    npy_front,
    padding,
)
from storage.formats.tar_index import read_index, shard_bytes
from storage.fs.local import Files
from storage.ledger.commits import Commit

if TYPE_CHECKING:
    from storage.formats.tar_unit import TarUnit
    from storage.rows.chunk_files import ReadableSnapshot
    from storage.rows.chunks import Access, Chunks

FOLDER = "shards"
_ABOUT = f"{FOLDER}/index.json"
_INDEX_CHARS = 16  # a key is at least the sample's number


class TarStore:
    """Lay a dataset's arrays out as WebDataset shards."""

    def __init__(self, files: Files, arrays: Sequence[ArraySpec], *, samples_per_unit: int) -> None:
        self.files, self.samples_per_unit = files, samples_per_unit
        self.arrays = {spec.name: spec for spec in arrays}
        for spec in arrays:
            if spec.compression not in ("", "png"):
                raise DataError(
                    f"layout.codecs: array {spec.name}: got compression {spec.compression!r} in "
                    "format 'tar', allowed none. Choose format 'zarr', or compress the shards."
                )
        longest = max([len(".json"), *(len(extension(spec)) for spec in arrays)])
        self.key_room = MAX_NAME - longest
        if self.key_room < _INDEX_CHARS:
            raise DataError(
                f"levels: got a name of {longest - 5} characters, allowed "
                f"{MAX_NAME - _INDEX_CHARS - 5} in format 'tar'."
            )

    def array_key(self, name: str, unit: int) -> str:
        """Return the key of the shard that holds a unit, whatever the array."""
        return f"{FOLDER}/{unit:06d}.tar"

    def index_key(self, unit: int) -> str:
        """Return the key of a shard's index."""
        return f"{FOLDER}/{unit:06d}.idx"

    def unit_keys(self, unit: int) -> list[str]:
        """List the files of a unit."""
        return [self.array_key("", unit), self.index_key(unit)]

    def metadata_keys(self) -> list[str]:
        """List the files that are not part of a unit."""
        return [_ABOUT]

    def resize(self, num_samples: int, *, fsync: bool = True) -> None:
        """Write down, for other tools, how many samples and shards there are to be."""
        shards = -(-num_samples // self.samples_per_unit)
        value = {
            "format": "webdataset",
            "num_samples": num_samples,
            "samples_per_shard": self.samples_per_unit,
            "url": f"{{000000..{max(0, shards - 1):06d}}}.tar",
            "members": [extension(spec) for spec in self.arrays.values()] + [".json"],
            "attributes": {name: dict(spec.attributes) for name, spec in self.arrays.items()},
        }
        self.files.write(_ABOUT, json.dumps(value, indent=1).encode(), fsync=fsync)

    def num_samples(self) -> int | None:
        """Return the number of samples that was written down last, None if there is none."""
        try:
            return int(json.loads(self.files.read(_ABOUT))["num_samples"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def open_chunks(
        self, snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
    ) -> Chunks:
        """Return what copies rows out of the shards, found by their indices."""
        from storage.formats.tar_chunks import TarChunks

        return TarChunks(self, snapshot, names, access=access, max_open=max_open)

    def read_index(self, unit: int) -> np.ndarray:
        """Read a shard's index, int64 (2, arrays + 1, samples)."""
        return read_index(
            self.files,
            self.index_key(unit),
            members=len(self.arrays) + 1,
            max_samples=self.samples_per_unit,
        )

    def holds(self, commit: Commit) -> bool:
        """Say whether a unit's files are those that its commit record describes."""
        return not self.problems(commit, quick=False)

    def problems(self, commit: Commit, *, quick: bool) -> list[tuple[str, str]]:
        """Check a shard: its size, and unless `quick` every byte of every member and the index."""
        path = self.files.path(self.array_key("", commit.unit))
        try:
            table = self.read_index(commit.unit)
        except DataError as error:
            return [(self.files.path(self.index_key(commit.unit)), str(error).partition(": ")[2])]
        size = self.files.size(self.array_key("", commit.unit))
        if size is None or os.path.islink(path):
            return [(path, "got no file" if size is None else "got a link, allowed a file")]
        if size != shard_bytes(table) or table.shape[2] != commit.count:
            wanted = f"{shard_bytes(table)} of {commit.count} samples"
            return [(path, f"got {size} bytes of {table.shape[2]} samples, allowed {wanted}")]
        if quick:
            return []
        try:
            with self.files.fetched(self.array_key("", commit.unit)) as local:
                problem = _Check(self, commit, table).run(local)
        except (OSError, DataError) as error:
            problem = f"cannot be read: {error}"
        return [(path, problem)] if problem else []

    def check_file(self, name: str, path: str, commit: Commit) -> str:
        """Return what is wrong with a local copy of a unit's shard, "" if nothing is."""
        table = self.read_index(commit.unit)
        size = os.path.getsize(path)
        if size != shard_bytes(table) or table.shape[2] != commit.count:
            return f"got {size} bytes, allowed {shard_bytes(table)}"
        return _Check(self, commit, table).run(path)

    def strays(self, done: set[int]) -> Iterator[str]:
        """Yield the keys of units that are not done and yet have files."""
        known = {os.path.basename(key) for unit in done for key in self.unit_keys(unit)}
        for name in self.files.names(FOLDER):
            if name not in known and f"{FOLDER}/{name}" != _ABOUT:
                yield f"{FOLDER}/{name}"

    def prune(self, unit: int) -> None:
        """Leave the folder: units have none of their own."""

    def open_unit(self, unit: int, *, run_id: str) -> TarUnit:
        """Start the files of a unit, under names that carry the run."""
        from storage.formats.tar_unit import TarUnit

        return TarUnit(self, unit, run_id=run_id)

    def json_of(self, commit: Commit, row: int) -> bytes:
        """Return the JSON member of one of a unit's samples."""
        label = None if commit.labels is None else commit.labels[row]
        return json_member(
            index=commit.first + row,
            key=commit.keys[row],
            label=None if label in (None, -1) else label,
            valid=row not in set(commit.invalid),
            error=commit.errors.get(row),
        )


class _Check:
    """Compare a shard with what its commit record and its rows would make, byte by byte."""

    def __init__(self, store: TarStore, commit: Commit, table: np.ndarray) -> None:
        self._store, self._commit, self._table = store, commit, table
        self._digests = {name: xxhash.xxh3_128() for name in store.arrays}
        self._valid = commit.valid

    def run(self, path: str) -> str:
        """Return what is wrong, or ""."""
        try:
            with open(path, "rb") as file:
                for row in range(self._commit.count):
                    self._check_sample(path, file.read(self._span(row)), row)
                if file.read(len(END) + 1) != END:
                    return "got other bytes at its end"
        except (OSError, DataError) as error:
            return str(error).removeprefix(f"{path}: ")
        for name, digest in self._digests.items():
            if digest.hexdigest() != self._commit.digests[name]:
                return f"{name}: got digest {digest.hexdigest()}"
        return ""

    def _span(self, row: int) -> int:
        """Return the bytes of a sample's members, headers and padding included."""
        offsets, sizes = self._table
        end = [int(offsets[-1, r] + sizes[-1, r]) for r in ([row] if row == 0 else [row - 1, row])]
        ends = [stop + padding(stop) for stop in end]
        return ends[-1] - (ends[0] if row else 0)

    def _check_sample(self, path: str, data: bytes, row: int) -> None:
        commit, store = self._commit, self._store
        room = store.key_room
        key = member_key(commit.first + row, commit.keys[row], room=room)
        start = int(self._table[0, 0, row]) - len(data)  # set right by the first member
        at = 0
        for number, (name, spec) in enumerate(store.arrays.items()):
            size = int(self._table[1, number, row])
            prefix = b"" if spec.compression == "png" else npy_front(spec)
            front = header(key + extension(spec), size + len(prefix)) + prefix
            start = int(self._table[0, 0, row]) - len(front) if number == 0 else start
            body = self._member(path, data, at, front, size, name)
            if start + at + len(front) != int(self._table[0, number, row]):
                raise DataError(f"{path}: sample {row}, {name}: the index points elsewhere")
            self._check_values(path, spec, body, row)
            at += len(front) + size + padding(len(prefix) + size)
        text = store.json_of(commit, row)
        self._member(path, data, at, header(key + ".json", len(text)), len(text), "json")
        if (start + at + 512, len(text)) != tuple(self._table[:, -1, row].tolist()):
            raise DataError(f"{path}: sample {row}, json: the index points elsewhere")
        if data[at + 512 : at + 512 + len(text)] != text:
            raise DataError(f"{path}: sample {row}: its JSON differs from the commit record")

    def _member(
        self, path: str, data: bytes, at: int, front: bytes, size: int, name: str
    ) -> memoryview:
        if data[at : at + len(front)] != front:
            got = data[at : at + MAX_NAME].rstrip(b"\0")
            raise DataError(
                f"{path}: got another header ({got!r:.110}) where {name} of "
                f"{front[:MAX_NAME].rstrip(bytes(1))!r} should be"
            )
        stop = at + len(front) + size
        if data[stop : stop + padding(stop)].strip(b"\0"):
            raise DataError(f"{path}: got bytes that are not zero after {name}")
        return memoryview(data)[at + len(front) : stop]

    def _check_values(self, path: str, spec: ArraySpec, body: memoryview, row: int) -> None:
        if spec.compression == "png":
            image = decode_png(body, spec.shape, where=path)
            self._digests[spec.name].update(image.data)
            return
        if len(body) != spec.row_bytes:
            raise DataError(f"{path}: {spec.name}: got {len(body)} bytes, not {spec.row_bytes}")
        self._digests[spec.name].update(body)
        if self._valid[row] and spec.has_nonfinite(np.frombuffer(body, spec.dtype)):
            raise DataError(f"{path}: {spec.name}: got NaN or infinity in a valid sample")
