"""Labels that changed after features were made: append-only versions beside the dataset.

`labels/<n>.parquet` holds every sample's label as the source had it then, the classes' names and a
digest. Nothing is rewritten: units keep the labels that they were made with, readers take the
latest version, and a snapshot's version says which one it went by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.sealed import PARQUET_PAIR, check_sealed_parquet, seal_end
from dreamshard.foreign.tables import open_parquet
from dreamshard.foreign.text import number_in, parse_json
from storage.fs.beneath import is_unreadable, open_regular
from storage.fs.local import Files

FOLDER = "labels"
MAX_VERSIONS = 100_000
MAX_BYTES = 4 << 30
MAX_CLASSES = 1 << 20
MAX_SAMPLES = 1 << 40


@dataclass(frozen=True)
class LabelVersion:
    """Labels as a source had them at one time.

    Args:
        numbers: int64 (N,), -1 = none.
        classes: names by number; empty where there are none.
    """

    numbers: np.ndarray
    classes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """XXH3-128 of names and numbers, hex."""
        state = xxhash.xxh3_128(json.dumps(list(self.classes)).encode())
        state.update(np.ascontiguousarray(self.numbers, "<i8").data)
        return state.hexdigest()

    def first(self, count: int) -> np.ndarray:
        """Return the labels of the first samples, int64 (count,); -1 beyond those known."""
        numbers = np.full(count, -1, np.int64)
        known = min(count, len(self.numbers))
        numbers[:known] = self.numbers[:known]
        return numbers


def version_key(number: int) -> str:
    """Return where a version lies, 1 and up."""
    return f"{FOLDER}/{number:06d}.parquet"


def count_versions(files: Files) -> int:
    """Return how many versions there are; they are numbered from 1 without gaps.

    Raises:
        DataError: if one is missing.
    """
    names = files.names(FOLDER)
    count = sum(name.endswith(".parquet") and number_in(name[:-8]) is not None for name in names)
    if count > MAX_VERSIONS or (count and f"{count:06d}.parquet" not in names):
        raise DataError(
            f"{files.url}/{FOLDER}: got {count} versions with gaps between them. Restore the "
            "missing ones, or remove the folder: labels are then those of the units."
        )
    return count


def add_version(
    files: Files, numbers: np.ndarray, classes: Sequence[str], *, fsync: bool = True
) -> int:
    """Write the next version, and return its number; of two writers at once each gets one."""
    version = LabelVersion(np.asarray(numbers, np.int64), tuple(classes))
    metadata = {"classes": json.dumps(list(version.classes)), "digest": version.digest}
    table = pa.table({"label": version.numbers})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**metadata, **PARQUET_PAIR})  # in this order
    data = seal_end(sink.getvalue().to_pybytes(), xxhash.xxh3_128())
    while True:
        number = count_versions(files) + 1
        if files.write(version_key(number), data, if_absent=True, fsync=fsync):
            return number


def check(files: Files, number: int) -> bool:
    """Return whether a version's file carries a digest of itself.

    Raises:
        DataError: if it is not as it was written.
    """
    read_version(files, number)
    try:
        with files.fetched(version_key(number)) as path, open(open_regular(path), "rb") as file:
            return check_sealed_parquet(file)
    except ValueError as error:
        raise _damaged(files, number, error) from None


def _damaged(files: Files, number: int, error: Exception) -> DataError:
    return DataError(
        f"{files.url}/{version_key(number)}: got damaged labels ({error!s:.120}), allowed those "
        "written. Remove the file if it is the last; encoding again writes the source's labels."
    )


def read_version(files: Files, number: int) -> LabelVersion | None:
    """Read a version, whoever wrote it; None for number 0, which is what the units say.

    Raises:
        DataError: if it is missing or not as it was written.
    """
    if number == 0:
        return None
    key = version_key(number)
    try:
        data = pa.BufferReader(files.read(key, limit=MAX_BYTES))
        parquet = open_parquet(data, where=files.path(key), max_rows=MAX_SAMPLES)
        if not 0 <= parquet.metadata.num_rows <= MAX_SAMPLES or parquet.metadata.num_columns != 1:
            raise ValueError(f"{parquet.metadata.num_rows} rows")
        table = parquet.read()
        metadata = table.schema.metadata or {}
        classes = tuple(map(str, parse_json(metadata[b"classes"], where=key)))
        numbers = table.column("label").to_numpy().astype(np.int64, casting="safe")
        version = LabelVersion(numbers, classes)
        if len(classes) > MAX_CLASSES or metadata[b"digest"].decode() != version.digest:
            raise ValueError("another digest than its own")
    except Exception as error:  # of whatever is in there
        if is_unreadable(error):  # pyarrow raises OSErrors without a number for damage
            raise
        raise _damaged(files, number, error) from error
    return version
