"""Indices of tar files as they were read last time, in a folder of this machine.

An index is that of a file only while its size and its marks of change (local: times and inode;
remote: the store's ETag or checksum) are the same.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import xxhash

from dreamshard.foreign.text import parse_json
from dreamshard.owner.home import user_cache
from pipeline.images.evidence import put
from pipeline.images.listing import File, Passed
from pipeline.images.sources.tar_index import Member

VERSION = 2
MAX_BYTES = 1 << 30


class IndexCache:
    """The index of one file.

    Args:
        path: of the file in its filesystem.
        file: its size and marks.
    """

    def __init__(self, path: str, file: File) -> None:
        base = user_cache()
        identity = f"{VERSION}\0{path}\0{file.size}\0{file.mark}\0{file.tag}"
        name = xxhash.xxh3_128_hexdigest(identity.encode("utf-8", "surrogateescape"))
        self._usable = base is not None and bool(file.mark or file.tag)
        self._path = (base or Path()) / "sources" / f"{name}.tar-index"

    def load(self) -> tuple[list[Member], Passed] | None:
        """Return the members and what was passed over; None if they are not known."""
        if not self._usable:
            return None
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(self._path.read_bytes(), MAX_BYTES)
            rows, counts, examples = parse_json(text, where=str(self._path), limit=MAX_BYTES)
            members = [
                Member(
                    name,
                    offset,
                    size,
                    None if pieces is None else tuple(map(tuple, pieces)),
                    mark,
                    head.encode("latin-1"),
                )
                for name, offset, size, pieces, mark, head in rows
            ]
        except (OSError, ValueError, TypeError, AttributeError, zlib.error):
            return None
        return members, Passed(counts, examples)

    def save(self, members: list[Member], passed: Passed) -> None:
        """Keep an index."""
        if not self._usable:
            return
        rows = [
            [m.name, m.offset, m.size, m.pieces, m.mark, m.head.decode("latin-1")] for m in members
        ]
        text = json.dumps([rows, passed.counts, passed.examples])
        put(self._path, zlib.compress(text.encode("utf-8", "surrogateescape"), 1))
