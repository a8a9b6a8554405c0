"""What a store is: how the arrays of a dataset lie in files, and how rows come out of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from storage.codecs.base import ArraySpec
from storage.fs.local import Files, Sink
from storage.fs.owners import own_name
from storage.ledger.commits import Commit
from storage.ledger.leases import run_folder
from storage.ledger.publish import Staged
from storage.rows.chunk_files import Access, Chunks, ReadableSnapshot
from storage.schema import FeatureBatch


class UnitFiles(ABC):
    """Write the files of one unit, from its first sample to its last, under temporary names.

    Args:
        files: the dataset's files.
        unit: number of the unit.
        run_id: the run, whose lease guards the temporary files.
    """

    def __init__(self, files: Files, unit: int, *, run_id: str) -> None:
        self._files, self._unit = files, unit
        self._prefix = f"{run_folder(run_id)}/{own_name(unit)}"
        self._sinks: dict[str, Sink] = {}

    @abstractmethod
    def begin(self, batch: FeatureBatch) -> None:
        """Be told of the samples whose rows are appended next, to each array once."""

    @abstractmethod
    def append(self, name: str, rows: np.ndarray) -> None:
        """Append encoded rows (n, *shape) to one array."""

    @abstractmethod
    def finish(self, count: int, *, fsync: bool) -> dict[str, Staged]:
        """Close all files, with what the store adds; return them by name."""

    def discard(self) -> None:
        """Close and remove what is still under a temporary name."""
        for sink in self._sinks.values():
            sink.close()
            self._files.remove(sink.key)
        self._sinks = {}

    def _sink(self, name: str) -> Sink:
        """Return one of the files, made when first asked for."""
        if name not in self._sinks:
            self._sinks[name] = self._files.create(f"{self._prefix}.{name}")
        return self._sinks[name]

    def _seal(self, finals: Mapping[str, str], *, fsync: bool) -> dict[str, Staged]:
        """Close the files, which are meant for these keys, by name."""
        sinks = {name: self._sink(name) for name in finals}
        return {
            name: Staged(sink.key, finals[name], sink.seal(fsync=fsync))
            for name, sink in sinks.items()
        }


class Store(Protocol):
    """Lay arrays out in files, unit by unit; both formats do all of this."""

    files: Files
    samples_per_unit: int
    arrays: dict[str, ArraySpec]

    def array_key(self, name: str, unit: int) -> str:
        """Return the key of the file that holds an array's rows of a unit."""
        ...

    def unit_keys(self, unit: int) -> list[str]:
        """List the files of a unit."""
        ...

    def metadata_keys(self) -> list[str]:
        """List the files that are not part of a unit."""
        ...

    def resize(self, num_samples: int, *, fsync: bool = True) -> None:
        """Write the metadata for a number of samples."""
        ...

    def num_samples(self) -> int | None:
        """Return the number of samples the metadata is for, None where it is not whole."""
        ...

    def holds(self, commit: Commit) -> bool:
        """Say whether a unit's files are those that its commit record describes."""
        ...

    def problems(self, commit: Commit, *, quick: bool) -> list[tuple[str, str]]:
        """Return (path, what is wrong) of each damaged file of a unit."""
        ...

    def check_file(self, name: str, path: str, commit: Commit) -> str:
        """Return what is wrong with a local copy of an array's file, "" if nothing is."""
        ...

    def strays(self, done: set[int]) -> Iterator[str]:
        """Yield the keys of units that are not done and yet have files."""
        ...

    def prune(self, unit: int) -> None:
        """Remove the empty folders of a unit whose files are gone."""
        ...

    def open_unit(self, unit: int, *, run_id: str) -> UnitFiles:
        """Start the files of a unit, under names that carry the run."""
        ...

    def open_chunks(
        self, snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
    ) -> Chunks:
        """Return what copies rows of some arrays out of the files."""
        ...
