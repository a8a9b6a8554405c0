"""Dropped samples: append-only records that take samples out of every later snapshot.

`drops/<n>.json` names samples by index and key, with the reason. Nothing is rewritten: the rows
stay in their files, and readers skip them. A snapshot's version says how many records it went by,
so an earlier snapshot shows what it always showed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import parse_sealed, sealed_json
from dreamshard.foreign.text import number_in
from storage.fs.local import Files
from storage.ledger.commits import MAX_ERROR_CHARS, MAX_INDEX

FOLDER = "drops"
MAX_RECORDS = 100_000
_READ_THREADS = 8


@dataclass(frozen=True)
class Drop:
    """Record samples that were dropped together.

    Args:
        samples: the source's own name of each sample, by index.
        reason: why.
        created: seconds since 1970.
        sealed: whether its file carries a digest of itself; those of earlier versions do not.
    """

    samples: Mapping[int, str]
    reason: str
    created: float
    sealed: bool = True

    @property
    def error(self) -> str:
        """What a snapshot says of these samples."""
        return f"dropped: {self.reason}"


def record_key(number: int) -> str:
    """Return where a record lies."""
    return f"{FOLDER}/{number:06d}.json"


def count_drops(files: Files) -> int:
    """Return how many records there are; they are numbered without gaps.

    Raises:
        DataError: if one is missing.
    """
    names = files.names(FOLDER)
    count = sum(name.endswith(".json") and number_in(name[:-5]) is not None for name in names)
    if count > MAX_RECORDS or (count and f"{count - 1:06d}.json" not in names):
        raise DataError(f"{files.url}/{FOLDER}: got {count} records with gaps between them.")
    return count


def read_drops(files: Files, count: int) -> tuple[Drop, ...]:
    """Read the first `count` records.

    Raises:
        DataError: if one is missing or damaged.
    """
    if not count:
        return ()
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return tuple(pool.map(lambda number: _read(files, number), range(count)))


def check(files: Files, number: int, keys: Sequence[str]) -> bool:
    """Return whether a record carries a digest of itself.

    Args:
        keys: the samples' names by index, "" in holes; none where they are not known.

    Raises:
        DataError: if it is not as it was written, or names other samples.
    """
    drop = _read(files, number)
    for index, key in drop.samples.items():
        if index < len(keys) and keys[index] not in ("", key):
            raise DataError(
                f"{files.path(record_key(number))}: got sample {index} by the name {key!r:.80}, "
                f"which is {keys[index]!r:.80}. Put back a good copy."
            )
    return drop.sealed


def add_drop(files: Files, samples: Mapping[int, str], *, reason: str, fsync: bool = True) -> int:
    """Add a record after those there are; of two at once both are added, one after the other.

    Returns:
        Its number.
    """
    record = {
        "samples": {str(index): key for index, key in samples.items()},
        "reason": reason[:MAX_ERROR_CHARS],
        "time": time.time(),
    }
    while True:
        number = count_drops(files)
        if files.write(record_key(number), sealed_json(record), if_absent=True, fsync=fsync):
            return number


def find_samples(keys: Sequence[str], wanted: Sequence[str], *, where: str) -> dict[int, str]:
    """Find samples by the source's names of them.

    Args:
        keys: name of each sample, "" in holes.
        wanted: names looked for; each stands for every sample of that name.
        where: the dataset, for messages.

    Raises:
        DataError: if a name is not there, with all that are not.
    """
    names = set(wanted) - {""}
    samples = {index: key for index, key in enumerate(keys) if key in names}
    unknown = sorted(set(wanted) - set(samples.values()))
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"{where}: got {len(unknown)} keys of no sample ({some:.300}), allowed keys as in the "
            "manifest's column `key`. Nothing was dropped."
        )
    return samples


def _reason(value: dict) -> str:
    return str(value["reason"])[:MAX_ERROR_CHARS]


def _read(files: Files, number: int) -> Drop:
    key = record_key(number)
    try:
        value, sealed = parse_sealed(files.read(key), where=files.path(key))
        samples = {int(index): str(name) for index, name in value["samples"].items()}
        if not all(0 <= index <= MAX_INDEX for index in samples):
            raise ValueError("an index out of range")
        return Drop(samples, _reason(value), float(value["time"]), sealed)
    except FileNotFoundError:
        raise DataError(f"{files.url}/{key}: got no such record, though it is listed.") from None
    except (OSError, CannotReadError, MemoryError):
        raise
    except Exception as error:  # of whatever is in there
        raise DataError(
            f"{files.url}/{key}: got a damaged record of dropped samples ({error!s:.120}). Put "
            "back a good copy: without it dropped samples would be read again."
        ) from None
