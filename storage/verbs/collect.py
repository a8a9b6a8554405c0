"""Garbage collection: what may go under a root, and why; nothing goes unless it is asked for.

Never collected: a dataset that is pinned, that somebody reads, or that a run is at work on; all of
this is looked for again after the removal was announced (`storage.ledger.holds`). Removed first is
the file that makes a folder a dataset, so that what is half removed is seen as remains.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from dreamshard.errors import ConfigError, DataError, Problem
from storage.catalog import list_datasets
from storage.dataset import Dataset
from storage.fs.local import STAGING, Files
from storage.fs.open import open_files
from storage.ledger import description
from storage.ledger.book import Ledger, read_ledger
from storage.ledger.holds import PINS, is_gone, make_final, pins, readers, removal
from storage.ledger.leases import has_live_run, watch_until_known
from storage.ledger.publish import claim
from storage.schema import covers_levels

_FOLDER = re.compile(r".+-[0-9a-f]{12}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Garbage:
    """Say what may go.

    Args:
        url: a dataset's folder.
        kind: "leftovers" (temporary files of dead runs), "strays" (files of withdrawn or never
            committed units), "remains" (a folder that is a dataset no more) or "dataset".
        reason: why, for people.
        bytes: about how many, -1 where that was not counted.
        keys: files to remove; all of the folder where empty.
    """

    url: str
    kind: str
    reason: str
    bytes: int = -1
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    dataset: Dataset
    book: Ledger
    holders: tuple[str, ...]
    """What keeps all of it, for people."""
    busy: bool

    @property
    def samples(self) -> int:
        return sum(c for c in self.book.current.count[self.book.holds].tolist() if c > 0)

    @property
    def bytes(self) -> int:
        return int(self.book.current.bytes[self.book.holds].sum())


def plan(
    root: str,
    *,
    keep_latest: int | None = None,
    superseded: bool = False,
    remove: Sequence[str] = (),
) -> list[Garbage]:
    """List what may go under a root; change nothing.

    Args:
        root: folder of datasets.
        keep_latest: of the datasets of one name keep this many of the latest made, 1 or more; None
            keeps all.
        superseded: list datasets whose samples and levels another one here has too, in the same
            layout.
        remove: names (or folders) of datasets to list whatever else holds.

    Raises:
        ConfigError: if a dataset named is not there, is pinned or read, or a run is at work on it.
        DataError: if there is no such root.
    """
    if keep_latest is not None and keep_latest < 1:
        raise ConfigError(Problem("--keep-latest", str(keep_latest), "1 or more"))
    entries = list(_entries(root))
    loose = [item for entry in entries if not entry.busy for item in _loose(entry)]
    loose += _remains(root)
    reasons = _named(entries, remove)
    free = [entry for entry in entries if not entry.holders]
    if keep_latest is not None:
        reasons = {**_older(entries, free, keep_latest), **reasons}
    if superseded:
        reasons = {**_superseded(entries, free, set(reasons)), **reasons}
    gone = {
        entry.dataset.url: Garbage(
            entry.dataset.url, "dataset", reasons[entry.dataset.url], entry.bytes
        )
        for entry in entries
        if entry.dataset.url in reasons
    }
    return [item for item in loose if item.url not in gone] + list(gone.values())


def collect(garbage: Sequence[Garbage]) -> int:
    """Remove what a plan listed; return how many files that were."""
    return sum(map(remove, garbage))


def remove(item: Garbage) -> int:
    """Remove one thing that a plan listed; return how many files that were.

    What was pinned, opened by a reader or taken up by a run since the plan was made stays: 0.
    """
    files = open_files(item.url)
    if item.kind == "leftovers":
        return Dataset.open(item.url).sweep()
    if item.kind == "strays":
        return 0 if _holders(files) else _remove_strays(Dataset.open(item.url), item.keys)
    if files.is_link(""):
        return 0  # it was put there since: what it leads to is not below the root
    with removal(files) as announced:
        if _holders(files, pinned=item.kind == "dataset"):
            return 0
        if not is_gone(files) and not make_final(files, announced):
            return 0
    removed = files.remove(description.KEY)
    return removed + files.remove_tree("")


def _remove_strays(dataset: Dataset, keys: Sequence[str]) -> int:
    """Remove files of units that are not done; a run that starts meanwhile may be moving some."""
    files, done = dataset.files, set(read_ledger(dataset.files).done.tolist())
    still = [key for key in _stray_keys(dataset, done) if key in set(keys)]
    units = {dataset.store.unit_of(key) for key in still}
    removed = sum(files.remove(key) for key in still if dataset.store.unit_of(key) is None)
    for unit in units - {None}:
        with claim(files, cast("int", unit)) as held:
            removed += dataset.restore(held)
    return removed


def _holders(files: Files, *, pinned: bool = True) -> tuple[str, ...]:
    """Say what keeps a dataset from being removed."""
    holders = [f"pinned ({', '.join(names)})"] if pinned and (names := pins(files)) else []
    holders += ["a link to somewhere else"] * files.is_link("")
    holders += [f"read by {', '.join(names)}"] if (names := readers(files)) else []
    return (*holders, *["a run is at work on it"] * has_live_run(files))


def _entries(root: str) -> Iterator[_Entry]:
    """Open the datasets under a root; pass over damaged ones, which nobody may judge."""
    listed = [
        (url, about) for url, about in list_datasets(root) if not isinstance(about, DataError)
    ]
    watch_until_known([open_files(url) for url, _ in listed])
    for url, about in listed:
        try:
            dataset = Dataset(url, about)
            book = read_ledger(dataset.files)
            files = dataset.files
            holders, busy = _holders(files), bool(readers(files)) or has_live_run(files)
        except DataError:
            continue
        yield _Entry(dataset, book, holders, busy)


def _loose(entry: _Entry) -> Iterator[Garbage]:
    """List what lies in a dataset's folder and belongs to nothing."""
    files, url = entry.dataset.files, entry.dataset.url
    if any(True for _ in files.specials()):
        return  # what lies behind a link is not the dataset's; `verify` names it
    staged = sum(1 for _ in files.walk(STAGING))
    if staged:
        yield Garbage(url, "leftovers", f"{staged} temporary files of runs that died")
    strays = tuple(_stray_keys(entry.dataset, set(entry.book.done.tolist())))
    if strays:
        size = sum(files.size(key) or 0 for key in strays)
        yield Garbage(url, "strays", f"{len(strays)} files of units not done", size, strays)


