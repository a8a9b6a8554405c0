"""Parquet files with encoded images in a column."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.tables import Chunk, column_chunks, open_parquet, read_columns
from pipeline.images.evidence import kept, sample, sample_bytes
from pipeline.images.labels import Labels, read_labels
from pipeline.images.listing import Passed, find_files, is_local
from pipeline.images.ranges import HeaderFile
from pipeline.images.source import Record, SourceConfig, failed, labelled
from pipeline.images.sources.columns import (
    check_named,
    check_once,
    class_names,
    keys_of,
    partition_value,
)
from pipeline.images.sources.row_groups import RowGroups, beside

MAX_COLUMN = 2 << 30  # bytes of keys, labels or paths of one file


class ParquetSource:
    """Rows of one file, a folder of files or a glob pattern, in order of file name and row.

    A column may hold bytes, or a struct with `bytes` and `path` as Hugging Face writes it; a path
    must lead to a file beside the Parquet file or below. Labels may stand in a file's folder, too
    (`label=cat/0.parquet`); names of classes are those that Hugging Face's schema tells. Content is
    told, row group by row group, from the stored bytes of the image and mask columns (blocks at
    fixed places) and is counted at the group's first row: listing never reads an image.
    """

    kind = "parquet"

    def __init__(self, config: SourceConfig) -> None:
        self._config, self.passed = config, Passed()
        filesystem, root, files = find_files(config.path, (".parquet",), self.passed)
        self._paths = [f"{root}/{file.name}" if root else file.name for file in files]
        self._starts: list[int] = []  # first row of each row group, over all files
        self._groups: list[tuple[int, int]] = []  # (file, group in file)
        self._sizes: dict[int, int] = {}
        self._marks: dict[int, int] = {}
        self._count = 0
        keys: list[tuple[int, list[str] | None]] = []
        labels: list[Any] = []
        self.has_masks, self.has_labels, self._has_keys = False, False, False
        self._columns_met: set[str] = set()
        self._bare: list[tuple[str, int]] = []  # files without the column of labels, and their rows
        self._classes: dict[tuple[str, ...], str] = {}  # names of classes, and a file that tells
        for number, (path, file) in enumerate(zip(self._paths, files, strict=True)):
            try:
                with HeaderFile(filesystem, path, file.size) as handle:
                    table = open_parquet(handle, where=path)
                    self._add(table, number, file.name, keys, labels, filesystem)
            except pa.ArrowException as error:
                raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
        self._check_columns()
        self._keys = _unique_keys(keys, [file.name for file in files])
        self.rule = f"column {config.image_column}"
        self.evidence = np.zeros(self._count, np.uint64)
        self.evidence[list(self._marks)] = list(self._marks.values())
        self.labels = self._read_labels(labels) if self.has_labels else None
        self._rows = RowGroups(config.path, self._paths, files, self._columns())

    def __len__(self) -> int:
        return self._count

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes (see the class)."""
        return self._keys[index], self._sizes.get(index, 0)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read rows by way of their row groups."""
        places = []
        for index in indices:
            group = bisect.bisect_right(self._starts, index) - 1
            places.append((*self._groups[group], index - self._starts[group]))
        images = self._rows.read(self._config.image_column, places)
        masks: list[Any] = [None] * len(places)
        if self.has_masks:
            masks = self._rows.read(self._config.mask_column, places)
        records = [
            Record(self._keys[index], image, mask=mask)
            if not isinstance(image, Exception)
            else failed(self._keys[index], image)
            for index, image, mask in zip(indices, images, masks, strict=True)
        ]
        return labelled(self, indices, records)

    def each_image(self) -> np.ndarray:
        """Digest every image's own bytes, uint64 (N,), 0 where there are none: reads them once.

        Raises:
            OSError: if storage fails.
        """
        told = f"{self._config.image_column} {self._starts} {sorted(self._marks.items())}"
        return kept(f"rows-1 {told}", self._count, self._digested)

    def _digested(self) -> np.ndarray:
        ends = [*self._starts[1:], self._count]
        parts = [np.zeros(0, np.uint64)]
        for place, start, end in zip(self._groups, self._starts, ends, strict=True):
            rows = [(*place, row) for row in range(end - start)]
            cells = self._rows.read(self._config.image_column, rows)
            images = [None if isinstance(cell, Exception) else cell for cell in cells]
            parts.append(np.array([sample_bytes(image) for image in images], np.uint64))
        return np.concatenate(parts)

    def _columns(self) -> tuple[str, ...]:
        masks = (self._config.mask_column,) if self.has_masks else ()
        return (self._config.image_column, *masks)

    def _add(
        self,
        table: pq.ParquetFile,
        number: int,
        name: str,
        keys: list[tuple[int, list[str] | None]],
        labels: list[Any],
        filesystem: Any,
    ) -> None:
        """Take over one file's rows."""
        config, schema = self._config, table.schema_arrow
        self._columns_met |= set(schema.names)
        used = (config.image_column, config.mask_column, config.label_column, config.key_column)
        check_once(schema, [column for column in used if column], self._paths[number])
        _check_column(schema, config.image_column, "image_column", self._paths[number])
        rows = table.metadata.num_rows
        _check_paths(table, config.image_column, filesystem, self._paths[number])
        if config.mask_column and config.mask_column in schema.names:
            _check_column(schema, config.mask_column, "mask_column", self._paths[number])
            self.has_masks = True
        labels += self._labels(table, number, name)
        if config.key_column and config.key_column in schema.names:
            self._has_keys = True
            own = _column(table, config.key_column, self._paths[number])
            keys.append((rows, keys_of(own, column=config.key_column, where=self._paths[number])))
        else:
            keys.append((rows, None))
        self._add_groups(table, number, filesystem)

    def _labels(self, table: pq.ParquetFile, number: int, name: str) -> list[Any]:
        """Return the labels of one file, from its column or else from its folder's name."""
        column, path, rows = self._config.label_column, self._paths[number], table.metadata.num_rows
        if column and column in table.schema_arrow.names:
            _check_label_type(table.schema_arrow.field(column), path)
            self.has_labels = True
            if names := class_names(table.schema_arrow, column, path):
                self._classes.setdefault(names, path)
            return _column(table, column, path)
        is_told, value = partition_value(name, column) if column else (False, None)
        self.has_labels |= is_told
        if not is_told and rows:
            self._bare.append((name, rows))
        return [value] * rows

    def _check_columns(self) -> None:
        """Refuse what is named and nowhere, and count rows without a label among others."""
        config = self._config
        found = {
            "key_column": self._has_keys,
            "label_column": self.has_labels,
            "mask_column": self.has_masks,
        }
        check_named(config, found, names=self._columns_met, where=config.path)
        reason = f"rows without a label, in files without column {config.label_column}"
        for name, rows in self._bare if self.has_labels else ():
            self.passed.add(reason, name, rows)

    def _add_groups(self, table: pq.ParquetFile, number: int, filesystem: Any) -> None:
        names = {self._config.image_column, self._config.mask_column}
        for group, chunks in enumerate(column_chunks(table.metadata, where=self._paths[number])):
            if not table.metadata.row_group(group).num_rows:
                continue
            self._starts.append(self._count)
            self._groups.append((number, group))
            chunks = [chunk for chunk in chunks if chunk.column in names]
            self._sizes[self._count] = sum(chunk.unpacked for chunk in chunks)
            mark = xxhash.xxh3_64()
            for chunk in chunks:
                mark.update(self._chunk_mark(chunk, number, filesystem).to_bytes(8, "little"))
            self._marks[self._count] = mark.intdigest()
            self._count += table.metadata.row_group(group).num_rows

    def _chunk_mark(self, chunk: Chunk, number: int, filesystem: Any) -> int:
        """Digest blocks of a column chunk's stored bytes; neither offsets nor other columns."""
        first = chunk.first
        path = self._paths[number]
        if is_local(filesystem):
            with open(path, "rb") as handle:
                return sample(chunk.stored, _reader(handle, first))
        size = chunk.stored
        blocks: dict[tuple[int, int], bytes] = {}
        wanted: list[tuple[int, int]] = []
        sample(size, lambda offset, length: wanted.append((offset, length)) or b"")
        starts = [first + offset for offset, _ in wanted]
        stops = [first + offset + length for offset, length in wanted]
        stored = filesystem.cat_ranges([path] * len(wanted), starts, stops, on_error="raise")
        blocks.update(zip(wanted, stored, strict=True))
        return sample(size, lambda offset, length: bytes(blocks[(offset, length)]))

    def _read_labels(self, values: list[Any]) -> Labels:
        where = f"column {self._config.label_column} of {self._config.path}"
        labels = read_labels(values, where=where, way_out="--source.label_column ''")
        if labels.classes or not self._classes:
            return labels
        if len(self._classes) > 1:
            (first, one), (second, other) = list(self._classes.items())[:2]
            got = f"classes {', '.join(first):.80} in {one}, {', '.join(second):.80} in {other}"
            hint = "One number would mean two classes: bring the files' labels together first."
            raise ConfigError(Problem("source.label_column", got, "one table of classes", hint))
        (labels.classes,) = self._classes
        return labels


