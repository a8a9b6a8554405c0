"""Read local files whole within a bound, and headers of archives; what is no file never blocks."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dreamshard.errors import DreamshardError
from dreamshard.foreign.guard import UnreadableError, reading

MAX_BYTES = 64 << 20
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""How packed archives begin, and what unpacks them."""


def read_bytes(
    path: Path,
    *,
    limit: int = MAX_BYTES,
    error: type[DreamshardError] = UnreadableError,
) -> bytes:
    """Read a regular file.

    Args:
        limit: the most it may hold (bytes).
        error: class to raise.

    Raises: `error` for a device, a pipe, a folder, or more bytes than the limit. What the system
        refuses (missing, no permission) is an OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as failed:
        if failed.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise error(f"{path}: got no regular file (a socket or a device).") from failed
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: got no regular file (a pipe, a device or a folder).")
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        data = b"" if status.st_size > limit else _read(file, status.st_size, limit)
    if status.st_size > limit or len(data) > limit:
        size = max(status.st_size, len(data))
        raise error(f"{path}: got {size:,} bytes or more, allowed {limit:,}.")
    return data


def _read(file: BinaryIO, size: int, limit: int) -> bytes:
    """Read a file of about a size; read(limit) would allocate the limit for a few bytes."""
    data = file.read(size + 1)
    while len(data) <= limit and (more := file.read(1 << 20)):  # it grew, or tells no size
        data += more
    return data


def check_regular(path: Path, *, error: type[DreamshardError] = UnreadableError) -> int:
    """Return the size of a regular file in bytes; refuse a device, a pipe or a folder.

    Raises: `error`; OSError for what the system refuses.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: got no regular file (a pipe, a device or a folder).")
    return status.st_size


@contextmanager
def open_tar(file: Any, *, where: str) -> Iterator[tarfile.TarFile]:
    """Open an archive that is not packed, to look at its headers.

    Args:
        file: a file object.
        where: the file, for messages.
    """
    with (
        reading(where, "a tar archive", error=UnreadableError),
        _named_if_packed(file, where),
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        yield tar


@contextmanager
def _named_if_packed(file: Any, where: str) -> Iterator[None]:
    try:
        yield
    except tarfile.ReadError as failed:
        file.seek(0)
        head = file.read(max(map(len, PACKED)))
        tool = next((tool for magic, tool in PACKED.items() if head.startswith(magic)), "")
        if not tool:
            raise
        raise UnreadableError(
            f"{where}: not readable as a tar archive: it is packed, allowed one that is not, "
            f"as members are read in place. Unpack it with {tool} -d."
        ) from failed
