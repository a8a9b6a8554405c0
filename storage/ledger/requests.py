"""How many samples were asked for: a small record each time, of which the largest number counts.

`requests/<samples>.json` repeats the number in its name. The arrays cover the largest one, and
where one ends may a unit be partial.
"""

from __future__ import annotations

import time

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import parse_sealed, sealed_json
from dreamshard.foreign.text import number_in
from storage.fs.local import Files

FOLDER = "requests"
_MAX_BYTES = 1 << 16


def ends(files: Files) -> list[int]:
    """Return the numbers of samples that were asked for so far, in no order."""
    names = [name.removesuffix(".json") for name in files.names(FOLDER)]
    return [end for end in map(number_in, names) if end is not None]


def largest(files: Files, known: set[int]) -> int:
    """Return the largest number asked for, 0 if there is none; its record is read once.

    Args:
        files: the dataset's files.
        known: numbers whose records are good, to which this one is added.

    Raises:
        DataError: if the record is damaged.
    """
    number = max(ends(files), default=0)
    if number and number not in known:
        check(files, number)
        known.add(number)
    return number


def add(files: Files, num_samples: int, *, fsync: bool = True) -> None:
    """Ask for a number of samples, if nobody did."""
    record = sealed_json({"num_samples": num_samples, "time": time.time()})
    files.write(key_of(num_samples), record, if_absent=True, fsync=fsync)


def key_of(num_samples: int) -> str:
    """Return where a number's record lies."""
    return f"{FOLDER}/{num_samples:015d}.json"


def check(files: Files, number: int) -> bool:
    """Return whether a number's record carries a digest of itself.

    Raises:
        DataError: if it is not as it was written.
    """
    key = key_of(number)
    try:
        value, sealed = parse_sealed(files.read(key, limit=_MAX_BYTES), where=files.path(key))
        if type(value["num_samples"]) is not int or value["num_samples"] != number:
            raise ValueError("another number than its name's")
    except CannotReadError:
        raise
    except Exception as error:  # of whatever is in there, or missing under the name as we write it
        raise DataError(
            f"{files.path(key)}: got a damaged request ({error!s:.200}), allowed one as written. "
            "Remove the file and rerun the command that made the dataset: it asks again."
        ) from None
    return sealed
