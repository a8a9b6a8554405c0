"""What is committed: the manifest's parts and the commit records that are in none of them yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from dreamshard.errors import DataError
from dreamshard.foreign.text import number_in
from storage.fs.local import Files
from storage.ledger.commits import BLOCK_UNITS, MAX_UNIT, Commit, list_records, read_commit
from storage.ledger.manifest import (
    MAX_PART_SAMPLES,
    MAX_PART_UNITS,
    STATE_COLUMNS,
    append_part,
    finish_part,
    num_parts,
    numbers,
    read_units,
)
from storage.schema import MAX_UNIT_SAMPLES

UNKNOWN = -1  # count of a unit whose commit record was listed, not read


@dataclass(frozen=True)
class UnitTable:
    """Hold versions of units as arrays of one length.

    Args:
        unit: int64.
        version: int64.
        count: int64, samples; UNKNOWN where the record was listed and not read.
        bytes: int64.
        invalid: int64, samples that could not be used.
        digest: 32 ASCII bytes each.
    """

    unit: np.ndarray
    version: np.ndarray
    count: np.ndarray
    bytes: np.ndarray
    invalid: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, rows: np.ndarray) -> UnitTable:
        """Return some rows, given by number or as a mask."""
        return UnitTable(*(column[rows] for column in self._columns()))

    def latest(self) -> UnitTable:
        """Return the highest version of each unit, ordered by unit."""
        if (np.diff(self.unit) > 0).all():  # the usual case, and copies cost time
            return self
        return self.take(latest_rows(self.unit, self.version))

    @classmethod
    def concat(cls, tables: Sequence[UnitTable]) -> UnitTable:
        """Put tables one after the other."""
        columns = zip(*(table._columns() for table in tables), strict=True)
        return cls(*map(np.concatenate, columns))

    def _columns(self) -> list[np.ndarray]:
        return [getattr(self, column.name) for column in fields(self)]

    @classmethod
    def of_commits(cls, commits: Sequence[Commit]) -> UnitTable:
        """Make the rows of commit records."""
        rows = [(c.unit, c.version, c.count, c.bytes, len(c.invalid)) for c in commits]
        whole = np.array(rows, np.int64).reshape(-1, 5)
        digest = np.array([commit.digest.encode() for commit in commits], "S32")
        unit, version, count, size, invalid = whole.T
        return cls(unit, version, count, size, invalid, digest)

    @classmethod
    def listed(cls, records: Sequence[tuple[int, int]]) -> UnitTable:
        """Make rows of records of which nothing but (unit, version) is known."""
        pairs = np.array(records, np.int64).reshape(-1, 2)
        zeros, digest = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), "S32")
        return cls(pairs[:, 0], pairs[:, 1], zeros + UNKNOWN, zeros, zeros, digest)


@dataclass
class Ledger:
    """Hold what is known of all units.

    Args:
        rolled: all rows of the manifest.
        pending: (unit, version) of the records that are not in the manifest, ascending.
        parts: parts of the manifest.
        current: the highest version of each unit, ordered by unit.
        holds: bool per row of `current`, False where the version is withdrawn.
    """

    rolled: UnitTable
    pending: list[tuple[int, int]]
    parts: int
    current: UnitTable
    holds: np.ndarray

    @property
    def done(self) -> np.ndarray:
        """int64, ascending: the units that are done."""
        return self.current.unit[self.holds]


def read_ledger(files: Files, *, parts: int | None = None) -> Ledger:
    """Read which units are done, listing no more than what is not in the manifest.

    Args:
        files: the dataset's files.
        parts: how many manifest parts to go by; all by default.
    """
    parts = num_parts(files) if parts is None else parts
    rolled = read_rolled(files, parts)
    pending = _pending(files, rolled.unit, rolled.version)
    known = UnitTable.concat([rolled, UnitTable.listed(pending)]) if pending else rolled
    current = known.latest()
    void = withdrawn_rows(files, current.unit, current.version)
    return Ledger(rolled, pending, parts, current, ~void)


def latest_rows(unit: np.ndarray, version: np.ndarray) -> np.ndarray:
    """Return the rows of each unit's highest version, ordered by unit."""
    order = np.lexsort((version, unit))
    last = np.ones(len(order), bool)
    last[:-1] = np.diff(unit[order]) != 0
    return order[last]


