"""Parquet within bounds: what a file says of its rows is checked before any is read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamshard.foreign.guard import UnreadableError, reading

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS = 1 << 31
MAX_BYTES = 8 << 30
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 16
ROW_GROUPS, COLUMNS, META = 4, 1, 3
PATH, UNPACKED, STORED, FIRST_DATA, FIRST_DICTIONARY = 3, 6, 7, 9, 11
"""Thrift's compact types, and ids of fields in parquet-format's `parquet.thrift`."""


def open_parquet(
    source: Any,
    *,
    where: str,
    max_rows: int = MAX_ROWS,
    max_bytes: int | None = None,
) -> pq.ParquetFile:
    """Open a Parquet file, its metadata checked.

    Args:
        source: a path, a buffer or a file, as pyarrow takes them.
        where: the file, for messages.
        max_rows: the most it may have.
        max_bytes: the most that all of it may become in memory; None where only parts are read.

    Raises: UnreadableError for anything that is no Parquet file, or more than is allowed.
    """
    import pyarrow.parquet as pq

    with reading(where, "Parquet", error=UnreadableError):
        table = pq.ParquetFile(
            source,
            memory_map=False,
            thrift_string_size_limit=1 << 28,
            thrift_container_size_limit=1 << 24,
        )
        rows, groups = table.metadata.num_rows, table.metadata.num_row_groups
        if not 0 <= rows <= max_rows:
            raise ValueError(f"{rows:,} rows, more than {max_rows:,}")
        if max_bytes is not None:
            total = sum(row_group_bytes(table, group) for group in range(groups))
            if total > max_bytes:
                raise ValueError(f"{total:,} bytes unpacked, more than {max_bytes:,}")
        return table


def read_columns(
    table: pq.ParquetFile,
    columns: Sequence[str],
    *,
    where: str,
    max_bytes: int = MAX_BYTES,
    groups: Sequence[int] | None = None,
) -> pa.Table:
    """Read columns of an open file.

    A text that every row has stands once in the file and as often as there are rows in memory: 800
    bytes become gigabytes. Where that may be so, as many rows are read at once as fit for certain.

    Args:
        table: as `open_parquet` gives it.
        columns: by name.
        where: the file, for messages.
        max_bytes: the most that they may become in memory.
        groups: numbers of row groups; None for all.

    Raises: UnreadableError for more bytes than allowed, and what cannot be read.
    """
    import pyarrow as pa

    numbers = list(range(table.metadata.num_row_groups) if groups is None else groups)
    with reading(where, "Parquet", error=UnreadableError):
        told = [table.metadata.row_group(number) for number in numbers]
        rows = max((group.num_rows for group in told), default=0)
        schema, at_once = table.schema_arrow, rows
        if not all(pa.types.is_primitive(schema.field(name).type) for name in columns):
            # A column's own metadata would tell more: pyarrow ends the process where it is damaged.
            largest = max((group.total_byte_size for group in told), default=0)
            at_once = max(1, max_bytes // max(1, largest))
        if at_once >= rows:
            return table.read_row_groups(numbers, columns=list(columns), use_threads=False)
        batches, total = list[pa.RecordBatch](), 0
        for batch in table.iter_batches(
            at_once, row_groups=numbers, columns=list(columns), use_threads=False
        ):
            batches.append(batch)
            total += batch.nbytes
            if total > max_bytes:
                raise ValueError(f"{total:,} bytes unpacked or more, above {max_bytes:,}")
        return pa.Table.from_batches(batches).combine_chunks()


def row_group_bytes(table: pq.ParquetFile, group: int) -> int:
    """Return the most that a row group takes in memory: its pages, and its rows written out."""
    metadata = table.metadata.row_group(group)
    return metadata.total_byte_size + 8 * metadata.num_rows * metadata.num_columns


@dataclass(frozen=True)
class Chunk:
    """Say where a row group's part of one column lies.

    Args:
        column: name of the top-level column.
        unpacked: bytes of its pages before compression.
        stored: bytes in the file.
        first: where they begin in the file.
    """

    column: str
    unpacked: int
    stored: int
    first: int


def column_chunks(metadata: pq.FileMetaData, *, where: str) -> list[list[Chunk]]:
    """Return the column chunks of every row group, in the file's order.

    `RowGroupMetaData.column` ends the process where a damaged file has a histogram of other levels
    than its column: it throws where nothing may be thrown. Here pyarrow writes its metadata out
    again, and what is read is that, Thrift's compact protocol, whole.

    Args:
        metadata: of an open file.
        where: the file, for messages.

    Raises: UnreadableError.
    """
    with reading(where, "Parquet", error=UnreadableError):
        written = io.BytesIO()
        metadata.write_metadata_file(written)
        groups = _Compact(written.getvalue()[4:-8]).struct(0).get(ROW_GROUPS, [])
        return [[_chunk(column[META]) for column in group[COLUMNS]] for group in groups]


def _chunk(meta: dict[int, Any]) -> Chunk:
    first = meta[FIRST_DATA]
    if meta.get(FIRST_DICTIONARY):
        first = min(first, meta[FIRST_DICTIONARY])
    numbers = meta[UNPACKED], meta[STORED], first
    if min(numbers) < 0:
        raise ValueError(f"a column chunk of {numbers}")
    return Chunk(meta[PATH][0].decode("utf-8"), *numbers)


class _Compact:
    """Read Thrift's compact protocol into dicts by field id, lists, bytes and numbers.

    Numbers have 7 bits a byte; structs are (step of the id, type, value).
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Read a struct's fields."""
        fields, number = dict[int, Any](), 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._signed()
            fields[number] = kind == TRUE if kind <= FALSE else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("metadata nested too deeply")
        if kind in (I16, I32, I64):
            return self._signed()
        if kind == BINARY:
            return self._bytes(self._number())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._number()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # here in a list: one byte each
            return self._byte()
        if kind == DOUBLE:
            return self._bytes(8)
        raise ValueError(f"metadata of a type {kind}")

    def _signed(self) -> int:
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _number(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError("metadata that ends early")
        self._at, begin = end, self._at
        return self._data[begin:end]
