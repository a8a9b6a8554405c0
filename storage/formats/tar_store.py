"""The exchange format: WebDataset tar shards, each with an offset index beside it.

`shards/000000.tar` holds unit 0's samples in order: `<key>.png` or `<key>.image.npy`,
`<key>.<array>.npy` for every other array, `<key>.json` last. `webdataset` and the `webdataset`
builder of Hugging Face `datasets` read them as they are. Shards are not padded to full units.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import numpy as np

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.text import parse_json
from storage.formats.ranged import Range, RangedChunks
from storage.formats.tar_check import content_problem, size_problem
from storage.formats.tar_chunks import TarChunks
from storage.formats.tar_format import extension
from storage.formats.tar_layout import FOLDER, TarLayout
from storage.formats.tar_unit import TarUnit
from storage.fs.beneath import damage
from storage.fs.remote import RemoteFiles
from storage.ledger.commits import Commit
from storage.rows.chunk_files import Access, Chunks, ReadableSnapshot

_ABOUT = f"{FOLDER}/index.json"
_INDICES = 16  # kept while rows are read by ranges


class TarStore(TarLayout):
    """Lay a dataset's arrays out as WebDataset shards."""

    def metadata_keys(self) -> list[str]:
        """List the files that are not part of a unit."""
        return [_ABOUT]

    def resize(self, num_samples: int, *, fsync: bool = True) -> None:
        """Write down, for other tools, how many samples and shards there are to be."""
        for key, data in self.metadata(num_samples).items():
            self.files.write(key, data, fsync=fsync)

    def metadata(self, num_samples: int) -> dict[str, bytes]:
        """Return the text of each metadata file for a number of samples, by key; all follows from
        what `dataset.json` says.
        """
        shards = -(-num_samples // self.samples_per_unit)
        value = {
            "format": "webdataset",
            "num_samples": num_samples,
            "samples_per_shard": self.samples_per_unit,
            "url": f"{{000000..{max(0, shards - 1):06d}}}.tar",
            "members": [extension(spec) for spec in self.arrays.values()] + [".json"],
            "attributes": {name: dict(spec.attributes) for name, spec in self.arrays.items()},
        }
        return {_ABOUT: json.dumps(value, indent=1).encode()}

    def num_samples(self) -> int | None:
        """Return the number of samples that was written down last, None if there is none."""
        try:
            return int(parse_json(self.files.read(_ABOUT), where=_ABOUT)["num_samples"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def open_chunks(
        self, snapshot: ReadableSnapshot, names: Sequence[str], *, access: Access, max_open: int
    ) -> Chunks:
        """Return what copies rows out of the shards, found by their indices."""
        if access == "range" and isinstance(self.files, RemoteFiles):
            specs, table_of = [self.arrays[name] for name in names], lru_cache(_INDICES)
            place = partial(self._row_range, table_of(self.read_index))
            return RangedChunks(self.files, snapshot, specs, place)
        return TarChunks(self, snapshot, names, access=access, max_open=max_open)

    def _row_range(
        self, table_of: Callable[[int], np.ndarray], name: str, unit: int, row: int
    ) -> Range:
        key, table = self.array_key(name, unit), table_of(unit)
        if row >= table.shape[2]:
            raise DataError(f"{self.files.path(key)}: got {table.shape[2]} samples, not {row + 1}.")
        start, size = (int(each) for each in table[:, list(self.arrays).index(name), row])
        return key, start, start + size

    def open_unit(self, unit: int, *, run_id: str) -> TarUnit:
        """Start the files of a unit, under names that carry the run."""
        return TarUnit(self, unit, run_id=run_id)

    def holds(self, commit: Commit) -> bool:
        """Say whether a unit's files are those that its commit record describes."""
        return not self.problems(commit, quick=False)

    def problems(self, commit: Commit, *, quick: bool) -> list[tuple[str, str]]:
        """Check a shard: its size, and unless `quick` every byte of every member and the index."""
        key = self.array_key("", commit.unit)
        path = self.files.path(key)
        for own in (key, self.index_key(commit.unit)):
            if os.path.islink(self.files.path(own)):
                return [(self.files.path(own), "got a link, allowed a file")]
        try:
            table = self.read_index(commit.unit)
        except CannotReadError:
            raise
        except DataError as error:
            return [(self.files.path(self.index_key(commit.unit)), str(error).partition(": ")[2])]
        size = self.files.size(key)
        if size is None:
            return [(path, "got no file")]
        problem = size_problem(size, commit, table)
        if not problem and not quick:
            try:
                with self.files.fetched(key) as local:
                    problem = content_problem(self, commit, table, local)
            except (OSError, DataError, MemoryError) as error:
                problem = damage(error, path=path)
        return [(path, problem)] if problem else []

    def check_file(self, name: str, path: str, commit: Commit) -> str:
        """Return what is wrong with a local copy of a unit's shard, "" if nothing is."""
        table = self.read_index(commit.unit)
        problem = size_problem(os.path.getsize(path), commit, table)
        return problem or content_problem(self, commit, table, path)

    def strays(self, done: set[int]) -> Iterator[str]:
        """Yield the keys of units that are not done and yet have files."""
        known = {_ABOUT, *(key for unit in done for key in self.unit_keys(unit))}
        keys = (f"{FOLDER}/{name}" for name in self.files.names(FOLDER))
        yield from (key for key in keys if key not in known)

    def prune(self, unit: int) -> None:
        """Leave the folder: units have none of their own."""
