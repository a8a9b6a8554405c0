"""Manifest parts: immutable Parquet roll-ups of commit records, made while a run goes on.

`manifest/part-<s>.parquet` has one row per sample (plain `pyarrow.parquet.read_table("manifest")`
reads them all), `manifest/_units/units-<s>.parquet` one per unit version. The parts are a log: part
s holds what was committed but in no part before it, and is put if absent, so that of two runs that
roll up at once one wins and the other looks again: nothing is in two parts. The sample part follows
from the unit part and the commit records, and is made again if a run died between the two.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import PARQUET_PAIR, check_sealed_parquet, seal_end
from dreamshard.foreign.tables import open_parquet, read_columns
from dreamshard.foreign.text import number_in
from storage.fs.beneath import open_regular
from storage.fs.local import Files, Sink
from storage.ledger.commits import Commit, read_commit

MAX_PART_UNITS = 4096
MAX_PART_SAMPLES = 4_000_000
MAX_PARTS = 1_000_000
_READ_THREADS = 4
_GROUP_SAMPLES = 200_000  # bounds memory: sample rows are written in groups

UNIT_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("version", pa.int32()),
        ("count", pa.int64()),
        ("bytes", pa.int64()),
        ("invalid", pa.int64()),
        ("digest", pa.string()),
        ("input_digest", pa.string()),
        ("seconds", pa.float64()),
        ("host", pa.string()),
        ("run_id", pa.string()),
        ("created", pa.float64()),
        ("digests", pa.string()),
    ]
)
SAMPLE_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("unit", pa.int64()),
        ("version", pa.int32()),
        ("key", pa.string()),
        ("valid", pa.bool_()),
        ("error", pa.string()),
        ("label", pa.int64()),
    ]
)
STATE_COLUMNS = ("unit", "version", "count", "bytes", "invalid", "digest")


UNITS = "manifest/_units"


def units_key(part: int) -> str:
    """Return where the per-unit table of a part lies."""
    return f"{UNITS}/units-{part:06d}.parquet"


def part_in(name: str) -> int | None:
    """Return the part whose per-unit table has this name; None: no part's has."""
    part = number_in(name[6:-8])
    return part if part is not None and f"{UNITS}/{name}" == units_key(part) else None


def samples_key(part: int) -> str:
    """Return where the per-sample table of a part lies."""
    return f"manifest/part-{part:06d}.parquet"


def num_parts(files: Files, *, strict: bool = True) -> int:
    """Count the parts; they are numbered without gaps.

    Raises:
        DataError: if one is missing, unless `strict` is False.
    """
    numbers = {part for name in files.names(UNITS) if (part := part_in(name)) is not None}
    count = len(numbers)
    if not strict:
        return max(numbers, default=-1) + 1
    if count and count - 1 not in numbers:
        raise DataError(f"{files.url}/{UNITS}: got {count} parts with gaps between them.")
    return count


def read_units(
    files: Files, *, columns: Sequence[str] = STATE_COLUMNS, parts: int | None = None
) -> pa.Table:
    """Read the per-unit rows of the first `parts` parts (all by default), in the log's order."""
    count = num_parts(files) if parts is None else parts
    if count > MAX_PARTS:
        raise DataError(f"{files.url}/manifest: got {count} parts, allowed {MAX_PARTS}.")
    keys = [units_key(part) for part in range(count)]
    read = functools.partial(read_parquet, files, schema=UNIT_SCHEMA, columns=columns)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        tables = list(pool.map(read, keys))
    schema = pa.schema([UNIT_SCHEMA.field(name) for name in columns])
    empty = pa.Table.from_batches([], schema)  # `empty_table` would import pandas
    return pa.concat_tables([empty, *tables])


def read_samples(files: Files, *, columns: Sequence[str], parts: int) -> Iterator[pa.Table]:
    """Yield per-sample rows, part by part; a later row of an index replaces an earlier one."""
    for part in range(parts):
        key = samples_key(part)
        if files.size(key) is None:  # a run died between the two files of this part
            tables = _sample_tables(files, _commits_of(files, part))
            yield pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *tables]).select(list(columns))
        else:
            yield read_parquet(files, key, schema=SAMPLE_SCHEMA, columns=columns)


MIN_UNPACKED, MAX_RATIO = 64 << 20, 512
"""What a part may become in memory: bytes whatever it is, and bytes per byte of the file."""


