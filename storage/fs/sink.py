"""Write one local file, from its first byte to its last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from storage.fs.reserve import reserve

_RESERVED_BYTES = 16 << 20  # at a time, for files written in pieces of _RESERVE_FROM or more
_RESERVE_FROM = 32 << 10
_MAX_BUFFERS = min(1024, os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16)


class _Files(Protocol):
    """What a file being written needs of the files it is one of."""

    def step(self, name: str, key: str) -> None: ...

    def explain(self, verb: str, key: str) -> AbstractContextManager[None]: ...

    def open_new(self, key: str) -> int: ...


class LocalSink:
    """Write one local file sequentially."""

    def __init__(self, files: _Files, key: str) -> None:
        self.key = key
        self._files = files
        self._fd = files.open_new(key)
        self._written = self._reserved = 0  # bytes

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes; large requests are continued until all of them are written."""
        self._files.step("write", self.key)
        view = memoryview(data).cast("B")
        self._expect(len(view))
        with self._files.explain("write", self.key):
            while len(view):
                view = view[os.write(self._fd, view) :]

    def write_many(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Append many buffers of bytes in as few requests as the system allows, never joined."""
        self._files.step("write", self.key)
        self._expect(sum(map(len, buffers)))
        with self._files.explain("write", self.key):
            for start in range(0, len(buffers), _MAX_BUFFERS):
                self._write_some(buffers[start : start + _MAX_BUFFERS])

    def _expect(self, size: int) -> None:
        """Reserve room for the next bytes and some more."""
        self._written += size
        if self._written > self._reserved and size >= _RESERVE_FROM:
            start, more = self._written - size, max(size, _RESERVED_BYTES)
            if reserve(self._fd, start, more):
                self._reserved = start + more

    def _write_some(self, buffers: Sequence[memoryview | bytes]) -> None:
        done = os.writev(self._fd, buffers)
        if done == sum(map(len, buffers)):
            return
        for buffer in buffers:
            rest = memoryview(buffer)[done:]
            done = max(0, done - len(buffer))
            while len(rest):  # a short write: go on where it stopped
                rest = rest[os.write(self._fd, rest) :]

    def seal(self, *, fsync: bool) -> tuple[int, int]:
        """Close the file, flushed to disk if asked; return (device, inode)."""
        try:
            with self._files.explain("flush", self.key):
                if self._reserved > self._written:
                    os.ftruncate(self._fd, self._written)  # gives back what was reserved in excess
                if fsync:
                    self._files.step("fsync", self.key)
                    os.fsync(self._fd)
                stat = os.fstat(self._fd)
        finally:
            self.close()
        return stat.st_dev, stat.st_ino

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
