"""Datasets of the Hugging Face `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.guard import CannotReadError
from pipeline.images.evidence import sample_bytes, sample_file
from pipeline.images.labels import Labels, read_labels
from pipeline.images.source import FINAL, HELDOUT, Record, SourceConfig, failed, labelled
from pipeline.images.sources.columns import check_named
from storage.fs.beneath import is_unreadable

ROWS_AT_ONCE = 1000


class HubSource:
    """A split of a repository on the Hub, of a folder that `load_dataset` understands, or of one
    that `save_to_disk` wrote.

    Content is told from the images' own bytes: the library's fingerprint changes with paths and
    times.
    """

    kind = "hf"

    def __init__(self, config: SourceConfig) -> None:
        data = _load(config)
        columns = set(data.column_names)
        if config.image_column not in columns:
            allowed = ", ".join(sorted(columns))
            raise ConfigError(Problem("source.image_column", config.image_column, allowed))
        self.has_masks = bool(config.mask_column) and config.mask_column in columns
        self.has_labels = bool(config.label_column) and config.label_column in columns
        found = {"label_column": self.has_labels, "mask_column": self.has_masks}
        check_named(config, found, names=columns, where=config.path)
        self.labels = self._read_labels(data, config) if self.has_labels else None
        images = [config.image_column, *([config.mask_column] if self.has_masks else [])]
        data = data.select_columns(images)
        for name in images:
            data = _undecoded(data, name)
        self._data, self._config = data, config
        self.rule = ""
        self._sizes = np.zeros(len(data), np.int64)
        self.evidence = np.zeros(len(data), np.uint64)
        for start in range(0, len(data), ROWS_AT_ONCE):
            self._look_into(start, images)

    def __len__(self) -> int:
        return len(self._data)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return f"{self._config.split}-{index:08d}", int(self._sizes[index])

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read encoded bytes from the library's tables, or from the files they point at."""
        records = []
        for index in indices:
            row, key = self._data[int(index)], self.entry(index)[0]
            try:
                mask = _content(row[self._config.mask_column]) if self.has_masks else None
                records.append(Record(key, _content(row[self._config.image_column]), mask=mask))
            except FINAL as error:
                records.append(failed(key, error))
        return labelled(self, indices, records)

    def _look_into(self, start: int, names: list[str]) -> None:
        rows = self._data[start : start + ROWS_AT_ONCE]
        for offset, cells in enumerate(zip(*(rows[name] for name in names), strict=True)):
            sizes, marks = zip(*(_mark(cell) for cell in cells), strict=True)
            self._sizes[start + offset] = sizes[0]
            mark = sum(mark * (2 * place + 1) for place, mark in enumerate(marks))
            self.evidence[start + offset] = mark & (2**64 - 1)

    def _read_labels(self, data: Any, config: SourceConfig) -> Labels:
        name = config.label_column
        values = data.with_format("arrow")[:][name].to_pylist()
        where = f"column {name} of {config.path}"
        labels = read_labels(values, where=where, way_out="--source.label_column ''")
        names = getattr(data.features[name], "names", None)
        if names and not labels.classes:
            labels.classes = tuple(str(text) for text in names)
        return labels


def _load(config: SourceConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        hint = "pip install 'dreamshard[hf]'."
        problem = Problem("source.kind", f"hf ({error})", "the datasets library installed", hint)
        raise ConfigError(problem) from error
    script = os.path.join(config.path, f"{os.path.basename(config.path.rstrip('/'))}.py")
    if config.path.endswith(".py") or os.path.exists(script):
        got = f"{config.path}, a dataset made by a script"
        hint = "Nothing in a folder is run: convert it to Parquet where you trust it."
        raise ConfigError(Problem("source.path", got, "data without a script", hint))
    try:
        if os.path.exists(os.path.join(config.path, "dataset_dict.json")):
            parts: Any = datasets.load_from_disk(config.path)
            if config.split not in parts:
                allowed = " | ".join(sorted(parts))
                raise ConfigError(Problem("source.split", config.split, allowed))
            return parts[config.split]
        if os.path.exists(os.path.join(config.path, "state.json")):
            return _check_part(datasets.load_from_disk(config.path), config)
        return datasets.load_dataset(config.path, config.name or None, split=config.split)
    except ConfigError:
        raise
    except Exception as error:  # the library and its builders raise what they like
        problem = Problem("source.path", f"{config.path} ({error})", "a dataset that loads")
        raise ConfigError(problem) from error


def _check_part(data: Any, config: SourceConfig) -> Any:
    """Return one saved dataset; refuse another split than that it was saved of.

    Raises: ConfigError.
    """
    saved = str(data.split) if data.split is not None else ""
    # Where nothing tells, the two names that stand for no wish of the user's are taken.
    if config.split == saved or (not saved and config.split in ("train", HELDOUT["hf"])):
        return data
    got = f"{config.split} of {config.path}, which is one dataset saved without a split"
    if saved:
        got = f"{config.split} of {config.path}, which was saved of split {saved}"
    raise ConfigError(Problem("source.split", got, saved or "none"))


def _undecoded(data: Any, name: str) -> Any:
    """Make a column give encoded bytes; refuse one that holds no images."""
    import datasets

    try:
        return data.cast_column(name, datasets.Image(decode=False))
    except Exception as error:
        got = f"{name} of type {data.features[name]}"
        raise ConfigError(Problem("source.image_column", got, "a column of images")) from error


def _mark(cell: dict[str, Any] | None) -> tuple[int, int]:
    """Return the size of a cell's image and what its bytes are, without reading large files."""
    if cell is None:
        return 0, 0
    if cell.get("bytes") is not None:
        return len(cell["bytes"]), sample_bytes(cell["bytes"])
    path = cell.get("path") or ""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        if is_unreadable(error):  # the source is told by this: never guess
            raise CannotReadError(f"{path}: cannot be read: {error.strerror}.") from error
        return 0, 0
    return size, sample_file(path, size)


def _content(cell: dict[str, Any] | None) -> bytes | None:
    """Return the bytes of an undecoded image cell, from the table or the file it points at."""
    if cell is None:
        return None
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if not cell.get("path"):
        return None
    with open(cell["path"], "rb") as file:
        return file.read()
