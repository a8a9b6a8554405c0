"""Commit records: the only definition of a unit being done.

`commits/<block>/<unit>.0.json` is a unit's first version, put if absent, never changed. What
happens to few units lies apart, so that whole blocks need not be listed again once they are in the
manifest: `commits/revised/<unit>.<version>.json` holds later versions (the source grew, or a
damaged unit was made again) and `commits/withdrawn/<unit>.<version>.json` says that a version is
void. A unit's state is that of its highest version.
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass, field

import numpy as np
import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import SEAL, parse_sealed, sealed_json
from dreamshard.foreign.text import number_in
from storage.fs.local import Files
from storage.schema import MAX_UNIT_SAMPLES

BLOCK_UNITS = 1000
MAX_UNIT = 1 << 32
MAX_INDEX = 1 << 50
MAX_ERROR_CHARS = 300

_WHOLE = ("unit", "version", "first", "count", "bytes")
_TEXT = ("input_digest", "host", "run_id")


@dataclass(frozen=True)
class Commit:
    """Record one finished unit.

    Args:
        unit: number of the unit.
        version: 0 for the first, higher where the unit was made again.
        first: index of its first sample.
        count: samples in it.
        bytes: stored bytes of the samples, padding not counted.
        digests: XXH3-128 hex of each array's sample bytes (without padding), by array name.
        input_digest: the source's digest of the samples read, "" if it has none.
        seconds: time from the first write to the commit.
        keys: the source's own names of the samples.
        invalid: rows (of this unit) that could not be used.
        errors: why, by row.
        labels: int labels, -1 = none; None where the source has no labels.
        created: seconds since 1970.
        extra: what else the pipeline wants remembered, JSON values.
        sealed: whether its file carries a digest of itself; those of earlier versions do not.
    """

    unit: int
    version: int
    first: int
    count: int
    bytes: int
    digests: dict[str, str]
    input_digest: str
    seconds: float
    host: str
    run_id: str
    keys: list[str]
    invalid: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    labels: list[int] | None = None
    created: float = field(default_factory=time.time)
    extra: dict[str, object] = field(default_factory=dict)
    sealed: bool = field(default=True, compare=False)

    @property
    def digest(self) -> str:
        """One digest over all arrays' digests, 32 hex digits."""
        text = "\n".join(f"{name}:{self.digests[name]}" for name in sorted(self.digests))
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def valid(self) -> np.ndarray:
        """Mask, bool (count,): False for rows that could not be used."""
        mask = np.ones(self.count, bool)
        mask[self.invalid] = False
        return mask

    @property
    def source_digests(self) -> np.ndarray | None:
        """What each sample's source bytes were, uint64 (count,); None where that is not known."""
        try:
            packed = base64.b64decode(str(self.extra["source_digests"]), validate=True)
        except (KeyError, ValueError, binascii.Error):
            return None
        digests = np.frombuffer(packed, "<u8") if len(packed) == 8 * self.count else None
        return None if digests is None else digests.astype(np.uint64)

    def to_json(self) -> bytes:
        """Return the record as JSON text; its own digest is in `extra`, which may hold anything."""
        value = {**self.__dict__, "digest": self.digest}
        del value["sealed"]
        return sealed_json(value, inside="extra", infinite=True)

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Commit:
        """Read a record, whoever wrote it.

        Raises:
            DataError: if it is not a whole and consistent record.
        """
        try:
            value, sealed = parse_sealed(data, where=where)
            digest = value.pop("digest")
            value["extra"].pop(SEAL, None)
            value["errors"] = {int(row): str(text) for row, text in value["errors"].items()}
            commit = cls(**value, sealed=sealed)
            commit._check()
            if commit.digest != digest:
                raise ValueError("digest does not match digests")
        except MemoryError:
            raise CannotReadError(f"{where}: cannot be read: out of memory.") from None
        except Exception as error:  # of whatever is in there
            raise DataError(
                f"{where}: got a damaged commit record ({error!s:.120}), allowed one as written. "
                "Remove the file and rerun: its unit is made again."
            ) from None
        return commit

    def _check(self) -> None:
        whole = {name: getattr(self, name) for name in _WHOLE}
        if not all(type(item) is int and item >= 0 for item in whole.values()):
            raise ValueError(f"got {whole}, allowed integers of 0 or more")
        if (
            self.unit > MAX_UNIT
            or self.first > MAX_INDEX
            or not 1 <= self.count <= MAX_UNIT_SAMPLES
        ):
            raise ValueError(f"got {whole}, which is absurd")
        if not all(isinstance(getattr(self, name), str) for name in _TEXT):
            raise ValueError(f"{_TEXT} must be texts")
        if len(self.keys) != self.count or not set(map(type, self.keys)) <= {str}:
            raise ValueError(f"got {len(self.keys)} keys for {self.count} samples")
        if self.labels is not None and (
            len(self.labels) != self.count or not set(map(type, self.labels)) <= {int}
        ):
            raise ValueError(f"got {len(self.labels)} labels for {self.count} samples")
        rows = [*self.invalid, *self.errors]
        if not all(type(row) is int and 0 <= row < self.count for row in rows):
            raise ValueError("invalid rows outside of the unit")
        if not isinstance(self.extra, dict):
            raise ValueError("extra must be an object")
        if not all(isinstance(item, str) for item in self.digests.values()):
            raise ValueError("digests must be texts")