def _stray_keys(dataset: Dataset, done: set[int]) -> Iterator[str]:
    for key in dataset.store.strays(done):
        below = list(dataset.files.walk(key))
        yield from below or ([key] if dataset.files.size(key) is not None else [])


def _remains(root: str) -> Iterator[Garbage]:
    """List folders named like datasets that have lost the file which makes them one."""
    files = open_files(root)
    for name in sorted(files.names("")):
        inner = open_files(f"{files.url}/{name}")
        if not _FOLDER.fullmatch(name) or inner.is_link(""):
            continue
        with contextlib.suppress(DataError):  # what cannot be looked at is not judged
            if not is_gone(inner):
                continue
            folders = ("commits", "requests", PINS)  # pins: of a pin that died as the rest went
            if any(map(inner.names, folders)) or inner.size(description.KEY):
                yield Garbage(inner.url, "remains", f"it has no {description.KEY} any more")


def _named(entries: Sequence[_Entry], names: Sequence[str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    problems: list[Problem | str] = []
    for name in names:
        fits = [e for e in entries if name in (e.dataset.recipe.name, e.dataset.recipe.folder)]
        if not fits:
            known = ", ".join(sorted({e.dataset.recipe.name for e in entries})) or "none"
            problems.append(Problem("--remove", repr(name), f"a dataset's name: {known:.300}"))
        for entry in fits:
            if entry.holders:
                got = f"{entry.dataset.url}, {'; '.join(entry.holders)}"
                problems.append(Problem("--remove", got, "a dataset that nothing holds"))
            reasons[entry.dataset.url] = "asked for by name"
    if problems:
        raise ConfigError(problems)
    return reasons


def _older(entries: Sequence[_Entry], free: Sequence[_Entry], keep: int) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for name in {entry.dataset.recipe.name for entry in entries}:
        same = [entry for entry in entries if entry.dataset.recipe.name == name]
        same.sort(key=lambda entry: -entry.dataset.about.created)
        for entry in same[keep:]:
            if entry in free:
                reasons[entry.dataset.url] = f"{keep} later of the name {name}"
    return reasons


def _superseded(
    entries: Sequence[_Entry], free: Sequence[_Entry], going: set[str]
) -> dict[str, str]:
    """Find datasets that another one, which stays, has all of; of two alike the earlier stays."""
    reasons: dict[str, str] = {}
    for entry in sorted(free, key=lambda entry: -entry.dataset.about.created):
        if entry.dataset.url in going:
            continue
        for other in entries:
            stays = other.dataset.url not in {*going, *reasons, entry.dataset.url}
            if stays and _has_all(other, entry):
                reasons[entry.dataset.url] = f"{other.dataset.url} has all of it"
                break
    return reasons


def _has_all(other: _Entry, entry: _Entry) -> bool:
    have, want = other.dataset.recipe, entry.dataset.recipe
    if have.family_key != want.family_key or have.source != want.source:
        return False
    if not covers_levels(have, want):
        return False
    own, its = entry.dataset.arrays, other.dataset.arrays
    if any(name not in its or its[name] != spec for name, spec in own.items()):
        return False
    if any(want.codec_of(level) != have.codec_of(level) for level in entry.dataset.levels):
        return False
    if str(have.layout.get("format")) != str(want.layout.get("format")):
        return False
    snapshot = other.dataset.snapshot()
    return not snapshot.holes and snapshot.num_samples >= entry.dataset.snapshot().num_samples