def _reader(handle: Any, first: int) -> Any:
    def read(offset: int, length: int) -> bytes:
        handle.seek(first + offset)
        return handle.read(length)

    return read


def _check_column(schema: pa.Schema, name: str, setting: str, path: str) -> None:
    """Refuse a column that is not there, or that holds no images."""
    if name not in schema.names:
        got, allowed = f"{name}, not in {path}", ", ".join(sorted(schema.names))
        raise ConfigError(Problem(f"source.{setting}", got, allowed))
    kind = schema.field(name).type
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    fields = (
        {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else ()
    )
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if binary or text or "bytes" in fields or "path" in fields:
        return
    allowed = "encoded bytes, a struct {bytes, path}, or paths of files beside the Parquet file"
    raise ConfigError(Problem(f"source.{setting}", f"{name} of type {kind} in {path}", allowed))


def _check_paths(table: pq.ParquetFile, name: str, filesystem: Any, path: str) -> None:
    """Refuse a column of texts whose first is no file beside or below the Parquet file."""
    kind = table.schema_arrow.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or not table.num_row_groups:
        return
    values = (value for value in _column(table, name, path, groups=[0]) if value)
    first = next(values, None)
    try:
        if first is None or filesystem.exists(beside(filesystem, path, first)):
            return
    except FileNotFoundError:
        pass
    hint = "Read the files themselves with --source.kind folder, or put their bytes into a column."
    got = f"{name} with texts such as {first!r:.80} in {path}"
    allowed = "encoded bytes, or paths of files beside the Parquet file or below"
    raise ConfigError(Problem("source.image_column", got, allowed, hint))


def _check_label_type(field: pa.Field, path: str) -> None:
    """Refuse a column whose type no class number can be made of, by the schema alone."""
    kind = field.type.value_type if isinstance(field.type, pa.DictionaryType) else field.type
    types = pa.types
    known = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_null,
        types.is_decimal,
    )
    if any(test(kind) for test in known):
        return
    hint = "Encoding needs no labels: leave them out with --source.label_column ''."
    allowed = "a column of whole numbers or of texts"
    got = f"{field.name} of type {field.type} in {path}"
    raise ConfigError(Problem("source.label_column", got, allowed, hint))