def read_parquet(files: Files, key: str, schema: pa.Schema, *, columns: Sequence[str]) -> pa.Table:
    """Read some columns of one of our Parquet files, whoever wrote it.

    Raises:
        DataError: if it is damaged, or its columns are not as they should be.
    """
    wanted = pa.schema([schema.field(name) for name in columns])
    try:
        if not files.remote:
            with files.fetched(key):  # a pipe or a device is refused, not waited for
                pass
        source = pa.BufferReader(files.read(key)) if files.remote else files.path(key)
        most = MIN_UNPACKED + MAX_RATIO * (files.size(key) or 0)
        with open_parquet(source, where=files.path(key), max_bytes=most) as file:
            table = read_columns(file, columns, where=files.path(key), max_bytes=most)
        table = table.select(list(columns)).cast(wanted)
        table.validate(full=True)  # texts that are none, too
        if empty := [name for name in columns if name != "error" and table[name].null_count]:
            raise ValueError(f"nothing where there is a {empty[0]} of every row")
        return table
    except CannotReadError:
        raise
    except Exception as error:  # of whatever is in there
        raise DataError(
            f"{files.path(key)}: got a damaged manifest part ({error!s:.200}). Remove the manifest "
            "folder and rerun: it is made again from the commit records."
        ) from None


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of whole numbers or truth values, none of them null, as int64.

    Not by `to_numpy`, which imports pandas first: most of what opening a dataset would take.
    """
    return np.from_dlpack(column.cast(pa.int64()).combine_chunks())


def append_part(files: Files, part: int, commits: Sequence[Commit], *, fsync: bool = True) -> bool:
    """Put the next part of the log, unless another run put one of that number first.

    Returns:
        Whether the commits are in the manifest by this call.
    """
    table = pa.Table.from_pylist([_unit_row(commit) for commit in commits], schema=UNIT_SCHEMA)
    won = _put_tables(files, units_key(part), iter([table]), UNIT_SCHEMA, fsync=fsync)
    finish_part(files, part, commits=commits if won else None, fsync=fsync)
    return won


def finish_part(
    files: Files, part: int, *, commits: Sequence[Commit] | None = None, fsync: bool = True
) -> None:
    """Make a part's sample table if it is not there yet.

    Args:
        files: the dataset's files.
        part: number of the part.
        commits: the records it holds, where they were read already.
        fsync: flush to disk.
    """
    key = samples_key(part)
    if files.size(key) is None:
        tables = _sample_tables(files, commits or _commits_of(files, part))
        _put_tables(files, key, tables, SAMPLE_SCHEMA, fsync=fsync)


def check_part(files: Files, part: int, *, quick: bool = False) -> str:
    """Compare a part with the commit records it was made from; return what differs, or "".

    Raises:
        DataError: if one of its files, or a commit record, is damaged.
    """
    units = read_parquet(files, units_key(part), schema=UNIT_SCHEMA, columns=UNIT_SCHEMA.names)
    if files.size(samples_key(part)) is None:
        return "" if part == num_parts(files, strict=False) - 1 else "got no sample table"
    samples = read_parquet(
        files, samples_key(part), schema=SAMPLE_SCHEMA, columns=SAMPLE_SCHEMA.names
    )
    if quick:
        return ""
    commits = _commits_of(files, part)
    if units.to_pylist() != [_unit_row(commit) for commit in commits]:
        return "got units that differ from their commit records"
    expected = pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *_sample_tables(files, commits)])
    same = samples.combine_chunks().equals(expected.combine_chunks())
    return "" if same else "got samples that differ from their commit records"


def count_unsealed(files: Files, part: int) -> int:
    """Return how many of a part's files carry no digest of themselves.

    Raises:
        DataError: if one is not as it was written.
    """
    count = 0
    for key in (units_key(part), samples_key(part)):
        try:
            with files.fetched(key) as path, open(open_regular(path), "rb") as file:
                count += not check_sealed_parquet(file)
        except FileNotFoundError:  # a run died between the two, or is about to write it
            continue
        except ValueError as error:
            raise DataError(f"{files.path(key)}: got a damaged manifest part ({error}).") from None
    return count


def sample_rows(commits: Sequence[Commit]) -> pa.Table:
    """Return one row per sample of some commits; columns are built whole, which is much faster."""
    counts = [commit.count for commit in commits]
    starts = np.cumsum([0, *counts])
    first = np.repeat([commit.first for commit in commits] - starts[:-1], counts)
    valid = np.ones(starts[-1], bool)
    errors: list[str | None] = [None] * int(starts[-1])
    labels = np.full(starts[-1], -1)
    for start, commit in zip(starts.tolist(), commits, strict=False):
        valid[[start + row for row in commit.invalid]] = False
        for row, text in commit.errors.items():
            errors[start + row] = text
        if commit.labels is not None:
            labels[start : start + commit.count] = commit.labels
    columns = [
        pa.array(first + np.arange(starts[-1]), pa.int64()),
        pa.array(np.repeat([commit.unit for commit in commits], counts), pa.int64()),
        pa.array(np.repeat([commit.version for commit in commits], counts), pa.int32()),
        pa.array(list(itertools.chain.from_iterable(c.keys for c in commits)), pa.string()),
        pa.array(valid, pa.bool_()),
        pa.array(errors, pa.string()),
        pa.array(labels, pa.int64()),
    ]
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def _unit_row(commit: Commit) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(commit, name) for name in UNIT_SCHEMA.names}
    row["invalid"] = len(commit.invalid)
    row["digests"] = json.dumps(commit.digests, sort_keys=True)
    return row


def _commits_of(files: Files, part: int) -> list[Commit]:
    units = read_parquet(files, units_key(part), schema=UNIT_SCHEMA, columns=("unit", "version"))
    pairs = zip(units["unit"].to_pylist(), units["version"].to_pylist(), strict=True)
    return [read_commit(files, unit, version) for unit, version in pairs]


def _sample_tables(files: Files, commits: Sequence[Commit]) -> Iterator[pa.Table]:
    """Yield the sample rows of commits, in groups of bounded size."""
    first_ones = [commit for commit in commits if commit.version == 0]
    group: list[Commit] = []
    held = 0
    for commit in first_ones:
        group.append(commit)
        held += commit.count
        if held >= _GROUP_SAMPLES:
            yield sample_rows(group)
            group, held = [], 0
    if group:
        yield sample_rows(group)
    for commit in commits:
        if commit.version > 0:
            yield _new_rows(files, commit)


def _new_rows(files: Files, commit: Commit) -> pa.Table:
    """Return a commit's sample rows, without those an earlier version of the unit has alike."""
    rows = sample_rows([commit])
    try:
        earlier = read_commit(files, commit.unit, commit.version - 1)
    except DataError:  # withdrawn because its record was damaged
        return rows
    known = {json.dumps(row) for row in sample_rows([earlier]).drop_columns("version").to_pylist()}
    fresh = [json.dumps(row) not in known for row in rows.drop_columns("version").to_pylist()]
    return rows.filter(pa.array(fresh, pa.bool_()))


