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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.owner.processes import owner
from storage.fs import beneath
from storage.fs.proof import Proof
from storage.fs.sink import LocalSink

STAGING = "staging"  # everything that is not final: temporary files, claims, leases
MAX_RECORD_BYTES = 256 << 20  # no JSON record of ours comes near it
LOCK_TIMEOUT_S = 30.0
_WRITE_ATTEMPTS = 3
_FOLDER_ATTEMPTS = 17
_COPY_BYTES = 1 << 20

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_counter = itertools.count()
_T = TypeVar("_T")


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
        except (OSError, MemoryError) as error:
            raise beneath.refused(self.path(key), verb, error) from error

    def path(self, key: str) -> str:
        """Return the local path of a key."""
        return f"{self.url}/{key}" if key else self.url

    def read(self, key: str, *, limit: int = MAX_RECORD_BYTES) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if it is longer than `limit` bytes; CannotReadError if it cannot be read.
        """
        with self.explain("read", key), open(self._open(key), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limit else file.read(size + 1)
        if max(size, len(data)) > limit:
            raise DataError(f"{self.path(key)}: got {size} bytes, allowed {limit}.")
        return data

    @contextlib.contextmanager
    def fetched(self, key: str) -> Iterator[str]:
        """Give the local path of a whole file, for as long as the context lasts."""
        with self.explain("read", key):
            os.close(self._open(key))
        yield self.path(key)

    def download(self, key: str, path: str) -> None:
        """Copy a whole file to a local path."""
        with self.explain("read", key), open(self._open(key), "rb") as file, open(path, "wb") as to:
            shutil.copyfileobj(file, to, _COPY_BYTES)

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
            with self.explain("read", key):
                stat = os.lstat(self.path(key))
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
                try:
                    return os.listdir(self.path(prefix))
                except NotADirectoryError:
                    return []
        except FileNotFoundError:
            self._check_absent(prefix)
            return []

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all files below a folder; links are not followed."""
        for key, entry in beneath.scan(self.url, prefix):
            if not entry.is_dir(follow_symlinks=False):
                yield key

    def specials(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what it is) of all links, pipes and devices, at every level."""
        if not self.remote:
            yield from beneath.specials(self.url)

    def is_link(self, key: str) -> bool:
        """Say whether a key, or a folder that it lies in, is a link; "" asks for the root."""
        if self.remote:
            return False
        return bool(beneath.link_on_the_way(self.url, key)) if key else os.path.islink(self.url)

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
            return self._in_folder(key, lambda at, name: os.open(name, flags, 0o666, dir_fd=at))

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
            self._in_folder(target, lambda at, name: self._move(source, at, name))

    def link(self, source: str, target: str) -> bool:
        """Give a whole file a second, final key if nothing has that key yet.

        Returns:
            Whether this call put it there.
        """
        self.step("link", target)
        with self.explain("link to", target):
            try:
                self._in_folder(target, lambda at, name: self._link(source, at, name))
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
            with self.explain("flush", folder), beneath.folder(self.url, folder) as descriptor:
                os.fsync(descriptor)

    def touch(self, key: str) -> None:
        """Set a file's time to now."""
        try:
            with beneath.parent(self.url, key) as (at, name):
                os.utime(name, dir_fd=at, follow_symlinks=False)
        except beneath.LinkError as error:  # who calls this expects no more than OSErrors
            raise OSError(errno.ELOOP, str(error)) from error

    def remove(self, key: str) -> bool:
        """Remove a file; say whether there was one."""
        self.step("remove", key)
        with self.explain("remove", key):
            try:
                with beneath.parent(self.url, key) as (at, name):
                    os.unlink(name, dir_fd=at)
                return True
            except FileNotFoundError:
                return False

    def remove_tree(self, prefix: str) -> int:
        """Remove a folder and all in it; return how many files that were."""
        self.step("remove", prefix)
        count = 0
        with contextlib.suppress(CannotReadError):
            count = sum(1 for _ in self.walk(prefix))
        with self.explain("remove", prefix):
            beneath.remove_tree(self.url, prefix)
        return count

    def prune(self, prefix: str) -> None:
        """Remove empty folders below and at a prefix."""
        beneath.prune(self.url, prefix)

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            with self.explain("read", key):
                try:
                    return os.stat(self.path(key))
                except NotADirectoryError:
                    return None
        except FileNotFoundError:
            self._check_absent(key)
            return None

    def _open(self, key: str) -> int:
        try:
            return beneath.open_regular(self.path(key))
        except FileNotFoundError:
            self._check_absent(key)
            raise
        except NotADirectoryError:  # a file where a folder would be: there is no such file
            raise FileNotFoundError(errno.ENOENT, "No such file", self.path(key)) from None

    def _check_absent(self, key: str) -> None:
        """Tell what is not there from what lies behind a link that leads nowhere (just now)."""
        link = beneath.link_on_the_way(self.url, key)
        if link and not os.path.exists(link):
            raise beneath.LinkError(link, "a link that leads nowhere")

    def _move(self, source: str, at: int, name: str) -> None:
        with beneath.parent(self.url, source) as (origin, old):
            os.replace(old, name, src_dir_fd=origin, dst_dir_fd=at)

    def _link(self, source: str, at: int, name: str) -> None:
        with beneath.parent(self.url, source) as (origin, old):
            os.link(old, name, src_dir_fd=origin, dst_dir_fd=at, follow_symlinks=False)

    def temporary(self) -> str:
        """Return a key for a temporary file that no other process or call uses."""
        return f"{STAGING}/put/{owner()}.{next(_counter)}"

    def _in_folder(self, key: str, action: Callable[[int, str], _T]) -> _T:
        """Run an action on a key's folder and name, making the folder if that is what is missing.

        Another run may prune an empty folder between our making and using it, hence the attempts.
        """
        for attempt in range(_FOLDER_ATTEMPTS):
            try:
                with beneath.parent(self.url, key, make=attempt > 0) as (at, name):
                    return action(at, name)
            except FileNotFoundError:
                if attempt == _FOLDER_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

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
            with open(self.open_new(copy), "wb") as new, open(self._open(source), "rb") as old:
                shutil.copyfileobj(old, new, _COPY_BYTES)
            self._in_folder(target, lambda at, name: self._move(copy, at, name))
            return True
        finally:
            self.remove(lock)


# What the other modules call the interface; `storage.fs.remote.RemoteFiles` has it too, and
# `storage.fs.open.open_files` chooses between them.
Files: TypeAlias = LocalFiles
Sink: TypeAlias = LocalSink
