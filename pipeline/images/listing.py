"""List the files of a source, and count what is passed over.

Rules for every kind of source. Hidden names (a leading dot, and the folders in `HIDDEN`) are
skipped, links to files and folders are followed, a link to a folder that holds it is not. A folder
that cannot be read is an error unless allowed. Nothing is skipped without being counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dreamshard.errors import ConfigError, DataError, Problem

HIDDEN = frozenset(
    {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that systems and archivers leave behind, beside all that begin with a dot."""


@dataclass
class Passed:
    """Count what a listing passed over, by reason, with the first example of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count one more; the reason reads after its number, such as `hidden files or folders`."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, key_of(example))

    def lines(self) -> list[str]:
        """Say it, one line per reason."""
        return [
            f"{count:,} {reason}, such as {self.examples[reason]!r}"
            for reason, count in sorted(self.counts.items())
        ]


@dataclass(frozen=True)
class File:
    """One file of a listing; `name` is relative to the listing's root, with slashes."""

    name: str
    size: int
    mark: tuple[int, ...] = ()
    """What tells a changed local file from an unchanged one: time of change (ns), inode ..."""
    tag: str = ""
    """What a remote store says of the content: ETag, checksum, or time of change."""


def is_hidden(name: str) -> bool:
    """Say whether any part of a path is hidden; `.` and `..` are steps, not names."""
    parts = (part for part in name.split("/") if part not in ("", ".", ".."))
    return any(part.startswith(".") or part in HIDDEN for part in parts)


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a path or URL, and the path within it.

    Raises:
        ConfigError: if no package knows the protocol, or if several URLs are chained.
    """
    import fsspec

    if "::" in url:
        hint = "Use a glob pattern or a folder for several files; chained URLs are not read."
        raise ConfigError(Problem("source.path", url, "one path or URL", hint))
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        hint = "Install the protocol's package (s3fs, gcsfs, adlfs ...) or correct the URL."
        problem = Problem("source.path", f"{url} ({error})", "a path or fsspec URL", hint)
        raise ConfigError(problem) from error
    # Listings must be fresh: a source that grew since the last run has to be seen.
    filesystem.invalidate_cache()
    return filesystem, path


def is_local(filesystem: Any) -> bool:
    """Say whether a filesystem is this machine's own."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def walk(
    filesystem: Any, root: str, passed: Passed, *, allow_unreadable: bool = False
) -> list[File]:
    """List every visible file below a folder, sorted by name.

    Raises:
        DataError: a folder that cannot be read (unless allowed).
        OSError: whatever a remote store fails with.
    """
    if is_local(filesystem):
        unreadable: list[str] = []
        files = list(_walk_local(root, passed, unreadable))
        if unreadable and not allow_unreadable:
            raise DataError(
                f"source: got {len(unreadable)} folder(s) that cannot be read, such as "
                f"{unreadable[0]}, allowed folders that this user may list. Grant access, or take "
                "the rest with --source.allow_unreadable true."
            )
        for name in unreadable:
            passed.add("unreadable folders", name)
    else:
        files = list(_walk_remote(filesystem, root, passed))
    return sorted(files, key=lambda file: file.name)


def by_ending(files: list[File], endings: tuple[str, ...], passed: Passed) -> list[File]:
    """Keep the files with one of some endings, whatever their case; count the others."""
    kept = []
    for file in files:
        if file.name.lower().endswith(endings):
            kept.append(file)
        else:
            passed.add(f"files that do not end in {' '.join(endings[:4])} ...", file.name)
    return kept