def _unique_keys(keys: list[tuple[int, list[str] | None]], names: list[str]) -> list[str]:
    """Name every row: by its key; where keys restart, or there are none, by file and row too."""
    stems = [name.removesuffix(".parquet").rsplit("/", 1)[-1] for name in names]
    if len(set(stems)) < len(stems):
        stems = [name.removesuffix(".parquet") for name in names]
    named: list[list[str]] = []
    for stem, name, (count, own) in zip(stems, names, keys, strict=True):
        if own is not None and len(set(own)) < len(own):
            twice = next(key for key, times in Counter(own).items() if times > 1)
            hint = "Name another column, or give --source.key_column '' for file and row."
            got = f"{twice!r} more than once in {name}"
            raise ConfigError(Problem("source.key_column", got, "each key once", hint))
        named.append(own if own is not None else [f"{stem}-{row:08d}" for row in range(count)])
    flat = [key for part in named for key in part]
    if len(set(flat)) == len(flat):
        return flat
    return [f"{stem}/{key}" for stem, part in zip(stems, named, strict=True) for key in part]


def _column(
    table: pq.ParquetFile, name: str, path: str, *, groups: Sequence[int] | None = None
) -> list[Any]:
    """Return a column's values, as many bytes as a process may well hold."""
    read = read_columns(table, [name], where=path, max_bytes=MAX_COLUMN, groups=groups)
    return read.column(0).to_pylist()