def withdrawn_rows(files: Files, unit: np.ndarray, version: np.ndarray) -> np.ndarray:
    """Say which rows, ordered by unit, are withdrawn versions: bool (len(unit),)."""
    void = np.zeros(len(unit), bool)
    for number, withdrawn in list_records(files, "commits/withdrawn"):
        row = int(np.searchsorted(unit, number))
        if row < len(unit) and unit[row] == number and version[row] == withdrawn:
            void[row] = True
    return void


def read_rolled(files: Files, parts: int) -> UnitTable:
    """Read the manifest's rows of the first `parts` parts, in the log's order.

    Raises:
        DataError: if the manifest is damaged or holds absurd numbers.
    """
    table = read_units(files, columns=STATE_COLUMNS, parts=parts)
    whole = [numbers(table[name]) for name in STATE_COLUMNS[:-1]]
    unit, version, count, size, invalid = whole
    absurd = (unit < 0) | (unit > MAX_UNIT) | (version < 0) | (size < 0)
    absurd |= (count < 1) | (count > MAX_UNIT_SAMPLES) | (invalid < 0) | (invalid > count)
    if absurd.any():
        row = int(np.argmax(absurd))
        raise DataError(
            f"{files.url}/manifest: got unit {unit[row]} with {count[row]} samples, which is "
            "absurd. Remove the manifest folder and rerun: it is made again."
        )
    try:
        digest = table["digest"].combine_chunks().cast(pa.binary()).cast(pa.binary(32))
    except pa.ArrowException:
        raise DataError(f"{files.url}/manifest: got digests that are not 32 digits.") from None
    data = np.frombuffer(digest.buffers()[1] or b"", "S32", len(table), digest.offset * 32)
    return UnitTable(unit, version, count, size, invalid, data)


def _pending(files: Files, unit: np.ndarray, version: np.ndarray) -> list[tuple[int, int]]:
    """List the records that are not in the manifest; blocks wholly in it are not listed."""
    blocks = unit // BLOCK_UNITS
    sizes = np.bincount(blocks[version == 0], minlength=int(blocks.max(initial=-1)) + 1)
    full = sizes == BLOCK_UNITS
    loose = (version > 0) | ~full[blocks]  # the others' folders are not listed
    # A void record matters no more, and may be damaged: it is not to be read again.
    known = set(list_records(files, "commits/withdrawn"))
    known.update(zip(unit[loose].tolist(), version[loose].tolist(), strict=True))
    records: list[tuple[int, int]] = []
    for name in files.names("commits"):
        if name == "revised":
            records += list_records(files, f"commits/{name}")
            continue
        block = number_in(name)
        if block is not None and (block >= len(full) or not full[block]):
            records += list_records(files, f"commits/{name}")
    return sorted(record for record in records if record not in known)


def roll_up(files: Files, *, samples_per_unit: int, final: bool, fsync: bool = True) -> int:
    """Move commits into manifest parts, all of them if `final`, else once there are enough.

    Returns:
        How many commits this call moved.
    """
    limit = max(1, min(MAX_PART_UNITS, MAX_PART_SAMPLES // samples_per_unit))
    moved = 0
    while True:
        ledger = read_ledger(files)
        if ledger.parts:
            finish_part(files, ledger.parts - 1, fsync=fsync)
        take = ledger.pending[:limit]
        if not take or (len(take) < limit and not final):
            return moved
        commits = [read_commit(files, unit, version) for unit, version in take]
        if append_part(files, ledger.parts, commits, fsync=fsync):
            moved += len(commits)


def missing_units(
    files: Files, ledger: Ledger, *, num_samples: int, samples_per_unit: int, ends: Sequence[int]
) -> np.ndarray:
    """List the units to make so that the first `num_samples` samples are there.

    Args:
        files: the dataset's files.
        ledger: what is known of its units.
        num_samples: samples wanted in all.
        samples_per_unit: samples of a whole unit.
        ends: the sizes requested so far; only where one of them lies may a unit be partial.
    """
    needed = -(-num_samples // samples_per_unit)
    inside = ledger.current.take(ledger.holds & (ledger.current.unit < needed))
    count = inside.count.copy()
    partial = np.array([end // samples_per_unit for end in ends], np.int64)
    for row in np.flatnonzero((count == UNKNOWN) & np.isin(inside.unit, partial)):
        count[row] = read_commit(files, int(inside.unit[row]), int(inside.version[row])).count
    wanted = np.minimum(samples_per_unit, num_samples - inside.unit * samples_per_unit)
    done = np.zeros(needed, bool)
    done[inside.unit] = (count == UNKNOWN) | (count >= wanted)
    return np.flatnonzero(~done)
