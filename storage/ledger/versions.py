"""Which units a snapshot shows: those of now, or those that a version text names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import xxhash

from dreamshard.errors import DataError
from storage.fs.local import Files
from storage.ledger.book import (
    Ledger,
    UnitTable,
    latest_rows,
    read_ledger,
    read_rolled,
    withdrawn_rows,
)
from storage.ledger.commits import Commit, read_commit
from storage.ledger.drops import Drop, count_drops, read_drops
from storage.ledger.labels import count_versions

_VERSION = re.compile(r"(\d{1,18})-(\d{1,9})-([0-9a-f]{16})(?:-(\d{1,6}))?(?:-l(\d{1,6}))?")


@dataclass(frozen=True)
class Pinned:
    """Hold what a snapshot is made of.

    Args:
        table: one row per unit, ordered.
        num_samples: samples served.
        parts: manifest parts that were read.
        pending: records that were in none of them.
        version: the text that names all this.
        drops: records of dropped samples it goes by.
        labels: number of the version of labels it goes by; 0 for what the units say.
    """

    table: UnitTable
    num_samples: int
    parts: int
    pending: tuple[Commit, ...]
    version: str
    drops: tuple[Drop, ...] = ()
    labels: int = 0


def pin_latest(files: Files, *, samples_per_unit: int, requested: int) -> Pinned:
    """Choose all units that are done; those requested and not done are holes, also at the end."""
    ledger = read_ledger(files)
    pending = _read_pending(files, ledger)
    current = ledger.current
    if pending:
        current = UnitTable.concat([ledger.rolled, UnitTable.of_commits(pending)]).latest()
    table = current if ledger.holds.all() else current.take(ledger.holds)
    end = int(table.unit[-1]) * samples_per_unit + int(table.count[-1]) if len(table) else 0
    num_samples = requested or end
    table = _below(table, num_samples, samples_per_unit)
    count = count_drops(files)
    labels = count_versions(files)
    version = f"{num_samples}-{ledger.parts}-{_digest(table)}"
    version += (f"-{count}" if count else "") + (f"-l{labels}" if labels else "")
    drops = read_drops(files, count)
    return Pinned(table, num_samples, ledger.parts, pending, version, drops, labels)


def pin_version(files: Files, version: str, *, samples_per_unit: int) -> Pinned:
    """Choose the units that a version text names, however much was added since.

    Raises:
        DataError: if the text is none, or what it names is not there any more.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise DataError(f"{files.url}: version: got {version!r:.80}, allowed one as a snapshot's.")
    num_samples, parts, digest = int(match[1]), int(match[2]), match[3]
    ledger = read_ledger(files)
    pending = _read_pending(files, ledger)
    everything = UnitTable.concat([ledger.rolled, UnitTable.of_commits(pending)])
    if parts <= ledger.parts:
        known = read_rolled(files, parts)
        for table in _candidates(files, known, everything):
            table = _below(table, num_samples, samples_per_unit)
            if _digest(table) == digest:
                _check_there(files, table, everything.latest(), ledger.holds)
                drops, labels = read_drops(files, int(match[4] or 0)), int(match[5] or 0)
                return Pinned(table, num_samples, ledger.parts, pending, version, drops, labels)
    raise DataError(
        f"{files.url}: version: got {version!r}, which this dataset cannot show any more: units "
        "were made again with other content, or it is another dataset's. Open the latest one."
    )


def _candidates(files: Files, known: UnitTable, everything: UnitTable) -> list[UnitTable]:
    """List what may have been shown: the parts alone, or also what was not rolled up then."""
    latest = known.latest()
    later = everything.take(np.arange(len(known), len(everything)))
    later = later.take(~np.isin(later.unit, latest.unit))
    first = later.take(latest_rows(later.unit, -later.version))
    filled = UnitTable.concat([latest, first]).latest()
    void = withdrawn_rows(files, latest.unit, latest.version)
    return [latest, latest.take(~void), filled]


def _check_there(files: Files, table: UnitTable, current: UnitTable, holds: np.ndarray) -> None:
    """Refuse a unit whose bytes on disk are not those that were pinned."""
    row = np.searchsorted(current.unit, table.unit)
    same = current.digest[row] == table.digest
    grown = (current.version[row] > table.version) & (current.count[row] > table.count)
    gone = ~(holds[row] & (same | grown))
    if gone.any():
        units = ", ".join(map(str, table.unit[gone][:5]))
        raise DataError(
            f"{files.url}: got {int(gone.sum())} units ({units}) that were withdrawn since the "
            "snapshot, allowed none. Rerun the command that made the dataset: it makes them again."
        )


def _below(table: UnitTable, num_samples: int, samples_per_unit: int) -> UnitTable:
    units = -(-num_samples // samples_per_unit)
    inside = table.unit < units
    return table if inside.all() else table.take(inside)


def _digest(table: UnitTable) -> str:
    state = xxhash.xxh3_64()
    for column in (table.unit, table.count, table.digest):
        state.update(np.ascontiguousarray(column).tobytes())
    return state.hexdigest()


def _read_pending(files: Files, ledger: Ledger) -> tuple[Commit, ...]:
    return tuple(read_commit(files, unit, version) for unit, version in ledger.pending)
