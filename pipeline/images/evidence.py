"""What an image's bytes are, told from few of them.

A source is identified by what it holds. Reading everything would cost as much as encoding it, so
each image is stood for by its size and a digest of blocks at fixed places: head, tail and four
between (`sample`). Small images are digested whole. What lies between the blocks is told by the
digest of every byte that each sample's commit keeps: `storage` compares some at every look-up and
all in `dreamshard verify --source`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.arrays import read_npy
from dreamshard.foreign.guard import CannotReadError
from dreamshard.owner.home import user_cache
from dreamshard.owner.parts import part_of
from pipeline.images.listing import File

_OF_THE_MACHINE = frozenset(
    (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
)
"""What says nothing of one file: a disk, a limit, a server."""
WHOLE = 16 << 10
"""Images up to this size are digested whole (bytes)."""
EDGE = 4 << 10
"""Digested at the head and at the tail of larger ones (bytes)."""
INNER, INNER_BLOCKS = 1 << 10, 4
THREADS = 8
"""Files looked into at once: on network disks the wait counts, not the bytes."""

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> bytes."""


def sample(size: int, read: ReadAt) -> int:
    """Digest an image's size and the blocks that stand for it: XXH3, 64 bits.

    Args:
        size: of the whole image (bytes).
        read: reads (offset, length) of it.
    """
    digest = xxhash.xxh3_64(size.to_bytes(8, "little"))
    if size <= WHOLE:
        digest.update(read(0, size))
        return digest.intdigest()
    digest.update(read(0, EDGE))
    for number in range(1, INNER_BLOCKS + 1):
        digest.update(read(size * number // (INNER_BLOCKS + 1), INNER))
    digest.update(read(size - EDGE, EDGE))
    return digest.intdigest()


def sample_bytes(data: bytes | np.ndarray | None) -> int:
    """Digest what is already in memory by the same rule; arrays with their shape."""
    if data is None:
        return 0
    if isinstance(data, np.ndarray):
        view = np.ascontiguousarray(data).data.cast("B")
        shape = xxhash.xxh3_64_intdigest(str((data.shape, data.dtype.str)).encode())
    else:
        view, shape = memoryview(data), 0
    return sample(len(view), lambda offset, length: bytes(view[offset : offset + length])) ^ shape


def sample_file(path: str, size: int) -> int:
    """Digest a local file by the same rule; 0 where there is none (its sample is invalid).

    Raises:
        CannotReadError: if the system would not give it for another reason: that must not tell one
            source from another.
    """
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return sample(size, lambda offset, length: os.pread(descriptor, length, offset))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            return 0
        raise CannotReadError(f"{path}: cannot be read: {error.strerror}.") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sample_files(root: str, files: Sequence[File]) -> np.ndarray:
    """Digest local files, uint64 (N,), those that did not change since last time from a cache.

    A file is unchanged when its size, its times of modification and of status change, and its inode
    are. A touched or copied file is read again, and has the digest it had.
    """
    known = _Cache(root)
    result, stale = known.look_up(files)
    if len(stale):
        with ThreadPoolExecutor(THREADS, thread_name_prefix="identify") as pool:
            blocks = np.array_split(stale, max(1, min(64 * THREADS, len(stale) // 64)))
            parts = pool.map(lambda rows: _sample_rows(root, files, rows), blocks)
            result[stale] = np.concatenate(list(parts))
        known.keep(files, result)
    return result


def kept(identity: str, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return digests, uint64 (N,), that are made once for what an identity tells.

    Args:
        identity: tells what they are of, its contents included.
        count: N.
        make: reads it all.
    """
    base = user_cache()
    if base is None:
        return make()
    name = xxhash.xxh3_128_hexdigest(identity.encode("utf-8", "surrogateescape"))
    path = base / "sources" / f"{name}.npy"
    with contextlib.suppress(DataError):
        found = read_npy(path)
        if found.dtype == np.uint64 and found.shape == (count,):
            return found
    made = make()
    put(path, _npy(made))
    return made


def spread(count: int) -> list[int]:
    """Choose about 32 + 24 log10(count / 32) of `count` numbers; fewer numbers, fewer of the same.

    For sources that can only be read sample by sample: the choice of a longer one contains that of
    a shorter one, so that a source that grew at its end is recognised.
    """
    chosen = list(range(min(count, 32)))
    step = 32.0
    while step < count:
        chosen.append(int(step))
        step *= 1.1
    return sorted(set(chosen))


def _sample_rows(root: str, files: Sequence[File], rows: np.ndarray) -> np.ndarray:
    digests = [sample_file(f"{root}/{files[row].name}", files[row].size) for row in rows.tolist()]
    return np.array(digests, np.uint64)


class _Cache:
    """Digests of one folder's files as they were last seen, in one small file of this machine."""

    def __init__(self, root: str) -> None:
        base = user_cache()
        name = xxhash.xxh3_128_hexdigest(os.fsencode(os.path.abspath(root)))
        self._path = base and base / "sources" / f"{name}.npy"

    def look_up(self, files: Sequence[File]) -> tuple[np.ndarray, np.ndarray]:
        """Return uint64 (N,) digests, and the rows of files that are not known."""
        result = np.zeros(len(files), np.uint64)
        if self._path is None:
            return result, np.arange(len(files))
        marks = _marks(files)
        try:
            table = read_npy(self._path)
        except DataError:
            return result, np.arange(len(files))
        if table.dtype != np.uint64 or table.ndim != 2 or table.shape[1] != 2 or not len(table):
            return result, np.arange(len(files))
        places = np.searchsorted(table[:, 0], marks).clip(max=len(table) - 1)
        known = table[places, 0] == marks
        result[known] = table[places[known], 1]
        return result, np.flatnonzero(~known)

    def keep(self, files: Sequence[File], digests: np.ndarray) -> None:
        """Write all digests down."""
        if self._path is None:
            return
        marks = _marks(files)
        good = digests != 0  # unreadable now does not mean unreadable next time
        order = np.argsort(marks[good])
        table = np.stack([marks[good][order], digests[good][order]], axis=1)
        put(self._path, _npy(table))


def put(path: Path, data: bytes) -> None:
    """Write a cache's file, whole or not at all; a cache that cannot be written is none."""
    partial = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)


def _npy(table: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def _marks(files: Sequence[File]) -> np.ndarray:
    """Digest each file's name, size and marks of change, uint64 (N,)."""
    return np.array(
        [xxhash.xxh3_64_intdigest(os.fsencode(f"{f.name}\0{f.size}\0{f.mark}")) for f in files],
        np.uint64,
    )
