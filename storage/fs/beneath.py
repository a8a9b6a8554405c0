"""Reach what lies in a folder through no link, and name what is no file.

A dataset may have come from anywhere: a link in it may lead out of it. Whatever is written, renamed
or removed is reached by descriptors, folder by folder from the dataset's own on, and none of them
may be a link, also when one is put there meanwhile. Reading follows links and never waits for a
pipe or a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_A_FILE = {
    errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.ENODEV,
    errno.ENAMETOOLONG,
}  # fmt: skip
"""What the system says of a name that leads to no file; all else is its refusal to read one."""


class LinkError(DataError):
    """Report a link, a pipe or a device where only files and folders of a dataset's own may be."""

    def __init__(self, path: str, what: str = "a link") -> None:
        super().__init__(
            f"{path}: got {what}, allowed a file or folder of the dataset's own: nothing is "
            "written or removed through it. Put the real one in its place, or remove it."
        )
        self.path, self.what = path, what

    def __reduce__(self) -> tuple[type[LinkError], tuple[str, str]]:
        return type(self), (self.path, self.what)


def refused(path: str, verb: str, error: OSError | MemoryError) -> DataError:
    """Word what the system refused; what cannot be read is a CannotReadError, and not damage."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error) or "out of memory"
    if verb not in ("read", "list"):
        hint = (
            "What is committed stays whole; make room or fix the permissions and run the same "
            "command again."
        )
        return DataError(f"{path}: cannot {verb}: {reason}. {hint}")
    kind = DataError if number in _NOT_A_FILE else CannotReadError
    hint = "Check the path, its permissions, the disk and `ulimit -n`."
    return kind(f"{path}: cannot {verb}: {reason}. {hint}")


def is_unreadable(error: BaseException) -> bool:
    """Say whether an error tells that something could not be read, and nothing of what it holds."""
    if isinstance(error, OSError):
        if error.errno is None:  # stores say by the class alone; pyarrow calls damage an OSError
            return isinstance(error, PermissionError | TimeoutError | ConnectionError)
        return error.errno not in _NOT_A_FILE
    return isinstance(error, CannotReadError | MemoryError)


def damage(error: Exception, *, path: str) -> str:
    """Say what an error tells of a file that was being read, as damage.

    Raises:
        CannotReadError: if it tells nothing of the file, but that it could not be read.
    """
    if is_unreadable(error):
        raise _cannot_read(error, path) from error
    return f"cannot be read: {error}"


def _cannot_read(error: Exception, path: str) -> DataError:
    if isinstance(error, OSError | MemoryError):
        return refused(path, "read", error)
    return CannotReadError(str(error))


def open_regular(path: str) -> int:
    """Open a file for reading; return the descriptor. A pipe or device is refused, not waited for.

    Raises:
        LinkError: for what is no regular file.
        OSError: for what the system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise LinkError(path, kind_of(mode))


def kind_of(mode: int) -> str:
    """Name what a mode says: a link, a pipe, a device, a socket, a folder, or a file."""
    names = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
        stat.S_IFREG: "a file",
    }
    return names.get(stat.S_IFMT(mode), "something unknown")


@contextlib.contextmanager
def folder(root: str, prefix: str, *, make: bool = False) -> Iterator[int]:
    """Open a folder below a root; give its descriptor, for as long as the context lasts.

    Args:
        root: may be a link itself: it is what the user named.
        prefix: of the folder, "" for the root.
        make: make the folders that are missing.

    Raises:
        LinkError: if one on the way is a link.
        OSError: for what the system refuses; FileNotFoundError where there is none.
    """
    if make:
        try:
            os.makedirs(root, exist_ok=True)
        except FileExistsError:
            raise LinkError(root, kind_of(os.lstat(root).st_mode)) from None
    descriptor, at = os.open(root, _FOLDER), root
    try:
        for part in filter(None, prefix.split("/")):
            at = f"{at}/{part}"
            below = _enter(descriptor, part, at, make=make)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int, name: str, path: str, *, make: bool) -> int:
    if name in (".", ".."):
        raise LinkError(path, f"the name {name}")
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=descriptor)
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise LinkError(path, kind_of(mode)) from None
        raise


@contextlib.contextmanager
def parent(root: str, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder that a key lies in; give its descriptor and the key's name in it."""
    prefix, _, name = key.rpartition("/")
    if name in ("", ".", ".."):
        raise LinkError(f"{root}/{key}", f"the name {name!r}")
    with folder(root, prefix, make=make) as descriptor:
        yield descriptor, name


def link_on_the_way(root: str, key: str) -> str:
    """Return the first path below a root, up to a key's own, that is a link; "" if none is."""
    at = root
    for part in filter(None, key.split("/")):
        at = f"{at}/{part}"
        try:
            if stat.S_ISLNK(os.lstat(at).st_mode):
                return at
        except (FileNotFoundError, NotADirectoryError):
            return ""
    return ""


def scan(root: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (key, entry) of all that lies below a folder, folders before what is in them.

    Links are yielded and not followed; below a link lies nothing.
    """
    if link_on_the_way(root, prefix):
        return
    todo = [prefix]
    while todo:
        key = todo.pop()
        path = f"{root}/{key}" if key else root
        try:
            with os.scandir(path) as entries:
                children = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile
        except OSError as error:
            raise refused(path, "list", error) from error
        for entry in children:
            below = f"{key}/{entry.name}" if key else entry.name
            yield below, entry
            if entry.is_dir(follow_symlinks=False):
                todo.append(below)


def specials(root: str) -> Iterator[tuple[str, str]]:
    """Yield (key, what it is) of all that is neither a file nor a folder, at every level."""
    for key, entry in scan(root, ""):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(FileNotFoundError):
            yield key, kind_of(entry.stat(follow_symlinks=False).st_mode)


def remove_tree(root: str, prefix: str) -> None:
    """Remove a folder and all in it, as far as that is allowed; of a link only the link."""
    if not prefix:
        shutil.rmtree(root, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError), parent(root, prefix) as (descriptor, name):
        mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=descriptor)
        else:
            os.unlink(name, dir_fd=descriptor)


def prune(root: str, prefix: str) -> None:
    """Remove empty folders below and at a prefix."""
    try:
        entries = scan(root, prefix)
        folders = [key for key, entry in entries if entry.is_dir(follow_symlinks=False)]
    except DataError:
        return  # empty or not: it cannot be seen
    for key in reversed([prefix, *folders] if prefix else folders):
        with contextlib.suppress(OSError, LinkError), parent(root, key) as (descriptor, name):
            os.rmdir(name, dir_fd=descriptor)
    if not prefix:
        with contextlib.suppress(OSError):
            os.rmdir(root)
