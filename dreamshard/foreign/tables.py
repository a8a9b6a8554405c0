"""Parquet within bounds: what a file says of its rows is checked before any is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamshard.foreign.guard import UnreadableError, reading

if TYPE_CHECKING:
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


def row_group_bytes(table: pq.ParquetFile, group: int) -> int:
    """Return the most that a row group takes in memory: its pages, and its rows written out."""
    metadata = table.metadata.row_group(group)
    return metadata.total_byte_size + 8 * metadata.num_rows * metadata.num_columns
