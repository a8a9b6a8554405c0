"""Check a dataset against its own records: every byte, every row, and what is there too much."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from storage.codecs.bases import basis_digests
from storage.dataset import Dataset
from storage.fs.local import STAGING
from storage.ledger import manifest, requests
from storage.ledger.book import Ledger, read_ledger
from storage.ledger.commits import Commit, read_commit, record_key
from storage.verbs.findings import Finding, Report, reason_of
from storage.verbs.records import check_records, mend_records

_FOLDERS = {
    *("dataset.json", "codecs", "commits", "drops", "labels", "manifest", "pins", "requests"),
    STAGING,
}
_BATCH_UNITS = 256  # units handed to the threads at a time, so that memory stays flat


def verify_dataset(
    dataset: Dataset,
    *,
    quick: bool = False,
    on_unit: Callable[[int], None] | None = None,
) -> Report:
    """Check a dataset: metadata, manifest, records, and each unit's files.

    Args:
        dataset: what to check.
        quick: look at sizes only, not at every byte.
        on_unit: called with a unit's bytes when it is checked.

    Returns:
        What was found; nothing is changed.
    """
    report = Report()
    requested = check_records(dataset, report)
    parts = _check_manifest(dataset, report, quick=quick)
    book = read_ledger(dataset.files, parts=parts)
    for unit, commit, findings, unread in _check_units(dataset, book, quick):
        report.units += 1
        if commit is not None:
            report.bytes += commit.bytes
            report.samples += commit.count
            report.invalid += len(commit.invalid)
            report.unsealed += not commit.sealed
        report.findings += [Finding(path, problem, unit) for path, problem in findings]
        report.unreadable += [Finding(path, problem, unit) for path, problem in unread]
        if on_unit is not None:
            on_unit(0 if commit is None else commit.bytes)
    report.findings += _links(dataset, told={finding.path for finding in report.findings})
    damaged = set(report.damaged_units)
    try:
        missing = dataset.missing(requested, book=book).tolist()
    except DataError:  # a damaged record, reported above
        missing = []
    report.missing = [unit for unit in missing if unit not in damaged]
    if report.unsealed:
        report.notes.append(
            f"{dataset.url}: {report.unsealed} files not protected by a digest of their own: "
            "written by an earlier version; whatever is written from now on is"
        )
    report.notes += _strays(dataset, book)
    return report


def repair(dataset: Dataset, report: Report) -> list[int]:
    """Withdraw damaged units, and make manifest and metadata again from the commit records.

    Returns:
        The units that the next run of the command that made the dataset will make again.
    """
    again = Report()
    parts = _check_manifest(dataset, again, quick=False)
    if again.unreadable:  # then it is not known which of its parts are damaged
        raise CannotReadError(f"{again.unreadable[0]} Nothing was repaired.")
    for unit in report.damaged_units:
        dataset.invalidate(unit, reason="verify found it damaged")
    for part in range(parts, manifest.num_parts(dataset.files, strict=False)):
        dataset.files.remove(manifest.units_key(part))
        dataset.files.remove(manifest.samples_key(part))
    dataset.roll_up(final=True)
    mend_records(dataset)
    return dataset.missing(max(requests.ends(dataset.files), default=0)).tolist()


def _check_manifest(dataset: Dataset, report: Report, *, quick: bool) -> int:
    """Check the manifest's parts; return how many there are before the first damaged one."""
    files = dataset.files
    for part in range(manifest.num_parts(files, strict=False)):
        try:
            if not quick:
                report.unsealed += manifest.count_unsealed(files, part)
            problem = manifest.check_part(files, part, quick=quick)
        except CannotReadError as error:
            where = files.path(manifest.samples_key(part))
            report.unreadable.append(Finding(where, reason_of(error, where)))
            return part
        except DataError as error:
            problem = str(error)
        if problem:
            report.findings.append(Finding(files.path(manifest.samples_key(part)), problem))
            return part
    return manifest.num_parts(files, strict=False)


Problems = list[tuple[str, str]]
Checked = tuple[int, Commit | None, Problems, Problems]


def _check_units(dataset: Dataset, book: Ledger, quick: bool) -> Iterator[Checked]:
    rows = book.current.take(book.holds)
    pairs = list(zip(rows.unit.tolist(), rows.version.tolist(), strict=True))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(pairs), _BATCH_UNITS):
            batch = pairs[start : start + _BATCH_UNITS]
            yield from pool.map(lambda pair: _check_unit(dataset, *pair, quick=quick), batch)


def _check_unit(dataset: Dataset, unit: int, version: int, *, quick: bool) -> Checked:
    """Check one unit: (unit, its record, problems, what was unreadable)."""
    record = dataset.files.path(record_key(unit, version))
    try:
        commit = read_commit(dataset.files, unit, version)
    except CannotReadError as error:
        return unit, None, [], [(record, reason_of(error, record))]
    except DataError as error:
        return unit, None, [(record, str(error))], []
    try:
        problems = _unit_problems(dataset, commit, record, quick=quick)
    except (CannotReadError, MemoryError) as error:
        path, mark, text = str(error).partition(": ")
        unread = [(path, text)] if mark else [(record, f"cannot be checked: {error!r:.200}")]
        return unit, commit, [], unread
    return unit, commit, problems, []


def _unit_problems(dataset: Dataset, commit: Commit, record: str, *, quick: bool) -> Problems:
    problems = [(record, text) for text in _record_problems(dataset, commit)]
    if set(commit.digests) != set(dataset.arrays):
        problems.append((record, f"got digests of {sorted(commit.digests)}, allowed all arrays'"))
    else:
        try:
            problems += dataset.store.problems(commit, quick=quick)
        except CannotReadError:
            raise
        except DataError as error:
            problems.append((record, str(error)))
    return problems


def _links(dataset: Dataset, *, told: set[str]) -> Iterator[Finding]:
    """Name what is neither a file nor a folder, at every level, and was not told of yet."""
    files = dataset.files
    for key, what in sorted(files.specials()):
        if files.path(key) not in told:
            problem = f"got {what}, allowed a file or folder of the dataset's own; remove it"
            yield Finding(files.path(key), problem, by_hand=True)


def _record_problems(dataset: Dataset, commit: Commit) -> Iterator[str]:
    first = commit.unit * dataset.samples_per_unit
    if commit.first != first:
        yield f"got first index {commit.first}, allowed {first}"
    try:
        bases = basis_digests({level.name: dataset.codec(level.name) for level in dataset.levels})
    except CannotReadError:
        raise
    except DataError as error:
        yield str(error)
        return
    if bases != commit.extra.get("bases", {}):
        yield f"got codec bases {commit.extra.get('bases', {})!r:.120}, allowed {bases}"


def _strays(dataset: Dataset, book: Ledger) -> list[str]:
    """Name files that belong to nothing committed; a run at work has some."""
    files = dataset.files
    known = {*_FOLDERS, *(key.partition("/")[0] for key in dataset.store.metadata_keys())}
    notes = [
        f"{files.path(name)}: not part of a dataset"
        for name in files.names("")
        if name not in known
    ]
    notes += [
        f"{files.path(manifest.UNITS)}/{name}: not part of a dataset"
        for name in files.names(manifest.UNITS)
        if manifest.part_in(name) is None
    ]
    notes += [
        f"{files.path(key)}: not committed" for key in dataset.store.strays(set(book.done.tolist()))
    ]
    staged = sum(1 for _ in files.walk(STAGING))
    if staged:
        notes.append(f"{files.path(STAGING)}: {staged} temporary files; the next run sweeps them")
    return notes
