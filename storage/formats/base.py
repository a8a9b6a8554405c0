"""What a store is: how the arrays of a dataset lie in files, and how rows come out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from storage.codecs.base import ArraySpec
from storage.fs.local import Files
from storage.ledger.commits import Commit
from storage.ledger.publish import Staged
from storage.rows.chunk_files import ReadableSnapshot
from storage.rows.chunks import Access, Chunks
from storage.schema import FeatureBatch


class UnitFiles(Protocol):
    """What a store does for the files of one unit."""

    def begin(self, batch: FeatureBatch) -> None:
        """Be told of the samples whose rows are appended next, to each array once."""
        ...

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append encoded rows to one array."""
        ...

    def finish(self, count: int, *, fsync: bool) -> dict[str, Staged]:
        """Close all files, with what the store adds; return them by array name."""
        ...

    def discard(self) -> None:
        """Close and remove what is still under a temporary name."""
        ...


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
