"""Rows of Parquet files in any order, each row group fetched and decoded once.

Parquet has no way to one row but through its row group. Local groups are decoded into memory and
the latest are kept; remote ones go to this machine's cache as Arrow files, which are mapped, so
that shuffled reading fetches no byte twice.
"""

from __future__ import annotations

import os
import posixpath
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dreamshard.foreign.guard import reading
from dreamshard.foreign.tables import MAX_BYTES, open_parquet, read_columns, row_group_bytes
from pipeline.images.listing import File, is_local, open_filesystem
from pipeline.images.ranges import HeaderFile
from pipeline.images.source import FINAL

KEEP_BYTES = 512 << 20
"""Decoded local row groups kept in memory (bytes); the latest stays even if it alone is larger."""
Place = tuple[int, int, int]
"""(file, row group, row in the group)."""


class RowGroups:
    """Read cells of some columns.

    Args:
        url: that the files were listed by.
        paths: of the files in their filesystem.
        files: their sizes and marks of change.
        columns: that are read.
    """

    def __init__(
        self, url: str, paths: Sequence[str], files: Sequence[File], columns: Sequence[str]
    ) -> None:
        self._url, self._paths, self._files = url, list(paths), list(files)
        self._columns = list(columns)
        self._kept: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def read(self, column: str, places: Sequence[Place]) -> list[bytes | Exception | None]:
        """Return the bytes of cells, None for empty ones, the error for paths that lead nowhere.

        Raises:
            OSError: if storage fails.
        """
        cells: list[Any] = [None] * len(places)
        order = sorted(range(len(places)), key=lambda item: places[item])
        for item in order:
            number, group, row = places[item]
            cell = self._table(number, group).column(column)[row].as_py()
            try:
                cells[item] = self._content(cell, number)
            except FINAL as error:
                cells[item] = error
        return cells

    def _table(self, number: int, group: int) -> pa.Table:
        key = (number, group)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        filesystem, _ = open_filesystem(self._url)
        local = is_local(filesystem)
        table = self._decode(filesystem, *key) if local else self._mapped(filesystem, *key)
        self._kept[key] = table
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEEP_BYTES:
            self._kept.popitem(last=False)
        return table

    def _decode(self, filesystem: Any, number: int, group: int) -> pa.Table:
        with HeaderFile(filesystem, self._paths[number], self._files[number].size) as handle:
            table = open_parquet(handle, where=self._paths[number])
            with reading(self._paths[number], "Parquet"):
                if (size := row_group_bytes(table, group)) > MAX_BYTES:
                    raise ValueError(f"a row group of {size:,} bytes, more than {MAX_BYTES:,}")
                where = self._paths[number]
                return read_columns(table, self._columns, where=where, groups=[group])

    def _mapped(self, filesystem: Any, number: int, group: int) -> pa.Table:
        """Map a remote row group's copy on this machine, getting it if need be."""
        from storage.fs.beneath import damage
        from storage.fs.cache import shared_cache

        file = self._files[number]
        columns = ",".join(self._columns)
        name = f"{self._url} {self._paths[number]} {file.size} {file.tag} {group} {columns}"

        def fetch(path: str) -> None:
            table = self._decode(filesystem, number, group)
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        def check(path: str) -> str:
            try:
                with pa.memory_map(path) as source:
                    pa.ipc.open_file(source).read_all()
            except (pa.ArrowException, OSError) as error:
                return damage(error, path=path)  # a copy that cannot be read now is not thrown away
            return ""

        copy = shared_cache().path(name, fetch=fetch, check=check)
        return pa.ipc.open_file(pa.memory_map(copy)).read_all()

    def _content(self, cell: Any, number: int) -> bytes | None:
        """Take the bytes out of a cell: plain, {bytes, path}, or the path of a file beside."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
        if not isinstance(cell, str):
            return cell
        filesystem, _ = open_filesystem(self._url)
        return filesystem.cat_file(beside(filesystem, self._paths[number], cell))


def beside(filesystem: Any, parquet: str, cell: str) -> str:
    """Return the path of a file that a Parquet file names: in its folder or below.

    Raises:
        FileNotFoundError: if it leads anywhere else.
    """
    folder = posixpath.dirname(parquet)
    path = posixpath.normpath(posixpath.join(folder, cell))
    inside = not cell.startswith("/") and path.startswith(f"{folder}/" if folder else "")
    if inside and is_local(filesystem):
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))
    if not inside or path.startswith(".."):
        raise FileNotFoundError(f"{cell!r} leads out of the folder of its Parquet file")
    return path
