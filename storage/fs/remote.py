"""The store's file operations on an object store, which has neither rename nor links.

A file being written lies in a local folder of this process; nobody else sees it. `rename` sends it
whole to its final key and `link` does so where nothing has that key, conditionally where the store
can. Claims and leases are objects, because other hosts must see them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from dreamshard.errors import DataError
from dreamshard.owner.processes import is_dead, owner
from storage.fs.beneath import kind_of
from storage.fs.local import MAX_RECORD_BYTES, STAGING, LocalFiles
from storage.fs.objects import Objects
from storage.fs.proof import Proof

_NOTED = 4096  # uploads remembered, so that a run knows its own files again
_PUT = f"{STAGING}/put"
_made: dict[int, str] = {}  # this process's staging folder, by process number


class RemoteFiles(LocalFiles):
    """Keep files below a URL of an object store; see `LocalFiles` for what each method does.

    Args:
        url: folder, such as `s3://bucket/features/name`.
    """

    remote, renames = True, False

    def __init__(self, url: str) -> None:
        self.objects = Objects(url)
        self.url = self.objects.url
        self.poll_s = 0.01 if self.objects.scheme == "memory" else 0.2
        self._staged: dict[str, str] = {}  # local path by key, of what was not sent yet
        self._sent: OrderedDict[str, tuple[tuple[int, int], tuple[int, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, key: str) -> str:
        """Return the URL of a key; the local path of a file that was not sent yet."""
        return self._staged.get(key) or (f"{self.url}/{key}" if key else self.url)

    def read(self, key: str, *, limit: int = MAX_RECORD_BYTES) -> bytes:
        """Return a whole object, its size checked against what the store says it is."""
        return self.objects.get(key, limit=limit)

    def download(self, key: str, path: str) -> None:
        """Copy a whole object to a local path."""
        self.objects.download(key, path)

    @contextlib.contextmanager
    def fetched(self, key: str) -> Iterator[str]:
        """Give a local copy of an object, removed afterwards."""
        path = f"{staging_folder()}/{self._name()}"
        try:
            self.objects.download(key, path)
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def size(self, key: str) -> int | None:
        """Return an object's bytes, None where there is none; 0 for a root that is there."""
        known = self.objects.info(key) if key else None
        if not key and self.objects.has_folder(""):
            return 0
        return None if known is None else known.size

    def modified(self, key: str) -> float | None:
        """Return when an object last changed, by the store's clock, or None."""
        known = self.objects.info(key)
        return None if known is None else known.modified

    def identity(self, key: str) -> tuple[int, int] | None:
        """Return what tells one version of an object from another.

        What this process sent counts as the local file it came from.
        """
        known = self.objects.info(key)
        if known is None:
            return None
        local, sent = self._sent.get(key, (known.identity, None))
        return local if sent == known.identity else known.identity

    def stamp(self, key: str) -> tuple[object, ...] | None:
        """Return what changes whenever an object is put, or None where there is none."""
        known = self.objects.info(key)
        return None if known is None else (known.modified, known.identity)

    def names(self, prefix: str) -> list[str]:
        """Return the names in a folder, in no order; none where there is no folder."""
        return self.objects.names(prefix)

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all objects below a folder."""
        return self.objects.walk(prefix)

    def now(self) -> float:
        """Return the store's own time, which other hosts' stamps can be compared with."""
        key = self.temporary()
        self.objects.put(key, b"now")
        try:
            return self.modified(key) or super().now()
        finally:
            self.objects.remove(key)

    def open_new(self, key: str) -> int:
        """Open a new local file that is to become an object; return the descriptor."""
        self.step("create", key)
        path = f"{staging_folder()}/{self._name()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with self.explain("create", key):
            descriptor = os.open(path, flags, 0o600)
        self._staged[key] = path
        return descriptor

    def write(self, key: str, data: bytes, *, if_absent: bool = False, fsync: bool = True) -> bool:
        """Put a small object whole, replacing what is there or only where nothing is."""
        self.step("put", key)
        if if_absent:
            return self.objects.put_new(key, data, folder=_PUT)
        self.objects.put(key, data)
        return True

    def rename(self, source: str, target: str) -> None:
        """Send a local file whole to its final key, replacing what is there."""
        self.step("put", target)
        path = self._local(source)
        stat = os.stat(path)
        sent = self.objects.upload(path, target)
        with self._lock:
            self._sent[target] = ((stat.st_dev, stat.st_ino), sent.identity)
            while len(self._sent) > _NOTED:
                self._sent.popitem(last=False)
        self._drop(source)

    def link(self, source: str, target: str) -> bool:
        """Put a local file, or the content of an object, whole where nothing has the key yet."""
        self.step("put", target)
        if source in self._staged:
            data = Path(self._local(source)).read_bytes()
            return self.objects.put_new(target, data, folder=_PUT)
        return self.objects.put_new(target, self.read(source), folder=_PUT)

    def proof(self, *, again: bool = False) -> Proof:
        """Say whether the store refuses a second put of a key; tried once by each process."""
        return self.objects.proof(_PUT, again=again)

    def sync_folders(self, keys: Iterable[str]) -> None:
        """Do nothing: an object that was put is durable."""

    def touch(self, key: str) -> None:
        """Put an object again, so that its time is now.

        Raises:
            FileNotFoundError: if there is none.
            OSError: if the store cannot be reached.
        """
        try:
            self.objects.put(key, self.read(key))
        except DataError as error:
            raise OSError(str(error)) from error

    def remove(self, key: str) -> bool:
        """Remove an object, or a local file that was not sent; say whether there was one."""
        self.step("remove", key)
        if key in self._staged:
            return self._drop(key)
        if key.startswith(f"{STAGING}/") and not _is_shared(key):
            return False  # it was sent, or never written: no request is needed to know
        return self.objects.remove(key)

    def remove_tree(self, prefix: str) -> int:
        """Remove all objects below a folder; return how many."""
        self.step("remove", prefix)
        return sum(self.objects.remove(key) for key in list(self.walk(prefix)))

    def prune(self, prefix: str) -> None:
        """Do nothing: there are no empty folders."""

    def _local(self, key: str) -> str:
        path = self._staged.get(key)
        if path is None or not os.path.exists(path):
            raise FileNotFoundError(f"{self.url}/{key}")
        return path

    def _drop(self, key: str) -> bool:
        path = self._staged.pop(key, None)
        if path is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return True

    def _name(self) -> str:
        return self.temporary().rpartition("/")[2]


def _is_shared(key: str) -> bool:
    """Say whether a key of the staging folder is an object: claims, leases, clock marks."""
    return key.endswith(".lease") or key.startswith((f"{STAGING}/claims/", f"{STAGING}/put/"))


def staging_folder() -> str:
    """Return this process's own local folder for files not sent yet; sweep those of dead ones."""
    process = os.getpid()
    if process not in _made:
        parent = Path(tempfile.gettempdir()) / f"dreamshard-staging-{os.getuid()}"
        parent.mkdir(mode=0o700, exist_ok=True)
        entry = parent.lstat()  # everybody may write beside it
        if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid():
            raise DataError(
                f"{parent}: got {kind_of(entry.st_mode)} of user {entry.st_uid}, allowed a folder "
                "of one's own. Remove it, or set TMPDIR to a folder that is yours."
            )
        for folder in parent.iterdir():
            if is_dead(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        own = parent / owner()
        own.mkdir(mode=0o700, exist_ok=True)
        _made[process] = str(own)
        atexit.register(_clear, process)
    return _made[process]


def _clear(process: int) -> None:
    own = _made.pop(process, None)
    if own is not None and process == os.getpid():  # a forked child leaves its parent's alone
        shutil.rmtree(own, ignore_errors=True)