class _SinkFile(io.RawIOBase):
    """Let pyarrow write into a sink.

    It holds the end back until the whole file's digest can stand in it. After a failure it takes
    all that comes: pyarrow's writer writes once more when it is collected, and nobody can answer to
    an error raised there.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink, self._position, self._failed = sink, 0, False
        self._digest = xxhash.xxh3_128()
        self._end: list[bytes] | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: object) -> int:
        view = memoryview(cast("bytes", data)).cast("B")
        if self._end is not None:
            self._end.append(bytes(view))
        elif not self._failed:
            self._failed = True
            self._sink.write(view)
            self._digest.update(view)
            self._failed = False
        self._position += len(view)
        return len(view)

    def hold(self) -> None:
        """Keep what is written from here on: the end, whose digest is not known yet."""
        self._end = []

    def finish(self) -> None:
        """Write the end, with the digest of the whole file in it."""
        self._sink.write(seal_end(b"".join(self._end or []), self._digest))


def _put_tables(
    files: Files, key: str, tables: Iterator[pa.Table], schema: pa.Schema, *, fsync: bool
) -> bool:
    """Write a Parquet file under a temporary key and put it if absent."""
    sink = files.create(files.temporary())
    try:
        file = _SinkFile(sink)
        with pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, store_schema=False
        ) as writer:
            for table in tables:
                writer.write_table(table)
            writer.add_key_value_metadata(PARQUET_PAIR)
            file.hold()
        file.finish()
        sink.seal(fsync=fsync)
        try:
            won = files.link(sink.key, key)
        except FileNotFoundError:
            raise DataError(
                f"{files.path(key)}: cannot write: this run was paused for so long that another "
                "one swept its temporary files. Run the same command again."
            ) from None
        if fsync:
            files.sync_folders([key])
        return won
    finally:
        sink.close()
        files.remove(sink.key)
