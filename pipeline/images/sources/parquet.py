"""Parquet files with encoded images in a column."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.images.source import Record, SourceConfig
from pipeline.images.sources.folder import find_files, open_filesystem


class ParquetSource:
    """Rows of one file, a folder of files or a glob pattern, in order of file name and row.

    A column may hold bytes, or a struct with a `bytes` field as Hugging Face writes it. The size in
    the fingerprint is that of a row group's image column, counted at the group's first row, so that
    listing never reads an image.
    """

    kind = "parquet"

    def __init__(self, config: SourceConfig) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        filesystem, self._files = find_files(config.path, ".parquet")
        self._url, self._config = config.path, config
        self._starts: list[int] = []  # first row of each row group, over all files
        self._groups: list[tuple[int, int]] = []  # (file, group in file)
        self._sizes: dict[int, int] = {}
        self._keys: list[str] = []
        columns: set[str] = set()
        for number, name in enumerate(self._files):
            with filesystem.open(name, "rb") as file:
                try:
                    table = pq.ParquetFile(file)
                    columns = self._columns(table, name)
                    self._add_groups(table, number)
                    self._add_keys(table, name, columns)
                except pa.ArrowInvalid as error:
                    raise DataError(
                        f"{name}: not a Parquet file that can be read: {error}"
                    ) from error
        self.rule = f"column {config.image_column}"
        self.has_labels = config.label_column in columns
        self.has_masks = config.mask_column in columns
        self._cached: tuple[int, list[dict[str, Any]]] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes (see the class)."""
        return self._keys[index], self._sizes.get(index, 0)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read rows, a row group at a time; the last group is kept for the next call."""
        records = []
        for index in indices:
            group = bisect.bisect_right(self._starts, index) - 1
            row = self._rows(group)[index - self._starts[group]]
            label = row.get(self._config.label_column)
            records.append(
                Record(
                    self._keys[index],
                    _bytes(row[self._config.image_column]),
                    label=-1 if label is None else int(label),
                    mask=_bytes(row.get(self._config.mask_column)),
                )
            )
        return records

    def _columns(self, table: Any, name: str) -> set[str]:
        columns = set(table.schema_arrow.names)
        if self._config.image_column not in columns:
            got = f"{self._config.image_column}, not in {name}"
            raise ConfigError(Problem("source.image_column", got, ", ".join(sorted(columns))))
        return columns

    def _add_groups(self, table: Any, number: int) -> None:
        row = len(self._keys)
        for group in range(table.num_row_groups):
            info = table.metadata.row_group(group)
            self._starts.append(row)
            self._groups.append((number, group))
            chunks = (info.column(i) for i in range(info.num_columns))
            self._sizes[row] = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.split(".")[0] == self._config.image_column
            )
            row += info.num_rows

    def _add_keys(self, table: Any, name: str, columns: set[str]) -> None:
        if self._config.key_column in columns:
            keys = table.read(columns=[self._config.key_column]).column(0).to_pylist()
            self._keys += [str(key) for key in keys]
        else:
            stem = name.rsplit("/", 1)[-1].removesuffix(".parquet")
            self._keys += [f"{stem}-{row:08d}" for row in range(table.metadata.num_rows)]

    def _rows(self, group: int) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        if self._cached is None or self._cached[0] != group:
            file, number = self._groups[group]
            names = (self._config.image_column, self._config.label_column, self._config.mask_column)
            with open_filesystem(self._url)[0].open(self._files[file], "rb") as handle:
                table = pq.ParquetFile(handle)
                present = [name for name in names if name in table.schema_arrow.names]
                rows = table.read_row_group(number, columns=present).to_pylist()
            self._cached = (group, rows)
        return self._cached[1]


def _bytes(cell: Any) -> bytes | None:
    """Take the bytes out of a cell: plain, or Hugging Face's {bytes, path}."""
    return cell.get("bytes") if isinstance(cell, dict) else cell
