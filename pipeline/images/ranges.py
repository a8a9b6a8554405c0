"""Read parts of files, local or remote, without reading what lies between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pipeline.images.listing import is_local

GAP = 8 << 10
"""Remote ranges nearer than this are fetched as one: a request costs more than these bytes."""
AHEAD = 2176
"""Bytes fetched at least, where headers are read one by one: what lies in a tar file between the
last block of one sample's image and the head of the next, a label's member between them."""

Range = tuple[int, int, int]
"""(file, offset, length)."""


class HeaderFile:
    """Show a file to a parser that reads small pieces far apart; count the bytes fetched.

    Args:
        filesystem: fsspec's.
        path: of the file in it.
        size: of the file (bytes).
    """

    def __init__(self, filesystem: Any, path: str, size: int) -> None:
        self._filesystem, self._path, self._size = filesystem, path, size
        local = is_local(filesystem)
        self._file = open(path, "rb", buffering=AHEAD) if local else None  # noqa: SIM115
        self._place, self._start, self._block = 0, 0, b""
        self.fetched, self.closed = 0, False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Return the offset."""
        return self._place

    def read(self, length: int = -1) -> bytes:
        """Read, fetching `AHEAD` bytes at least."""
        end = self._size if length < 0 else min(self._place + length, self._size)
        if end <= self._place:
            return b""
        if self._file is not None:
            self._file.seek(self._place)
            data = self._file.read(end - self._place)
        else:
            data = self._remote(end)
        self._place += len(data)
        return data

    def close(self) -> None:
        """Close it."""
        self.closed = True
        if self._file is not None:
            self._file.close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def __enter__(self) -> HeaderFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remote(self, end: int) -> bytes:
        if not self._start <= self._place <= end <= self._start + len(self._block):
            stop = min(max(end, self._place + AHEAD), self._size)
            self._block = self._filesystem.cat_file(self._path, start=self._place, end=stop)
            self._start = self._place
            self.fetched += len(self._block)
        first = self._place - self._start
        return self._block[first : first + end - self._place]


def read_ranges(filesystem: Any, paths: Sequence[str], ranges: Sequence[Range]) -> list[bytes]:
    """Read ranges of files; remote ones that lie close together are fetched at once.

    Args:
        filesystem: fsspec's.
        paths: of the files that ranges count.
        ranges: in any order.

    Returns:
        the bytes of each range.

    Raises:
        OSError: if a file cannot be read, or ends before a range does.
    """
    if is_local(filesystem):
        return _local(paths, ranges)
    order = sorted(range(len(ranges)), key=lambda item: ranges[item])
    groups: list[list[int]] = []
    end = (-1, 0)
    for item in order:
        number, offset, length = ranges[item]
        if groups and number == end[0] and offset <= end[1] + GAP:
            groups[-1].append(item)
        else:
            groups.append([item])
        end = (number, max(offset + length, end[1] if number == end[0] else 0))
    spans = [_span([ranges[item] for item in group]) for group in groups]
    blocks = filesystem.cat_ranges(
        [paths[number] for number, _, _ in spans],
        [start for _, start, _ in spans],
        [stop for _, _, stop in spans],
        on_error="raise",
    )
    result = [b""] * len(ranges)
    for group, (number, start, _), block in zip(groups, spans, blocks, strict=True):
        for item in group:
            _, offset, length = ranges[item]
            result[item] = bytes(block[offset - start : offset - start + length])
            _check_length(paths[number], result[item], length)
    return result


def _span(ranges: list[Range]) -> Range:
    """Return (file, first byte, end) of ranges of one file."""
    stop = max(offset + length for _, offset, length in ranges)
    return ranges[0][0], min(offset for _, offset, _ in ranges), stop


def _local(paths: Sequence[str], ranges: Sequence[Range]) -> list[bytes]:
    handles: dict[int, int] = {}
    result = []
    try:
        for number, offset, length in ranges:
            if number not in handles:
                handles[number] = os.open(paths[number], os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(handles[number], length, offset)
            _check_length(paths[number], data, length)
            result.append(data)
    finally:
        for descriptor in handles.values():
            os.close(descriptor)
    return result


def _check_length(path: str, data: bytes, length: int) -> None:
    if len(data) != length:
        raise OSError(f"{path} is shorter than it was when it was listed")
