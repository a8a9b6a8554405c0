"""Parquet within bounds: what a file says of its rows is checked before any is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreamshard.foreign.guard import UnreadableError, reading

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS = 1 << 31
MAX_BYTES = 8 << 30


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
        rows = max((table.metadata.row_group(n).num_rows for n in numbers), default=0)
        at_once = min((_rows_within(table, n, columns, max_bytes) for n in numbers), default=1)
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


def _rows_within(table: pq.ParquetFile, group: int, columns: Sequence[str], most: int) -> int:
    """Return how many rows of a row group take no more than so many bytes, whatever they hold.

    Of a column's own metadata nothing is asked: pyarrow ends the process where it is damaged.
    """
    import pyarrow as pa

    if all(pa.types.is_primitive(table.schema_arrow.field(name).type) for name in columns):
        return table.metadata.row_group(group).num_rows
    return max(1, most // max(1, table.metadata.row_group(group).total_byte_size))


def row_group_bytes(table: pq.ParquetFile, group: int) -> int:
    """Return the most that a row group takes in memory: its pages, and its rows written out."""
    metadata = table.metadata.row_group(group)
    return metadata.total_byte_size + 8 * metadata.num_rows * metadata.num_columns
