"""Check the small files that decide what a dataset shows, each against the digest it carries.

Files of earlier versions carry none: what they say is compared with the rest of the dataset as far
as that goes, and they are counted.
"""

from __future__ import annotations

from collections.abc import Callable

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import parse_sealed
from storage.dataset import Dataset
from storage.ledger import description, drops, holds, labels, quarantine, requests
from storage.ledger.commits import list_records, withdraw, withdrawal_key
from storage.verbs.findings import Finding, Report, reason_of

_MAX_BYTES = 1 << 20
_WITHDRAWN = "commits/withdrawn"


def check_records(dataset: Dataset, report: Report) -> int:
    """Check all but commit records and the manifest; return the samples requested.

    Only requests that are as they were written count.
    """
    look = _Look(dataset, report)
    look.at(description.KEY, lambda: description.read_description(dataset.files).sealed)
    requested = max((n for n in requests.ends(dataset.files) if look.request(n)), default=0)
    for key, data in dataset.store.metadata(requested).items():
        look.at(key, lambda key=key, data=data: _same(dataset, key, data), by_hand=False)
    for unit, version in list_records(dataset.files, _WITHDRAWN):
        look.record(withdrawal_key(unit, version), {"unit": unit, "version": version})
    for name in holds.pins(dataset.files):
        look.record(f"{holds.PINS}/{name}.json", {})
    for unit, key in quarantine.notes(dataset.files):
        look.record(key, {"unit": unit})
    look.drops()
    look.labels()
    return requested


def mend_records(dataset: Dataset) -> None:
    """Write again what follows from names or from the description, and forget damaged notes."""
    report, files = Report(), dataset.files
    requested = check_records(dataset, report)
    damaged = {finding.path for finding in report.findings if not finding.by_hand}
    for unit, version in list_records(files, _WITHDRAWN):
        key = withdrawal_key(unit, version)
        if files.path(key) in damaged:  # void it is: its name says so
            files.remove(key)
            withdraw(files, unit, version, reason="the record that withdrew it was damaged")
    for name in holds.pins(files):
        if files.path(f"{holds.PINS}/{name}.json") in damaged:
            holds.pin(files, name=name, reason="the pin's record was damaged", again=True)
    for _, key in quarantine.notes(files):
        if files.path(key) in damaged:
            files.remove(key)
    files.prune(quarantine.FOLDER)
    if any(files.path(key) in damaged for key in dataset.store.metadata_keys()):
        dataset.store.resize(requested, fsync=dataset.fsync)


class _Look:
    """Look at one file after another, and put down what is wrong."""

    def __init__(self, dataset: Dataset, report: Report) -> None:
        self._dataset, self._files, self._report = dataset, dataset.files, report

    def at(self, key: str, check: Callable[[], bool], *, by_hand: bool = True) -> bool:
        """Check a file; return whether it is good. `check` says whether it is sealed."""
        path = self._files.path(key)
        try:
            self._report.unsealed += not check()
            return True
        except FileNotFoundError as error:
            if key not in self._dataset.store.metadata_keys():
                return False  # taken away meanwhile
            problem = Finding(path, f"got no file ({error.strerror})", by_hand=by_hand)
            self._report.findings.append(problem)
        except CannotReadError as error:
            self._report.unreadable.append(Finding(path, reason_of(error, path)))
        except (DataError, ValueError) as error:
            problem = Finding(path, reason_of(error, path), by_hand=by_hand)
            self._report.findings.append(problem)
        return False

    def request(self, number: int) -> bool:
        """Check a request."""
        return self.at(requests.key_of(number), lambda: requests.check(self._files, number))

    def record(self, key: str, expected: dict[str, int]) -> bool:
        """Check a record that must say some numbers."""

        def check() -> bool:
            data = self._files.read(key, limit=_MAX_BYTES)
            value, sealed = parse_sealed(data, where=self._files.path(key))
            if not isinstance(value, dict):
                raise ValueError("got no record, allowed one as it was written")
            told = {name: value.get(name) for name in expected}
            if told != expected:
                raise ValueError(f"got {told!r:.80}, allowed {expected}")
            return sealed

        return self.at(key, check, by_hand=False)

    def drops(self) -> None:
        """Check the records of dropped samples, and that each names the sample it means."""
        try:
            count = drops.count_drops(self._files)
        except DataError as error:
            path = self._files.path(drops.FOLDER)
            self._report.findings.append(Finding(path, reason_of(error, path), by_hand=True))
            return
        if not count:
            return
        try:
            keys = self._dataset.snapshot().keys
        except DataError:  # damage that is named elsewhere
            keys = []
        for number in range(count):
            self.at(drops.record_key(number), lambda n=number: drops.check(self._files, n, keys))

    def labels(self) -> None:
        """Check the versions of labels."""
        try:
            count = labels.count_versions(self._files)
        except DataError as error:
            path = self._files.path(labels.FOLDER)
            self._report.findings.append(Finding(path, reason_of(error, path), by_hand=True))
            return
        for number in range(1, count + 1):
            self.at(labels.version_key(number), lambda n=number: labels.check(self._files, n))


def _same(dataset: Dataset, key: str, data: bytes) -> bool:
    if dataset.files.read(key, limit=_MAX_BYTES + 2 * len(data)) != data:
        raise ValueError(
            "got other metadata than follows from dataset.json and the samples requested"
        )
    return True