def pack_digests(digests: np.ndarray) -> str:
    """Return uint64 digests as the text that `Commit.source_digests` reads."""
    return base64.b64encode(np.ascontiguousarray(digests, "<u8").tobytes()).decode("ascii")


def record_key(unit: int, version: int) -> str:
    """Return where a unit's commit record lies."""
    if version:
        return f"commits/revised/{unit:09d}.{version}.json"
    return f"commits/{unit // BLOCK_UNITS:06d}/{unit:09d}.0.json"


def withdrawal_key(unit: int, version: int) -> str:
    """Return where it is recorded that a version is void."""
    return f"commits/withdrawn/{unit:09d}.{version}.json"


def read_commit(files: Files, unit: int, version: int) -> Commit:
    """Read one commit record.

    Raises:
        DataError: if it is missing, damaged, or another unit's.
    """
    key = record_key(unit, version)
    try:
        commit = Commit.from_json(files.read(key), where=f"{files.url}/{key}")
    except FileNotFoundError:
        raise DataError(f"{files.url}/{key}: got no such record, though it is listed.") from None
    if (commit.unit, commit.version) != (unit, version):
        raise DataError(f"{files.url}/{key}: got the record of unit {commit.unit}.")
    return commit


def list_records(files: Files, folder: str) -> list[tuple[int, int]]:
    """List (unit, version) of the records in one folder, passing over names that are not ours."""
    records: list[tuple[int, int]] = []
    for name in files.names(folder):
        unit, _, rest = name.partition(".")
        version, _, ending = rest.partition(".")
        number, revision = number_in(unit), number_in(version)
        if ending == "json" and number is not None and revision is not None:
            records.append((number, revision))
    return records


def latest_version(files: Files, unit: int) -> tuple[int, bool]:
    """Return a unit's highest version and whether it holds; (-1, False) if there is none."""
    revised = list_records(files, "commits/revised")
    versions = [version for other, version in revised if other == unit]
    if not versions and files.size(record_key(unit, 0)) is None:
        return -1, False
    version = max(versions, default=0)
    return version, files.size(withdrawal_key(unit, version)) is None


def withdraw(files: Files, unit: int, version: int, *, reason: str) -> bool:
    """Record that a version of a unit is void, so that the next run makes the unit again.

    Returns:
        Whether it was this call that did so.
    """
    record = {"unit": unit, "version": version, "reason": reason, "time": time.time()}
    return files.write(withdrawal_key(unit, version), sealed_json(record), if_absent=True)
