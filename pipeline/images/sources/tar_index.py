"""The members of a tar file and where their bytes lie, by its headers alone.

Links inside the archive are followed, sparse members are mapped, and what a lenient reader would
take for the end of the archive is looked at: a damaged header, a cut, a second archive behind the
first are errors that name their offset.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.files import open_tar
from pipeline.images.listing import Passed, is_hidden
from pipeline.images.ranges import HeaderFile

BLOCK = tarfile.BLOCKSIZE
MAX_TAIL = 1 << 20
"""Bytes behind the end mark that are looked at; writers pad to 10 KiB, or to a tape block."""
MAX_LINKS = 16
HEAD = 128
"""Bytes of a member's head that stand for it, with those of its last block: over a network they
come with the headers beside them, in one request for an image and its label."""
MAX_LABEL = 4096
"""Bytes of a label's text, at most."""


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name and where its bytes are."""

    name: str
    offset: int
    size: int
    """Of the file as it unpacks (bytes)."""
    pieces: tuple[tuple[int, int], ...] | None = None
    """Sparse: (place in the file, length) of the pieces that are stored, one behind the other."""
    mark: int = 0
    """XXH3 of the size, the first `HEAD` bytes and the last block: what lies beside headers."""
    head: bytes = b""
    """The bytes themselves, of a label."""

    @property
    def stored(self) -> int:
        """Bytes that the archive holds of it."""
        return self.size if self.pieces is None else sum(length for _, length in self.pieces)

    def unpack(self, stored: bytes) -> bytes:
        """Make the file of its stored bytes; holes are zeros."""
        if self.pieces is None:
            return stored
        whole, place = bytearray(self.size), 0
        for start, length in self.pieces:
            whole[start : start + length] = stored[place : place + length]
            place += length
        return bytes(whole)


def read_members(file: HeaderFile, path: str, size: int, passed: Passed) -> list[Member]:
    """List the files of an archive, links resolved, in order.

    Raises:
        DataError: a damaged header, a cut, a missing end mark, something behind the end mark, or a
            name that stands twice.
    """
    members: dict[str, Member] = {}
    links: list[tuple[str, str]] = []
    for info in _headers(file, path, size):
        info.name = plain_name(info.name)
        if is_hidden(info.name):
            passed.add("hidden files or folders", info.name)
        elif info.islnk() or info.issym():
            folder = posixpath.dirname(info.name) if info.issym() else ""
            links.append((info.name, posixpath.normpath(posixpath.join(folder, info.linkname))))
        elif info.isdir():
            continue
        elif not info.isfile():
            passed.add("tar members that are no files", info.name)
        elif info.name in members:
            raise DataError(
                f"{path}: got member {info.name!r} twice, at offset {info.offset} too, allowed "
                "each name once. Remove one, or name them apart."
            )
        else:
            pieces = None
            if info.issparse():
                pieces = tuple((start, length) for start, length in _sparse(info) if length)
            members[info.name] = _member(file, path, info, pieces)
    return [*members.values(), *_resolve(links, members, passed)]


def plain_name(name: str) -> str:
    """Return a member's name without steps that lead nowhere: `tar -c .` writes `./a.png`."""
    return posixpath.normpath(name) if "." in name.split("/") else name


def _member(
    file: HeaderFile, path: str, info: tarfile.TarInfo, pieces: tuple[tuple[int, int], ...] | None
) -> Member:
    """Look into a member while its header is at hand: over a network both come in one request."""
    stored, offset = _stored(info), info.offset_data
    digest = xxhash.xxh3_64(f"{info.size} {pieces}".encode())
    file.seek(offset)
    digest.update(file.read(min(HEAD, stored)))
    last = max(0, (stored - 1) // BLOCK * BLOCK)
    if last >= HEAD:
        file.seek(offset + last)
        digest.update(file.read(stored - last))
    head = b""
    if info.name.lower().endswith(".cls"):
        if info.size > MAX_LABEL:
            raise DataError(
                f"{path}: got a label {info.name!r} of {info.size} bytes, allowed a class number "
                f"or name of at most {MAX_LABEL}. Leave labels out with --source.label_column ''."
            )
        file.seek(offset)
        head = file.read(stored)
    member = Member(info.name, offset, info.size, pieces, digest.intdigest())
    return replace(member, head=member.unpack(head)) if head else member


def _resolve(
    links: list[tuple[str, str]], members: dict[str, Member], passed: Passed
) -> Iterator[Member]:
    targets = dict(links)
    for name, target in links:
        for _ in range(MAX_LINKS):
            if target in members or target not in targets:
                break
            target = targets[target]
        if target in members:
            yield replace(members[target], name=name)
        else:
            passed.add("links to nothing inside the archive", f"{name} -> {target}")


def _headers(file: HeaderFile, path: str, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers, and make sure that the archive ends where they do."""
    with open_tar(file, where=path) as archive:
        for info in archive:
            if info.offset_data + _stored(info) > size:
                raise DataError(
                    f"{path}: got member {info.name!r} at offset {info.offset}, which goes on "
                    f"beyond the file's end ({size}). The archive was cut: get it again."
                )
            yield info
        end = archive.offset
    _check_end(file, path, end, size)


def _stored(info: tarfile.TarInfo) -> int:
    return sum(length for _, length in _sparse(info)) if info.issparse() else info.size


def _sparse(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return (place, length) of a sparse member's pieces."""
    pieces: Any = info.sparse  # typed as a number in the standard library's stubs
    return list(pieces)


def _check_end(file: HeaderFile, path: str, end: int, size: int) -> None:
    """Make sure that what ended the reading is the end mark, and that nothing lies behind it."""
    file.seek(end)
    mark = file.read(BLOCK)
    if len(mark) < BLOCK:
        raise DataError(
            f"{path}: got the file's end at offset {end + len(mark)}, allowed an end-of-archive "
            "mark there (zeros). The archive was cut: get it again, or repack what is left."
        )
    if mark.strip(b"\0"):
        raise DataError(
            f"{path}: got a damaged header at offset {end}, allowed a tar header or the end "
            "mark. Members behind it would be lost: get the archive again."
        )
    place = end + BLOCK
    while place < min(size, end + MAX_TAIL):
        file.seek(place)
        block = file.read(min(64 << 10, size - place))
        if block.strip(b"\0"):
            raise DataError(
                f"{path}: got bytes behind the end-of-archive mark at offset {end}, allowed "
                "zeros. Archives that were appended to one another must be split, or joined "
                "with tar --concatenate."
            )
        place += len(block)
