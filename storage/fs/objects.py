"""Objects of a remote root by fsspec: every request retried, every body measured.

Only stores that show an object whole or not at all are allowed. What a network does (timeouts,
refusals to serve for now, connections cut, bodies cut short) is tried again with growing pauses and
never taken for damage; it ends as an error that names the object and says that nothing is lost.

Not over obstore (0.12 tried): in a forked process every request of it waits for ever, it takes a
body cut short for the whole, and does not retry conditional puts and deletes that time out.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from storage.fs.proof import Proof, prove

SCHEMES = ("memory", "s3", "s3a", "gs", "gcs", "az", "abfs")
ATTEMPTS = 6
SAID_AT = 3
"""Failed attempts after which it is said that a store cannot be reached."""
BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
_PIPE_BYTES = 64 << 20  # larger files are sent in parts, not read into memory
_SMALL_BYTES = 256 << 20  # no record comes near it
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_FINAL_ERRNO = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG}
_NETWORK = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "http", "requests", "urllib3"}
_NEVER = {"NoCredentialsError", "ParamValidationError", "PartialCredentialsError"}
_proofs: dict[str, Proof] = {}
_MEMORY_LOCK = threading.Lock()  # fsspec's memory store checks and creates in two steps

log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class ObjectInfo:
    """Say what a store knows of one object.

    Args:
        size: bytes.
        modified: seconds since 1970 by the store's clock.
        identity: tells one version of the object from another.
    """

    size: int
    modified: float
    identity: tuple[int, int]


class ShortBodyError(OSError):
    """Say that fewer bytes came than the store announced; trying again helps."""


class Objects:
    """Get and put objects below one URL; safe to use from several threads, and after a fork.

    Args:
        url: folder, such as `s3://bucket/features`. Credentials and endpoints come from where
            fsspec's file system for it takes them (environment, its own configuration files).

    Raises:
        DataError: if the scheme is not supported, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = url.partition("://")[0]
        if self.scheme not in SCHEMES:
            raise DataError(
                f"{url}: got a {self.scheme}:// URL, allowed a local path, file:// or "
                f"{', '.join(f'{name}://' for name in SCHEMES)}."
            )
        if self.scheme != "memory" and not url.partition("://")[2].strip("/"):
            raise DataError(f"{url}: got no bucket, allowed {self.scheme}://BUCKET/FOLDER.")
        self._process, self._fs, self._root = 0, None, ""
        self._open()

    def _open(self) -> Any:
        """Return the file system; a forked process needs one of its own."""
        if self._fs is None or self._process != os.getpid():
            from fsspec.core import url_to_fs

            try:
                self._fs, root = url_to_fs(self.url, use_listings_cache=False)
            except ImportError as error:
                raise DataError(
                    f"{self.url}: got no support for {self.scheme}:// ({error}). Install it, e.g. "
                    "`pip install s3fs` for s3://, gcsfs for gs://, adlfs for az://."
                ) from None
            self._root, self._process = root.rstrip("/"), os.getpid()
        return self._fs

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def info(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object; None where there is none."""
        try:
            entry = self._retry("look at", key, lambda fs: fs.info(self._path(key)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if entry.get("type") != "file":
            return None
        size, modified = int(entry.get("size") or 0), _modified(entry)
        tag = next((str(entry[n]) for n in ("ETag", "etag", "generation") if entry.get(n)), "")
        token = tag or repr(modified)
        return ObjectInfo(size, modified, (size, xxhash.xxh3_64_intdigest(token.encode())))

    def has_folder(self, key: str) -> bool:
        """Say whether there is any object below a key, or an empty bucket of that name."""
        return bool(self._retry("look at", key, lambda fs: fs.isdir(self._path(key))))

    def names(self, key: str) -> list[str]:
        """Return the names directly below a folder; none where there is no folder."""
        path = self._path(key)
        try:
            paths = self._retry("list", key, lambda fs: fs.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = [item.rstrip("/") for item in paths if item.strip("/") != path.strip("/")]
        return [item.rpartition("/")[2] for item in inside]

    def walk(self, key: str) -> Iterator[str]:
        """Yield the keys of all objects below a folder."""
        try:
            paths = self._retry("list", key, lambda fs: fs.find(self._path(key)))
        except FileNotFoundError:
            return
        start = len(self._root.strip("/")) + 1
        yield from (item.strip("/")[start:] for item in paths)

    def get(self, key: str, *, limit: int) -> bytes:
        """Return a whole object.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if it is longer than `limit`, or the store cannot be reached.
        """

        def attempt(fs: Any) -> bytes:
            known = self.info(key)
            if known is None:
                raise FileNotFoundError(f"{self.url}/{key}")
            if known.size > limit:
                raise DataError(f"{self.url}/{key}: got {known.size} bytes, allowed {limit}.")
            data = fs.cat_file(self._path(key))
            self._check_size(key, len(data), known.size)
            return data

        return self._retry("read", key, attempt)

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return ranges (key, first byte, end) of objects, all of each.

        Raises:
            FileNotFoundError: if there is no such object.
            DataError: if the store cannot be reached, or an object ends before a range does.
        """

        def attempt(fs: Any) -> list[bytes]:
            paths = [self._path(key) for key, _, _ in wanted]
            starts, stops = ([one[n] for one in wanted] for n in (1, 2))
            try:
                blocks = fs.cat_ranges(paths, starts, stops, on_error="raise")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise DataError(
                    f"{self.url}: got an object that ends before what is asked for, one of "
                    f"{', '.join(sorted({key for key, _, _ in wanted})[:3])}. Run `dreamshard "
                    f"verify --repair {self.url}`."
                ) from None
            for (key, start, stop), data in zip(wanted, blocks, strict=True):
                self._check_size(key, len(data), stop - start)
            return blocks

        return self._retry("read", wanted[0][0] if wanted else "", attempt)

    def download(self, key: str, path: str) -> None:
        """Copy a whole object into a local file.

        Raises:
            FileNotFoundError: if there is none.
            DataError: if the store cannot be reached.
        """

        def attempt(fs: Any) -> None:
            known = self.info(key)
            if known is None:
                raise FileNotFoundError(f"{self.url}/{key}")
            fs.get_file(self._path(key), path)
            self._check_size(key, os.path.getsize(path), known.size)

        self._retry("read", key, attempt)

    def put(self, key: str, data: bytes) -> None:
        """Put an object whole, replacing what is there."""
        self._put(key, lambda fs: fs.pipe_file(self._path(key), data))

    def upload(self, path: str, key: str) -> ObjectInfo:
        """Put a local file whole, replacing what is there; return what the store has then."""
        size = os.path.getsize(path)

        def attempt(fs: Any) -> ObjectInfo:
            if size <= _PIPE_BYTES or self.scheme == "memory":
                with open(path, "rb", buffering=0) as file:
                    fs.pipe_file(self._path(key), file.read())
            else:
                fs.put_file(path, self._path(key))
            known = self.info(key)
            self._check_size(key, -1 if known is None else known.size, size)
            assert known is not None
            return known

        return self._put(key, attempt)

    def proof(self, folder: str, *, again: bool = False) -> Proof:
        """Say whether the store refuses a second put of a key; tried once by each process.

        Args:
            folder: where to try.
            again: try now, whatever was found before.
        """
        if again or self.url not in _proofs:
            _proofs[self.url] = prove(
                folder,
                create=lambda key, data: self._put(key, lambda fs: self._create(fs, key, data)),
                put=self.put,
                get=self._look,
                remove=self.remove,
            )
        return _proofs[self.url]

    def put_new(self, key: str, data: bytes, *, folder: str) -> bool:
        """Put an object whole where there is none.

        A put whose answer was lost may find itself: equal bytes count as put by this call. Where
        the store has no conditional put that works, the last of two writers at once stays.

        Args:
            key: where to put it.
            data: what it is to hold.
            folder: where to try whether the store can.

        Returns:
            Whether these are the bytes that are there now.
        """
        if self.info(key) is None:
            try:
                if self.proof(folder) == "proved":
                    self._put(key, lambda fs: self._create(fs, key, data))
                    return True
                self.put(key, data)
            except FileExistsError:
                if self._look(key) is None:  # it cannot be there and not be there
                    self.proof(folder, again=True)
                    return self.put_new(key, data, folder=folder)
        return self._look(key) == data

    def _look(self, key: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.get(key, limit=_SMALL_BYTES)
        return None

    def _create(self, fs: Any, key: str, data: bytes) -> None:
        guard = _MEMORY_LOCK if self.scheme == "memory" else contextlib.nullcontext()
        try:
            with guard:
                fs.pipe_file(self._path(key), data, mode="create")
        except Exception as error:
            text = f"{getattr(error, 'code', '')} {error} {error.__cause__}"
            if any(word in text for word in ("PreconditionFailed", "pre-condition", "412")):
                raise FileExistsError(self._path(key)) from None
            if getattr(error, "errno", None) == errno.ENOSYS:
                raise NotImplementedError from None
            raise

    def remove(self, key: str) -> bool:
        """Remove an object; say whether there was one."""
        if self.info(key) is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            self._retry("remove", key, lambda fs: fs.rm_file(self._path(key)))
        return True

    def _check_size(self, key: str, got: int, want: int) -> None:
        if got != want:
            raise ShortBodyError(f"{got} bytes of {want}")

    def _put(self, key: str, attempt: Callable[[Any], _T]) -> _T:
        try:
            return self._retry("write", key, attempt)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.url}/{key}: cannot write: no such bucket ({error}). Make it first."
            ) from None

    def _retry(self, verb: str, key: str, attempt: Callable[[Any], _T]) -> _T:
        """Make a request, again and again where the network or the store is at fault."""
        for count in range(1, ATTEMPTS + 1):
            try:
                return attempt(self._open())
            except DataError:
                raise
            except Exception as error:
                if not is_transient(error):
                    if isinstance(error, PermissionError) or _is_of_network(error):
                        raise self._failed(verb, key, error, "Check the credentials.") from error
                    raise
                if count == ATTEMPTS:
                    hint = (
                        f"Tried {ATTEMPTS} times. What is committed stays whole; check the network "
                        "and run the same command again."
                    )
                    raise self._failed(verb, key, error, hint) from error
                if count == SAID_AT:  # a blip is not worth a word; a minute without one is
                    text = f"{type(error).__name__}: {error!s:.200}"
                    log.warning("%s: cannot %s: %s; trying again", self.url, verb, text)
            pause = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (count - 1))
            time.sleep(random.uniform(pause / 2, pause))
        raise AssertionError("the loop returns or raises")

    def _failed(self, verb: str, key: str, error: Exception, hint: str) -> DataError:
        where = f"{self.url}/{key}" if key else self.url
        kind = CannotReadError if verb in ("read", "list") else DataError
        return kind(f"{where}: cannot {verb}: {type(error).__name__}: {error!s:.200}. {hint}")


def is_transient(error: BaseException) -> bool:
    """Say whether a request that failed like this may succeed if it is made again."""
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, (TimeoutError, ConnectionError, EOFError)):
        return True
    if isinstance(error, OSError) and not _is_of_network(error):
        return error.errno not in _FINAL_ERRNO
    return _is_of_network(error) and type(error).__name__ not in _NEVER


def _is_of_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK


def _modified(entry: dict[str, Any]) -> float:
    for name in ("LastModified", "updated", "mtime", "last_modified", "created"):
        value = entry.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return time.time()
