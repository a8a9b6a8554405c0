"""Compare a tar shard, byte by byte, with what its commit record and its own rows would make."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import xxhash

from dreamshard.errors import DataError
from storage.codecs.base import ArraySpec
from storage.formats.tar_format import (
    END,
    MAX_NAME,
    decode_png,
    extension,
    header,
    npy_front,
    padding,
)
from storage.formats.tar_index import shard_bytes
from storage.formats.tar_layout import TarLayout
from storage.fs.beneath import damage, is_unreadable, open_regular
from storage.ledger.commits import Commit


def size_problem(size: int, commit: Commit, table: np.ndarray) -> str:
    """Return what is wrong with a shard of this size, by its index and its commit record."""
    wanted = shard_bytes(table)
    if size == wanted and table.shape[2] == commit.count:
        return ""
    return (
        f"got {size} bytes of {table.shape[2]} samples, allowed {wanted} of {commit.count} samples"
    )


def content_problem(layout: TarLayout, commit: Commit, table: np.ndarray, path: str) -> str:
    """Return what is wrong with a local shard of the right size, "" if nothing is."""
    check = _Check(layout, commit, table, path)
    try:
        return check.run()
    except (OSError, DataError, MemoryError) as error:
        if is_unreadable(error):
            damage(error, path=path)
        return str(error).removeprefix(f"{path}: ")


class _Check:
    """Walk through a shard once; refuse what differs, digest the rest."""

    def __init__(self, layout: TarLayout, commit: Commit, table: np.ndarray, path: str) -> None:
        self._layout, self._commit, self._table, self._path = layout, commit, table, path
        self._digests = {name: xxhash.xxh3_128() for name in layout.arrays}
        self._valid = commit.valid
        self._at = 0  # bytes read

    def run(self) -> str:
        """Return what is wrong, or ""; DataError where a member is not what it should be."""
        with open(open_regular(self._path), "rb") as file:
            for row in range(self._commit.count):
                self._check_sample(file, row)
            if file.read(len(END) + 1) != END:
                return "got other bytes at its end"
        for name, digest in self._digests.items():
            if digest.hexdigest() != self._commit.digests[name]:
                return f"{name}: got digest {digest.hexdigest()}"
        return ""

    def _check_sample(self, file: BinaryIO, row: int) -> None:
        commit, layout = self._commit, self._layout
        key = layout.sample_key(commit.first + row, commit.keys[row])
        for number, (name, spec) in enumerate(layout.arrays.items()):
            size = int(self._table[1, number, row])
            prefix = b"" if spec.compression == "png" else npy_front(spec)
            front = header(key + extension(spec), size + len(prefix)) + prefix
            body = self._member(file, front, size, row, number, name)
            self._check_values(spec, body, row)
        text = layout.json_of(commit, row, size=int(self._table[1, -1, row]))
        front = header(key + ".json", len(text))
        body = self._member(file, front, int(self._table[1, -1, row]), row, -1, "json")
        if body != text:
            raise DataError(f"{self._path}: sample {row}: its JSON differs from the commit record")

    def _member(
        self, file: BinaryIO, front: bytes, size: int, row: int, number: int, name: str
    ) -> memoryview:
        """Read the next member: its data, after a header that must be `front`."""
        gap = padding(len(front) + size)
        data = file.read(len(front) + size + gap)
        if not data.startswith(front):
            raise DataError(
                f"{self._path}: got another header ({data[:MAX_NAME].rstrip(bytes(1))!r:.110}) "
                f"where {name} of {front[:MAX_NAME].rstrip(bytes(1))!r} should be"
            )
        if data[len(front) + size :].strip(b"\0"):
            raise DataError(f"{self._path}: got bytes that are not zero after {name}")
        if self._at + len(front) != int(self._table[0, number, row]):
            raise DataError(f"{self._path}: sample {row}, {name}: the index points elsewhere")
        self._at += len(data)
        return memoryview(data)[len(front) : len(front) + size]

    def _check_values(self, spec: ArraySpec, body: memoryview, row: int) -> None:
        if spec.compression == "png":
            image = decode_png(body, spec.shape, where=self._path)
            self._digests[spec.name].update(image.data)
            return
        if len(body) != spec.row_bytes:
            raise DataError(
                f"{self._path}: {spec.name}: got {len(body)} bytes, not {spec.row_bytes}"
            )
        self._digests[spec.name].update(body)
        if self._valid[row] and spec.has_nonfinite(np.frombuffer(body, spec.dtype)):
            raise DataError(f"{self._path}: {spec.name}: got NaN or infinity in a valid sample")
