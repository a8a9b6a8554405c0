"""A folder on a local disk that keeps copies of remote chunk files, within a size limit.

Several processes may share one. A copy appears under its name only when it is whole and was found
to be what its commit record describes; the least recently used ones go when there is too much. A
copy that a reader holds open stays readable after it went.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.owner.home import user_cache
from dreamshard.owner.processes import is_dead, owner

FOLDER_VARIABLE = "DREAMSHARD_CACHE"
BYTES_VARIABLE = "DREAMSHARD_CACHE_BYTES"
DEFAULT_BYTES = 64 << 30
ATTEMPTS = 3  # a body may be garbled on its way; a damaged object comes the same each time
_STRIPES = 64

Fetch = Callable[[str], None]
Check = Callable[[str], str]


class DiskCache:
    """Keep copies of files, by name.

    Args:
        folder: made if it is not there; nothing else may be kept in it.
        limit_bytes: bytes of all copies together; the newest stays even if it alone is larger.
    """

    def __init__(self, folder: str | Path, *, limit_bytes: int = DEFAULT_BYTES) -> None:
        if limit_bytes < 0:
            raise ConfigError(Problem(BYTES_VARIABLE, str(limit_bytes), "0 or more bytes"))
        self.folder, self.limit_bytes = Path(folder).absolute(), limit_bytes
        self._checked: set[tuple[str, int]] = set()  # (name, inode) this process knows to be good
        self._guard = threading.Lock()
        try:
            for name in ("copies", "partial", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot keep copies of remote chunks: {error.strerror}. Set "
                f"{FOLDER_VARIABLE} to a folder that can be written."
            ) from error
        self._sweep()

    def path(self, name: str, *, fetch: Fetch, check: Check) -> str:
        """Return the local copy of a file, getting it if need be.

        The copy may go any time until it is opened: open it at once, and ask again if it is gone.

        Args:
            name: what tells it from every other file and version, any text.
            fetch: fetch(path) writes the file to a local path.
            check: check(path) returns what is wrong with a copy, "" if nothing is.

        Raises:
            DataError: if what comes is wrong time and again, or the disk is full.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()
        copy = self.folder / "copies" / digest
        if self._known(copy, digest):
            return str(copy)
        with self._locked(digest):  # one process gets it, the others wait for that
            if self._known(copy, digest) or self._accept(copy, digest, check):
                return str(copy)
            partial = self._get(name, fetch, check)
            os.replace(partial, copy)
            self._note(copy, digest)
        self._evict(keep=copy)
        return str(copy)

    def size(self) -> int:
        """Return the bytes of all copies."""
        return sum(size for _, size, _ in self._entries())

    def _known(self, copy: Path, digest: str) -> bool:
        """Say whether this process has checked the copy that is there; mark it as used."""
        try:
            inode = copy.stat().st_ino
            if (digest, inode) not in self._checked:
                return False
            os.utime(copy)
        except FileNotFoundError:
            return False
        return True

    def _accept(self, copy: Path, digest: str, check: Check) -> bool:
        """Take over a copy of an earlier process if it is good, remove it if not."""
        try:
            if check(str(copy)) == "":
                os.utime(copy)
                self._note(copy, digest)
                return True
        except FileNotFoundError:
            pass
        copy.unlink(missing_ok=True)
        return False

    def _note(self, copy: Path, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._checked.add((digest, copy.stat().st_ino))

    def _get(self, name: str, fetch: Fetch, check: Check) -> Path:
        """Get a file under a name nobody looks at, and check it."""
        problem = ""
        for attempt in range(ATTEMPTS):
            stem = f"{owner()}.{threading.get_ident()}.{attempt}"
            partial = self.folder / "partial" / stem
            try:
                fetch(str(partial))
                problem = check(str(partial))
                if not problem:
                    return partial
            except OSError as error:
                partial.unlink(missing_ok=True)
                if isinstance(error, FileNotFoundError):
                    raise DataError(f"{name}: got no such object. {_MEND}") from None
                raise DataError(
                    f"{self.folder}: cannot keep a copy: {error.strerror or error}. Make room, or "
                    f"set {BYTES_VARIABLE} lower or {FOLDER_VARIABLE} elsewhere."
                ) from error
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            partial.unlink(missing_ok=True)
        raise DataError(f"{name}: {problem} ({ATTEMPTS} times). {_MEND}")

    def _evict(self, *, keep: Path) -> None:
        """Remove the least recently used copies until the rest fits."""
        with self._locked("evict"):
            entries = sorted(self._entries(), key=lambda entry: entry[2])
            total = sum(size for _, size, _ in entries)
            for path, size, _ in entries:
                if total <= self.limit_bytes:
                    return
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= size

    def _entries(self) -> list[tuple[Path, int, float]]:
        """List (path, bytes, last used) of the copies."""
        entries: list[tuple[Path, int, float]] = []
        for entry in os.scandir(self.folder / "copies"):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                entries.append((Path(entry.path), stat.st_size, stat.st_mtime))
        return entries

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Exclude other threads and processes; a lock ends with the process that holds it."""
        stripe = name if name == "evict" else str(int(name[:8], 16) % _STRIPES)
        descriptor = os.open(self.folder / "locks" / stripe, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what dead processes were getting."""
        for path in (self.folder / "partial").iterdir():
            if is_dead(path.name.partition(".")[0]):
                path.unlink(missing_ok=True)


_MEND = "Run `dreamshard verify --repair` on the dataset."
_shared: dict[tuple[str, int], DiskCache] = {}


def shared_cache() -> DiskCache:
    """Return this machine's cache, as the environment sets it.

    `DREAMSHARD_CACHE` is its folder (default: `dreamshard` in the user's cache folder),
    `DREAMSHARD_CACHE_BYTES` its limit.

    Raises:
        ConfigError: if the limit is no number, or a user without a home says no folder.
    """
    base = user_cache()
    folder = os.environ.get(FOLDER_VARIABLE) or (str(base / "chunks") if base else "")
    if not folder:
        hint = f"Say where copies of a remote dataset are kept: export {FOLDER_VARIABLE}=FOLDER."
        raise ConfigError(Problem(FOLDER_VARIABLE, "nothing, without a home", "a folder", hint))
    text = os.environ.get(BYTES_VARIABLE, str(DEFAULT_BYTES))
    if not text.isdecimal():
        raise ConfigError(Problem(BYTES_VARIABLE, repr(text), "a number of bytes, 0 or more"))
    key = (os.path.abspath(folder), int(text))
    if key not in _shared:
        _shared[key] = DiskCache(key[0], limit_bytes=key[1])
    return _shared[key]
