"""Every file operation of the store, behind one small interface.

All keys are relative to a dataset's folder and use `/`. Writers never touch a final key but by
`rename` (replace) and `link` (put if absent) of a file that is already whole. A test may set
`LocalFiles.fault` to fail any step.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from dreamshard.errors import DataError
from storage.fs.owners import owner
from storage.fs.proof import Proof
from storage.fs.reserve import reserve

STAGING = "staging"  # everything that is not final: temporary files, claims, leases
MAX_RECORD_BYTES = 256 << 20  # no JSON record of ours comes near it
LOCK_TIMEOUT_S = 30.0
_RESERVED_BYTES = 16 << 20  # at a time, for files written in pieces of _RESERVE_FROM or more
_RESERVE_FROM = 32 << 10
_WRITE_ATTEMPTS = 3
_MAX_BUFFERS = min(1024, os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16)

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_counter = itertools.count()
_T = TypeVar("_T")


class LocalSink:
    """Write one local file sequentially."""

    def __init__(self, files: LocalFiles, key: str) -> None:
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


class LocalFiles:
    """Keep files in a folder of a local or mounted file system.

    Args:
        root: the folder; made when first written to.
    """

    remote = False
    """Whether files are objects of a store elsewhere, so that readers need local copies."""

    renames = True
    """Whether a file that others see can be renamed in one step, by whichever process is first."""

    poll_s = 0.01
    """Seconds between two looks at what other runs do."""

    fault: Callable[[str, str], None] | None = None
    """Called as fault(step, key) before every step that changes something; tests raise from it."""

    def __init__(self, root: str | Path) -> None:
        self.url = os.path.abspath(root)

    def step(self, name: str, key: str) -> None:
        """Announce a step to a fault injector."""
        if LocalFiles.fault is not None:
            with self.explain(name, key):
                LocalFiles.fault(name, key)

    @contextlib.contextmanager
    def explain(self, verb: str, key: str) -> Iterator[None]:
        """Turn the operating system's refusals into errors a user can act on."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            if verb in ("read", "list"):
                hint = "Check the path, its permissions and the disk."
            else:
                hint = (
                    "What is committed stays whole; make room or fix the permissions and run the "
                    "same command again."
                )
            reason = error.strerror or error
            raise DataError(f"{self.path(key)}: cannot {verb}: {reason}. {hint}") from error

    def path(self, key: str) -> str:
        """Return the local path of a key."""
        return f"{self.url}/{key}" if key else self.url

    def read(self, key: str, *, limit: int = MAX_RECORD_BYTES) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if it is longer than `limit` bytes or cannot be read.
        """
        if (size := self.size(key)) is None:
            raise FileNotFoundError(self.path(key))
        if size > limit:
            raise DataError(f"{self.path(key)}: got {size} bytes, allowed {limit}.")
        with self.explain("read", key), open(self.path(key), "rb", buffering=0) as file:
            return file.read(limit)

    @contextlib.contextmanager
    def fetched(self, key: str) -> Iterator[str]:
        """Give the local path of a whole file, for as long as the context lasts."""
        yield self.path(key)

    def download(self, key: str, path: str) -> None:
        """Copy a whole file to a local path."""
        with self.explain("read", key):
            shutil.copyfile(self.path(key), path)

    def size(self, key: str) -> int | None:
        """Return a file's bytes, or None where there is no such file."""
        stat = self._stat(key)
        return None if stat is None else stat.st_size

    def modified(self, key: str) -> float | None:
        """Return when a file last changed, by the file system's clock, or None."""
        stat = self._stat(key)
        return None if stat is None else stat.st_mtime

    def identity(self, key: str) -> tuple[int, int] | None:
        """Return what tells one file from another under the same name: (device, inode)."""
        stat = self._stat(key)
        return None if stat is None else (stat.st_dev, stat.st_ino)

    def stamp(self, key: str) -> tuple[object, ...] | None:
        """Return what changes with everything that is done to a file, or None where there is none.

        The file is opened for that: network file systems then ask their server, not their memory.
        """
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # another user's, kept private: its times are all there is to see
            stat = self._stat(key)
        else:
            try:
                stat = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        return None if stat is None else (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)

    def names(self, prefix: str) -> list[str]:
        """Return the names in a folder, in no order; none where there is no folder."""
        try:
            with self.explain("list", prefix):
                return os.listdir(self.path(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all files below a folder."""
        start = len(self.url) + 1
        for folder, _, names in os.walk(self.path(prefix)):
            for name in names:
                yield f"{folder}/{name}"[start:]

    def now(self) -> float:
        """Return the file system's own time, which other hosts' stamps can be compared with."""
        key = self.temporary()
        os.close(self.open_new(key))
        try:
            return self.modified(key) or time.time()
        finally:
            self.remove(key)

    def create(self, key: str) -> LocalSink:
        """Start a new file under a key nobody else uses."""
        return LocalSink(self, key)

    def open_new(self, key: str) -> int:
        """Open a new file for writing, making its folders; return the descriptor."""
        self.step("create", key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with self.explain("create", key):
            return self._in_folder(key, lambda: os.open(self.path(key), flags, 0o666))

    def write(self, key: str, data: bytes, *, if_absent: bool = False, fsync: bool = True) -> bool:
        """Put a small file whole, replacing what is there or only where nothing is.

        Returns:
            Whether the file was put.
        """
        for _ in range(_WRITE_ATTEMPTS):
            try:
                return self._write(key, data, if_absent=if_absent, fsync=fsync)
            except FileNotFoundError:
                # Paused between writing and renaming for so long that another run swept it.
                continue
        raise DataError(
            f"{self.path(key)}: cannot write: the temporary file was removed {_WRITE_ATTEMPTS} "
            "times. Is another program cleaning up there? Run the same command again."
        )

    def _write(self, key: str, data: bytes, *, if_absent: bool, fsync: bool) -> bool:
        sink = self.create(self.temporary())
        try:
            sink.write(data)
            sink.seal(fsync=fsync)
            if if_absent:
                return self.link(sink.key, key)
            self.rename(sink.key, key)
            return True
        finally:
            sink.close()
            with contextlib.suppress(DataError):
                self.remove(sink.key)

    def rename(self, source: str, target: str) -> None:
        """Move a file to its final key, replacing what is there, in one step."""
        self.step("rename", target)
        with self.explain("rename to", target):
            self._in_folder(target, lambda: os.replace(self.path(source), self.path(target)))

    def link(self, source: str, target: str) -> bool:
        """Give a whole file a second, final key if nothing has that key yet.

        Returns:
            Whether this call put it there.
        """
        self.step("link", target)
        with self.explain("link to", target):
            try:
                self._in_folder(target, lambda: os.link(self.path(source), self.path(target)))
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            return self._put_locked(source, target)

    def proof(self, *, again: bool = False) -> Proof:
        """Say whether a second file of one key is refused; file systems do."""
        return "proved"

    def sync_folders(self, keys: Iterable[str]) -> None:
        """Make the names of files durable: flush their folders, up to the dataset's own."""
        folders: set[str] = set()
        for key in keys:
            while "/" in key:
                key = key.rpartition("/")[0]
                folders.add(key)
        for folder in sorted(folders, reverse=True):
            self.step("fsync", folder)
            with self.explain("flush", folder):
                fd = os.open(self.path(folder), os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def touch(self, key: str) -> None:
        """Set a file's time to now."""
        os.utime(self.path(key))

    def remove(self, key: str) -> bool:
        """Remove a file; say whether there was one."""
        self.step("remove", key)
        with self.explain("remove", key):
            try:
                os.unlink(self.path(key))
                return True
            except FileNotFoundError:
                return False

    def remove_tree(self, prefix: str) -> int:
        """Remove a folder and all in it; return how many files that were."""
        self.step("remove", prefix)
        count = sum(1 for _ in self.walk(prefix))
        shutil.rmtree(self.path(prefix), ignore_errors=True)
        return count

    def prune(self, prefix: str) -> None:
        """Remove empty folders below and at a prefix."""
        for folder, _, _ in os.walk(self.path(prefix), topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            return os.stat(self.path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def temporary(self) -> str:
        """Return a key for a temporary file that no other process or call uses."""
        return f"{STAGING}/put/{owner()}.{next(_counter)}"

    def _in_folder(self, key: str, action: Callable[[], _T]) -> _T:
        """Run an action, making the key's folder if that is what is missing.

        Another run may prune an empty folder between our making and using it, hence the attempts.
        """
        for _ in range(16):
            try:
                return action()
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.path(key)), exist_ok=True)
        return action()

    def _put_locked(self, source: str, target: str) -> bool:
        """Put if absent where there are no hard links: under an exclusive lock file."""
        lock = f"{STAGING}/put/lock.{target.replace('/', '+')}"
        seen, since = None, 0.0
        while True:
            with contextlib.suppress(FileExistsError):
                os.close(self.open_new(lock))
                break
            holder, now = self.stamp(lock), time.monotonic()
            if holder != seen:
                seen, since = holder, now
            elif holder and now - since > LOCK_TIMEOUT_S:  # dead: a rename takes milliseconds
                self.remove(lock)
            time.sleep(0.01)
        try:
            if self.size(target) is not None:
                return False
            copy = f"{source}.{threading.get_ident()}.copy"
            shutil.copyfile(self.path(source), self.path(copy))
            self._in_folder(target, lambda: os.replace(self.path(copy), self.path(target)))
            return True
        finally:
            self.remove(lock)


# What the other modules call the interface; `storage.fs.remote.RemoteFiles` has it too, and
# `storage.fs.open.open_files` chooses between them.
Files: TypeAlias = LocalFiles
Sink: TypeAlias = LocalSink
