"""A snapshot: what a dataset held at one moment; later commits do not change what it shows.

Its version is `<samples>-<parts>-<digest>`: the samples it serves, the manifest parts it was read
from, and a digest over the data digests of its units; `-<drops>` after it counts the records of
dropped samples, if there are any. A checkpoint stores that text, and
`Dataset.snapshot(version=...)` gives the same samples again, however much was added since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from dreamshard.errors import DataError
from storage.codecs.arrays import LABEL
from storage.codecs.base import ArraySpec, Codec
from storage.formats.remote_chunks import RemoteChunks
from storage.formats.stores import Store
from storage.fs.local import Files
from storage.ledger import quarantine
from storage.ledger.commits import Commit, read_commit
from storage.ledger.holds import hold_for
from storage.ledger.labels import LabelVersion
from storage.ledger.manifest import numbers, read_samples, sample_rows
from storage.ledger.versions import Pinned
from storage.rows.chunk_files import Access, Chunks
from storage.rows.relabelled import Relabelled
from storage.schema import Level


class Snapshot:
    """Show a dataset's committed samples as they were when it was opened.

    Attributes:
        url: the dataset's folder.
        version: text that names this snapshot for good.
        num_samples: samples served: those requested so far, made or not.
        requested: samples requested so far.
        levels: what is recorded of each sample.
        units: int64, ascending: the committed units.
        counts: int64: the samples of each of them.
        holes: ascending: units below `num_samples` that are missing or cut short.
        drops: records of dropped samples that it goes by.
    """

    def __init__(
        self,
        files: Files,
        pinned: Pinned,
        *,
        requested: int,
        levels: Sequence[Level],
        codec_of: Callable[[str], Codec],
        store: Store,
        labels: LabelVersion | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self._files, self._pinned, self._store, self._codec_of = files, pinned, store, codec_of
        self._classes = tuple(classes)
        self._table, self._arrays, self._relabelled = pinned.table, dict(store.arrays), labels
        if labels is not None:
            self._arrays.setdefault(LABEL, ArraySpec(LABEL, np.dtype(np.int64), (), -1))
        self.url, self.version, self.drops = files.url, pinned.version, pinned.drops
        self.num_samples, self.requested = pinned.num_samples, requested
        self.samples_per_unit, self.levels = store.samples_per_unit, tuple(levels)
        self.units, self.counts = self._table.unit, self._table.count
        self.holes, self._held = self._find_holes(), False

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"Snapshot({self.url!r}, version={self.version!r}, holes={len(self.holes)})"

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the stored arrays."""
        return tuple(self._arrays)

    def array_spec(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return an array's dtype and shape per sample.

        Raises:
            DataError: if there is no such array.
        """
        if name not in self._arrays:
            raise DataError(
                f"{self.url}: got array {name!r:.80}, allowed {', '.join(self._arrays)}."
            )
        return self._arrays[name].dtype, self._arrays[name].shape

    def chunk_path(self, name: str, unit: int) -> str:
        """Return the local path of the file with an array's rows of a unit.

        On a remote root that is a checked copy in the disk cache, which may go until it is opened:
        open it at once, and ask again if it is gone.
        """
        self.array_spec(name)
        if self._files.remote:
            return self._copies.path(name, unit)
        return self._files.path(self._store.array_key(name, unit))

    def open_chunks(self, names: Sequence[str], *, access: Access, max_open: int) -> Chunks:
        """Return what copies rows of some arrays; `storage.rows.chunks.open_chunks` calls it."""
        if not self._held:  # from the first look at its rows until this object goes
            hold_for(self, self._files)
            self._held = True
        stored = [name for name in names if name != LABEL or self._relabelled is None]
        chunks = self._store.open_chunks(self, stored, access=access, max_open=max_open)
        if len(stored) == len(names):
            return chunks
        return Relabelled(chunks, names, self.labels)

    def components(self, name: str) -> tuple[str, ...]:
        """Name the arrays that a level is stored as, its own first; any other array is itself."""
        self.array_spec(name)
        return tuple(n for n, spec in self._arrays.items() if name in (n, spec.level))

    def codec(self, level: str) -> Codec:
        """Return a level's codec, ready to decode.

        Raises:
            DataError: if there is no such level, or its codec's basis is damaged.
        """
        return self._codec_of(level)

    def codec_name(self, level: str) -> str:
        """Return the name of a level's codec; `raw` for an array that is no level."""
        return self._codec_of(level).name if level in self._level_names else "raw"

    def decode(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Turn stored rows into values.

        Args:
            name: a level, or another array.
            arrays: rows (N, *shape) of each of its components, by name.

        Returns:
            float32 (N, *level.shape) where the codec stores no plain numbers, else the rows.
        """
        level = self._level_names.get(name)
        codec = None if level is None else self.codec(name)
        if level is None or codec is None or codec.exact:
            return arrays[name]
        return codec.decode(level, arrays)

    @cached_property
    def _copies(self) -> RemoteChunks:
        return RemoteChunks(self._files, self._store, self._table)

    @cached_property
    def _level_names(self) -> dict[str, Level]:
        return {level.name: level for level in self.levels}

    @cached_property
    def num_valid(self) -> int:
        """Samples that are there and usable."""
        return int(self.valid.sum())

    @property
    def num_invalid(self) -> int:
        """Samples that are there and cannot be used; cheap where none was dropped."""
        if not self.drops:
            return int(self._table.invalid.sum())
        served = np.minimum(self.counts, self.num_samples - self.units * self.samples_per_unit)
        return int(served.sum()) - self.num_valid

    @cached_property
    def valid(self) -> np.ndarray:
        """Mask, bool (num_samples,): False for samples that were unusable or are in a hole."""
        mask = np.zeros(self.num_samples, bool)
        size = self.samples_per_unit
        whole = self.counts == size
        full = mask[: self.num_samples // size * size].reshape(-1, size)
        full[self.units[whole & (self.units < len(full))]] = True
        for unit, count in self._rest(whole, len(full)):
            mask[unit * size : unit * size + count] = True
        if self._table.invalid.any():
            for rows in self._rows(("index", "unit", "version", "valid"), invalid_only=True):
                mask[numbers(rows["index"])] = numbers(rows["valid"])
        mask[list(self._dropped)] = False
        mask.flags.writeable = False
        return mask

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, int64 (num_samples,): the source's labels, -1 where there is none."""
        if self._relabelled is not None:
            return self._relabelled.first(self.num_samples)
        labels = np.full(self.num_samples, -1, np.int64)
        for rows in self._rows(("index", "unit", "version", "valid", "label")):
            labels[numbers(rows["index"])] = numbers(rows["label"])
        labels.flags.writeable = False
        return labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels' numbers, as far as they are known."""
        return self._classes if self._relabelled is None else self._relabelled.classes

    @cached_property
    def present(self) -> np.ndarray:
        """Mask, bool (num_samples,): True for samples of committed units, usable or not."""
        mask = np.zeros(self.num_samples, bool)
        for unit, count in zip(self.units.tolist(), self.counts.tolist(), strict=True):
            first = unit * self.samples_per_unit
            mask[first : first + count] = True
        return mask

    @property
    def relabelled(self) -> bool:
        """Whether labels are those of a later version, not the ones in the commit records."""
        return self._relabelled is not None

    @cached_property
    def key_column(self) -> pa.ChunkedArray:
        """The source's own names of the samples as a column to search, "" in holes."""
        parts = list(self._rows(("index", "unit", "version", "valid", "key")))
        if not parts:
            return pa.chunked_array([pa.array([""] * self.num_samples, pa.string())])
        rows = pa.concat_tables(parts)
        place = np.full(self.num_samples, -1, np.int64)
        index = numbers(rows["index"])
        place[index] = np.arange(len(index))  # the last row of an index stands
        taken = rows["key"].take(pa.array(place, mask=place < 0))
        return taken.fill_null("")

    @cached_property
    def keys(self) -> list[str]:
        """The source's own names of the samples, "" in holes; read when first asked for."""
        return self.key_column.to_pylist()

    def commit(self, unit: int) -> Commit | None:
        """Read one unit's commit record, which names its samples; None if it is a hole.

        Raises:
            DataError: if it is damaged.
        """
        row = int(np.searchsorted(self.units, unit))
        if row == len(self.units) or self.units[row] != unit:
            return None
        return read_commit(self._files, unit, int(self._table.version[row]))

    @property
    def errors(self) -> dict[int, str]:
        """Why samples are not valid, by index."""
        reasons: dict[int, str] = {}
        columns = ("index", "unit", "version", "valid", "error")
        for rows in self._rows(columns, invalid_only=True):
            for row in rows.to_pylist():
                reasons.pop(row["index"], None)
                if not row["valid"]:
                    reasons[row["index"]] = row["error"] or ""
        return {**reasons, **self._dropped}

    @cached_property
    def _dropped(self) -> dict[int, str]:
        """What to say of each sample that was dropped."""
        return {
            index: drop.error
            for drop in self.drops
            for index in drop.samples
            if index < self.num_samples
        }

    def _rest(self, whole: np.ndarray, num_full: int) -> list[tuple[int, int]]:
        """List (unit, samples served) of units that are partial or cut by num_samples."""
        rows = np.flatnonzero(~whole | (self.units >= num_full))
        first = self.units[rows] * self.samples_per_unit
        served = np.minimum(self.counts[rows], self.num_samples - first)
        return list(zip(self.units[rows].tolist(), served.tolist(), strict=True))

    def quarantined(self) -> dict[int, str]:
        """Why units among the holes could not be made, as far as a run has left that behind."""
        return quarantine.errors(self._files, np.asarray(self.holes, np.int64))

    def _find_holes(self) -> tuple[int, ...]:
        size = self.samples_per_unit
        needed = np.minimum(size, self.num_samples - np.arange(-(-self.num_samples // size)) * size)
        have = np.zeros(len(needed), np.int64)
        have[self.units] = self.counts
        return tuple(np.flatnonzero(have < needed).tolist())

    def _rows(self, columns: Sequence[str], *, invalid_only: bool = False) -> Iterator[pa.Table]:
        """Yield the rows of this snapshot's units; of rows of one index the last one counts.

        Args:
            columns: what to read; `index`, `unit` and `version` are needed to choose.
            invalid_only: pass over valid rows, but for those that replace others.
        """
        for table in read_samples(self._files, columns=columns, parts=self._pinned.parts):
            yield self._choose(table, invalid_only=invalid_only)
        for commit in self._pinned.pending:
            rows = sample_rows([commit]).select(list(columns))
            yield self._choose(rows, invalid_only=invalid_only)

    def _choose(self, table: pa.Table, *, invalid_only: bool) -> pa.Table:
        index, unit, version = (numbers(table[name]) for name in ("index", "unit", "version"))
        row = np.minimum(np.searchsorted(self.units, unit), max(0, len(self.units) - 1))
        keep = (index >= 0) & (index < self.num_samples) & (index // self.samples_per_unit == unit)
        if len(self.units):
            keep &= (self.units[row] == unit) & (version <= self._table.version[row])
        if invalid_only:
            keep &= (numbers(table["valid"]) == 0) | (version > 0)
        return table.filter(pa.array(keep))