def find_files(url: str, endings: tuple[str, ...], passed: Passed) -> tuple[Any, str, list[File]]:
    """List the container files of a path: itself, a pattern's matches, or those below a folder.

    A path that exists is taken as it is, brackets and all, before it is read as a pattern.

    Returns:
        the filesystem, the folder that names are relative to, and the files, sorted.

    Raises:
        ConfigError: if there are none.
        DataError: as `walk`.
    """
    filesystem, path = open_filesystem(url)
    if "{" in path and "}" in path and not filesystem.exists(path):
        hint = "Brace patterns are not expanded: write a glob pattern, such as shard-*.tar."
        raise ConfigError(Problem("source.path", url, "a path or glob pattern", hint))
    if filesystem.isdir(path):
        root = path.rstrip("/")
        files = by_ending(walk(filesystem, root, passed), endings, passed)
    elif filesystem.exists(path):
        root, _, base = path.rpartition("/")
        files = [_info(filesystem, root, base)]
    elif any(mark in path for mark in "*?["):
        root, files = _matches(filesystem, path, passed)
    else:
        root, files = "", []
    if not files:
        hint = "; ".join(["Check --source.path.", *passed.lines()])
        allowed = f"an existing {endings[0]} file, a folder of them, or a glob pattern"
        raise ConfigError(Problem("source.path", url, allowed, hint))
    return filesystem, root, files


def _matches(filesystem: Any, pattern: str, passed: Passed) -> tuple[str, list[File]]:
    """List a glob pattern's matches below its longest folder without a pattern."""
    root = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
    root = root.rpartition("/")[0]
    if is_local(filesystem):
        import glob

        # Python's own glob follows linked folders.
        names = [n for n in glob.glob(pattern, recursive=True) if os.path.isfile(n)]
    else:
        names = [n for n in filesystem.glob(pattern) if not n.endswith("/")]
    files = []
    for name in sorted(names):
        relative = name[len(root) :].lstrip("/")
        if is_hidden(relative):
            passed.add("hidden files or folders", relative)
        else:
            files.append(_info(filesystem, root, relative))
    return root, files


def _walk_local(root: str, passed: Passed, unreadable: list[str]) -> Iterator[File]:
    """Yield files depth first; a folder inside itself is not entered again."""
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while stack:
        folder, prefix, above = stack.pop()
        try:
            here = os.stat(folder)
            entries = list(os.scandir(folder))
        except PermissionError:
            unreadable.append(prefix or folder)
            continue
        inside = above | {(here.st_dev, here.st_ino)}
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith(".") or entry.name in HIDDEN:
                passed.add("hidden files or folders", name)
            elif _is_folder(entry):
                if entry.is_symlink() and _inode(entry.path) in inside:
                    passed.add("links to a folder that holds them", name)
                else:
                    stack.append((entry.path, f"{name}/", inside))
            else:
                file = _local_file(entry, name)
                if file is None:
                    passed.add("pipes, sockets and devices", name)
                else:
                    yield file


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _local_file(entry: os.DirEntry[str], name: str) -> File | None:
    """Describe an entry; None for what is no file. A dangling link is a file without bytes."""
    try:
        info = entry.stat()
    except OSError:
        return File(name, 0)
    if not stat.S_ISREG(info.st_mode):
        return None
    return File(name, info.st_size, (info.st_mtime_ns, info.st_ctime_ns, info.st_ino))


def _walk_remote(filesystem: Any, root: str, passed: Passed) -> Iterator[File]:
    start = len(root.rstrip("/")) + 1
    for path, info in filesystem.find(root, detail=True).items():
        name = path[start:]
        if not name or name.endswith("/"):
            continue
        if is_hidden(name):
            passed.add("hidden files or folders", name)
        else:
            yield File(name, int(info.get("size") or 0), tag=_tag(info))


def _info(filesystem: Any, root: str, name: str) -> File:
    path = f"{root}/{name}" if root else name
    if is_local(filesystem):
        info = os.stat(path)
        return File(name, info.st_size, (info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
    described = filesystem.info(path)
    return File(name, int(described.get("size") or 0), tag=_tag(described))


def _tag(info: dict[str, Any]) -> str:
    """Return what a store says of an object's content, the most telling first."""
    for name in ("crc32c", "md5Hash", "content_md5", "ETag", "etag", "LastModified", "mtime"):
        if info.get(name):
            return f"{name}={info[name]}"
    return ""


def _inode(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def key_of(name: str) -> str:
    """Return a file's name as a key that is text everywhere: bytes that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
